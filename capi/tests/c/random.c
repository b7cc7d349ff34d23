/*
 * Random calls of a tracker beside a model of the guest's mappings, on the real kernel:
 *
 *     random MODE [SEED [CALLS]]     all seeds from SEED on, until 10 have passed
 *
 * After each call every claim that was not told of must still have the bytes that were read by
 * it, and every page must be mapped as the model says. Exits with 0 if that holds; otherwise
 * prints the seed and the number of the call, and exits with 1.
 */
#define _GNU_SOURCE
#include <codewarden.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "check.h"

enum { PAGES = 48, FILE_PAGES = 12, CLAIMS = 64, SEEDS = 10 };
enum kind { HOLE, PRIVATE, SHARED, REGULAR };

struct page {
    enum kind kind;
    cw_access access;
    int file, at;          /* of SHARED: the memfd and the page in it */
    bool is_untrackable;
};

struct __attribute__((packed)) unaligned {
    uint64_t word;
};

struct block {
    bool is_live, compares;
    int page;
    size_t first, len;
    cw_claim claim;
    uint8_t bytes[PAGE];
};

static cw_mode mode;
static uint8_t *memory, *own_view[2];
static cw_tracker *tracker;
static int regions, memfd[2], regular, ends[2];
static struct stat memfd_stat[2];
static struct page pages[PAGES];
static struct block blocks[CLAIMS];
static cw_hold *hold;
static bool has_lock, is_locked;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static uint64_t seed, state;
static unsigned long calls;

static unsigned below(unsigned n)
{
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return (unsigned)(state >> 20) % n;
}

static void wrong(const char *format, ...)
{
    va_list list;
    va_start(list, format);
    fprintf(stderr, "seed %lu, call %lu: ", (unsigned long)seed, calls);
    vfprintf(stderr, format, list);
    fprintf(stderr, "\nlast error: %s\n", cw_last_error_message());
    exit(1);
}

static uint64_t guest_of(int page) { return GUEST + (uint64_t)page * PAGE; }
static uint8_t *host_of(int page) { return memory + (size_t)page * PAGE; }
static int region_of(int page) { return page / (PAGES / regions); }

static bool is_writable(int page) { return pages[page].kind != HOLE && pages[page].access == CW_ACCESS_READ_WRITE; }
static bool is_readable(int page) { return pages[page].kind != HOLE && pages[page].access != CW_ACCESS_NONE; }

/* ---- The embedder ---- */

static void take(void *context)
{
    (void)context;
    pthread_mutex_lock(&lock);
    is_locked = true;
}

static void give_back(void *context)
{
    (void)context;
    is_locked = false;
    pthread_mutex_unlock(&lock);
}

static void enter(void) { if (has_lock) take(NULL); }
static void leave(void) { if (has_lock) give_back(NULL); }
/* A call, under the lock if there is one. */
#define CALL(status, call) (enter(), (status) = (call), leave())
#define MUST_CALL(call) do { cw_status s; CALL(s, call); if (s != CW_OK) wrong("%s: %d", #call, s); } while (0)

static void told(void *context, uint64_t page, cw_told why)
{
    if (context != &pages || page % PAGE != 0 || page - GUEST >= PAGES * PAGE || (has_lock && !is_locked))
        wrong("told of %lx, %d", (unsigned long)page, why);
    for (struct block *block = blocks; block < blocks + CLAIMS; block++) {
        if (block->is_live && guest_of(block->page) == page && !(block->compares && why == CW_TOLD_CHECKED))
            block->is_live = false;
    }
}

static void on_fault(int signo, siginfo_t *info, void *context)
{
    enter();
    const bool is_ours = cw_handle_fault(signo, info, context);
    leave();
    if (!is_ours)
        wrong("signal %d at page %ld", signo, ((uint8_t *)info->si_addr - memory) / PAGE);
}

/* The guest's fence. */
static void sync_if_deferred(void)
{
    if (mode == CW_MODE_DEFERRED)
        MUST_CALL(cw_tracker_sync(tracker));
}

/* ---- What must hold ---- */

static void check_blocks(const char *when)
{
    for (struct block *block = blocks; block < blocks + CLAIMS; block++) {
        if (!block->is_live)
            continue;
        bool is_current;
        CALL(is_current, cw_claim_is_current(&block->claim));
        if (pages[block->page].kind == HOLE || (!is_current && !block->compares))
            wrong("%s: page %d is gone, or its claim, and nothing was told", when, block->page);
        if (!block->compares && is_readable(block->page) &&
            memcmp(block->bytes, host_of(block->page) + block->first, block->len) != 0)
            wrong("%s: page %d is stale", when, block->page);
    }
}

