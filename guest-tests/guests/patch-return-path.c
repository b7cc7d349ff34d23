// A recursive function is patched while several of its frames are on the
// stack: every return to it afterwards must run the new code.

#include "rt.h"

// descend(n): n == 0 calls hook; on the way back adds the patched constant.
u64 descend(u64 n);
extern char after_return[], descend_end[];
__asm__(".text\n.balign 64\n.option push\n.option norvc\n.globl descend\n"
        "descend: addi sp, sp, -16\n  sd ra, 0(sp)\n  bnez a0, 1f\n"
        "  call hook\n  j 2f\n"
        "1: addi a0, a0, -1\n  call descend\n"
        "after_return: addi a0, a0, 1\n"
        "2: ld ra, 0(sp)\n  addi sp, sp, 16\n  ret\n"
        "descend_end:\n.option pop\n");

static int constant;

__attribute__((used)) u64 hook(void) {
    if (constant) {
        store32(after_return, addi(A0, A0, constant));
        flush_this_hart();
    }
    return 0;
}

int main(int argc, char **argv) {
    open_text(descend, descend_end);
    for (int i = 0; i < WARM / 8; i++) expect_equal("warm up", descend(16), 16);
    int before = 1;
    for (constant = 2; constant < 200; constant++) {
        expect("returns to new code", descend(16), 16 * (u64)constant, 16 * (u64)before);
        before = constant;
    }
    return finish("patch-return-path");
}
