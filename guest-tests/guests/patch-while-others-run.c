// One hart patches a function while three others call it without pause. After
// a patch is published no hart may run an older version.

#include "rt.h"

enum { RUNNERS = 3, ROUNDS = 30 };
static u32 *code;
static u32 published, seen[RUNNERS];

static void run(u32 index) {
    warm("before", code, 0, 0);
    store_release(&seen[index], 1);
    u64 newest = 0;
    for (u32 done = 0; done < ROUNDS;) {
        u32 promised = load_acquire(&published);
        u64 got = call(code, 0);
        if (got > ROUNDS) die(EXIT_WRONG, "value", got, promised);
        if (got < promised) die(EXIT_STALE, "older than the published patch", got, promised);
        if (got < newest) die(EXIT_STALE, "older than the last call", got, newest);
        newest = got;
        if (promised > done) {
            done = promised;
            store_release(&seen[index], done + 1);
        }
    }
}

int main(int argc, char **argv) {
    static hart harts[RUNNERS];
    code = map_code(1);
    write_constant(code, 0);
    flush_all_harts(code, 8);
    for (u32 i = 0; i < RUNNERS; i++) start_hart(&harts[i], i, run);
    for (u32 i = 0; i < RUNNERS; i++) wait_at_least(&seen[i], 1, "start");
    for (u32 round = 1; round <= ROUNDS; round++) {
        store32(code, li_a0((int)round));
        flush_all_harts(code, 4);
        store_release(&published, round);
        for (u32 i = 0; i < RUNNERS; i++) wait_at_least(&seen[i], round + 1, "runner");
        expect("the patching hart", call(code, 0), round, round - 1);
    }
    for (u32 i = 0; i < RUNNERS; i++) join_hart(&harts[i]);
    return finish("patch-while-others-run");
}
