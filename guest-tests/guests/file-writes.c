// Code in a shared mapping of a file, changed by each system call that changes a
// file's bytes, and code that may not be written, changed through /proc/self/mem.
// No store ever goes to a page that shows the code. Where a call leaves no code, a
// call of it is the signal that it is on Linux.

#include "rt.h"

enum {
    SYS_truncate = 45, SYS_fallocate = 47, SYS_lseek = 62, SYS_writev = 66, SYS_pwrite64 = 68, SYS_pwritev = 70,
    SYS_sendfile = 71, SYS_splice = 76, SYS_copy_file_range = 285, SYS_pwritev2 = 287,
};
enum { AT_FDCWD = -100, O_WRONLY = 1, O_RDWR = 2, O_TRUNC = 01000, O_APPEND = 02000 };
enum { RWF_APPEND = 16, SIGCHLD = 17 };
enum { KEEP_SIZE = 1, PUNCH_HOLE = 2, ZERO_RANGE = 16 };
enum { SIGILL = 4, SIGBUS = 7, SA_SIGINFO = 4, SA_NODEFER = 0x40000000 };

static int fd, other;
static u32 *run;
// The file's name in /proc, of its descriptor.
static char name[] = "/proc/self/fd/0";

// A call of code that is not there: the handler returns from it with the signal.
static u64 signal_address;
static void handler(int signo, char *info, char *ucontext) {
    u64 *regs = (u64 *)(ucontext + 176);
    signal_address = *(u64 *)(info + 16);
    regs[10] = 100000 + (u64)signo;
    regs[0] = regs[1];
}

static void handle(int signo) {
    u64 action[3] = {(u64)handler, SA_SIGINFO | SA_NODEFER, 0};
    checked(SYSCALL(SYS_rt_sigaction, signo, action, 0, 8), "rt_sigaction");
}

static void wrote(i64 bytes, const char *what) {
    if (checked(bytes, what) != 4) die(EXIT_SYSTEM, what, (u64)bytes, 4);
}

static void seek(int file, i64 to) { checked(SYSCALL(SYS_lseek, file, to, 0), "lseek"); }

// The ways. Each puts an instruction at the file's first bytes.

static void by_write(u32 *code) { seek(fd, 0), wrote(SYSCALL(SYS_write, fd, code, 4), "write"); }
static void by_pwrite(u32 *code) { wrote(SYSCALL(SYS_pwrite64, fd, code, 4, 0), "pwrite"); }
static void by_writev(u32 *code) {
    u64 pieces[4] = {(u64)code, 1, (u64)code + 1, 3};
    seek(fd, 0), wrote(SYSCALL(SYS_writev, fd, pieces, 2), "writev");
}
static void by_pwritev(u32 *code) {
    u64 pieces[4] = {(u64)code, 2, (u64)code + 2, 2};
    wrote(SYSCALL(SYS_pwritev, fd, pieces, 2, 0, 0), "pwritev");
}
static void by_pwritev2(u32 *code) {
    u64 piece[2] = {(u64)code, 4};
    // At the file's position.
    seek(fd, 0), wrote(SYSCALL(SYS_pwritev2, fd, piece, 1, -1, -1, 0), "pwritev2");
}
static void by_sendfile(u32 *code) {
    wrote(SYSCALL(SYS_pwrite64, other, code, 4, 0), "pwrite");
    seek(fd, 0), seek(other, 0), wrote(SYSCALL(SYS_sendfile, fd, other, 0, 4), "sendfile");
}
static void by_copy_file_range(u32 *code) {
    u64 from = 0, to = 0;
    wrote(SYSCALL(SYS_pwrite64, other, code, 4, 0), "pwrite");
    wrote(SYSCALL(SYS_copy_file_range, other, &from, fd, &to, 4, 0), "copy_file_range");
}
static void by_splice(u32 *code) {
    int ends[2];
    u64 to = 0;
    checked(SYSCALL(SYS_pipe2, ends, 0), "pipe2");
    wrote(SYSCALL(SYS_write, ends[1], code, 4), "write");
    wrote(SYSCALL(SYS_splice, ends[0], 0, fd, &to, 4, 0), "splice");
    SYSCALL(SYS_close, ends[0]);
    SYSCALL(SYS_close, ends[1]);
}
// The file ends before its code, which is added again at its end.
static void by_append(u32 *code) {
    int at_end = (int)checked(SYSCALL(SYS_openat, AT_FDCWD, name, O_WRONLY | O_APPEND, 0), "openat");
    u32 all[2] = {*code, RET};
    checked(SYSCALL(SYS_ftruncate, fd, 0), "ftruncate");
    // Linux appends, whatever the offset.
    if (SYSCALL(SYS_pwrite64, at_end, all, 8, 4096) != 8) die(EXIT_SYSTEM, "append", 0, 8);
    checked(SYSCALL(SYS_ftruncate, fd, PAGE), "ftruncate");
    SYSCALL(SYS_close, at_end);
}

