//! Every way that bytes change, in every mode: each is handled, announced by the
//! embedder through a call made for it, or refused with an error.
//!
//! `src/guide/ways.md` is the table of it and names these tests. A test
//! translates from a page, lets the bytes change in its way, and asserts what the
//! mode promises (synchronous: unreachable once the store retired or the call
//! returned; deferred: after `sync`), and that the bytes arrived. Where the kernel
//! tells nobody, the unannounced write is shown to be missed first.
//!
//! Mode `none` runs with them: there the block must stay, or the test could not
//! fail.

#[path = "../support/alone.rs"]
mod alone;
#[path = "../support/child.rs"]
mod child;
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
