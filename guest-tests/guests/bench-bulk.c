// The cost of one page of a bulk rewrite of 512 code pages, each of which has
// one function that runs before and after: by memcpy, or by pread with the
// flag `pread`. An iteration rewrites all the pages:
//   bench-bulk ITERATIONS [pread]

#include "bench.h"

enum { PAGES = 512 };

static void fill(char *to, int version) {
    for (int page = 0; page < PAGES; page++) write_constant((u32 *)(to + page * PAGE), (version * 600 + page) % 2000);
}

int main(int argc, char **argv) {
    u64 n = iterations(argc, argv, 20);
    int by_pread = has_flag(argc, argv, "pread");
    char *code = map_code(PAGES);
    int file = (int)checked(SYSCALL(SYS_memfd_create, "code", 0), "memfd_create");
    checked(SYSCALL(SYS_ftruncate, file, 2 * PAGES * PAGE), "ftruncate");
    char *versions =
        (char *)checked(SYSCALL(SYS_mmap, 0, 2 * PAGES * PAGE, PROT_RW, MAP_SHARED, file, 0), "mmap");
    for (int version = 0; version < 2; version++) fill(versions + version * PAGES * PAGE, version);
    memset(code, 0, PAGES * PAGE);

    u64 spent = 0;
    for (u64 i = 0; i < n; i++) {
        u64 version = i % 2, started = now_ns();
        if (by_pread) {
            i64 len = checked(SYSCALL(SYS_pread64, file, code, PAGES * PAGE, version * PAGES * PAGE), "pread");
            if (len != PAGES * PAGE) die(EXIT_WRONG, "length of pread", (u64)len, PAGES * PAGE);
        } else {
            memcpy(code, versions + version * PAGES * PAGE, PAGES * PAGE);
        }
        flush_all_harts(code, PAGES * PAGE);
        for (int page = 0; page < PAGES; page++) {
            u64 got = call(code + page * PAGE, 0), want = (version * 600 + (u64)page) % 2000;
            if (got != want) die(EXIT_STALE, "rewritten page", got, want);
        }
        spent += now_ns() - started;
    }
    return report(by_pread ? "bench-bulk pread" : "bench-bulk memcpy", n * PAGES, now_ns() - spent);
}
