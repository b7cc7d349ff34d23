// The cost of one page of a bulk rewrite of 512 code pages, each of which has
// one function that runs before and after, or with the flag `dense` is full of
// them: by memcpy, or by pread with the flag `pread`. With the flag `empty` the
// pages that are written are data, and nothing is called. An iteration rewrites
// all the pages:
//   bench-bulk ITERATIONS [pread] [dense] [empty]

#include "bench.h"

enum { PAGES = 512, LENGTH = 15, SLOT = 64, SLOTS = PAGE / SLOT };

static u64 step_of(u64 version, u64 page, u64 slot) { return (version * 600 + page + slot) % 2000; }

// A function of 16 words that returns its argument and LENGTH steps.
static void write_function(u32 *at, u64 step) {
    for (int k = 0; k < LENGTH; k++) store32(at + k, addi(A0, A0, (int)step));
    store32(at + LENGTH, RET);
}

// Eight words a turn, as a C library's memcpy copies.
static void copy_pages(char *to, const char *from) {
    for (u64 at = 0; at < PAGES * PAGE; at += 64) {
        u64 *t = (u64 *)(to + at);
        const u64 *f = (const u64 *)(from + at);
        u64 a = f[0], b = f[1], c = f[2], d = f[3];
        t[0] = a, t[1] = b, t[2] = c, t[3] = d;
        a = f[4], b = f[5], c = f[6], d = f[7];
        t[4] = a, t[5] = b, t[6] = c, t[7] = d;
    }
}

static void call_all(char *code, u64 version, u64 slots) {
    for (u64 page = 0; page < PAGES; page++) {
        for (u64 slot = 0; slot < slots; slot++) {
            u64 got = call(code + page * PAGE + slot * SLOT, slot), want = slot + LENGTH * step_of(version, page, slot);
            if (got != want) die(EXIT_STALE, "rewritten page", got, want);
        }
    }
}

int main(int argc, char **argv) {
    u64 n = iterations(argc, argv, 20), slots = has_flag(argc, argv, "dense") ? SLOTS : 1;
    int by_pread = has_flag(argc, argv, "pread"), empty = has_flag(argc, argv, "empty");
    char *to = empty ? (char *)map(PAGES * PAGE, PROT_RW) : map_code(PAGES);
    int file = (int)checked(SYSCALL(SYS_memfd_create, "code", 0), "memfd_create");
    checked(SYSCALL(SYS_ftruncate, file, 2 * PAGES * PAGE), "ftruncate");
    char *versions =
        (char *)checked(SYSCALL(SYS_mmap, 0, 2 * PAGES * PAGE, PROT_RW, MAP_SHARED, file, 0), "mmap");
    for (u64 i = 0; i < 2 * PAGES * SLOTS; i++) {
        u64 version = i / (PAGES * SLOTS), page = i / SLOTS % PAGES, slot = i % SLOTS;
        if (slot < slots) write_function((u32 *)(versions + i * SLOT), step_of(version, page, slot));
    }

    u64 started = 0;
    // The first rewrite is of pages that never ran, and is not counted.
    for (u64 i = 0; i <= n; i++) {
        u64 version = i % 2;
        if (i == 1) started = now_ns();
        if (by_pread) {
            i64 len = checked(SYSCALL(SYS_pread64, file, to, PAGES * PAGE, version * PAGES * PAGE), "pread");
            if (len != PAGES * PAGE) die(EXIT_WRONG, "length of pread", (u64)len, PAGES * PAGE);
        } else {
            copy_pages(to, versions + version * PAGES * PAGE);
        }
        if (!empty) {
            flush_all_harts(to, PAGES * PAGE);
            call_all(to, version, slots);
        }
    }
    return report(by_pread ? "bench-bulk pread" : "bench-bulk memcpy", n * PAGES, started);
}
