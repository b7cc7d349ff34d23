//! A function that is being built: its guest registers, its constants, its exits.

use std::ops::Range;
use std::ptr::{self, NonNull};

use codewarden::EntryCell;
use cranelift_codegen::ir::{Block, InstBuilder, MemFlagsData, SourceLoc, TrapCode, Value, types};
use cranelift_codegen::isa::TargetFrontendConfig;
use cranelift_frontend::FunctionBuilder;

use super::super::code_space::CodeSpace;
use super::super::entry::ExitReason;
use super::super::options::{BlockOptions, OwnStores};
use super::field;
use super::near::Near;
use crate::memory::Window;
use crate::memory::window::WINDOW_LEN_BYTES;

/// The emulator's own memory: aligned, never faults.
pub(crate) const HOST: MemFlagsData = MemFlagsData::trusted();
/// The guest's: any alignment, may fault.
pub(super) const GUEST: MemFlagsData = MemFlagsData::new();

/// The trap of an inline check; the fault index names the instruction.
pub(super) const REFUSED: TrapCode = TrapCode::unwrap_user(1);

/// Gives the cell of the block at a guest pc, if it can be linked to.
pub type LinkTo<'a> = &'a mut dyn FnMut(u64) -> Option<NonNull<EntryCell>>;

/// Addresses that compiled code has as constants.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Environment {
    /// Whether the host address of guest address 0 is also the length of the window.
    pub(super) base_is_limit: bool,
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
            base_is_limit: space.window.base() as u64 == WINDOW_LEN_BYTES,
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
    /// Host address of guest address 0.
    pub(crate) base: Value,
    pub(crate) link: LinkTo<'a>,
    pub(super) x: Registers,
    pub(super) f: Registers,
    /// Which integer registers are known to hold addresses in or near the window.
    pub(super) near: Near,
    pub(super) environment: Environment,
}

impl<'a> Emitter<'a> {
    pub(crate) fn new(mut builder: FunctionBuilder<'a>, environment: Environment, link: LinkTo<'a>) -> Self {
        let entry = builder.create_block();
        builder.append_block_params_for_function_params(entry);
        builder.switch_to_block(entry);
        let (hart, base) = (builder.block_params(entry)[0], builder.block_params(entry)[1]);
        let (x, f) = (Registers::new(field::X), Registers::new(field::F));
        Self { builder, hart, base, link, x, f, near: Near::new(), environment }
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
            self.near.forget(register);
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

    /// Brings the hart up to date. The code that `emit` emits may fault for instruction `index`. It
    /// stays in its place, and no other access serves for it: see the module's head.
    pub(super) fn may_fault<T>(&mut self, index: u32, emit: impl FnOnce(&mut Self) -> T) -> T {
        self.flush();
        self.builder.set_srcloc(SourceLoc::new(index));
        let result = emit(self);
        self.builder.set_srcloc(SourceLoc::default());
        self.builder.ins().sequence_point();
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
