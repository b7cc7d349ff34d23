//! A function that is being built: its guest registers, its constants, its exits.

use std::collections::HashMap;
use std::ops::Range;
use std::ptr::{self, NonNull};
use std::sync::atomic::AtomicU8;

use codewarden::EntryCell;
use cranelift_codegen::ir::{Block, InstBuilder, MemFlagsData, SourceLoc, TrapCode, Value, types};
use cranelift_codegen::isa::TargetFrontendConfig;
use cranelift_frontend::FunctionBuilder;

use super::super::code_space::CodeSpace;
use super::super::entry::ExitReason;
use super::super::options::{BlockOptions, OwnStores};
use super::field;
pub(crate) use super::field::HOST;
use super::registers::Registers;
use crate::memory::Window;
use crate::memory::window::WINDOW_LEN_BYTES;
use crate::riscv::inst::Inst;
use crate::translate::effects::{Effects, Masks};
use crate::translate::near::Near;
use crate::translate::region::{Node, Region};
use crate::translate::restart::{Progress, Restart};

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
    /// Not 0 if the region was overwritten.
    pub(crate) stale_flag: Option<NonNull<AtomicU8>>,
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
            stale_flag: options.stale_flag,
            has_fma: space.has_fma,
        }
    }
}

/// Builds the function of a region, instruction by instruction.
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
    /// The blocks of the region, by address.
    pub(crate) labels: HashMap<u64, Label>,
    pub(crate) environment: Environment,
    /// At the current instruction.
    pub(super) progress: Progress,
    /// The restart of the quiet loop around it.
    pub(crate) quiet_loop: Restart,
    /// The place of the block's first instruction.
    first_index: u32,
    /// The restart of each instruction that can fault.
    restarts: HashMap<u32, FaultsTo>,
}

/// The restart of an instruction.
#[derive(Clone, Copy)]
pub(crate) struct FaultsTo {
    /// Its place.
    pub(crate) restart: u32,
    pub(crate) is_far: bool,
}

/// The start of a block of the region.
#[derive(Clone, Copy)]
pub(crate) struct Label {
    pub(crate) code: Block,
    /// Registers that may be dirty there.
    pub(crate) dirty: Masks,
    pub(crate) quiet_loop: Restart,
}

