//! Loads and stores.

use cranelift_codegen::ir::condcodes::IntCC;
use cranelift_codegen::ir::{InstBuilder, Value, types};

use super::emitter::{Emitter, GUEST};
use crate::memory::window::WINDOW_LEN_BYTES;
use crate::riscv::inst::{BLOCK_BYTES, Inst, Op};

const BOX: i64 = 0xffff_ffff_0000_0000_u64 as i64;
const HALF_BOX: i64 = 0xffff_ffff_ffff_0000_u64 as i64;

impl Emitter<'_> {
    /// A load.
    pub(super) fn load(&mut self, index: u32, inst: &Inst) {
        use Op::*;
        let addr = self.x(inst.rs1);
        let value = self.access(index, inst, |this| {
            let host = this.host_address(inst, addr);
            let ins = this.builder.ins();
            match inst.op {
                Lb => ins.sload8(types::I64, GUEST, host, inst.imm),
                Lh => ins.sload16(types::I64, GUEST, host, inst.imm),
                Lw => ins.sload32(GUEST, host, inst.imm),
                Lbu => ins.uload8(types::I64, GUEST, host, inst.imm),
                Lhu | Flh => ins.uload16(types::I64, GUEST, host, inst.imm),
                Lwu | Flw => ins.uload32(GUEST, host, inst.imm),
                Fld => ins.load(types::F64, GUEST, host, inst.imm),
                _ => ins.load(types::I64, GUEST, host, inst.imm),
            }
        });
        match inst.op {
            Fld => self.set_f(inst.rd, value),
            Flh => {
                let boxed = self.builder.ins().bor_imm_s(value, HALF_BOX);
                self.set_f_bits(inst.rd, boxed);
            }
            Flw => {
                let boxed = self.builder.ins().bor_imm_s(value, BOX);
                self.set_f_bits(inst.rd, boxed);
            }
            _ => self.set_x(inst.rd, value),
        }
    }

    /// A store; the value of its address register.
    pub(super) fn store(&mut self, index: u32, inst: &Inst) -> Value {
        use Op::*;
        let value = match inst.op {
            Fsd => self.f(inst.rs2),
            Fsw | Fsh => self.f_bits(inst.rs2),
            _ => self.x(inst.rs2),
        };
        let addr = self.x(inst.rs1);
        self.access(index, inst, |this| {
            let host = this.host_address(inst, addr);
            let ins = this.builder.ins();
            match inst.op {
                Sb => ins.istore8(GUEST, value, host, inst.imm),
                Sh | Fsh => ins.istore16(GUEST, value, host, inst.imm),
                Sw | Fsw => ins.istore32(GUEST, value, host, inst.imm),
                _ => ins.store(GUEST, value, host, inst.imm),
            }
        });
        addr
    }

    /// Writes zeros to a cache block; its guest address.
    pub(super) fn zero_block(&mut self, index: u32, inst: &Inst) -> Value {
        let (zero, base) = (self.constant(0), self.x(inst.rs1));
        let addr = self.block_address(base);
        self.may_fault(index, |this| {
            let host = this.host_address(inst, base);
            let host = this.block_address(host);
            for offset in (0..BLOCK_BYTES as i32).step_by(8) {
                this.builder.ins().store(GUEST, zero, host, offset);
            }
        });
        addr
    }

    /// Faults if the program may not read the cache block.
    pub(super) fn touch_block(&mut self, index: u32, inst: &Inst) {
        let base = self.x(inst.rs1);
        self.may_fault(index, |this| {
            let host = this.host_address(inst, base);
            let host = this.block_address(host);
            this.builder.ins().load(types::I8, GUEST, host, 0);
        });
    }

    /// The address of the cache block around an address: a guest's or, since the window begins with
    /// a page, a host's.
    fn block_address(&mut self, addr: Value) -> Value {
        self.builder.ins().band_imm_s(addr, -(BLOCK_BYTES as i64))
    }

    /// The host address of `addr`, the value of the address register. Refuses the instruction if it
    /// is outside the window, unless the register is known to be near enough.
    pub(super) fn host_address(&mut self, inst: &Inst, addr: Value) -> Value {
        if !self.near.reaches(inst) {
            let limit = if self.environment.base_is_limit { self.base } else { self.constant(WINDOW_LEN_BYTES) };
            let beyond = self.builder.ins().icmp(IntCC::UnsignedGreaterThanOrEqual, addr, limit);
            self.refuse_if(beyond);
        }
        self.builder.ins().iadd(self.base, addr)
    }
}
