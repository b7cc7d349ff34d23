//! A function that is being built: its guest registers, its constants, its exits.

use std::ops::Range;
use std::ptr;

use cranelift_codegen::ir::{Block, InstBuilder, MemFlagsData, SourceLoc, TrapCode, Value, types};
use cranelift_codegen::isa::TargetFrontendConfig;
use cranelift_frontend::FunctionBuilder;

use super::super::code_space::CodeSpace;
use super::super::entry::ExitReason;
use super::super::options::{BlockOptions, OwnStores};
use super::field;
use crate::memory::Window;

/// The emulator's own memory: aligned, never faults.
pub(crate) const HOST: MemFlagsData = MemFlagsData::trusted();
/// The guest's: any alignment, may fault.
pub(super) const GUEST: MemFlagsData = MemFlagsData::new();

/// The trap of an inline check; the fault index names the instruction.
pub(super) const REFUSED: TrapCode = TrapCode::unwrap_user(1);

/// Addresses that compiled code has as constants.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Environment {
    /// Host address of guest address 0.
    pub(super) base: u64,
    /// The window, for helpers.
    pub(super) window: *const Window,
    /// First of the block's guest bytes.
    pub(super) start: u64,
    /// One past the last.
    pub(super) end: u64,
    pub(super) own_stores: OwnStores,
    pub(super) has_fma: bool,
}

impl Environment {
    /// The environment of a block of the guest bytes `own_bytes`.
    pub(crate) fn new(space: &CodeSpace, own_bytes: Range<u64>, options: &BlockOptions) -> Self {
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
pub(super) struct Registers {
    /// Offset of the first in the hart.
    offset: i32,
    pub(super) values: [Option<Value>; 32],
    /// Registers that the hart does not have yet.
    dirty: u32,
}

impl Registers {
    fn new(offset: i32) -> Self {
        Self { offset, values: [None; 32], dirty: 0 }
    }

    pub(super) fn offset_of(&self, register: u8) -> i32 {
        self.offset + i32::from(register) * field::REGISTER_BYTES
    }

    pub(super) fn get(&mut self, register: u8, hart: Value, builder: &mut FunctionBuilder) -> Value {
        let offset = self.offset_of(register);
        *self.values[usize::from(register)].get_or_insert_with(|| builder.ins().load(types::I64, HOST, hart, offset))
    }

    pub(super) fn set(&mut self, register: u8, value: Value) {
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
pub(crate) struct Emitter<'a> {
    pub(crate) builder: FunctionBuilder<'a>,
    pub(crate) hart: Value,
    pub(super) x: Registers,
    pub(super) f: Registers,
    pub(super) environment: Environment,
}

impl<'a> Emitter<'a> {
    pub(crate) fn new(mut builder: FunctionBuilder<'a>, environment: Environment) -> Self {
        let entry = builder.create_block();
        builder.append_block_params_for_function_params(entry);
        builder.switch_to_block(entry);
        let hart = builder.block_params(entry)[0];
        Self { builder, hart, x: Registers::new(field::X), f: Registers::new(field::F), environment }
    }

    pub(crate) fn finish(mut self, config: TargetFrontendConfig) {
        self.builder.seal_all_blocks();
        self.builder.finalize(config);
    }

    /// An integer register's value.
    pub(crate) fn x(&mut self, register: u8) -> Value {
        if register == 0 { self.constant(0) } else { self.x.get(register, self.hart, &mut self.builder) }
    }

    pub(crate) fn set_x(&mut self, register: u8, value: Value) {
        if register != 0 {
            self.x.set(register, value);
        }
    }

    /// A floating-point register's 64 bits.
    pub(super) fn f(&mut self, register: u8) -> Value {
        self.f.get(register, self.hart, &mut self.builder)
    }

    pub(super) fn set_f(&mut self, register: u8, bits: Value) {
        self.f.set(register, bits);
    }

    /// Brings the hart's registers up to date.
    pub(crate) fn flush(&mut self) {
        self.x.flush(self.hart, &mut self.builder);
        self.f.flush(self.hart, &mut self.builder);
    }

    pub(crate) fn constant(&mut self, value: u64) -> Value {
        self.builder.ins().iconst(types::I64, value as i64)
    }

    pub(crate) fn set_pc(&mut self, pc: u64) {
        let pc = self.constant(pc);
        self.builder.ins().store(HOST, pc, self.hart, field::PC);
    }

    /// Brings the hart up to date. The code that `emit` emits may fault for instruction `index`.
    pub(super) fn may_fault<T>(&mut self, index: u32, emit: impl FnOnce(&mut Self) -> T) -> T {
        self.flush();
        self.builder.set_srcloc(SourceLoc::new(index));
        let result = emit(self);
        self.builder.set_srcloc(SourceLoc::default());
        result
    }

    /// Refuses the instruction if `condition` is not 0.
    pub(super) fn refuse_if(&mut self, condition: Value) {
        self.builder.ins().trapnz(condition, REFUSED);
    }

    /// Branches to `out`, which leaves, if `condition` is not 0; goes on at `on`.
    pub(crate) fn leave_if(&mut self, condition: Value, out: Block, on: Block, reason: ExitReason) {
        self.builder.set_cold_block(out);
        self.builder.ins().brif(condition, out, &[], on, &[]);
        self.builder.switch_to_block(out);
        self.leave(reason);
        self.builder.switch_to_block(on);
    }

    /// Returns from compiled code.
    pub(crate) fn leave(&mut self, reason: ExitReason) {
        let reason = self.constant(reason as u64);
        self.builder.ins().return_(&[reason]);
    }
}
