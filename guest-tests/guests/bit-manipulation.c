// Zba, Zbb, Zbc and Zbs: each instruction against plain C, with operands at the edges of the widths
// and some of a random sequence.

#include "rt.h"

__asm__(".option arch, +zba, +zbb, +zbc, +zbs");

#define BINARY(op, a, b) ({ u64 r_; __asm__ volatile(op " %0, %1, %2" : "=r"(r_) : "r"(a), "r"(b)); r_; })
#define UNARY(op, a) ({ u64 r_; __asm__ volatile(op " %0, %1" : "=r"(r_) : "r"(a)); r_; })
#define SHIFTED(op, a, n) ({ u64 r_; __asm__ volatile(op " %0, %1, " #n : "=r"(r_) : "r"(a)); r_; })

static inline u64 word(u32 value) { return (u64)(i64)(int)value; }

static u64 rotated_right(u64 a, u32 width, u32 by) {
    u64 out = 0;
    for (u32 i = 0; i < width; i++) out |= (a >> i & 1) << ((i + width - by % width) % width);
    return out;
}

// How many bits, from the top or from the bottom, are before the first one.
static u64 leading(u64 a, u32 width) {
    u32 n = 0;
    while (n < width && !(a >> (width - 1 - n) & 1)) n++;
    return n;
}

static u64 trailing(u64 a, u32 width) {
    u32 n = 0;
    while (n < width && !(a >> n & 1)) n++;
    return n;
}

static u64 ones(u64 a, u32 width) {
    u32 n = 0;
    for (u32 i = 0; i < width; i++) n += a >> i & 1;
    return n;
}

static u64 or_combined(u64 a) {
    u64 out = 0;
    for (u32 i = 0; i < 64; i += 8) out |= (a >> i & 0xff ? 0xfful : 0) << i;
    return out;
}

static u64 reversed(u64 a) {
    u64 out = 0;
    for (u32 i = 0; i < 64; i += 8) out = out << 8 | (a >> i & 0xff);
    return out;
}

// The bits from `from` on of the product without carries.
static u64 carry_less(u64 a, u64 b, u32 from) {
    u64 out = 0;
    for (u32 i = 0; i < 64; i++) {
        for (u32 j = 0; j < 64; j++) {
            if (i + j >= from && i + j < from + 64) out ^= (a >> i & b >> j & 1) << (i + j - from);
        }
    }
    return out;
}

static void addresses(u64 a, u64 b) {
    expect_equal("add.uw", BINARY("add.uw", a, b), (u32)a + b);
    expect_equal("sh1add", BINARY("sh1add", a, b), a * 2 + b);
    expect_equal("sh2add", BINARY("sh2add", a, b), a * 4 + b);
    expect_equal("sh3add", BINARY("sh3add", a, b), a * 8 + b);
    expect_equal("sh1add.uw", BINARY("sh1add.uw", a, b), (u64)(u32)a * 2 + b);
    expect_equal("sh2add.uw", BINARY("sh2add.uw", a, b), (u64)(u32)a * 4 + b);
    expect_equal("sh3add.uw", BINARY("sh3add.uw", a, b), (u64)(u32)a * 8 + b);
    expect_equal("slli.uw 0", SHIFTED("slli.uw", a, 0), (u32)a);
    expect_equal("slli.uw 3", SHIFTED("slli.uw", a, 3), (u64)(u32)a << 3);
    expect_equal("slli.uw 32", SHIFTED("slli.uw", a, 32), (u64)(u32)a << 32);
    expect_equal("slli.uw 63", SHIFTED("slli.uw", a, 63), (u64)(u32)a << 63);
}

