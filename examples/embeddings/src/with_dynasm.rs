//! A JIT that emits x86-64 code with `dynasmrt`.
//!
//! # Safety
//!
//! A block is entered while its vCPU is pinned, by the signature that it was emitted for. The
//! guest's addresses are checked when a block is translated.
#![allow(unsafe_code)]

use std::error::Error;
use std::sync::Arc;

use codewarden::{Allocation, CodeBuffer, CodeCache, EntryStubs, GuestAddr, GuestMemory, Key, Mode, TranslateError};
use dynasmrt::x64::X64Relocation;
use dynasmrt::{DynasmApi, DynasmLabelApi, VecAssembler, dynasm};

use crate::guest::{self, BYTES, Cpu, HALTED, Op};

const MEMORY_BYTES: usize = 4096;

/// A block: takes the guest's state, returns the next pc.
type Block = unsafe extern "C" fn(*mut Cpu) -> u64;

/// Runs the guest to its end. Returns the accumulator.
///
/// # Errors
///
/// A mode that is not available here, or no memory.
pub fn run(mode: Mode) -> Result<u64, Box<dyn Error>> {
    let memory = Arc::new(GuestMemory::anonymous(MEMORY_BYTES)?);
    memory.write(0, &guest::program())?;
    let cache = CodeCache::new(EntryStubs::NOT_CODE)?;
    cache.add_memory(GuestAddr(0), memory.clone(), mode)?;
    let buffer = CodeBuffer::new(1 << 20)?;
    let mut vcpu = cache.attach_vcpu();
    let (mut cpu, mut pc) = (Cpu::new(&memory), 0);
    while pc != HALTED {
        // Deferred mode alone needs it: this guest announces no code changes, so all are looked
        // for.
        cache.tracker().sync()?;
        let mut pin = vcpu.pin();
        if let Some(entry) = pin.lookup(Key::new(pc)) {
            // SAFETY: emitted as a `Block`; it lives until the pin is dropped.
            pc = unsafe { std::mem::transmute::<usize, Block>(entry)(&mut cpu) };
            continue;
        }
        drop(pin);
        match translate(&cache, &buffer, pc) {
            Ok(()) => {}
            Err(TranslateError::Interpret) => pc = cpu.interpret(&memory, pc),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(cpu.accumulator)
}

fn translate(cache: &CodeCache<Allocation>, buffer: &CodeBuffer, pc: u64) -> Result<(), TranslateError> {
    let mut ticket = cache.begin(Key::new(pc));
    let mut code = VecAssembler::<X64Relocation>::new(0);
    let mut at = pc;
    loop {
        let mut bytes = [0; BYTES as usize];
        ticket.read(GuestAddr(at), &mut bytes)?;
        at += BYTES;
        let op = Op::decode(bytes);
        emit(&mut code, op, at);
        if op.ends_block() {
            break;
        }
    }
    let code = buffer.emit(&code.finalize().unwrap_or_default())?;
    ticket.commit(code.entry(0)?, code)?;
    Ok(())
}

/// The code of `op`, behind which the guest goes on at `next`. `rdi` is the `Cpu`.
fn emit(code: &mut VecAssembler<X64Relocation>, op: Op, next: u64) {
    match op {
        Op::Add(number) => dynasm!(code ; .arch x64 ; mov eax, number as i32 ; add [rdi], rax),
        Op::Store(address) => {
            assert!((address as usize) < MEMORY_BYTES - 4, "the guest stores to its memory alone");
            dynasm!(code ; .arch x64
                ; mov rcx, [rdi + 16] ; mov rax, [rdi] ; mov [rcx + address as i32], eax
                ; mov rax, QWORD next as i64 ; ret);
        }
        Op::Loop(target) => dynasm!(code ; .arch x64
            ; mov rax, QWORD next as i64 ; dec QWORD [rdi + 8] ; jz >out ; mov eax, target as i32 ; out: ; ret),
        Op::Halt => dynasm!(code ; .arch x64 ; mov rax, QWORD HALTED as i64 ; ret),
    }
}
