//! Loads and stores.

use cranelift_codegen::ir::{InstBuilder, Value, types};

use super::emitter::{Emitter, GUEST};
use crate::memory::window::WINDOW_LEN_BYTES;
use crate::riscv::inst::{Inst, Op};

const BOX: i64 = 0xffff_ffff_0000_0000_u64 as i64;

impl Emitter<'_> {
    /// A load. Its result goes to the hart at once: see the module's head.
    pub(super) fn load(&mut self, index: u32, inst: &Inst) {
        use Op::*;
        let addr = self.address(inst);
        let value = self.may_fault(index, |this| {
            let host = this.host_address(addr);
            let ins = this.builder.ins();
            match inst.op {
                Lb => ins.sload8(types::I64, GUEST, host, 0),
                Lh => ins.sload16(types::I64, GUEST, host, 0),
                Lw => ins.sload32(GUEST, host, 0),
                Lbu => ins.uload8(types::I64, GUEST, host, 0),
                Lhu => ins.uload16(types::I64, GUEST, host, 0),
                Lwu | Flw => ins.uload32(GUEST, host, 0),
                _ => ins.load(types::I64, GUEST, host, 0),
            }
        });
        match inst.op {
            Fld => self.set_f(inst.rd, value),
            Flw => {
                let boxed = self.builder.ins().bor_imm_s(value, BOX);
                self.set_f(inst.rd, boxed);
            }
            _ => self.set_x(inst.rd, value),
        }
        self.flush();
    }

    /// A store; its guest address.
    pub(super) fn store(&mut self, index: u32, inst: &Inst) -> Value {
        use Op::*;
        let value = if matches!(inst.op, Fsw | Fsd) { self.f(inst.rs2) } else { self.x(inst.rs2) };
        let addr = self.address(inst);
        self.may_fault(index, |this| {
            let host = this.host_address(addr);
            let ins = this.builder.ins();
            match inst.op {
                Sb => ins.istore8(GUEST, value, host, 0),
                Sh => ins.istore16(GUEST, value, host, 0),
                Sw | Fsw => ins.istore32(GUEST, value, host, 0),
                _ => ins.store(GUEST, value, host, 0),
            }
        });
        addr
    }

    /// The guest address that a load or a store names.
    fn address(&mut self, inst: &Inst) -> Value {
        let base = self.x(inst.rs1);
        if inst.imm == 0 { base } else { self.builder.ins().iadd_imm_s(base, i64::from(inst.imm)) }
    }

    /// The host address of a guest address. Refuses the instruction if the address is outside the
    /// window. An access that begins in the window and ends beyond it meets the guard pages.
    pub(super) fn host_address(&mut self, addr: Value) -> Value {
        const { assert!(WINDOW_LEN_BYTES.is_power_of_two()) }
        let beyond = self.builder.ins().ushr_imm_u(addr, i64::from(WINDOW_LEN_BYTES.trailing_zeros()));
        self.refuse_if(beyond);
        let base = self.constant(self.environment.base);
        self.builder.ins().iadd(base, addr)
    }
}
