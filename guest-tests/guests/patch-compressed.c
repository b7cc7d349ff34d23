// A two-byte instruction is patched by a two-byte store, and a four-byte one
// that is not aligned to four by two-byte stores of its halves.

#include "rt.h"

// c.li a0, value (six bits, signed)
static u16 c_li_a0(int value) { return (u16)(0x4000 | (value >> 5 & 1) << 12 | A0 << 7 | (value & 31) << 2 | 1); }
enum { C_RET = 0x8082 };

int main(int argc, char **argv) {
    u16 *code = map_code(1);
    store16(code, c_li_a0(0));
    store16(code + 1, C_RET);
    // At code + 9, two bytes off: addi a0, a0, 0; c.ret
    u16 *odd = code + 9;
    store16(odd, (u16)addi(A0, A0, 0));
    store16(odd + 1, (u16)(addi(A0, A0, 0) >> 16));
    store16(odd + 2, C_RET);
    flush_all_harts(code, 64);
    warm("c.li", code, 0, 0);
    warm("addi", odd, 5, 5);
    for (int i = 1; i < 32; i++) {
        store16(code, c_li_a0(i));
        flush_this_hart();
        expect("c.li", call(code, 0), (u64)i, (u64)i - 1);
        store16(odd + 1, (u16)(addi(A0, A0, i * 11) >> 16));
        flush_this_hart();
        expect("addi", call(odd, 5), 5 + (u64)i * 11, 5 + ((u64)i - 1) * 11);
    }
    return finish("patch-compressed");
}
