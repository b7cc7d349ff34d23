/*
 * The calls of codewarden.h that the examples do without, in the mode that is named:
 *
 *     calls MODE
 *
 * Exits with 0 if all checks hold; otherwise prints the line of the check that failed.
 */
#define _GNU_SOURCE
#include <codewarden.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "check.h"

static cw_mode mode;

struct fixture {
    uint8_t *memory;
    cw_cache *cache;
    const cw_tracker *tracker;
    cw_vcpu *vcpu;
    cw_front front;
};

static struct fixture on(uint8_t *memory, cw_policy policy, bool own_signals)
{
    struct fixture f = {.memory = memory};
    cw_cache_options options = cw_cache_options_default();
    options.dead_stub = 0x10; /* nothing is ever run */
    options.pending_stub = 0x11;
    options.policy = policy;
    MUST(cw_cache_new(&options, &f.cache));
    f.tracker = cw_cache_tracker(f.cache);
    cw_region_options region = cw_region_options_default(GUEST, memory, LEN, mode);
    region.embedder_owns_signals = own_signals;
    MUST(cw_tracker_add_region(f.tracker, &region));
    MUST(cw_cache_attach_vcpu(f.cache, NULL, NULL, &f.vcpu));
    MUST(cw_vcpu_front(f.vcpu, &f.front));
    return f;
}

