//! Executable memory, never writable and executable through one mapping.
//!
//! The memory is mapped twice. A compiler writes code through a writable view; the code runs in an
//! executable view at other addresses. No mapping changes its protection later. So publishing a
//! block costs no VMA and no TLB shootdown, and a stray write through a code address faults. The
//! memory needs no descriptor and no file.
//!
//! The views have the size of the limit from the start. Memory is behind them only at addresses
//! that were written. Freed ranges go to an address-ordered free list that coalesces (`free_list`).
//! Rare sweeps of bounded length give whole free pages back to the system.
//!
//! A page that both views map counts twice in the resident size. Code is written once. So whenever a few
//! hundred KiB were published or freed, all pages of the writable view leave the page table. The memory keeps
//! their bytes, and the next write maps its page again.
//!
//! # Coherence of instructions
//!
//! One processor writes code as data, and others fetch it as instructions. [`Allocation::publish`]
//! must come between: before the first pointer to the code is stored to a place that other threads
//! read. [`Allocation::publish_all`] does it for many blocks at once.
//!
//! - **x86-64** keeps its instruction caches coherent with stores through any view. But a processor
//!   may have fetched the old bytes ahead: the memory was another block's a moment ago, and the
//!   branch predictor still knows the address. It may still execute them. The architecture promises
//!   the new bytes only after a serializing instruction *on that processor*.
//!   `membarrier(PRIVATE_EXPEDITED_SYNC_CORE)` makes every processor that runs a thread of this
//!   process execute one. Threads that are not running pass one when they are scheduled.
//! - **aarch64** keeps nothing coherent by itself. The writer cleans its data cache to the point of
//!   unification through the writable view, invalidates the instruction cache by the executable
//!   view and waits for both. The instruction caches are then clean everywhere. But each processor
//!   still needs its own `isb`, which the same membarrier gives.
//!
//! # Fork
//!
//! Both views are shared mappings. Without further steps, a child's blocks would land in its
//! parent's code. Hold a [`BufferForkGuard`] during the fork, and call
//! [`BufferForkGuard::after_fork_child`] in the child. A child that does not call it cannot use the
//! buffer: its allocations are refused, and its drops change nothing.

mod buffer;
mod fork;
mod free_list;

pub use buffer::{Allocation, CodeBuffer, CodeBufferStats};
pub use fork::BufferForkGuard;
