//! The entry and the end of a block: the count of its runs, ways to other blocks, and returns to
//! the dispatcher.
//!
//! At the entry `hart.pc` is the block's start. So a new pc in the same 4 GiB needs only its low
//! half stored.

use std::sync::atomic::AtomicI32;

use codewarden::FRONT_SLOTS;

use super::asm::{Alu, Condition, HART, Operand, RAX, RCX, Shift, Width, at, emit};
use super::builder::{Builder, Rare};
use crate::riscv::inst::{Inst, Op};
use crate::translate::entry::ExitReason;
use crate::translate::lower::field;
use crate::translate::region::is_backward;

/// Bytes of a front's slot, as a shift of its index; a pc is two times its key.
const ROW_SHIFT: u8 = 3;
const ROW_MASK: i32 = (FRONT_SLOTS as i32 - 1) << 4;

impl Builder<'_> {
    /// Counts a run; leaves if it is one too many. Threads that count at once may lose a count.
    pub(super) fn count_run(&mut self, counter: *const AtomicI32) {
        self.asm.constant(RAX, counter as u64);
        emit!(self.asm, subl_mi_sxb(at(RAX, 0), 1));
        self.rarely_if(Condition::Sign, Rare::Leave(ExitReason::Hot));
    }

    /// The last instruction of a block and the ways on from it.
    pub(super) fn end_block(&mut self, inst: &Inst) {
        let pc = self.pc;
        let next = pc.wrapping_add(u64::from(inst.len));
        let target = pc.wrapping_add(inst.imm as i64 as u64);
        let condition = match inst.op {
            Op::Jal => {
                self.set_constant(inst.rd, next);
                return self.go(target);
            }
            Op::Jalr => return self.jump_indirect(inst, next),
            Op::Fence_i => {
                self.asm.fence();
                self.store_pc(next);
                return self.leave(ExitReason::FenceI);
            }
            Op::Ecall | Op::Ebreak | Op::Illegal => {
                self.store_pc(pc);
                return self.leave(ExitReason::Trap);
            }
            Op::Beq => Condition::Equal,
            Op::Bne => Condition::NotEqual,
            Op::Blt => Condition::Less,
            Op::Bge => Condition::GreaterOrEqual,
            Op::Bltu => Condition::Below,
            _ => Condition::AboveOrEqual,
        };
        let condition = self.compare(inst.rs1, inst.rs2, condition);
        let taken = self.asm.short_jump_if(condition);
        self.go(next);
        self.asm.land_short(taken);
        self.go(target);
    }

    /// Goes to a constant address through the cell of its block.
    pub(super) fn go(&mut self, target: u64) {
        self.store_pc(target);
        if is_backward(self.pc, target) {
            self.poll();
        }
        match (self.link)(target) {
            Some(cell) => {
                self.asm.constant(RAX, cell.as_ptr() as u64);
                emit!(self.asm, jmpq_m(at(RAX, 0)));
            }
            None => self.leave(ExitReason::Miss),
        }
    }

    /// Goes through the front's slot for the target.
    fn jump_indirect(&mut self, inst: &Inst, next: u64) {
        let base = self.x(inst.rs1);
        match inst.imm {
            0 => self.asm.copy(RAX, base),
            imm => emit!(self.asm, leaq_rm(RAX, at(base, imm))),
        }
        self.asm.alu(Alu::And, Width::Double, RAX, Operand::Immediate(!1));
        self.set_constant(inst.rd, next);
        emit!(self.asm, movq_mr(at(HART, field::PC), RAX));
        self.poll();
        // `Key::front_index`.
        emit!(self.asm, movl_mr(RCX, RAX));
        self.asm.shift(Shift::Left, Width::Word, RCX, ROW_SHIFT);
        self.asm.alu(Alu::And, Width::Word, RCX, Operand::Immediate(ROW_MASK));
        emit!(self.asm, addq_rm(RCX, at(HART, field::FRONT)));
        emit!(self.asm, cmpq_rm(RAX, at(RCX, 0)));
        self.rarely_if(Condition::NotEqual, Rare::Leave(ExitReason::IndirectMiss));
        emit!(self.asm, movq_rm(RAX, at(RCX, 8)));
        emit!(self.asm, jmpq_m(at(RAX, 0)));
    }

    /// Leaves if the hart was asked to. The hart has its pc.
    fn poll(&mut self) {
        emit!(self.asm, cmpb_mi(at(HART, field::EXIT_REQUEST), 0));
        self.rarely_if(Condition::NotEqual, Rare::Leave(ExitReason::Interrupted));
    }

    /// The hart goes on at `pc`. Changes rax.
    pub(super) fn store_pc(&mut self, pc: u64) {
        if pc >> 32 == self.start >> 32 {
            emit!(self.asm, movl_mi(at(HART, field::PC), pc as u32));
        } else {
            self.asm.constant(RAX, pc);
            emit!(self.asm, movq_mr(at(HART, field::PC), RAX));
        }
    }

    /// Returns from compiled code. The hart has its pc.
    pub(super) fn leave(&mut self, reason: ExitReason) {
        self.asm.constant(RAX, reason as u64);
        self.asm.leave();
    }
}
