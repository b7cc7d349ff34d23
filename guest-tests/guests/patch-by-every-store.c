// Code is patched by every kind of store that RV64GC has: plain, compressed,
// floating-point, atomic and conditional.

#include "rt.h"

static u32 *code;
static u64 before;

static void changed_to(const char *how, u64 want) {
    flush_this_hart();
    for (int again = 0; again < 3; again++) expect(how, call(code, 0), want, before);
    before = want;
}

int main(int argc, char **argv) {
    code = map_code(1);
    write_constant(code, 0);
    flush_this_hart();
    warm("before", code, 0, 0);
    for (u64 i = 1; i < 120; i++) {
        u64 v = i * 16, both;
        u32 old, insn;

        store32(code, li_a0((int)v));
        changed_to("sw", v);
        // The immediate lies in the upper 12 bits: byte 3 counts in sixteens.
        store8((char *)code + 3, (u8)((v + 16) >> 4));
        changed_to("sb", v + 16);
        store16((char *)code + 2, (u16)(li_a0((int)v + 1) >> 16));
        changed_to("sh", v + 1);
        store64(code, (u64)RET << 32 | li_a0((int)v + 2));
        changed_to("sd", v + 2);

        insn = li_a0((int)v + 3);
        __asm__ volatile("fmv.w.x ft0, %1\n  fsw ft0, 0(%0)" ::"r"(code), "r"(insn) : "ft0", "memory");
        changed_to("fsw", v + 3);
        both = (u64)RET << 32 | li_a0((int)v + 4);
        __asm__ volatile("fmv.d.x ft0, %1\n  fsd ft0, 0(%0)" ::"r"(code), "r"(both) : "ft0", "memory");
        changed_to("fsd", v + 4);
        __asm__ volatile("mv a4, %0\n  mv a5, %1\n  c.sw a5, 0(a4)" ::"r"(code), "r"(li_a0((int)v + 5)) : "a4", "a5", "memory");
        changed_to("c.sw", v + 5);

        __asm__ volatile("amoadd.w %0, %2, (%1)" : "=r"(old) : "r"(code), "r"(1u << 20) : "memory");
        changed_to("amoadd.w", v + 6);
        __asm__ volatile("amoswap.w %0, %2, (%1)" : "=r"(old) : "r"(code), "r"(li_a0((int)v + 7)) : "memory");
        changed_to("amoswap.w", v + 7);
        __asm__ volatile("amoxor.d %0, %2, (%1)" : "=r"(both) : "r"(code), "r"((u64)(li_a0(7) ^ li_a0(8))) : "memory");
        changed_to("amoxor.d", v + 8);
        __asm__ volatile("1: lr.w %0, (%2)\n  sc.w %1, %3, (%2)\n  bnez %1, 1b"
                         : "=&r"(old), "=&r"(insn) : "r"(code), "r"(li_a0((int)v + 9)) : "memory");
        changed_to("sc.w", v + 9);
    }
    return finish("patch-by-every-store");
}
