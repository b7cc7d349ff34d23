//! What an embedder may count on, as tables whose every cell names its test.
//!
//! `tests/guide.rs` reads them: each cell is there for each mode, and each test
//! that is named exists.

#[doc = include_str!("ways.md")]
pub mod ways {}
