// A block patches an instruction further on in the same basic block: some
// instructions of the old block run on, the patched one must be the new one.

#include "rt.h"

u64 patch(void *at, u32 insn, u64 x);
extern char patched[], patch_end[];
__asm__(".text\n.balign 64\n.option push\n.option norvc\n.globl patch\n"
        "patch: addi a2, a2, 3\n"
        "  sw a1, 0(a0)\n"
        "  slli a2, a2, 1\n"
        "  xori a2, a2, 85\n"
        "  addi a3, a2, 7\n"
        "patched: li a0, 0\n"
        "  add a0, a0, a3\n"
        "  ret\n"
        "patch_end:\n.option pop\n");

static u64 model(u64 x, u64 constant) { return (((x + 3) << 1) ^ 85) + 7 + constant; }

int main(int argc, char **argv) {
    static u32 elsewhere;
    open_text(patch, patch_end);
    for (u64 i = 0; i < WARM; i++) expect_equal("warm up", patch(&elsewhere, 0, i), model(i, 0));
    for (u64 i = 1; i <= 200; i++) {
        expect("same block", patch(patched, li_a0((int)i), i), model(i, i), model(i, i - 1));
    }
    return finish("store-same-block");
}
