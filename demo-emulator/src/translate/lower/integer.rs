//! Integer arithmetic and branches' conditions.

use cranelift_codegen::ir::condcodes::IntCC;
use cranelift_codegen::ir::{InstBuilder, Type, Value, types};

use super::emitter::Emitter;
use crate::riscv::inst::{Inst, Op};

impl Emitter<'_> {
    /// Whether a branch is taken.
    pub(crate) fn branch_condition(&mut self, inst: &Inst) -> Value {
        let condition = match inst.op {
            Op::Beq => IntCC::Equal,
            Op::Bne => IntCC::NotEqual,
            Op::Blt => IntCC::SignedLessThan,
            Op::Bge => IntCC::SignedGreaterThanOrEqual,
            Op::Bltu => IntCC::UnsignedLessThan,
            _ => IntCC::UnsignedGreaterThanOrEqual,
        };
        let (a, b) = (self.x(inst.rs1), self.x(inst.rs2));
        self.builder.ins().icmp(condition, a, b)
    }

    /// Emits an integer operation on registers; `false` for any other.
    pub(super) fn integer(&mut self, pc: u64, inst: &Inst) -> bool {
        use Op::*;
        let imm = i64::from(inst.imm);
        let value = match inst.op {
            Lui => self.constant(imm as u64),
            Auipc => self.constant(pc.wrapping_add(imm as u64)),
            Addi | Slti | Sltiu | Xori | Ori | Andi | Slli | Srli | Srai => {
                let a = self.x(inst.rs1);
                let b = self.constant(imm as u64);
                self.binary(inst.op, a, b)
            }
            Add | Sub | Sll | Slt | Sltu | Xor | Srl | Sra | Or | And | Mul | Mulh | Mulhu => {
                let (a, b) = (self.x(inst.rs1), self.x(inst.rs2));
                self.binary(inst.op, a, b)
            }
            Mulhsu => {
                let (a, b) = (self.x(inst.rs1), self.x(inst.rs2));
                // Read as unsigned, a negative factor is 2^64 too large.
                let high = self.builder.ins().umulhi(a, b);
                let sign = self.builder.ins().sshr_imm_u(a, 63);
                let excess = self.builder.ins().band(b, sign);
                self.builder.ins().isub(high, excess)
            }
            Addiw | Slliw | Srliw | Sraiw => {
                let a = self.word(inst.rs1);
                let b = self.builder.ins().iconst(types::I32, i64::from(inst.imm as u32));
                let value = self.binary(inst.op, a, b);
                self.builder.ins().sextend(types::I64, value)
            }
            Addw | Subw | Sllw | Srlw | Sraw | Mulw => {
                let (a, b) = (self.word(inst.rs1), self.word(inst.rs2));
                let value = self.binary(inst.op, a, b);
                self.builder.ins().sextend(types::I64, value)
            }
            Div | Divu | Rem | Remu => {
                let (a, b) = (self.x(inst.rs1), self.x(inst.rs2));
                self.divide(inst.op, a, b)
            }
            Divw | Divuw | Remw | Remuw => {
                let (a, b) = (self.word(inst.rs1), self.word(inst.rs2));
                let value = self.divide(inst.op, a, b);
                self.builder.ins().sextend(types::I64, value)
            }
            _ => return false,
        };
        self.set_x(inst.rd, value);
        true
    }

    /// The low word of an integer register.
    pub(super) fn word(&mut self, register: u8) -> Value {
        let value = self.x(register);
        self.builder.ins().ireduce(types::I32, value)
    }

    /// Operations on two values of one width. Cranelift takes shift amounts
    /// modulo the width, as RISC-V does.
    fn binary(&mut self, op: Op, a: Value, b: Value) -> Value {
        use Op::*;
        let ins = self.builder.ins();
        match op {
            Addi | Add | Addiw | Addw => ins.iadd(a, b),
            Sub | Subw => ins.isub(a, b),
            Xori | Xor => ins.bxor(a, b),
            Ori | Or => ins.bor(a, b),
            Andi | And => ins.band(a, b),
            Slli | Sll | Slliw | Sllw => ins.ishl(a, b),
            Srli | Srl | Srliw | Srlw => ins.ushr(a, b),
            Srai | Sra | Sraiw | Sraw => ins.sshr(a, b),
            Mul | Mulw => ins.imul(a, b),
            Mulh => ins.smulhi(a, b),
            Mulhu => ins.umulhi(a, b),
            _ => {
                let unsigned = matches!(op, Sltiu | Sltu);
                let condition = if unsigned { IntCC::UnsignedLessThan } else { IntCC::SignedLessThan };
                let less = ins.icmp(condition, a, b);
                self.builder.ins().uextend(types::I64, less)
            }
        }
    }

    /// Division without a trap. If the host would fault, the divisor is replaced by 1, which gives
    /// the right result for the overflow. The results of a division by 0 are inserted afterwards.
    fn divide(&mut self, op: Op, a: Value, b: Value) -> Value {
        use Op::*;
        let width = self.builder.func.dfg.value_type(a);
        let by_zero = self.builder.ins().icmp_imm_s(IntCC::Equal, b, 0);
        let one = self.builder.ins().iconst(width, 1);
        let signed = matches!(op, Div | Rem | Divw | Remw);
        let replaced = if signed {
            let least = self.builder.ins().ishl_imm_u(one, i64::from(width.bits() - 1));
            let least = self.builder.ins().icmp(IntCC::Equal, a, least);
            let minus_one = self.builder.ins().icmp_imm_s(IntCC::Equal, b, -1);
            let overflow = self.builder.ins().band(least, minus_one);
            self.builder.ins().bor(by_zero, overflow)
        } else {
            by_zero
        };
        let divisor = self.builder.ins().select(replaced, one, b);
        let ins = self.builder.ins();
        let (outcome, remainder) = match op {
            Div | Divw => (ins.sdiv(a, divisor), false),
            Divu | Divuw => (ins.udiv(a, divisor), false),
            Rem | Remw => (ins.srem(a, divisor), true),
            _ => (ins.urem(a, divisor), true),
        };
        let if_by_zero = if remainder { a } else { self.builder.ins().iconst(width, all_ones(width)) };
        self.builder.ins().select(by_zero, if_by_zero, outcome)
    }
}

/// -1 as an immediate of the width.
fn all_ones(width: Type) -> i64 {
    if width == types::I32 { i64::from(u32::MAX) } else { -1 }
}
