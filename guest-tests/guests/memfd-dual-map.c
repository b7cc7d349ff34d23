// A JIT with two views of one memfd: it writes through the one and runs the
// other. No store ever goes to the address that the code runs at.

#include "rt.h"

int main(int argc, char **argv) {
    int fd = (int)checked(SYSCALL(SYS_memfd_create, "jit", 0), "memfd_create");
    checked(SYSCALL(SYS_ftruncate, fd, 2 * PAGE), "ftruncate");
    u32 *write = (u32 *)checked(SYSCALL(SYS_mmap, 0, 2 * PAGE, PROT_RW, MAP_SHARED, fd, 0), "mmap");
    u32 *run = (u32 *)checked(SYSCALL(SYS_mmap, 0, 2 * PAGE, PROT_RX, MAP_SHARED, fd, 0), "mmap");
    write_constant(write, 0);
    write_constant(write + PAGE / 4, 1000);
    flush_all_harts(run, 2 * PAGE);
    warm("before", run, 0, 0);
    warm("before", run + PAGE / 4, 0, 1000);
    for (int i = 1; i < 200; i++) {
        store32(write, li_a0(i));
        if (i % 10 == 0) store32(write + PAGE / 4, li_a0(1000 + i));
        flush_all_harts(run, 2 * PAGE);
        for (int again = 0; again < 5; again++) expect("first page", call(run, 0), (u64)i, (u64)i - 1);
        u64 tens = (u64)i / 10 * 10;
        expect("second page", call(run + PAGE / 4, 0), 1000 + tens, 1000 + tens - 10);
    }
    return finish("memfd-dual-map");
}