static void check_mappings(void)
{
    char line[512], rights[PAGES][5] = {{0}}, part[5];
    FILE *maps = fopen("/proc/self/maps", "r");
    unsigned long start, end;
    while (fgets(line, sizeof(line), maps))
        if (sscanf(line, "%lx-%lx %4s", &start, &end, part) == 3)
            for (int page = 0; page < PAGES; page++)
                if ((uintptr_t)host_of(page) >= start && (uintptr_t)host_of(page) < end)
                    memcpy(rights[page], part, sizeof(part));
    fclose(maps);
    for (int page = 0; page < PAGES; page++)
        /* Mode mprotect takes the right to write away. */
        if ((rights[page][0] == 'r') != is_readable(page) ||
            (mode != CW_MODE_MPROTECT && (rights[page][1] == 'w') != is_writable(page)))
            wrong("page %d is %s, in the model %d, %d", page, rights[page], pages[page].kind, pages[page].access);
}

/* ---- The calls ---- */

static void any_range(int *first, int *count)
{
    *first = (int)below(PAGES);
    *count = 1 + (int)below(below(3) ? 3 : 10);
    if (*first + *count > PAGES)
        *count = PAGES - *first;
}

static void claim(void)
{
    const int page = (int)below(PAGES);
    struct block *block = &blocks[below(CLAIMS)];
    block->is_live = false;
    enter();
    cw_status status = cw_tracker_claim(tracker, guest_of(page) + below(PAGE), &block->claim);
    if ((status == CW_UNTRACKABLE) != (pages[page].kind == HOLE || pages[page].is_untrackable))
        wrong("a claim of page %d answers %d", page, status);
    if (status == CW_OK || status == CW_NEEDS_CHECK) {
        block->page = page;
        block->compares = status == CW_NEEDS_CHECK;
        block->first = below(2) ? 0 : below(PAGE);
        block->len = block->first ? 1 + below(PAGE - (unsigned)block->first) : PAGE;
        const uint64_t from = guest_of(page) + block->first;
        status = cw_claim_read(&block->claim, from, block->bytes, block->len);
        if (status != (is_readable(page) ? CW_OK : CW_BAD_RANGE))
            wrong("reading page %d answers %d", page, status);
        if (below(2))
            MUST(cw_claim_add_code(&block->claim, from, block->len));
        block->is_live = status == CW_OK;
    } else if (status != CW_UNTRACKABLE && status != CW_BUSY && (status != CW_SYSTEM || cw_last_errno() != EFAULT)) {
        /* EFAULT: kernels before 6.4 protect no view that nobody can read. */
        wrong("a claim of page %d answers %d", page, status);
    }
    leave();
}

static void store(void)
{
    const int page = (int)below(PAGES - 1);
    if (!is_writable(page))
        return;
    for (unsigned stores = below(4) ? 1 : 8; stores-- > 0;)
        host_of(page)[below(PAGE)]++;
    if (is_writable(page + 1) && below(4) == 0)
        ((volatile struct unaligned *)(host_of(page + 1) - 3))->word += UINT64_C(0x0101010101010101);
    sync_if_deferred();
}

/* A read(2) into guest memory: announced in one of the three ways, or not. */
static void kernel_write(void)
{
    static uint8_t bytes[10 * PAGE];
    int first, count;
    any_range(&first, &count);
    for (int page = first; page < first + count; page++)
        if (!is_writable(page))
            return;
    const unsigned offset = below(PAGE), len = 1 + below((unsigned)count * PAGE - offset), way = below(4);
    const uint64_t guest = guest_of(first) + offset;
    cw_hold *held = NULL;
    memset(bytes, (int)below(256), len);
    CHECK(write(ends[1], bytes, len) == len);
    if (way == 1)
        MUST_CALL(cw_tracker_prepare_kernel_write(tracker, guest, len, &held));
    else if (way == 2)
        MUST_CALL(cw_tracker_announce_write(tracker, guest, len));
    else if (way == 3)
        MUST_CALL(cw_tracker_prepare_unseen_write(tracker, guest, len, &held));
    check_blocks("announced");
    ssize_t done = read(ends[0], host_of(first) + offset, len);
    if (way != 0 && done != len)
        wrong("an announced write of %u bytes to page %d: %zd, errno %d", len, first, done, errno);
    for (done = done < 0 ? 0 : done; done < len;)
        done += read(ends[0], bytes, len - (size_t)done);
    enter();
    cw_hold_free(held);
    leave();
    sync_if_deferred();
}

