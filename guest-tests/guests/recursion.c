// Deep and hot recursion: returns are indirect jumps to many places.

#include "rt.h"

__attribute__((noinline)) static u64 fib(u64 n) { return n < 2 ? n : fib(n - 1) + fib(n - 2); }
__attribute__((noinline)) static u64 ackermann(u64 m, u64 n) {
    if (m == 0) return n + 1;
    if (n == 0) return ackermann(m - 1, 1);
    return ackermann(m - 1, ackermann(m, n - 1));
}

int main(int argc, char **argv) {
    expect_equal("fib", fib(18), 2584);
    expect_equal("ackermann", ackermann(2, 60), 123);
    return finish("recursion");
}
