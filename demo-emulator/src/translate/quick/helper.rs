//! Instructions without code of their own: a helper executes them on the hart.
//!
//! # Safety
//!
//! Compiled code calls [`help`] with the running hart, an instruction that its block keeps, and the
//! code space's window. These instructions access no guest memory.
#![allow(unsafe_code)]

use std::ptr;

use super::asm::{Alu, BASE, Condition, HART, Operand, RAX, RDX, Width, emit};
use super::builder::{Builder, Rare};
use crate::hart::Hart;
use crate::memory::Window;
use crate::riscv::exec::exec;
use crate::riscv::inst::{Inst, Op};
use crate::translate::effects::Effects;

/// Whether the helper executes the operation.
pub(super) fn is_helped(op: Op) -> bool {
    use Op::*;
    let is_in = |first: Op, last: Op| (first as u8..=last as u8).contains(&(op as u8));
    match op {
        Fmv_x_w | Fmv_w_x | Fmv_x_d | Fmv_d_x | Fmv_x_h | Fmv_h_x | Fsgnj_d | Fsgnjn_d | Fsgnjx_d => false,
        Csrrw | Csrrs | Csrrc | Csrrwi | Csrrsi | Csrrci | Cpop | Cpopw | Clmul | Clmulh | Clmulr => true,
        _ => is_in(Fmadd_s, Fclass_s) || is_in(Fmadd_d, Fclass_d) || is_in(Fcvt_s_h, Fcvt_h_d),
    }
}

impl Builder<'_> {
    /// Calls the helper for `inst`, the next of the kept ones. Host registers that the call may
    /// change are given up; the hart has their values.
    pub(super) fn call_helper(&mut self, inst: &Inst) {
        let Some((kept, rest)) = self.kept.split_first() else { return };
        debug_assert_eq!(kept, inst);
        self.kept = rest;
        let offset = ptr::from_ref(kept) as usize - self.first_kept as usize;
        emit!(self.asm, movl_oi(RAX, offset as u32));
        let call = self.asm.call();
        self.rare.push((call, Rare::Help));
        self.refuse_if(Condition::Equal);
        self.cache.pass_call();
        if Effects::of(inst).writes.x & 1 << inst.rd != 0 {
            self.cache.forget(inst.rd);
        }
    }
}

impl Builder<'_> {
    /// The code that the calls of the helper share. In rax it gets the offset of the instruction
    /// among the kept ones. The flags say `Equal` if the instruction does not retire.
    pub(super) fn helper_call(&mut self) {
        // Calls want the stack at a multiple of 16: these are four words, with two return addresses.
        emit!(self.asm, pushq_o(HART));
        emit!(self.asm, pushq_o(BASE));
        self.asm.constant(BASE, self.first_kept as u64);
        self.asm.alu(Alu::Add, Width::Double, BASE, Operand::Register(RAX));
        self.asm.constant(RDX, self.window as u64);
        self.asm.constant(RAX, help as *const () as u64);
        emit!(self.asm, callq_m(RAX));
        emit!(self.asm, popq_o(BASE));
        emit!(self.asm, popq_o(HART));
        emit!(self.asm, testl_mr(RAX, RAX));
        self.asm.leave();
    }
}

/// Executes an instruction but for its effect on the pc; 0 if it does not retire.
unsafe extern "C" fn help(hart: *mut Hart, inst: *const Inst, window: *const Window) -> u64 {
    // SAFETY: see the module's head; compiled code holds no reference to the hart while it waits.
    let (hart, inst, window) = unsafe { (&mut *hart, &*inst, &*window) };
    let pc = hart.pc;
    let done = exec(inst, hart, window).is_ok();
    // Compiled code counts on its high half.
    hart.pc = pc;
    u64::from(done)
}
