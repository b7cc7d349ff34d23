// The cost of patching one instruction and calling it, with no flush; with the
// flag `empty` the word is stored to data:
//   bench-patch ITERATIONS [empty]

#include "bench.h"

int main(int argc, char **argv) {
    u64 n = iterations(argc, argv, 10000);
    int empty = has_flag(argc, argv, "empty");
    u32 *code = map_code(1), *to = empty ? (u32 *)map(PAGE, PROT_RW) : code;
    write_constant(code, 0);
    flush_all_harts(code, 8);
    warm("before", code, 0, 0);
    u64 started = now_ns();
    for (u64 i = 1; i <= n; i++) {
        u64 value = i % 2047, want = empty ? 0 : value;
        store32(to, li_a0((int)value));
        u64 got = call(code, 0);
        if (got != want) die(EXIT_STALE, "patched", got, want);
    }
    return report("bench-patch", n, started);
}
