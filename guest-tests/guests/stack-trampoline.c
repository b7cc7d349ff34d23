// Trampolines on the stack, as nested functions make them: code and hot data
// share a page, and each call writes the code anew at the same place.

#include "rt.h"

__attribute__((noinline)) static u64 through_trampoline(int constant, u64 arg) {
    u32 trampoline[4];
    volatile u64 local = arg;
    store32(trampoline, addi(A0, A0, constant));
    store32(trampoline + 1, addi(A0, A0, 1));
    store32(trampoline + 2, RET);
    flush_this_hart();
    return call(trampoline, local);
}

int main(int argc, char **argv) {
    u64 here = (u64)&here & -(u64)PAGE;
    checked(SYSCALL(SYS_mprotect, here - 2 * PAGE, 3 * PAGE, PROT_RWX), "mprotect");
    for (int i = 0; i < WARM / 4; i++) expect_equal("warm up", through_trampoline(5, 10), 16);
    u64 before = 16;
    for (int i = 0; i < 300; i++) {
        u64 want = 11 + (u64)(6 + i);
        expect("trampoline", through_trampoline(6 + i, 10), want, before);
        before = want;
    }
    return finish("stack-trampoline");
}
