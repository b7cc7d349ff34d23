// The same operation under each dynamic rounding mode and each static one,
// hot: a compiler that folds or moves it rounds wrongly.

#include "rt.h"

static inline u64 bits(double d) {
    u64 b;
    __asm__("fmv.x.d %0, %1" : "=r"(b) : "f"(d));
    return b;
}

static inline u64 dynamic_div(u64 mode, double a, double b) {
    double r;
    __asm__ volatile("fsrm zero, %3\n  fdiv.d %0, %1, %2\n  fsrmi 0" : "=f"(r) : "f"(a), "f"(b), "r"(mode));
    return bits(r);
}

// Two operations on the same operands with a change of mode in between.
static inline void between(double a, double b, u64 *up, u64 *down) {
    double r, s;
    __asm__ volatile("fsrmi 3\n  fadd.d %0, %2, %3\n  fsrmi 2\n  fadd.d %1, %2, %3\n  fsrmi 0"
                     : "=&f"(r), "=&f"(s) : "f"(a), "f"(b));
    *up = bits(r);
    *down = bits(s);
}

#define STATIC_CONVERT(mode, value)                                                   \
    ({                                                                                \
        i64 to;                                                                       \
        __asm__ volatile("fcvt.l.d %0, %1, " mode : "=r"(to) : "f"((double)(value))); \
        (u64)to;                                                                      \
    })

int main(int argc, char **argv) {
    static const u64 third[] = {0x3fd5555555555555, 0x3fd5555555555555, 0x3fd5555555555555, 0x3fd5555555555556,
                                0x3fd5555555555555};
    static const u64 minus_third[] = {0xbfd5555555555555, 0xbfd5555555555555, 0xbfd5555555555556, 0xbfd5555555555555,
                                      0xbfd5555555555555};
    for (int i = 0; i < WARM; i++) {
        for (u64 mode = 0; mode < 5; mode++) {
            expect_equal("1 / 3", dynamic_div(mode, 1, 3), third[mode]);
            expect_equal("-1 / 3", dynamic_div(mode, -1, 3), minus_third[mode]);
        }
        u64 up, down;
        between(1, 1e-30, &up, &down);
        expect_equal("rounded up", up, 0x3ff0000000000001);
        expect_equal("rounded down", down, 0x3ff0000000000000);
        expect_equal("rne", STATIC_CONVERT("rne", 2.5), 2);
        expect_equal("rtz", STATIC_CONVERT("rtz", -2.5), (u64)-2);
        expect_equal("rdn", STATIC_CONVERT("rdn", -2.5), (u64)-3);
        expect_equal("rup", STATIC_CONVERT("rup", 2.5), 3);
        expect_equal("rmm", STATIC_CONVERT("rmm", 2.5), 3);
    }
    return finish("fp-rounding-modes");
}
