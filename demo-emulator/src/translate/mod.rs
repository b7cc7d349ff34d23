//! Guest blocks into host code, by Cranelift.
//!
//! A [`Translator`] turns decoded instructions into a [`CompiledBlock`], whose
//! memory comes from a codewarden code buffer and goes back there when the
//! block is dropped. Nothing here decides what to translate, and nothing keeps
//! a block: that is the engine's and the code cache's.
//!
//! # How compiled code runs
//!
//! [`CodeSpace::enter`] calls a block; blocks jump to each other and the last
//! one returns an [`ExitReason`]. Whatever the reason, the hart's registers are
//! then those of the guest at `hart.pc`.
//!
//! - A **direct exit** stores the next pc, loads its [`LinkSlot`], which holds
//!   the address of the target's *entry cell*, loads the cell, which holds host
//!   code, and jumps there. Killing a block is one store to its cell and reaches
//!   every link. An unlinked slot leads to a cell whose code returns with the
//!   slot's address in `hart.exit_slot`.
//! - An **indirect jump** probes the hart's own direct-mapped
//!   front of the code cache ([`codewarden::FrontEntry`], its keys guest pcs).
//! - A backward or indirect jump **polls** `hart.exit_request` first.
//! - A **fault** of a guest access is a host SIGSEGV or SIGBUS, and what an
//!   inline check refuses (an address beyond the window, a misaligned atomic, a
//!   rounding mode that does not exist) is a `ud2`: the signal handler finds the
//!   guest pc by the host pc and returns from `enter` with
//!   [`ExitReason::Fault`]. The instruction has had no effect: whoever wants
//!   to know what is wrong with it runs the oracle on it.
//!
//! # Entries and the block's own stores
//!
//! A block has two entries. The **plain** one is for pages that are protected.
//! The **checked** one compares the guest's bytes with the snapshot that the block
//! was made from, on a page that the guest may write at any time (`check`).
//!
//! After a store that hits its own bytes a block leaves, whatever the state of
//! its page: see [`OwnStores`].
//!
//! # Registers
//!
//! Within a block guest registers are SSA values, loaded from the hart at the
//! first use. Those that changed are stored back before each point where the
//! block can be left: guest accesses, helpers that may trap, exits. A load's
//! result is stored at once, which also keeps Cranelift from folding the load
//! into a later instruction, where it would fault for the wrong pc.
//!
//! `lower` knows single instructions and nothing of where they stand; `block`
//! knows exits and nothing of what instructions do.

mod block;
mod check;
mod code_space;
pub mod disasm;
mod entry;
mod fault_index;
mod lower;

pub use block::{BlockOptions, CompiledBlock, OwnStores, TranslateError, Translator, ends_block};
pub use code_space::CodeSpace;
pub use entry::{ExitReason, LinkSlot, entry_stubs};

#[cfg(test)]
mod tests;
