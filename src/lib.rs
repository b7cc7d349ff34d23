//! codewarden keeps translated code true to the guest bytes that it came from.
//!
//! An emulator or a JIT hands it guest memory. It write-protects the pages that
//! translations come from, learns of every write to them, and makes what was made
//! from the old bytes unreachable before it can run. It knows no guest instruction
//! set and no compiler.
//!
//! # Where to begin
//!
//! - [`CodeCache`]: translations found by key, linked through entry cells ([`Link`]), freed
//!   when no vCPU can be inside them. Its [`CodeCache::tracker`] takes the regions.
//! - [`tracker::Tracker`]: the tracking alone, for an emulator with a cache of its
//!   own.
//! - [`guest_memory::GuestMemory`]: memory to track, made here or handed over.
//! - [`protection`]: the modes, which of them can be had ([`protection::Probe`]),
//!   and [`protection::handle_fault`] for embedders who own the signals.
//! - [`code_buffer::CodeBuffer`]: executable memory.
//!
//! The README has an embedding in 30 lines, `ARCHITECTURE.md` the protocol.
//!
//! # The life of a page
//!
//! ```text
//!              claim: protect                    commit
//!    open ───────────────────────▶ protected ───────────────▶ with blocks
//!     ▲                               │                            │
//!     │        a write: the claim     │    a write: its blocks     │
//!     └───────────────────────────────┴────────────────────────────┘
//!              is not current              are unreachable
//! ```
//!
//! In a synchronous mode a page is open again when the store that hit it retires.
//! In the deferred mode it stays protected, and the write is found, and its blocks
//! made unreachable, by the next [`tracker::Tracker::sync`].
//!
//! # The order of work
//!
//! 1. Claim every page of the block: [`Ticket::claim`].
//! 2. Read the guest's bytes, once each: not before the claim. Say which of them the
//!    block is made from ([`Ticket::made_from`]), and ask whether one that was made
//!    from the same can be used again ([`Ticket::revive`]). If not, translate.
//! 3. [`Ticket::commit`]: the block is reachable, or refused because a write came. An
//!    [`Entry`] with a check lets it stay beside bytes that are written.
//! 4. Look up and run under a [`Pin`]; let go of it around whatever may last.
//! 5. Tell the tracker of what the kernel cannot tell:
//!    [`tracker::Tracker::prepare_kernel_write`],
//!    [`tracker::Tracker::prepare_unseen_write`], [`tracker::Tracker::change_mapping`],
//!    [`tracker::Tracker::invalidate`]. The [`guide`] has every way that bytes change.
//!
//! # Promises
//!
//! | mode | when every block on the written bytes is unreachable |
//! |---|---|
//! | [`Mode::Sigbus`], [`Mode::Thread`], [`Mode::Mprotect`] | when the store has retired |
//! | [`Mode::Deferred`] | when [`tracker::Tracker::sync`] has returned |
//! | [`Mode::None`] | never |
//!
//! They hold for stores by any thread of this process through the tracked mapping.
//! Stores through other mappings of the same memory are not learned of.
//!
//! [`Mode::Sigbus`]: protection::Mode::Sigbus
//! [`Mode::Thread`]: protection::Mode::Thread
//! [`Mode::Mprotect`]: protection::Mode::Mprotect
//! [`Mode::Deferred`]: protection::Mode::Deferred
//! [`Mode::None`]: protection::Mode::None

pub mod addr;
mod block;
pub mod code_buffer;
mod code_cache;
mod epoch;
pub mod error;
pub mod guest_memory;
pub mod guide;
mod journal;
mod mode;
#[cfg(test)]
mod models;
mod page_table;
pub mod policy;
pub mod protection;
mod stats;
mod sync;
mod sys;
pub mod tracker;

pub use block::{Entry, EntryCell, EntryStubs, StaleFlag};
pub use code_cache::{
    CodeCache, CommitError, FRONT_ENTRIES, Footprint, ForkGuard, FrontEntry, Key, Killer, Link, PageBlocks, Payload,
    Pin, Ticket, VCpu,
};
pub use journal::RecentWrite;
pub use page_table::Busy;
pub use stats::{Histogram, Histograms, Stats};

/// The README's example runs as a test.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
