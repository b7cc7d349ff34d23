//! One instruction's effect, in Cranelift's terms.
//!
//! An [`Emitter`] holds the guest registers of the code that is being built. It does not depend on
//! the instructions before and after the current one.

mod atomic;
mod float;
mod integer;
mod memory;
mod own_store;

use std::mem::offset_of;
use std::ops::Range;
use std::ptr;

use cranelift_codegen::ir::{InstBuilder, MemFlagsData, SourceLoc, Value, types};
use cranelift_codegen::isa::TargetFrontendConfig;
use cranelift_frontend::FunctionBuilder;

use super::block::{BlockOptions, OwnStores, REFUSED};
use super::code_space::CodeSpace;
use crate::memory::Window;
use crate::riscv::inst::{Inst, Op};

/// The emulator's own memory: aligned, never faults.
pub(super) const HOST: MemFlagsData = MemFlagsData::trusted();
/// The guest's: any alignment, may fault.
const GUEST: MemFlagsData = MemFlagsData::new();

/// Offsets in the hart.
pub(super) mod field {
    use super::offset_of;
    use crate::hart::Hart;

    const fn of(offset: usize) -> i32 {
        offset as i32
    }

    pub(in super::super) const PC: i32 = of(offset_of!(Hart, pc));
    pub(in super::super) const EXIT_REQUEST: i32 = of(offset_of!(Hart, exit_request));
    pub(in super::super) const FRONT: i32 = of(offset_of!(Hart, front));
    pub(super) const X: i32 = of(offset_of!(Hart, x));
    pub(super) const F: i32 = of(offset_of!(Hart, f));
    pub(super) const FFLAGS: i32 = of(offset_of!(Hart, fflags));
    pub(super) const RESERVED: i32 = of(offset_of!(Hart, reserved));
    pub(super) const RESERVATION_ADDR: i32 = of(offset_of!(Hart, reservation_addr));
    pub(super) const RESERVATION_VALUE: i32 = of(offset_of!(Hart, reservation_value));
    pub(super) const REGISTER_BYTES: i32 = 8;

    // The floating-point guard reads both bytes at once.
    const _: () = assert!(offset_of!(Hart, frm) == offset_of!(Hart, fflags) + 1 && FFLAGS % 2 == 0);
}

/// Addresses that compiled code has as constants.
#[derive(Clone, Copy, Debug)]
pub(super) struct Environment {
    /// Host address of guest address 0.
    base: u64,
    /// The window, for helpers.
    window: *const Window,
    /// First of the block's guest bytes.
    start: u64,
    /// One past the last.
    end: u64,
    own_stores: OwnStores,
    has_fma: bool,
}

impl Environment {
    /// The environment of a block of the guest bytes `own_bytes`.
    pub(super) fn new(space: &CodeSpace, own_bytes: Range<u64>, options: &BlockOptions) -> Self {
        Self {
            base: space.window.base() as u64,
            window: ptr::from_ref(&space.window),
            start: own_bytes.start,
            end: own_bytes.end,
            own_stores: options.own_stores,
            has_fma: space.has_fma,
        }
    }
}

/// The registers of one of the two files.
struct Registers {
    /// Offset of the first in the hart.
    offset: i32,
    values: [Option<Value>; 32],
    /// Registers that the hart does not have yet.
    dirty: u32,
}

impl Registers {
    fn new(offset: i32) -> Self {
        Self { offset, values: [None; 32], dirty: 0 }
    }

    fn offset_of(&self, register: u8) -> i32 {
        self.offset + i32::from(register) * field::REGISTER_BYTES
    }

    fn get(&mut self, register: u8, hart: Value, builder: &mut FunctionBuilder) -> Value {
        let offset = self.offset_of(register);
        *self.values[usize::from(register)].get_or_insert_with(|| builder.ins().load(types::I64, HOST, hart, offset))
    }

    fn set(&mut self, register: u8, value: Value) {
        self.values[usize::from(register)] = Some(value);
        self.dirty |= 1 << register;
    }

    fn flush(&mut self, hart: Value, builder: &mut FunctionBuilder) {
        while self.dirty != 0 {
            let register = self.dirty.trailing_zeros() as u8;
            self.dirty &= self.dirty - 1;
            if let Some(value) = self.values[usize::from(register)] {
                builder.ins().store(HOST, value, hart, self.offset_of(register));
            }
        }
    }
}

/// Builds a function, instruction by instruction.
pub(super) struct Emitter<'a> {
    pub(super) builder: FunctionBuilder<'a>,
    pub(super) hart: Value,
    x: Registers,
    f: Registers,
    environment: Environment,
}

impl<'a> Emitter<'a> {
    pub(super) fn new(mut builder: FunctionBuilder<'a>, environment: Environment) -> Self {
        let entry = builder.create_block();
        builder.append_block_params_for_function_params(entry);
        builder.switch_to_block(entry);
        let hart = builder.block_params(entry)[0];
        Self { builder, hart, x: Registers::new(field::X), f: Registers::new(field::F), environment }
    }

    pub(super) fn finish(mut self, config: TargetFrontendConfig) {
        self.builder.seal_all_blocks();
        self.builder.finalize(config);
    }

    /// Emits an instruction that does not end a block. `index` identifies it in the fault table;
    /// `inst` stays in place as long as the code.
    pub(super) fn lower(&mut self, index: u32, pc: u64, inst: &Inst) {
        use Op::*;
        match inst.op {
            Lb | Lh | Lw | Ld | Lbu | Lhu | Lwu | Flw | Fld => self.load(index, inst),
            Sb | Sh | Sw | Sd | Fsw | Fsd => {
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
            _ if self.integer(pc, inst) => {}
            _ => self.float(index, inst),
        }
    }

    /// An integer register's value.
    pub(super) fn x(&mut self, register: u8) -> Value {
        if register == 0 { self.constant(0) } else { self.x.get(register, self.hart, &mut self.builder) }
    }

    pub(super) fn set_x(&mut self, register: u8, value: Value) {
        if register != 0 {
            self.x.set(register, value);
        }
    }

    /// A floating-point register's 64 bits.
    fn f(&mut self, register: u8) -> Value {
        self.f.get(register, self.hart, &mut self.builder)
    }

    fn set_f(&mut self, register: u8, bits: Value) {
        self.f.set(register, bits);
    }

    /// Brings the hart's registers up to date.
    pub(super) fn flush(&mut self) {
        self.x.flush(self.hart, &mut self.builder);
        self.f.flush(self.hart, &mut self.builder);
    }

    pub(super) fn constant(&mut self, value: u64) -> Value {
        self.builder.ins().iconst(types::I64, value as i64)
    }

    pub(super) fn set_pc(&mut self, pc: u64) {
        let pc = self.constant(pc);
        self.builder.ins().store(HOST, pc, self.hart, field::PC);
    }

    /// Brings the hart up to date. The code that `emit` emits may fault for instruction `index`.
    fn may_fault<T>(&mut self, index: u32, emit: impl FnOnce(&mut Self) -> T) -> T {
        self.flush();
        self.builder.set_srcloc(SourceLoc::new(index));
        let result = emit(self);
        self.builder.set_srcloc(SourceLoc::default());
        result
    }

    /// Refuses the instruction if `condition` is not 0.
    fn refuse_if(&mut self, condition: Value) {
        self.builder.ins().trapnz(condition, REFUSED);
    }
}
