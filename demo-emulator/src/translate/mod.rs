//! Compiles guest blocks into host code, by Cranelift.
//!
//! A [`Translator`] turns decoded instructions into a [`CompiledBlock`]. The block's memory comes
//! from a codewarden code buffer and goes back there when the block is dropped. The engine decides
//! which code to translate; the code cache holds the blocks.
//!
//! # How compiled code runs
//!
//! [`CodeSpace::enter`] calls a block; blocks jump to each other, and the last one returns an
//! [`ExitReason`]. For every reason, the hart's registers are then the guest's at `hart.pc`.
//!
//! - A **direct exit** stores the next pc, loads the target's *entry cell*, whose address is a
//!   constant, and jumps to the host code that the cell holds. Killing a block is one store to its
//!   cell and reaches every link. The cell of no block holds code that returns.
//! - An **indirect jump** probes the hart's own direct-mapped
//!   front of the code cache ([`codewarden::FrontSlot`], its keys guest pcs).
//! - A backward or indirect jump **polls** `hart.exit_request` first.
//! - A **fault** of a guest access is a host SIGSEGV or SIGBUS. If an inline check refuses an
//!   instruction (an address beyond the window, a misaligned atomic, a rounding mode that does not
//!   exist), the code runs an instruction that does not exist (`ud2`, `udf`). The signal handler finds the guest pc by the host pc and
//!   returns from `enter` with [`ExitReason::Fault`]. The instruction has had no effect: to learn
//!   the reason, the caller runs the interpreter on it.
//!
//! # Entries and the block's own stores
//!
//! A block has two entries. The **plain** one is for pages that are protected.
//! The **self-checking** one compares the guest's bytes with the snapshot that the block
//! was made from, on a page that the guest may write at any time (`check`).
//!
//! A block ends after a store that hits its own bytes, in every state of its page: see
//! [`OwnStores`].
//!
//! # Registers
//!
//! Within a block guest registers are SSA values, loaded from the hart at the first use. Changed
//! ones are stored back before each point that can leave the block: guest accesses, helpers that
//! may trap, exits. A `sequence_point`, which is no code, follows each guest access. It stops
//! Cranelift from folding a load into a later instruction, which would make it fault with the wrong
//! pc, and from leaving out accesses whose only effect is their fault.
//!
//! | file | contents |
//! |---|---|
//! | `error` | the reasons why a block cannot be compiled |
//! | `fault_index` | the index from a faulting host pc to the guest's pc |
//! | `options` | the options of a block |
//! | `entry` | calls compiled code from Rust, and returns |
//! | `check`, `check_aarch64` | the self-checking entry, on each host |
//! | `code_space` | the instruction set, code buffer and window that all translators share |
//! | `compiled` | a block's host code |
//! | `lower` | the effect of each instruction in Cranelift's terms |
//! | `disasm` | listings of guest and host code |
//! | `exits` | the exits of a block |
//! | `translator` | compiles one block |

#[cfg_attr(target_arch = "aarch64", path = "check_aarch64.rs")]
mod check;
mod code_space;
mod compiled;
pub mod disasm;
mod entry;
mod error;
mod exits;
mod fault_index;
mod lower;
mod options;
mod translator;

pub use code_space::CodeSpace;
pub use compiled::CompiledBlock;
pub use entry::{ExitReason, entry_stubs};
pub use error::TranslateError;
pub use exits::ends_block;
pub use lower::emitter::LinkTo;
pub use options::{BlockOptions, OwnStores};
pub use translator::Translator;

#[cfg(test)]
mod tests;
