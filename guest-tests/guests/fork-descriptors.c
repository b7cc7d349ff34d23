// A program that counts on its descriptors being its own: it closes what it opened,
// all that it did not open, and has none left when it forks. Code that it changes
// meanwhile, and that its children change, is what runs.

#include "rt.h"

enum { SYS_dup = 23, SYS_fcntl = 25, SYS_setrlimit = 164, SYS_close_range = 436 };
enum { F_DUPFD = 0, F_GETFD = 1, RLIMIT_NOFILE = 7, SIGCHLD = 17 };
enum { NUMBERS = 1100, GENERATIONS = 6, FEW = 24, FORKS = 100 };

static u32 *code;
static int value;

// The code gives another value from now on.
static void patch(const char *what) {
    int before = value++;
    store32(code, li_a0(value));
    flush_all_harts(code, 8);
    expect(what, call(code, 0), (u64)value, (u64)before);
    warm(what, code, 0, (u64)value);
}

static u64 open_numbers(void) {
    u64 count = 0;
    for (int fd = 0; fd < NUMBERS; fd++) count += SYSCALL(SYS_fcntl, fd, F_GETFD) >= 0;
    return count;
}

static i64 fork_process(void) { return checked(SYSCALL(SYS_clone, SIGCHLD, 0, 0, 0, 0), "fork"); }

// Waits for the child, which must have come to its end; quits as it did otherwise.
static void wait_for(i64 child) {
    int status = 0;
    checked(SYSCALL(SYS_wait4, child, &status, 0, 0), "wait4");
    if (status & 0x7f) die(EXIT_WRONG, "child's signal", (u64)status, 0);
    if (status >> 8) quit(status >> 8);
}

// Each generation has as many descriptors as the one before.
static void generation(int left, u64 want) {
    u64 open = open_numbers();
    if (open != want) die(EXIT_WRONG, "descriptors", open, want);
    patch("generation");
    if (!left) return;
    i64 child = fork_process();
    if (!child) {
        generation(left - 1, want);
        quit(0);
    }
    wait_for(child);
}

// Closes what is not open, until it is told to stop.
static u32 stop;
static void close_for_ever(u32 index) {
    while (!load_acquire(&stop)) SYSCALL(SYS_close, NUMBERS);
}

// The forks meet the other hart at each place of its calls.
static void fork_beside_closes(void) {
    hart closer;
    start_hart(&closer, 0, close_for_ever);
    for (int round = 0; round < FORKS; round++) {
        i64 child = fork_process();
        if (!child) {
            SYSCALL(SYS_close, NUMBERS);
            quit(0);
        }
        wait_for(child);
    }
    store_release(&stop, 1);
    join_hart(&closer);
}

int main(int argc, char **argv) {
    code = map_code(1);
    write_constant(code, value);
    flush_all_harts(code, 8);
    warm("first", code, 0, 0);
    generation(GENERATIONS, open_numbers());

    // A high number of its own, where the limit allows one, is its child's own too.
    i64 high = SYSCALL(SYS_fcntl, 0, F_DUPFD, 900);
    i64 child = fork_process();
    if (!child) {
        if (high >= 0) checked(SYSCALL(SYS_close, high), "close in the child");
        patch("child");
        quit(0);
    }
    wait_for(child);
    if (high >= 0) checked(SYSCALL(SYS_close, high), "close");

    fork_beside_closes();

    // What it did not open stays open: the protection of its code among them.
    checked(SYSCALL(SYS_close_range, 3, 0xffffffff, 0), "close_range");
    for (int fd = 3; fd < NUMBERS; fd++) SYSCALL(SYS_close, fd);
    for (int round = 0; round < 20; round++) patch("all are closed");
    child = fork_process();
    if (!child) {
        checked(SYSCALL(SYS_close_range, 3, 0xffffffff, 0), "close_range in the child");
        for (int round = 0; round < 20; round++) patch("all are closed in the child");
        quit(0);
    }
    wait_for(child);

    // None is left.
    u64 limit[2] = {FEW, FEW};
    checked(SYSCALL(SYS_setrlimit, RLIMIT_NOFILE, limit), "setrlimit");
    while (SYSCALL(SYS_dup, 0) >= 0) {}
    for (int round = 0; round < 3; round++) {
        child = fork_process();
        if (!child) {
            for (int times = 0; times < 20; times++) patch("none is left, in the child");
            quit(0);
        }
        wait_for(child);
        patch("none is left");
    }
    return finish("fork-descriptors");
}
