/*
 * The tracker of an embedder with a cache of its own, in the mode that is named:
 *
 *     told MODE
 *
 * Exits with 0 if all checks hold; otherwise prints the line of the check that failed.
 */
#define _GNU_SOURCE
#include <codewarden.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
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
    cw_tracker *tracker;
};

/* What was told since the last look; by one thread at a time here. */
static struct {
    uint64_t page;
    cw_told why;
} told_of[64];
static int told_count, looks;

static void told(void *context, uint64_t page, cw_told why)
{
    CHECK(context == &told_count);
    const int at = __atomic_fetch_add(&told_count, 1, __ATOMIC_SEQ_CST);
    CHECK(at < 64);
    told_of[at].page = page;
    told_of[at].why = why;
}

/* Nobody but this thread looks at blocks. */
static bool others_may_look(void *context)
{
    CHECK(context == &told_count);
    looks++;
    return false;
}

/* Whether it was told of this page, and of nothing else, since the last look. */
static bool told_only(uint64_t page, cw_told why)
{
    bool right = told_count > 0;
    for (int at = 0; at < told_count; at++)
        right = right && told_of[at].page == page && told_of[at].why == why;
    told_count = 0;
    return right;
}

static struct fixture empty(cw_policy policy)
{
    struct fixture f = {0};
    cw_tracker_options options = cw_tracker_options_default(told, &told_count);
    options.policy = policy;
    options.others_may_look = others_may_look;
    told_count = 0;
    MUST(cw_tracker_new(&options, &f.tracker));
    return f;
}

static struct fixture on(uint8_t *memory, cw_policy policy)
{
    struct fixture f = empty(policy);
    f.memory = memory;
    CHECK(memory != MAP_FAILED);
    const cw_region_options region = cw_region_options_default(GUEST, memory, LEN, mode);
    MUST(cw_tracker_add_region(f.tracker, &region));
    return f;
}

static struct fixture setup(cw_policy policy)
{
    return on(mmap(NULL, LEN, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0), policy);
}

static void teardown(struct fixture *f)
{
    MUST(cw_tracker_free(f->tracker));
    munmap(f->memory, LEN);
}

/* A handler thread may be busy with the page yet. */
static cw_status claim(struct fixture *f, uint64_t guest, cw_claim *claim)
{
    cw_status status;
    while ((status = cw_tracker_claim(f->tracker, guest, claim)) == CW_BUSY)
        sched_yield();
    return status;
}

static void store(struct fixture *f, uint64_t guest)
{
    volatile uint8_t *byte = f->memory + (guest - GUEST);
    *byte = *byte + 1;
    if (mode == CW_MODE_DEFERRED)
        MUST(cw_tracker_sync_range(f->tracker, guest, 1));
}

/* ---- */

static void a_page_that_the_guest_may_not_read_is_not_read(void)
{
    struct fixture f = setup(CW_POLICY_ADAPTIVE);
    cw_claim of_page;
    uint8_t byte;
    MUST(cw_tracker_protect(f.tracker, GUEST, PAGE, CW_ACCESS_NONE));
    MUST(claim(&f, GUEST, &of_page));
    CHECK(cw_claim_read(&of_page, GUEST, &byte, 1) == CW_BAD_RANGE);
    MUST(cw_tracker_protect(f.tracker, GUEST, PAGE, CW_ACCESS_READ));
    MUST(cw_claim_read(&of_page, GUEST, &byte, 1));
    teardown(&f);
}

