// mremap moves a page of code: it must run at its new address, and what comes
// to the old address next must not be taken for it.

#include "rt.h"

enum { SYS_mremap = 216, MREMAP_MAYMOVE = 1, MREMAP_FIXED = 2 };

int main(int argc, char **argv) {
    char *places = map_code(2);
    u32 *here = (u32 *)places, *there = (u32 *)(places + PAGE);
    write_constant(here, 0);
    write_constant(there, 1000);
    flush_all_harts(places, 2 * PAGE);
    warm("before", here, 0, 0);
    warm("before", there, 0, 1000);
    for (int i = 1; i < 60; i++) {
        i64 at = checked(SYSCALL(SYS_mremap, here, PAGE, PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, there), "mremap");
        expect_equal("the address asked for", (u64)at == (u64)there, 1);
        at = checked(SYSCALL(SYS_mmap, here, PAGE, PROT_RWX, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0), "mmap");
        write_constant(here, i);
        flush_all_harts(places, 2 * PAGE);
        for (int again = 0; again < 20; again++) {
            expect("moved", call(there, 0), (u64)i - 1, i == 1 ? 1000 : (u64)i - 2);
            expect("in its old place", call(here, 0), (u64)i, (u64)i - 1);
        }
    }
    return finish("move-code");
}
