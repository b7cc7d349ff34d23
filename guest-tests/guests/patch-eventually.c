// A function is patched with no flush of any kind, and called until it is the
// new one: a store reaches instruction fetch in the end (Ziccid). Between the
// calls the hart leaves emulated code only to sleep.

#include "rt.h"

enum { SYS_nanosleep = 101, PATCHES = 5, NAPS = 250, NAP_NS = 20000000, CALLS = 1000 };

static u64 call_until(u32 *code, u64 want) {
    static const u64 nap[2] = {0, NAP_NS};
    for (int naps = 0;; naps++) {
        for (int i = 0; i < CALLS; i++) {
            u64 got = call(code, 0);
            if (got == want) return got;
            if (got != want - 1) die(EXIT_WRONG, "neither old nor new", got, want);
        }
        if (naps == NAPS) die(EXIT_STALE, "five seconds later", want - 1, want);
        SYSCALL(SYS_nanosleep, nap, 0);
    }
}

int main(int argc, char **argv) {
    u32 *code = map_code(1);
    write_constant(code, 1);
    flush_all_harts(code, 8);
    warm("before", code, 0, 1);
    for (u64 patch = 2; patch < 2 + PATCHES; patch++) {
        store32(code, li_a0((int)patch));
        expect("after the patch", call_until(code, patch), patch, patch - 1);
    }
    return finish("patch-eventually");
}
