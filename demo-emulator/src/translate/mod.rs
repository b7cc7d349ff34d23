//! Compiles guest code into host code: blocks that ran a few times one by one and quickly, hot ones
//! together and by Cranelift.
//!
//! # The tiers, and why
//!
//! Most guest code runs a few times. So first the engine interprets, then it keeps the decoded
//! instructions (tier 0). A block that tier 0 has run some times goes to the **quick compiler**
//! ([`Translator::compile_quick`]). It takes about a microsecond, and its code needs no dispatch.
//! The block counts its runs, and leaves as [`ExitReason::Hot`] when it is worth more. Only x86-64
//! hosts have this compiler: see [`HAS_QUICK`].
//!
//! Cranelift makes better code, but takes 100 us and more. A hot block alone is still slow code: it
//! loads its registers from the hart, stores them and jumps, every few instructions. So Cranelift
//! gets a **region**: the hot block and those around it that run often, as far as constant targets lead
//! (loops, both ways of a branch, called functions). The region becomes one host function that is
//! entered at the hot block. All its blocks are read under one ticket of codewarden, so a write to
//! any of them ends the region. A block alone is a region of one. Only such a region has a
//! self-checking entry; on pages that the guest writes to all the time, regions have one block.
//!
//! A [`Translator`] turns the blocks into a [`CompiledBlock`]. Its memory comes from a codewarden
//! code buffer and goes back there when it is dropped. A block of the quick compiler is a region of
//! one for everything below, except that its registers are always in the hart; `quick` has the
//! details.
//!
//! # How compiled code runs
//!
//! [`CodeSpace::enter`] calls a region; regions jump to each other, and the last one returns an
//! [`ExitReason`]. For every reason, the hart's registers are then the guest's at `hart.pc`.
//!
//! - A **direct exit** stores the next pc, loads the target's *entry cell*, whose address is a
//!   constant, and jumps to the host code that the cell holds. Killing a region is one store to its
//!   cell and reaches every link. The cell of no region holds code that returns.
//! - An **indirect jump** probes the hart's own direct-mapped front of the code cache
//!   ([`codewarden::FrontSlot`], its keys guest pcs). A return is first compared with the return
//!   addresses of the region's calls that may have led to it.
//! - A backward or indirect jump **polls** `hart.exit_request` first. Within the region it also polls
//!   the stale flag, since a kill cannot stop a loop inside; if the flag is set, the jump goes through
//!   the target's cell.
//! - A **fault** of a guest access is a host SIGSEGV or SIGBUS. If an inline check refuses an
//!   instruction (an address beyond the window, a misaligned atomic, a rounding mode that does not
//!   exist), the code runs an instruction that does not exist (`ud2`, `udf`). The signal handler
//!   finds the guest pc by the host pc and returns from `enter` with [`ExitReason::Fault`]. To learn
//!   the reason, the caller runs the interpreter. Some instructions may have to run again
//!   before it comes to the fault: see `restart`.
//!
//! # The block's own stores
//!
//! The **plain** entry is for pages that are protected. The **self-checking** one compares the
//! guest's bytes with the snapshot that the block was made from, on a page that the guest may write
//! at any time (`check`). After a store that may have hit its own bytes, a region leaves before the
//! next instruction: see [`OwnStores`].
//!
//! # Registers
//!
//! Within a region the guest registers that it uses most are variables of Cranelift, loaded from the
//! hart at the entry if they matter there. They are no more than the host has registers for. The
//! others live in the hart between blocks: a block loads them before their first use. Changed ones
//! are stored back before helpers and exits, and where `restart` wants the hart up to date for the
//! next guest accesses; `region` finds out which may be changed at the start of each
//! block. Base addresses are tested once for accesses close to each other (`near`). The hart
//! and the window's base are the parameters of every region, so they stay in registers.
//!
//! A `sequence_point`, which is no code, follows each guest access. It stops Cranelift from folding
//! a load into a later instruction, which would make it fault with the wrong pc, and from leaving
//! out accesses whose only effect is their fault.
//!
//! | file | contents |
//! |---|---|
//! | `error` | the reasons why a block cannot be compiled |
//! | `fault_points` | the places in a block that can fault |
//! | `fault_index` | the index from a faulting host pc to the guest's pc |
//! | `options` | the options of a region |
//! | `entry` | calls compiled code from Rust, and returns |
//! | `check`, `check_aarch64` | the self-checking entry, on each host |
//! | `code_space` | the instruction set, code buffer and window that all translators share |
//! | `compiled` | a region's host code |
//! | `effects` | the registers that an instruction reads and writes |
//! | `near` | which registers hold addresses near the window |
//! | `restart` | the instruction that a fault goes back to |
//! | `region` | the control flow of a region |
//! | `lower` | the effect of each instruction in Cranelift's terms |
//! | `disasm` | listings of guest and host code |
//! | `exits` | the end of a block: ways within the region and out of it |
//! | `quick` | the quick compiler |
//! | `translator` | compiles one region, or one block quickly |

#[cfg_attr(target_arch = "aarch64", path = "check_aarch64.rs")]
mod check;
mod code_space;
mod compiled;
pub mod disasm;
mod effects;
mod entry;
mod error;
mod exits;
mod fault_index;
mod fault_points;
mod lower;
mod near;
mod options;
#[cfg(target_arch = "x86_64")]
mod quick;
mod region;
mod restart;
mod translator;

pub use code_space::{BlockObserver, CodeSpace};
pub use compiled::{CompiledBlock, UnpublishedBlock, publish_all};
pub use entry::{ExitReason, entry_stubs};
pub use error::TranslateError;
pub use lower::emitter::LinkTo;
pub use options::{BlockOptions, OwnStores};
pub use region::{Block, Targets, ends_block};
pub use translator::{COMPILED_TIERS, HAS_QUICK, Translator};

#[cfg(test)]
mod tests;
