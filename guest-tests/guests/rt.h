// The runtime of the guests: entry, raw Linux system calls, threads, output,
// emitters of the few RISC-V instructions that the guests write.
//
// One guest is one translation unit, so everything is static here but what the
// compiler and the entry code name. No libc, so that a guest runs the same few
// system calls on every emulator.
//
// A guest mixes every result that depends on its code into a checksum, prints
// it as its last line and exits 0. It exits at once, with the codes below,
// when it sees something else; it never waits without an end.

#ifndef RT_H
#define RT_H

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long u64;
typedef long i64;

enum {
    EXIT_STALE = 10,  // code that was overwritten ran
    EXIT_WRONG = 11,  // a result that neither the old nor the new code gives
    EXIT_HUNG = 12,   // waited for another hart for too long
    EXIT_SYSTEM = 13, // a system call failed
};

enum { PAGE = 4096, WARM = 2000, HOT = 120000 };

// System calls -----------------------------------------------------------

enum {
    SYS_ftruncate = 46, SYS_openat = 56, SYS_close = 57, SYS_pipe2 = 59, SYS_read = 63, SYS_write = 64,
    SYS_readv = 65, SYS_pread64 = 67, SYS_exit = 93, SYS_exit_group = 94, SYS_futex = 98,
    SYS_clock_gettime = 113, SYS_sched_yield = 124, SYS_rt_sigaction = 134, SYS_munmap = 215, SYS_clone = 220,
    SYS_mmap = 222, SYS_mprotect = 226, SYS_riscv_flush_icache = 259, SYS_wait4 = 260, SYS_memfd_create = 279,
};

enum { PROT_NONE = 0, PROT_READ = 1, PROT_WRITE = 2, PROT_EXEC = 4, PROT_RW = 3, PROT_RX = 5, PROT_RWX = 7 };
enum { MAP_SHARED = 1, MAP_PRIVATE = 2, MAP_FIXED = 16, MAP_ANONYMOUS = 32 };

static inline i64 syscall6(i64 nr, i64 a, i64 b, i64 c, i64 d, i64 e, i64 f) {
    register i64 a7 __asm__("a7") = nr;
    register i64 a0 __asm__("a0") = a;
    register i64 a1 __asm__("a1") = b;
    register i64 a2 __asm__("a2") = c;
    register i64 a3 __asm__("a3") = d;
    register i64 a4 __asm__("a4") = e;
    register i64 a5 __asm__("a5") = f;
    __asm__ volatile("ecall" : "+r"(a0) : "r"(a7), "r"(a1), "r"(a2), "r"(a3), "r"(a4), "r"(a5) : "memory");
    return a0;
}
#define SYSCALL_(nr, a, b, c, d, e, f, ...) \
    syscall6(nr, (i64)(a), (i64)(b), (i64)(c), (i64)(d), (i64)(e), (i64)(f))
#define SYSCALL(...) SYSCALL_(__VA_ARGS__, 0, 0, 0, 0, 0, 0, 0)

// What the compiler calls by itself ---------------------------------------

void *memcpy(void *to, const void *from, u64 len_bytes) {
    u8 *t = to;
    const u8 *f = from;
    for (; len_bytes >= 8 && ((u64)t % 8 == 0) && ((u64)f % 8 == 0); len_bytes -= 8, t += 8, f += 8) {
        *(u64 *)t = *(const u64 *)f;
    }
    while (len_bytes--) *t++ = *f++;
    return to;
}

void *memset(void *to, int byte, u64 len_bytes) {
    u8 *t = to;
    while (len_bytes--) *t++ = (u8)byte;
    return to;
}

// Output ------------------------------------------------------------------

// A line is put together here and written by one system call.
typedef struct {
    char text[240];
    u64 len;
} line;

static void add_str(line *l, const char *s) {
    for (; *s && l->len < sizeof l->text; s++) l->text[l->len++] = *s;
}

static void add_hex(line *l, u64 value) {
    for (int shift = 60; shift >= 0; shift -= 4) {
        char c[2] = {"0123456789abcdef"[value >> shift & 15], 0};
        add_str(l, c);
    }
}

static void add_dec(line *l, u64 value) {
    char digits[24];
    int at = 23;
    digits[at] = 0;
    do digits[--at] = '0' + value % 10; while (value /= 10);
    add_str(l, digits + at);
}

static void put(int fd, line *l) {
    add_str(l, "\n");
    SYSCALL(SYS_write, fd, l->text, l->len);
    l->len = 0;
}

static void say(const char *s) {
    line l = {.len = 0};
    add_str(&l, s);
    put(1, &l);
}

__attribute__((noreturn)) static void quit(int code) {
    for (;;) SYSCALL(SYS_exit_group, code);
}

