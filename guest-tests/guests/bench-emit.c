// The cost of writing one fresh function and calling it four times, over 1,000
// places on 64 pages that are used again in turn:
//   bench-emit ITERATIONS

#include "bench.h"

enum { PAGES = 64, PLACES = 1000, SLOT = PAGES * PAGE / PLACES / 16 * 16, LENGTH = 12 };

int main(int argc, char **argv) {
    u64 n = iterations(argc, argv, 10000);
    char *code = map_code(PAGES);
    u64 started = now_ns();
    for (u64 i = 0; i < n; i++) {
        u32 *at = (u32 *)(code + i % PLACES * SLOT);
        u64 want = 0;
        for (int k = 0; k < LENGTH; k++) {
            int imm = (int)((i * 31 + (u64)k * 7) % 2000);
            store32(at + k, addi(A0, A0, imm));
            want += (u64)imm;
        }
        store32(at + LENGTH, RET);
        flush_all_harts(at, 4 * (LENGTH + 1));
        for (int k = 0; k < 4; k++) {
            u64 got = call(at, (u64)k);
            if (got != want + (u64)k) die(EXIT_STALE, "emitted", got, want + (u64)k);
        }
    }
    return report("bench-emit", n, started);
}
