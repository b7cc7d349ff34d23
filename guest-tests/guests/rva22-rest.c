// RVA22U64 beside the bit manipulation: halves (Zfhmin), cache blocks (Zicbom, Zicbop, Zicboz), PAUSE,
// the counters, and the kernel's answer to programs that ask for all of them.

#include "rt.h"

__asm__(".option arch, +zfhmin, +zicbom, +zicbop, +zicboz, +zihintpause");

enum { SYS_riscv_hwprobe = 258, BLOCK = 64 };

static inline u64 double_of_half(u64 half) {
    u64 out;
    __asm__ volatile("fmv.h.x ft0, %1\n  fcvt.d.h ft1, ft0\n  fmv.x.d %0, ft1" : "=r"(out) : "r"(half) : "ft0", "ft1");
    return out;
}

static inline u64 half_of_double(u64 bits, u64 *flags) {
    u64 out;
    __asm__ volatile("fsflags zero\n  fmv.d.x ft0, %2\n  fcvt.h.d ft1, ft0\n  fmv.x.h %0, ft1\n  frflags %1"
                     : "=r"(out), "=r"(*flags) : "r"(bits) : "ft0", "ft1");
    return out;
}

// The same by way of memory and singles.
static inline u64 half_of_half(u64 half) {
    static unsigned short cell[2];
    cell[0] = (u16)half;
    __asm__ volatile("flh ft0, 0(%0)\n  fcvt.s.h ft1, ft0\n  fcvt.h.s ft2, ft1\n  fsh ft2, 2(%0)"
                     :: "r"(cell) : "ft0", "ft1", "ft2", "memory");
    return cell[1];
}

// A half as a double, in integers.
static u64 widened(u64 half) {
    u64 sign = half >> 15 << 63, exponent = half >> 10 & 31, fraction = half & 1023;
    if (exponent == 31) return fraction ? 0x7ff8000000000000 : sign | 0x7ff0000000000000;
    if (exponent == 0 && fraction == 0) return sign;
    i64 power = (i64)exponent - 15;
    if (exponent == 0) {
        power = -14;
        while (!(fraction & 1024)) fraction <<= 1, power--;
    }
    return sign | (u64)(power + 1023) << 52 | (fraction & 1023) << 42;
}

static void halves(void) {
    for (u64 half = 0; half < 0x10000; half += half < 64 || half > 0xff00 ? 1 : 37) {
        u64 wide = widened(half), flags;
        expect_equal("fcvt.d.h", double_of_half(half), wide);
        int is_nan = (half & 0x7fff) > 0x7c00;
        u64 want = is_nan ? 0x7e00 : half;
        expect_equal("fcvt.h.s", half_of_half(half), want);
        expect_equal("fcvt.h.d", half_of_double(wide, &flags), (u64)((i64)(want << 48) >> 48));
        expect_equal("exact", flags, 0);
    }
    u64 flags;
    // Half a unit goes to the even neighbour; too large, too small.
    expect_equal("tie", half_of_double(0x3ff0020000000000, &flags), 0x3c00);
    expect_equal("tie's flags", flags, 1);
    expect_equal("tie up", half_of_double(0x3ff0060000000000, &flags), 0x3c02);
    expect_equal("greatest", half_of_double(0x40effdffffffffff, &flags), 0x7bff);
    expect_equal("overflow", half_of_double(0x40effe0000000000, &flags), 0x7c00);
    expect_equal("overflow's flags", flags, 5);
    expect_equal("underflow", half_of_double(0x3e60000000000001, &flags), 1);
    expect_equal("underflow's flags", flags, 3);
    u64 canonical;
    __asm__ volatile("fmv.w.x ft0, %1\n  fcvt.s.h ft1, ft0\n  fmv.x.w %0, ft1" : "=r"(canonical) : "r"(0x3c003c00) : "ft0", "ft1");
    expect_equal("a half that is not boxed", canonical, 0x7fc00000);
}

static void blocks(void) {
    static u8 memory[4 * BLOCK] __attribute__((aligned(BLOCK)));
    for (u32 offset = 0; offset < BLOCK; offset += 9) {
        memset(memory, 0x55, sizeof memory);
        __asm__ volatile("cbo.zero (%0)" :: "r"(memory + BLOCK + offset) : "memory");
        for (u32 i = 0; i < sizeof memory; i++) {
            expect_equal("cbo.zero", memory[i], i / BLOCK == 1 ? 0 : 0x55);
        }
        __asm__ volatile("cbo.clean (%0)\n  cbo.flush (%0)\n  prefetch.r 32(%0)\n  prefetch.w 0(%0)\n  prefetch.i 64(%0)\n  pause"
                         :: "r"(memory + offset) : "memory");
        expect_equal("cbo.clean", memory[0], 0x55);
    }
}

// Zero is no instruction, so the block of a function that was zeroed may not run on.
static void zeroed_code(void) {
    u32 *code = (u32 *)SYSCALL(SYS_mmap, 0, PAGE, PROT_RWX, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    u64 (*run)(void) = (u64(*)(void))code;
    for (u32 round = 0; round < 50; round++) {
        __asm__ volatile("cbo.zero (%0)" :: "r"(code) : "memory");
        code[0] = 0x00000513 | round << 20; // li a0, round
        code[1] = 0x00008067;               // ret
        __asm__ volatile("fence.i" ::: "memory");
        for (u32 i = 0; i < 40; i++) expect("a block zeroed and written anew", run(), round, round - 1);
    }
}

static void asked(void) {
    enum { IMA_EXT_0 = 4, ZICBOZ_BLOCK = 6, ZICBOM_BLOCK = 12, UNKNOWN = 9999 };
    struct { i64 key; u64 value; } pairs[] = {{IMA_EXT_0, 0}, {ZICBOZ_BLOCK, 0}, {ZICBOM_BLOCK, 0}, {UNKNOWN, 7}};
    checked(SYSCALL(SYS_riscv_hwprobe, pairs, 4, 0, 0, 0), "riscv_hwprobe");
    // F and D, C, Zba, Zbb, Zbs, Zicboz, Zbc, Zfhmin, Zihintpause, Zicntr, Zihpm, Zicbom.
    u64 want = 0xfb | 1ul << 28 | 1ul << 36 | 1ul << 50 | 1ul << 51 | 1ul << 55;
    expect_equal("extensions", pairs[0].value & want, want);
    expect_equal("no vectors", pairs[0].value & 4, 0);
    expect_equal("block to zero", pairs[1].value, BLOCK);
    expect_equal("block to clean", pairs[2].value, BLOCK);
    expect_equal("unknown key", (u64)pairs[3].key, ~0ul);
    expect_equal("its value", pairs[3].value, 0);
    u64 before, after, other;
    __asm__ volatile("rdtime %0\n  csrr %1, hpmcounter3\n  rdtime %2" : "=r"(before), "=r"(other), "=r"(after));
    expect_equal("time goes on", after >= before, 1);
}

int main(int argc, char **argv) {
    halves();
    blocks();
    zeroed_code();
    asked();
    return finish("rva22-rest");
}
