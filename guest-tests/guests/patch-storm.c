// One instruction is patched before each call, thousands of times; then it rests
// for longer than a tracker may go on suspecting it, and is patched again, both
// once in a while and in a storm.

#include "rt.h"

enum { SYS_nanosleep = 101, STORM = 3000, REST_MS = 450 };

static u32 *code;
static int value;

static void patch(void) {
    int was = value;
    value = was % 2000 + 1;
    store32(code, li_a0(value));
    flush_this_hart();
    expect("patched", call(code, 0), (u64)value, (u64)was);
}

static void call_often(void) {
    for (int i = 0; i < WARM; i++) expect_equal("unchanged", call(code, 0), (u64)value);
}

int main(int argc, char **argv) {
    code = (u32 *)map_code(1);
    write_constant(code, 0);
    flush_all_harts(code, 8);
    call_often();
    for (int i = 0; i < STORM; i++) patch();
    call_often();
    u64 rest[2] = {0, REST_MS * 1000000};
    SYSCALL(SYS_nanosleep, rest, 0);
    for (int i = 0; i < 5; i++) {
        call_often();
        patch();
    }
    for (int i = 0; i < STORM; i++) patch();
    return finish("patch-storm");
}
