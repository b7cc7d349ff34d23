// The cost of one store to data beside hot code, or with the flag `apart` to
// data on a page without code. `line` puts it in the code's own 64 bytes. The
// code is a loop that counts; with the flag `calls` it is a function that
// counts its calls:
//   bench-data ITERATIONS [calls] [apart | line]

#include "bench.h"

int main(int argc, char **argv) {
    u64 n = iterations(argc, argv, 100000);
    int calls = has_flag(argc, argv, "calls");
    char *page = map_code(2);
    static const u32 loop[] = {
        0x00053283, // ld   t0, 0(a0)
        0x00128293, // addi t0, t0, 1
        0x00553023, // sd   t0, 0(a0)
        0xfff58593, // addi a1, a1, -1
        0xfe0598e3, // bnez a1, -16
        RET,
    };
    static const u32 counter[] = {
        0x00053283, // ld   t0, 0(a0)
        0x00128293, // addi t0, t0, 1
        0x00553023, // sd   t0, 0(a0)
        0x00329513, // slli a0, t0, 3
        0x40550533, // sub  a0, a0, t0
        RET,
    };
    for (int i = 0; i < 6; i++) store32(page + 4 * i, calls ? counter[i] : loop[i]);
    flush_all_harts(page, PAGE);
    char *at = page + (has_flag(argc, argv, "apart") ? PAGE : has_flag(argc, argv, "line") ? 40 : 2048);
    u64 started = now_ns();
    if (calls) {
        for (u64 i = 1; i <= n; i++) {
            u64 got = call(page, (u64)at);
            if (got != 7 * i) die(EXIT_WRONG, "calls, seven times", got, 7 * i);
        }
    } else {
        ((void (*)(char *, u64))page)(at, n);
    }
    if (*(u64 *)at != n) die(EXIT_WRONG, "counter", *(u64 *)at, n);
    return report(calls ? "bench-data calls" : "bench-data", n, started);
}
