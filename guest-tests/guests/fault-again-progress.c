// A hot loop of loads reads a page that another hart closes again and again,
// as a virtual machine closes the page that its threads poll when it wants
// them to stop. The handler opens the page, and the load is made again. The
// loop must come to its end: no fault may set it back by more than a moment,
// each time.

#include "rt.h"

// Loads from `page` so many times; returns the count.
u64 poll_for(void *page, u64 rounds);
__asm__(".text\n.globl poll_for\npoll_for:\n"
        "  li t0, 0\n"
        "1: ld t1, 0(a0)\n"
        "  addi t0, t0, 1\n"
        "  bne t0, a1, 1b\n"
        "  mv a0, t0\n  ret\n");

enum { SIGSEGV = 11, LOOP_NS = 20000000, PAUSE_NS = 1000000, FAULTS = 20, FAULTS_MOST = 1000 };
static char *page;
static u32 is_over;
static u64 faults;

static void handler(int signo) {
    checked(SYSCALL(SYS_mprotect, page, PAGE, PROT_RW), "mprotect");
    u64 now = __atomic_add_fetch(&faults, 1, __ATOMIC_SEQ_CST);
    if (now > FAULTS_MOST) die(EXIT_HUNG, "faults", now, FAULTS_MOST);
}

// Closes the page some time after it was opened, much sooner than the loop can end.
static void close_again(u32 index) {
    while (!__atomic_load_n(&is_over, __ATOMIC_SEQ_CST)) {
        u64 before = __atomic_load_n(&faults, __ATOMIC_SEQ_CST), start = now_ns();
        while (now_ns() - start < PAUSE_NS) SYSCALL(SYS_sched_yield);
        checked(SYSCALL(SYS_mprotect, page, PAGE, PROT_NONE), "mprotect");
        while (__atomic_load_n(&faults, __ATOMIC_SEQ_CST) == before && !__atomic_load_n(&is_over, __ATOMIC_SEQ_CST)) {
            SYSCALL(SYS_sched_yield);
        }
    }
}

int main(int argc, char **argv) {
    struct {
        void *handler;
        u64 flags, mask;
    } action = {handler, 0, 0};
    checked(SYSCALL(SYS_rt_sigaction, SIGSEGV, &action, 0, 8), "rt_sigaction");
    page = map(PAGE, PROT_RW);
    // Until it runs in the last tier.
    expect_equal("warm", poll_for(page, 2 * HOT), 2 * HOT);
    u64 start = now_ns();
    expect_equal("warm again", poll_for(page, 2 * HOT), 2 * HOT);
    u64 rounds = LOOP_NS * (u64)(2 * HOT) / (now_ns() - start);
    hart other;
    start_hart(&other, 1, close_again);
    while (__atomic_load_n(&faults, __ATOMIC_SEQ_CST) < FAULTS) {
        u64 done = poll_for(page, rounds);
        if (done != rounds) die(EXIT_WRONG, "rounds", done, rounds);
    }
    __atomic_store_n(&is_over, 1, __ATOMIC_SEQ_CST);
    join_hart(&other);
    return finish("fault-again-progress");
}
