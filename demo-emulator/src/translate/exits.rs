//! The exits of a block: jumps to other blocks, and returns to the dispatcher.

use codewarden::FRONT_SLOTS;
use cranelift_codegen::ir::{self, AbiParam, InstBuilder, Signature, Value, types};
use cranelift_codegen::isa::CallConv;

use super::entry::{ExitReason, LinkSlot};
use super::lower::emitter::{Emitter, HOST};
use super::lower::field;
use crate::riscv::inst::{Inst, Op};

/// Whether this operation ends a block; any other may stand anywhere.
pub fn ends_block(op: Op) -> bool {
    use Op::*;
    matches!(op, Jal | Jalr | Beq | Bne | Blt | Bge | Bltu | Bgeu | Fence_i | Ecall | Ebreak | Illegal)
}

/// The signature of every block.
pub(super) fn signature() -> Signature {
    let mut signature = Signature::new(CallConv::Tail);
    signature.params.extend([AbiParam::new(types::I64), AbiParam::new(types::I64)]);
    signature.returns.push(AbiParam::new(types::I64));
    signature
}

/// How many direct exits a block has if it ends with `op`.
pub(super) fn exit_count(op: Op) -> usize {
    match op {
        Op::Beq | Op::Bne | Op::Blt | Op::Bge | Op::Bltu | Op::Bgeu => 2,
        Op::Jalr | Op::Fence_i | Op::Ecall | Op::Ebreak | Op::Illegal => 0,
        _ => 1,
    }
}

impl Emitter<'_> {
    /// The last instruction of a block and the exits after it.
    pub(super) fn end_block(&mut self, pc: u64, inst: &Inst, links: &[LinkSlot]) {
        let next = pc.wrapping_add(u64::from(inst.len));
        let target = pc.wrapping_add(inst.imm as i64 as u64);
        match inst.op {
            Op::Jal => {
                let link = self.constant(next);
                self.set_x(inst.rd, link);
                self.flush();
                self.exit_direct(target, target <= pc, &links[0]);
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
                self.exit_direct(target, target <= pc, &links[0]);
                self.builder.switch_to_block(otherwise);
                self.exit_direct(next, false, &links[1]);
            }
        }
    }

    /// Goes to a constant address through `link`. Registers are in the hart.
    pub(super) fn exit_direct(&mut self, target: u64, backward: bool, link: &LinkSlot) {
        self.set_pc(target);
        if backward {
            self.poll();
        }
        let slot = self.constant(std::ptr::from_ref(link) as u64);
        let cell = self.builder.ins().load(types::I64, HOST, slot, 0);
        self.jump_through(cell, slot);
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
        let no_slot = self.constant(0);
        self.jump_through(cell, no_slot);
    }

    fn jump_through(&mut self, cell: Value, slot: Value) {
        let code = self.builder.ins().load(types::I64, HOST, cell, 0);
        let signature = self.builder.import_signature(signature());
        self.builder.ins().return_call_indirect(signature, code, &[self.hart, slot]);
    }

    /// Leaves if the hart was asked to. The pc is in the hart.
    fn poll(&mut self) {
        let request = self.builder.ins().load(types::I8, HOST, self.hart, field::EXIT_REQUEST);
        let (asked, on) = (self.builder.create_block(), self.builder.create_block());
        self.leave_if(request, asked, on, ExitReason::Interrupted);
    }
}
