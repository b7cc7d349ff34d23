/*
 * The answers to failed calls that codewarden.h promises, and the remedies that it names.
 * The process makes the mistakes that embedders make.
 *
 *     answers [nothing]
 *
 * nothing: to be run if no synchronous mode is available. Exits with 0 if all checks hold;
 * otherwise prints the line of the check that failed.
 */
#define _GNU_SOURCE
#include <codewarden.h>
#include <errno.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "check.h"

static uint8_t *memory;
static cw_cache *cache;
static const cw_tracker *tracker;

static cw_status add_region(cw_mode mode)
{
    const cw_region_options region = cw_region_options_default(GUEST, memory, LEN, mode);
    return cw_tracker_add_region(tracker, &region);
}

static void setup(cw_mode mode)
{
    const cw_cache_options options = cw_cache_options_default();
    memory = mmap(NULL, LEN, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(memory != MAP_FAILED);
    MUST(cw_cache_new(&options, &cache));
    tracker = cw_cache_tracker(cache);
    MUST(add_region(mode));
}

static void teardown(void)
{
    MUST(cw_cache_free(cache));
    munmap(memory, LEN);
}

static cw_ticket *begin(void)
{
    cw_ticket *ticket;
    MUST(cw_cache_begin(cache, GUEST, &ticket));
    return ticket;
}

/* The answer to a claim by a new ticket. */
static cw_status claim(uint64_t guest)
{
    cw_ticket *ticket = begin();
    const cw_status status = cw_ticket_claim(ticket, guest, NULL);
    cw_ticket_free(ticket);
    return status;
}

static void commit(uint64_t guest)
{
    cw_ticket *ticket;
    MUST(cw_cache_begin(cache, guest, &ticket));
    MUST(cw_ticket_claim(ticket, guest, NULL));
    MUST(cw_ticket_commit(ticket, 0x100, 0, NULL, NULL));
    cw_ticket_free(ticket);
}

static uintptr_t lookup(uint64_t key)
{
    cw_vcpu *vcpu;
    MUST(cw_cache_attach_vcpu(cache, NULL, NULL, &vcpu));
    MUST(cw_vcpu_pin(vcpu));
    const uintptr_t entry = cw_vcpu_lookup(vcpu, key);
    MUST(cw_vcpu_unpin(vcpu));
    MUST(cw_vcpu_free(vcpu));
    return entry;
}

/* Runs part in a child of its own. If that fails, the parent fails. */
static void alone(void (*part)(void))
{
    int status;
    const pid_t pid = fork();
    if (pid == 0) {
        alarm(60); /* ends a wait that would never end */
        part();
        fflush(stdout);
        _exit(0);
    }
    CHECK(pid > 0 && waitpid(pid, &status, 0) == pid && status == 0);
}

/* From here on the system call number fails with EPERM. */
static void refuse(uint32_t number)
{
    struct sock_filter steps[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, 0),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, number, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog filter = {.len = 4, .filter = steps};
    CHECK(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0);
    CHECK(prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &filter) == 0);
}

/* ---- The next step after each status of cw_ticket_claim() */

static void a_busy_page_is_claimed_later(void)
{
    setup(CW_MODE_MPROTECT);
    cw_ticket *ticket = begin();
    cw_hold *hold;
    MUST(cw_ticket_claim(ticket, GUEST + PAGE, NULL));
    MUST(cw_tracker_prepare_kernel_write(tracker, GUEST, 1, &hold));
    CHECK(cw_ticket_claim(ticket, GUEST, NULL) == CW_BUSY);
    cw_hold_free(hold);
    MUST(cw_ticket_claim(ticket, GUEST, NULL));
    CHECK(cw_ticket_is_current(ticket)); /* the earlier claim still holds */
    MUST(cw_ticket_commit(ticket, 0x100, 0, NULL, NULL));
    CHECK(cw_ticket_claim(ticket, GUEST, NULL) == CW_BAD_ARGUMENT); /* spent */
    cw_ticket_free(ticket);
    CHECK(cw_ticket_claim(NULL, GUEST, NULL) == CW_BAD_ARGUMENT);
    teardown();
}

