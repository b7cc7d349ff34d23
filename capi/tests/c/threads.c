/*
 * A cache of one's own without a lock, in the mode that is named, as the header says it of claims:
 *
 *     threads MODE
 *
 * Two threads translate, two store, and one changes mappings and forks. A block is the number at
 * the start of its page. A thread that stores tells the number afterwards; no block of an older
 * one may be found then. Exits with 0 if none was, otherwise with 1.
 */
#define _GNU_SOURCE
#include <codewarden.h>
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "check.h"

enum { PRIVATE = 8, SHARED = 4, PAGES = PRIVATE + 2 * SHARED, BLOCKS = 1 << 20, STORES = 20000 };

/* Of a block in the table: its number, and whether a look-up may find it. */
enum { ENTERED = 1, MAY_RUN = 2, STATES = 3 };

static cw_mode mode;
static cw_tracker *tracker;
static uint8_t *memory;
static int memfd;
static struct stat memfd_stat;
static bool is_mapped[PAGES];
static pthread_mutex_t stores[PAGES];       /* one storing thread at a time */
static _Atomic uint64_t table[PAGES];       /* a block, or 0 */
static _Atomic uint64_t made_from[BLOCKS];
static _Atomic uint64_t told_value[PAGES];  /* the value that a storing thread told last */
static _Atomic uint64_t changes[PAGES];     /* odd while the value goes back to 0 */
static _Atomic uint64_t values = 1, numbers = 1;
static atomic_bool is_over;
static atomic_ulong found;

/* The memory behind a page. */
static int memory_of(int page) { return page < PRIVATE ? page : PRIVATE + (page - PRIVATE) % SHARED; }
static uint64_t guest_of(int page) { return GUEST + (uint64_t)page * PAGE; }
static volatile uint64_t *word_of(int page) { return (volatile uint64_t *)(memory + (size_t)page * PAGE); }

static unsigned below(uint64_t *state, unsigned n)
{
    *state = *state * UINT64_C(6364136223846793005) + 1442695040888963407;
    return (unsigned)(*state >> 33) % n;
}

/* It may interrupt any thread: one atomic store. */
static void told(void *context, uint64_t page, cw_told why)
{
    (void)context;
    (void)why;
    atomic_store(&table[(page - GUEST) / PAGE], 0);
}

static void look_up(int page)
{
    const uint64_t change = atomic_load(&changes[memory_of(page)]);
    const uint64_t least = atomic_load(&told_value[memory_of(page)]);
    const uint64_t block = atomic_load_explicit(&table[page], memory_order_acquire);
    if ((block & STATES) != MAY_RUN)
        return;
    found++;
    const uint64_t value = atomic_load(&made_from[block / (STATES + 1) % BLOCKS]);
    if (value >= least || change % 2 != 0 || atomic_load(&changes[memory_of(page)]) != change)
        return;
    fprintf(stderr, "page %d: a block of %lu after %lu\n", page, (unsigned long)value, (unsigned long)least);
    exit(1);
}

static void translate(int page)
{
    cw_claim claim;
    uint64_t value;
    const cw_status status = cw_tracker_claim(tracker, guest_of(page), &claim);
    if (status != CW_OK) {
        CHECK(status == CW_BUSY || status == CW_UNTRACKABLE);
        return;
    }
    /* The page may be gone by now, or not readable for the guest. */
    if (cw_claim_read(&claim, guest_of(page), &value, sizeof(value)) != CW_OK)
        return;
    MUST(cw_claim_add_code(&claim, guest_of(page), sizeof(value)));
    const uint64_t number = numbers++;
    uint64_t block = number * (STATES + 1) + ENTERED;
    atomic_store(&made_from[number % BLOCKS], value);
    atomic_store(&table[page], block);
    const bool is_current = cw_claim_is_current(&claim);
    /* Fails if told() was called meanwhile. */
    atomic_compare_exchange_strong(&table[page], &block, is_current ? block - ENTERED + MAY_RUN : 0);
    look_up(page);
}

static void *translator(void *argument)
{
    uint64_t state = (uintptr_t)argument;
    while (!is_over) {
        const int page = (int)below(&state, PAGES);
        look_up(page);
        if ((table[page] & STATES) != MAY_RUN)
            translate(page);
    }
    return NULL;
}

/* Under the lock of the page's stores. */
static void tell(int page, uint64_t value)
{
    if (mode == CW_MODE_DEFERRED)
        MUST(cw_tracker_sync_range(tracker, guest_of(page), sizeof(value)));
    atomic_store(&told_value[memory_of(page)], value);
    look_up(page);
    if (page >= PRIVATE)
        look_up(page < PRIVATE + SHARED ? page + SHARED : page - SHARED);
}

static void store(int page, unsigned way, const int *ends)
{
    const uint64_t value = values++;
    cw_hold *hold = NULL;
    ssize_t done;
    switch (way) {
    case 0:
        CHECK(write(ends[1], &value, sizeof(value)) == sizeof(value));
        MUST(cw_tracker_prepare_kernel_write(tracker, guest_of(page), sizeof(value), &hold));
        CHECK(read(ends[0], (void *)word_of(page), sizeof(value)) == sizeof(value));
        break;
    case 1:
        CHECK(write(ends[1], &value, sizeof(value)) == sizeof(value));
        do { /* a translator may have claimed the page again */
            MUST(cw_tracker_announce_write(tracker, guest_of(page), sizeof(value)));
            done = read(ends[0], (void *)word_of(page), sizeof(value));
        } while (done < 0 && errno == EFAULT);
        CHECK(done == sizeof(value));
        break;
    case 2:
        MUST(cw_tracker_prepare_unseen_write(tracker, guest_of(page), sizeof(value), &hold));
        *word_of(page) = value;
        break;
    default:
        *word_of(page) = value;
        break;
    }
    cw_hold_free(hold);
    tell(page, value);
}