/* A write that no mode learns of. */
static void write_by_the_own_view(void)
{
    const int page = (int)below(PAGES), at = pages[page].at;
    if (pages[page].kind != SHARED)
        return;
    uint8_t *byte = own_view[pages[page].file] + at * PAGE + below(PAGE);
    if (below(2)) {
        cw_hold *held;
        MUST_CALL(cw_tracker_prepare_unseen_write(tracker, guest_of(page), PAGE, &held));
        (*byte)++;
        enter();
        cw_hold_free(held);
        leave();
    } else {
        (*byte)++;
        MUST_CALL(cw_tracker_invalidate(tracker, guest_of(page) + below(PAGE), 1));
    }
}

/* By this mode. */
static bool is_untrackable(enum kind kind) { return kind == REGULAR && (mode == CW_MODE_SIGBUS || mode == CW_MODE_THREAD); }

static void tell_of(int first, int count)
{
    const struct page *page = &pages[first];
    const struct stat *file = &memfd_stat[page->file];
    const cw_shared_memory shared = cw_shared_file(file->st_dev, file->st_ino, (uint64_t)page->at * PAGE);
    cw_status status;
    CALL(status, cw_tracker_map(tracker, guest_of(first), (uint64_t)count * PAGE, page->access,
                                page->kind == SHARED ? &shared : NULL));
    if (status != (is_untrackable(page->kind) ? CW_UNTRACKABLE : CW_OK))
        wrong("mapping page %d answers %d", first, status);
}

static int rights(cw_access access)
{
    return access == CW_ACCESS_NONE ? PROT_NONE : access == CW_ACCESS_READ ? PROT_READ : PROT_READ | PROT_WRITE;
}

static void set_hole(int first, int count)
{
    for (int page = first; page < first + count; page++)
        pages[page] = (struct page){.kind = HOLE};
}

static void map(void)
{
    int first, count;
    any_range(&first, &count);
    const enum kind kind = (enum kind)below(4);
    if (kind != HOLE && count > FILE_PAGES)
        count = FILE_PAGES;
    bool was_mapped = false;
    for (int page = first; page < first + count; page++)
        was_mapped = was_mapped || pages[page].kind != HOLE;
    if (was_mapped || below(2))
        MUST_CALL(cw_tracker_unmap(tracker, guest_of(first), (uint64_t)count * PAGE));
    set_hole(first, count);
    check_blocks("unmapped");
    const cw_access access = below(4) ? CW_ACCESS_READ_WRITE : (cw_access)below(3);
    const int file = (int)below(2), at = (int)below((unsigned)(FILE_PAGES - count + 1));
    const size_t len = (size_t)count * PAGE;
    const int fd = kind == SHARED ? memfd[file] : kind == REGULAR ? regular : -1;
    const int flags = MAP_FIXED | (kind == SHARED ? MAP_SHARED : MAP_PRIVATE) | (fd < 0 ? MAP_ANONYMOUS : 0);
    if (kind == HOLE && below(2)) {
        munmap(host_of(first), len);
        return;
    }
    const int prot = kind == HOLE ? PROT_NONE : rights(access);
    CHECK(mmap(host_of(first), len, prot, flags, fd, fd == -1 ? 0 : at * PAGE) != MAP_FAILED);
    if (kind == HOLE)
        return;
    for (int page = 0; page < count; page++)
        pages[first + page] = (struct page){kind, access, file, at + page, is_untrackable(kind)};
    tell_of(first, count);
}

static void protect(void)
{
    int first, count;
    any_range(&first, &count);
    const cw_access access = (cw_access)below(3);
    bool are_tracked = true;
    for (int page = first; page < first + count; page++)
        are_tracked = are_tracked && pages[page].kind != HOLE && !pages[page].is_untrackable;
    cw_status status;
    CALL(status, cw_tracker_protect(tracker, guest_of(first), (uint64_t)count * PAGE, access));
    if (status != (are_tracked ? CW_OK : CW_BAD_RANGE))
        wrong("protecting %d pages from %d answers %d", count, first, status);
    for (int page = first; are_tracked && page < first + count; page++)
        pages[page].access = access;
}

static void discard(void)
{
    static const int advice[] = {MADV_DONTNEED, MADV_REMOVE, MADV_FREE};
    int first, count;
    any_range(&first, &count);
    cw_status status;
    CALL(status, cw_tracker_discard(tracker, guest_of(first), (uint64_t)count * PAGE, advice[below(3)]));
    madvise(host_of(first), (size_t)count * PAGE, MADV_PAGEOUT); /* goes now, if it is to go */
    const bool is_one = region_of(first) == region_of(first + count - 1);
    if (is_one ? status != CW_OK && status != CW_SYSTEM : status != CW_BAD_RANGE)
        wrong("discarding %d pages from %d answers %d", count, first, status);
    sync_if_deferred();
}

