// A block patches the instruction right after the store, which must run new:
// the store is the last thing that the old translation may do.

#include "rt.h"

// patch(at, insn): stores and runs into the patched instruction.
u64 patch(void *at, u32 insn);
extern char patched[], patch_end[];
__asm__(".text\n.balign 64\n.option push\n.option norvc\n.globl patch\n"
        "patch: sw a1, 0(a0)\n"
        "patched: li a0, 0\n"
        "  ret\n"
        "patch_end:\n.option pop\n");

int main(int argc, char **argv) {
    static u32 elsewhere;
    open_text(patch, patch_end);
    for (int i = 0; i < WARM; i++) expect_equal("warm up", patch(&elsewhere, (u32)i), 0);
    for (int i = 1; i <= 200; i++) expect("next instruction", patch(patched, li_a0(i)), (u64)i, (u64)i - 1);
    return finish("store-next-insn");
}
