// Code goes away by munmap, and other code comes to the same address by mmap;
// then a mapping is replaced in one step by MAP_FIXED.

#include "rt.h"

int main(int argc, char **argv) {
    u32 *code = map_code(2);
    u32 *second = code + PAGE / 4;
    write_constant(code, 1);
    write_constant(second, 1);
    flush_all_harts(code, 2 * PAGE);
    warm("before", code, 0, 1);
    warm("before", second, 0, 1);
    for (int i = 2; i < 60; i++) {
        if (i % 2) checked(SYSCALL(SYS_munmap, code, PAGE), "munmap");
        i64 at = checked(SYSCALL(SYS_mmap, code, PAGE, PROT_RWX, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0), "mmap");
        expect_equal("the same address", (u64)at == (u64)code, 1);
        expect_equal("new memory is zero", code[0], 0);
        write_constant(code, i);
        flush_all_harts(code, PAGE);
        for (int again = 0; again < 20; again++) expect("mapped again", call(code, 0), (u64)i, (u64)i - 1);
        expect_equal("the neighbour", call(second, 0), 1);
    }
    return finish("remap-code");
}
