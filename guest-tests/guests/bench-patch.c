// The cost of patching one instruction and calling it, with no flush:
//   bench-patch ITERATIONS

#include "bench.h"

int main(int argc, char **argv) {
    u64 n = iterations(argc, argv, 10000);
    u32 *code = map_code(1);
    write_constant(code, 0);
    flush_all_harts(code, 8);
    warm("before", code, 0, 0);
    u64 started = now_ns();
    for (u64 i = 1; i <= n; i++) {
        int value = (int)(i % 2047);
        store32(code, li_a0(value));
        u64 got = call(code, 0);
        if (got != (u64)value) die(EXIT_STALE, "patched", got, (u64)value);
    }
    return report("bench-patch", n, started);
}
