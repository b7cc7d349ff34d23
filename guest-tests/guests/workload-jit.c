// A JIT in small, for benches from end to end: each round emits functions
// with new bodies over the old ones, runs them, patches some and runs again:
//   workload-jit ROUNDS

#include "bench.h"

enum { FUNCTIONS = 128, SLOT = 256, LENGTH = 24, CALLS = 50 };

static u64 emit(u32 *at, u64 round, u64 index) {
    u64 sum = 0;
    for (u64 k = 0; k < LENGTH; k++) {
        int imm = (int)((round * 131 + index * 17 + k * 5) % 2000);
        store32(at + k, addi(A0, A0, imm));
        sum += (u64)imm;
    }
    store32(at + LENGTH, RET);
    return sum;
}

int main(int argc, char **argv) {
    static u64 sums[FUNCTIONS], before[FUNCTIONS];
    u64 rounds = iterations(argc, argv, 3), started = now_ns();
    char *code = map_code(FUNCTIONS * SLOT / PAGE);
    for (u64 round = 0; round < rounds; round++) {
        for (u64 i = 0; i < FUNCTIONS; i++) {
            before[i] = sums[i];
            sums[i] = emit((u32 *)(code + i * SLOT), round, i);
        }
        flush_all_harts(code, FUNCTIONS * SLOT);
        for (u64 i = 0; i < FUNCTIONS; i++) {
            for (u64 k = 0; k < CALLS; k++) expect("emitted", call(code + i * SLOT, k), sums[i] + k, before[i] + k);
        }
        for (u64 i = 0; i < FUNCTIONS; i += 8) {
            u64 first = (round * 131 + i * 17) % 2000;
            store32(code + i * SLOT, addi(A0, A0, (int)(2000 - first)));
            before[i] = sums[i];
            sums[i] += 2000 - 2 * first;
            flush_this_hart();
            for (u64 k = 0; k < CALLS; k++) expect("patched", call(code + i * SLOT, k), sums[i] + k, before[i] + k);
        }
    }
    if (argc > 2) report("workload-jit", rounds, started);
    return finish("workload-jit");
}