impl<'a> Emitter<'a> {
    /// At the entry of the function: loads the registers that the region needs.
    pub(crate) fn new(
        mut builder: FunctionBuilder<'a>,
        environment: Environment,
        link: LinkTo<'a>,
        region: &Region<'_>,
    ) -> Self {
        let entry = builder.create_block();
        builder.append_block_params_for_function_params(entry);
        builder.switch_to_block(entry);
        let (hart, base) = (builder.block_params(entry)[0], builder.block_params(entry)[1]);
        let mut x = Registers::new(field::X, types::I64, region.kept.x);
        let mut f = Registers::new(field::F, types::F64, region.kept.f);
        x.load(region.needed.x, hart, &mut builder);
        f.load(region.needed.f, hart, &mut builder);
        let label = |node: &Node<'_>| {
            let label = Label { code: builder.create_block(), dirty: node.dirty, quiet_loop: node.quiet_loop };
            (node.start(), label)
        };
        let labels: HashMap<u64, Label> = region.nodes.iter().map(label).collect();
        builder.ins().jump(labels[&region.nodes[0].start()].code, &[]);
        let near = Near::new();
        let (progress, quiet_loop, restarts) = (Progress::new(None), None, HashMap::new());
        Self {
            builder,
            hart,
            base,
            link,
            x,
            f,
            near,
            labels,
            environment,
            progress,
            quiet_loop,
            first_index: 0,
            restarts,
        }
    }

    /// Goes on at the start of a block of the region.
    pub(crate) fn begin(&mut self, node: &Node<'_>) {
        self.builder.switch_to_block(self.labels[&node.start()].code);
        self.x.begin(node.dirty.x);
        self.f.begin(node.dirty.f);
        self.near = node.near;
        (self.progress, self.quiet_loop) = (Progress::new(node.restart), node.quiet_loop);
        self.first_index = node.first_index;
    }

    /// Before `inst`: its registers get values. Here, since the code of an instruction has branches.
    pub(crate) fn load_operands(&mut self, inst: &Inst) {
        let Masks { x, f } = Effects::of(inst).reads;
        self.x.load_missing(x, self.hart, &mut self.builder);
        self.f.load_missing(f, self.hart, &mut self.builder);
    }

    /// The function is complete. Returns the restart of each instruction that can fault.
    pub(crate) fn finish(mut self, config: TargetFrontendConfig) -> HashMap<u32, FaultsTo> {
        self.builder.seal_all_blocks();
        self.builder.finalize(config);
        self.restarts
    }

    /// The registers that the region keeps.
    pub(super) fn kept(&self) -> Masks {
        Masks { x: self.x.kept, f: self.f.kept }
    }

    /// An integer register's value.
    pub(crate) fn x(&mut self, register: u8) -> Value {
        if register == 0 { self.constant(0) } else { self.x.get(register, &mut self.builder) }
    }

    pub(crate) fn set_x(&mut self, register: u8, value: Value) {
        if register != 0 {
            self.x.set(register, value, &mut self.builder);
        }
    }

    /// A floating-point register's value as a double.
    pub(super) fn f(&mut self, register: u8) -> Value {
        self.f.get(register, &mut self.builder)
    }

    pub(super) fn set_f(&mut self, register: u8, value: Value) {
        self.f.set(register, value, &mut self.builder);
    }

    /// Stores to the hart the registers that it does not have; does not count on it afterwards.
    pub(crate) fn store_dirty(&mut self) {
        self.store_dirty_but(Masks::NONE);
    }

    /// The same, but for the registers in `kept`.
    pub(crate) fn store_dirty_but(&mut self, kept: Masks) {
        self.x.store_dirty(kept.x, self.hart, &mut self.builder);
        self.f.store_dirty(kept.f, self.hart, &mut self.builder);
    }

    /// Brings the hart's registers up to date.
    pub(crate) fn flush(&mut self) {
        self.store_dirty();
        (self.x.dirty, self.f.dirty) = (0, 0);
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
        self.faults_to(index, index, emit)
    }

    /// As [`may_fault`](Self::may_fault), for a load or a store. Brings the hart up to date only if
    /// a fault cannot go back to an earlier restart.
    pub(super) fn access<T>(&mut self, index: u32, inst: &Inst, emit: impl FnOnce(&mut Self) -> T) -> T {
        match self.progress.restart {
            Some(restart) if !self.progress.updates_hart(inst) => self.faults_to(index, restart, emit),
            _ => self.may_fault(index, emit),
        }
    }

    /// The code that `emit` emits may fault for instruction `index`, and goes back to `restart` then. It
    /// stays in its place, and no other access serves for it: see the module's head.
    pub(super) fn faults_to<T>(&mut self, index: u32, restart: u32, emit: impl FnOnce(&mut Self) -> T) -> T {
        // The restart of a quiet loop may be this instruction, in the first round.
        let is_far = !(self.first_index..=index).contains(&restart) || self.quiet_loop.is_some();
        self.restarts.insert(index, FaultsTo { restart, is_far });
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

    /// If `condition` is not 0, goes to code that `emit` makes, and that does not come back.
    pub(crate) fn rarely(&mut self, condition: Value, emit: impl FnOnce(&mut Self)) {
        let (out, on) = (self.builder.create_block(), self.builder.create_block());
        self.builder.set_cold_block(out);
        self.builder.ins().brif(condition, out, &[], on, &[]);
        self.builder.switch_to_block(out);
        emit(self);
        self.builder.switch_to_block(on);
    }

    /// Returns from compiled code. Registers are in the hart.
    pub(crate) fn leave(&mut self, reason: ExitReason) {
        let reason = self.constant(reason as u64);
        self.builder.ins().return_(&[reason]);
    }
}
