//! The check after a store: did it hit its own block?
//!
//! A store that overlaps the block's own bytes ends the block, because the next instructions were
//! decoded from bytes that are gone. For a single block, comparing addresses shows the overlap in
//! every state of the page, and costs less than reading a flag in memory. It is not enough if the
//! same bytes have other addresses too, or for several blocks; then the code polls the cache's stale
//! flag ([`codewarden::Ticket::stale_flag`]).

use cranelift_codegen::ir::condcodes::IntCC;
use cranelift_codegen::ir::{InstBuilder, Value, types};

use super::emitter::{Emitter, HOST};
use crate::riscv::inst::Inst;
use crate::translate::entry::ExitReason;
use crate::translate::options::OwnStores;

impl Emitter<'_> {
    /// After a store at `addr`, the value of its address register: leaves if the next instructions may have changed.
    pub(super) fn leave_if_overwritten(&mut self, pc: u64, inst: &Inst, addr: Value) {
        let condition = match self.environment.own_stores {
            OwnStores::Ignore => return,
            OwnStores::Compare => self.overlaps_block(addr, inst),
            OwnStores::Poll(flag) => {
                let flag = self.constant(flag.as_ptr() as u64);
                self.builder.ins().load(types::I8, HOST, flag, 0)
            }
        };
        self.rarely(condition, |this| {
            this.store_dirty();
            this.set_pc(pc.wrapping_add(u64::from(inst.len)));
            this.leave(ExitReason::SelfModified);
        });
    }

    /// Whether a byte of the block was stored to. A store may also begin before the block, by less
    /// than its own length.
    fn overlaps_block(&mut self, addr: Value, inst: &Inst) -> Value {
        let first = self.environment.start.wrapping_sub(inst.op.stored_bytes() - 1);
        let reach = self.environment.end.wrapping_sub(first);
        let distance =
            self.builder.ins().iadd_imm_s(addr, first.wrapping_neg().wrapping_add(inst.imm as i64 as u64) as i64);
        self.builder.ins().icmp_imm_u(IntCC::UnsignedLessThan, distance, reach as i64)
    }
}
