// A hot loop patches its own body in every iteration: with FENCE.I between,
// or with `no-flush` without.

#include "rt.h"

// loop(insn, at, n): for n ... 1, writes insn with immediate n at `at`, which
// is the instruction that adds it to the sum.
u64 fenced_loop(u32 insn, void *at, u64 n);
u64 plain_loop(u32 insn, void *at, u64 n);
extern char fenced_insn[], plain_insn[], loops_end[];
#define LOOP(name, insn, fence)                                                                    \
    __asm__(".text\n.balign 64\n.option push\n.option norvc\n.globl " name "\n" name ": li a3, 0\n" \
            "1: andi t1, a2, 0x7ff\n  slli t1, t1, 20\n  or t1, t1, a0\n  sw t1, 0(a1)\n" fence     \
            insn ": addi a3, a3, 0\n  addi a2, a2, -1\n  bnez a2, 1b\n  mv a0, a3\n  ret\n"         \
            ".option pop\n")
LOOP("fenced_loop", "fenced_insn", "  fence.i\n");
LOOP("plain_loop", "plain_insn", "");
__asm__("loops_end:\n");

int main(int argc, char **argv) {
    enum { A3 = 13, ROUNDS = 1500 };
    static u32 elsewhere;
    u64 (*loop)(u32, void *, u64) = without_flush ? plain_loop : fenced_loop;
    char *insn = without_flush ? plain_insn : fenced_insn;
    open_text(fenced_loop, loops_end);
    expect_equal("warm up", loop(addi(A3, A3, 0), &elsewhere, WARM), 0);
    u64 want = (u64)ROUNDS * (ROUNDS + 1) / 2;
    u64 got = loop(addi(A3, A3, 0), insn, ROUNDS);
    expect("sum over all versions", got, want, got < want ? got : 0);
    return finish("self-patching-loop");
}
