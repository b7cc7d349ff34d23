// The kernel writes results into data on a page of hot code: out parameters,
// read(), a child's status, and the word that it clears when a hart ends. All
// of these must succeed, whoever has the page protected.

#include "rt.h"

enum { SIGCHLD = 17 };

typedef struct {
    u32 code[16];
    u64 time[2];
    int pipe[2];
    int status;
    char text[8];
    hart hart;
} mixed;

static mixed *page;

static void check_code(void) {
    for (int i = 0; i < 50; i++) expect_equal("hot code", call(page->code, 0), 77);
}

static void run(u32 index) { check_code(); }

int main(int argc, char **argv) {
    page = map_code(1);
    write_constant(page->code, 77);
    flush_all_harts(page, PAGE);
    warm("hot code", page->code, 0, 77);
    for (int i = 0; i < 40; i++) {
        page->time[0] = ~0ul;
        expect_equal("clock_gettime", (u64)SYSCALL(SYS_clock_gettime, 1, page->time), 0);
        expect_equal("time was written", page->time[0] != ~0ul, 1);
        check_code();
        expect_equal("pipe2", (u64)SYSCALL(SYS_pipe2, page->pipe, 0), 0);
        check_code();
        expect_equal("write", (u64)SYSCALL(SYS_write, page->pipe[1], "abcdefg", 8), 8);
        expect_equal("read", (u64)SYSCALL(SYS_read, page->pipe[0], page->text, 8), 8);
        expect_equal("what was read", same(page->text, "abcdefg"), 1);
        check_code();
        SYSCALL(SYS_close, page->pipe[0]);
        SYSCALL(SYS_close, page->pipe[1]);
        i64 child = checked(SYSCALL(SYS_clone, SIGCHLD, 0, 0, 0, 0), "fork");
        if (child == 0) quit(i);
        expect_equal("wait4", (u64)SYSCALL(SYS_wait4, child, &page->status, 0, 0) == (u64)child, 1);
        expect_equal("status", (u64)page->status, (u64)i << 8);
        check_code();
        // join_hart waits for the kernel to clear page->hart.alive.
        start_hart(&page->hart, 1, run);
        join_hart(&page->hart);
        check_code();
    }
    return finish("kernel-writes-beside-code");
}
