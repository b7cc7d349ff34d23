//! The cache itself: the state that its calls share, and the commit lock.
//!
//! The commit lock is held for lists and tables only. Under it no guest memory is touched and no
//! code of the embedder runs. No fault handler takes it.
//!
//! # Safety
//!
//! The lists of live and of dead blocks own the blocks, and later the queue of garbage does. The
//! drop of the cache frees the blocks that are still alive; no vCPU, ticket or handler is left then.
#![allow(unsafe_code)]

use std::fmt;

use super::block_list::PageBlocks;
use super::entry::EntryStubs;
use super::epoch::Epoch;
use super::garbage::GarbageQueue;
use super::invalidate::Invalidator;
use super::key::Payload;
use super::limit::{Footprint, MemoryLimit};
use super::live::Live;
use super::record::Block;
use super::retained::Retained;
use super::table::{CellRef, Cells, Table};
use crate::addr::GuestAddr;
use crate::error::Error;
use crate::memory::guest_memory::GuestMemory;
use crate::panics::FirstPanic;
use crate::policy::{Adaptive, Policy};
use crate::protection::Mode;
use crate::stats::Counters;
use crate::sync::{Arc, Mutex, MutexGuard, lock};
use crate::sys::fork::Keeper;
use crate::tracker::{PageData, Tracker};

/// The state that the commit lock guards.
pub(super) struct Commits<P: Payload> {
    pub(super) live: Live<P>,
    /// The most memory that live blocks may take.
    pub(super) live_limit_bytes: usize,
    pub(super) retained: Retained<P>,
    pub(super) garbage: GarbageQueue<P>,
    /// Dropped last: retained translations have addresses of cells.
    pub(super) cells: Cells,
}

// SAFETY: the pointers own their blocks, which are Send.
unsafe impl<P: Payload> Send for Commits<P> {}

impl<P: Payload> Commits<P> {
    pub(super) fn new() -> Self {
        let limit = MemoryLimit::default();
        Self {
            live: Live::new(),
            live_limit_bytes: limit.live_bytes,
            retained: Retained::new(),
            garbage: GarbageQueue::new(limit),
            cells: Cells::new(),
        }
    }
}

/// The state that the clones of a cache share.
pub(super) struct Shared<P: Payload> {
    // Dropped in this order: no thread faults into the invalidator once the tracker's regions are
    // gone.
    pub(super) tracker: Tracker<PageBlocks<Block<P>>>,
    pub(super) invalidator: Arc<Invalidator<P>>,
    pub(super) table: Table,
    pub(super) commits: Mutex<Commits<P>>,
    pub(super) counters: Arc<Counters>,
    /// The thread that keeps the cache still for a fork. The tracker has its own keeper, because it
    /// may stand still alone.
    pub(super) keeper: Keeper,
    /// The cache's footprint at the moment when it came to stand still for a fork.
    pub(super) footprint_at_fork: Mutex<Footprint>,
}

/// A cache of translated code. Its blocks own payloads of type `P`, dropped when a block's memory
/// may be reused. This is a handle: clones share the cache, which ends with the last of its clones,
/// vCPUs and tickets. Until then its regions stay protected, so guest memory must outlive them all.
pub struct CodeCache<P: Payload>(pub(super) Arc<Shared<P>>);

impl<P: Payload> Clone for CodeCache<P> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<P: Payload> fmt::Debug for CodeCache<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CodeCache").field("tracker", &self.0.tracker).finish_non_exhaustive()
    }
}

impl<P: Payload> CodeCache<P> {
    /// An empty cache without regions, under [`Adaptive::new`]: no page is self-checking, so blocks
    /// need no self-checking entry.
    ///
    /// # Errors
    ///
    /// [`Error::BadArgument`] if the two stubs are equal.
    pub fn new(stubs: EntryStubs) -> Result<Self, Error> {
        Self::with_policy(stubs, Arc::new(Adaptive::new()))
    }

    /// An empty cache without regions, under `policy`. If the policy has self-checking pages, as
    /// [`Adaptive::with_checks`] does, blocks should have a self-checking entry
    /// ([`Entry::with_check`](crate::Entry::with_check)).
    ///
    /// # Errors
    ///
    /// As [`CodeCache::new`].
    pub fn with_policy(stubs: EntryStubs, policy: Arc<dyn Policy>) -> Result<Self, Error> {
        if stubs.dead == stubs.pending {
            return Err(Error::BadArgument("the dead and the pending stub must differ"));
        }
        let counters = Arc::new(Counters::default());
        let invalidator = Arc::new(Invalidator::new(stubs, counters.clone()));
        Ok(Self(Arc::new(Shared {
            tracker: Tracker::with_counters(invalidator.clone(), policy, counters.clone()),
            invalidator,
            table: Table::new(stubs),
            commits: Mutex::new(Commits::new()),
            counters,
            keeper: Keeper::default(),
            footprint_at_fork: Mutex::new(Footprint::default()),
        })))
    }

    /// Starts to track `memory`, which the guest sees at `guest`. The cache keeps the memory. For
    /// memory that the embedder owns, use [`Tracker::add_region`].
    ///
    /// # Errors
    ///
    /// Those of [`Tracker::add_region`].
    pub fn add_memory(&self, guest: GuestAddr, memory: Arc<GuestMemory>, mode: Mode) -> Result<(), Error> {
        self.0.tracker.add_memory(guest, memory, mode)
    }

    /// The tracker below: add regions to it, and announce writes to it.
    pub fn tracker(&self) -> &Tracker<impl PageData + use<P>> {
        &self.0.tracker
    }

    /// Whether the calling thread holds the guard of a fork ([`CodeCache::before_fork`]). Such a
    /// thread would wait for itself in a call that needs the cache.
    pub fn stands_still_here(&self) -> bool {
        self.0.keeper.is_this_thread()
    }

    /// The block that was committed last behind `cell`, if it was not reaped.
    pub(super) fn newest<'a>(cell: CellRef<'a>) -> Option<&'a Block<P>> {
        // SAFETY: a caller with a `CellRef` holds the commit lock, and drops the `CellRef` before
        // it reaps.
        unsafe { Block::newest(cell) }
    }

    /// The commit lock. A thread that holds the guard of a fork has it already, and panics here. A
    /// caller that can return an error checks for the guard first.
    #[track_caller]
    pub(super) fn commits(&self) -> MutexGuard<'_, Commits<P>> {
        self.0.keeper.assert();
        lock(&self.0.commits)
    }

    pub(super) fn epoch(&self) -> &Epoch {
        &self.0.invalidator.epoch
    }

    pub(super) fn table(&self) -> &Table {
        &self.0.table
    }
}

impl<P: Payload> Drop for Shared<P> {
    fn drop(&mut self) {
        self.tracker.clear();
        if self.keeper.is_this_thread() {
            // Its guard was forgotten, and with it the locks around the remaining blocks.
            return;
        }
        let mut panics = FirstPanic::default();
        let commits = &mut *lock(&self.commits);
        while let Some(block) = commits.live.pop() {
            // SAFETY: each block that was committed and not reaped is here once. No vCPU, ticket or
            // handler is left: each keeps the cache or was waited for.
            let block = unsafe { Box::from_raw(block.as_ptr()) };
            panics.catch(|| drop(block));
        }
        for translation in commits.retained.clear() {
            panics.catch(|| drop(translation));
        }
        for garbage in commits.garbage.drain() {
            panics.catch(|| drop(garbage));
        }
        panics.resume();
    }
}
