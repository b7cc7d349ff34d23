//! One instruction's effect, in Cranelift's terms.
//!
//! An [`Emitter`] holds the guest registers of the region that is being built, and what is known
//! about them at the current instruction.

mod atomic;
mod bits;
mod csr;
pub(super) mod emitter;
pub(super) mod field;
mod float;
mod integer;
mod memory;
mod own_store;
mod registers;
mod rounding_error;

use crate::riscv::inst::{Inst, Op};
use emitter::Emitter;

impl Emitter<'_> {
    /// Emits an instruction that does not end a block. `index` identifies it in the fault table;
    /// `inst` stays in place as long as the code.
    pub(super) fn lower(&mut self, index: u32, pc: u64, inst: &Inst) {
        self.lower_inst(index, pc, inst);
        self.near.pass(inst);
        self.progress.pass(index, inst, self.kept());
    }

    fn lower_inst(&mut self, index: u32, pc: u64, inst: &Inst) {
        use Op::*;
        match inst.op {
            Lb | Lh | Lw | Ld | Lbu | Lhu | Lwu | Flh | Flw | Fld => self.load(index, inst),
            Cbo_clean | Cbo_flush => self.touch_block(index, inst),
            Cbo_zero => {
                let addr = self.zero_block(index, inst);
                self.leave_if_overwritten(pc, inst, addr);
            }
            Sb | Sh | Sw | Sd | Fsh | Fsw | Fsd => {
                let addr = self.store(index, inst);
                self.leave_if_overwritten(pc, inst, addr);
            }
            Lr_w | Lr_d => self.load_reserved(index, inst),
            Sc_w | Sc_d => {
                let addr = self.store_conditional(index, inst);
                self.leave_if_overwritten(pc, inst, addr);
            }
            Amoswap_w | Amoadd_w | Amoxor_w | Amoand_w | Amoor_w | Amomin_w | Amomax_w | Amominu_w | Amomaxu_w
            | Amoswap_d | Amoadd_d | Amoxor_d | Amoand_d | Amoor_d | Amomin_d | Amomax_d | Amominu_d | Amomaxu_d => {
                let addr = self.atomic(index, inst);
                self.leave_if_overwritten(pc, inst, addr);
            }
            Fence => self.fence(inst),
            Csrrw | Csrrs | Csrrc | Csrrwi | Csrrsi | Csrrci => self.csr(index, inst),
            _ if self.integer(pc, inst) || self.bits(inst) => {}
            _ => self.float(index, inst),
        }
    }
}
