//! The end of a block: ways to other blocks, in the region or outside, and returns to the dispatcher.

use codewarden::FRONT_SLOTS;
use cranelift_codegen::ir::condcodes::IntCC;
use cranelift_codegen::ir::{AbiParam, InstBuilder, Signature, Value, types};
use cranelift_codegen::isa::CallConv;

use super::effects::Masks;
use super::entry::ExitReason;
use super::lower::emitter::{Emitter, HOST, Label};
use super::lower::field;
use super::region::is_backward;
use super::restart::enters_quiet_loop;
use crate::riscv::inst::{Inst, Op};

/// The signature of every region: hart and base; returns the reason.
pub(super) fn signature() -> Signature {
    let mut signature = Signature::new(CallConv::Tail);
    signature.params.extend([AbiParam::new(types::I64), AbiParam::new(types::I64)]);
    signature.returns.push(AbiParam::new(types::I64));
    signature
}

impl Emitter<'_> {
    /// The last instruction of a block and the ways on from it. `returns`: the addresses in the
    /// region that a return probably leads to.
    pub(super) fn end_block(&mut self, pc: u64, inst: &Inst, returns: &[u64]) {
        let next = pc.wrapping_add(u64::from(inst.len));
        let target = pc.wrapping_add(inst.imm as i64 as u64);
        match inst.op {
            Op::Jal => {
                let link = self.constant(next);
                self.set_x(inst.rd, link);
                self.go(pc, target);
            }
            Op::Jalr => {
                let base = self.x(inst.rs1);
                let target = self.builder.ins().iadd_imm_s(base, i64::from(inst.imm));
                let target = self.builder.ins().band_imm_s(target, !1);
                let link = self.constant(next);
                self.set_x(inst.rd, link);
                for &back in returns {
                    let leads_there = self.builder.ins().icmp_imm_u(IntCC::Equal, target, back as i64);
                    let (there, on) = (self.builder.create_block(), self.builder.create_block());
                    self.builder.ins().brif(leads_there, there, &[], on, &[]);
                    self.builder.switch_to_block(there);
                    self.go(pc, back);
                    self.builder.switch_to_block(on);
                }
                self.exit_indirect(target);
            }
            Op::Fence_i => {
                self.builder.ins().fence();
                self.store_dirty();
                self.set_pc(next);
                self.leave(ExitReason::FenceI);
            }
            Op::Ecall | Op::Ebreak | Op::Illegal => {
                self.store_dirty();
                self.set_pc(pc);
                self.leave(ExitReason::Trap);
            }
            _ => {
                let taken = self.branch_condition(inst);
                let (then, otherwise) = (self.builder.create_block(), self.builder.create_block());
                self.builder.ins().brif(taken, then, &[], otherwise, &[]);
                self.builder.switch_to_block(then);
                self.go(pc, target);
                self.builder.switch_to_block(otherwise);
                self.go(pc, next);
            }
        }
    }

    /// Goes from the instruction at `pc` to a constant address, in the region or outside.
    pub(super) fn go(&mut self, pc: u64, target: u64) {
        let backward = is_backward(pc, target);
        match self.labels.get(&target).copied() {
            Some(Label { code, dirty, quiet_loop }) => {
                if backward {
                    self.poll_within(target);
                }
                let is_quiet_ahead = enters_quiet_loop(self.quiet_loop, quiet_loop);
                self.store_dirty_but(if is_quiet_ahead { Masks::NONE } else { dirty });
                self.builder.ins().jump(code, &[]);
            }
            None => {
                self.store_dirty();
                self.set_pc(target);
                if backward {
                    self.poll();
                }
                self.exit_direct(target);
            }
        }
    }

    /// Goes to a constant address through the cell of its block. The hart is up to date.
    fn exit_direct(&mut self, target: u64) {
        match (self.link)(target) {
            Some(cell) => {
                let cell = self.constant(cell.as_ptr() as u64);
                self.jump_through(cell);
            }
            None => self.leave(ExitReason::Miss),
        }
    }

    /// Goes through the front's slot for `target`.
    fn exit_indirect(&mut self, target: Value) {
        self.store_dirty();
        self.builder.ins().store(HOST, target, self.hart, field::PC);
        self.poll();
        let front = self.builder.ins().load(types::I64, HOST, self.hart, field::FRONT);
        // `Key::front_index`; slots have 16 bytes.
        let row = self.builder.ins().ishl_imm_u(target, 3);
        let row = self.builder.ins().band_imm_u(row, (FRONT_SLOTS as i64 - 1) << 4);
        let row = self.builder.ins().iadd(front, row);
        let pc = self.builder.ins().load(types::I64, HOST, row, 0);
        let differs = self.builder.ins().icmp(IntCC::NotEqual, pc, target);
        self.rarely(differs, |this| this.leave(ExitReason::IndirectMiss));
        let cell = self.builder.ins().load(types::I64, HOST, row, 8);
        self.jump_through(cell);
    }

    fn jump_through(&mut self, cell: Value) {
        let code = self.builder.ins().load(types::I64, HOST, cell, 0);
        let signature = self.builder.import_signature(signature());
        self.builder.ins().return_call_indirect(signature, code, &[self.hart, self.base]);
    }

    /// Leaves if the hart was asked to. The hart is up to date, with its pc.
    fn poll(&mut self) {
        let request = self.exit_request();
        self.rarely(request, |this| this.leave(ExitReason::Interrupted));
    }

    /// Before a jump backward within the region: leaves at `target` if the hart was asked to. If the
    /// region was overwritten, goes on through the cell.
    fn poll_within(&mut self, target: u64) {
        let request = self.exit_request();
        let stale = self.environment.stale_flag.map(|flag| {
            let flag = self.constant(flag.as_ptr() as u64);
            self.builder.ins().load(types::I8, HOST, flag, 0)
        });
        let either = stale.map_or(request, |stale| self.builder.ins().bor(request, stale));
        self.rarely(either, |this| {
            this.store_dirty();
            this.set_pc(target);
            if stale.is_some() {
                let request = this.exit_request();
                let (asked, overwritten) = (this.builder.create_block(), this.builder.create_block());
                this.builder.ins().brif(request, asked, &[], overwritten, &[]);
                this.builder.switch_to_block(overwritten);
                this.exit_direct(target);
                this.builder.switch_to_block(asked);
            }
            this.leave(ExitReason::Interrupted);
        });
    }

    fn exit_request(&mut self) -> Value {
        // A request that comes later must be seen: no earlier load may serve for this one.
        self.builder.ins().sequence_point();
        self.builder.ins().load(types::I8, HOST, self.hart, field::EXIT_REQUEST)
    }
}
