/*
 * The tracker alone, under a cache of one's own: a table of blocks behind one lock, from which
 * told() unlinks what a store has made stale. Two threads: one runs the guest's code, the
 * other one patches it.
 *
 *     tracker [MODE]           sigbus, thread, mprotect, deferred; "none" must fail
 *
 * Exits with 0 if no stale block was run. The guest's code is one instruction a page, "the
 * result is N"; a block is the N that was read.
 */
#define _GNU_SOURCE
#include <codewarden.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { PAGE = 4096, PAGES = 16, ROUNDS = 20000 };
#define GUEST UINT64_C(0x40000000)

/* ---- The emulator: it has all of this already ---- */

struct block {
    uint64_t pc;
    uint32_t result;       /* stands for code */
    uint32_t made_from;    /* what a self-checking block compares */
    bool compares;
    struct block *next;    /* of the same page */
};

static uint8_t *memory;
static struct block *table[PAGES]; /* under the lock */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static unsigned long translated, told_of;

static struct block **page_of(uint64_t pc) { return &table[(pc - GUEST) / PAGE]; }
static uint8_t *host_of(uint64_t pc) { return memory + (pc - GUEST); }

static struct block *find(uint64_t pc)
{
    for (struct block *block = *page_of(pc); block; block = block->next)
        if (block->pc == pc)
            return block;
    return NULL;
}

/* Invalidates a page: called under the lock. */
static void unlink_page(uint64_t page, bool keep_checked)
{
    for (struct block **at = page_of(page), *block; (block = *at);) {
        if (keep_checked && block->compares) {
            at = &block->next;
        } else {
            *at = block->next;
            free(block);
        }
    }
}

/* ---- The library ---- */

static cw_tracker *tracker;

static void must(cw_status status, const char *what)
{
    if (status != CW_OK) {
        fprintf(stderr, "%s: %s\n", what, cw_last_error_message());
        exit(2);
    }
}
#define MUST(call) must((call), #call)

static void take(void *context) { pthread_mutex_lock(context); }
static void give_back(void *context) { pthread_mutex_unlock(context); }

/* Under the lock, in the thread that stored or in the library's. */
static void told(void *context, uint64_t page, cw_told why)
{
    (void)context;
    told_of++;
    unlink_page(page, why == CW_TOLD_CHECKED);
}

static void on_fault(int signo, siginfo_t *info, void *context)
{
    pthread_mutex_lock(&lock);
    const bool is_ours = cw_handle_fault(signo, info, context);
    pthread_mutex_unlock(&lock);
    if (!is_ours)
        signal(signo, SIG_DFL); /* an emulator hands it to its guest */
}

static void start(cw_mode mode)
{
    const struct sigaction action = {.sa_sigaction = on_fault, .sa_flags = SA_SIGINFO | SA_ONSTACK};
    sigaction(SIGBUS, &action, NULL);
    sigaction(SIGSEGV, &action, NULL);
    cw_tracker_options options = cw_tracker_options_default(told, &lock);
    options.policy = CW_POLICY_ADAPTIVE_WITH_CHECKS;
    options.lock = take;
    options.unlock = give_back;
    MUST(cw_tracker_new(&options, &tracker));
    cw_region_options region = cw_region_options_default(GUEST, memory, PAGES * PAGE, mode);
    region.embedder_owns_signals = true;
    MUST(cw_tracker_add_region(tracker, &region));
}

/* Under the lock, which every fault takes: no write comes between the claim and the table. */
static struct block *translate(uint64_t pc)
{
    cw_claim claim;
    struct block new = {.pc = pc};
    switch (cw_tracker_claim(tracker, pc, &claim)) {
    case CW_OK: break;
    case CW_NEEDS_CHECK: new.compares = true; break;
    default: return NULL; /* CW_BUSY: for one run */
    }
    MUST(cw_claim_read(&claim, pc, &new.made_from, sizeof(new.made_from)));
    MUST(cw_claim_add_code(&claim, pc, sizeof(new.made_from)));
    new.result = new.made_from;
    new.next = *page_of(pc);
    translated++;
    return *page_of(pc) = memcpy(malloc(sizeof(new)), &new, sizeof(new));
}

/* The guest's instruction at pc. */
static uint32_t run(uint64_t pc)
{
    uint32_t now;
    pthread_mutex_lock(&lock);
    struct block *block = find(pc);
    memcpy(&now, host_of(pc), sizeof(now));
    if (block && block->compares && block->made_from != now)
        block->result = block->made_from = now; /* its comparison failed: made anew */
    if (!block)
        block = translate(pc);
    now = block ? block->result : now; /* or translated for one run */
    pthread_mutex_unlock(&lock);
    return now;
}

/* ---- What must hold ---- */

static uint32_t patched[PAGES]; /* the least that the code of a page may give */
static bool is_over;

/* A guest thread that stores, and then says so. Returns how often it ran its own stale code. */
static void *patch(void *argument)
{
    const cw_mode mode = *(const cw_mode *)argument;
    uintptr_t stale = 0;
    for (uint32_t round = 1; round <= ROUNDS; round++) {
        const uint64_t page = round % PAGES, pc = GUEST + page * PAGE;
        __atomic_store_n((uint32_t *)host_of(pc), round, __ATOMIC_RELEASE);
        if (round % 3 == 0)
            __atomic_store_n(host_of(pc) + 2048, 1, __ATOMIC_RELEASE); /* data beside the code */
        if (mode == CW_MODE_DEFERRED) {
            pthread_mutex_lock(&lock); /* the guest's fence */
            MUST(cw_tracker_sync(tracker));
            pthread_mutex_unlock(&lock);
        }
        __atomic_store_n(&patched[page], round, __ATOMIC_RELEASE);
        stale += run(pc) != round;
    }
    __atomic_store_n(&is_over, true, __ATOMIC_RELEASE);
    return (void *)stale;
}

int main(int argc, char **argv)
{
    cw_mode mode;
    pthread_t writer;
    void *own;
    alarm(120); /* ends a wait that would never end */
    MUST(argc > 1 ? cw_mode_from_name(argv[1], &mode) : cw_best_synchronous(&mode, NULL));
    if (cw_mode_check(mode) == CW_MODE_UNAVAILABLE) {
        printf("SKIPPED %s\n", cw_last_error_message());
        return 0;
    }
    memory = mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED)
        return 2;
    start(mode);
    pthread_create(&writer, NULL, patch, &mode);
    unsigned long stale = 0, runs = 0;
    for (; !__atomic_load_n(&is_over, __ATOMIC_ACQUIRE); runs++) {
        const uint32_t least = __atomic_load_n(&patched[runs % PAGES], __ATOMIC_ACQUIRE);
        stale += run(GUEST + runs % PAGES * PAGE) < least;
    }
    pthread_join(writer, &own);
    stale += (uintptr_t)own;
    MUST(cw_tracker_free(tracker));
    printf("%s: %lu runs, %lu blocks, told %lu times; %lu stale\n", cw_mode_name(mode), runs, translated, told_of, stale);
    return stale == 0 ? 0 : 1;
}