/* The kernel discards what MADV_FREE has left whenever it needs memory, and tells nobody. */
static void what_is_freed_goes_at_once(void)
{
    struct fixture f = setup(CW_POLICY_ADAPTIVE);
    cw_claim freed;
    uint8_t byte;
    memset(f.memory, 7, 2 * PAGE);
    MUST(cw_tracker_unmap(f.tracker, GUEST + 3 * PAGE, PAGE));
    mmap(f.memory + 3 * PAGE, PAGE, PROT_NONE, MAP_SHARED | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
    /* The second time not all of it can be freed. */
    for (int pages = 1; pages <= 4; pages += 3) {
        const uint64_t page = GUEST + (pages == 1 ? 0 : PAGE);
        CHECK(cw_tracker_discard(f.tracker, page, (uint64_t)pages * PAGE, MADV_FREE) == (pages == 1 ? CW_OK : CW_SYSTEM));
        MUST(claim(&f, page, &freed));
        MUST(cw_claim_read(&freed, page, &byte, 1));
        for (int tries = 0; tries < 3; tries++)
            madvise(f.memory + (page - GUEST), PAGE, MADV_PAGEOUT);
        CHECK(f.memory[page - GUEST] == byte && cw_claim_is_current(&freed));
    }
    CHECK(cw_tracker_discard(f.tracker, GUEST, PAGE, MADV_MERGEABLE) == CW_BAD_ARGUMENT);
    CHECK(cw_tracker_discard(f.tracker, GUEST, PAGE, 102 /* MADV_GUARD_INSTALL */) == CW_BAD_ARGUMENT);
    teardown(&f);
}

static void a_store_is_told_of_and_ends_the_claim(void)
{
    struct fixture f = setup(CW_POLICY_ADAPTIVE);
    cw_claim first, second, again;
    uint8_t bytes[8];
    f.memory[PAGE + 100] = 42;
    MUST(claim(&f, GUEST + PAGE + 100, &first));
    MUST(claim(&f, GUEST + 2 * PAGE, &second));
    MUST(claim(&f, GUEST + PAGE, &again));
    CHECK(first.page == GUEST + PAGE && second.page == GUEST + 2 * PAGE);
    MUST(cw_claim_read(&first, GUEST + PAGE + 96, bytes, 8));
    CHECK(bytes[4] == 42);
    MUST(cw_claim_add_code(&first, GUEST + PAGE + 96, 8));
    CHECK(cw_claim_is_current(&first) && cw_claim_is_current(&second) && told_count == 0);
    looks = 0;
    store(&f, GUEST + PAGE + 7);
    CHECK(told_only(GUEST + PAGE, CW_TOLD_WRITTEN));
    CHECK(!cw_claim_is_current(&first) && !cw_claim_is_current(&again) && cw_claim_is_current(&second));
    CHECK((looks > 0) == (mode != CW_MODE_DEFERRED));
    CHECK(cw_claim_read(&first, GUEST + PAGE, bytes, 8) == CW_WRITTEN);
    MUST(cw_claim_read(&second, GUEST + 2 * PAGE, bytes, 8));
    store(&f, GUEST + PAGE + 7);
    CHECK(told_count == 0 || mode == CW_MODE_DEFERRED); /* the page is open; there it never is */
    told_count = 0;
    MUST(claim(&f, GUEST + PAGE, &first));
    MUST(cw_tracker_invalidate(f.tracker, GUEST + PAGE, 1));
    CHECK(told_only(GUEST + PAGE, CW_TOLD_WRITTEN) && !cw_claim_is_current(&first));
    MUST(cw_tracker_remove_region(f.tracker, GUEST));
    CHECK(!cw_claim_is_current(&second));
    teardown(&f);
}

static void data_beside_code(void)
{
    struct fixture f = setup(CW_POLICY_ADAPTIVE_WITH_CHECKS);
    cw_claim code;
    cw_hold *hold;
    uint8_t snapshot[PAGE];
    MUST(claim(&f, GUEST, &code));
    MUST(cw_claim_add_code(&code, GUEST, 16));
    if (mode == CW_MODE_DEFERRED) { /* no event of its own */
        MUST(cw_tracker_prepare_unseen_write(f.tracker, GUEST + 2048, 1, &hold));
        f.memory[2048] = 1;
        cw_hold_free(hold);
    } else {
        store(&f, GUEST + 2048);
    }
    CHECK(told_only(GUEST, CW_TOLD_CHECKED) && !cw_claim_is_current(&code));
    CHECK(claim(&f, GUEST, &code) == CW_NEEDS_CHECK && cw_claim_is_current(&code));
    MUST(cw_claim_read(&code, GUEST, snapshot, PAGE));
    CHECK(snapshot[2048] == 1);
    f.memory[0] = 1; /* nothing tells of it: the block compares */
    CHECK(told_count == 0 && cw_claim_is_current(&code));
    while (told_count == 0) {
        usleep(1000);
        MUST(cw_tracker_maintain(f.tracker));
    }
    CHECK(told_only(GUEST, CW_TOLD_COOLED) && !cw_claim_is_current(&code));
    MUST(claim(&f, GUEST, &code));
    store(&f, GUEST);
    CHECK(told_only(GUEST, CW_TOLD_WRITTEN));
    teardown(&f);
}

/* The first half may be written, the second one run: it is the code's page that is told of. */
static void told_names_the_page_with_the_code(void)
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
    struct fixture f = on(memory, CW_POLICY_ADAPTIVE);
    const cw_shared_memory shown = cw_shared_file(info.st_dev, info.st_ino, 0);
    const uint64_t code = GUEST + LEN / 2 + PAGE, data = GUEST + PAGE;
    cw_claim of_code, of_data;
    MUST(cw_tracker_protect(f.tracker, GUEST + LEN / 2, LEN / 2, CW_ACCESS_READ));
    MUST(claim(&f, code, &of_code));
    MUST(cw_tracker_declare_shared(f.tracker, GUEST, LEN / 2, shown));
    MUST(cw_tracker_declare_shared(f.tracker, GUEST + LEN / 2, LEN / 2, shown));
    CHECK(!cw_claim_is_current(&of_code) && told_only(code, CW_TOLD_WRITTEN)); /* made without the other view */
    for (int round = 0; round < 20; round++) {
        MUST(claim(&f, code, &of_code));
        MUST(cw_claim_add_code(&of_code, code, 16));
        CHECK(cw_claim_is_current(&of_code));
        store(&f, data);
        CHECK(told_only(code, CW_TOLD_WRITTEN) && !cw_claim_is_current(&of_code));
    }
    /* Code on both. */
    MUST(claim(&f, code, &of_code));
    MUST(claim(&f, data, &of_data));
    store(&f, data);
    CHECK(told_count >= 2 && !cw_claim_is_current(&of_code) && !cw_claim_is_current(&of_data));
    told_count = 0;
    close(fd);
    teardown(&f);
}