static struct fixture setup(cw_policy policy)
{
    uint8_t *memory = mmap(NULL, LEN, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(memory != MAP_FAILED);
    return on(memory, policy, false);
}

static void teardown(struct fixture *f)
{
    MUST(cw_vcpu_free(f->vcpu));
    MUST(cw_cache_free(f->cache));
    munmap(f->memory, LEN);
}

static uintptr_t lookup(struct fixture *f, uint64_t key)
{
    MUST(cw_vcpu_pin(f->vcpu));
    const uintptr_t entry = cw_lookup(f->vcpu, &f->front, key);
    CHECK(entry == cw_vcpu_lookup(f->vcpu, key));
    MUST(cw_vcpu_unpin(f->vcpu));
    return entry;
}

/* A block of the bytes at guest; a handler thread may be busy with the page yet. */
static void commit(struct fixture *f, uint64_t guest, uintptr_t plain, uintptr_t checked)
{
    cw_ticket *ticket;
    const void *page;
    uint8_t bytes[4];
    MUST(cw_cache_begin(f->cache, guest, &ticket));
    cw_status status;
    while ((status = cw_ticket_claim(ticket, guest, &page)) == CW_BUSY)
        sched_yield();
    CHECK(status == CW_OK);
    CHECK(page == f->memory + ((guest - GUEST) & ~(uint64_t)(PAGE - 1)));
    memcpy(bytes, f->memory + (guest - GUEST), sizeof(bytes));
    MUST(cw_ticket_add_source(ticket, guest, bytes, sizeof(bytes)));
    MUST(cw_ticket_commit(ticket, plain, checked, NULL, NULL));
    cw_ticket_free(ticket);
    CHECK(lookup(f, guest) == plain);
}

static void store(struct fixture *f, uint64_t guest)
{
    volatile uint8_t *byte = f->memory + (guest - GUEST);
    *byte = *byte + 1;
    if (mode == CW_MODE_DEFERRED)
        MUST(cw_tracker_sync_range(f->tracker, guest, 1));
}

/* ---- */

static void count(void *counter) { ++*(int *)counter; }

static void payloads_outlive_pins(void)
{
    struct fixture f = setup(CW_POLICY_ADAPTIVE);
    int destroyed = 0;
    cw_ticket *ticket;
    MUST(cw_cache_begin(f.cache, GUEST, &ticket));
    MUST(cw_ticket_claim(ticket, GUEST, NULL));
    MUST(cw_ticket_commit(ticket, 0x100, 0, &destroyed, count));
    cw_ticket_free(ticket);
    MUST(cw_vcpu_pin(f.vcpu));
    CHECK(cw_lookup(f.vcpu, &f.front, GUEST) == 0x100);
    store(&f, GUEST);
    CHECK(cw_lookup(f.vcpu, &f.front, GUEST) == 0);
    for (int i = 0; i < 4; i++)
        MUST(cw_cache_collect(f.cache));
    CHECK(destroyed == 0);
    MUST(cw_vcpu_unpin(f.vcpu));
    for (int i = 0; i < 4; i++)
        MUST(cw_cache_collect(f.cache));
    CHECK(destroyed == 1);
    teardown(&f);
    CHECK(destroyed == 1);
}

static void changes_die(void)
{
    struct fixture f = setup(CW_POLICY_ADAPTIVE);
    commit(&f, GUEST, 0x100, 0);
    store(&f, GUEST);
    CHECK(lookup(&f, GUEST) == 0);
    commit(&f, GUEST, 0x101, 0);
    MUST(cw_tracker_invalidate(f.tracker, GUEST, 1));
    CHECK(lookup(&f, GUEST) == 0);
    commit(&f, GUEST, 0x102, 0);
    MUST(cw_cache_remove(f.cache, GUEST));
    CHECK(lookup(&f, GUEST) == 0);

    /* A retained block of the same bytes comes back. */
    cw_ticket *ticket;
    bool revived;
    MUST(cw_cache_begin(f.cache, GUEST, &ticket));
    MUST(cw_ticket_claim(ticket, GUEST, NULL));
    MUST(cw_ticket_add_source(ticket, GUEST, (uint8_t[4]){1}, 4));
    MUST(cw_ticket_revive(ticket, &revived));
    CHECK(revived && lookup(&f, GUEST) == 0x102);
    cw_ticket_free(ticket);

    cw_footprint footprint = {.size_bytes = sizeof(footprint)};
    MUST(cw_cache_get_footprint(f.cache, &footprint));
    CHECK(footprint.live.blocks == 1 && footprint.cells == 1);
    cw_pages_by_state pages = {.size_bytes = sizeof(pages)};
    MUST(cw_tracker_get_pages_by_state(f.tracker, &pages));
    CHECK(pages.protected_pages == 1 && pages.self_checking_pages == 0);
    MUST(cw_tracker_protect(f.tracker, GUEST, LEN, CW_ACCESS_READ));
    MUST(cw_tracker_protect(f.tracker, GUEST, LEN, CW_ACCESS_READ_WRITE));
    MUST(cw_tracker_maintain(f.tracker));
    store(&f, GUEST);
    CHECK(lookup(&f, GUEST) == 0);
    teardown(&f);
}

static void data_beside_code(void)
{
    struct fixture f = setup(CW_POLICY_ADAPTIVE_WITH_CHECKS);
    commit(&f, GUEST, 0x100, 0x101);
    cw_hold *hold; /* a deferred region has no event of its own here */
    MUST(cw_tracker_prepare_unseen_write(f.tracker, GUEST + 2048, 4, &hold));
    f.memory[2048] = 1;
    cw_hold_free(hold);
    CHECK(lookup(&f, GUEST) == 0x101);
    teardown(&f);
}

static void writes_of_the_kernel(void)
{
    struct fixture f = setup(CW_POLICY_ADAPTIVE);
    int ends[2];
    CHECK(pipe(ends) == 0 && write(ends[1], "abcd", 4) == 4);
    commit(&f, GUEST, 0x100, 0);
    if (mode == CW_MODE_SIGBUS || mode == CW_MODE_MPROTECT) {
        CHECK(read(ends[0], f.memory, 4) == -1 && errno == EFAULT);
    }
    cw_hold *hold;
    MUST(cw_tracker_prepare_kernel_write(f.tracker, GUEST, 4, &hold));
    CHECK(read(ends[0], f.memory, 4) == 4);
    cw_hold_free(hold);
    if (mode == CW_MODE_DEFERRED)
        MUST(cw_tracker_sync(f.tracker));
    CHECK(lookup(&f, GUEST) == 0 && memcmp(f.memory, "abcd", 4) == 0);
    commit(&f, GUEST, 0x101, 0);
    close(ends[0]);
    close(ends[1]);
    teardown(&f);
}

static void mappings_change(void)
{
    struct fixture f = setup(CW_POLICY_ADAPTIVE);
    cw_ticket *ticket;
    const uint64_t at = GUEST + PAGE;
    commit(&f, at, 0x100, 0);
    MUST(cw_tracker_unmap(f.tracker, at, PAGE));
    CHECK(lookup(&f, at) == 0);
    MUST(cw_cache_begin(f.cache, at, &ticket));
    CHECK(cw_ticket_claim(ticket, at, NULL) == CW_UNTRACKABLE);
    cw_ticket_free(ticket);
    void *fresh = mmap(f.memory + PAGE, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
    CHECK(fresh == f.memory + PAGE);
    MUST(cw_tracker_map(f.tracker, at, PAGE, CW_ACCESS_READ_WRITE, NULL));
    commit(&f, at, 0x101, 0);
    store(&f, at);
    CHECK(lookup(&f, at) == 0);

    commit(&f, at, 0x102, 0);
    MUST(cw_tracker_discard(f.tracker, at, PAGE, MADV_DONTNEED));
    CHECK(lookup(&f, at) == 0 && f.memory[PAGE] == 0);
    commit(&f, at, 0x103, 0);
    store(&f, at);
    CHECK(lookup(&f, at) == 0);
    CHECK(cw_tracker_discard(f.tracker, at, PAGE, -1) == CW_SYSTEM && cw_last_errno() == EINVAL);
    CHECK(cw_tracker_discard(f.tracker, GUEST, LEN + 1, MADV_DONTNEED) == CW_BAD_RANGE);
    teardown(&f);
}

/* The two halves of the region show the same bytes. */
static void several_mappings(void)
{
    const int fd = memfd_create("guest", MFD_CLOEXEC);
    struct stat info;
    CHECK(fd >= 0 && ftruncate(fd, LEN / 2) == 0 && fstat(fd, &info) == 0);
    uint8_t *memory = mmap(NULL, LEN, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(memory != MAP_FAILED);
    for (int half = 0; half < 2; half++) {
        void *at = memory + half * (LEN / 2);
        CHECK(mmap(at, LEN / 2, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, 0) == at);
    }
    struct fixture f = on(memory, CW_POLICY_ADAPTIVE, false);
    const cw_shared_memory shown = cw_shared_file(info.st_dev, info.st_ino, 0);
    MUST(cw_tracker_declare_shared(f.tracker, GUEST, LEN / 2, shown));
    MUST(cw_tracker_declare_shared(f.tracker, GUEST + LEN / 2, LEN / 2, shown));
    commit(&f, GUEST, 0x100, 0);
    store(&f, GUEST + LEN / 2);
    CHECK(lookup(&f, GUEST) == 0);
    close(fd);
    teardown(&f);
}

static int faults, others;

static void on_fault(int signo, siginfo_t *info, void *context)
{
    if (cw_handle_fault(signo, info, context)) {
        faults++;
        return;
    }
    others++;
    signal(signo, SIG_DFL);
}

static void signals_of_my_own(void)
{
    struct sigaction action = {.sa_sigaction = on_fault, .sa_flags = SA_SIGINFO | SA_ONSTACK}, before[2];
    const int signals[2] = {SIGBUS, SIGSEGV};
    cw_alt_stack *stack;
    MUST(cw_alt_stack_new(&stack));
    for (int i = 0; i < 2; i++) {
        CHECK(!cw_is_blocked_here(signals[i]));
        CHECK(sigaction(signals[i], &action, &before[i]) == 0);
    }
    uint8_t *memory = mmap(NULL, LEN, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(memory != MAP_FAILED);
    struct fixture f = on(memory, CW_POLICY_ADAPTIVE, true);
    CHECK(!cw_handler_is_ours(SIGBUS) && !cw_handler_is_ours(SIGSEGV));
    commit(&f, GUEST, 0x100, 0);
    store(&f, GUEST);
    CHECK(lookup(&f, GUEST) == 0);
    CHECK(faults == (mode == CW_MODE_SIGBUS || mode == CW_MODE_MPROTECT ? 1 : 0) && others == 0);
    teardown(&f);
    for (int i = 0; i < 2; i++)
        CHECK(sigaction(signals[i], &before[i], NULL) == 0);
    cw_alt_stack_free(stack);
}

static void ask(void *asked) { __atomic_store_n((bool *)asked, true, __ATOMIC_RELEASE); }

static void *stay_pinned(void *argument)
{
    struct { cw_vcpu *vcpu; bool pinned, asked; } *own = argument;
    MUST(cw_vcpu_pin(own->vcpu));
    __atomic_store_n(&own->pinned, true, __ATOMIC_RELEASE);
    while (!__atomic_load_n(&own->asked, __ATOMIC_ACQUIRE))
        sched_yield();
    MUST(cw_vcpu_unpin(own->vcpu));
    return NULL;
}

static void vcpus_are_asked_to_leave(void)
{
    struct fixture f = setup(CW_POLICY_ADAPTIVE);
    struct { cw_vcpu *vcpu; bool pinned, asked; } other = {0};
    pthread_t thread;
    MUST(cw_cache_attach_vcpu(f.cache, ask, &other.asked, &other.vcpu));
    CHECK(pthread_create(&thread, NULL, stay_pinned, &other) == 0);
    while (!__atomic_load_n(&other.pinned, __ATOMIC_ACQUIRE))
        sched_yield();
    MUST(cw_cache_wait_for_vcpus(f.cache));
    CHECK(other.asked);
    pthread_join(thread, NULL);
    MUST(cw_vcpu_free(other.vcpu));
    teardown(&f);
}

static void code_memory_is_bounded(void)
{
    struct fixture f = setup(CW_POLICY_ADAPTIVE);
    cw_code_buffer *buffer;
    int times_full = 0;
    MUST(cw_code_buffer_new(64 << 10, &buffer));
    for (uint64_t key = 1; key <= 200; key++) {
        cw_allocation *code;
        cw_ticket *ticket;
        cw_status status;
        while ((status = cw_code_buffer_alloc(buffer, 1 << 10, 16, &code)) == CW_FULL) {
            times_full++;
            MUST(cw_cache_evict(f.cache, 8 << 10));
        }
        CHECK(status == CW_OK);
        *(uint8_t *)cw_allocation_rw(code) = 0xc3;
        MUST(cw_allocation_publish(code));
        const uintptr_t entry = (uintptr_t)cw_allocation_rx(code);
        MUST(cw_cache_begin(f.cache, key, &ticket));
        MUST(cw_ticket_claim(ticket, GUEST, NULL));
        MUST(cw_ticket_keep_allocation(ticket, code));
        MUST(cw_ticket_commit(ticket, entry, 0, NULL, NULL));
        cw_ticket_free(ticket);
        CHECK(lookup(&f, key) == entry);
    }
    CHECK(times_full > 10 && times_full < 40);
    cw_code_buffer_free(buffer);
    teardown(&f);
}

static void numbers_for_people(void)
{
    struct fixture f = setup(CW_POLICY_ADAPTIVE);
    cw_hot_page hot[4];
    cw_recent_write writes[4];
    cw_histogram histogram = {.size_bytes = sizeof(histogram)};
    int descriptors[16];
    size_t count, open;
    commit(&f, GUEST + PAGE, 0x100, 0);
    store(&f, GUEST + PAGE + 5);
    MUST(cw_tracker_hottest_pages(f.tracker, hot, 4, &count));
    CHECK(count == 1 && hot[0].page == GUEST + PAGE && hot[0].code_hits + hot[0].data_hits + hot[0].harvested == 1);
    CHECK(hot[0].last_byte == (mode == CW_MODE_DEFERRED ? UINT64_MAX : hot[0].last_byte));
    MUST(cw_tracker_hottest_pages(f.tracker, NULL, 0, &count));
    CHECK(count == 0);
    MUST(cw_cache_recent_writes(f.cache, 0, writes, 4, &count));
    CHECK(count == 1 && writes[0].page == GUEST + PAGE && writes[0].killed == 1);
    CHECK(writes[0].cause == (mode == CW_MODE_DEFERRED ? CW_CAUSE_HARVEST : CW_CAUSE_STORE));
    MUST(cw_cache_recent_writes(f.cache, writes[0].sequence + 1, writes, 4, &count));
    CHECK(count == 0);
    MUST(cw_tracker_get_histogram(f.tracker, CW_HISTOGRAM_PROTECT_PAGES, &histogram));
    CHECK(histogram.count == 1 && histogram.sum == 1 && histogram.max == 1 && histogram.buckets[1] == 1);
    CHECK(cw_tracker_get_histogram(f.tracker, (cw_histogram_of)99, &histogram) == CW_BAD_ARGUMENT);
    MUST(cw_tracker_descriptors(f.tracker, descriptors, 16, &count));
    for (open = 0; open < count && fcntl(descriptors[open], F_GETFD) != -1; open++)
        ;
    CHECK(open == count && (count != 0) == (mode != CW_MODE_MPROTECT));
    teardown(&f);
}

static void forks(void)
{
    struct fixture f = setup(CW_POLICY_ADAPTIVE);
    cw_code_buffer *buffer;
    cw_fork_guard *guard;
    cw_allocation *code;
    int status;
    MUST(cw_code_buffer_new(PAGE, &buffer));
    MUST(cw_code_buffer_alloc(buffer, 16, 16, &code));
    uint8_t *rw = cw_allocation_rw(code);
    *rw = 0xc3;
    commit(&f, GUEST, 0x100, 0);
    MUST(cw_tracker_before_fork(f.tracker, &buffer, 1, &guard));
    const pid_t pid = fork();
    if (pid == 0) {
        MUST(cw_after_fork_child(guard));
        CHECK(lookup(&f, GUEST) == 0);
        commit(&f, GUEST, 0x101, 0);
        store(&f, GUEST);
        CHECK(lookup(&f, GUEST) == 0);
        *rw = 0xcc; /* the child's own */
        cw_allocation_free(code);
        cw_code_buffer_free(buffer);
        teardown(&f);
        _exit(0);
    }
    cw_after_fork_parent(guard);
    CHECK(pid > 0 && waitpid(pid, &status, 0) == pid && status == 0);
    CHECK(lookup(&f, GUEST) == 0x100 && *rw == 0xc3);
    store(&f, GUEST);
    CHECK(lookup(&f, GUEST) == 0);
    cw_allocation_free(code);
    cw_code_buffer_free(buffer);
    teardown(&f);
}

static int open_files(void)
{
    int open = 0;
    for (int number = 0; number < 4096; number++)
        open += fcntl(number, F_GETFD) != -1;
    return open;
}

/* A child of a child of a child: each has as many descriptors as the first. */
static void generations_of_forks(void)
{
    struct fixture f = setup(CW_POLICY_ADAPTIVE);
    cw_fork_guard *guard;
    const int before = open_files();
    int status;
    pid_t pid = 0;
    for (int left = 5; pid == 0 && left > 0; left--) {
        commit(&f, GUEST, 0x100, 0);
        MUST(cw_tracker_before_fork(f.tracker, NULL, 0, &guard));
        CHECK((pid = fork()) >= 0);
        if (pid == 0) {
            MUST(cw_after_fork_child(guard));
            CHECK(open_files() == before);
        } else {
            cw_after_fork_parent(guard);
            CHECK(waitpid(pid, &status, 0) == pid && status == 0);
            if (left != 5)
                _exit(0);
        }
    }
    if (pid == 0)
        _exit(0);
    teardown(&f);
}

int main(int argc, char **argv)
{
    mode = mode_to_test(argc, argv);
    /* Before the library's handler is there. */
    signals_of_my_own();
    payloads_outlive_pins();
    changes_die();
    data_beside_code();
    writes_of_the_kernel();
    mappings_change();
    several_mappings();
    vcpus_are_asked_to_leave();
    code_memory_is_bounded();
    numbers_for_people();
    forks();
    generations_of_forks();
    puts("all holds");
    return 0;
}
