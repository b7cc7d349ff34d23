//! The C interface of codewarden. `include/codewarden.h` is generated from this crate
//! and is its documentation; each module here is a section of it.
//!
//! | in C | in this crate |
//! |---|---|
//! | a handle | a box, given by `handle::out_handle` and taken back by the `_free` of its kind |
//! | a payload, allocations, links of a block | `payload::Owned`, dropped by the cache when no vCPU can be inside |
//! | `told`, and the lock, of a tracker | `code_page::Embedder`, the observer of a `Tracker<CodePage>` |
//! | a call for any tracker | `tracker::AnyTracker` |
//! | strings of the library | thread-locals, or statics |
//!
//! A handle keeps a clone of each object that it needs, so C may free handles in any
//! order. There is one exception, which is checked: a cache is freed last, because
//! guest memory may be unmapped when it is gone.
//!
//! No panic crosses: `status::guarded` turns one into a status. The functions that a
//! fault handler or a lookup calls cannot panic and are not wrapped. An `extern "C"`
//! function that panics all the same ends the process.
//!
//! # Safety
//!
//! The contract of every `unsafe extern "C"` function is the section "Rules" of the
//! header, `header/head.h` here. The functions do not repeat it.
#![allow(non_camel_case_types)] // C's names
#![allow(clippy::missing_safety_doc)] // see Safety above

pub mod cache;
pub mod claim;
pub mod code_buffer;
mod code_page;
pub mod fork;
mod handle;
pub mod link;
pub mod mapping;
pub mod mode;
mod of_process;
mod payload;
pub mod policy;
pub mod region;
pub mod signals;
pub mod stats;
pub mod status;
pub mod ticket;
pub mod told;
pub mod tracker;
pub mod vcpu;
pub mod writes;

#[cfg(test)]
mod tests;
