// A function is overwritten with the very bytes that it has, and turns to and
// fro between two versions: a translation may be used again when its bytes
// come back, and must not be when they do not.

#include "rt.h"

int main(int argc, char **argv) {
    u32 *code = map_code(1);
    write_constant(code, 5);
    flush_this_hart();
    warm("before", code, 0, 5);
    for (int i = 0; i < 200; i++) {
        write_constant(code, 5);
        flush_this_hart();
        expect_equal("identical bytes", call(code, 0), 5);
    }
    u64 before = 5;
    for (int i = 0; i < 300; i++) {
        int value = i % 7 == 6 ? 100 + i : i % 2 ? 5 : 6;
        store32(code, li_a0(value));
        flush_this_hart();
        expect("two versions", call(code, 0), (u64)value, before);
        before = (u64)value;
    }
    return finish("identical-rewrite");
}
