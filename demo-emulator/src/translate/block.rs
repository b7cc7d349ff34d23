//! One basic block: its exits, its compilation, its memory.
//!
//! # Safety
//!
//! The one unsafe call enters the block's fault table in the index. The table is boxed, and the
//! block owns it and takes it out of the index when it is dropped.
#![allow(unsafe_code)]

use std::fmt;
use std::io;
use std::ops::Range;
use std::ptr::NonNull;
use std::sync::atomic::AtomicU8;
use std::sync::{Arc, PoisonError};

use codewarden::FRONT_ENTRIES;
use codewarden::code_buffer::Allocation;
use cranelift_codegen::ir::{AbiParam, Block, InstBuilder, Signature, TrapCode, Value, types};
use cranelift_codegen::isa::CallConv;
use cranelift_codegen::{Context, ir};
use cranelift_frontend::{FunctionBuilder, FunctionBuilderContext};
use cranelift_jit::{JITBuilder, JITModule};
use cranelift_module::{Module, ModuleError, default_libcall_names};

use super::check::Check;
use super::code_space::{CodeSpace, OneFunction, Place};
use super::entry::{ExitReason, LinkSlot};
use super::fault_index::{FaultPoint, FaultTable};
use super::lower::{Emitter, Environment, HOST, field};
use crate::riscv::inst::{Inst, Op};

/// The trap of an inline check; the fault index names the instruction.
pub(super) const REFUSED: TrapCode = TrapCode::unwrap_user(1);

/// A block's reaction to its own stores that hit the block itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum OwnStores {
    /// None: the guest announces such stores by an instruction that ends a block.
    #[default]
    Ignore,
    /// Leaves after a store that overlaps the block's bytes.
    Compare,
    /// Leaves after a store if this byte, the block's [`codewarden::Ticket::stale_flag`], is not 0:
    /// the block's bytes have other addresses too. The byte must stay in place as long as the block
    /// can run.
    Poll(NonNull<AtomicU8>),
}

impl OwnStores {
    /// A number for each reaction: a block made for one cannot serve for another.
    pub fn kind(self) -> u64 {
        match self {
            Self::Ignore => 0,
            Self::Compare => 1,
            Self::Poll(_) => 2,
        }
    }
}

/// How a block is to be compiled.
#[derive(Clone, Copy, Debug, Default)]
pub struct BlockOptions<'a> {
    /// The reaction to its own stores.
    pub own_stores: OwnStores,
    /// The guest bytes that the instructions were decoded from, at the first one's address. With
    /// them the block gets a checked entry.
    pub source: Option<&'a [u8]>,
}

/// Why a block could not be compiled.
#[derive(Debug)]
pub enum TranslateError {
    /// Cranelift cannot generate code for this host.
    Host(String),
    /// The fault handler could not be installed.
    Signal(io::Error),
    /// The code buffer is full: drop blocks and try again.
    NoCodeMemory(io::Error),
    /// Other harts could not be made to see the code.
    Publish(codewarden::error::Error),
    /// Cranelift refused the block: a defect of the translator.
    Compile(String),
    /// An empty block.
    Empty,
}

impl fmt::Display for TranslateError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Host(why) => write!(f, "no code can be generated for this host: {why}"),
            Self::Signal(error) => write!(f, "cannot install the fault handler: {error}"),
            Self::NoCodeMemory(error) => write!(f, "no room for compiled code: {error}"),
            Self::Publish(error) => write!(f, "cannot publish compiled code: {error}"),
            Self::Compile(why) => write!(f, "the compiler refused a block: {why}"),
            Self::Empty => f.write_str("a block has one instruction at least"),
        }
    }
}

impl std::error::Error for TranslateError {}

impl From<ModuleError> for TranslateError {
    fn from(error: ModuleError) -> Self {
        match error {
            ModuleError::Allocation { err } => Self::NoCodeMemory(err),
            other => Self::Compile(format!("{other:?}")),
        }
    }
}

/// Whether this operation ends a block; any other may stand anywhere.
pub fn ends_block(op: Op) -> bool {
    use Op::*;
    matches!(op, Jal | Jalr | Beq | Bne | Blt | Bge | Bltu | Bgeu | Fence_i | Ecall | Ebreak | Illegal)
}

/// Host code of one block. Dropping it frees the code: by then no hart may be in it or find it.
#[derive(Debug)]
pub struct CompiledBlock {
    space: Arc<CodeSpace>,
    code: Allocation,
    /// The entry's address.
    entry: usize,
    /// The length of the compiler's part.
    function_bytes: usize,
    /// The instructions of the checked entry.
    check: Option<Range<usize>>,
    /// Boxed: the index holds its address.
    faults: Box<FaultTable>,
    /// Compiled code holds the addresses of both.
    links: Box<[LinkSlot]>,
    insts: Box<[Inst]>,
}

