//! Compiles one region by Cranelift, or one block by the quick compiler.
//!
//! # Safety
//!
//! A block's fault table is entered in the index. The table is in the block's box, and leaves the
//! index when the box is dropped. Before that the address of the table's counter is taken, while the
//! box has no contents yet: nothing is read.
#![allow(unsafe_code)]

use std::collections::HashMap;
use std::fmt;
use std::mem::MaybeUninit;
use std::sync::atomic::AtomicI32;
use std::sync::{Arc, PoisonError};

use cranelift_codegen::Context;
use cranelift_frontend::{FunctionBuilder, FunctionBuilderContext};
use cranelift_jit::{JITBuilder, JITModule};
use cranelift_module::{Module, default_libcall_names};

use super::check::Check;
#[cfg(target_arch = "x86_64")]
use super::code_space::counter_of;
use super::code_space::{CodeSpace, OneFunction, Place};
use super::compiled::{CompiledBlock, Parts, UnpublishedBlock};
use super::error::TranslateError;
use super::exits::signature;
use super::fault_index::{FaultTable, NO_COUNTER};
use super::fault_points::{FaultPoint, FaultPoints};
use super::lower::emitter::{Emitter, Environment, FaultsTo, LinkTo};
use super::options::{BlockOptions, OwnStores};
#[cfg(target_arch = "x86_64")]
use super::quick;
use super::region::{Block, Region, ends_block};
use crate::riscv::inst::Inst;

/// Whether this host has a quick compiler.
pub const HAS_QUICK: bool = cfg!(target_arch = "x86_64");

/// The values of `--tier` that compile.
pub const COMPILED_TIERS: &str = if HAS_QUICK { "--tier 1 and 2" } else { "--tier 2" };

/// Compiles blocks; each compiling thread has one.
pub struct Translator {
    space: Arc<CodeSpace>,
    context: Context,
    builder_context: FunctionBuilderContext,
    #[cfg(target_arch = "x86_64")]
    quick: quick::BlockCompiler,
}

/// The code of a block, and the parts that belong to it.
struct Code {
    /// The guest address of its first instruction.
    start: u64,
    points: Vec<FaultPoint>,
    /// The instructions; the code has their addresses.
    insts: Box<[Inst]>,
    /// Its counter at first.
    runs_left: i32,
}

impl fmt::Debug for Translator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Translator").field("space", &self.space).finish_non_exhaustive()
    }
}

impl Translator {
    /// A translator into `space`.
    pub fn new(space: Arc<CodeSpace>) -> Self {
        Self {
            space,
            context: Context::new(),
            builder_context: FunctionBuilderContext::new(),
            #[cfg(target_arch = "x86_64")]
            quick: quick::BlockCompiler::new(),
        }
    }

    /// Compiles the region of these blocks. Its entry is the first one's. `link` gives the cell of
    /// the block at a pc outside; without one the exit leads to the dispatcher.
    ///
    /// # Errors
    ///
    /// [`TranslateError::NoCodeMemory`] if the code buffer is full; the caller cannot mend the
    /// others.
    pub fn compile(
        &mut self,
        blocks: &[Block],
        options: &BlockOptions,
        link: LinkTo,
    ) -> Result<UnpublishedBlock, TranslateError> {
        if blocks.is_empty() || blocks.iter().any(Vec::is_empty) {
            return Err(TranslateError::Empty);
        }
        debug_assert!(blocks.len() == 1 || options.source.is_none() && options.own_stores != OwnStores::Compare);
        let insts: Vec<(u64, Inst)> = blocks.iter().flatten().copied().collect();
        let kept: Box<[Inst]> = insts.iter().map(|&(_, inst)| inst).collect();
        self.context.clear();
        let restarts = self.build(&Region::new(blocks, options.near_restarts), &kept, options, link);

        let start = insts[0].0;
        let check = self.check(start, options);
        let (provider, place) = OneFunction::new(&self.space, check.as_ref().map_or(0, Check::len_bytes));
        let mut builder = JITBuilder::with_isa(Arc::clone(&self.space.isa.0), default_libcall_names());
        builder.memory_provider(Box::new(provider));
        let mut module = JITModule::new(builder);
        let function = module.declare_anonymous_function(&self.context.func.signature)?;
        module.define_function(function, &mut self.context)?;
        module.finalize_definitions()?;
        let place_taken = place.lock().unwrap_or_else(PoisonError::into_inner).take();
        let place = place_taken.ok_or_else(|| TranslateError::Compile("the module took no memory".into()))?;
        let points = self.fault_points(&insts, &restarts);
        let code = Code { start, points, insts: kept, runs_left: NO_COUNTER };
        Ok(self.finish(Box::new_uninit(), place, check, code))
    }

