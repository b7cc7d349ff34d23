//! Compiled blocks on this host, against the interpreter's `exec` and against the promises of the
//! module's head.
//!
//! # Safety
//!
//! Every `enter` here runs a block, or a stub, that the test keeps alive. Guest memory is read and
//! written through the window's pointer only at pages that the test mapped.
#![allow(unsafe_code)]

mod blocks;
mod own_stores;
#[cfg(target_arch = "x86_64")]
mod quick;
mod random;
mod regions;
mod self_checking;

use std::cell::Cell;
use std::collections::HashMap;
use std::ptr::{self, NonNull};
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use codewarden::code_buffer::CodeBuffer;
use codewarden::{EntryCell, FRONT_SLOTS, FrontSlot};

use super::restart::may_run_again;
use super::*;
use crate::hart::Hart;
use crate::memory::Window;
use crate::memory::window::PAGE_LEN_BYTES;
use crate::riscv::exec::exec;
use crate::riscv::inst::{Inst, Op};

/// First of the guest's readable and writable pages.
const DATA: u64 = 0x10000;
const DATA_PAGES: u64 = 2;
/// A read-only page; its neighbours are not mapped.
const READ_ONLY: u64 = 0x14000;
/// The address of the tests' code; nothing is mapped there.
const CODE: u64 = 0x4000;

const NOP: Inst = Inst { op: Op::Addi, rd: 0, rs1: 0, rs2: 0, rs3: 0, rm: 0, len: 4, imm: 0 };

const EMPTY: FrontSlot = FrontSlot { key: u64::MAX, cell: ptr::null() };

/// A compiler of single blocks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Compiler {
    /// The one of regions.
    Region,
    #[cfg(target_arch = "x86_64")]
    Quick,
}

impl Compiler {
    const ALL: &[Self] = &[
        Self::Region,
        #[cfg(target_arch = "x86_64")]
        Self::Quick,
    ];
}

/// Runs a test with each compiler, with room for so many bytes of code.
fn each_compiler(code_bytes: usize, test: impl Fn(&mut Bench)) {
    for &compiler in Compiler::ALL {
        println!("{compiler:?}");
        test(&mut Bench { compiler, ..Bench::new(code_bytes) });
    }
}

/// A guest with some memory, and a translator for it.
struct Bench {
    /// The compiler of its single blocks.
    compiler: Compiler,
    window: Window,
    space: Arc<CodeSpace>,
    translator: Translator,
    front: Box<[FrontSlot]>,
    /// The cells that blocks are linked to, by guest pc.
    cells: HashMap<u64, Box<AtomicUsize>>,
    /// The instructions that were compiled last, by pc.
    insts: HashMap<u64, Inst>,
    /// How often a fault went back to an instruction before it.
    restarts: Cell<u32>,
}

impl Bench {
    fn new(code_bytes: usize) -> Self {
        let window = Window::reserve().unwrap();
        map(&window, DATA, DATA_PAGES, libc::PROT_READ | libc::PROT_WRITE);
        map(&window, READ_ONLY, 1, libc::PROT_READ);
        let space = CodeSpace::new(window, CodeBuffer::new(code_bytes).unwrap()).unwrap();
        let translator = Translator::new(Arc::clone(&space));
        let front = vec![EMPTY; FRONT_SLOTS].into();
        let (cells, insts, restarts) = (HashMap::new(), HashMap::new(), Cell::new(0));
        Self { compiler: Compiler::Region, window, space, translator, front, cells, insts, restarts }
    }

    /// A hart at the start of the code, with this bench's front.
    fn hart(&mut self) -> Hart {
        let mut hart = Hart::new(CODE);
        hart.front = self.front.as_mut_ptr() as u64;
        hart
    }

    fn compile(&mut self, insts: &[Inst]) -> CompiledBlock {
        self.compile_placed(&placed(insts), &BlockOptions::default()).unwrap()
    }

    fn compile_placed(
        &mut self,
        insts: &[(u64, Inst)],
        options: &BlockOptions,
    ) -> Result<CompiledBlock, TranslateError> {
        let Self { compiler, translator, cells, .. } = self;
        self.insts = insts.iter().copied().collect();
        compile(*compiler, translator, insts, options, &mut |pc| NonNull::new(as_cell(cell(cells, pc)).cast_mut()))
    }

