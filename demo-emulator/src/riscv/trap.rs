//! The reasons why an instruction does not retire.
//!
//! A trap leaves the hart as it was before the instruction: `pc` is the instruction's own, and no
//! register has changed.

use crate::memory::Fault;

/// Why an instruction did not retire.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Trap {
    /// A system call.
    Ecall,
    /// A breakpoint.
    Ebreak,
    /// No instruction, a CSR that user mode lacks, or a rounding mode that does not
    /// exist. Holds the instruction's bits.
    Illegal(u32),
    /// A load, or LR, that memory refused.
    LoadFault(Fault),
    /// A store, SC or AMO that memory refused.
    StoreFault(Fault),
    /// An instruction that could not be fetched.
    FetchFault(Fault),
    /// LR at an address that is not naturally aligned.
    LoadMisaligned(u64),
    /// SC or AMO at an address that is not naturally aligned.
    StoreMisaligned(u64),
}

/// How a retired instruction changed the flow. `pc` is already updated.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Flow {
    /// To the next instruction.
    Next,
    /// To the target of a jump or of a branch that was taken.
    Jump,
    /// Behind a FENCE.I: the next fetch must see all earlier writes.
    FenceI,
}
