//! The bit-manipulation extensions Zba, Zbb and Zbs, but for the counts of bits.

use super::asm::{Alu, Condition, Operand, RAX, RCX, Scale, Shift, Width, emit, emit_by_width, indexed};
use super::builder::Builder;
use crate::riscv::inst::{Inst, Op};

impl Builder<'_> {
    /// Emits an operation of these extensions; `false` for any other.
    pub(super) fn bits(&mut self, inst: &Inst) -> bool {
        use Op::*;
        match inst.op {
            Sh1add => self.shift_and_add(inst, Scale::Two, Width::Double),
            Sh2add => self.shift_and_add(inst, Scale::Four, Width::Double),
            Sh3add => self.shift_and_add(inst, Scale::Eight, Width::Double),
            Add_uw => self.shift_and_add(inst, Scale::One, Width::Word),
            Sh1add_uw => self.shift_and_add(inst, Scale::Two, Width::Word),
            Sh2add_uw => self.shift_and_add(inst, Scale::Four, Width::Word),
            Sh3add_uw => self.shift_and_add(inst, Scale::Eight, Width::Word),
            Slli_uw => {
                let a = self.x(inst.rs1);
                let to = self.result(inst.rd, inst.rs1, a);
                emit!(self.asm, movl_mr(to, a));
                self.asm.shift(Shift::Left, Width::Double, to, inst.imm as u8);
                self.set_x(inst.rd, to);
            }
            Andn | Orn => {
                let (a, b) = (self.x(inst.rs1), self.x(inst.rs2));
                let to = self.result(inst.rd, inst.rs1, a);
                self.asm.copy(RAX, b);
                emit!(self.asm, notq_m(RAX));
                self.asm.copy(to, a);
                let op = if inst.op == Andn { Alu::And } else { Alu::Or };
                self.asm.alu(op, Width::Double, to, Operand::Register(RAX));
                self.set_x(inst.rd, to);
            }
            Xnor => {
                let b = self.operand(inst.rs2);
                let to = self.result_from(inst.rd, inst.rs1);
                self.asm.alu(Alu::Xor, Width::Double, to, b);
                emit!(self.asm, notq_m(to));
                self.set_x(inst.rd, to);
            }
            Max | Maxu | Min | Minu => self.extremum(inst),
            Clz | Clzw | Ctz | Ctzw => self.count_zeros(inst),
            Sext_b | Sext_h | Zext_h => {
                let a = self.x(inst.rs1);
                let to = self.result(inst.rd, inst.rs1, a);
                match inst.op {
                    Sext_b => emit!(self.asm, movsbq_rm(to, a)),
                    Sext_h => emit!(self.asm, movswq_rm(to, a)),
                    _ => emit!(self.asm, movzwl_rm(to, a)),
                }
                self.set_x(inst.rd, to);
            }
            Rev8 => {
                let to = self.result_from(inst.rd, inst.rs1);
                emit!(self.asm, bswapq_o(to));
                self.set_x(inst.rd, to);
            }
            Rol => self.shift_by_register(Shift::RotateLeft, Width::Double, inst),
            Ror => self.shift_by_register(Shift::RotateRight, Width::Double, inst),
            Rolw => self.shift_by_register(Shift::RotateLeft, Width::Word, inst),
            Rorw => self.shift_by_register(Shift::RotateRight, Width::Word, inst),
            Rori => self.shift_by(Shift::RotateRight, Width::Double, inst),
            Roriw => self.shift_by(Shift::RotateRight, Width::Word, inst),
            Orc_b => self.or_combine(inst),
            Bext | Bexti => {
                let a = self.x(inst.rs1);
                if inst.op == Bext {
                    let index = self.x(inst.rs2);
                    emit!(self.asm, btq_mr(a, index));
                } else {
                    emit!(self.asm, btq_mi(a, inst.imm as u8));
                }
                // The carry flag is the bit.
                self.set_condition(inst, Condition::Below);
            }
            Bclr | Bclri | Binv | Binvi | Bset | Bseti => self.single_bit(inst),
            _ => return false,
        }
        true
    }

    fn shift_and_add(&mut self, inst: &Inst, scale: Scale, width: Width) {
        let (a, b) = (self.x(inst.rs1), self.x(inst.rs2));
        let to = self.result(inst.rd, inst.rs1, a);
        let index = match width {
            Width::Double => a,
            Width::Word => {
                emit!(self.asm, movl_mr(RAX, a));
                RAX
            }
        };
        emit!(self.asm, leaq_rm(to, indexed(b, index, scale, 0)));
        self.set_x(inst.rd, to);
    }

    fn extremum(&mut self, inst: &Inst) {
        let b = self.x(inst.rs2);
        let to = self.result_from(inst.rd, inst.rs1);
        self.asm.alu(Alu::Cmp, Width::Double, to, Operand::Register(b));
        match inst.op {
            Op::Max => emit!(self.asm, cmovlq_rm(to, b)),
            Op::Maxu => emit!(self.asm, cmovbq_rm(to, b)),
            Op::Min => emit!(self.asm, cmovgq_rm(to, b)),
            _ => emit!(self.asm, cmovaq_rm(to, b)),
        }
        self.set_x(inst.rd, to);
    }

    /// The host's scans leave their result undefined if no bit is set.
    fn count_zeros(&mut self, inst: &Inst) {
        let a = self.x(inst.rs1);
        let to = self.result(inst.rd, inst.rs1, a);
        let (width, bits) = match inst.op {
            Op::Clz | Op::Ctz => (Width::Double, 64),
            _ => (Width::Word, 32),
        };
        if matches!(inst.op, Op::Ctz | Op::Ctzw) {
            emit_by_width!(self.asm, width, bsfq_rm | bsfl_rm(RAX, a));
            emit!(self.asm, movl_oi(RCX, bits));
            emit!(self.asm, cmoveq_rm(RAX, RCX));
        } else {
            emit_by_width!(self.asm, width, bsrq_rm | bsrl_rm(RAX, a));
            // The index of the highest bit that is set, from the other end.
            emit!(self.asm, movl_oi(RCX, 2 * bits - 1));
            emit!(self.asm, cmoveq_rm(RAX, RCX));
            self.asm.alu(Alu::Xor, Width::Word, RAX, Operand::Immediate(bits - 1));
        }
        self.asm.copy(to, RAX);
        self.set_x(inst.rd, to);
    }

    /// Each byte that is not 0 becomes all ones.
    fn or_combine(&mut self, inst: &Inst) {
        let a = self.x(inst.rs1);
        let to = self.result(inst.rd, inst.rs1, a);
        // A byte's sum sets its top bit if one of its low seven bits is set.
        self.asm.constant(RCX, 0x7f7f_7f7f_7f7f_7f7f);
        self.asm.copy(RAX, a);
        self.asm.alu(Alu::And, Width::Double, RAX, Operand::Register(RCX));
        self.asm.alu(Alu::Add, Width::Double, RAX, Operand::Register(RCX));
        self.asm.alu(Alu::Or, Width::Double, RAX, Operand::Register(a));
        emit!(self.asm, notq_m(RCX));
        self.asm.alu(Alu::And, Width::Double, RAX, Operand::Register(RCX));
        // 0x80 or 0 of each byte, times two, less one.
        self.asm.copy(RCX, RAX);
        self.asm.shift(Shift::Right, Width::Double, RCX, 7);
        self.asm.alu(Alu::Add, Width::Double, RAX, Operand::Register(RAX));
        self.asm.alu(Alu::Sub, Width::Double, RAX, Operand::Register(RCX));
        self.asm.copy(to, RAX);
        self.set_x(inst.rd, to);
    }

    fn single_bit(&mut self, inst: &Inst) {
        use Op::*;
        if matches!(inst.op, Bclri | Binvi | Bseti) {
            let a = self.x(inst.rs1);
            let to = self.result(inst.rd, inst.rs1, a);
            self.asm.constant(RAX, 1_u64.wrapping_shl(inst.imm as u32));
            self.asm.copy(to, a);
            self.combine_bit(inst, to);
        } else {
            let index = self.x(inst.rs2);
            let to = self.result_from(inst.rd, inst.rs1);
            emit!(self.asm, movl_mr(RCX, index));
            self.asm.constant(RAX, 1);
            self.asm.shift_by_rcx(Shift::Left, Width::Double, RAX);
            self.combine_bit(inst, to);
        }
    }

    /// The bit is in rax.
    fn combine_bit(&mut self, inst: &Inst, to: super::asm::Host) {
        use Op::*;
        let op = match inst.op {
            Bclr | Bclri => {
                emit!(self.asm, notq_m(RAX));
                Alu::And
            }
            Binv | Binvi => Alu::Xor,
            _ => Alu::Or,
        };
        self.asm.alu(op, Width::Double, to, Operand::Register(RAX));
        self.set_x(inst.rd, to);
    }
}
