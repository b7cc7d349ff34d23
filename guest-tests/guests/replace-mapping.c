// A mapping is replaced while other harts run code there, load from it, and have the
// kernel read and write it: each of them meets the old mapping or the new one, as
// the replacement is one step. No signal is handled, so that a fault ends the guest.

#include "rt.h"

enum { SYS_mremap = 216, MREMAP_MAYMOVE = 1, MREMAP_FIXED = 2 };
enum { RUNNERS = 4, ROUNDS = 40, OLD = 11, NEW = 22 };
// Words of the page: a value like the code's, and one for the kernel to write.
enum { DATA = 64, SCRATCH = 512, WORDS = PAGE / 4 };

static u32 *page;
static i64 file[2];
static u32 over, rounds[RUNNERS];

static void check(const char *what, u64 got) {
    if (got != OLD && got != NEW) die(EXIT_WRONG, what, got, NEW);
}

static void run(u32 index) {
    u32 ends[2], word = 0;
    checked(SYSCALL(SYS_pipe2, ends, 0), "pipe2");
    for (u32 round = 1; !load_acquire(&over); round++) {
        switch (index) {
        case 0:
            flush_this_hart();
            check("code", call(page, 0));
            break;
        case 1:
            for (int i = 0; i < 64; i++) check("a load", ((volatile u32 *)page)[DATA]);
            break;
        case 2:
            checked(SYSCALL(SYS_write, ends[1], page + DATA, 4), "a write of its bytes");
            checked(SYSCALL(SYS_read, ends[0], &word, 4), "read");
            check("what the kernel reads", word);
            break;
        default:
            checked(SYSCALL(SYS_write, ends[1], &round, 4), "write");
            checked(SYSCALL(SYS_read, ends[0], page + SCRATCH, 4), "a read into it");
            ((volatile u32 *)page)[SCRATCH + 1] = round;
        }
        store_release(&rounds[index], round);
    }
}

static void fill(u32 *at, int number) {
    write_constant(at, number);
    at[DATA] = (u32)number;
}

// Replaces the page by one of `number`, in the way of this round.
static void replace(u32 round, int number) {
    i64 fd = file[number == NEW], at;
    if (round % 3 == 2) {
        void *other = map(PAGE, PROT_RWX);
        fill(other, number);
        at = SYSCALL(SYS_mremap, other, PAGE, PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, page);
    } else {
        int flags = round % 3 ? MAP_SHARED : MAP_PRIVATE;
        at = SYSCALL(SYS_mmap, page, PAGE, PROT_RWX, flags | MAP_FIXED, fd, 0);
    }
    expect_equal("the same address", (u64)checked(at, "replace") == (u64)page, 1);
}

int main(int argc, char **argv) {
    static hart harts[RUNNERS];
    static u32 contents[WORDS];
    for (int i = 0; i < 2; i++) {
        fill(contents, i ? NEW : OLD);
        file[i] = checked(SYSCALL(SYS_memfd_create, "file", 0), "memfd_create");
        checked(SYSCALL(SYS_write, file[i], contents, PAGE), "write");
    }
    page = map_code(1);
    fill(page, OLD);
    flush_all_harts(page, PAGE);
    warm("before", page, 0, OLD);
    for (u32 i = 0; i < RUNNERS; i++) start_hart(&harts[i], i, run);
    for (u32 round = 0; round < ROUNDS; round++) {
        int number = round / 3 % 2 ? OLD : NEW;
        u32 before[RUNNERS];
        for (u32 i = 0; i < RUNNERS; i++) before[i] = load_acquire(&rounds[i]);
        replace(round, number);
        flush_all_harts(page, PAGE);
        expect("the replacing hart", call(page, 0), (u64)number, number == OLD ? NEW : OLD);
        expect_equal("its load", page[DATA], (u64)number);
        for (u32 i = 0; i < RUNNERS; i++) wait_at_least(&rounds[i], before[i] + 1, "runner");
    }
    store_release(&over, 1);
    for (u32 i = 0; i < RUNNERS; i++) join_hart(&harts[i]);
    return finish("replace-mapping");
}
