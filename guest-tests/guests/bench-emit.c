// The cost of writing one fresh function and calling it four times, over 1,000
// places on 64 pages that are used again in turn; with the flag `empty` it is
// written to data, and another that never changes is called:
//   bench-emit ITERATIONS [empty]

#include "bench.h"

enum { PAGES = 64, PLACES = 1000, SLOT = PAGES * PAGE / PLACES / 16 * 16, LENGTH = 12 };

// A function that returns its argument and what is returned here.
static u64 emit(u32 *at, u64 seed) {
    u64 sum = 0;
    for (int k = 0; k < LENGTH; k++) {
        int imm = (int)((seed * 31 + (u64)k * 7) % 1999);
        store32(at + k, addi(A0, A0, imm));
        sum += (u64)imm;
    }
    store32(at + LENGTH, RET);
    return sum;
}

int main(int argc, char **argv) {
    u64 n = iterations(argc, argv, 10000);
    int empty = has_flag(argc, argv, "empty");
    char *code = map_code(PAGES), *to = empty ? (char *)map(PAGES * PAGE, PROT_RW) : code;
    u64 unchanged = emit((u32 *)code, 0);
    u64 started = now_ns();
    for (u64 i = 0; i < n; i++) {
        u32 *at = (u32 *)(to + i % PLACES * SLOT), *run = empty ? (u32 *)code : at;
        u64 sum = emit(at, i), want = empty ? unchanged : sum;
        if (!empty) flush_all_harts(at, 4 * (LENGTH + 1));
        for (u64 k = 0; k < 4; k++) {
            u64 got = call(run, k);
            if (got != want + k) die(EXIT_STALE, "emitted", got, want + k);
        }
    }
    return report("bench-emit", n, started);
}
