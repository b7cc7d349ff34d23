// Flags are read, cleared and written between operations: each read sees the
// operations before it and no other. And what NaN boxing and the canonical
// NaN must look like.

#include "rt.h"

static inline u64 sequence(double tiny, double one, double three, double inf) {
    u64 a, b, c, d;
    __asm__ volatile("fsflags zero\n"
                     "fmul.d ft0, %4, %4\n" // underflow, inexact
                     "fsflags %0, zero\n"
                     "fadd.d ft1, %5, %5\n" // exact
                     "frflags %1\n"
                     "fdiv.d ft2, %5, %6\n" // inexact
                     "frflags %2\n"
                     "fsub.d ft3, %7, %7\n" // invalid
                     "fsflags %3, zero\n"
                     : "=&r"(a), "=&r"(b), "=&r"(c), "=&r"(d)
                     : "f"(tiny), "f"(one), "f"(three), "f"(inf)
                     : "ft0", "ft1", "ft2", "ft3");
    return a << 24 | b << 16 | c << 8 | d;
}

static inline u64 boxing(u64 bits, float two) {
    u64 out;
    // An improperly boxed single counts as the canonical NaN.
    __asm__ volatile("fmv.d.x ft0, %1\n  fadd.s ft1, ft0, %2\n  fmv.x.d %0, ft1" : "=r"(out) : "r"(bits), "f"(two) : "ft0", "ft1");
    return out;
}

int main(int argc, char **argv) {
    double inf = 1e308 * 10;
    for (int i = 0; i < WARM; i++) {
        expect_equal("flags", sequence(1e-200, 1, 3, inf), 0x03000111);
        expect_equal("boxed", boxing(0xffffffff3f800000, 2), 0xffffffff40400000);
        expect_equal("not boxed", boxing(0x000000003f800000, 2), 0xffffffff7fc00000);
        expect_equal("NaN payload", boxing(0xffffffff7fc12345, 2), 0xffffffff7fc00000);
    }
    return finish("fp-flags-order");
}