static void outside_every_region(void)
{
    setup(CW_MODE_MPROTECT);
    cw_ticket *ticket = begin();
    CHECK(cw_ticket_claim(ticket, GUEST - 1, NULL) == CW_BAD_RANGE);
    CHECK(cw_ticket_claim(ticket, GUEST + LEN, NULL) == CW_BAD_RANGE);
    MUST(cw_ticket_claim(ticket, GUEST + LEN - 1, NULL));
    cw_ticket_free(ticket);
    teardown();
}

static void a_page_that_the_kernel_does_not_protect(void)
{
    /* A page that the kernel does not even open again is lost. */
    setup(CW_MODE_MPROTECT);
    refuse(SYS_mprotect);
    CHECK(claim(GUEST) == CW_SYSTEM && cw_last_errno() == EPERM);
    CHECK(claim(GUEST) == CW_TRACKING_LOST);
    *memory = 1;
    teardown();
}

static bool has_sigbus(void)
{
    if (cw_mode_check(CW_MODE_SIGBUS) == CW_OK)
        return true;
    printf("SKIPPED %s\n", cw_last_error_message());
    return false;
}

static void a_page_that_nobody_said_was_replaced(void)
{
    if (!has_sigbus())
        return;
    setup(CW_MODE_SIGBUS);
    CHECK(mmap(memory, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == memory);
    CHECK(claim(GUEST) == CW_SYSTEM && cw_last_errno() != 0);
    CHECK(claim(GUEST) == CW_SYSTEM);
    /* The kernel is asked again: */
    MUST(cw_tracker_map(tracker, GUEST, PAGE, CW_ACCESS_READ_WRITE, NULL));
    MUST(claim(GUEST));
    teardown();
}

static void close_userfaultfds(void)
{
    for (int fd = 0; fd < 4096; fd++) {
        char link[64], name[64] = "";
        snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
        if (readlink(link, name, sizeof(name) - 1) > 0 && strstr(name, "[userfaultfd]"))
            close(fd);
    }
}

static void a_region_that_is_lost_is_added_again(void)
{
    if (!has_sigbus())
        return;
    setup(CW_MODE_SIGBUS);
    commit(GUEST);
    close_userfaultfds();
    CHECK(claim(GUEST + PAGE) == CW_TRACKING_LOST);
    CHECK(lookup(GUEST) == 0);
    CHECK(claim(GUEST) == CW_TRACKING_LOST);
    cw_tracker_remove_region(tracker, GUEST); /* any answer is fine */
    MUST(add_region(CW_MODE_SIGBUS));
    commit(GUEST);
    *memory = 1;
    CHECK(lookup(GUEST) == 0);
    teardown();
}

static void a_child_that_nobody_announced(void)
{
    /* Protected in the parent. */
    CHECK(claim(GUEST) == CW_IN_FORK_CHILD);
    CHECK(claim(GUEST) == CW_TRACKING_LOST && lookup(GUEST) == 0);
    *memory = 1;
}

/* mprotect works on the child's own memory. */
static void a_child_that_nobody_announced_under_mprotect(void)
{
    MUST(claim(GUEST + PAGE));
    CHECK(lookup(GUEST) == 0x100);
    *memory = 1;
    CHECK(lookup(GUEST) == 0);
}

static void a_fork_that_nobody_announced(void)
{
    setup(CW_MODE_MPROTECT);
    commit(GUEST);
    alone(a_child_that_nobody_announced_under_mprotect);
    CHECK(lookup(GUEST) == 0x100);
    teardown();
    if (!has_sigbus())
        return;
    setup(CW_MODE_SIGBUS);
    commit(GUEST);
    alone(a_child_that_nobody_announced);
    MUST(claim(GUEST + PAGE));
    CHECK(lookup(GUEST) == 0x100);
    teardown();
}

/* ---- Regions that are taken away */

static void a_region_is_taken_away_once(void)
{
    setup(CW_MODE_MPROTECT);
    commit(GUEST);
    CHECK(cw_tracker_remove_region(tracker, GUEST + PAGE) == CW_BAD_ARGUMENT);
    CHECK(lookup(GUEST) == 0x100);
    MUST(cw_tracker_remove_region(tracker, GUEST));
    *memory = 1;
    CHECK(lookup(GUEST) == 0 && claim(GUEST) == CW_BAD_RANGE);
    CHECK(cw_tracker_remove_region(tracker, GUEST) == CW_BAD_ARGUMENT);
    teardown();
}

static void a_region_that_stays_protected_is_gone_all_the_same(void)
{
    setup(CW_MODE_MPROTECT);
    commit(GUEST);
    refuse(SYS_mprotect);
    CHECK(cw_tracker_remove_region(tracker, GUEST) == CW_SYSTEM && cw_last_errno() == EPERM);
    CHECK(lookup(GUEST) == 0 && claim(GUEST) == CW_BAD_RANGE);
    CHECK(cw_tracker_remove_region(tracker, GUEST) == CW_BAD_ARGUMENT);
    CHECK(mmap(memory, LEN, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == memory);
    *memory = 1;
    teardown();
}

/* ---- The bytes of a block */

/* Otherwise bytes that were not declared could change, and the block stay beside them. */
static void bytes_that_cannot_be_noted_make_no_block(void)
{
    const struct {
        uint64_t guest;
        const void *bytes;
        size_t len_bytes;
        cw_status answer;
    } bad[] = {
        {GUEST + 64, NULL, 1, CW_BAD_ARGUMENT},       {GUEST + 64, "", 0, CW_BAD_ARGUMENT},
        {GUEST + 64, "", SIZE_MAX, CW_BAD_ARGUMENT},  {UINT64_MAX, "ab", 2, CW_BAD_RANGE},
        {GUEST + PAGE - 1, "ab", 2, CW_BAD_RANGE},    {0, "a", 1, CW_BAD_RANGE},
    };
    setup(CW_MODE_MPROTECT);
    for (size_t i = 0; i < sizeof(bad) / sizeof(*bad); i++) {
        for (int revives = 0; revives < 2; revives++) {
            bool revived;
            cw_ticket *ticket = begin();
            MUST(cw_ticket_claim(ticket, GUEST, NULL));
            MUST(cw_ticket_add_source(ticket, GUEST, "\0", 1));
            CHECK(cw_ticket_add_source(ticket, bad[i].guest, bad[i].bytes, bad[i].len_bytes) == bad[i].answer);
            MUST(cw_ticket_add_source(ticket, GUEST + 1, "\0", 1));
            if (revives)
                CHECK(cw_ticket_revive(ticket, &revived) == CW_BAD_ARGUMENT && !revived);
            CHECK(cw_ticket_commit(ticket, 0x100, 0, NULL, NULL) == CW_BAD_ARGUMENT);
            CHECK(lookup(GUEST) == 0);
            cw_ticket_free(ticket);
        }
    }
    teardown();
}

static void a_bool_is_true_or_false(void)
{
    setup(CW_MODE_MPROTECT);
    MUST(cw_tracker_remove_region(tracker, GUEST));
    cw_region_options region = cw_region_options_default(GUEST, memory, LEN, CW_MODE_MPROTECT);
    memset(&region.embedder_owns_signals, 2, 1);
    CHECK(cw_tracker_add_region(tracker, &region) == CW_BAD_ARGUMENT);
    MUST(add_region(CW_MODE_MPROTECT));
    teardown();
}

/* ---- Alignment */

static void any_byte_stands_for_its_page(void)
{
    struct {
        char odd;
        uint8_t bytes[3];
    } made_from = {0};
    cw_ticket *ticket;
    cw_hold *hold;
    setup(CW_MODE_MPROTECT);
    MUST(cw_cache_begin(cache, GUEST + 3, &ticket));
    MUST(cw_ticket_claim(ticket, GUEST + 3, NULL));
    MUST(cw_ticket_add_source(ticket, GUEST + 3, made_from.bytes, 3));
    MUST(cw_ticket_commit(ticket, 0x101, 0, NULL, NULL));
    cw_ticket_free(ticket);
    MUST(cw_tracker_sync_range(tracker, GUEST + 1, 1));
    MUST(cw_tracker_protect(tracker, GUEST + 5, 1, CW_ACCESS_READ));
    MUST(cw_tracker_protect(tracker, GUEST + 5, 1, CW_ACCESS_READ_WRITE));
    CHECK(lookup(GUEST + 3) == 0x101);
    MUST(cw_tracker_prepare_unseen_write(tracker, GUEST + 7, 1, &hold));
    CHECK(lookup(GUEST + 3) == 0);
    cw_hold_free(hold);
    commit(GUEST + 3);
    MUST(cw_tracker_invalidate(tracker, GUEST + PAGE - 1, 1));
    CHECK(lookup(GUEST + 3) == 0);
    commit(GUEST + 3);
    MUST(cw_tracker_unmap(tracker, GUEST + 9, 1));
    CHECK(lookup(GUEST + 3) == 0 && claim(GUEST + 3) == CW_UNTRACKABLE);
    MUST(cw_tracker_map(tracker, GUEST + 9, 1, CW_ACCESS_READ_WRITE, NULL));
    commit(GUEST + 3);
    MUST(cw_tracker_discard(tracker, GUEST + 9, 1, MADV_DONTNEED));
    CHECK(lookup(GUEST + 3) == 0);
    commit(GUEST + 3);
    *memory = 1;
    CHECK(lookup(GUEST + 3) == 0);
    MUST(cw_tracker_remove_region(tracker, GUEST));

    cw_region_options region = cw_region_options_default(GUEST + 1, memory, LEN, CW_MODE_MPROTECT);
    CHECK(cw_tracker_add_region(tracker, &region) == CW_BAD_RANGE);
    region = cw_region_options_default(GUEST, memory + 1, LEN - PAGE, CW_MODE_MPROTECT);
    CHECK(cw_tracker_add_region(tracker, &region) == CW_BAD_RANGE);
    region = cw_region_options_default(GUEST, memory, LEN - 1, CW_MODE_MPROTECT);
    CHECK(cw_tracker_add_region(tracker, &region) == CW_BAD_RANGE);
    region = cw_region_options_default(GUEST, NULL, LEN, CW_MODE_MPROTECT);
    region.reserved = true;
    CHECK(cw_tracker_add_region(tracker, &region) == CW_BAD_ARGUMENT);
    MUST(add_region(CW_MODE_MPROTECT));
    cw_shared_memory shared = cw_shared_file(1, 1, 0);
    CHECK(cw_tracker_declare_shared(tracker, GUEST + 1, PAGE, shared) == CW_BAD_RANGE);
    CHECK(cw_tracker_declare_shared(tracker, GUEST, PAGE - 1, shared) == CW_BAD_RANGE);
    shared.offset_bytes = 1;
    CHECK(cw_tracker_declare_shared(tracker, GUEST, PAGE, shared) == CW_BAD_RANGE);
    teardown();
}

/* ---- A vCPU that is not pinned */

static void lookup_without_a_pin(void)
{
    cw_vcpu *vcpu;
    cw_front front;
    MUST(cw_cache_attach_vcpu(cache, NULL, NULL, &vcpu));
    MUST(cw_vcpu_front(vcpu, &front));
    MUST(cw_vcpu_pin(vcpu));
    CHECK(*front.is_pinned == 1 && cw_lookup(vcpu, &front, GUEST) == 0x100);
    MUST(cw_vcpu_unpin(vcpu));
    CHECK(*front.is_pinned == 0 && cw_vcpu_lookup(vcpu, GUEST) == 0);
    CHECK(strstr(cw_last_error_message(), "not pinned"));
    fflush(stdout);
    freopen("/dev/null", "w", stderr);
    cw_lookup(vcpu, &front, GUEST); /* the assertion ends the process */
}

static void a_lookup_without_a_pin_is_told(void)
{
    int status;
    setup(CW_MODE_MPROTECT);
    commit(GUEST);
    const pid_t pid = fork();
    if (pid == 0) {
        lookup_without_a_pin();
        _exit(0);
    }
    CHECK(pid > 0 && waitpid(pid, &status, 0) == pid);
    CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT);
    teardown();
}

/* ---- Code that was not published */

static void code_that_was_not_published(void)
{
    cw_code_buffer *buffer;
    setup(CW_MODE_MPROTECT);
    MUST(cw_code_buffer_new(PAGE, &buffer));
    for (int published = 0; published < 2; published++) {
        cw_allocation *code;
        cw_ticket *ticket = begin();
        MUST(cw_ticket_claim(ticket, GUEST, NULL));
        MUST(cw_code_buffer_alloc(buffer, 64, 16, &code));
        *(uint8_t *)cw_allocation_rw(code) = 0xc3;
        const uintptr_t entry = (uintptr_t)cw_allocation_rx(code);
        if (published)
            MUST(cw_allocation_publish(code));
        MUST(cw_ticket_keep_allocation(ticket, code));
        const cw_status status = cw_ticket_commit(ticket, entry, 0, NULL, NULL);
        CHECK(status == (published ? CW_OK : CW_BAD_ARGUMENT));
        CHECK(published || strstr(cw_last_error_message(), "not published"));
        CHECK(lookup(GUEST) == (published ? entry : 0));
        cw_ticket_free(ticket);
    }
    cw_code_buffer_free(buffer);
    teardown();
}

/* ---- Calls of the thread that holds the guard of a fork */

static void told_of_the_guard(cw_status status)
{
    CHECK(status == CW_BAD_ARGUMENT && strstr(cw_last_error_message(), "fork guard"));
}

static void under_ones_own_guard(void)
{
    cw_code_buffer *buffer;
    cw_allocation *code, *more;
    cw_fork_guard *guard, *second;
    cw_vcpu *vcpu, *other;
    cw_link *link;
    setup(CW_MODE_MPROTECT);
    commit(GUEST);
    MUST(cw_code_buffer_new(PAGE, &buffer));
    MUST(cw_code_buffer_alloc(buffer, 64, 16, &code));
    MUST(cw_cache_attach_vcpu(cache, NULL, NULL, &vcpu));
    cw_ticket *ticket = begin(), *claimed = begin();
    MUST(cw_ticket_claim(claimed, GUEST, NULL));
    MUST(cw_tracker_before_fork(tracker, &buffer, 1, &guard));
    told_of_the_guard(cw_ticket_claim(ticket, GUEST, NULL));
    told_of_the_guard(cw_ticket_commit(claimed, 0x200, 0, NULL, NULL));
    told_of_the_guard(cw_cache_link(cache, GUEST, &link));
    told_of_the_guard(cw_cache_remove(cache, GUEST));
    told_of_the_guard(cw_cache_collect(cache));
    told_of_the_guard(cw_cache_evict(cache, 1));
    told_of_the_guard(cw_cache_set_limit(cache, 1, 1));
    told_of_the_guard(cw_cache_wait_for_vcpus(cache));
    told_of_the_guard(cw_cache_attach_vcpu(cache, NULL, NULL, &other));
    told_of_the_guard(cw_code_buffer_alloc(buffer, 64, 16, &more));
    told_of_the_guard(cw_tracker_before_fork(tracker, NULL, 0, &second));
    told_of_the_guard(cw_tracker_before_fork(tracker, &buffer, 1, &second));
    told_of_the_guard(cw_tracker_sync(tracker));
    told_of_the_guard(cw_tracker_maintain(tracker));
    cw_footprint footprint = {.size_bytes = sizeof(footprint)};
    cw_pages_by_state pages = {.size_bytes = sizeof(pages)};
    cw_code_buffer_stats stats = {.size_bytes = sizeof(stats)};
    MUST(cw_cache_get_footprint(cache, &footprint));
    MUST(cw_tracker_get_pages_by_state(tracker, &pages));
    MUST(cw_code_buffer_get_stats(buffer, &stats));
    CHECK(footprint.live.blocks == 1 && pages.protected_pages == 1 && stats.allocations == 1);
    MUST(cw_vcpu_free(vcpu));
    cw_allocation_free(code);
    cw_ticket_free(ticket);
    cw_ticket_free(claimed);
    cw_after_fork_parent(guard);
    CHECK(lookup(GUEST) == 0x100);
    MUST(cw_code_buffer_get_stats(buffer, &stats));
    CHECK(stats.allocations == 0);
    cw_code_buffer_free(buffer);
    teardown();
}

static void *gives_back(void *guard)
{
    CHECK(cw_after_fork_parent(guard) == CW_BAD_ARGUMENT);
    CHECK(strstr(cw_last_error_message(), "thread that made it"));
    CHECK(cw_after_fork_child(guard) == CW_BAD_ARGUMENT);
    return NULL;
}

static void a_guard_is_given_back_by_its_thread(void)
{
    cw_fork_guard *guard;
    pthread_t thread;
    setup(CW_MODE_MPROTECT);
    commit(GUEST);
    MUST(cw_tracker_before_fork(tracker, NULL, 0, &guard));
    CHECK(pthread_create(&thread, NULL, gives_back, guard) == 0 && pthread_join(thread, NULL) == 0);
    CHECK(cw_tracker_maintain(tracker) == CW_BAD_ARGUMENT); /* it is held still */
    MUST(cw_after_fork_parent(guard));
    CHECK(lookup(GUEST) == 0x100);
    teardown();
}

/* ---- Alternate signal stacks */

static void *frees(void *stack)
{
    CHECK(cw_alt_stack_free(stack) == CW_BAD_ARGUMENT);
    CHECK(strstr(cw_last_error_message(), "thread that made it"));
    return NULL;
}

static void an_alternate_stack_is_freed_by_its_thread(void)
{
    cw_alt_stack *stack;
    pthread_t thread;
    stack_t mine, now;
    MUST(cw_alt_stack_new(&stack));
    CHECK(sigaltstack(NULL, &mine) == 0 && !(mine.ss_flags & SS_DISABLE));
    CHECK(pthread_create(&thread, NULL, frees, stack) == 0 && pthread_join(thread, NULL) == 0);
    CHECK(sigaltstack(NULL, &now) == 0 && now.ss_sp == mine.ss_sp);
    memset(mine.ss_sp, 1, mine.ss_size); /* it is there */
    MUST(cw_alt_stack_free(stack));
    CHECK(sigaltstack(NULL, &now) == 0 && now.ss_sp != mine.ss_sp);
}

/* ---- Modes */

static void a_name_that_no_mode_has(void)
{
    cw_mode mode = CW_MODE_DEFERRED;
    CHECK(cw_mode_from_name("Sigbus", &mode) == CW_BAD_ARGUMENT && mode == CW_MODE_DEFERRED);
    CHECK(cw_mode_from_name("", &mode) == CW_BAD_ARGUMENT && mode == CW_MODE_DEFERRED);
}

/* If no synchronous mode is available. */
static void nothing_to_be_had(void)
{
    cw_mode mode = CW_MODE_DEFERRED;
    const char *why = "as before";
    CHECK(cw_best_synchronous(&mode, &why) == CW_MODE_UNAVAILABLE);
    CHECK(mode == CW_MODE_DEFERRED && strcmp(why, "as before") == 0);
    CHECK(strstr(cw_last_error_message(), "membarrier"));
}

static void the_version_is_the_headers(void)
{
    char numbers[64];
    snprintf(numbers, sizeof(numbers), "%d.%d.%d", CW_VERSION_MAJOR, CW_VERSION_MINOR, CW_VERSION_PATCH);
    CHECK(strncmp(CW_VERSION, numbers, strlen(numbers)) == 0);
    CHECK(strcmp(cw_version(), CW_VERSION) == 0);
}

int main(int argc, char **argv)
{
    if (argc == 2 && strcmp(argv[1], "nothing") == 0) {
        nothing_to_be_had();
        return 0;
    }
    if (cw_mode_check(CW_MODE_MPROTECT) == CW_MODE_UNAVAILABLE) {
        printf("SKIPPED %s\n", cw_last_error_message());
        return 0;
    }
    alone(the_version_is_the_headers);
    alone(a_busy_page_is_claimed_later);
    alone(outside_every_region);
    alone(a_page_that_the_kernel_does_not_protect);
    alone(a_page_that_nobody_said_was_replaced);
    alone(a_region_that_is_lost_is_added_again);
    alone(a_fork_that_nobody_announced);
    alone(a_region_is_taken_away_once);
    alone(a_region_that_stays_protected_is_gone_all_the_same);
    alone(any_byte_stands_for_its_page);
    alone(bytes_that_cannot_be_noted_make_no_block);
    alone(a_bool_is_true_or_false);
    alone(a_lookup_without_a_pin_is_told);
    alone(code_that_was_not_published);
    alone(under_ones_own_guard);
    alone(a_guard_is_given_back_by_its_thread);
    alone(an_alternate_stack_is_freed_by_its_thread);
    alone(a_name_that_no_mode_has);
    puts("all holds");
    return 0;
}