__attribute__((noreturn)) static void die(int code, const char *what, u64 got, u64 want) {
    line l = {.len = 0};
    add_str(&l, code == EXIT_STALE ? "stale code: " : code == EXIT_HUNG ? "waited too long: " :
                code == EXIT_SYSTEM ? "system call failed: " : "wrong result: ");
    add_str(&l, what);
    add_str(&l, ": got 0x");
    add_hex(&l, got);
    add_str(&l, ", want 0x");
    add_hex(&l, want);
    put(2, &l);
    quit(code);
}

static inline i64 checked(i64 result, const char *what) {
    if (result < 0 && result > -4096) die(EXIT_SYSTEM, what, (u64)result, 0);
    return result;
}

// Checksum ------------------------------------------------------------------

static u64 checksum = 0xcbf29ce484222325;

static inline void mix(u64 value) {
    checksum = (checksum ^ value) * 0x100000001b3;
    checksum ^= checksum >> 29;
}

// `got` must be `want`; `stale` is what the code gave before the last patch.
static inline void expect(const char *what, u64 got, u64 want, u64 stale) {
    if (got != want) die(got == stale ? EXIT_STALE : EXIT_WRONG, what, got, want);
    mix(want);
}

static inline void expect_equal(const char *what, u64 got, u64 want) {
    if (got != want) die(EXIT_WRONG, what, got, want);
    mix(want);
}

static int finish(const char *name) {
    line l = {.len = 0};
    add_str(&l, name);
    add_str(&l, ": checksum ");
    add_hex(&l, checksum);
    put(1, &l);
    return 0;
}

// Stores of an exact width ----------------------------------------------------

static inline void store8(void *at, u8 v) { __asm__ volatile("sb %1, 0(%0)" ::"r"(at), "r"(v) : "memory"); }
static inline void store16(void *at, u16 v) { __asm__ volatile("sh %1, 0(%0)" ::"r"(at), "r"(v) : "memory"); }
static inline void store32(void *at, u32 v) { __asm__ volatile("sw %1, 0(%0)" ::"r"(at), "r"(v) : "memory"); }
static inline void store64(void *at, u64 v) { __asm__ volatile("sd %1, 0(%0)" ::"r"(at), "r"(v) : "memory"); }

// Code -------------------------------------------------------------------

enum { ZERO = 0, RA = 1, SP = 2, T0 = 5, T1 = 6, T2 = 7, A0 = 10, A1 = 11 };
enum { RET = 0x00008067, NOP = 0x00000013, FENCE_I = 0x0000100f };

static inline u32 addi(u32 rd, u32 rs1, int imm) { return (u32)imm << 20 | rs1 << 15 | rd << 7 | 0x13; }
static inline u32 add(u32 rd, u32 rs1, u32 rs2) { return rs2 << 20 | rs1 << 15 | rd << 7 | 0x33; }
static inline u32 mul(u32 rd, u32 rs1, u32 rs2) { return 1u << 25 | rs2 << 20 | rs1 << 15 | rd << 7 | 0x33; }
static inline u32 xori(u32 rd, u32 rs1, int imm) { return (u32)imm << 20 | rs1 << 15 | 4 << 12 | rd << 7 | 0x13; }
static inline u32 jal(u32 rd, i64 by) {
    u32 d = (u32)by;
    return (d >> 20 & 1) << 31 | (d >> 1 & 0x3ff) << 21 | (d >> 11 & 1) << 20 | (d >> 12 & 0xff) << 12 | rd << 7 | 0x6f;
}
// li a0, value, in 12 bits.
static inline u32 li_a0(int value) { return addi(A0, ZERO, value); }

typedef u64 (*function)(u64);
static inline u64 call(void *code, u64 arg) { return ((function)code)(arg); }

// A function that returns `value`.
static inline void write_constant(u32 *at, int value) {
    store32(at, li_a0(value));
    store32(at + 1, RET);
}

// Set by the argument `no-flush`: the guest then relies on code changes being
// seen at once, which RISC-V does not promise and synchronous tracking does.
static int without_flush;

static inline void flush_all_harts(void *start, u64 len_bytes) {
    if (without_flush) return;
    i64 r = SYSCALL(SYS_riscv_flush_icache, start, (u64)start + len_bytes, 0);
    // Emulators that need no flush may not know the call.
    if (r != -38) checked(r, "riscv_flush_icache");
}

static inline void flush_this_hart(void) {
    if (!without_flush) __asm__ volatile("fence.i" ::: "memory");
}

