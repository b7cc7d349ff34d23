//! LR, SC, the atomic memory operations and FENCE, as `riscv::atomic` executes them: an SC is a
//! compare-and-exchange with the value that its LR loaded.

use super::asm::{Alu, Condition, HART, Host, Memory, Operand, RAX, RDX, Width, at, emit, emit_by_width};
use super::builder::Builder;
use crate::riscv::inst::{Inst, Op};
use crate::translate::lower::field;

/// The `rl` bit of `Inst::rm`.
const RELEASE: u8 = 1;
/// FENCE's sets: earlier stores, later loads.
const PREDECESSOR_WRITES: i32 = 1 << 4;
const SUCCESSOR_READS: i32 = 1 << 1;

impl Builder<'_> {
    pub(super) fn load_reserved(&mut self, inst: &Inst) {
        let width = width(inst.op);
        if inst.rm & RELEASE != 0 {
            self.asm.fence();
        }
        let addr = self.aligned(inst, width);
        let memory = self.guest_at(inst, addr);
        let to = if inst.rd == 0 { RAX } else { self.cache.take() };
        self.may_fault(|this| emit_by_width!(this.asm, width, movq_rm | movslq_rm(to, memory)));
        emit!(self.asm, movb_mi(at(HART, field::RESERVED), 1));
        emit!(self.asm, movq_mr(at(HART, field::RESERVATION_ADDR), addr));
        emit!(self.asm, movq_mr(at(HART, field::RESERVATION_VALUE), to));
        self.set_x(inst.rd, to);
    }

    pub(super) fn store_conditional(&mut self, inst: &Inst) {
        let width = width(inst.op);
        let new = self.x(inst.rs2);
        // A misaligned SC traps with or without a reservation.
        let addr = self.aligned(inst, width);
        emit!(self.asm, cmpb_mi(at(HART, field::RESERVED), 1));
        let free = self.asm.short_jump_if(Condition::NotEqual);
        emit!(self.asm, cmpq_rm(addr, at(HART, field::RESERVATION_ADDR)));
        let elsewhere = self.asm.short_jump_if(Condition::NotEqual);
        let memory = self.guest_at(inst, addr);
        emit!(self.asm, movq_rm(RAX, at(HART, field::RESERVATION_VALUE)));
        self.compare_and_exchange(width, memory, new);
        self.asm.set(Condition::NotEqual, RDX);
        let tried = self.asm.short_jump();
        self.asm.land_short(free);
        self.asm.land_short(elsewhere);
        self.asm.constant(RDX, 1);
        self.asm.land_short(tried);
        emit!(self.asm, movb_mi(at(HART, field::RESERVED), 0));
        self.set_copy(inst.rd, RDX);
        self.leave_if_overwritten(inst, addr, 0);
    }

    pub(super) fn atomic(&mut self, inst: &Inst) {
        use Op::*;
        let width = width(inst.op);
        let operand = self.x(inst.rs2);
        let addr = self.aligned(inst, width);
        let memory = self.guest_at(inst, addr);
        match inst.op {
            Amoswap_w | Amoswap_d => {
                self.asm.copy(RAX, operand);
                self.may_fault(|this| emit_by_width!(this.asm, width, xchgq_rm | xchgl_rm(RAX, memory)));
            }
            Amoadd_w | Amoadd_d => {
                self.asm.copy(RAX, operand);
                self.may_fault(|this| emit_by_width!(this.asm, width, lock_xaddq_mr | lock_xaddl_mr(memory, RAX)));
            }
            _ => {
                self.may_fault(|this| emit_by_width!(this.asm, width, movq_rm | movl_rm(RAX, memory)));
                let again = self.asm.offset();
                self.asm.copy(RDX, RAX);
                self.combine(inst.op, width, operand);
                self.compare_and_exchange(width, memory, RDX);
                self.asm.short_jump_back_if_not_equal(again);
            }
        }
        if width == Width::Word {
            emit!(self.asm, movslq_rm(RAX, RAX));
        }
        self.set_copy(inst.rd, RAX);
        self.leave_if_overwritten(inst, addr, 0);
    }

    /// rdx, a copy of the old value in rax, becomes the new one.
    fn combine(&mut self, op: Op, width: Width, operand: Host) {
        use Op::*;
        let second = Operand::Register(operand);
        match op {
            Amoxor_w | Amoxor_d => self.asm.alu(Alu::Xor, width, RDX, second),
            Amoand_w | Amoand_d => self.asm.alu(Alu::And, width, RDX, second),
            Amoor_w | Amoor_d => self.asm.alu(Alu::Or, width, RDX, second),
            _ => {
                self.asm.alu(Alu::Cmp, width, RAX, second);
                match op {
                    Amomin_w | Amomin_d => emit!(self.asm, cmovgq_rm(RDX, operand)),
                    Amomax_w | Amomax_d => emit!(self.asm, cmovlq_rm(RDX, operand)),
                    Amominu_w | Amominu_d => emit!(self.asm, cmovaq_rm(RDX, operand)),
                    _ => emit!(self.asm, cmovbq_rm(RDX, operand)),
                }
            }
        }
    }

    /// Stores `new` if the memory has the value in rax; loads its value there in any case.
    fn compare_and_exchange(&mut self, width: Width, memory: Memory, new: Host) {
        self.may_fault(|this| {
            emit_by_width!(this.asm, width, lock_cmpxchgq_mr | lock_cmpxchgl_mr(memory, new, RAX));
        });
    }

    /// The guest register's new value is in a host register that holds none for long.
    fn set_copy(&mut self, guest: u8, from: Host) {
        if guest != 0 {
            let to = self.cache.take();
            self.asm.copy(to, from);
            self.set_x(guest, to);
        }
    }

    /// The register with the address, which must be aligned.
    fn aligned(&mut self, inst: &Inst, width: Width) -> Host {
        let addr = self.x(inst.rs1);
        let mask: u8 = if width == Width::Word { 3 } else { 7 };
        emit!(self.asm, testb_mi(addr, mask));
        self.refuse_if(Condition::NotEqual);
        addr
    }

    /// A fence, if the host needs one: it keeps every order except a store before a later load.
    pub(super) fn fence(&mut self, inst: &Inst) {
        if inst.imm & PREDECESSOR_WRITES != 0 && inst.imm & SUCCESSOR_READS != 0 {
            self.asm.fence();
        }
    }
}

fn width(op: Op) -> Width {
    use Op::*;
    match op {
        Lr_w | Sc_w | Amoswap_w | Amoadd_w | Amoxor_w | Amoand_w | Amoor_w | Amomin_w | Amomax_w | Amominu_w
        | Amomaxu_w => Width::Word,
        _ => Width::Double,
    }
}
