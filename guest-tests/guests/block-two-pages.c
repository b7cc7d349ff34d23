// One basic block lies on two pages. The argument says where it is patched:
// `first` page, `second` page, or both in turn without one.

#include "rt.h"

int main(int argc, char **argv) {
    int first = 1, second = 1;
    for (int i = 1; i < argc; i++) {
        if (same(argv[i], "first")) second = 0;
        if (same(argv[i], "second")) first = 0;
    }
    char *pages = map_code(2);
    u32 *block = (u32 *)(pages + PAGE) - 4;
    for (int i = 0; i < 8; i++) store32(block + i, addi(A0, A0, 1));
    store32(block + 8, RET);
    flush_all_harts(block, 36);
    warm("before", block, 100, 108);

    int on_first = 1, on_second = 1;
    for (int i = 0; i < 300; i++) {
        int was = on_first + on_second;
        if (first && (!second || i % 2 == 0)) store32(block + 1, addi(A0, A0, on_first = i + 2));
        if (second && (!first || i % 2 == 1)) store32(block + 6, addi(A0, A0, on_second = i + 2));
        flush_this_hart();
        expect("block on two pages", call(block, 100), 106 + (u64)(on_first + on_second), 106 + (u64)was);
    }
    return finish("block-two-pages");
}
