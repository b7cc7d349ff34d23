//! Compiles one basic block.
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
use super::exits::{ends_block, signature};
use super::fault_index::{FaultPoint, FaultTable};
use super::lower::emitter::{Emitter, Environment, LinkTo};
use super::options::BlockOptions;
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

    /// Compiles one block: instructions with their addresses. Only the last may be one that
    /// [`ends_block`]; if it is not, the block continues at the next instruction. `link` gives the
    /// cell of the block at a pc; without one the exit leads to the dispatcher.
    ///
    /// # Errors
    ///
    /// [`TranslateError::NoCodeMemory`] if the code buffer is full; the caller cannot mend the
    /// others.
    pub fn compile(
        &mut self,
        insts: &[(u64, Inst)],
        options: &BlockOptions,
        link: LinkTo,
    ) -> Result<CompiledBlock, TranslateError> {
        if insts.is_empty() {
            return Err(TranslateError::Empty);
        }
        let kept: Box<[Inst]> = insts.iter().map(|&(_, inst)| inst).collect();
        self.context.clear();
        self.build(insts, &kept, options, link);

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
        Ok(CompiledBlock { space: Arc::clone(&self.space), code, entry, function_bytes, check, faults, insts: kept })
    }

    fn build(&mut self, insts: &[(u64, Inst)], kept: &[Inst], options: &BlockOptions, link: LinkTo) {
        self.context.func.signature = signature();
        let builder = FunctionBuilder::new(&mut self.context.func, &mut self.builder_context);
        let end = insts.last().map_or(0, |&(pc, inst)| pc.wrapping_add(u64::from(inst.len)));
        let own_bytes = insts.first().map_or(0..0, |&(pc, _)| pc..end);
        let environment = Environment::new(&self.space, own_bytes, options);
        let mut emitter = Emitter::new(builder, environment, link);
        for (index, (&(pc, inst), kept)) in insts.iter().zip(kept).enumerate() {
            if ends_block(inst.op) {
                debug_assert!(index + 1 == insts.len(), "{inst:?} stands within a block");
                emitter.end_block(pc, &inst);
                emitter.finish(self.space.isa.0.frontend_config());
                return;
            }
            emitter.lower(index as u32, pc, kept);
        }
        emitter.flush();
        // Straight on: never backward.
        emitter.exit_direct(end, false);
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