impl CompiledBlock {
    /// The plain value of an entry cell for this block.
    pub fn entry(&self) -> usize {
        self.entry
    }

    /// The value while a page of the block is checked.
    pub fn checked_entry(&self) -> Option<usize> {
        self.check.as_ref().map(|check| self.entry() + check.start)
    }

    /// Length of the code, with the checked entry.
    pub fn len_bytes(&self) -> usize {
        self.code.len()
    }

    /// The bytes that it owns: its code and its tables.
    pub fn owned_bytes(&self) -> usize {
        let beside_bytes = size_of_val(&*self.faults)
            + size_of_val(&*self.faults.points)
            + size_of_val(&*self.links)
            + size_of_val(&*self.insts);
        self.code.len() + beside_bytes
    }

    /// The direct exits.
    pub fn links(&self) -> &[LinkSlot] {
        &self.links
    }

    /// The instructions at the plain entry and at the checked one; each with its address.
    pub fn code(&self) -> impl Iterator<Item = (usize, Vec<u8>)> {
        let bytes = self.bytes();
        [Some(0..self.function_bytes), self.check.clone()]
            .into_iter()
            .flatten()
            .map(move |range| (self.entry() + range.start, bytes[range].to_vec()))
    }

    fn bytes(&self) -> &[u8] {
        // SAFETY: the executable view of the whole allocation, which is no longer written to.
        unsafe { std::slice::from_raw_parts(self.code.rx(), self.code.len()) }
    }
}

impl Drop for CompiledBlock {
    fn drop(&mut self) {
        self.space.faults.remove(self.faults.start);
    }
}

/// Compiles blocks; each compiling thread has one.
pub struct Translator {
    space: Arc<CodeSpace>,
    context: Context,
    builder_context: FunctionBuilderContext,
}

impl fmt::Debug for Translator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Translator").field("space", &self.space).finish_non_exhaustive()
    }
}

impl Translator {
    /// A translator into `space`.
    pub fn new(space: Arc<CodeSpace>) -> Self {
        Self { space, context: Context::new(), builder_context: FunctionBuilderContext::new() }
    }

    /// Compiles one block: instructions with their addresses. Only the last may be one that
    /// [`ends_block`]; if it is not, the block continues at the next instruction.
    ///
    /// # Errors
    ///
    /// [`TranslateError::NoCodeMemory`] if the code buffer is full; the caller cannot mend the
    /// others.
    pub fn compile(&mut self, insts: &[(u64, Inst)], options: &BlockOptions) -> Result<CompiledBlock, TranslateError> {
        let &(_, last) = insts.last().ok_or(TranslateError::Empty)?;
        let links: Box<[LinkSlot]> = (0..exit_count(last.op)).map(|_| LinkSlot::unlinked()).collect();
        let kept: Box<[Inst]> = insts.iter().map(|&(_, inst)| inst).collect();
        self.context.clear();
        self.build(insts, &kept, &links, options);

        let start = insts[0].0;
        let check = options
            .source
            .map(|source| Check::new(self.space.host_address(start), source, self.space.loads_vectors_at_once));
        let (provider, place) = OneFunction::new(&self.space, check.as_ref().map_or(0, Check::len_bytes));
        let mut builder = JITBuilder::with_isa(Arc::clone(&self.space.isa.0), default_libcall_names());
        builder.memory_provider(Box::new(provider));
        let mut module = JITModule::new(builder);
        let function = module.declare_anonymous_function(&self.context.func.signature)?;
        module.define_function(function, &mut self.context)?;
        module.finalize_definitions()?;
        let place_taken = place.lock().unwrap_or_else(PoisonError::into_inner).take();
        let place = place_taken.ok_or_else(|| TranslateError::Compile("the module took no memory".into()))?;
        let mut points = self.fault_points(insts);
        let check = check.map(|check| {
            let at = check.insts(place.behind());
            place.put_behind(&check.placed(at.start));
            points.push(FaultPoint { start: at.start as u32, end: at.end as u32, guest_pc: start });
            at
        });
        let Place { code, function_bytes } = place;
        let entry = code.publish().and_then(|()| code.entry(0)).map_err(TranslateError::Publish)?;

        let faults = Box::new(FaultTable { start: entry, len_bytes: code.len(), points: points.into() });
        // SAFETY: boxed, and removed when the block is dropped.
        unsafe { self.space.faults.insert(&*faults) };
        Ok(CompiledBlock {
            space: Arc::clone(&self.space),
            code,
            entry,
            function_bytes,
            check,
            faults,
            links,
            insts: kept,
        })
    }

