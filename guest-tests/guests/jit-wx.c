// A JIT that keeps W^X: read-write to emit, read-execute to run, and back.

#include "rt.h"

int main(int argc, char **argv) {
    u32 *code = map(2 * PAGE, PROT_RW);
    for (int i = 0; i < 120; i++) {
        checked(SYSCALL(SYS_mprotect, code, 2 * PAGE, PROT_RW), "mprotect");
        write_constant(code, i);
        write_constant(code + PAGE / 4, 2 * i);
        checked(SYSCALL(SYS_mprotect, code, 2 * PAGE, PROT_RX), "mprotect");
        flush_all_harts(code, 2 * PAGE);
        // The first version runs long enough to be hot, the others follow it.
        for (int again = 0; again < (i == 0 ? WARM : 10); again++) {
            expect("first page", call(code, 0), (u64)i, (u64)i - 1);
            expect("second page", call(code + PAGE / 4, 0), 2 * (u64)i, 2 * (u64)(i - 1));
        }
    }
    return finish("jit-wx");
}
