// One instruction of a function is patched, then FENCE.I, then the call.
// With `no-flush` nothing announces the patch.

#include "rt.h"

enum { SYS_prctl = 167, PR_RISCV_SET_ICACHE_FLUSH_CTX = 71, ON = 0, PER_PROCESS = 0 };

int main(int argc, char **argv) {
    // Linux asks a process that uses FENCE.I to say so first; kernels before
    // 6.9 do not know the call and need none.
    SYSCALL(SYS_prctl, PR_RISCV_SET_ICACHE_FLUSH_CTX, ON, PER_PROCESS);
    u32 *code = map_code(1);
    write_constant(code, 7);
    flush_this_hart();
    warm("before the patch", code, 0, 7);
    for (int i = 8; i < 400; i++) {
        store32(code, li_a0(i));
        flush_this_hart();
        for (int again = 0; again < 5; again++) expect("patched", call(code, 0), (u64)i, (u64)i - 1);
    }
    return finish("patch-fence-i");
}
