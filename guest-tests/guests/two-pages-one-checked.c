// One basic block lies on two pages, and data is stored beside it on one of them
// only: on the second, or with `first` on the first. The block is patched on both
// in turn, and by stores that begin on the other page.

#include "rt.h"

int main(int argc, char **argv) {
    int on_first = 0;
    for (int i = 1; i < argc; i++) on_first |= same(argv[i], "first");
    char *pages = map_code(2);
    // 4 instructions on the first page, and the first half of one.
    u8 *block = (u8 *)(pages + PAGE) - 18;
    u64 *data = (u64 *)(pages + (on_first ? 1024 : PAGE + 1024));
    u32 code[9];
    for (int i = 0; i < 8; i++) code[i] = addi(A0, A0, 1);
    code[8] = RET;
    for (int i = 0; i < 18; i++) store16(block + 2 * i, ((u16 *)code)[i]);
    flush_all_harts(block, 36);
    for (int i = 0; i < WARM; i++) {
        store64(data + i % 64, (u64)i);
        expect_equal("before", call(block, 100), 108);
    }
    u64 was = 108;
    for (int i = 2; i < 302; i++) {
        store64(data + i % 64, (u64)i);
        // The one that is on both pages among them.
        int which = i % 8;
        code[which] = addi(A0, A0, i);
        store16(block + 4 * which, (u16)code[which]);
        store16(block + 4 * which + 2, (u16)(code[which] >> 16));
        flush_this_hart();
        u64 want = 100;
        for (int k = 0; k < 8; k++) want += code[k] >> 20;
        expect("block on two pages", call(block, 100), want, was);
        was = want;
    }
    return finish("two-pages-one-checked");
}