    fn build(&mut self, insts: &[(u64, Inst)], kept: &[Inst], links: &[LinkSlot], options: &BlockOptions) {
        self.context.func.signature = signature();
        let builder = FunctionBuilder::new(&mut self.context.func, &mut self.builder_context);
        let end = insts.last().map_or(0, |&(pc, inst)| pc.wrapping_add(u64::from(inst.len)));
        let own_bytes = insts.first().map_or(0..0, |&(pc, _)| pc..end);
        let environment = Environment::new(&self.space, own_bytes, options);
        let mut emitter = Emitter::new(builder, environment);
        for (index, (&(pc, inst), kept)) in insts.iter().zip(kept).enumerate() {
            if ends_block(inst.op) {
                debug_assert!(index + 1 == insts.len(), "{inst:?} stands within a block");
                emitter.end_block(pc, &inst, links);
                emitter.finish(self.space.isa.0.frontend_config());
                return;
            }
            emitter.lower(index as u32, pc, kept);
        }
        emitter.flush();
        // Straight on: never backward.
        emitter.exit_direct(end, false, &links[0]);
        emitter.finish(self.space.isa.0.frontend_config());
    }

    /// Host code ranges that can fault, as the compiler placed them.
    fn fault_points(&self, insts: &[(u64, Inst)]) -> Vec<FaultPoint> {
        let Some(compiled) = self.context.compiled_code() else { return Vec::new() };
        let locations = compiled.buffer.get_srclocs_sorted();
        let located = locations.iter().filter(|location| !location.loc.is_default());
        located
            .map(|location| FaultPoint {
                start: location.start,
                end: location.end,
                guest_pc: insts[location.loc.bits() as usize].0,
            })
            .collect()
    }
}

/// The signature of every block.
fn signature() -> Signature {
    let mut signature = Signature::new(CallConv::Tail);
    signature.params.extend([AbiParam::new(types::I64), AbiParam::new(types::I64)]);
    signature.returns.push(AbiParam::new(types::I64));
    signature
}

/// How many direct exits a block has if it ends with `op`.
fn exit_count(op: Op) -> usize {
    match op {
        Op::Beq | Op::Bne | Op::Blt | Op::Bge | Op::Bltu | Op::Bgeu => 2,
        Op::Jalr | Op::Fence_i | Op::Ecall | Op::Ebreak | Op::Illegal => 0,
        _ => 1,
    }
}

impl Emitter<'_> {
    /// The last instruction of a block and the exits after it.
    fn end_block(&mut self, pc: u64, inst: &Inst, links: &[LinkSlot]) {
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
    fn exit_direct(&mut self, target: u64, backward: bool, link: &LinkSlot) {
        self.set_pc(target);
        if backward {
            self.poll();
        }
        let slot = self.constant(std::ptr::from_ref(link) as u64);
        let cell = self.builder.ins().load(types::I64, HOST, slot, 0);
        self.jump_through(cell, slot);
    }

    /// Goes to the front's entry for `target`. Registers are in the hart.
    fn exit_indirect(&mut self, target: Value) {
        self.builder.ins().store(HOST, target, self.hart, field::PC);
        self.poll();
        let (hit, miss) = (self.builder.create_block(), self.builder.create_block());
        self.builder.set_cold_block(miss);
        let front = self.builder.ins().load(types::I64, HOST, self.hart, field::FRONT);
        // `Key::front_index`; entries have 16 bytes.
        let row = self.builder.ins().ishl_imm_u(target, 3);
        let row = self.builder.ins().band_imm_u(row, (FRONT_ENTRIES as i64 - 1) << 4);
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

    /// Branches to `out`, which leaves, if `condition` is not 0; goes on at `on`.
    fn leave_if(&mut self, condition: Value, out: Block, on: Block, reason: ExitReason) {
        self.builder.set_cold_block(out);
        self.builder.ins().brif(condition, out, &[], on, &[]);
        self.builder.switch_to_block(out);
        self.leave(reason);
        self.builder.switch_to_block(on);
    }

    /// Returns from compiled code.
    pub(super) fn leave(&mut self, reason: ExitReason) {
        let reason = self.constant(reason as u64);
        self.builder.ins().return_(&[reason]);
    }
}
