//! codewarden keeps translated code true to the guest bytes that it came from.

pub mod addr;
mod block;
pub mod code_buffer;
mod code_cache;
mod epoch;
pub mod error;
pub mod guest_memory;
mod journal;
#[cfg(test)]
mod models;
mod page_table;
pub mod protection;
mod stats;
mod sync;
mod sys;
pub mod tracker;

pub use block::{EntryCell, EntryStubs};
pub use code_cache::{
    CodeCache, CommitError, FRONT_ENTRIES, ForkGuard, FrontEntry, Key, Killer, PageBlocks, Payload, Pin, Ticket, VCpu,
};
pub use journal::RecentWrite;
pub use page_table::Busy;
pub use stats::Stats;
