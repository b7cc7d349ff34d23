//! Compiles one region.
//!
//! # Safety
//!
//! The one unsafe call enters the block's fault table in the index. The table is boxed, and the
//! block owns it and takes it out of the index when it is dropped.
#![allow(unsafe_code)]

use std::fmt;
use std::sync::{Arc, PoisonError};

use cranelift_codegen::Context;
use cranelift_frontend::{FunctionBuilder, FunctionBuilderContext};
use cranelift_jit::{JITBuilder, JITModule};
use cranelift_module::{Module, default_libcall_names};

use super::check::Check;
use super::code_space::{CodeSpace, OneFunction, Place};
use super::compiled::CompiledBlock;
use super::error::TranslateError;
use super::exits::signature;
use super::fault_index::{FaultPoint, FaultTable};
use super::lower::emitter::{Emitter, Environment, LinkTo};
use super::options::{BlockOptions, OwnStores};
use super::region::{Block, Region, ends_block};
use crate::riscv::inst::Inst;

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

    /// Compiles the region of these blocks, which is entered at the first. `link` gives the cell of
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
    ) -> Result<CompiledBlock, TranslateError> {
        if blocks.is_empty() || blocks.iter().any(Vec::is_empty) {
            return Err(TranslateError::Empty);
        }
        debug_assert!(blocks.len() == 1 || options.source.is_none() && options.own_stores != OwnStores::Compare);
        let insts: Vec<(u64, Inst)> = blocks.iter().flatten().copied().collect();
        let kept: Box<[Inst]> = insts.iter().map(|&(_, inst)| inst).collect();
        self.context.clear();
        self.build(&Region::new(blocks), &kept, options, link);

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
        let mut points = self.fault_points(&insts);
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
        Ok(CompiledBlock { space: Arc::clone(&self.space), code, entry, function_bytes, check, faults, insts: kept })
    }

    fn build(&mut self, region: &Region<'_>, kept: &[Inst], options: &BlockOptions, link: LinkTo) {
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
