//! Integer arithmetic.

use super::asm::{
    Alu, Condition, Operand, RAX, RCX, RDX, Scale, Shift, Width, at, emit, emit_by_width, indexed, no_trap,
};
use super::builder::{Builder, Division, Rare};
use crate::riscv::inst::{Inst, Op};

impl Builder<'_> {
    /// Emits an integer operation on registers; `false` for any other.
    pub(super) fn integer(&mut self, inst: &Inst) -> bool {
        use Op::*;
        if let Some(value) = self.folded(inst) {
            self.set_constant(inst.rd, value);
            return true;
        }
        let imm = Operand::Immediate(inst.imm);
        match inst.op {
            Addi => self.add(inst.rd, inst.rs1, imm),
            Add => self.commute(inst, Self::add),
            Xori => self.arithmetic(Alu::Xor, inst.rd, inst.rs1, imm),
            Ori => self.arithmetic(Alu::Or, inst.rd, inst.rs1, imm),
            Andi => self.arithmetic(Alu::And, inst.rd, inst.rs1, imm),
            Xor => self.commute(inst, |this, rd, rs1, b| this.arithmetic(Alu::Xor, rd, rs1, b)),
            Or => self.commute(inst, |this, rd, rs1, b| this.arithmetic(Alu::Or, rd, rs1, b)),
            And => self.commute(inst, |this, rd, rs1, b| this.arithmetic(Alu::And, rd, rs1, b)),
            Sub => {
                let b = self.operand(inst.rs2);
                self.arithmetic(Alu::Sub, inst.rd, inst.rs1, b);
            }
            Slti | Sltiu => {
                let a = self.x(inst.rs1);
                self.compare_with(a, imm);
                self.set_condition(inst, if inst.op == Slti { Condition::Less } else { Condition::Below });
            }
            Slt | Sltu => {
                let condition = if inst.op == Slt { Condition::Less } else { Condition::Below };
                let condition = self.compare(inst.rs1, inst.rs2, condition);
                self.set_condition(inst, condition);
            }
            Slli => self.shift_by(Shift::Left, Width::Double, inst),
            Srli => self.shift_by(Shift::Right, Width::Double, inst),
            Srai => self.shift_by(Shift::Arithmetic, Width::Double, inst),
            Slliw => self.shift_by(Shift::Left, Width::Word, inst),
            Srliw => self.shift_by(Shift::Right, Width::Word, inst),
            Sraiw => self.shift_by(Shift::Arithmetic, Width::Word, inst),
            Sll => self.shift_by_register(Shift::Left, Width::Double, inst),
            Srl => self.shift_by_register(Shift::Right, Width::Double, inst),
            Sra => self.shift_by_register(Shift::Arithmetic, Width::Double, inst),
            Sllw => self.shift_by_register(Shift::Left, Width::Word, inst),
            Srlw => self.shift_by_register(Shift::Right, Width::Word, inst),
            Sraw => self.shift_by_register(Shift::Arithmetic, Width::Word, inst),
            Addiw => self.word_arithmetic(Alu::Add, inst, imm),
            Addw | Subw => {
                let b = self.operand(inst.rs2);
                self.word_arithmetic(if inst.op == Addw { Alu::Add } else { Alu::Sub }, inst, b);
            }
            Mul | Mulw => {
                let b = self.x(inst.rs2);
                let to = self.result_from(inst.rd, inst.rs1);
                if inst.op == Mul {
                    emit!(self.asm, imulq_rm(to, b));
                } else {
                    emit!(self.asm, imull_rm(to, b));
                    emit!(self.asm, movslq_rm(to, to));
                }
                self.set_x(inst.rd, to);
            }
            Mulh | Mulhsu | Mulhu => self.high_product(inst),
            Div => self.divide(inst, Division { width: Width::Double, is_signed: true, is_remainder: false }),
            Divu => self.divide(inst, Division { width: Width::Double, is_signed: false, is_remainder: false }),
            Rem => self.divide(inst, Division { width: Width::Double, is_signed: true, is_remainder: true }),
            Remu => self.divide(inst, Division { width: Width::Double, is_signed: false, is_remainder: true }),
            Divw => self.divide(inst, Division { width: Width::Word, is_signed: true, is_remainder: false }),
            Divuw => self.divide(inst, Division { width: Width::Word, is_signed: false, is_remainder: false }),
            Remw => self.divide(inst, Division { width: Width::Word, is_signed: true, is_remainder: true }),
            Remuw => self.divide(inst, Division { width: Width::Word, is_signed: false, is_remainder: true }),
            _ => return false,
        }
        true
    }

    /// The result, if the instruction is one of those that make constants and its sources are known.
    fn folded(&self, inst: &Inst) -> Option<u64> {
        let imm = inst.imm as i64 as u64;
        Some(match inst.op {
            Op::Lui => imm,
            Op::Auipc => self.pc.wrapping_add(imm),
            Op::Addi => self.cache.known(inst.rs1)?.wrapping_add(imm),
            Op::Addiw => self.cache.known(inst.rs1)?.wrapping_add(imm) as i32 as u64,
            Op::Slli => self.cache.known(inst.rs1)?.wrapping_shl(inst.imm as u32),
            Op::Add => self.cache.known(inst.rs1)?.wrapping_add(self.cache.known(inst.rs2)?),
            _ => return None,
        })
    }

    /// Calls `emit(rd, first, second)` with the sources in the better order.
    fn commute(&mut self, inst: &Inst, emit: impl FnOnce(&mut Self, u8, u8, Operand)) {
        let swap = self.small(inst.rs1).is_some() || inst.rd == inst.rs2 && self.small(inst.rs2).is_none();
        let (rs1, rs2) = if swap { (inst.rs2, inst.rs1) } else { (inst.rs1, inst.rs2) };
        let b = self.operand(rs2);
        emit(self, inst.rd, rs1, b);
    }

    fn add(&mut self, rd: u8, rs1: u8, b: Operand) {
        let a = self.x(rs1);
        let to = self.result(rd, rs1, a);
        match b {
            _ if to == a => self.asm.alu(Alu::Add, Width::Double, to, b),
            Operand::Immediate(0) => self.asm.copy(to, a),
            Operand::Immediate(imm) => emit!(self.asm, leaq_rm(to, at(a, imm))),
            Operand::Register(b) => emit!(self.asm, leaq_rm(to, indexed(a, b, Scale::One, 0))),
        }
        self.set_x(rd, to);
    }

    fn arithmetic(&mut self, op: Alu, rd: u8, rs1: u8, b: Operand) {
        let to = self.result_from(rd, rs1);
        self.asm.alu(op, Width::Double, to, b);
        self.set_x(rd, to);
    }

    fn word_arithmetic(&mut self, op: Alu, inst: &Inst, b: Operand) {
        let a = self.x(inst.rs1);
        let to = self.result(inst.rd, inst.rs1, a);
        if b == Operand::Immediate(0) {
            emit!(self.asm, movslq_rm(to, a));
        } else {
            self.asm.copy(to, a);
            self.asm.alu(op, Width::Word, to, b);
            emit!(self.asm, movslq_rm(to, to));
        }
        self.set_x(inst.rd, to);
    }

    /// The result is 1 or 0, as the flags say.
    pub(super) fn set_condition(&mut self, inst: &Inst, condition: Condition) {
        let to = self.cache.take();
        self.asm.set(condition, to);
        self.set_x(inst.rd, to);
    }

    pub(super) fn shift_by(&mut self, op: Shift, width: Width, inst: &Inst) {
        let to = self.result_from(inst.rd, inst.rs1);
        self.asm.shift(op, width, to, inst.imm as u8);
        if width == Width::Word {
            emit!(self.asm, movslq_rm(to, to));
        }
        self.set_x(inst.rd, to);
    }

    pub(super) fn shift_by_register(&mut self, op: Shift, width: Width, inst: &Inst) {
        let by = self.x(inst.rs2);
        let to = self.result_from(inst.rd, inst.rs1);
        emit!(self.asm, movl_mr(RCX, by));
        self.asm.shift_by_rcx(op, width, to);
        if width == Width::Word {
            emit!(self.asm, movslq_rm(to, to));
        }
        self.set_x(inst.rd, to);
    }

    fn high_product(&mut self, inst: &Inst) {
        let (a, b) = (self.x(inst.rs1), self.x(inst.rs2));
        let to = self.result(inst.rd, inst.rs1, a);
        self.asm.copy(RAX, a);
        match inst.op {
            Op::Mulh => emit!(self.asm, imulq_m(RAX, RDX, b)),
            Op::Mulhu => emit!(self.asm, mulq_m(RAX, RDX, b)),
            _ => {
                // Read as unsigned, a negative factor is 2^64 too large.
                self.asm.copy(RCX, a);
                self.asm.shift(Shift::Arithmetic, Width::Double, RCX, 63);
                self.asm.alu(Alu::And, Width::Double, RCX, Operand::Register(b));
                emit!(self.asm, mulq_m(RAX, RDX, b));
                self.asm.alu(Alu::Sub, Width::Double, RDX, Operand::Register(RCX));
            }
        }
        self.asm.copy(to, RDX);
        self.set_x(inst.rd, to);
    }

    /// A divisor of 0 and, as the host faults at the overflow of the least number, one of -1 go a
    /// rare way.
    fn divide(&mut self, inst: &Inst, division: Division) {
        let Division { width, is_signed, is_remainder } = division;
        let (a, b) = (self.x(inst.rs1), self.x(inst.rs2));
        let to = self.result(inst.rd, inst.rs1, a);
        self.asm.copy(RAX, a);
        let condition = if is_signed {
            emit_by_width!(self.asm, width, leaq_rm | leal_rm(RCX, at(b, 1)));
            self.asm.alu(Alu::Cmp, width, RCX, Operand::Immediate(1));
            Condition::BelowOrEqual
        } else {
            emit_by_width!(self.asm, width, testq_mr | testl_mr(b, b));
            Condition::Equal
        };
        let rare = self.asm.jump_if(condition);
        match (width, is_signed) {
            (Width::Double, true) => {
                emit!(self.asm, cqto_zo(RDX, RAX));
                emit!(self.asm, idivq_m(RAX, RDX, b, no_trap()));
            }
            (Width::Word, true) => {
                emit!(self.asm, cltd_zo(RDX, RAX));
                emit!(self.asm, idivl_m(RAX, RDX, b, no_trap()));
            }
            (Width::Double, false) => {
                self.asm.constant(RDX, 0);
                emit!(self.asm, divq_m(RAX, RDX, b, no_trap()));
            }
            (Width::Word, false) => {
                self.asm.constant(RDX, 0);
                emit!(self.asm, divl_m(RAX, RDX, b, no_trap()));
            }
        }
        let back = self.asm.offset();
        self.rare.push((rare, Rare::Division { division, back }));
        let result = if is_remainder { RDX } else { RAX };
        match width {
            Width::Double => self.asm.copy(to, result),
            Width::Word => emit!(self.asm, movslq_rm(to, result)),
        }
        self.set_x(inst.rd, to);
    }

    /// The dividend is in rax. If the division is signed, the flags say whether the divisor is 0.
    pub(super) fn rare_division(&mut self, division: Division, back: usize) {
        let other = division.is_signed.then(|| self.asm.short_jump_if(Condition::NotEqual));
        if division.is_remainder {
            self.asm.copy(RDX, RAX);
        } else {
            self.asm.alu(Alu::Or, Width::Double, RAX, Operand::Immediate(-1));
        }
        self.asm.jump_to(back);
        if let Some(other) = other {
            self.asm.land_short(other);
            if division.is_remainder {
                self.asm.constant(RDX, 0);
            } else {
                emit!(self.asm, negq_m(RAX));
            }
            self.asm.jump_to(back);
        }
    }
}