static inline void *map(u64 len_bytes, int prot) {
    return (void *)checked(SYSCALL(SYS_mmap, 0, len_bytes, prot, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0), "mmap");
}
static inline void *map_code(u64 pages) { return map(pages * PAGE, PROT_RWX); }

// Makes the pages of the program's own text that hold `start..end` writable.
static void open_text(void *start, void *end) {
    u64 from = (u64)start & -(u64)PAGE, to = ((u64)end + PAGE - 1) & -(u64)PAGE;
    checked(SYSCALL(SYS_mprotect, from, to - from, PROT_RWX), "mprotect");
}

// Runs code until it is translated.
static inline void warm(const char *what, void *code, u64 arg, u64 want) {
    for (int i = 0; i < WARM; i++) {
        u64 got = call(code, arg);
        if (got != want) die(EXIT_WRONG, what, got, want);
    }
}

// Runs code until the last tier has translated it. A translation for the next tier reads the code
// again: where code changes under a hart that calls it without end, an emulator that watches
// nothing could read the last version by chance.
static inline void heat(const char *what, void *code, u64 arg, u64 want) {
    for (int i = 0; i < HOT / WARM; i++) warm(what, code, arg, want);
}

// Time --------------------------------------------------------------------

static inline u64 now_ns(void) {
    u64 ts[2];
    SYSCALL(SYS_clock_gettime, 1, ts);
    return ts[0] * 1000000000 + ts[1];
}

// Harts -------------------------------------------------------------------

enum { FUTEX_WAIT = 0, HART_STACK = 16384, PATIENCE_S = 30 };

static inline u32 load_acquire(u32 *p) { return __atomic_load_n(p, __ATOMIC_ACQUIRE); }
static inline void store_release(u32 *p, u32 v) { __atomic_store_n(p, v, __ATOMIC_RELEASE); }

// Waits until *p is at least `value`.
static void wait_at_least(u32 *p, u32 value, const char *what) {
    u64 limit = 0;
    for (u64 i = 0; load_acquire(p) < value; i++) {
        if (i % 256 == 255) {
            u64 now = now_ns();
            if (!limit) limit = now + (u64)PATIENCE_S * 1000000000;
            if (now > limit) die(EXIT_HUNG, what, load_acquire(p), value);
        }
        SYSCALL(SYS_sched_yield);
    }
}

typedef struct {
    u32 alive; // the kernel clears it and wakes who waits, when the hart ends
    u32 index;
    void (*run)(u32 index);
} hart;

i64 rt_clone(u64 flags, void *stack_top, u32 *parent_tid, void *tls, u32 *child_tid);
__asm__(".text\n.globl rt_clone\nrt_clone:\n"
        "  li a7, 220\n  ecall\n  beqz a0, 1f\n  ret\n"
        "1: ld t0, 0(sp)\n  ld a0, 8(sp)\n  jalr t0\n"
        "  li a0, 0\n  li a7, 93\n  ecall\n  unimp\n");

static void hart_main(hart *h) { h->run(h->index); }

static void start_hart(hart *h, u32 index, void (*run)(u32)) {
    enum { FLAGS = 0x100 | 0x200 | 0x400 | 0x800 | 0x10000 | 0x40000 | 0x200000 };
    u64 *top = (u64 *)((char *)map(HART_STACK, PROT_RW) + HART_STACK - 16);
    top[0] = (u64)hart_main;
    top[1] = (u64)h;
    h->alive = 1;
    h->index = index;
    h->run = run;
    checked(rt_clone(FLAGS, top, 0, 0, &h->alive), "clone");
}

static void join_hart(hart *h) {
    u64 patience[2] = {PATIENCE_S, 0};
    for (;;) {
        u32 alive = load_acquire(&h->alive);
        if (!alive) return;
        if (SYSCALL(SYS_futex, &h->alive, FUTEX_WAIT, alive, patience) == -110) die(EXIT_HUNG, "join", alive, 0);
    }
}

// Arguments ---------------------------------------------------------------

static inline int same(const char *a, const char *b) {
    while (*a && *a == *b) a++, b++;
    return *a == *b;
}

static u64 number(const char *s) {
    u64 n = 0;
    for (; *s >= '0' && *s <= '9'; s++) n = n * 10 + (u64)(*s - '0');
    return n;
}

int main(int argc, char **argv);

__asm__(".text\n.globl _start\n_start:\n  mv a0, sp\n  andi sp, sp, -16\n  call rt_start\n  unimp\n");

__attribute__((used, noreturn)) void rt_start(u64 *sp) {
    int argc = (int)sp[0];
    char **argv = (char **)(sp + 1);
    for (int i = 1; i < argc; i++) {
        if (same(argv[i], "no-flush")) without_flush = 1;
    }
    quit(main(argc, argv));
}

#endif