/* Shared anonymous memory has no inode. The same in address space that is reserved. */
static void memory_without_a_file(void)
{
    uint8_t *memory = mmap(NULL, LEN, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    struct fixture f = empty(CW_POLICY_ADAPTIVE);
    f.memory = memory;
    cw_region_options region = cw_region_options_default(GUEST, memory, LEN, mode);
    region.reserved = true;
    MUST(cw_tracker_add_region(f.tracker, &region));
    cw_claim of_code;
    const cw_shared_memory shown = cw_shared_number(7, 0), other = cw_shared_number(8, 0);
    const uint64_t code = GUEST + 4 * PAGE;
    void *first = mmap(memory, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
    CHECK(first == memory);
    CHECK(mremap(first, 0, PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, memory + 4 * PAGE) == memory + 4 * PAGE);
    CHECK(cw_tracker_claim(f.tracker, code, &of_code) == CW_UNTRACKABLE);
    if (cw_tracker_map(f.tracker, GUEST, PAGE, CW_ACCESS_READ_WRITE, &shown) == CW_UNTRACKABLE) {
        printf("SKIPPED shared memory: %s\n", cw_last_error_message()); /* an older kernel */
        teardown(&f);
        return;
    }
    MUST(cw_tracker_map(f.tracker, code, PAGE, CW_ACCESS_READ_WRITE, &shown));
    MUST(claim(&f, code, &of_code));
    store(&f, GUEST);
    CHECK(told_only(code, CW_TOLD_WRITTEN) && memory[4 * PAGE] == 1);
    /* Another number is another memory. */
    MUST(cw_tracker_map(f.tracker, GUEST, PAGE, CW_ACCESS_READ_WRITE, &other));
    told_count = 0;
    MUST(claim(&f, code, &of_code));
    store(&f, GUEST);
    CHECK(told_count == 0);
    teardown(&f);
}

static void mappings_come_and_go(void)
{
    uint8_t *memory = mmap(NULL, LEN, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    struct fixture f = empty(CW_POLICY_ADAPTIVE);
    f.memory = memory;
    cw_region_options region = cw_region_options_default(GUEST, memory, LEN, mode);
    region.reserved = true;
    MUST(cw_tracker_add_region(f.tracker, &region));
    const int fixed = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED;
    const uint64_t at = GUEST + PAGE, there = GUEST + 8 * PAGE;
    cw_claim code;
    for (int round = 0; round < 10; round++) {
        CHECK(cw_tracker_claim(f.tracker, at, &code) == CW_UNTRACKABLE);
        CHECK(mmap(memory + PAGE, 2 * PAGE, PROT_READ | PROT_WRITE, fixed, -1, 0) == memory + PAGE);
        MUST(cw_tracker_map(f.tracker, at, 2 * PAGE, CW_ACCESS_READ_WRITE, NULL));
        MUST(claim(&f, at, &code));
        store(&f, at);
        CHECK(told_only(at, CW_TOLD_WRITTEN));

        MUST(claim(&f, at, &code));
        MUST(cw_tracker_discard(f.tracker, at, PAGE, MADV_DONTNEED));
        CHECK(told_only(at, CW_TOLD_WRITTEN) && !cw_claim_is_current(&code) && memory[PAGE] == 0);

        MUST(claim(&f, at, &code));
        memory[2 * PAGE] = 9;
        MUST(cw_tracker_move(f.tracker, at, 2 * PAGE, there, 2 * PAGE, 0));
        CHECK(told_only(at, CW_TOLD_WRITTEN) && !cw_claim_is_current(&code));
        CHECK(cw_tracker_claim(f.tracker, at, &code) == CW_UNTRACKABLE && memory[9 * PAGE] == 9);
        MUST(claim(&f, there, &code));
        store(&f, there);
        CHECK(told_only(there, CW_TOLD_WRITTEN));
        MUST(cw_tracker_move(f.tracker, there, 2 * PAGE, there, PAGE, 0)); /* shrinks */
        CHECK(cw_tracker_claim(f.tracker, there + PAGE, &code) == CW_UNTRACKABLE);

        MUST(claim(&f, there, &code));
        MUST(cw_tracker_unmap(f.tracker, there, PAGE));
        CHECK(told_only(there, CW_TOLD_WRITTEN) && !cw_claim_is_current(&code));
        CHECK(cw_tracker_claim(f.tracker, there, &code) == CW_UNTRACKABLE);
        CHECK(munmap(memory + 8 * PAGE, PAGE) == 0);
        CHECK(cw_tracker_claim(f.tracker, there, &code) == CW_UNTRACKABLE);
    }
    CHECK(cw_tracker_move(f.tracker, at, PAGE, there, PAGE, MREMAP_FIXED) == CW_BAD_ARGUMENT);
    CHECK(cw_tracker_move(f.tracker, at, 0, there, PAGE, 0) == CW_BAD_ARGUMENT);
    CHECK(cw_tracker_move(f.tracker, at + 1, PAGE, there, PAGE, 0) == CW_BAD_RANGE);
    CHECK(cw_tracker_move(f.tracker, at, PAGE, GUEST + LEN, PAGE, 0) == CW_BAD_RANGE);
    CHECK(cw_tracker_move(f.tracker, there, PAGE, at, PAGE, 0) == CW_SYSTEM && cw_last_errno() == EFAULT);
    CHECK(cw_tracker_unmap(f.tracker, 0, PAGE) == CW_BAD_RANGE);
    CHECK(cw_tracker_map(f.tracker, at, PAGE, (cw_access)9, NULL) == CW_BAD_ARGUMENT);
    teardown(&f);
}

/* Address space in two regions, of which the first has mode mprotect. */
static struct fixture two_halves(void)
{
    struct fixture f = empty(CW_POLICY_ADAPTIVE);
    f.memory = mmap(NULL, LEN, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(f.memory != MAP_FAILED);
    for (int half = 0; half < 2; half++) {
        const size_t at = half * (LEN / 2);
        cw_region_options region =
            cw_region_options_default(GUEST + at, f.memory + at, LEN / 2, half ? mode : CW_MODE_MPROTECT);
        region.reserved = true;
        MUST(cw_tracker_add_region(f.tracker, &region));
    }
    return f;
}

/* The guest's calls have succeeded, so the library's answers say more than that they failed. */
static void mappings_that_cannot_be_tracked(void)
{
    struct fixture f = two_halves();
    const uint64_t there = GUEST + LEN / 2;
    cw_claim code;
    /* A private mapping of a file on a disk; on others it may be tracked. */
    const int file = open("/proc/self/exe", O_RDONLY);
    CHECK(mmap(f.memory, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_FIXED, file, 0) == f.memory);
    MUST(cw_tracker_map(f.tracker, GUEST, PAGE, CW_ACCESS_READ_WRITE, NULL));
    MUST(claim(&f, GUEST, &code));
    const cw_status moved = cw_tracker_move(f.tracker, GUEST, PAGE, there, PAGE, 0);
    CHECK(moved == CW_OK || moved == CW_UNTRACKABLE);
    CHECK(f.memory[LEN / 2] == 0x7f && claim(&f, there, &code) == moved);
    CHECK(claim(&f, GUEST, &code) == CW_UNTRACKABLE);
    CHECK(cw_tracker_map(f.tracker, there, PAGE, CW_ACCESS_READ_WRITE, NULL) == moved);

    /* The second page of the memory has no number. */
    const int fd = memfd_create("guest", MFD_CLOEXEC);
    const cw_shared_memory last = cw_shared_number(1, 0 - (uint64_t)PAGE);
    CHECK(fd >= 0 && ftruncate(fd, 2 * PAGE) == 0);
    CHECK(mmap(f.memory + PAGE, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, 0) == f.memory + PAGE);
    MUST(cw_tracker_map(f.tracker, GUEST + PAGE, PAGE, CW_ACCESS_READ_WRITE, &last));
    MUST(claim(&f, GUEST + PAGE, &code));
    const uint64_t grown = GUEST + 3 * PAGE;
    CHECK(cw_tracker_move(f.tracker, GUEST + PAGE, PAGE, grown, 2 * PAGE, 0) == CW_UNTRACKABLE);
    CHECK(claim(&f, grown, &code) == CW_UNTRACKABLE && claim(&f, grown + PAGE, &code) == CW_UNTRACKABLE);
    close(file);
    close(fd);
    teardown(&f);
}

static void writes_that_are_announced(void)
{
    struct fixture f = setup(CW_POLICY_ADAPTIVE);
    const bool is_refused = mode == CW_MODE_SIGBUS || mode == CW_MODE_MPROTECT;
    int ends[2];
    cw_claim code;
    CHECK(pipe(ends) == 0 && write(ends[1], "abcdefgh", 8) == 8);
    MUST(claim(&f, GUEST, &code));
    MUST(cw_tracker_announce_write(f.tracker, GUEST, 4));
    CHECK(read(ends[0], f.memory, 4) == 4);
    MUST(cw_tracker_sync(f.tracker));
    CHECK(told_only(GUEST, CW_TOLD_WRITTEN) && !cw_claim_is_current(&code));
    /* The next claim protects again. If it comes before the write, that fails and no block is stale. */
    MUST(cw_tracker_announce_write(f.tracker, GUEST, 4));
    MUST(claim(&f, GUEST, &code));
    told_count = 0;
    CHECK(read(ends[0], f.memory, 4) == (is_refused ? -1 : 4));
    MUST(cw_tracker_sync(f.tracker));
    CHECK(is_refused ? errno == EFAULT && cw_claim_is_current(&code) : told_only(GUEST, CW_TOLD_WRITTEN));
    close(ends[0]);
    close(ends[1]);
    teardown(&f);
}

static void forks(void)
{
    struct fixture f = setup(CW_POLICY_ADAPTIVE);
    cw_fork_guard *guard;
    cw_claim code;
    int status;
    MUST(claim(&f, GUEST, &code));
    MUST(cw_tracker_before_fork(f.tracker, NULL, 0, &guard));
    const pid_t pid = fork();
    if (pid == 0) {
        MUST(cw_after_fork_child(guard));
        if (mode == CW_MODE_DEFERRED) { /* writes since the last harvest are not known here */
            CHECK(told_only(GUEST, CW_TOLD_LOST) && !cw_claim_is_current(&code));
            MUST(claim(&f, GUEST, &code));
        }
        CHECK(cw_claim_is_current(&code) && told_count == 0);
        store(&f, GUEST);
        CHECK(told_only(GUEST, CW_TOLD_WRITTEN) && !cw_claim_is_current(&code));
        MUST(claim(&f, GUEST, &code));
        store(&f, GUEST);
        CHECK(told_only(GUEST, CW_TOLD_WRITTEN));
        teardown(&f);
        _exit(0);
    }
    MUST(cw_after_fork_parent(guard));
    CHECK(pid > 0 && waitpid(pid, &status, 0) == pid && status == 0);
    CHECK(cw_claim_is_current(&code) && told_count == 0);

    /* One that nobody announced: the page is open in the child, unless it is the child's own mprotect. */
    const pid_t other = fork();
    if (other == 0) {
        CHECK(cw_claim_is_current(&code) == (mode == CW_MODE_MPROTECT));
        _exit(0);
    }
    CHECK(other > 0 && waitpid(other, &status, 0) == other && status == 0);
    store(&f, GUEST);
    CHECK(told_only(GUEST, CW_TOLD_WRITTEN));
    teardown(&f);
}

/* ---- One lock */

struct locked {
    pthread_mutex_t lock;
    int waiting;
};

static void take(void *context)
{
    struct locked *own = context;
    __atomic_fetch_add(&own->waiting, 1, __ATOMIC_SEQ_CST);
    pthread_mutex_lock(&own->lock);
}

static void give_back(void *context) { pthread_mutex_unlock(&((struct locked *)context)->lock); }

static void told_under_it(void *context, uint64_t page, cw_told why)
{
    (void)page, (void)why;
    CHECK(pthread_mutex_trylock(&((struct locked *)context)->lock) == EBUSY);
}

static struct locked *handled_under;

static void on_fault(int signo, siginfo_t *info, void *context)
{
    take(handled_under);
    const bool is_ours = cw_handle_fault(signo, info, context);
    give_back(handled_under);
    if (!is_ours)
        signal(signo, SIG_DFL);
}

static void *store_once(void *byte)
{
    *(volatile uint8_t *)byte = 1;
    return NULL;
}

/* The tracker ends while a fault waits for the lock; then the lock is gone. */
static void the_lock_ends_after_the_tracker(void)
{
    const struct sigaction action = {.sa_sigaction = on_fault, .sa_flags = SA_SIGINFO};
    struct sigaction before[2];
    sigaction(SIGBUS, &action, &before[0]);
    sigaction(SIGSEGV, &action, &before[1]);
    uint8_t *memory = mmap(NULL, LEN, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(memory != MAP_FAILED);
    for (int round = 0; round < 60; round++) {
        struct locked *own = malloc(sizeof(*own));
        pthread_t thread;
        cw_claim code;
        cw_tracker *tracker;
        cw_tracker_options options = cw_tracker_options_default(told_under_it, own);
        cw_region_options region = cw_region_options_default(GUEST, memory, LEN, mode);
        pthread_mutex_init(&own->lock, NULL);
        own->waiting = 0;
        handled_under = own;
        options.lock = take;
        options.unlock = give_back;
        region.embedder_owns_signals = true;
        MUST(cw_tracker_new(&options, &tracker));
        MUST(cw_tracker_add_region(tracker, &region));
        MUST(cw_tracker_claim(tracker, GUEST, &code));
        pthread_mutex_lock(&own->lock);
        CHECK(pthread_create(&thread, NULL, store_once, memory) == 0);
        while (mode < CW_MODE_DEFERRED && __atomic_load_n(&own->waiting, __ATOMIC_SEQ_CST) == 0)
            sched_yield();
        if (round % 2)
            MUST(cw_tracker_remove_region(tracker, GUEST));
        pthread_mutex_unlock(&own->lock);
        MUST(cw_tracker_free(tracker));
        pthread_join(thread, NULL);
        pthread_mutex_destroy(&own->lock);
        memset(own, 0x5a, sizeof(*own));
        free(own);
        CHECK(*memory == 1);
    }
    munmap(memory, LEN);
    sigaction(SIGBUS, &before[0], NULL);
    sigaction(SIGSEGV, &before[1], NULL);
}

/* The forking thread has the lock, and gives it back on both sides. */
static void a_fork_under_the_lock(void)
{
    const struct sigaction action = {.sa_sigaction = on_fault, .sa_flags = SA_SIGINFO};
    struct sigaction before[2];
    sigaction(SIGBUS, &action, &before[0]);
    sigaction(SIGSEGV, &action, &before[1]);
    struct locked own = {.lock = PTHREAD_MUTEX_INITIALIZER};
    struct fixture f = {.memory = mmap(NULL, LEN, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)};
    cw_tracker_options options = cw_tracker_options_default(told_under_it, &own);
    cw_region_options region = cw_region_options_default(GUEST, f.memory, LEN, mode);
    cw_fork_guard *guard;
    cw_claim code;
    int status;
    handled_under = &own;
    options.lock = take;
    options.unlock = give_back;
    region.embedder_owns_signals = true;
    MUST(cw_tracker_new(&options, &f.tracker));
    MUST(cw_tracker_add_region(f.tracker, &region));
    MUST(claim(&f, GUEST, &code));
    pthread_mutex_lock(&own.lock);
    MUST(cw_tracker_before_fork(f.tracker, NULL, 0, &guard));
    const pid_t pid = fork();
    MUST(pid == 0 ? cw_after_fork_child(guard) : cw_after_fork_parent(guard));
    CHECK(cw_claim_is_current(&code) == (pid != 0 || mode != CW_MODE_DEFERRED));
    MUST(claim(&f, GUEST, &code));
    pthread_mutex_unlock(&own.lock);
    f.memory[0] = 1;
    pthread_mutex_lock(&own.lock);
    MUST(cw_tracker_sync(f.tracker));
    CHECK(!cw_claim_is_current(&code));
    pthread_mutex_unlock(&own.lock);
    CHECK(pid == 0 || (waitpid(pid, &status, 0) == pid && status == 0));
    teardown(&f);
    if (pid == 0)
        _exit(0);
    sigaction(SIGBUS, &before[0], NULL);
    sigaction(SIGSEGV, &before[1], NULL);
}

int main(int argc, char **argv)
{
    mode = mode_to_test(argc, argv);
    /* Before the library's handler is there. */
    the_lock_ends_after_the_tracker();
    a_fork_under_the_lock();
    a_page_that_the_guest_may_not_read_is_not_read();
    what_is_freed_goes_at_once();
    a_store_is_told_of_and_ends_the_claim();
    data_beside_code();
    told_names_the_page_with_the_code();
    memory_without_a_file();
    mappings_come_and_go();
    mappings_that_cannot_be_tracked();
    writes_that_are_announced();
    forks();
    puts("all holds");
    return 0;
}
