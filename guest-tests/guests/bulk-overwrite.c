// Pages full of functions are overwritten as a whole, by memcpy, by eight-byte
// stores and by single bytes; every function is called before and after.

#include "rt.h"

enum { PAGES = 8, PER_PAGE = PAGE / 64, FUNCTIONS = PAGES * PER_PAGE };

static int value_of(int version, int index) { return (version * 397 + index * 3) % 2000; }

static void fill(char *to, int version) {
    for (int i = 0; i < FUNCTIONS; i++) {
        u32 *f = (u32 *)(to + i * 64);
        for (int pad = 0; pad < 16; pad++) store32(f + pad, NOP);
        write_constant(f + 2, value_of(version, i));
    }
}

int main(int argc, char **argv) {
    char *code = map_code(PAGES), *fresh = map(PAGES * PAGE, PROT_RW);
    fill(code, 0);
    flush_all_harts(code, PAGES * PAGE);
    for (int i = 0; i < FUNCTIONS; i++) {
        for (int again = 0; again < WARM / 100; again++) {
            expect_equal("before", call(code + i * 64, 0), (u64)value_of(0, i));
        }
    }
    for (int version = 1; version <= 6; version++) {
        fill(fresh, version);
        if (version % 3 == 0) {
            memcpy(code, fresh, PAGES * PAGE);
        } else if (version % 3 == 1) {
            for (u64 at = 0; at < PAGES * PAGE; at += 8) store64(code + at, *(u64 *)(fresh + at));
        } else {
            for (u64 at = 0; at < PAGES * PAGE; at++) store8(code + at, (u8)fresh[at]);
        }
        flush_all_harts(code, PAGES * PAGE);
        for (int i = 0; i < FUNCTIONS; i++) {
            expect("overwritten", call(code + i * 64, 0), (u64)value_of(version, i), (u64)value_of(version - 1, i));
        }
    }
    return finish("bulk-overwrite");
}
