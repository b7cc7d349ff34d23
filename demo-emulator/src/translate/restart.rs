//! The instruction that a fault goes back to: its *restart*.
//!
//! A fault must find all of the guest's registers. Compiled code that brought the hart up to date
//! before each access would store registers all the time, for faults that seldom come. So the hart
//! may have the registers of an earlier instruction, the restart. A fault gives up everything since
//! then, and the guest runs from the restart until it meets the fault again. Nobody can tell, as
//! long as the instructions between only compute and load: they have changed registers alone. A
//! second load may read another value than the first, but nothing has come of the first.
//!
//! - An access without a restart becomes one: the hart is brought up to date before it.
//! - A store ends the restart: it must not run again. So does whatever changes the hart or the memory.
//! - A register that the region does not keep is stored to the hart at the next access, or at the end of
//!   the block. To make it wait for longer would take a host register. The access becomes a restart, and
//!   the end of a block ends it: the register would mix with those of the restart.
//! - A **quiet loop** only computes and loads, in registers that the region keeps. It is entered at one
//!   place, and the hart is up to date there. That place is the restart for the whole loop, which
//!   stores no register at all. A fault in its last round runs the whole loop again.
//!
//! A restart in an earlier block or an earlier round is **far**. Other threads may make a program fault
//! again and again: a virtual machine that stops its threads protects a page that their loops read. A loop
//! that such a fault sets back to its start each time might never end. So after the first one the region
//! is compiled without far restarts (`engine::far_restarts`), and runs again as compiled code. The
//! interpreter runs no more than a part of a block again.

use super::effects::{Effects, Masks};
use crate::riscv::inst::{Inst, Op};

/// The place of a restart among the instructions of its region. `None`: the next access becomes one.
pub(super) type Restart = Option<u32>;

/// What an instruction does, apart from its registers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Action {
    Computes,
    Loads,
    Stores,
    /// Anything else. If it can fault, the hart is up to date before it.
    Other,
}

impl Action {
    fn of(op: Op) -> Self {
        use Op::*;
        match op {
            Lb | Lh | Lw | Ld | Lbu | Lhu | Lwu | Flh | Flw | Fld => Self::Loads,
            Sb | Sh | Sw | Sd | Fsh | Fsw | Fsd => Self::Stores,
            Jal | Jalr | Beq | Bne | Blt | Bge | Bltu | Bgeu => Self::Computes,
            Fmv_x_w | Fmv_w_x | Fmv_x_d | Fmv_d_x | Fmv_x_h | Fmv_h_x => Self::Computes,
            _ if computes_integer(op) => Self::Computes,
            _ => Self::Other,
        }
    }
}

/// Whether the operation only computes an integer register's new value.
pub(super) fn computes_integer(op: Op) -> bool {
    let is_in = |first: Op, last: Op| (first as u8..=last as u8).contains(&(op as u8));
    matches!(op, Op::Lui | Op::Auipc)
        || is_in(Op::Addi, Op::Sraw)
        || is_in(Op::Mul, Op::Remuw)
        || is_in(Op::Add_uw, Op::Bseti)
}

/// Whether a way from a block in the quiet loop `from` leads into the quiet loop `to`: the hart must be up
/// to date there.
pub(super) fn enters_quiet_loop(from: Restart, to: Restart) -> bool {
    to.is_some() && to != from
}

/// Whether it only loads.
pub(super) fn loads(op: Op) -> bool {
    Action::of(op) == Action::Loads
}

/// Whether an instruction may run again after a fault behind it.
pub(super) fn may_run_again(op: Op) -> bool {
    matches!(Action::of(op), Action::Computes | Action::Loads)
}

/// The hart's registers before an instruction, as far as it is known.
#[derive(Clone, Copy, Debug)]
pub(super) struct Progress {
    pub(super) restart: Restart,
    /// Whether a register that the region does not keep waits for its store to the hart.
    pub(super) is_waiting: bool,
}

impl Progress {
    /// At the start of a block.
    pub(super) fn new(restart: Restart) -> Self {
        Self { restart, is_waiting: false }
    }

    /// Whether the code of `inst` brings the hart up to date first.
    pub(super) fn updates_hart(&self, inst: &Inst) -> bool {
        match Action::of(inst.op) {
            Action::Computes => false,
            Action::Loads | Action::Stores => self.restart.is_none() || self.is_waiting,
            Action::Other => Effects::of(inst).accesses,
        }
    }

    /// Behind `inst`, whose place is `index`; the region keeps the registers `kept`.
    pub(super) fn pass(&mut self, index: u32, inst: &Inst, kept: Masks) {
        let updates_hart = self.updates_hart(inst);
        let waits = Effects::of(inst).writes.without(kept) != Masks::NONE;
        self.is_waiting = waits || self.is_waiting && !updates_hart;
        self.restart = match Action::of(inst.op) {
            Action::Computes => self.restart,
            Action::Loads if updates_hart => Some(index),
            Action::Loads => self.restart,
            Action::Stores | Action::Other => None,
        }
    }
}
