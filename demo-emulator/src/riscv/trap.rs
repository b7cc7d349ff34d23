//! What keeps an instruction from retiring.
//!
//! A trap leaves the hart as it was before the instruction: `pc` is that of
//! the instruction itself, and no register has changed.

use crate::memory::Fault;

/// Why an instruction did not retire.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Trap {
    /// A system call.
    Ecall,
    /// A breakpoint.
    Ebreak,
    /// No instruction of RV64GC, a CSR that user mode lacks, or a rounding
    /// mode that does not exist. Holds the instruction's bits.
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

/// Where an instruction that retired leaves the hart. `pc` is already there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Flow {
    /// At the instruction behind it.
    Next,
    /// At the target of a jump or of a branch that was taken.
    Jump,
    /// Behind a FENCE.I: what was written must be seen by what is fetched.
    FenceI,
}
