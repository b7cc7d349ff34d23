// One hart stores across a page boundary again and again while another runs
// code of both pages, which is translated and protected again each time. A
// translator that always protects one of the two pages first can starve the
// store: here it must finish.

#include "rt.h"

enum { STORES = 3000 };
static u32 *block;
static u32 runner_ready, finished;

static u64 pair(int first, int second) { return (u64)addi(A0, A0, second) << 32 | addi(A0, A0, first); }

// The store is not atomic, and the hart may be slow between the two fetches: each instruction is of
// any version.
enum { LAST = 100 };
static int possible(u64 got) {
    static const u32 versions[] = {1, 10, LAST};
    for (int i = 0; i < 3; i++) {
        for (int k = 0; k < 3; k++) {
            if (got == versions[i] + versions[k]) return 1;
        }
    }
    return 0;
}

static void run(u32 index) {
    heat("before", block, 0, 2);
    store_release(&runner_ready, 1);
    while (!load_acquire(&finished)) {
        u64 got = call(block, 0);
        if (!possible(got)) die(EXIT_WRONG, "a mix of old and new instructions", got, 2);
    }
    flush_this_hart();
    u64 got = call(block, 0);
    if (got != 2 * LAST) die(EXIT_STALE, "after the last store", got, 2 * LAST);
}

int main(int argc, char **argv) {
    static hart runner;
    char *pages = map_code(2);
    block = (u32 *)(pages + PAGE) - 1;
    store64(block, pair(1, 1));
    store32(block + 2, RET);
    flush_all_harts(pages, 2 * PAGE);
    start_hart(&runner, 1, run);
    wait_at_least(&runner_ready, 1, "runner");
    for (int i = 0; i < STORES; i++) store64(block, i % 2 ? pair(1, 1) : pair(10, 10));
    store64(block, pair(LAST, LAST));
    flush_all_harts(pages, 2 * PAGE);
    store_release(&finished, 1);
    join_hart(&runner);
    expect("after the last store", call(block, 0), 2 * LAST, 2);
    return finish("two-page-stores-progress");
}
