//! A guide for embedders. The [head of the crate](crate) says in which order to read it.
//!
//! - [`words`]: what each word means.
//! - [`embedding`]: how an emulator lives with the library, from the first call on.
//! - [`promises`]: what is true of stale code, what is not, and a test for each
//!   sentence.
//! - [`ways`]: every way that bytes change, what each mode does, what to call.
//! - [`failures`]: everything that can fail, what each mode makes of it.
//! - [`moving_over`]: from a tracker of your own, with mprotect and SIGSEGV.
//! - [`executable_memory`]: where code lies, and when another core may run it.
//! - [`limits`]: how much memory it all takes, and who goes first.
//! - [`mixed_pages`]: pages that hold code and data.
//! - [`forks`]: both sides of a fork.
//! - [`requirements`]: kernels, permissions, containers.
//! - [`statistics`]: counters, histograms, the pages that cost most.
//! - [`protocol`]: why it is right: invariants, orderings, the model that checks each.
//! - [`checks`]: the command of each check, and what was not run.
//!
//! `tests/guide.rs` reads the tables: each cell is there for each mode, and each
//! test, model, mutation and script that is named exists.

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