static void basics(u64 a, u64 b) {
    expect_equal("andn", BINARY("andn", a, b), a & ~b);
    expect_equal("orn", BINARY("orn", a, b), a | ~b);
    expect_equal("xnor", BINARY("xnor", a, b), ~(a ^ b));
    expect_equal("clz", UNARY("clz", a), leading(a, 64));
    expect_equal("clzw", UNARY("clzw", a), leading(a, 32));
    expect_equal("ctz", UNARY("ctz", a), trailing(a, 64));
    expect_equal("cpop", UNARY("cpop", a), ones(a, 64));
    expect_equal("cpopw", UNARY("cpopw", a), ones(a, 32));
    expect_equal("max", BINARY("max", a, b), (i64)a > (i64)b ? a : b);
    expect_equal("maxu", BINARY("maxu", a, b), a > b ? a : b);
    expect_equal("min", BINARY("min", a, b), (i64)a < (i64)b ? a : b);
    expect_equal("minu", BINARY("minu", a, b), a < b ? a : b);
    expect_equal("sext.b", UNARY("sext.b", a), (u64)((i64)(a << 56) >> 56));
    expect_equal("sext.h", UNARY("sext.h", a), (u64)((i64)(a << 48) >> 48));
    expect_equal("zext.h", UNARY("zext.h", a), a & 0xffff);
    expect_equal("orc.b", UNARY("orc.b", a), or_combined(a));
    expect_equal("rev8", UNARY("rev8", a), reversed(a));
    expect_equal("ror", BINARY("ror", a, b), rotated_right(a, 64, b & 63));
    expect_equal("rol", BINARY("rol", a, b), rotated_right(a, 64, 64 - (b & 63)));
    expect_equal("rorw", BINARY("rorw", a, b), word((u32)rotated_right(a, 32, b & 31)));
    expect_equal("rolw", BINARY("rolw", a, b), word((u32)rotated_right(a, 32, 32 - (b & 31))));
    expect_equal("rori 0", SHIFTED("rori", a, 0), a);
    expect_equal("rori 1", SHIFTED("rori", a, 1), rotated_right(a, 64, 1));
    expect_equal("rori 33", SHIFTED("rori", a, 33), rotated_right(a, 64, 33));
    expect_equal("rori 63", SHIFTED("rori", a, 63), rotated_right(a, 64, 63));
    expect_equal("roriw 0", SHIFTED("roriw", a, 0), word((u32)a));
    expect_equal("roriw 5", SHIFTED("roriw", a, 5), word((u32)rotated_right(a, 32, 5)));
    expect_equal("roriw 31", SHIFTED("roriw", a, 31), word((u32)rotated_right(a, 32, 31)));
}

static void products(u64 a, u64 b) {
    expect_equal("clmul", BINARY("clmul", a, b), carry_less(a, b, 0));
    expect_equal("clmulh", BINARY("clmulh", a, b), carry_less(a, b, 64));
    expect_equal("clmulr", BINARY("clmulr", a, b), carry_less(a, b, 63));
}

#define SINGLE_BIT(n)                                                         \
    expect_equal("bclri " #n, SHIFTED("bclri", a, n), a & ~((u64)1 << n));    \
    expect_equal("bexti " #n, SHIFTED("bexti", a, n), a >> n & 1);            \
    expect_equal("binvi " #n, SHIFTED("binvi", a, n), a ^ (u64)1 << n);       \
    expect_equal("bseti " #n, SHIFTED("bseti", a, n), a | (u64)1 << n)

static void single_bits(u64 a, u64 b) {
    u64 bit = (u64)1 << (b & 63);
    expect_equal("bclr", BINARY("bclr", a, b), a & ~bit);
    expect_equal("bext", BINARY("bext", a, b), (a & bit) != 0);
    expect_equal("binv", BINARY("binv", a, b), a ^ bit);
    expect_equal("bset", BINARY("bset", a, b), a | bit);
    SINGLE_BIT(0);
    SINGLE_BIT(31);
    SINGLE_BIT(32);
    SINGLE_BIT(63);
}

int main(int argc, char **argv) {
    static const u64 edges[] = {
        0, 1, 2, 31, 32, 33, 63, 64, 0x7f, 0x80, 0xff, 0x100, 0x7fff, 0x8000, 0xffff, 0x7fffffff,
        0x80000000, 0xffffffff, 0x100000000, 0x8000000000, 0x7fffffffffffffff, 0x8000000000000000,
        0x0100800001000080, 0xffffffff80000000, 0xffffffffffffffff,
    };
    enum { EDGES = sizeof edges / sizeof *edges };
    for (u32 i = 0; i < EDGES * EDGES; i++) {
        u64 a = edges[i / EDGES], b = edges[i % EDGES];
        addresses(a, b);
        basics(a, b);
        single_bits(a, b);
        if (i % 7 == 0) products(a, b);
    }
    u64 random = 88172645463325252;
    for (u32 i = 0; i < 200; i++) {
        random ^= random << 13, random ^= random >> 7, random ^= random << 17;
        u64 a = random, b = random * 0x9e3779b97f4a7c15;
        addresses(a, b);
        basics(a, b);
        single_bits(a, b);
        products(a, b);
    }
    // Last, because QEMU 7.2 counts the bits above the word.
    for (u32 i = 0; i < EDGES; i++) expect_equal("ctzw", UNARY("ctzw", edges[i]), trailing(edges[i], 32));
    return finish("bit-manipulation");
}