static bool is_hole_for_the_kernel(int page)
{
    unsigned char resident;
    return mincore(host_of(page), PAGE, &resident) != 0 && errno == ENOMEM;
}

/* The kernel may have left a hole, or what was there. The library must know. */
static void look_at(int page, const struct page *before)
{
    cw_claim unused;
    cw_status status;
    CALL(status, cw_tracker_claim(tracker, guest_of(page), &unused));
    pages[page] = *before;
    if (status != CW_UNTRACKABLE) {
        if (is_hole_for_the_kernel(page))
            wrong("after a move page %d is a hole, and a claim of it answers %d", page, status);
    } else if (!before->is_untrackable || is_hole_for_the_kernel(page)) {
        pages[page].kind = HOLE;
        mmap(host_of(page), PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
    }
}

static void move(void)
{
    int from, to, count, new_count;
    any_range(&from, &count);
    any_range(&to, &new_count);
    if (below(3))
        new_count = count;
    if (below(4) == 0)
        to = from;
    if (to + new_count > PAGES)
        return;
    bool was_hole[PAGES];
    struct page before[PAGES];
    memcpy(before, pages, sizeof(pages));
    for (int page = 0; page < PAGES; page++)
        was_hole[page] = is_hole_for_the_kernel(page);
    const int flags = below(4) ? 0 : MREMAP_DONTUNMAP;
    cw_status status;
    CALL(status, cw_tracker_move(tracker, guest_of(from), (uint64_t)count * PAGE, guest_of(to),
                                 (uint64_t)new_count * PAGE, flags));
    if (region_of(from) != region_of(from + count - 1) || region_of(to) != region_of(to + new_count - 1)) {
        if (status != CW_BAD_RANGE)
            wrong("a move of two regions answers %d", status);
        return;
    }
    if (status == CW_SYSTEM) {
        for (int page = 0; page < PAGES; page++)
            if (before[page].kind != HOLE && is_hole_for_the_kernel(page))
                look_at(page, &before[page]);
        return;
    }
    if (status != CW_OK)
        wrong("moving %d pages from %d to %d: %d", count, from, to, status);
    if (flags == 0)
        set_hole(from, count);
    for (int page = 0; page < new_count; page++) {
        const int grown = page < count ? 0 : page - count + 1;
        pages[to + page] = before[from + page - grown];
        pages[to + page].at += grown;
        if (grown == 0 && to != from && was_hole[from + page] && before[to + page].kind != HOLE &&
            (to + page < from || to + page >= from + count))
            look_at(to + page, &before[to + page]); /* kernels from 6.17 on move what is there */
        if ((pages[to + page].kind == SHARED || pages[to + page].kind == REGULAR) && pages[to + page].at >= FILE_PAGES) {
            MUST_CALL(cw_tracker_unmap(tracker, guest_of(to + page), PAGE)); /* behind the file's end */
            mmap(host_of(to + page), PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
            set_hole(to + page, 1);
        }
    }
    sync_if_deferred();
}

static void hold_or_free(void)
{
    if (hold) {
        enter();
        cw_hold_free(hold);
        leave();
        hold = NULL;
        return;
    }
    int first, count;
    any_range(&first, &count);
    MUST_CALL(cw_tracker_prepare_unseen_write(tracker, guest_of(first), (uint64_t)count * PAGE, &hold));
}

static void others(void)
{
    cw_stats stats = {.size_bytes = sizeof(stats)};
    const uint64_t guest = GUEST + below(PAGES * PAGE / 2), len = below(3 * PAGE);
    switch (below(5)) {
    case 0: MUST_CALL(cw_tracker_maintain(tracker)); break;
    case 1: MUST_CALL(cw_tracker_sync(tracker)); break;
    case 2: MUST_CALL(cw_tracker_sync_range(tracker, guest, len)); break;
    case 3: MUST_CALL(cw_tracker_invalidate(tracker, guest, len)); break;
    default: MUST_CALL(cw_tracker_get_stats(tracker, &stats)); break;
    }
}

static void add_region(int region)
{
    const int first = region * (PAGES / regions);
    const size_t len = (size_t)(PAGES / regions) * PAGE;
    cw_region_options options = cw_region_options_default(guest_of(first), host_of(first), len, mode);
    options.reserved = true;
    options.embedder_owns_signals = true;
    MUST_CALL(cw_tracker_add_region(tracker, &options));
}

static void remove_and_add(void)
{
    if (hold)
        return;
    const int region = (int)below((unsigned)regions);
    MUST_CALL(cw_tracker_remove_region(tracker, guest_of(region * (PAGES / regions))));
    for (struct block *block = blocks; block < blocks + CLAIMS; block++)
        if (block->is_live && region_of(block->page) == region)
            wrong("a claim of page %d outlives its region", block->page);
    add_region(region);
    for (int page = 0; page < PAGES; page++)
        if (region_of(page) == region && pages[page].kind != HOLE)
            tell_of(page, 1);
}

static void some_calls(unsigned count, int depth);

static void fork_and_go_on(int depth)
{
    if (depth == 3)
        return;
    cw_fork_guard *guard;
    int status;
    enter();
    MUST(cw_tracker_before_fork(tracker, NULL, 0, &guard));
    const pid_t pid = fork();
    MUST(pid == 0 ? cw_after_fork_child(guard) : cw_after_fork_parent(guard));
    leave();
    if (pid == 0) {
        alarm(200);
        state += calls;
        check_blocks("a fork's child");
        some_calls(40, depth + 1);
        cw_hold_free(hold);
        MUST(cw_tracker_free(tracker));
        exit(0);
    }
    if (waitpid(pid, &status, 0) != pid || status != 0)
        wrong("the child ended with %x", (unsigned)status);
    for (int page = 0; page < PAGES; page++)
        if (pages[page].kind == SHARED) /* the child wrote there */
            MUST_CALL(cw_tracker_invalidate(tracker, guest_of(page), 1));
}

static void some_calls(unsigned count, int depth)
{
    for (; count-- > 0; calls++) {
        const unsigned which = below(100);
        if (which < 30)
            claim();
        else if (which < 55)
            store();
        else if (which < 61)
            kernel_write();
        else if (which < 65)
            write_by_the_own_view();
        else if (which < 74)
            map();
        else if (which < 80)
            protect();
        else if (which < 85)
            discard();
        else if (which < 92)
            move();
        else if (which < 94)
            hold_or_free();
        else if (which < 98)
            others();
        else if (which < 99)
            remove_and_add();
        else if (below(4) == 0)
            fork_and_go_on(depth);
        check_blocks("the call");
        check_mappings();
    }
}

static void run(unsigned count)
{
    static const cw_policy policies[] = {CW_POLICY_ADAPTIVE, CW_POLICY_ADAPTIVE_WITH_CHECKS, CW_POLICY_PLAIN};
    state = (seed + 1) * UINT64_C(0x9E3779B97F4A7C15);
    memset(blocks, 0, sizeof(blocks));
    set_hole(0, PAGES);
    calls = 0;
    regions = below(2) ? 1 : 4;
    has_lock = below(2);
    CHECK(mmap(memory, PAGES * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0) == memory);
    cw_tracker_options options = cw_tracker_options_default(told, &pages);
    options.policy = policies[below(3)];
    options.lock = has_lock ? take : NULL;
    options.unlock = has_lock ? give_back : NULL;
    MUST(cw_tracker_new(&options, &tracker));
    for (int region = 0; region < regions; region++)
        add_region(region);
    some_calls(count, 0);
    cw_hold_free(hold);
    hold = NULL;
    MUST(cw_tracker_free(tracker));
}

int main(int argc, char **argv)
{
    mode = mode_to_test(argc, argv);
    const struct sigaction action = {.sa_sigaction = on_fault, .sa_flags = SA_SIGINFO};
    sigaction(SIGBUS, &action, NULL);
    sigaction(SIGSEGV, &action, NULL);
    CHECK(pipe(ends) == 0 && fcntl(ends[1], F_SETPIPE_SZ, 1 << 16) > 0);
    char name[] = "/tmp/codewarden-XXXXXX";
    regular = mkstemp(name);
    CHECK(unlink(name) == 0 && ftruncate(regular, FILE_PAGES * PAGE) == 0);
    for (int file = 0; file < 2; file++) {
        memfd[file] = memfd_create("guest", 0);
        CHECK(ftruncate(memfd[file], FILE_PAGES * PAGE) == 0 && fstat(memfd[file], &memfd_stat[file]) == 0);
        own_view[file] = mmap(NULL, FILE_PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, memfd[file], 0);
    }
    /* Far from other memory, which would land in its holes. */
    memory = mmap((void *)0x200000000000, PAGES * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    CHECK(memory != MAP_FAILED);
    const uint64_t first = argc > 2 ? strtoull(argv[2], NULL, 0) : 0;
    const unsigned count = argc > 3 ? (unsigned)strtoul(argv[3], NULL, 0) : 400;
    for (seed = first; seed < first + SEEDS; seed++)
        run(count);
    puts("all holds");
    return 0;
}
