//! Every way that bytes change, in every mode. The library handles the change, or the embedder
//! announces it by a call made for it, or the library refuses it with an error.
//!
//! The table in `src/guide/ways.md` names these tests. A test translates from a page and lets
//! the bytes change in its way. It asserts the mode's promise: in synchronous modes the block
//! is unreachable once the store retired or the call returned; in deferred mode, after `sync`.
//! It also asserts that the bytes arrived. If the kernel does not report the change, the test
//! first shows that the unannounced write is missed.
//!
//! Mode `none` is the negative control: there the block must stay.

#[path = "../support/alone.rs"]
mod alone;
#[path = "../support/child.rs"]
mod child;
#[path = "../support/limit.rs"]
mod limit;
#[path = "../support/release.rs"]
mod release;
#[path = "../support/mod.rs"]
mod support;

mod access;
mod asynchronous;
mod contents;
mod debugger;
mod expect;
mod files;
mod forks;
mod huge_pages;
mod kernel_writes;
mod mappings;
mod own_process;
mod rseq;
mod signal_frame;
mod stores;
mod thread_end;
mod umip;
mod views;
