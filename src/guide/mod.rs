//! A guide for embedders. The [head of the crate](crate) says in which order to read it.
//!
//! - [`words`]: the meaning of each word.
//! - [`embedding`]: how an emulator uses the library, from the first call on.
//! - [`promises`]: the promises about stale code, their limits, and a test for each
//!   sentence.
//! - [`ways`]: every way that bytes change, its effect in each mode, the call to make.
//! - [`failures`]: everything that can fail, and the result in each mode.
//! - [`moving_over`]: from a tracker of your own, with mprotect and SIGSEGV.
//! - [`qemu`]: such a move, carried out: QEMU's user mode.
//! - [`blink`]: another one, of an emulator that traces and holds no lock meanwhile.
//! - [`executable_memory`]: the memory for code, and when another core may run it.
//! - [`limits`]: memory use, and the order of eviction.
//! - [`mixed_pages`]: pages that hold code and data.
//! - [`forks`]: both sides of a fork.
//! - [`requirements`]: kernels, permissions, containers.
//! - [`statistics`]: counters, histograms, the pages that cost most.
//! - [`protocol`]: why it is right: invariants, orderings, the model that checks each.
//! - [`checks`]: the command of each check, and the checks that were not run.
//!
//! `tests/repository/tests/guide.rs` reads the tables: each row has a cell for each mode, and each
//! named test, model, mutation and script exists.

#[doc = include_str!("words.md")]
pub mod words {}

#[doc = include_str!("embedding.md")]
pub mod embedding {}

#[doc = include_str!("promises.md")]
pub mod promises {}

#[doc = include_str!("ways.md")]
pub mod ways {}

#[doc = include_str!("failures.md")]
pub mod failures {}

#[doc = include_str!("moving_over.md")]
pub mod moving_over {}

#[doc = include_str!("qemu.md")]
pub mod qemu {}

#[doc = include_str!("blink.md")]
pub mod blink {}

#[doc = include_str!("executable_memory.md")]
pub mod executable_memory {}

#[doc = include_str!("limits.md")]
pub mod limits {}

#[doc = include_str!("forks.md")]
pub mod forks {}

#[doc = include_str!("mixed_pages.md")]
pub mod mixed_pages {}

#[doc = include_str!("requirements.md")]
pub mod requirements {}

#[doc = include_str!("statistics.md")]
pub mod statistics {}

#[doc = include_str!("protocol.md")]
pub mod protocol {}

#[doc = include_str!("checks.md")]
pub mod checks {}