    /// Compiles one block by the quick compiler. The block leaves as
    /// [`ExitReason::Hot`](super::ExitReason::Hot) after `runs` runs. `link` as for
    /// [`compile`](Self::compile).
    ///
    /// # Errors
    ///
    /// As for [`compile`](Self::compile).
    #[cfg(target_arch = "x86_64")]
    pub fn compile_quick(
        &mut self,
        block: &Block,
        options: &BlockOptions,
        runs: u32,
        link: LinkTo,
    ) -> Result<UnpublishedBlock, TranslateError> {
        let &(start, _) = block.first().ok_or(TranslateError::Empty)?;
        let parts = Box::<Parts>::new_uninit();
        // SAFETY: an address in the box; nothing is read.
        let counter = unsafe { &raw const (*parts.as_ptr()).faults.runs_left };
        let kept = quick::kept(block);
        self.quick.compile(&self.space, block, options, &kept, counter, link);
        let check = self.check(start, options);
        let place = Place::of(self.quick.code(), &self.space, check.as_ref().map_or(0, Check::len_bytes))?;
        let mut points = Vec::with_capacity(self.quick.points().len() + usize::from(check.is_some()));
        points.extend_from_slice(self.quick.points());
        let code = Code { start, points, insts: kept, runs_left: counter_of(runs) };
        Ok(self.finish(parts, place, check, code))
    }

    /// Compiles one block. This host has no quick compiler, so it makes a region: no runs are counted.
    ///
    /// # Errors
    ///
    /// As for [`compile`](Self::compile).
    #[cfg(not(target_arch = "x86_64"))]
    pub fn compile_quick(
        &mut self,
        block: &Block,
        options: &BlockOptions,
        _: u32,
        link: LinkTo,
    ) -> Result<UnpublishedBlock, TranslateError> {
        self.compile(std::slice::from_ref(block), options, link)
    }

    /// The self-checking entry, if the options ask for one.
    fn check(&self, start: u64, options: &BlockOptions) -> Option<Check> {
        let host = self.space.host_address(start);
        options.source.map(|source| Check::new(host, source, self.space.loads_vectors_at_once))
    }

    /// Makes a block of the function in `place`: puts the check behind it, and enters its fault table
    /// in the index. The block's parts go to `parts`.
    fn finish(
        &self,
        parts: Box<MaybeUninit<Parts>>,
        place: Place,
        check: Option<Check>,
        code: Code,
    ) -> UnpublishedBlock {
        let Code { start: guest_start, mut points, insts, runs_left } = code;
        let check_bytes = check.map_or(0, |check| {
            let at = check.insts(place.behind());
            place.put(at.start, &check.placed(at.start));
            let (start, end) = (at.start as u32, at.end as u32);
            points.push(FaultPoint { start, end, guest_offset: 0, restart_offset: 0, is_far: false });
            at.len() as u32
        });
        let Place { code, function_bytes } = place;
        let (start, len_bytes) = (code.rx() as usize, code.len() as u32);
        let (points, runs_left) = (FaultPoints::new(&points), AtomicI32::new(runs_left));
        let faults = FaultTable { guest_start, points, len_bytes, runs_left };
        let (space, function_bytes) = (Arc::clone(&self.space), function_bytes as u32);
        let parts = Box::write(parts, Parts { space, code, faults, insts, function_bytes, check_bytes });
        // SAFETY: boxed, and removed when the block is dropped.
        unsafe { self.space.faults.insert(start, &parts.faults) };
        UnpublishedBlock(CompiledBlock(parts))
    }

    /// Builds the function; returns the restart of each instruction that can fault.
    fn build(
        &mut self,
        region: &Region<'_>,
        kept: &[Inst],
        options: &BlockOptions,
        link: LinkTo,
    ) -> HashMap<u32, FaultsTo> {
        self.context.func.signature = signature();
        let builder = FunctionBuilder::new(&mut self.context.func, &mut self.builder_context);
        let environment = Environment::new(&self.space, region.nodes[0].bytes(), options);
        let mut emitter = Emitter::new(builder, environment, link, region);
        for node in &region.nodes {
            emitter.begin(node);
            let &(mut pc, mut last) = &node.insts[0];
            for (index, kept) in (node.first_index..).zip(&kept[node.first_index as usize..][..node.insts.len()]) {
                (pc, last) = node.insts[(index - node.first_index) as usize];
                emitter.load_operands(&last);
                if !ends_block(last.op) {
                    emitter.lower(index, pc, kept);
                }
            }
            if ends_block(last.op) {
                emitter.end_block(pc, &last, &node.returns);
            } else {
                emitter.go(pc, pc.wrapping_add(u64::from(last.len)));
            }
        }
        emitter.finish(self.space.isa.0.frontend_config())
    }

    /// Host code ranges that can fault, as the compiler placed them.
    fn fault_points(&self, insts: &[(u64, Inst)], restarts: &HashMap<u32, FaultsTo>) -> Vec<FaultPoint> {
        let Some(compiled) = self.context.compiled_code() else { return Vec::new() };
        let locations = compiled.buffer.get_srclocs_sorted();
        // Regions reach as far as jumps with constant targets lead, which is much less.
        let offset = |index: u32| insts[index as usize].0.wrapping_sub(insts[0].0) as i32;
        let located = locations.iter().filter(|location| !location.loc.is_default());
        located
            .map(|location| {
                let index = location.loc.bits();
                let FaultsTo { restart, is_far } = restarts[&index];
                FaultPoint {
                    start: location.start,
                    end: location.end,
                    guest_offset: offset(index),
                    restart_offset: offset(restart),
                    is_far,
                }
            })
            .collect()
    }
}
