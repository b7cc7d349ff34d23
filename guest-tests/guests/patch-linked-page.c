// Many blocks on a page are linked to each other and from other pages; one of
// them is patched at a time, and every way in must reach the new version.

#include "rt.h"

enum { BLOCKS = 48, CALLERS = 8 };

int main(int argc, char **argv) {
    char *pages = map_code(1 + CALLERS);
    u64 constants[BLOCKS];
    // Block i adds its constant and jumps to block i + 1; the last returns.
    for (int i = 0; i < BLOCKS; i++) {
        u32 *b = (u32 *)(pages + i * 80);
        constants[i] = (u64)i;
        store32(b, addi(A0, A0, i));
        store32(b + 1, i + 1 < BLOCKS ? jal(ZERO, 76) : RET);
    }
    // A caller on each further page jumps into the middle.
    for (int c = 0; c < CALLERS; c++) {
        u32 *b = (u32 *)(pages + (c + 1) * PAGE);
        store32(b, addi(A0, A0, 1));
        store32(b + 1, jal(ZERO, (pages + c * 6 * 80) - (char *)(b + 1)));
    }
    flush_all_harts(pages, (1 + CALLERS) * PAGE);
    for (int round = -20; round < 3 * BLOCKS; round++) {
        if (round >= 0) {
            int i = round * 29 % BLOCKS;
            constants[i] += 100;
            store32(pages + i * 80, addi(A0, A0, (int)constants[i]));
            flush_this_hart();
        }
        for (int again = 0; again < (round < 0 ? WARM / 40 : 2); again++) {
            for (int c = 0; c < CALLERS; c++) {
                u64 want = 1;
                for (int i = c * 6; i < BLOCKS; i++) want += constants[i];
                expect("through links", call(pages + (c + 1) * PAGE, 0), want, want - 100);
            }
        }
    }
    return finish("patch-linked-page");
}
