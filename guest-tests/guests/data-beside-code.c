// A hot loop counts in data of its own page, then in data of its own 64-byte
// line. No code changes, so no tracking mode may give another result.

#include "rt.h"

// count(counter, n): adds 1, 2, ... n to *counter, one store each.
static u32 *write_counter_loop(u32 *at) {
    u32 insns[] = {
        0x00053283, // ld   t0, 0(a0)
        0x00b282b3, // add  t0, t0, a1
        0x00553023, // sd   t0, 0(a0)
        0xfff58593, // addi a1, a1, -1
        0xfe0598e3, // bnez a1, -16
        RET,
    };
    for (int i = 0; i < 6; i++) store32(at + i, insns[i]);
    return at;
}

int main(int argc, char **argv) {
    char *page = map_code(1);
    void (*loop)(u64 *, u64) = (void (*)(u64 *, u64))write_counter_loop((u32 *)page);
    u64 *same_line = (u64 *)(page + 32), *same_page = (u64 *)(page + 2048), *end = (u64 *)(page + PAGE - 8);
    flush_all_harts(page, PAGE);
    u64 *counters[] = {same_page, end, same_line};
    for (int c = 0; c < 3; c++) {
        for (u64 n = 1; n <= 100; n++) {
            loop(counters[c], n);
            mix(*counters[c]);
        }
        expect_equal("counter", *counters[c], 100 * 101 * 102 / 6);
    }
    return finish("data-beside-code");
}