    /// Compiles a region of these blocks.
    fn compile_region(&mut self, blocks: &[Block], options: &BlockOptions) -> CompiledBlock {
        let Self { translator, cells, .. } = self;
        self.insts = blocks.iter().flatten().copied().collect();
        let mut link = |pc| NonNull::new(as_cell(cell(cells, pc)).cast_mut());
        published(translator.compile(blocks, options, &mut link).unwrap())
    }

    /// The cell of the block at `pc`: at first it leads to none.
    fn cell(&mut self, pc: u64) -> &AtomicUsize {
        cell(&mut self.cells, pc)
    }

    /// Runs code. After a fault, the hart is at the restart.
    fn enter_only(&self, hart: &mut Hart, code: usize) -> ExitReason {
        // SAFETY: see the module's head.
        unsafe { self.space.enter(hart, code) }
    }

    /// Runs code. After a fault the interpreter goes on until it meets the fault.
    fn enter(&self, hart: &mut Hart, code: usize) -> ExitReason {
        let reason = self.enter_only(hart, code);
        if reason != ExitReason::Fault {
            return reason;
        }
        let mut is_restart = false;
        loop {
            let inst = self.insts[&hart.pc];
            if exec(&inst, hart, &self.window).is_err() {
                self.restarts.set(self.restarts.get() + u32::from(is_restart));
                return reason;
            }
            assert!(may_run_again(inst.op), "{inst:?}");
            is_restart = true;
        }
    }

    fn data(&self) -> Vec<u8> {
        let mut bytes = vec![0; (DATA_PAGES * PAGE_LEN_BYTES) as usize];
        // SAFETY: the pages are mapped.
        unsafe { ptr::copy_nonoverlapping(self.window.base().add(DATA as usize), bytes.as_mut_ptr(), bytes.len()) };
        bytes
    }

    fn set_data(&self, bytes: &[u8]) {
        assert!(bytes.len() <= (DATA_PAGES * PAGE_LEN_BYTES) as usize);
        // SAFETY: the pages are mapped.
        unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), self.window.base().add(DATA as usize), bytes.len()) };
    }
}

fn compile(
    compiler: Compiler,
    translator: &mut Translator,
    insts: &[(u64, Inst)],
    options: &BlockOptions,
    link: LinkTo,
) -> Result<CompiledBlock, TranslateError> {
    let block = match compiler {
        Compiler::Region => translator.compile(&[insts.to_vec()], options, link)?,
        #[cfg(target_arch = "x86_64")]
        Compiler::Quick => translator.compile_quick(&insts.to_vec(), options, u32::MAX, link)?,
    };
    Ok(published(block))
}

fn published(block: UnpublishedBlock) -> CompiledBlock {
    publish_all(vec![block]).unwrap().remove(0)
}

fn map(window: &Window, addr: u64, pages: u64, protection: i32) {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED;
    let host = window.base().wrapping_add(addr as usize).cast();
    // SAFETY: within the window that was reserved for this test.
    let mapped = unsafe { libc::mmap(host, (pages * PAGE_LEN_BYTES) as usize, protection, flags, -1, 0) };
    assert_eq!(mapped, host);
}

fn cell(cells: &mut HashMap<u64, Box<AtomicUsize>>, pc: u64) -> &AtomicUsize {
    cells.entry(pc).or_insert_with(|| Box::new(AtomicUsize::new(entry_stubs().dead)))
}

/// A test's word as a cell.
fn as_cell(word: &AtomicUsize) -> *const EntryCell {
    ptr::from_ref(word).cast()
}

/// Instructions with their addresses, from `CODE` on.
fn placed(insts: &[Inst]) -> Vec<(u64, Inst)> {
    placed_at(CODE, insts)
}

/// Instructions with their addresses, from `start` on.
fn placed_at(start: u64, insts: &[Inst]) -> Vec<(u64, Inst)> {
    let mut pc = start;
    let place = |&inst: &Inst| {
        let at = pc;
        pc += u64::from(inst.len);
        (at, inst)
    };
    insts.iter().map(place).collect()
}

fn addi(rd: u8, rs1: u8, imm: i32) -> Inst {
    Inst { rd, rs1, imm, ..NOP }
}

fn load(op: Op, rd: u8, rs1: u8, imm: i32) -> Inst {
    Inst { op, rd, rs1, imm, ..NOP }
}

fn store(op: Op, rs2: u8, rs1: u8, imm: i32) -> Inst {
    Inst { op, rs1, rs2, imm, ..NOP }
}

fn jal(rd: u8, imm: i32) -> Inst {
    Inst { op: Op::Jal, rd, imm, ..NOP }
}
