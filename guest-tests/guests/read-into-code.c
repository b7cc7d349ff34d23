// The kernel writes code for the guest: read() from a pipe, readv() from it
// into two pages at once, and pread() from a memfd over several pages.

#include "rt.h"

enum { PAGES = 4 };

static void fill(u32 *to, int value) {
    for (int i = 0; i < PAGES * PAGE / 4; i++) store32(to + i, NOP);
    for (int page = 0; page < PAGES; page++) write_constant(to + page * (PAGE / 4), value + page);
}

int main(int argc, char **argv) {
    int ends[2];
    u32 *code = map_code(PAGES), *fresh = map(PAGES * PAGE, PROT_RW);
    checked(SYSCALL(SYS_pipe2, ends, 0), "pipe2");
    int file = (int)checked(SYSCALL(SYS_memfd_create, "code", 0), "memfd_create");
    fill(code, 0);
    flush_all_harts(code, PAGES * PAGE);
    for (int page = 0; page < PAGES; page++) warm("before", code + page * (PAGE / 4), 0, (u64)page);

    for (int round = 1; round <= 60; round++) {
        int value = round * 8, pages = PAGES;
        i64 len = 0;
        fill(fresh, value);
        if (round % 3 == 1) {
            pages = 1;
            SYSCALL(SYS_write, ends[1], fresh, 8);
            len = checked(SYSCALL(SYS_read, ends[0], code, 8), "read");
            expect_equal("length of read", (u64)len, 8);
        } else if (round % 3 == 2) {
            pages = 2;
            u64 parts[4] = {(u64)code, 8, (u64)(code + PAGE / 4), 8};
            SYSCALL(SYS_write, ends[1], fresh, 8);
            SYSCALL(SYS_write, ends[1], fresh + PAGE / 4, 8);
            len = checked(SYSCALL(SYS_readv, ends[0], parts, 2), "readv");
            expect_equal("length of readv", (u64)len, 16);
        } else {
            checked(SYSCALL(SYS_ftruncate, file, 0), "ftruncate");
            char *view = (char *)fresh;
            // The file is written by memory, not by write(), at no cost of an offset.
            checked(SYSCALL(SYS_ftruncate, file, PAGES * PAGE), "ftruncate");
            void *map_of_file = (void *)checked(SYSCALL(SYS_mmap, 0, PAGES * PAGE, PROT_RW, MAP_SHARED, file, 0), "mmap");
            memcpy(map_of_file, view, PAGES * PAGE);
            checked(SYSCALL(SYS_munmap, map_of_file, PAGES * PAGE), "munmap");
            len = checked(SYSCALL(SYS_pread64, file, code, PAGES * PAGE, 0), "pread");
            expect_equal("length of pread", (u64)len, PAGES * PAGE);
        }
        flush_all_harts(code, PAGES * PAGE);
        for (int page = 0; page < pages; page++) {
            u64 got = call(code + page * (PAGE / 4), 0), want = (u64)(value + page);
            // The last version of a page is some rounds old.
            expect("written by the kernel", got, want, got < want ? got : 0);
        }
    }
    return finish("read-into-code");
}
