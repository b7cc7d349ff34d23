// Code, data beside it and patches on one page. Stores to the data come first,
// so that whoever tracks writes may have stopped protecting the page; the patches
// after them must be seen all the same: in a function that is called, in one that
// is linked to from another page, and behind a store in the running block.

#include "rt.h"

enum { ROUNDS = 300, DATA = 2048, LINK = 256, NEXT = 512 };

int main(int argc, char **argv) {
    char *page = map_code(2), *away = page + PAGE;
    u64 *data = (u64 *)(page + DATA);
    write_constant((u32 *)page, 0);
    // A caller on another page, by a direct jump.
    store32(away, jal(ZERO, page + LINK - away));
    write_constant((u32 *)(page + LINK), 0);
    // next(insn, at): stores `insn` at `at` and runs into the instruction behind.
    u32 *next = (u32 *)(page + NEXT);
    store32(next, 0x00a5a023); // sw a0, 0(a1)
    store32(next + 1, without_flush ? NOP : FENCE_I);
    store32(next + 2, li_a0(0));
    store32(next + 3, RET);
    flush_all_harts(page, 2 * PAGE);
    u64 (*run_next)(u32, void *) = (u64 (*)(u32, void *))next;

    for (int i = 0; i < WARM; i++) {
        store64(data + i % 256, (u64)i);
        expect_equal("before", call(page, 0) + call(away, 0) + run_next(li_a0(0), data + 8), 0);
    }
    for (int i = 1; i <= ROUNDS; i++) {
        store64(data + i % 256, (u64)i);
        store32(page, li_a0(i));
        flush_all_harts(page, 4);
        expect("called", call(page, 0), (u64)i, (u64)i - 1);
        store32(page + LINK, li_a0(i + 1));
        flush_all_harts(page + LINK, 4);
        expect("linked", call(away, 0), (u64)i + 1, i == 1 ? 0 : (u64)i);
        expect("next instruction", run_next(li_a0(i + 2), next + 2), (u64)i + 2, i == 1 ? 0 : (u64)i + 1);
        expect("next instruction again", run_next(0, data + 8), (u64)i + 2, i == 1 ? 0 : (u64)i + 1);
    }
    return finish("patch-beside-data");
}
