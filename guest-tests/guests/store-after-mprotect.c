// A block that stores to an address that it is given, on a page that may not
// be written, is hot; then the page becomes writable, and the block patches the
// instruction behind its store, which must run new.

#include "rt.h"

typedef u64 (*patcher)(void *at, u32 insn);

int main(int argc, char **argv) {
    static u32 elsewhere;
    u32 *code = (u32 *)map(PAGE, PROT_RW);
    for (u64 round = 0; round < 3; round++) {
        store32(code, 0x00b52023); // sw a1, 0(a0)
        store32(code + 1, li_a0(0));
        store32(code + 2, RET);
        checked(SYSCALL(SYS_mprotect, code, PAGE, PROT_RX), "mprotect");
        flush_all_harts(code, 12);
        patcher patch = (patcher)code;
        for (u64 i = 0; i < WARM; i++) expect_equal("warm up", patch(&elsewhere, (u32)i), 0);
        checked(SYSCALL(SYS_mprotect, code, PAGE, PROT_RWX), "mprotect");
        for (u64 i = 1; i <= 100; i++) expect("next instruction", patch(code + 1, li_a0((int)i)), i, i - 1);
    }
    return finish("store-after-mprotect");
}
