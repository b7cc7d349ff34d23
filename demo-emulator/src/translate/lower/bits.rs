//! The bit-manipulation extensions Zba, Zbb, Zbc and Zbs.

use cranelift_codegen::ir::{InstBuilder, Value, types};

use super::emitter::Emitter;
use crate::riscv::inst::{Inst, Op};

impl Emitter<'_> {
    /// Emits an operation of these extensions; `false` for any other.
    pub(super) fn bits(&mut self, inst: &Inst) -> bool {
        use Op::*;
        let value = match inst.op {
            Add_uw | Sh1add | Sh2add | Sh3add | Sh1add_uw | Sh2add_uw | Sh3add_uw => self.shift_and_add(inst),
            Slli_uw => {
                let low = self.low(inst.rs1);
                self.builder.ins().ishl_imm_u(low, i64::from(inst.imm))
            }
            Clz | Ctz | Cpop | Sext_b | Sext_h | Zext_h | Orc_b | Rev8 => self.unary_bits(inst),
            Clzw | Ctzw | Cpopw => self.count_in_word(inst),
            Andn | Orn | Xnor | Max | Maxu | Min | Minu => self.logic_or_extremum(inst),
            Rol | Ror | Rori | Rolw | Rorw | Roriw => self.rotation(inst),
            Clmul | Clmulh | Clmulr => self.carry_less(inst),
            Bclr | Bclri | Bext | Bexti | Binv | Binvi | Bset | Bseti => self.single_bit(inst),
            _ => return false,
        };
        self.set_x(inst.rd, value);
        true
    }

    /// The low word of a register, zero-extended.
    fn low(&mut self, register: u8) -> Value {
        let word = self.word(register);
        self.builder.ins().uextend(types::I64, word)
    }

    fn shift_and_add(&mut self, inst: &Inst) -> Value {
        use Op::*;
        let b = self.x(inst.rs2);
        let a = if matches!(inst.op, Sh1add | Sh2add | Sh3add) { self.x(inst.rs1) } else { self.low(inst.rs1) };
        let shift = match inst.op {
            Add_uw => 0,
            Sh1add | Sh1add_uw => 1,
            Sh2add | Sh2add_uw => 2,
            _ => 3,
        };
        let shifted = if shift == 0 { a } else { self.builder.ins().ishl_imm_u(a, shift) };
        self.builder.ins().iadd(shifted, b)
    }

    fn unary_bits(&mut self, inst: &Inst) -> Value {
        use Op::*;
        let a = self.x(inst.rs1);
        match inst.op {
            Clz => self.builder.ins().clz(a),
            Ctz => self.builder.ins().ctz(a),
            Cpop => self.builder.ins().popcnt(a),
            Sext_b => {
                let byte = self.builder.ins().ireduce(types::I8, a);
                self.builder.ins().sextend(types::I64, byte)
            }
            Sext_h => {
                let half = self.builder.ins().ireduce(types::I16, a);
                self.builder.ins().sextend(types::I64, half)
            }
            Zext_h => self.builder.ins().band_imm_u(a, 0xffff),
            Orc_b => self.orc(a),
            _ => self.builder.ins().bswap(a),
        }
    }

    /// Each byte that is not 0 becomes all ones.
    fn orc(&mut self, a: Value) -> Value {
        let all_but_tops = self.constant(0x7f7f_7f7f_7f7f_7f7f);
        // A byte's sum sets its top bit if one of its low seven bits is set.
        let low = self.builder.ins().band(a, all_but_tops);
        let sums = self.builder.ins().iadd(low, all_but_tops);
        let any = self.builder.ins().bor(sums, a);
        let tops = self.builder.ins().bnot(all_but_tops);
        let tops = self.builder.ins().band(any, tops);
        // 0x80 or 0 of each byte, times two, less one.
        let bottoms = self.builder.ins().ushr_imm_u(tops, 7);
        let doubled = self.builder.ins().ishl_imm_u(tops, 1);
        self.builder.ins().isub(doubled, bottoms)
    }

    fn count_in_word(&mut self, inst: &Inst) -> Value {
        let word = self.word(inst.rs1);
        let ins = self.builder.ins();
        let count = match inst.op {
            Op::Clzw => ins.clz(word),
            Op::Ctzw => ins.ctz(word),
            _ => ins.popcnt(word),
        };
        self.builder.ins().uextend(types::I64, count)
    }

    fn logic_or_extremum(&mut self, inst: &Inst) -> Value {
        use Op::*;
        let (a, b) = (self.x(inst.rs1), self.x(inst.rs2));
        match inst.op {
            Andn => {
                let inverse = self.builder.ins().bnot(b);
                self.builder.ins().band(a, inverse)
            }
            Orn => {
                let inverse = self.builder.ins().bnot(b);
                self.builder.ins().bor(a, inverse)
            }
            Xnor => {
                let different = self.builder.ins().bxor(a, b);
                self.builder.ins().bnot(different)
            }
            Max => self.builder.ins().smax(a, b),
            Maxu => self.builder.ins().umax(a, b),
            Min => self.builder.ins().smin(a, b),
            _ => self.builder.ins().umin(a, b),
        }
    }

    /// Cranelift takes the distance modulo the width, as RISC-V does.
    fn rotation(&mut self, inst: &Inst) -> Value {
        use Op::*;
        let distance = match inst.op {
            Rori | Roriw => self.constant(inst.imm as u64),
            _ => self.x(inst.rs2),
        };
        match inst.op {
            Rol | Ror | Rori => {
                let a = self.x(inst.rs1);
                let ins = self.builder.ins();
                if inst.op == Rol { ins.rotl(a, distance) } else { ins.rotr(a, distance) }
            }
            _ => {
                let word = self.word(inst.rs1);
                let ins = self.builder.ins();
                let rotated = if inst.op == Rolw { ins.rotl(word, distance) } else { ins.rotr(word, distance) };
                self.builder.ins().sextend(types::I64, rotated)
            }
        }
    }

    /// The high half of a product without carries is the low half of the product of the factors
    /// with their bits reversed, reversed too and shifted by one: 127 bits have no middle.
    fn carry_less(&mut self, inst: &Inst) -> Value {
        let (a, b) = (self.x(inst.rs1), self.x(inst.rs2));
        if inst.op == Op::Clmul {
            return self.carry_less_low(a, b);
        }
        let (a, b) = (self.builder.ins().bitrev(a), self.builder.ins().bitrev(b));
        let product = self.carry_less_low(a, b);
        let reversed = self.builder.ins().bitrev(product);
        if inst.op == Op::Clmulr { reversed } else { self.builder.ins().ushr_imm_u(reversed, 1) }
    }

    /// The low 64 bits of a product without carries, by sixteen multiplications. Each factor has
    /// only every fourth bit of an operand. So each group of four bits of a product counts at most
    /// 15 pairs of ones, but for the topmost, which counts 16, and its carry is dropped. The lowest
    /// bit of each count is the sum without carries.
    fn carry_less_low(&mut self, a: Value, b: Value) -> Value {
        let masks: [Value; 4] = std::array::from_fn(|first| self.constant(0x1111_1111_1111_1111 << first));
        let parts = |this: &mut Self, value: Value| masks.map(|mask| this.builder.ins().band(value, mask));
        let (a, b) = (parts(self, a), parts(self, b));
        let mut product = self.constant(0);
        for (residue, mask) in masks.into_iter().enumerate() {
            let mut sum = self.constant(0);
            for (index, &part) in a.iter().enumerate() {
                let other = b[(residue + 4 - index) % 4];
                let counts = self.builder.ins().imul(part, other);
                sum = self.builder.ins().bxor(sum, counts);
            }
            let kept = self.builder.ins().band(sum, mask);
            product = self.builder.ins().bor(product, kept);
        }
        product
    }

    fn single_bit(&mut self, inst: &Inst) -> Value {
        use Op::*;
        let a = self.x(inst.rs1);
        let index = match inst.op {
            Bclri | Bexti | Binvi | Bseti => self.constant(inst.imm as u64),
            _ => self.x(inst.rs2),
        };
        if matches!(inst.op, Bext | Bexti) {
            let shifted = self.builder.ins().ushr(a, index);
            return self.builder.ins().band_imm_u(shifted, 1);
        }
        let one = self.constant(1);
        let bit = self.builder.ins().ishl(one, index);
        match inst.op {
            Bclr | Bclri => {
                let others = self.builder.ins().bnot(bit);
                self.builder.ins().band(a, others)
            }
            Binv | Binvi => self.builder.ins().bxor(a, bit),
            _ => self.builder.ins().bor(a, bit),
        }
    }
}
