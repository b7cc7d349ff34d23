//! LR, SC, the atomic memory operations and FENCE, as `riscv::atomic` executes them: an SC is a
//! compare-and-exchange with the value that its LR loaded.

use cranelift_codegen::ir::condcodes::IntCC;
use cranelift_codegen::ir::{AtomicRmwOp, BlockArg, InstBuilder, Type, Value, types};

use super::emitter::{Emitter, GUEST, HOST};
use super::field;
use crate::riscv::inst::{Inst, Op};

/// The `rl` bit of `Inst::rm`.
const RELEASE: u8 = 1;
/// FENCE's sets: earlier stores, later loads.
const PREDECESSOR_WRITES: i32 = 1 << 4;
const SUCCESSOR_READS: i32 = 1 << 1;

impl Emitter<'_> {
    pub(super) fn load_reserved(&mut self, index: u32, inst: &Inst) {
        let width = width(inst.op);
        let addr = self.x(inst.rs1);
        if inst.rm & RELEASE != 0 {
            self.builder.ins().fence();
        }
        let value = self.may_fault(index, |this| {
            let host = this.atomic_address(inst, addr, width);
            this.builder.ins().atomic_load(width, GUEST, host)
        });
        let value = self.extended(value);
        let held = self.builder.ins().iconst(types::I8, 1);
        self.builder.ins().store(HOST, held, self.hart, field::RESERVED);
        self.builder.ins().store(HOST, addr, self.hart, field::RESERVATION_ADDR);
        self.builder.ins().store(HOST, value, self.hart, field::RESERVATION_VALUE);
        self.set_x(inst.rd, value);
    }

    /// An SC; returns its guest address.
    pub(super) fn store_conditional(&mut self, index: u32, inst: &Inst) -> Value {
        let width = width(inst.op);
        let (addr, new) = (self.x(inst.rs1), self.operand(inst, width));
        let (attempt, done) = (self.builder.create_block(), self.builder.create_block());
        let failed = self.builder.append_block_param(done, types::I64);
        // A misaligned SC traps with or without a reservation.
        self.may_fault(index, |this| this.refuse_misaligned(addr, width));
        let reserved = self.builder.ins().load(types::I8, HOST, self.hart, field::RESERVED);
        let reserved_addr = self.builder.ins().load(types::I64, HOST, self.hart, field::RESERVATION_ADDR);
        let same = self.builder.ins().icmp(IntCC::Equal, addr, reserved_addr);
        let holds = self.builder.ins().band(reserved, same);
        let one = self.constant(1);
        self.builder.ins().brif(holds, attempt, &[], done, &[BlockArg::Value(one)]);

        self.builder.switch_to_block(attempt);
        let expected = self.builder.ins().load(width, HOST, self.hart, field::RESERVATION_VALUE);
        let seen = self.may_fault(index, |this| {
            let host = this.host_address(inst, addr);
            this.builder.ins().atomic_cas(GUEST, host, expected, new)
        });
        let differs = self.builder.ins().icmp(IntCC::NotEqual, seen, expected);
        let differs = self.builder.ins().uextend(types::I64, differs);
        self.builder.ins().jump(done, &[BlockArg::Value(differs)]);

        self.builder.switch_to_block(done);
        let free = self.builder.ins().iconst(types::I8, 0);
        self.builder.ins().store(HOST, free, self.hart, field::RESERVED);
        self.set_x(inst.rd, failed);
        addr
    }

    /// An AMO; returns its guest address.
    pub(super) fn atomic(&mut self, index: u32, inst: &Inst) -> Value {
        use Op::*;
        let op = match inst.op {
            Amoswap_w | Amoswap_d => AtomicRmwOp::Xchg,
            Amoadd_w | Amoadd_d => AtomicRmwOp::Add,
            Amoxor_w | Amoxor_d => AtomicRmwOp::Xor,
            Amoand_w | Amoand_d => AtomicRmwOp::And,
            Amoor_w | Amoor_d => AtomicRmwOp::Or,
            Amomin_w | Amomin_d => AtomicRmwOp::Smin,
            Amomax_w | Amomax_d => AtomicRmwOp::Smax,
            Amominu_w | Amominu_d => AtomicRmwOp::Umin,
            _ => AtomicRmwOp::Umax,
        };
        let width = width(inst.op);
        let (addr, operand) = (self.x(inst.rs1), self.operand(inst, width));
        let old = self.may_fault(index, |this| {
            let host = this.atomic_address(inst, addr, width);
            this.builder.ins().atomic_rmw(width, GUEST, op, host, operand)
        });
        let old = self.extended(old);
        self.set_x(inst.rd, old);
        addr
    }

    /// A fence, if the host needs one: x86-64 keeps every order except a store before a later load.
    pub(super) fn fence(&mut self, inst: &Inst) {
        let store_load = inst.imm & PREDECESSOR_WRITES != 0 && inst.imm & SUCCESSOR_READS != 0;
        if store_load || cfg!(not(target_arch = "x86_64")) {
            self.builder.ins().fence();
        }
    }

    fn operand(&mut self, inst: &Inst, width: Type) -> Value {
        if width == types::I32 { self.word(inst.rs2) } else { self.x(inst.rs2) }
    }

    fn extended(&mut self, value: Value) -> Value {
        let is_word = self.builder.func.dfg.value_type(value) == types::I32;
        if is_word { self.builder.ins().sextend(types::I64, value) } else { value }
    }

    fn atomic_address(&mut self, inst: &Inst, addr: Value, width: Type) -> Value {
        self.refuse_misaligned(addr, width);
        self.host_address(inst, addr)
    }

    fn refuse_misaligned(&mut self, addr: Value, width: Type) {
        let low = self.builder.ins().band_imm_u(addr, i64::from(width.bytes()) - 1);
        self.refuse_if(low);
    }
}

fn width(op: Op) -> Type {
    use Op::*;
    match op {
        Lr_w | Sc_w | Amoswap_w | Amoadd_w | Amoxor_w | Amoand_w | Amoor_w | Amomin_w | Amomax_w | Amominu_w
        | Amomaxu_w => types::I32,
        _ => types::I64,
    }
}
