// madvise(MADV_DONTNEED) takes the code away with no store: the pages read as
// zeros, and other code is written there.

#include "rt.h"

enum { SYS_madvise = 233, MADV_DONTNEED = 4 };

int main(int argc, char **argv) {
    u32 *code = map_code(2);
    u32 *second = code + PAGE / 4;
    write_constant(code, 1);
    write_constant(second, 1);
    flush_all_harts(code, 2 * PAGE);
    warm("before", code, 0, 1);
    warm("before", second, 0, 1);
    for (int i = 2; i < 60; i++) {
        checked(SYSCALL(SYS_madvise, code, PAGE, MADV_DONTNEED), "madvise");
        expect_equal("discarded memory is zero", *(volatile u32 *)code, 0);
        write_constant(code, i);
        flush_all_harts(code, PAGE);
        for (int again = 0; again < 20; again++) expect("written again", call(code, 0), (u64)i, (u64)i - 1);
        expect_equal("the neighbour", call(second, 0), 1);
    }
    return finish("discard-code");
}
