// A division by zero whose result nobody uses still raises its flag: a
// compiler that removes the dead division loses it.

#include "rt.h"

static inline u64 flags_after_dead_division(double a, double b) {
    u64 flags;
    __asm__ volatile("fsflags zero\n"
                     "fdiv.d ft0, %1, %2\n"
                     "fmv.d.x ft0, zero\n"
                     "frflags %0"
                     : "=r"(flags) : "f"(a), "f"(b) : "ft0");
    return flags;
}

static inline u64 flags_after_dead_single(float a, float b) {
    u64 flags;
    __asm__ volatile("fsflags zero\n"
                     "fdiv.s ft0, %1, %2\n"
                     "fmv.w.x ft0, zero\n"
                     "frflags %0"
                     : "=r"(flags) : "f"(a), "f"(b) : "ft0");
    return flags;
}

int main(int argc, char **argv) {
    for (int i = 0; i < WARM; i++) {
        expect_equal("1 / 0", flags_after_dead_division(1, 0), 0x08);
        expect_equal("0 / 0", flags_after_dead_division(0, 0), 0x10);
        expect_equal("1 / 3", flags_after_dead_division(1, 3), 0x01);
        expect_equal("6 / 3", flags_after_dead_division(6, 3), 0x00);
        expect_equal("1 / 0, single", flags_after_dead_single(1, 0), 0x08);
        expect_equal("overflow", flags_after_dead_division(1e308, 1e-308), 0x05);
    }
    return finish("dead-division");
}
