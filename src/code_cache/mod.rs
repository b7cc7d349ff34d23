//! The code cache: finds translated code by key, and never returns a stale block.
//!
//! # The life of a block
//!
//! ```text
//!   begin ──▶ claim pages ──▶ translate ──▶ commit ──▶ valid ──▶ dead ──▶ kept ──▶ freed
//!             (protected)         │           │         │ a write  │ reaped  │ given up, and
//!                                 │           ▼         │ arrives  │ by a    │ the epoch passes
//!                                 │        refused      ▼          │ trans-  │
//!                                 │    (a write came)  unreachable │ lator   │
//!                                 │                                          │
//!                                 └──────── revive: the same bytes again ◀───┘
//! ```
//!
//! - [`CodeCache::begin`] gives a [`Ticket`]. [`Ticket::claim`] protects a page and returns the
//!   address to read it at. [`Ticket::made_from`] records the bytes that the block is made from.
//!   [`Ticket::commit`] makes the block reachable, or refuses if a write came between.
//! - A [`VCpu`] pins itself, looks blocks up by key and runs them. Links in emitted code go through
//!   entry cells ([`CodeCache::link`]).
//! - A write to a block's bytes kills it: one store to its cell. The block's payload (`P`) is
//!   dropped once no vCPU can be inside the block and it is no longer kept for [`Ticket::revive`].
//! - Live blocks and retained dead ones have a limit in bytes ([`CodeCache::set_limit`]). The cache
//!   evicts the oldest. An eviction is a death like any other, and [`Ticket::revive`] brings an
//!   evicted block back on demand.
//! - A write beside a block's bytes may leave the block reachable. From then on it is entered by
//!   the code that compares its bytes ([`Entry::with_check`](crate::Entry::with_check)). If that
//!   code finds a difference, the dispatcher calls [`CodeCache::remove`].
//!
//! The commit lock is held for lists and tables only. Under it no guest memory is touched and no
//! code of the embedder runs. No fault handler takes it.
//!
//! # Safety
//!
//! The blocks that are alive when the cache is dropped are freed here; no vCPU, ticket or handler
//! is left then.
#![allow(unsafe_code)]

mod cells;
mod commit;
mod errors;
mod evict;
mod footprint;
mod fork;
mod former;
mod killer;
mod limit;
mod live;
mod record;
mod slots;
mod table;
mod ticket;
mod vcpu;

use std::fmt;

pub use cells::Link;
pub use errors::{CommitError, TranslateError};
pub use footprint::Footprint;
pub use fork::ForkGuard;
pub use killer::{Killer, PageBlocks};
pub use limit::{MemoryLimit, Weight};
pub use ticket::Ticket;
pub use vcpu::{FRONT_ENTRIES, FrontEntry, Pin, VCpu};

use crate::addr::GuestAddr;
use crate::block::EntryStubs;
use crate::epoch::Epoch;
use crate::error::Error;
use crate::journal::RecentWrite;
use crate::memory::guest_memory::GuestMemory;
use crate::panics::FirstPanic;
use crate::policy::{Adaptive, Policy};
use crate::protection::Mode;
use crate::stats::{Counters, Histograms, Stats};
use crate::sync::{Arc, Mutex, MutexGuard, lock};
use crate::sys::fork::Keeper;
use crate::tracker::{BeginError, PageClaim, Tracker};
use commit::Commits;
use limit::Waiting;
use record::Garbage;
use table::Table;

/// The key of a block: the guest's pc, and any other guest state that its code depends on, in one
/// number that the embedder makes. `u64::MAX` is not a key.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Key(u64);

impl Key {
    /// The key `raw`.
    pub const fn new(raw: u64) -> Self {
        Self(raw)
    }

    /// The number that it was made from.
    pub const fn raw(self) -> u64 {
        self.0
    }

    /// Its index in a vCPU's front: `(raw >> 1) % FRONT_ENTRIES`.
    pub const fn front_index(self) -> usize {
        (self.0 >> 1) as usize & (FRONT_ENTRIES - 1)
    }
}

impl From<GuestAddr> for Key {
    fn from(pc: GuestAddr) -> Self {
        Self(pc.0)
    }
}

/// A block's own data. It is dropped when no vCPU can be inside the block any more, under no lock,
/// by the call that finds that out (a commit, a revival, an eviction, [`CodeCache::collect`]).
///
/// A drop that panics harms no other block: the call frees and counts everything else that it can,
/// and then passes the panic on.
pub trait Payload: Send + Sync + 'static {}

impl<T: Send + Sync + 'static> Payload for T {}

struct Shared<P: Payload> {
    // Dropped in this order: no thread faults into the killer once the tracker's regions are gone.
    tracker: Tracker<PageBlocks<P>>,
    killer: Arc<Killer<P>>,
    table: Table,
    commits: Mutex<Commits<P>>,
    waiting: Waiting,
    counters: Arc<Counters>,
    /// The thread that keeps the cache still for a fork. The tracker has its own keeper, because it
    /// may stand still alone.
    keeper: Keeper,
    /// The cache's footprint at the moment when it came to stand still for a fork.
    footprint_at_fork: Mutex<Footprint>,
}

