//! Loads and stores, and the check after a store: did it hit its own block?

use super::asm::{Alu, BASE, Condition, HART, Host, Memory, Operand, RAX, RCX, Scale, Width, at, emit, indexed};
use super::builder::{Builder, Rare};
use crate::riscv::inst::{BLOCK_BYTES, Inst, Op};
use crate::translate::lower::field;
use crate::translate::options::OwnStores;

/// The bits above a single, boxed.
pub(super) const BOX: u64 = 0xffff_ffff_0000_0000;
/// The bits above a half, boxed; sign-extended.
pub(super) const HALF_BOX: i32 = !0xffff;

/// A floating-point register in the hart.
pub(super) fn f(register: u8) -> Memory {
    at(HART, field::F + i32::from(register) * field::REGISTER_BYTES)
}

impl Builder<'_> {
    pub(super) fn load(&mut self, inst: &Inst) {
        use Op::*;
        let (memory, addr) = self.guest(inst);
        let to = match inst.op {
            Flh | Flw | Fld => RAX,
            _ if inst.rd == 0 => RAX,
            _ => self.result(inst.rd, inst.rs1, addr),
        };
        self.may_fault(|this| match inst.op {
            Lb => emit!(this.asm, movsbq_rm(to, memory)),
            Lh => emit!(this.asm, movswq_rm(to, memory)),
            Lw => emit!(this.asm, movslq_rm(to, memory)),
            Lbu => emit!(this.asm, movzbl_rm(to, memory)),
            Lhu | Flh => emit!(this.asm, movzwl_rm(to, memory)),
            Lwu | Flw => emit!(this.asm, movl_rm(to, memory)),
            _ => emit!(this.asm, movq_rm(to, memory)),
        });
        match inst.op {
            Fld => emit!(self.asm, movq_mr(f(inst.rd), RAX)),
            Flw => self.set_single(inst.rd),
            Flh => self.set_half(inst.rd),
            _ => self.set_x(inst.rd, to),
        }
    }

    /// A floating-point register's new value is the single in rax, which has zeros above it.
    pub(super) fn set_single(&mut self, rd: u8) {
        self.asm.constant(RCX, BOX);
        self.asm.alu(Alu::Or, Width::Double, RAX, Operand::Register(RCX));
        emit!(self.asm, movq_mr(f(rd), RAX));
    }

    /// The same for a half.
    pub(super) fn set_half(&mut self, rd: u8) {
        self.asm.alu(Alu::Or, Width::Double, RAX, Operand::Immediate(HALF_BOX));
        emit!(self.asm, movq_mr(f(rd), RAX));
    }

    pub(super) fn store(&mut self, inst: &Inst) {
        use Op::*;
        let is_float = matches!(inst.op, Fsh | Fsw | Fsd);
        let value = if is_float { Operand::Register(RAX) } else { self.operand(inst.rs2) };
        let (memory, addr) = self.guest(inst);
        if is_float {
            emit!(self.asm, movq_rm(RAX, f(inst.rs2)));
        }
        self.may_fault(|this| match (inst.op, value) {
            (Sb, Operand::Register(value)) => emit!(this.asm, movb_mr(memory, value)),
            (Sh | Fsh, Operand::Register(value)) => emit!(this.asm, movw_mr(memory, value)),
            (Sw | Fsw, Operand::Register(value)) => emit!(this.asm, movl_mr(memory, value)),
            (_, Operand::Register(value)) => emit!(this.asm, movq_mr(memory, value)),
            (Sb, Operand::Immediate(value)) => emit!(this.asm, movb_mi(memory, value as u8)),
            (Sh, Operand::Immediate(value)) => emit!(this.asm, movw_mi(memory, value as u16)),
            (Sw, Operand::Immediate(value)) => emit!(this.asm, movl_mi(memory, value as u32)),
            (_, Operand::Immediate(value)) => emit!(this.asm, movq_mi_sxl(memory, value)),
        });
        self.leave_if_overwritten(inst, addr, inst.imm);
    }

    /// The address in rcx of the cache block that `inst` acts on: the guest's. Since the window
    /// begins with a page, host blocks are guest blocks.
    fn block(&mut self, inst: &Inst) {
        let addr = self.x(inst.rs1);
        let _ = self.guest_at(inst, addr);
        self.asm.copy(RCX, addr);
        self.asm.alu(Alu::And, Width::Double, RCX, Operand::Immediate(-(BLOCK_BYTES as i32)));
    }

    /// Writes zeros to a cache block.
    pub(super) fn zero_block(&mut self, inst: &Inst) {
        self.block(inst);
        self.may_fault(|this| {
            for offset in (0..BLOCK_BYTES as i32).step_by(8) {
                emit!(this.asm, movq_mi_sxl(indexed(BASE, RCX, Scale::One, offset), 0));
            }
        });
        self.leave_if_overwritten(inst, RCX, 0);
    }

    /// Faults if the program may not read the cache block.
    pub(super) fn touch_block(&mut self, inst: &Inst) {
        self.block(inst);
        self.may_fault(|this| emit!(this.asm, movzbl_rm(RAX, indexed(BASE, RCX, Scale::One, 0))));
    }

    /// After a store at `addr` plus `offset`: leaves if it may have changed the next instructions. A
    /// store may also begin before the block, by less than its own length. Changes rax.
    pub(super) fn leave_if_overwritten(&mut self, inst: &Inst, addr: Host, offset: i32) {
        let next = self.pc.wrapping_add(u64::from(inst.len));
        match self.own_stores {
            OwnStores::Ignore => {}
            OwnStores::Compare => {
                let first = self.start.wrapping_sub(inst.op.stored_bytes() - 1);
                let reach = self.end.wrapping_sub(first) as i32;
                let offset = first.wrapping_neg().wrapping_add(offset as i64 as u64) as i64;
                match i32::try_from(offset) {
                    Ok(offset) => emit!(self.asm, leaq_rm(RAX, at(addr, offset))),
                    Err(_) => {
                        self.asm.constant(RAX, offset as u64);
                        self.asm.alu(Alu::Add, Width::Double, RAX, Operand::Register(addr));
                    }
                }
                self.asm.alu(Alu::Cmp, Width::Double, RAX, Operand::Immediate(reach));
                self.rarely_if(Condition::Below, Rare::SelfModified(next));
            }
            OwnStores::Poll(flag) => {
                self.asm.constant(RAX, flag.as_ptr() as u64);
                emit!(self.asm, cmpb_mi(at(RAX, 0), 0));
                self.rarely_if(Condition::NotEqual, Rare::SelfModified(next));
            }
        }
    }
}
