// One hart overwrites an instruction, both of its halves, with single stores while
// two others fetch it without pause: an aligned instruction is fetched whole, as it
// was or as it is (Ziccif). Behind a FENCE.I a hart runs nothing older than before.

#include "rt.h"

enum { RUNNERS = 2, VERSIONS = 60000 };
static u32 *code;
static u32 stored, over, started[RUNNERS];

// lui a0, v: v lies in both halves of the instruction.
static u32 version(u32 number) { return ((number * 8 - 1) & 0x7ffff) << 12 | A0 << 7 | 0x37; }
static u64 value(u32 number) { return (u64)(version(number) >> 12) << 12; }

static void run(u32 index) {
    u64 newest = value(1);
    store_release(&started[index], 1);
    while (!load_acquire(&over)) {
        flush_this_hart();
        u64 got = call(code, 0), known = value(load_acquire(&stored));
        if ((got >> 12) % 8 != 7 || got > known) die(EXIT_WRONG, "never stored", got, known);
        if (got < newest) die(EXIT_STALE, "older than the last call", got, newest);
        newest = got;
    }
}

int main(int argc, char **argv) {
    static hart harts[RUNNERS];
    code = map_code(1);
    store32(code, version(1));
    store32(code + 1, RET);
    flush_all_harts(code, 8);
    heat("before", code, 0, value(1));
    store_release(&stored, 1);
    for (u32 i = 0; i < RUNNERS; i++) start_hart(&harts[i], i, run);
    for (u32 i = 0; i < RUNNERS; i++) wait_at_least(&started[i], 1, "start");
    for (u32 number = 2; number <= VERSIONS; number++) {
        // Known before it can run.
        store_release(&stored, number);
        store32(code, version(number));
        for (u32 i = 0; i < 40; i++) __asm__ volatile("nop");
    }
    store_release(&over, 1);
    for (u32 i = 0; i < RUNNERS; i++) join_hart(&harts[i]);
    flush_all_harts(code, 4);
    u64 got = call(code, 0), last = value(VERSIONS);
    // Any version that was stored before is stale.
    expect("the last version", got, last, (got >> 12) % 8 == 7 && got < last ? got : value(1));
    return finish("patch-both-halves");
}
