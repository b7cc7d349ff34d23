// Two harts patch functions that share a page and each calls what it patched:
// first its own function, then the other's.

#include "rt.h"

enum { ROUNDS = 150 };
static char *page;
static u32 arrived;

static u32 *function_of(u32 index) { return (u32 *)(page + 256 * (index + 1)); }

static void barrier(u32 phase) {
    __atomic_add_fetch(&arrived, 1, __ATOMIC_ACQ_REL);
    wait_at_least(&arrived, 2 * phase, "barrier");
}

static void patch_rounds(u32 index, int base) {
    u32 *code = function_of(index);
    u64 before = call(code, 0);
    for (int i = 0; i < ROUNDS; i++) {
        u64 want = (u64)(base + i);
        store32(code, li_a0((int)want));
        flush_this_hart();
        u64 got = call(code, 0);
        if (got != want) die(got == before ? EXIT_STALE : EXIT_WRONG, "patched by this hart", got, want);
        before = want;
    }
}

static void run(u32 index) {
    warm("own", function_of(index), 0, index);
    warm("other", function_of(1 - index), 0, 1 - index);
    barrier(1);
    patch_rounds(index, 100);
    barrier(2);
    // What the other hart wrote before the barrier is seen after this fence.
    flush_this_hart();
    patch_rounds(1 - index, 1000);
    barrier(3);
}

int main(int argc, char **argv) {
    static hart other;
    page = map_code(1);
    write_constant(function_of(0), 0);
    write_constant(function_of(1), 1);
    flush_all_harts(page, PAGE);
    start_hart(&other, 1, run);
    run(0);
    join_hart(&other);
    flush_this_hart();
    for (u32 i = 0; i < 2; i++) expect("at the end", call(function_of(i), 0), 1000 + ROUNDS - 1, 100 + ROUNDS - 1);
    return finish("two-harts-one-page");
}
