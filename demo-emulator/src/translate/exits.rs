//! The exits of a block: jumps to other blocks, and returns to the dispatcher.

use codewarden::FRONT_SLOTS;
use cranelift_codegen::ir::{self, AbiParam, InstBuilder, Signature, Value, types};
use cranelift_codegen::isa::CallConv;

use super::entry::ExitReason;
use super::lower::emitter::{Emitter, HOST};
use super::lower::field;
use crate::riscv::inst::{Inst, Op};

/// Whether this operation ends a block; any other may stand anywhere.
pub fn ends_block(op: Op) -> bool {
    use Op::*;
    matches!(op, Jal | Jalr | Beq | Bne | Blt | Bge | Bltu | Bgeu | Fence_i | Ecall | Ebreak | Illegal)
}

/// The signature of every block: hart and base; returns the reason.
pub(super) fn signature() -> Signature {
    let mut signature = Signature::new(CallConv::Tail);
    signature.params.extend([AbiParam::new(types::I64), AbiParam::new(types::I64)]);
    signature.returns.push(AbiParam::new(types::I64));
    signature
}

impl Emitter<'_> {
    /// The last instruction of a block and the exits after it.
    pub(super) fn end_block(&mut self, pc: u64, inst: &Inst) {
        let next = pc.wrapping_add(u64::from(inst.len));
        let target = pc.wrapping_add(inst.imm as i64 as u64);
        match inst.op {
            Op::Jal => {
                let link = self.constant(next);
                self.set_x(inst.rd, link);
                self.flush();
                self.exit_direct(target, target <= pc);
            }
            Op::Jalr => {
                let base = self.x(inst.rs1);
                let target = self.builder.ins().iadd_imm_s(base, i64::from(inst.imm));
                let target = self.builder.ins().band_imm_s(target, !1);
                let link = self.constant(next);
                self.set_x(inst.rd, link);
                self.flush();
                self.exit_indirect(target);
            }
            Op::Fence_i => {
                self.builder.ins().fence();
                self.flush();
                self.set_pc(next);
                self.leave(ExitReason::FenceI);
            }
            Op::Ecall | Op::Ebreak | Op::Illegal => {
                self.flush();
                self.set_pc(pc);
                self.leave(ExitReason::Trap);
            }
            _ => {
                let taken = self.branch_condition(inst);
                self.flush();
                let (then, otherwise) = (self.builder.create_block(), self.builder.create_block());
                self.builder.ins().brif(taken, then, &[], otherwise, &[]);
                self.builder.switch_to_block(then);
                self.exit_direct(target, target <= pc);
                self.builder.switch_to_block(otherwise);
                self.exit_direct(next, false);
            }
        }
    }

    /// Goes to a constant address through the cell of its block. Registers are in the hart.
    pub(super) fn exit_direct(&mut self, target: u64, backward: bool) {
        self.set_pc(target);
        if backward {
            self.poll();
        }
        match (self.link)(target) {
            Some(cell) => {
                let cell = self.constant(cell.as_ptr() as u64);
                self.jump_through(cell);
            }
            None => self.leave(ExitReason::Miss),
        }
    }

    /// Goes through the front's slot for `target`. Registers are in the hart.
    fn exit_indirect(&mut self, target: Value) {
        self.builder.ins().store(HOST, target, self.hart, field::PC);
        self.poll();
        let (hit, miss) = (self.builder.create_block(), self.builder.create_block());
        self.builder.set_cold_block(miss);
        let front = self.builder.ins().load(types::I64, HOST, self.hart, field::FRONT);
        // `Key::front_index`; slots have 16 bytes.
        let row = self.builder.ins().ishl_imm_u(target, 3);
        let row = self.builder.ins().band_imm_u(row, (FRONT_SLOTS as i64 - 1) << 4);
        let row = self.builder.ins().iadd(front, row);
        let pc = self.builder.ins().load(types::I64, HOST, row, 0);
        let same = self.builder.ins().icmp(ir::condcodes::IntCC::Equal, pc, target);
        self.builder.ins().brif(same, hit, &[], miss, &[]);
        self.builder.switch_to_block(miss);
        self.leave(ExitReason::IndirectMiss);
        self.builder.switch_to_block(hit);
        let cell = self.builder.ins().load(types::I64, HOST, row, 8);
        self.jump_through(cell);
    }

    fn jump_through(&mut self, cell: Value) {
        let code = self.builder.ins().load(types::I64, HOST, cell, 0);
        let signature = self.builder.import_signature(signature());
        self.builder.ins().return_call_indirect(signature, code, &[self.hart, self.base]);
    }

    /// Leaves if the hart was asked to. The pc is in the hart.
    fn poll(&mut self) {
        // A request that comes later must be seen: no earlier load may serve for this one.
        self.builder.ins().sequence_point();
        let request = self.builder.ins().load(types::I8, HOST, self.hart, field::EXIT_REQUEST);
        let (asked, on) = (self.builder.create_block(), self.builder.create_block());
        self.leave_if(request, asked, on, ExitReason::Interrupted);
    }
}
