// A hart runs a block that stores to its own next instruction through an address at
// which another hart puts, in turn, private memory and a view of the block's own page.
// If the store meets the view, the instruction behind it must run new: code that was
// made while there was no view may not be running when there is one.

#include "rt.h"

enum { TURNS = 400, CODE = 64 };

static char *run, *at;
static int fd;
static u32 over, met;

static void put_there(int prot, int flags, int file) {
    checked(SYSCALL(SYS_mmap, at, PAGE, prot, flags | MAP_FIXED, file, 0), "mmap");
}

static void mapper(u32 index) {
    // On a busy machine the other hart may not have run at all yet.
    for (int turn = 0; turn < TURNS || (!load_acquire(&met) && turn < 100 * TURNS); turn++) {
        put_there(PROT_RW, MAP_SHARED, fd);
        for (int i = 0; i < 8; i++) SYSCALL(SYS_sched_yield);
        put_there(PROT_RW, MAP_PRIVATE | MAP_ANONYMOUS, -1);
        for (int i = 0; i < 4; i++) SYSCALL(SYS_sched_yield);
    }
    store_release(&over, 1);
}

int main(int argc, char **argv) {
    static hart other;
    fd = (int)checked(SYSCALL(SYS_memfd_create, "code", 0), "memfd_create");
    checked(SYSCALL(SYS_ftruncate, fd, PAGE), "ftruncate");
    run = (char *)checked(SYSCALL(SYS_mmap, 0, PAGE, PROT_RWX, MAP_SHARED, fd, 0), "mmap");
    at = (char *)map(PAGE, PROT_RW);
    u32 *code = (u32 *)(run + CODE), was = li_a0(0);
    store32(code, 0x00b52023); // sw a1, 0(a0)
    store32(code + 1, was);
    store32(code + 2, RET);
    flush_all_harts(run, PAGE);
    u64 (*patch)(void *, u32) = (u64 (*)(void *, u32))code;
    start_hart(&other, 0, mapper);
    for (u32 i = 1; !load_acquire(&over); i++) {
        u32 next = li_a0((int)(i % 1000));
        u64 got = patch(at + CODE + 4, next);
        // Only this hart stores there.
        u32 is = *(volatile u32 *)(code + 1);
        u64 want = is >> 20, stale = was >> 20;
        if (got != want) die(got == stale ? EXIT_STALE : EXIT_WRONG, "next instruction", got, want);
        if (is != was) store_release(&met, 1);
        was = is;
    }
    join_hart(&other);
    if (!met) die(EXIT_WRONG, "the view was never met", 0, 1);
    mix(TURNS);
    return finish("view-comes-and-goes");
}
