// One call site with many targets, and many call sites with one target.

#include "rt.h"

#define F(n) \
    __attribute__((noinline)) static u64 f##n(u64 x) { return x * (2 * n + 3) + n; }
F(0) F(1) F(2) F(3) F(4) F(5) F(6) F(7)
static function volatile table[] = {f0, f1, f2, f3, f4, f5, f6, f7};

int main(int argc, char **argv) {
    u64 x = 1, y = 1;
    for (u64 i = 0; i < 20000; i++) {
        u64 n = (x >> 7) % 8;
        x = table[n](x);
        y = y * (2 * n + 3) + n;
        if (i % 100 == 0) expect_equal("indirect call", x, y);
    }
    return finish("indirect-calls");
}
