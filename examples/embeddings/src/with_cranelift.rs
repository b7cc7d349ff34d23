//! A JIT that compiles with `cranelift-jit`. Each block has a module of its own. The library
//! drops the module when no vCPU can be inside the block.
//!
//! # Safety
//!
//! A block is entered while its vCPU is pinned, by the signature that it was compiled for. The
//! library drops a block's module only after that.
#![allow(unsafe_code)]

use std::error::Error;
use std::sync::{Arc, Mutex};

use codewarden::addr::GuestAddr;
use codewarden::guest_memory::GuestMemory;
use codewarden::protection::Mode;
use codewarden::{CodeCache, EntryStubs, Key, Ticket, TranslateError};
use cranelift_codegen::ir::{AbiParam, InstBuilder, MemFlagsData, types};
use cranelift_frontend::{FunctionBuilder, FunctionBuilderContext};
use cranelift_jit::{JITBuilder, JITModule};
use cranelift_module::{Linkage, Module, default_libcall_names};

use crate::guest::{self, BYTES, Cpu, HALTED, Op};

/// A block: takes the guest's state, returns the next pc.
type Block = unsafe extern "C" fn(*mut Cpu) -> u64;

/// A block's payload: its module. (The mutex makes it `Sync`; nobody locks it.)
struct Compiled(Mutex<Option<JITModule>>);

impl Drop for Compiled {
    fn drop(&mut self) {
        if let Some(module) = self.0.get_mut().ok().and_then(Option::take) {
            // SAFETY: no vCPU is inside the block, and none will be.
            unsafe { module.free_memory() };
        }
    }
}

/// Runs the guest to its end. Returns the accumulator.
///
/// # Errors
///
/// A mode that is not available here, or no memory.
pub fn run(mode: Mode) -> Result<u64, Box<dyn Error>> {
    let memory = Arc::new(GuestMemory::anonymous(4096)?);
    memory.write(0, &guest::program())?;
    let cache = CodeCache::new(EntryStubs::NOT_CODE)?;
    cache.add_memory(GuestAddr(0), memory.clone(), mode)?;
    let mut vcpu = cache.attach_vcpu();
    let (mut cpu, mut pc) = (Cpu::new(&memory), 0);
    while pc != HALTED {
        // Deferred mode alone needs it: this guest announces no code changes, so all are looked
        // for.
        cache.tracker().sync()?;
        let mut pin = vcpu.pin();
        if let Some(entry) = pin.lookup(Key::new(pc)) {
            // SAFETY: compiled as a `Block`; it lives until the pin is dropped.
            pc = unsafe { std::mem::transmute::<usize, Block>(entry)(&mut cpu) };
            continue;
        }
        drop(pin);
        let mut ticket = cache.begin(Key::new(pc));
        let translated = read_block(&mut ticket, pc).and_then(|ops| {
            let (entry, module) = compile(&ops, pc);
            Ok(ticket.commit(entry, Compiled(Mutex::new(Some(module))))?)
        });
        match translated {
            Ok(()) => {}
            Err(TranslateError::Interpret) => pc = cpu.interpret(&memory, pc),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(cpu.accumulator)
}

fn read_block(ticket: &mut Ticket<Compiled>, pc: u64) -> Result<Vec<Op>, TranslateError> {
    let mut ops: Vec<Op> = Vec::new();
    while ops.last().is_none_or(|op| !op.ends_block()) {
        let mut bytes = [0; BYTES as usize];
        ticket.read(GuestAddr(pc + ops.len() as u64 * BYTES), &mut bytes)?;
        ops.push(Op::decode(bytes));
    }
    Ok(ops)
}

/// The block of `ops`, the first of which is at `pc`: its entry, and the module that owns it.
fn compile(ops: &[Op], pc: u64) -> (usize, JITModule) {
    let builder = JITBuilder::new(default_libcall_names()).expect("Cranelift knows this host");
    let mut module = JITModule::new(builder);
    let mut context = module.make_context();
    context.func.signature.params.push(AbiParam::new(types::I64));
    context.func.signature.returns.push(AbiParam::new(types::I64));
    let mut frontend = FunctionBuilderContext::new();
    let mut code = FunctionBuilder::new(&mut context.func, &mut frontend);
    let block = code.create_block();
    code.append_block_params_for_function_params(block);
    code.switch_to_block(block);
    code.seal_block(block);
    let cpu = code.block_params(block)[0];
    let flags = MemFlagsData::trusted();
    let mut next = code.ins().iconst(types::I64, (pc + ops.len() as u64 * BYTES) as i64);
    for op in ops {
        match *op {
            Op::Add(number) => {
                let old = code.ins().load(types::I64, flags, cpu, 0);
                let number = code.ins().iconst(types::I64, i64::from(number));
                let new = code.ins().iadd(old, number);
                code.ins().store(flags, new, cpu, 0);
            }
            Op::Store(address) => {
                let accumulator = code.ins().load(types::I64, flags, cpu, 0);
                let memory = code.ins().load(types::I64, flags, cpu, 16);
                // It may fault, and is run again then.
                code.ins().istore32(MemFlagsData::new(), accumulator, memory, address as i32);
            }
            Op::Loop(target) => {
                let counter = code.ins().load(types::I64, flags, cpu, 8);
                let one = code.ins().iconst(types::I64, 1);
                let left = code.ins().isub(counter, one);
                code.ins().store(flags, left, cpu, 8);
                let target = code.ins().iconst(types::I64, i64::from(target));
                next = code.ins().select(left, target, next);
            }
            Op::Halt => next = code.ins().iconst(types::I64, HALTED as i64),
        }
    }
    code.ins().return_(&[next]);
    code.finalize(module.isa().frontend_config());
    const COMPILES: &str = "a block of known instructions compiles";
    let id = module.declare_function("block", Linkage::Local, &context.func.signature).expect(COMPILES);
    module.define_function(id, &mut context).expect(COMPILES);
    module.finalize_definitions().expect("there is memory for a block");
    (module.get_finalized_function(id) as usize, module)
}
