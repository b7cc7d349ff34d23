//! The interpreter, and a record of the bytes that it runs. The record tells which modes must give
//! the same result.

use codewarden::protection::Mode;
use demo_emulator::hart::Hart;
use demo_emulator::memory::Window;
use demo_emulator::riscv::csr;
use demo_emulator::riscv::inst::{Inst, Op};
use demo_emulator::riscv::interpreter;
use demo_emulator::riscv::trap::{Flow, Trap};

use super::memory::{ALIAS, CODE, CODE_BYTES, SHARED};

/// The most instructions of one start: a program that writes itself may run for ever.
const MAX_STEPS: u32 = 20_000;

/// The modes that owe a program the interpreter's result.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Owed {
    /// Every mode: no byte that ran was ever overwritten.
    ByAll,
    /// Those that learn of writes: each overwritten byte was announced before it ran.
    Announced,
    /// Those that learn of writes at once.
    Unannounced,
}

impl Owed {
    pub(super) fn holds_in(self, mode: Mode) -> bool {
        match self {
            Self::ByAll => true,
            Self::Announced => mode != Mode::None,
            Self::Unannounced => mode.is_synchronous(),
        }
    }
}

/// The run is not suited for a comparison.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Unsuitable;

/// Runs programs, and records the overwritten bytes of code.
pub(super) struct Watched {
    /// By the code's offset: overwritten since the last announcement.
    pending: Vec<bool>,
    /// Overwritten at any time.
    written: Vec<bool>,
    owed: Owed,
    steps: u32,
}

impl Watched {
    pub(super) fn new() -> Self {
        let none = vec![false; CODE_BYTES as usize];
        Self { pending: none.clone(), written: none, owed: Owed::ByAll, steps: 0 }
    }

    /// The modes that owe everything that ran since the beginning.
    pub(super) fn owed(&self) -> Owed {
        self.owed
    }

    /// Runs until an instruction traps; `hart.pc` is its address.
    pub(super) fn run(&mut self, hart: &mut Hart, window: &Window) -> Result<Trap, Unsuitable> {
        loop {
            self.steps += 1;
            let inst = match interpreter::fetch(window, hart.pc) {
                Ok(inst) if self.steps <= MAX_STEPS && !tells_the_time(&inst) => inst,
                Ok(_) => return Err(Unsuitable),
                Err(trap) => return Ok(trap),
            };
            self.fetched(hart.pc, inst.len.into());

            let addr = inst.address(hart.x[usize::from(inst.rs1)]);
            match interpreter::step(hart, window) {
                Ok(Flow::FenceI) => self.announced(0, CODE_BYTES),
                Ok(_) => self.stored(addr, inst.op.stored_bytes()),
                Err(trap) => return Ok(trap),
            }
        }
    }

    /// Begins a start.
    pub(super) fn restart(&mut self) {
        self.steps = 0;
        self.announced(0, CODE_BYTES);
    }

    /// The overwritten bytes from `offset` on are announced.
    pub(super) fn announced(&mut self, offset: u64, len_bytes: u64) {
        let end = (offset + len_bytes).min(CODE_BYTES) as usize;
        self.pending[(offset as usize).min(end)..end].fill(false);
    }

    /// Bytes were overwritten.
    pub(super) fn stored(&mut self, addr: u64, len_bytes: u64) {
        for offset in (addr..addr.saturating_add(len_bytes)).filter_map(offset_of) {
            self.pending[offset] = true;
            self.written[offset] = true;
        }
    }

    fn fetched(&mut self, pc: u64, len_bytes: u64) {
        for offset in (pc..pc + len_bytes).filter_map(offset_of) {
            if self.pending[offset] {
                self.owed = Owed::Unannounced;
            } else if self.written[offset] && self.owed == Owed::ByAll {
                self.owed = Owed::Announced;
            }
        }
    }
}

/// The code's offset of an address. One program uses the private memory or the shared one;
/// a chance store to the other counts as a store to its own.
fn offset_of(addr: u64) -> Option<usize> {
    [CODE, SHARED, ALIAS]
        .into_iter()
        .map(|start| addr.wrapping_sub(start))
        .find(|offset| *offset < CODE_BYTES)
        .map(|offset| offset as usize)
}

/// Whether it reads a counter, which never has the same value twice.
fn tells_the_time(inst: &Inst) -> bool {
    let is_csr = matches!(inst.op, Op::Csrrw | Op::Csrrs | Op::Csrrc | Op::Csrrwi | Op::Csrrsi | Op::Csrrci);
    is_csr && inst.rd != 0 && matches!(inst.imm, csr::CYCLE | csr::TIME | csr::INSTRET)
}