/// A cache of translated code. Its blocks own payloads of type `P`, dropped when a block's memory
/// may be reused. This is a handle: clones share the cache, which ends with the last of its clones,
/// vCPUs and tickets. Until then its regions stay protected, so guest memory must outlive them all.
pub struct CodeCache<P: Payload>(Arc<Shared<P>>);

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
    /// An empty cache without regions, under [`Adaptive::new`]: no page is checked, so blocks need
    /// no checked entry.
    ///
    /// # Errors
    ///
    /// [`Error::BadArgument`] if the two stubs are equal.
    pub fn new(stubs: EntryStubs) -> Result<Self, Error> {
        Self::with_policy(stubs, Arc::new(Adaptive::new()))
    }

    /// An empty cache without regions, under `policy`. If the policy has checked pages, as
    /// [`Adaptive::with_checks`] does, blocks should have a checked entry
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
        let killer = Arc::new(Killer::new(stubs, counters.clone()));
        Ok(Self(Arc::new(Shared {
            tracker: Tracker::with_counters(killer.clone(), policy, counters.clone()),
            killer,
            table: Table::new(stubs),
            commits: Mutex::new(Commits::new()),
            waiting: Waiting::new(MemoryLimit::default()),
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
    pub fn tracker(&self) -> &Tracker<PageBlocks<P>> {
        &self.0.tracker
    }

    /// The counts so far.
    pub fn stats(&self) -> Stats {
        self.0.counters.snapshot()
    }

    /// The histograms so far.
    pub fn histograms(&self) -> Histograms {
        self.0.counters.histograms.snapshot()
    }

    /// How many writes have hit pages with translated code so far.
    pub fn writes_recorded(&self) -> u64 {
        self.0.killer.journal.count()
    }

    /// The last writes that hit pages with translated code, from the `since`-th on. Some hundreds
    /// are retained.
    pub fn recent_writes(&self, since: u64) -> Vec<RecentWrite> {
        self.0.killer.journal.since(since)
    }

    /// Whether the calling thread holds the guard of a fork ([`CodeCache::before_fork`]). Such a
    /// thread would wait for itself in a call that needs the cache.
    pub fn stands_still_here(&self) -> bool {
        self.0.keeper.is_this_thread()
    }

    /// The commit lock. A thread that holds the guard of a fork has it already, and panics here. A
    /// caller that can return an error checks for the guard first.
    #[track_caller]
    fn commits(&self) -> MutexGuard<'_, Commits<P>> {
        self.0.keeper.assert();
        lock(&self.0.commits)
    }

    fn epoch(&self) -> &Epoch<Garbage<P>> {
        &self.0.killer.epoch
    }

    fn table(&self) -> &Table {
        &self.0.table
    }

    /// Asks every vCPU that is inside translated code now to leave, and returns when each has been
    /// outside since. A block made unreachable before this call runs on no vCPU after it. For
    /// changes that take from running blocks the things that they rely on, such as the rights to
    /// their own page.
    ///
    /// Not to be called in a signal handler.
    ///
    /// # Errors
    ///
    /// [`Error::BadArgument`] if this thread has a vCPU pinned itself: unpin it first. The
    /// same if it holds the guard of a fork.
    pub fn wait_for_vcpus(&self) -> Result<(), Error> {
        self.0.keeper.check()?;
        self.epoch().wait_for_pins()
    }

    /// A new vCPU. If the vCPU holds memory back for long, any thread may call `ask_to_leave`, more
    /// than once. It should make emitted code return to its dispatcher soon, so that the pin is
    /// renewed. It is enough to set a byte that emitted code polls whenever it goes on to another
    /// block. It is called under a lock, so it must not call into the cache, nor wait. After the
    /// vCPU was dropped it is not called again.
    ///
    /// If it panics, the other vCPUs are asked all the same. Then the call that asked passes the
    /// panic on.
    ///
    /// # Panics
    ///
    /// If this thread holds the guard of a fork ([`CodeCache::before_fork`]).
    #[track_caller]
    pub fn attach_vcpu(&self, ask_to_leave: impl Fn() + Send + Sync + 'static) -> VCpu<P> {
        self.0.keeper.assert();
        VCpu::new(self.clone(), self.0.killer.stubs, self.epoch().join(Box::new(ask_to_leave)))
    }

    /// Begins a translation that will be found by `key`.
    pub fn begin(&self, key: Key) -> Ticket<P> {
        Ticket::new(self.clone(), key)
    }

    fn claim(&self, guest: GuestAddr) -> Result<PageClaim<PageBlocks<P>>, BeginError> {
        self.0.tracker.begin(guest)
    }

    /// A link to the present and future blocks of `key`.
    ///
    /// # Errors
    ///
    /// [`Error::BadArgument`] for the key `u64::MAX`, and if this thread holds the guard of a
    /// fork.
    pub fn link(&self, key: Key) -> Result<Link, Error> {
        if key.0 == u64::MAX {
            return Err(Error::BadArgument("u64::MAX is not a key"));
        }
        self.0.keeper.check()?;
        let (link, swept) = {
            let mut commits = self.commits();
            let (cell, swept) = self.table().cell_or_new(&mut commits.cells, key, self.0.killer.stubs);
            (cell.link(), swept)
        };
        if let Some(swept) = swept {
            self.epoch().retire(Garbage::Swept(swept));
            self.collect_garbage();
        }
        Ok(link)
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
        for former in commits.formers.clear() {
            panics.catch(|| drop(former));
        }
        // The garbage keeps its regions, and these keep the killer with its epoch.
        for garbage in self.killer.epoch.drain() {
            panics.catch(|| drop(garbage));
        }
        panics.resume();
    }
}
