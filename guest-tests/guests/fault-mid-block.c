// A load or a store faults in the middle of a hot block, or after many rounds
// of a hot loop that only loads. The handler must see the exact pc, the
// registers as the instructions before have left them and none of what comes
// after, and may resume elsewhere.

#include "rt.h"

// block(address, x): x3 and so on are set before the access and after it.
u64 load_block(void *at, u64 x);
u64 store_block(void *at, u64 x);
// Adds and counts words until one is `last`.
u64 sum_until(void *at, u64 last);
extern char faulting_load[], faulting_store[], faulting_walk[], resumed[];
__asm__(".text\n.balign 64\n.option push\n.option norvc\n"
        ".globl load_block\nload_block:\n"
        "  addi t0, a1, 11\n  slli t1, a1, 4\n  li t2, -5\n  li a5, 99\n"
        "faulting_load: ld a5, 16(a0)\n"
        "  addi t0, t0, 1000\n  addi t1, t1, 1000\n  li t2, 0\n"
        "  add a0, t0, t1\n  ret\n"
        ".globl store_block\nstore_block:\n"
        "  addi t0, a1, 11\n  slli t1, a1, 4\n  li t2, -5\n  li a5, 99\n"
        "faulting_store: sw t0, 16(a0)\n"
        "  addi t0, t0, 1000\n  addi t1, t1, 1000\n  li t2, 0\n"
        "  add a0, t0, t1\n  ret\n"
        ".globl sum_until\nsum_until:\n"
        "  li t0, 0\n  li t1, 0\n  li t2, 0\n  li a5, 99\n"
        "faulting_walk: ld t2, 0(a0)\n"
        "  addi t1, t1, 1\n  add t0, t0, t2\n  beq t2, a1, 1f\n"
        "  addi a0, a0, 8\n  j faulting_walk\n"
        "1: add a0, t0, t1\n  ret\n"
        "resumed: sub a0, t1, t0\n  add a0, a0, a5\n  ret\n"
        ".option pop\n");

enum { SIGSEGV = 11, SA_SIGINFO = 4, SEGV_MAPERR = 1, SEGV_ACCERR = 2 };
static char *want_pc;
static u64 want_addr, want_x, want_t0, want_t1, want_t2, want_code;
static int faults;

typedef struct {
    int signo, err, code, pad;
    u64 addr;
} siginfo;

static void handler(int signo, siginfo *info, char *ucontext) {
    // struct ucontext: flags, link, stack, mask and its reserve, then pc, x1 ... x31
    u64 *regs = (u64 *)(ucontext + 176);
    expect_equal("signal", (u64)signo, SIGSEGV);
    expect_equal("si_code", (u64)info->code, want_code);
    if (info->addr != want_addr) die(EXIT_WRONG, "si_addr", info->addr, want_addr);
    if (regs[0] != (u64)want_pc) die(EXIT_WRONG, "pc", regs[0], (u64)want_pc);
    expect_equal("t0", regs[5], want_t0);
    expect_equal("t1", regs[6], want_t1);
    expect_equal("t2", regs[7], want_t2);
    expect_equal("a5", regs[15], 99);
    expect_equal("a1", regs[11], want_x);
    faults++;
    regs[15] = 12345;
    regs[0] = (u64)resumed;
}

static void fault(u64 (*block)(void *, u64), char *pc, char *at, u64 code, u64 x) {
    want_pc = pc;
    want_addr = (u64)at + 16;
    want_x = x;
    want_t0 = x + 11;
    want_t1 = x << 4;
    want_t2 = (u64)-5;
    want_code = code;
    expect_equal("resumed", block(at, x), want_t1 - want_t0 + 12345);
}

enum { WORDS = PAGE / sizeof(u64) };

// Walks over the end of a page of the words 0, 1 and so on, from the first word.
static void fault_in_walk(u64 *words, u64 first) {
    want_pc = faulting_walk;
    want_addr = (u64)(words + WORDS);
    want_x = WORDS;
    want_t0 = (WORDS - 1) * WORDS / 2 - first * (first - 1) / 2;
    want_t1 = WORDS - first;
    want_t2 = WORDS - 1;
    want_code = SEGV_MAPERR;
    expect_equal("resumed walk", sum_until(words + first, WORDS), want_t1 - want_t0 + 12345);
}

int main(int argc, char **argv) {
    struct {
        void *handler;
        u64 flags, mask;
    } action = {handler, SA_SIGINFO, 0};
    checked(SYSCALL(SYS_rt_sigaction, SIGSEGV, &action, 0, 8), "rt_sigaction");
    char *data = map(PAGE, PROT_RW), *closed = map(PAGE, PROT_NONE), *fixed = map(PAGE, PROT_READ), *gone = map(PAGE, PROT_RW);
    checked(SYSCALL(SYS_munmap, gone, PAGE), "munmap");
    for (u64 i = 0; i < WARM; i++) {
        expect_equal("load", load_block(data, i), i + 11 + (i << 4) + 2000);
        expect_equal("store", store_block(data, i), i + 11 + (i << 4) + 2000);
    }
    for (u64 i = 0; i < 50; i++) {
        fault(load_block, faulting_load, gone, SEGV_MAPERR, i);
        fault(load_block, faulting_load, closed, SEGV_ACCERR, i);
        fault(load_block, faulting_load, (char *)0, SEGV_MAPERR, i);
        fault(store_block, faulting_store, gone, SEGV_MAPERR, i);
        fault(store_block, faulting_store, fixed, SEGV_ACCERR, i);
        fault(store_block, faulting_store, closed, SEGV_ACCERR, i);
    }
    u64 *words = (u64 *)map(2 * PAGE, PROT_RW);
    for (u64 i = 0; i < WORDS; i++) words[i] = i;
    checked(SYSCALL(SYS_munmap, words + WORDS, PAGE), "munmap");
    for (u64 i = 0; i < WARM; i++) {
        u64 last = WORDS - 1 - i % 8;
        expect_equal("sum", sum_until(words, last), last * (last + 1) / 2 + last + 1);
    }
    for (u64 first = 1; first < WORDS; first += 10) fault_in_walk(words, first);
    expect_equal("faults", (u64)faults, 300 + (WORDS + 8) / 10);
    return finish("fault-mid-block");
}
