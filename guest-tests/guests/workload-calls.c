// A guest that writes no code and does little but call and branch: recursion,
// an interpreter's loop over a table of functions, a sequence of hard branches:
//   workload-calls ROUNDS [time]

#include "bench.h"

enum { STEPS = 20000, OPS = 8, LONGEST_OF = 3000 };

__attribute__((noinline)) static u64 fib(u64 n) { return n < 2 ? n : fib(n - 1) + fib(n - 2); }

typedef struct {
    u64 a, b, stack[16], top;
} machine;

#define OP(name, body) \
    __attribute__((noinline)) static void op_##name(machine *m) { body; }
OP(push, m->stack[m->top++ % 16] = m->a)
OP(pop, m->a ^= m->stack[--m->top % 16])
OP(add, m->a += m->b)
OP(mul, m->a = m->a * 0x5851f42d4c957f2d + 1)
OP(swap, u64 t = m->a; m->a = m->b; m->b = t)
OP(shift, m->b = m->b << 7 | m->a >> 57)
OP(step, if (m->a & 1) m->b += 3; else m->b ^= m->a)
OP(nop, m->b++)
static void (*volatile ops[OPS])(machine *) = {op_push, op_pop, op_add, op_mul, op_swap, op_shift, op_step, op_nop};

static u64 interpret(u64 seed) {
    machine m = {.a = seed, .b = 1, .top = 1 << 20};
    u64 random = seed * 2 + 1;
    for (int i = 0; i < STEPS; i++) {
        random = random * 6364136223846793005 + 1442695040888963407;
        ops[random >> 61](&m);
    }
    return m.a ^ m.b;
}

// The longest Collatz sequence that starts below LONGEST_OF.
static u64 collatz(void) {
    u64 longest = 0;
    for (u64 start = 1; start < LONGEST_OF; start++) {
        u64 len = 0;
        for (u64 n = start; n != 1; len++) n = n & 1 ? 3 * n + 1 : n / 2;
        if (len > longest) longest = len;
    }
    return longest;
}

int main(int argc, char **argv) {
    u64 rounds = iterations(argc, argv, 1), started = now_ns();
    for (u64 round = 0; round < rounds; round++) {
        expect_equal("fib", fib(18), 2584);
        mix(interpret(round));
        expect_equal("collatz", collatz(), 216);
    }
    // Any second argument asks for the time.
    if (argc > 2) report("workload-calls", rounds, started);
    return finish("workload-calls");
}
