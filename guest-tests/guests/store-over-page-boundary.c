// One eight-byte store patches the last instruction of a page and the first
// of the next; then one four-byte store patches an instruction that itself
// lies on both pages.

#include "rt.h"

int main(int argc, char **argv) {
    char *pages = map_code(4);
    u32 *block = (u32 *)(pages + PAGE) - 2;
    for (int i = 0; i < 4; i++) store32(block + i, addi(A0, A0, 1));
    store32(block + 4, RET);
    // Two bytes before the boundary: addi over both pages, then ret.
    char *straddling = pages + 3 * PAGE - 2;
    store32(straddling, addi(A0, A0, 1));
    store32(straddling + 4, RET);
    flush_all_harts(pages, 4 * PAGE);
    warm("two instructions", block, 10, 14);
    warm("one instruction", straddling, 10, 11);

    u64 before = 14, before_straddling = 11;
    for (int i = 2; i < 300; i++) {
        store64(block + 1, (u64)addi(A0, A0, 3 * i) << 32 | addi(A0, A0, i));
        store32(straddling, addi(A0, A0, 5 * i));
        flush_this_hart();
        u64 want = 12 + 4 * (u64)i, want_straddling = 10 + 5 * (u64)i;
        expect("two instructions", call(block, 10), want, before);
        expect("one instruction", call(straddling, 10), want_straddling, before_straddling);
        before = want;
        before_straddling = want_straddling;
    }
    return finish("store-over-page-boundary");
}
