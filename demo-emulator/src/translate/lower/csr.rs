//! CSR instructions: those of the floating-point state in line, the others by a helper. And the
//! calls of helpers.
//!
//! # Safety
//!
//! [`Emitter::csr`] passes the helper's arguments: the running hart, an instruction that its block
//! keeps, and the code space's window.
#![allow(unsafe_code)]

use cranelift_codegen::ir::{AbiParam, InstBuilder, Signature, Value, types};
use cranelift_codegen::isa::CallConv;

use super::emitter::{Emitter, HOST, REFUSED};
use super::field;
use crate::hart::Hart;
use crate::memory::Window;
use crate::riscv::csr::{FCSR, FFLAGS, FRM};
use crate::riscv::exec::exec;
use crate::riscv::inst::{Inst, Op};

/// The bits of `fflags` and of `frm`; in `fcsr` the first are below the others.
const FFLAGS_MASK: i64 = 31;
const FFLAGS_BITS: i64 = 5;
const FRM_MASK: i64 = 7;

impl Emitter<'_> {
    /// A CSR instruction, as the interpreter executes it. The floating-point state is always in the
    /// hart.
    pub(super) fn csr(&mut self, index: u32, inst: &Inst) {
        let value = match inst.imm {
            FFLAGS | FRM | FCSR => self.float_state(inst),
            _ => self.helped_csr(index, inst),
        };
        self.set_x(inst.rd, value);
    }

    /// Reads the floating-point state, and writes it if the instruction writes; returns the value
    /// for `rd`.
    fn float_state(&mut self, inst: &Inst) -> Value {
        use Op::*;
        let is_immediate = matches!(inst.op, Csrrwi | Csrrsi | Csrrci);
        let operand = if is_immediate { self.constant(inst.rs1.into()) } else { self.x(inst.rs1) };
        let old = match inst.imm {
            FFLAGS => self.state_byte(field::FFLAGS),
            FRM => self.state_byte(field::FRM),
            _ => {
                let (flags, mode) = (self.state_byte(field::FFLAGS), self.state_byte(field::FRM));
                let mode = self.builder.ins().ishl_imm_u(mode, FFLAGS_BITS);
                self.builder.ins().bor(mode, flags)
            }
        };
        let new = match inst.op {
            Csrrw | Csrrwi => operand,
            // Setting or clearing by x0 or 0 is no write.
            _ if inst.rs1 == 0 => return old,
            Csrrs | Csrrsi => self.builder.ins().bor(old, operand),
            _ => {
                let kept = self.builder.ins().bnot(operand);
                self.builder.ins().band(old, kept)
            }
        };
        match inst.imm {
            FFLAGS => self.set_state_byte(field::FFLAGS, new, FFLAGS_MASK),
            FRM => self.set_state_byte(field::FRM, new, FRM_MASK),
            _ => {
                self.set_state_byte(field::FFLAGS, new, FFLAGS_MASK);
                let mode = self.builder.ins().ushr_imm_u(new, FFLAGS_BITS);
                self.set_state_byte(field::FRM, mode, FRM_MASK);
            }
        }
        old
    }

    fn state_byte(&mut self, offset: i32) -> Value {
        self.builder.ins().uload8(types::I64, HOST, self.hart, offset)
    }

    fn set_state_byte(&mut self, offset: i32, value: Value, mask: i64) {
        let kept = self.builder.ins().band_imm_u(value, mask);
        self.builder.ins().istore8(HOST, kept, self.hart, offset);
    }

    /// By the helper, which puts the value for `rd` into the hart.
    fn helped_csr(&mut self, index: u32, inst: &Inst) -> Value {
        let window = self.environment.window as u64;
        self.may_fault(index, |this| {
            let window = this.constant(window);
            this.call_helper(csr_helper as *const () as usize, inst, &[window]);
        });
        self.builder.ins().load(types::I64, HOST, self.hart, self.x.offset_of(inst.rd))
    }

    /// Calls `helper(hart, inst, rest...)`, which returns 0 to refuse the instruction. Call this
    /// within [`may_fault`](Self::may_fault).
    pub(super) fn call_helper(&mut self, helper: usize, inst: &Inst, rest: &[Value]) {
        let mut signature = Signature::new(CallConv::SystemV);
        signature.params.extend((0..2 + rest.len()).map(|_| AbiParam::new(types::I64)));
        signature.returns.push(AbiParam::new(types::I64));
        let signature = self.builder.import_signature(signature);
        let helper = self.constant(helper as u64);
        let inst = self.constant(std::ptr::from_ref(inst) as u64);
        let arguments: Vec<Value> = [self.hart, inst].iter().chain(rest).copied().collect();
        let call = self.builder.ins().call_indirect(signature, helper, &arguments);
        let done = self.builder.inst_results(call)[0];
        self.builder.ins().trapz(done, REFUSED);
    }
}

/// Executes a CSR instruction; 0 if it is illegal.
unsafe extern "C" fn csr_helper(hart: *mut Hart, inst: *const Inst, window: *const Window) -> u64 {
    // SAFETY: see the module's head; compiled code holds no reference to the
    // hart while it waits.
    let (hart, inst, window) = unsafe { (&mut *hart, &*inst, &*window) };
    u64::from(exec(inst, hart, window).is_ok())
}
