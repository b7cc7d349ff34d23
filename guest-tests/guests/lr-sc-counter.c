// Four harts count with LR/SC loops, words and doublewords: no add is lost.

#include "rt.h"

enum { HARTS = 4, ADDS = 5000 };
static u64 wide;
static u32 narrow;

static void run(u32 index) {
    for (int i = 0; i < ADDS; i++) {
        u64 t, failed;
        __asm__ volatile("1: lr.d.aqrl %0, (%2)\n  addi %0, %0, 3\n  sc.d.rl %1, %0, (%2)\n  bnez %1, 1b"
                         : "=&r"(t), "=&r"(failed) : "r"(&wide) : "memory");
        __asm__ volatile("1: lr.w.aq %0, (%2)\n  addiw %0, %0, 1\n  sc.w.aqrl %1, %0, (%2)\n  bnez %1, 1b"
                         : "=&r"(t), "=&r"(failed) : "r"(&narrow) : "memory");
    }
}

int main(int argc, char **argv) {
    static hart harts[HARTS];
    for (u32 i = 1; i < HARTS; i++) start_hart(&harts[i], i, run);
    run(0);
    for (u32 i = 1; i < HARTS; i++) join_hart(&harts[i]);
    expect_equal("doubleword", wide, 3 * HARTS * ADDS);
    expect_equal("word", narrow, HARTS * ADDS);
    // A store-conditional without a reservation fails and stores nothing.
    u64 failed, value = 5;
    __asm__ volatile("lr.d %0, (%1)\n  sc.d %0, zero, (%2)\n  sc.d %0, zero, (%1)" : "=&r"(failed) : "r"(&value), "r"(&wide) : "memory");
    expect_equal("without a reservation", failed != 0, 1);
    expect_equal("nothing stored", value, 5);
    return finish("lr-sc-counter");
}