// Code in the file's last page, behind its end, which only a mapping shows. An append
// puts other code there, whatever the call's offset is.
static void behind_the_end(void) {
    enum { END = 64 };
    int at_end = (int)checked(SYSCALL(SYS_openat, AT_FDCWD, name, O_WRONLY | O_APPEND, 0), "openat");
    for (int round = 0; round < 6; round++) {
        u32 next[2] = {li_a0(2), RET};
        u64 piece[2] = {(u64)next, 8};
        checked(SYSCALL(SYS_ftruncate, fd, END), "ftruncate");
        char *view = (char *)checked(SYSCALL(SYS_mmap, 0, PAGE, PROT_RW, MAP_SHARED, fd, 0), "mmap");
        write_constant((u32 *)(view + END), 1);
        checked(SYSCALL(SYS_munmap, view, PAGE), "munmap");
        flush_all_harts(run, PAGE);
        warm("behind the end", (char *)run + END, 0, 1);
        i64 r = round % 2 ? SYSCALL(SYS_pwrite64, at_end, next, 8, 100000)
                          : SYSCALL(SYS_pwritev2, fd, piece, 1, 100000, 0, RWF_APPEND);
        if (r != 8) die(EXIT_SYSTEM, "append", (u64)r, 8);
        flush_all_harts(run, PAGE);
        expect("appended", call((char *)run + END, 0), 2, 1);
    }
    SYSCALL(SYS_close, at_end);
    checked(SYSCALL(SYS_ftruncate, fd, PAGE), "ftruncate");
}

// The ways to take code away: what a call of it gives then, and once more when the
// file is as long as before.

static void by_ftruncate(void) { checked(SYSCALL(SYS_ftruncate, fd, 0), "ftruncate"); }
static void by_truncate(void) { checked(SYSCALL(SYS_truncate, name, 0), "truncate"); }
static void by_open(void) {
    SYSCALL(SYS_close, checked(SYSCALL(SYS_openat, AT_FDCWD, name, O_RDWR | O_TRUNC, 0), "openat"));
}
static void by_punching(void) {
    checked(SYSCALL(SYS_fallocate, fd, PUNCH_HOLE | KEEP_SIZE, 0, PAGE), "fallocate");
}

static void put_code(int value) {
    u32 code[2] = {li_a0(value), RET};
    if (SYSCALL(SYS_pwrite64, fd, code, 8, 0) != 8) die(EXIT_SYSTEM, "pwrite", 0, 8);
    flush_all_harts(run, PAGE);
    warm("put", run, 0, (u64)value);
}

static void taken(const char *what, void (*take)(void), u64 want) {
    put_code(7);
    take();
    flush_all_harts(run, PAGE);
    expect(what, call(run, 0), 100000 + want, 7);
    expect_equal("address", signal_address - (u64)run, 0);
    checked(SYSCALL(SYS_ftruncate, fd, PAGE), "ftruncate");
    flush_all_harts(run, PAGE);
    expect("zeros", call(run, 0), 100000 + SIGILL, 7);
}

