// Four harts count with every AMO that commutes; the totals must be exact, and
// a lock of amoswap protects a plain counter.

#include "rt.h"

enum { HARTS = 4, ADDS = 4000 };
static u64 added, xored, maximum, minimum = ~0ul >> 1, ored;
static u32 word, lock, plain;

#define AMO(op, at, v)                                                                              \
    ({                                                                                              \
        u64 old;                                                                                    \
        __asm__ volatile("amo" op " %0, %2, (%1)" : "=r"(old) : "r"(at), "r"((u64)(v)) : "memory"); \
        old;                                                                                        \
    })

static void run(u32 index) {
    for (u32 i = 0; i < ADDS; i++) {
        AMO("add.d", &added, i);
        AMO("add.w.aqrl", &word, 1);
        AMO("xor.d", &xored, (u64)1 << (i % 63));
        AMO("or.d", &ored, (u64)1 << (i % 50));
        AMO("max.d", &maximum, i * (index + 1));
        AMO("minu.d", &minimum, 1000 + i + index);
        while (AMO("swap.w.aq", &lock, 1)) SYSCALL(SYS_sched_yield);
        plain++;
        AMO("swap.w.rl", &lock, 0);
    }
}

int main(int argc, char **argv) {
    static hart harts[HARTS];
    for (u32 i = 1; i < HARTS; i++) start_hart(&harts[i], i, run);
    run(0);
    for (u32 i = 1; i < HARTS; i++) join_hart(&harts[i]);
    expect_equal("amoadd.d", added, (u64)HARTS * ADDS * (ADDS - 1) / 2);
    expect_equal("amoadd.w", word, HARTS * ADDS);
    expect_equal("amoxor.d", xored, 0);
    expect_equal("amoor.d", ored, ((u64)1 << 50) - 1);
    expect_equal("amomax.d", maximum, (ADDS - 1) * HARTS);
    expect_equal("amominu.d", minimum, 1000);
    expect_equal("under a lock", plain, HARTS * ADDS);
    return finish("amo-counter");
}
