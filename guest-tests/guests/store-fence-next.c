// Store, FENCE.I, and the patched instruction right behind: in step with the
// ISA manual, so every tracking mode owes the new instruction.

#include "rt.h"

u64 patch(void *at, u32 insn);
extern char patched[], patch_end[];
__asm__(".text\n.balign 64\n.option push\n.option norvc\n.globl patch\n"
        "patch: sw a1, 0(a0)\n"
        "  fence.i\n"
        "patched: li a0, 0\n"
        "  ret\n"
        "patch_end:\n.option pop\n");

int main(int argc, char **argv) {
    static u32 elsewhere;
    open_text(patch, patch_end);
    for (int i = 0; i < WARM; i++) expect_equal("warm up", patch(&elsewhere, (u32)i), 0);
    for (int i = 1; i <= 200; i++) expect("after fence.i", patch(patched, li_a0(i)), (u64)i, (u64)i - 1);
    return finish("store-fence-next");
}
