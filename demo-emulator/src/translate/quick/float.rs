//! Floating-point operations that only move bits. Floating-point registers stay in the hart.

use super::asm::{Alu, Operand, RAX, RCX, Shift, Width, emit};
use super::builder::Builder;
use super::memory::f;
use crate::riscv::inst::{Inst, Op};

impl Builder<'_> {
    pub(super) fn float_move(&mut self, inst: &Inst) {
        use Op::*;
        match inst.op {
            Fmv_x_d | Fmv_x_w | Fmv_x_h => {
                if inst.rd == 0 {
                    return;
                }
                let to = self.cache.take();
                match inst.op {
                    Fmv_x_d => emit!(self.asm, movq_rm(to, f(inst.rs1))),
                    Fmv_x_w => emit!(self.asm, movslq_rm(to, f(inst.rs1))),
                    _ => emit!(self.asm, movswq_rm(to, f(inst.rs1))),
                }
                self.set_x(inst.rd, to);
            }
            Fmv_d_x => {
                let from = self.x(inst.rs1);
                emit!(self.asm, movq_mr(f(inst.rd), from));
            }
            Fmv_w_x => {
                let from = self.x(inst.rs1);
                emit!(self.asm, movl_mr(RAX, from));
                self.set_single(inst.rd);
            }
            Fmv_h_x => {
                let from = self.x(inst.rs1);
                self.asm.copy(RAX, from);
                self.set_half(inst.rd);
            }
            _ => self.inject_sign(inst),
        }
    }

    fn inject_sign(&mut self, inst: &Inst) {
        emit!(self.asm, movq_rm(RAX, f(inst.rs1)));
        if inst.op != Op::Fsgnj_d || inst.rs1 != inst.rs2 {
            emit!(self.asm, movq_rm(RCX, f(inst.rs2)));
            if inst.op == Op::Fsgnjn_d {
                emit!(self.asm, notq_m(RCX));
            }
            if inst.op != Op::Fsgnjx_d {
                // The sign changes if it differs.
                self.asm.alu(Alu::Xor, Width::Double, RCX, Operand::Register(RAX));
            }
            self.asm.shift(Shift::Right, Width::Double, RCX, 63);
            self.asm.shift(Shift::Left, Width::Double, RCX, 63);
            self.asm.alu(Alu::Xor, Width::Double, RAX, Operand::Register(RCX));
        }
        emit!(self.asm, movq_mr(f(inst.rd), RAX));
    }
}
