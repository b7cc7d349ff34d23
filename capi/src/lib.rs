//! The C interface of codewarden. `include/codewarden.h` is made from this crate and
//! is its documentation; the sections of it are the modules here.
//!
//! | what C holds | what is behind it |
//! |---|---|
//! | a handle | a box, given by `handle::out_handle` and taken back by the `_free` of its kind |
//! | a payload, allocations, links of a block | `payload::Owned`, dropped by the cache when no vCPU can be inside |
//! | strings of the library | thread-locals, or statics |
//!
//! A handle keeps a clone of what it needs, so the order in which handles are freed is
//! C's to choose, with one exception that is told instead of promised: a cache is
//! freed last, because guest memory may be unmapped when it is gone.
//!
//! No panic crosses: `status::guarded` turns one into a status. What a fault handler
//! or a lookup calls cannot panic and is not wrapped; an `extern "C"` function that
//! panics all the same ends the process.
//!
//! # Safety
//!
//! The contract of every `unsafe extern "C"` function is the section "Rules" of the
//! header, `header/head.h` here: so none repeats it.
#![allow(non_camel_case_types)] // C's names
#![allow(clippy::missing_safety_doc)] // see Safety above

pub mod cache;
pub mod code_buffer;
pub mod fork;
mod handle;
pub mod link;
pub mod mode;
mod payload;
pub mod region;
pub mod signals;
pub mod stats;
pub mod status;
pub mod ticket;
pub mod vcpu;
pub mod writes;

#[cfg(test)]
mod tests;
