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

#define CHECK(condition)                                                                            \
    do {                                                                                            \
        if (!(condition)) {                                                                         \
            fprintf(stderr, "%s:%d: %s\nlast error: %s\n", __FILE__, __LINE__, #condition,           \
                    cw_last_error_message());                                                       \
            exit(1);                                                                                \
        }                                                                                           \
    } while (0)
#define MUST(call) CHECK((call) == CW_OK)

enum { PAGE = 4096, LEN = 16 * PAGE };
#define GUEST UINT64_C(0x10000000)

static cw_mode mode;

struct fixture {
    uint8_t *memory;
    cw_cache *cache;
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
    cw_region_options region = cw_region_options_default(GUEST, memory, LEN, mode);
    region.embedder_owns_signals = own_signals;
    MUST(cw_cache_add_region(f.cache, &region));
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
        MUST(cw_cache_sync_range(f->cache, guest, 1));
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
    MUST(cw_cache_invalidate(f.cache, GUEST, 1));
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
    MUST(cw_cache_get_pages_by_state(f.cache, &pages));
    CHECK(pages.protected_pages == 1 && pages.self_checking_pages == 0);
    MUST(cw_cache_set_access(f.cache, GUEST, LEN, CW_ACCESS_READ));
    MUST(cw_cache_set_access(f.cache, GUEST, LEN, CW_ACCESS_READ_WRITE));
    MUST(cw_maintain(f.cache));
    store(&f, GUEST);
    CHECK(lookup(&f, GUEST) == 0);
    teardown(&f);
}

static void data_beside_code(void)
{
    struct fixture f = setup(CW_POLICY_ADAPTIVE_WITH_CHECKS);
    commit(&f, GUEST, 0x100, 0x101);
    cw_hold *hold; /* a deferred region has no event of its own here */
    MUST(cw_cache_prepare_unseen_write(f.cache, GUEST + 2048, 4, &hold));
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
    MUST(cw_cache_prepare_kernel_write(f.cache, GUEST, 4, &hold));
    CHECK(read(ends[0], f.memory, 4) == 4);
    cw_hold_free(hold);
    if (mode == CW_MODE_DEFERRED)
        MUST(cw_cache_sync(f.cache));
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
    cw_mapping_change *change;
    commit(&f, GUEST + PAGE, 0x100, 0);
    MUST(cw_cache_change_mapping(f.cache, GUEST + PAGE, PAGE, &change));
    CHECK(lookup(&f, GUEST + PAGE) == 0);
    MUST(cw_cache_begin(f.cache, GUEST + PAGE, &ticket));
    CHECK(cw_ticket_claim(ticket, GUEST + PAGE, NULL) == CW_BUSY);
    cw_ticket_free(ticket);
    void *fresh = mmap(f.memory + PAGE, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
    CHECK(fresh == f.memory + PAGE);
    MUST(cw_mapping_change_replaced(change, CW_ACCESS_READ_WRITE, NULL));
    cw_mapping_change_free(change);
    commit(&f, GUEST + PAGE, 0x101, 0);
    store(&f, GUEST + PAGE);
    CHECK(lookup(&f, GUEST + PAGE) == 0);
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
    const cw_shared_memory shown = {.device = info.st_dev, .inode = info.st_ino, .offset_bytes = 0};
    MUST(cw_cache_declare_shared(f.cache, GUEST, LEN / 2, shown));
    MUST(cw_cache_declare_shared(f.cache, GUEST + LEN / 2, LEN / 2, shown));
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

/* A number for a page, as the header says, for blocks in a table of one's own. */
struct block {
    const uintptr_t *cell;
    uintptr_t number;
    uint8_t made_from;
};

static bool is_valid(const struct block *block)
{
    return __atomic_load_n(block->cell, __ATOMIC_ACQUIRE) == block->number;
}

static bool translate(struct fixture *f, cw_link *page, uint64_t guest, struct block *block)
{
    static uintptr_t next = 2;
    const uint64_t first = guest & ~(uint64_t)(PAGE - 1);
    block->cell = cw_link_cell(page);
    block->number = __atomic_load_n(block->cell, __ATOMIC_ACQUIRE);
    if (block->number < 2) {
        cw_ticket *ticket;
        MUST(cw_cache_begin(f->cache, first, &ticket));
        const bool tracked = cw_ticket_claim(ticket, first, NULL) == CW_OK &&
                             cw_ticket_commit(ticket, next, 0, NULL, NULL) == CW_OK;
        cw_ticket_free(ticket);
        if (!tracked)
            return false; /* an emulator would interpret */
        block->number = next++;
    }
    block->made_from = f->memory[guest - GUEST];
    return true;
}

static void a_cache_of_my_own(void)
{
    uint8_t *memory = mmap(NULL, LEN, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    struct fixture f = {.memory = memory};
    const cw_cache_options options = cw_cache_options_default();
    const cw_region_options region = cw_region_options_default(GUEST, memory, LEN, mode);
    struct block blocks[3];
    cw_link *pages[2];
    cw_vcpu *vcpu;
    CHECK(memory != MAP_FAILED);
    MUST(cw_cache_new(&options, &f.cache));
    MUST(cw_cache_add_region(f.cache, &region));
    for (int page = 0; page < 2; page++)
        MUST(cw_cache_link(f.cache, GUEST + page * PAGE, &pages[page]));
    MUST(cw_cache_attach_vcpu(f.cache, NULL, NULL, &vcpu));
    MUST(cw_vcpu_pin(vcpu));
    for (int round = 0; round < 20; round++) {
        /* Two blocks on one page, of which only one is written to, and one on another. */
        while (!translate(&f, pages[0], GUEST, &blocks[0]) || !translate(&f, pages[0], GUEST + 1000, &blocks[1]) ||
               !translate(&f, pages[1], GUEST + PAGE, &blocks[2]))
            sched_yield();
        CHECK(is_valid(&blocks[0]) && is_valid(&blocks[1]) && is_valid(&blocks[2]));
        CHECK(blocks[0].number == blocks[1].number && blocks[0].number != blocks[2].number);
        CHECK(blocks[0].made_from == (uint8_t)round);
        store(&f, GUEST);
        CHECK(!is_valid(&blocks[0]) && !is_valid(&blocks[1]) && is_valid(&blocks[2]));
    }
    MUST(cw_vcpu_unpin(vcpu));
    MUST(cw_vcpu_free(vcpu));
    for (int page = 0; page < 2; page++)
        cw_link_free(pages[page]);
    MUST(cw_cache_free(f.cache));
    munmap(memory, LEN);
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
    MUST(cw_before_fork(f.cache, &buffer, 1, &guard));
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
        MUST(cw_before_fork(f.cache, NULL, 0, &guard));
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
    CHECK(argc == 2);
    alarm(300); /* ends a wait that would never end */
    MUST(cw_mode_from_name(argv[1], &mode));
    if (cw_mode_check(mode) == CW_MODE_UNAVAILABLE) {
        printf("SKIPPED %s\n", cw_last_error_message());
        return 0;
    }
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
    a_cache_of_my_own();
    forks();
    generations_of_forks();
    puts("all holds");
    return 0;
}
