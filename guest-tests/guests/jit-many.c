// A JIT in small: hundreds of functions are emitted, run, and emitted again
// at the same places with other bodies and other lengths.

#include "rt.h"

enum { FUNCTIONS = 400, SLOT = 128, GENERATIONS = 4 };

static u64 seed = 12345;
static u32 random_below(u32 n) {
    seed = seed * 6364136223846793005 + 1442695040888963407;
    return (u32)(seed >> 33) % n;
}

// Emits a random straight-line function of its argument; returns what it must
// give for `arg`.
static u64 emit(u32 *at, u64 arg) {
    u64 value = arg;
    u32 len = 3 + random_below(20);
    for (u32 i = 0; i < len; i++) {
        int imm = (int)random_below(2048);
        switch (random_below(4)) {
        case 0: store32(at++, addi(A0, A0, imm)); value += (u64)imm; break;
        case 1: store32(at++, xori(A0, A0, imm)); value ^= (u64)imm; break;
        case 2: store32(at++, add(A0, A0, A0)); value += value; break;
        default:
            store32(at++, addi(T0, ZERO, imm));
            store32(at++, mul(A0, A0, T0));
            value *= (u64)imm;
        }
    }
    store32(at++, addi(A0, A0, 1));
    store32(at, RET);
    return value + 1;
}

int main(int argc, char **argv) {
    static u64 want[FUNCTIONS], before[FUNCTIONS];
    char *code = map_code((FUNCTIONS * 2 * SLOT + PAGE - 1) / PAGE);
    for (int generation = 0; generation < GENERATIONS; generation++) {
        for (int i = 0; i < FUNCTIONS; i++) {
            before[i] = want[i];
            want[i] = emit((u32 *)(code + i * 2 * SLOT), 77);
        }
        flush_all_harts(code, FUNCTIONS * 2 * SLOT);
        for (int again = 0; again < 40; again++) {
            for (int i = 0; i < FUNCTIONS; i++) {
                expect("emitted function", call(code + i * 2 * SLOT, 77), want[i], before[i]);
            }
        }
    }
    return finish("jit-many");
}
