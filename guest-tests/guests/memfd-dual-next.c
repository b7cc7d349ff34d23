// A block patches the instruction that it comes to next, through another view of
// its own page: the store's address says nothing of the block's. At first the page
// is written to by these stores alone; then data beside the code is stored to as
// well, so that whoever tracks writes may have stopped protecting the page.

#include "rt.h"

enum { ROUNDS = 200, DATA = 2048 };

int main(int argc, char **argv) {
    int fd = (int)checked(SYSCALL(SYS_memfd_create, "jit", 0), "memfd_create");
    checked(SYSCALL(SYS_ftruncate, fd, PAGE), "ftruncate");
    char *run = (char *)checked(SYSCALL(SYS_mmap, 0, PAGE, PROT_RWX, MAP_SHARED, fd, 0), "mmap");
    static u32 elsewhere;
    // next(insn, at): stores `insn` at `at` and runs into the instruction behind.
    store32(run, 0x00a5a023); // sw a0, 0(a1)
    store32(run + 4, without_flush ? NOP : FENCE_I);
    store32(run + 8, li_a0(0));
    store32(run + 12, RET);
    flush_all_harts(run, PAGE);
    u64 (*next)(u32, void *) = (u64 (*)(u32, void *))run;
    for (int i = 0; i < WARM; i++) expect_equal("one view", next(0, &elsewhere), 0);
    // What was translated knows of no other view.
    char *write = (char *)checked(SYSCALL(SYS_mmap, 0, PAGE, PROT_RW, MAP_SHARED, fd, 0), "mmap");
    for (int i = 0; i < WARM; i++) expect_equal("two views", next(0, &elsewhere), 0);
    for (int i = 1; i <= ROUNDS; i++) {
        expect("next instruction", next(li_a0(i), write + 8), (u64)i, (u64)i - 1);
        expect("next instruction again", next(0, &elsewhere), (u64)i, (u64)i - 1);
    }
    for (int i = 0; i < WARM; i++) {
        store64(write + DATA + 8 * (i % 128), (u64)i);
        expect_equal("data beside", next(0, write + DATA), ROUNDS);
    }
    for (int i = ROUNDS + 1; i <= 2 * ROUNDS; i++) {
        store64(write + DATA + 8 * (i % 128), (u64)i);
        expect("next instruction", next(li_a0(i), write + 8), (u64)i, (u64)i - 1);
        expect("next instruction again", next(0, write + DATA), (u64)i, (u64)i - 1);
    }
    return finish("memfd-dual-next");
}
