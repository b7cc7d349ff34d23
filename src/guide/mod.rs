//! A guide for embedders.
//!
//! - [`promises`]: what is true of stale code, what is not, and a test for each
//!   sentence.
//! - [`ways`]: every way that bytes change, what each mode does, what to call.
//! - [`failures`]: everything that can fail, what each mode makes of it.
//! - [`moving_over`]: from a tracker of your own, with mprotect and SIGSEGV.
//!
//! `tests/guide.rs` reads the tables: each cell is there for each mode, and each
//! test that is named exists.

#[doc = include_str!("promises.md")]
pub mod promises {}

#[doc = include_str!("ways.md")]
pub mod ways {}

#[doc = include_str!("failures.md")]
pub mod failures {}

#[doc = include_str!("moving_over.md")]
pub mod moving_over {}