static void *writer(void *argument)
{
    uint64_t state = (uintptr_t)argument;
    int ends[2];
    CHECK(pipe(ends) == 0);
    for (int round = 0; round < STORES; round++) {
        const int page = (int)below(&state, PAGES);
        pthread_mutex_lock(&stores[memory_of(page)]);
        if (is_mapped[page])
            store(page, below(&state, 8), ends);
        pthread_mutex_unlock(&stores[memory_of(page)]);
    }
    return NULL;
}

static void map(int page)
{
    const int flags = MAP_FIXED | (page < PRIVATE ? MAP_PRIVATE | MAP_ANONYMOUS : MAP_SHARED), at = memory_of(page) - PRIVATE;
    const cw_shared_memory shared = cw_shared_file(memfd_stat.st_dev, memfd_stat.st_ino, (uint64_t)(page < PRIVATE ? 0 : at) * PAGE);
    const uint64_t value = values++;
    CHECK(mmap((void *)word_of(page), PAGE, PROT_READ | PROT_WRITE, flags, page < PRIVATE ? -1 : memfd,
               page < PRIVATE ? 0 : (off_t)at * PAGE) != MAP_FAILED);
    if (page < PRIVATE)
        *word_of(page) = value;
    MUST(cw_tracker_map(tracker, guest_of(page), PAGE, CW_ACCESS_READ_WRITE, page < PRIVATE ? NULL : &shared));
    is_mapped[page] = true;
    if (page < PRIVATE)
        atomic_store(&told_value[page], value);
}

/* This thread alone goes on. */
static void fork_and_store(void)
{
    cw_fork_guard *guard;
    int status;
    MUST(cw_tracker_before_fork(tracker, NULL, 0, &guard));
    const pid_t pid = fork();
    MUST(pid == 0 ? cw_after_fork_child(guard) : cw_after_fork_parent(guard));
    if (pid == 0) {
        for (int page = 0; page < PRIVATE; page++) {
            cw_claim claim;
            if (!is_mapped[page] || cw_tracker_claim(tracker, guest_of(page), &claim) != CW_OK)
                continue;
            *word_of(page) = values++;
            if (mode == CW_MODE_DEFERRED)
                MUST(cw_tracker_sync(tracker));
            CHECK(!cw_claim_is_current(&claim));
        }
        _exit(0);
    }
    CHECK(waitpid(pid, &status, 0) == pid && status == 0);
}

static void *mapper(void *argument)
{
    uint64_t state = (uintptr_t)argument;
    while (!is_over) {
        const int page = (int)below(&state, PAGES);
        const unsigned which = below(&state, 50);
        pthread_mutex_lock(&stores[memory_of(page)]);
        if (which < 20) {
            MUST(cw_tracker_unmap(tracker, guest_of(page), PAGE));
            is_mapped[page] = false;
            CHECK((table[page] & STATES) != MAY_RUN);
            if (which < 15)
                map(page);
            else
                mmap((void *)word_of(page), PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
        } else if (is_mapped[page] && which < 30) {
            MUST(cw_tracker_protect(tracker, guest_of(page), PAGE, CW_ACCESS_NONE));
            MUST(cw_tracker_protect(tracker, guest_of(page), PAGE, CW_ACCESS_READ_WRITE));
        } else if (is_mapped[page] && page < PRIVATE && which < 40) {
            changes[page]++;
            MUST(cw_tracker_discard(tracker, guest_of(page), PAGE, MADV_DONTNEED));
            *word_of(page) = values++;
            tell(page, *word_of(page));
            changes[page]++;
        } else if (which == 40) {
            fork_and_store();
        } else {
            MUST(cw_tracker_maintain(tracker));
        }
        pthread_mutex_unlock(&stores[memory_of(page)]);
        sched_yield();
    }
    return NULL;
}

int main(int argc, char **argv)
{
    static void *(*const others[])(void *) = {translator, translator, mapper};
    pthread_t writers[2], threads[3];
    mode = mode_to_test(argc, argv);
    memfd = memfd_create("guest", 0);
    CHECK(ftruncate(memfd, SHARED * PAGE) == 0 && fstat(memfd, &memfd_stat) == 0);
    memory = mmap(NULL, PAGES * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    CHECK(memory != MAP_FAILED);
    const cw_tracker_options options = cw_tracker_options_default(told, NULL);
    MUST(cw_tracker_new(&options, &tracker));
    cw_region_options region = cw_region_options_default(GUEST, memory, PAGES * PAGE, mode);
    region.reserved = true;
    MUST(cw_tracker_add_region(tracker, &region));
    for (int page = 0; page < PAGES; page++) {
        pthread_mutex_init(&stores[page], NULL);
        map(page);
    }
    for (int at = 0; at < 2; at++)
        CHECK(pthread_create(&writers[at], NULL, writer, (void *)(uintptr_t)(at + 1)) == 0);
    for (int at = 0; at < 3; at++)
        CHECK(pthread_create(&threads[at], NULL, others[at], (void *)(uintptr_t)(at + 11)) == 0);
    for (int at = 0; at < 2; at++)
        pthread_join(writers[at], NULL);
    is_over = true;
    for (int at = 0; at < 3; at++)
        pthread_join(threads[at], NULL);
    MUST(cw_tracker_free(tracker));
    printf("all holds; %lu look-ups found a block\n", (unsigned long)found);
    return 0;
}
