// One instruction of a function is patched, announced by riscv_flush_icache,
// then called. The first rounds flush for all harts, the others for this one.

#include "rt.h"

enum { FLUSH_LOCAL = 1 };

int main(int argc, char **argv) {
    u32 *code = map_code(1);
    write_constant(code, 7);
    flush_all_harts(code, 8);
    warm("before the patch", code, 0, 7);
    for (int i = 8; i < 400; i++) {
        store32(code, li_a0(i));
        i64 r = SYSCALL(SYS_riscv_flush_icache, code, code + 2, i < 200 ? 0 : FLUSH_LOCAL);
        if (r != -38) checked(r, "riscv_flush_icache");
        for (int again = 0; again < 5; again++) expect("patched", call(code, 0), (u64)i, (u64)i - 1);
    }
    return finish("patch-flush-call");
}
