// What the demo emulator runs when it is given no program: a guest that
// rewrites its own code in four steps, each of which it names and checks. The
// functions that change have symbols, so that an emulator can tell of them by
// name.
//
// It goes on when it sees stale code, says so, and exits 10 at its end.

#include "rt.h"

u64 answer(u64);
void tally(u64 *counter, u64 times);
extern u64 tally_counter;
u64 formula(u64 x);
u64 version(u64);
extern char answer_constant[], version_constant[], demo_code[], demo_code_end[];

#define FUNCTION(name) ".balign 64\n.globl " name "\n.type " name ", @function\n" name ":\n"
#define END(name) ".size " name ", . - " name "\n"

// A page of its own: what happens to it is about these functions alone.
__asm__(".text\n.balign 4096\n.option push\n.option norvc\n"
        ".globl demo_code\ndemo_code:\n"
        FUNCTION("answer")
        "answer_constant: li a0, 41\n  ret\n" END("answer")
        FUNCTION("tally")
        "1: ld t0, 0(a0)\n  addi t0, t0, 1\n  sd t0, 0(a0)\n  addi a1, a1, -1\n  bnez a1, 1b\n  ret\n" END("tally")
        ".balign 8\n.globl tally_counter\n.type tally_counter, @object\n"
        "tally_counter: .dword 0\n.size tally_counter, 8\n"
        FUNCTION("formula")
        "  slli a0, a0, 1\n  ret\n" ".space 56\n" END("formula")
        FUNCTION("version")
        "version_constant: li a0, 0\n  ret\n" END("version")
        ".balign 4096\ndemo_code_end:\n.option pop\n");

static int stale;

static void report(const char *what, u64 got, u64 want) {
    line l = {.len = 0};
    add_str(&l, "  ");
    add_str(&l, what);
    add_str(&l, " = ");
    add_dec(&l, got);
    if (got != want) {
        add_str(&l, ", and should be ");
        add_dec(&l, want);
        add_str(&l, ": stale code");
        stale = 1;
    }
    put(1, &l);
    mix(want);
}

static u64 call_often(function f, u64 arg) {
    u64 result = 0;
    for (int i = 0; i < WARM; i++) result = f(arg);
    return result;
}

static void patch_a_constant(void) {
    say("step 1: a constant in a hot function");
    report("answer()", call_often(answer, 0), 41);
    store32(answer_constant, li_a0(42));
    flush_this_hart();
    report("answer(), one instruction patched", call_often(answer, 0), 42);
}

// A page that was stored to again and again stays writable for a while. The
// next step begins when that is over.
static void let_the_page_cool(void) {
    enum { SYS_nanosleep = 101, COOL_NS = 450000000 };
    u64 time[2] = {0, COOL_NS};
    SYSCALL(SYS_nanosleep, time, 0);
}

static void count_beside_code(void) {
    say("step 2: data beside hot code");
    tally(&tally_counter, 1000);
    report("a counter in the code's own page", tally_counter, 1000);
    let_the_page_cool();
}

static void rewrite_a_function(void) {
    say("step 3: a function rewritten as a whole");
    report("formula(5), twice its argument", call_often(formula, 5), 10);
    u32 *at = (u32 *)formula;
    store32(at++, addi(T0, ZERO, 7));
    store32(at++, mul(A0, A0, A0));
    store32(at++, mul(A0, A0, T0));
    store32(at++, addi(A0, A0, 3));
    store32(at++, RET);
    flush_this_hart();
    report("formula(5), seven times its square and three", call_often(formula, 5), 178);
}

enum { VERSIONS = 3 };
static u32 published, observed;
static u64 sum_of_versions;

static void observer(u32 index) {
    call_often(version, 0);
    store_release(&observed, 1);
    for (u32 v = 1; v <= VERSIONS; v++) {
        wait_at_least(&published, v, "the next version");
        sum_of_versions += version(0);
        store_release(&observed, v + 1);
    }
}

static void patch_under_another_hart(void) {
    static hart other;
    say("step 4: one hart patches what another runs");
    start_hart(&other, 1, observer);
    wait_at_least(&observed, 1, "the other hart");
    for (u32 v = 1; v <= VERSIONS; v++) {
        store32(version_constant, li_a0((int)(v * 10)));
        flush_all_harts(version_constant, 4);
        store_release(&published, v);
        wait_at_least(&observed, v + 1, "the other hart");
    }
    join_hart(&other);
    report("the sum of three versions, each seen once", sum_of_versions, 60);
}

int main(int argc, char **argv) {
    open_text(demo_code, demo_code_end);
    patch_a_constant();
    count_beside_code();
    rewrite_a_function();
    patch_under_another_hart();
    finish("demo");
    return stale ? EXIT_STALE : 0;
}