static void through_own_memory(void) {
    u32 *code = map_code(2);
    write_constant(code, 1);
    checked(SYSCALL(SYS_mprotect, code, PAGE, PROT_RX), "mprotect");
    checked(SYSCALL(SYS_munmap, code + PAGE / 4, PAGE), "munmap");
    int mem = (int)checked(SYSCALL(SYS_openat, AT_FDCWD, "/proc/self/mem", O_RDWR, 0), "openat");
    // From 6.12 on a kernel may refuse this to memory that the process itself may not write
    // (proc_mem.force_override).
    u32 same = code[0];
    if (SYSCALL(SYS_pwrite64, mem, &same, 4, code) == -5)
        checked(SYSCALL(SYS_mprotect, code, PAGE, PROT_RWX), "mprotect");
    int value = 1;
    for (int round = 0; round < 20; round++) {
        flush_all_harts(code, PAGE);
        warm("own memory", code, 0, (u64)value);
        u32 was = 0, next = li_a0(++value);
        seek(mem, (i64)code);
        if (round % 2) {
            wrote(SYSCALL(SYS_read, mem, &was, 4), "read");
            seek(mem, (i64)code), wrote(SYSCALL(SYS_write, mem, &next, 4), "write");
            expect_equal("position", (u64)SYSCALL(SYS_lseek, mem, 0, 1) - (u64)code, 4);
        } else {
            wrote(SYSCALL(SYS_pread64, mem, &was, 4, code), "pread");
            wrote(SYSCALL(SYS_pwrite64, mem, &next, 4, code), "pwrite");
        }
        expect_equal("bytes", was, li_a0(value - 1));
        flush_all_harts(code, PAGE);
        expect("own memory", call(code, 0), (u64)value, (u64)value - 1);
    }
    // A transfer ends where the mapping does.
    u64 bytes[2] = {0, 0};
    expect_equal("short read", (u64)SYSCALL(SYS_pread64, mem, bytes, 16, (u64)code + PAGE - 8), 8);
    expect_equal("no read", (u64)SYSCALL(SYS_pread64, mem, bytes, 16, (u64)code + PAGE), (u64)-5);
    expect_equal("no write", (u64)SYSCALL(SYS_pwrite64, mem, bytes, 16, (u64)code + PAGE), (u64)-5);
}

// A child has its parent's descriptor of that. Linux lets it write there; an emulator
// that cannot tell the parent refuses. Either way the parent runs its bytes.
static void through_inherited_memory(void) {
    int mem = (int)checked(SYSCALL(SYS_openat, AT_FDCWD, "/proc/self/mem", O_RDWR, 0), "openat");
    for (int round = 0; round < 3; round++) {
        u32 *code = map_code(1), next = li_a0(2);
        write_constant(code, 1);
        checked(SYSCALL(SYS_mprotect, code, PAGE, PROT_RX), "mprotect");
        warm("inherited", code, 0, 1);
        i64 child = checked(SYSCALL(SYS_clone, SIGCHLD, 0), "fork");
        if (child == 0) {
            i64 r = SYSCALL(SYS_pwrite64, mem, &next, 4, code);
            SYSCALL(SYS_exit_group, r == 4 ? 0 : r == -5 ? 1 : 2);
        }
        int status = 0;
        checked(SYSCALL(SYS_wait4, child, &status, 0, 0), "wait4");
        if (status != 0 && status != 0x100) die(EXIT_SYSTEM, "inherited", (u64)status, 0);
        flush_all_harts(code, PAGE);
        u64 want = status == 0 ? 2 : 1, got = call(code, 0);
        if (got != want) die(EXIT_STALE, "inherited", got, want);
        if (code[0] != li_a0((int)want)) die(EXIT_WRONG, "inherited", code[0], want);
    }
}

int main(int argc, char **argv) {
    static void (*const ways[])(u32 *) = {by_write,  by_pwrite,   by_writev, by_pwritev,        by_pwritev2,
                                          by_append, by_sendfile, by_splice, by_copy_file_range};
    fd = (int)checked(SYSCALL(SYS_memfd_create, "code", 0), "memfd_create");
    other = (int)checked(SYSCALL(SYS_memfd_create, "other", 0), "memfd_create");
    name[sizeof name - 2] = (char)('0' + fd);
    checked(SYSCALL(SYS_ftruncate, fd, PAGE), "ftruncate");
    handle(SIGBUS);
    handle(SIGILL);
    run = (u32 *)checked(SYSCALL(SYS_mmap, 0, PAGE, PROT_RX, MAP_SHARED, fd, 0), "mmap");
    int value = 500;
    put_code(value);
    for (int round = 0; round < 4; round++) {
        for (u64 way = 0; way < sizeof ways / sizeof *ways; way++) {
            u32 code = li_a0(++value);
            ways[way](&code);
            flush_all_harts(run, PAGE);
            expect("changed", call(run, 0), (u64)value, (u64)value - 1);
            warm("changed", run, 0, (u64)value);
        }
    }
    for (int round = 0; round < 3; round++) {
        taken("ftruncate", by_ftruncate, SIGBUS);
        taken("truncate", by_truncate, SIGBUS);
        taken("open", by_open, SIGBUS);
        taken("hole", by_punching, SIGILL);
    }
    put_code(7);
    behind_the_end();
    through_own_memory();
    through_inherited_memory();
    return finish("file-writes");
}
