// After fork the child and the parent each have their own code: the child
// patches and the parent still runs the old version, then the other way round.

#include "rt.h"

enum { SIGCHLD = 17 };

static i64 fork(void) { return checked(SYSCALL(SYS_clone, SIGCHLD, 0, 0, 0, 0), "fork"); }

static void wait_for(i64 child) {
    int status = 0;
    checked(SYSCALL(SYS_wait4, child, &status, 0, 0), "wait4");
    // A child that saw stale code has said so: pass its code on.
    if (status & 0x7f) die(EXIT_WRONG, "child killed", (u64)status, 0);
    if (status) quit(status >> 8);
}

static void patch_and_run(u32 *code, int from) {
    u64 before = call(code, 0);
    for (int i = from; i < from + 100; i++) {
        store32(code, li_a0(i));
        flush_this_hart();
        expect("patched after fork", call(code, 0), (u64)i, before);
        before = (u64)i;
    }
}

int main(int argc, char **argv) {
    u32 *code = map_code(1);
    write_constant(code, 1);
    flush_this_hart();
    warm("before fork", code, 0, 1);

    i64 child = fork();
    if (child == 0) {
        expect_equal("the child starts with the old code", call(code, 0), 1);
        patch_and_run(code, 100);
        quit(0);
    }
    wait_for(child);
    expect_equal("the child's patch is its own", call(code, 0), 1);

    int go[2];
    checked(SYSCALL(SYS_pipe2, go, 0), "pipe2");
    child = fork();
    if (child == 0) {
        char byte;
        checked(SYSCALL(SYS_read, go[0], &byte, 1), "read");
        for (int i = 0; i < WARM; i++) expect_equal("the parent's patch is its own", call(code, 0), 1);
        patch_and_run(code, 300);
        quit(0);
    }
    patch_and_run(code, 500);
    SYSCALL(SYS_write, go[1], "x", 1);
    wait_for(child);
    expect_equal("the parent's own patch", call(code, 0), 599);
    patch_and_run(code, 700);
    return finish("fork-patches");
}
