//! The code cache: which translated code may run, found by key, and nothing
//! stale ever.
//!
//! # The life of a block
//!
//! ```text
//!   begin ──▶ claim pages ──▶ translate ──▶ commit ──▶ valid ──▶ dead ──▶ freed
//!             (protected)                     │          │ a write  │ reaped by a
//!                                             ▼          │ arrives  │ translator,
//!                                          refused       ▼          │ then the epoch
//!                                     (a write came)  unreachable   ▼ passes
//! ```
//!
//! - [`CodeCache::begin`] gives a [`Ticket`]; [`Ticket::claim`] protects a page
//!   and says where to read it; [`Ticket::commit`] makes the block reachable, or
//!   refuses where a write came between.
//! - A [`VCpu`] pins itself, looks blocks up by key and runs them. Links in emitted
//!   code go through [`EntryCell`]s ([`CodeCache::entry_cell`]).
//! - A write kills every block on its page: one store to its cell. What the block
//!   owned (`P`, its payload) is dropped once no vCPU can be inside it.
//!
//! The commit lock is held for lists and tables alone: no guest memory is touched
//! under it, no code of the embedder runs under it, no fault handler takes it.
//!
//! # Safety
//!
//! Blocks are owned by the cache from their commit on: by the lists of live and
//! of dead blocks, then by the epoch. The contracts of [`crate::block`] are kept
//! here: lists change under the commit lock alone, blocks are freed by the epoch.
#![allow(unsafe_code)]

mod table;
mod ticket;
mod vcpu;

use std::fmt;
use std::ptr::{self, NonNull};

pub use ticket::Ticket;
pub use vcpu::{FRONT_ENTRIES, FrontEntry, Pin, VCpu};

use crate::addr::GuestAddr;
use crate::block::{BlockList, DeadStack, EntryCell, EntryStubs, Life, Node, Record};
use crate::epoch::{Epoch, EpochForkGuard};
use crate::error::Error;
use crate::journal::{Journal, RecentWrite};
use crate::policy::Adaptive;
use crate::stats::{Counters, Stats};
use crate::sync::{Arc, AtomicU8, AtomicUsize, Mutex, MutexGuard, Ordering, lock};
use crate::tracker::{self, BeginError, Cause, PageClaim, PageObserver, PageWrite, Tracker};
use table::{Cell, Slots, Table};

/// What a block is found by: the guest's pc, and whatever else of the guest's
/// state its code depends on, in one number of the embedder's making. `u64::MAX`
/// is not a key.
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

/// What a block owns: dropped when no vCPU can be inside the block any more.
pub trait Payload: Send + Sync + 'static {}

impl<T: Send + Sync + 'static> Payload for T {}

/// Why a block did not become reachable.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum CommitError {
    /// A write came to one of its pages since it was claimed. Begin again.
    Written,
    /// No page was claimed: the block was made from no bytes.
    NoPages,
    /// The entry is one of the two stubs, or the key is `u64::MAX`.
    BadEntry,
}

impl fmt::Display for CommitError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Written => "a write came to the block's bytes while it was translated; begin again",
            Self::NoPages => "the block claimed no page: claim each page before reading it",
            Self::BadEntry => "the entry must differ from both stubs and the key from u64::MAX",
        })
    }
}

impl std::error::Error for CommitError {}

/// A page that a block lies on, and the block's node in its list.
struct BlockPage<P: Payload> {
    claim: PageClaim<Killer<P>>,
    node: Node<Block<P>>,
}

/// A translation block.
pub(crate) struct Block<P: Payload> {
    life: Life<Self>,
    /// Null until a commit.
    cell: *const EntryCell,
    entry: usize,
    pages: Vec<BlockPage<P>>,
    /// Index among the live blocks. Used under the commit lock alone.
    live_index: AtomicUsize,
    payload: Option<P>,
}

// SAFETY: the cell is shared between threads by design and outlives the block;
// the payload is.
unsafe impl<P: Payload> Send for Block<P> {}
// SAFETY: as above.
unsafe impl<P: Payload> Sync for Block<P> {}

impl<P: Payload> Block<P> {
    fn new() -> Self {
        Self {
            life: Life::new(),
            cell: ptr::null(),
            entry: 0,
            // Most blocks lie on one page.
            pages: Vec::with_capacity(1),
            live_index: AtomicUsize::new(usize::MAX),
            payload: None,
        }
    }

    fn stale_flag(&self) -> &AtomicU8 {
        self.life.stale_flag()
    }

    /// The block has its place and its cell.
    fn bind(&mut self, cell: &EntryCell) {
        let this = NonNull::from(&mut *self);
        self.cell = cell;
        for page in &mut self.pages {
            page.node.bind(this);
        }
    }

    fn add_page(&mut self, claim: PageClaim<Killer<P>>) {
        self.pages.push(BlockPage { claim, node: Node::unbound() });
    }

    /// Whether no write came to any of its pages since they were claimed.
    fn is_current(&self) -> bool {
        self.pages.iter().all(|page| page.claim.is_current())
    }
}

impl<P: Payload> Record for Block<P> {
    fn life(&self) -> &Life<Self> {
        &self.life
    }
}

/// What waits for the epoch.
pub(crate) enum Garbage<P: Payload> {
    Block(Box<Block<P>>),
    Slots(Box<Slots<P>>),
}

/// The blocks on one page.
#[derive(Debug)]
pub struct PageBlocks<P: Payload>(BlockList<Block<P>>);

impl<P: Payload> Default for PageBlocks<P> {
    fn default() -> Self {
        Self(BlockList::default())
    }
}

/// The tracker's observer: makes blocks unreachable. It is what fault handlers
/// reach of a cache.
pub struct Killer<P: Payload> {
    stubs: EntryStubs,
    epoch: Epoch<Garbage<P>>,
    dead: DeadStack<Block<P>>,
    counters: Arc<Counters>,
    journal: Journal,
}

impl<P: Payload> fmt::Debug for Killer<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Killer")
    }
}

impl<P: Payload> Killer<P> {
    /// Whether it was alive.
    fn kill(&self, block: &Block<P>) -> bool {
        // SAFETY: a block in a list was committed: its cell is set and lives as
        // long as the cache.
        let cell = unsafe { &*block.cell };
        let killed = block.life.kill(cell, self.stubs, block.entry);
        if killed {
            self.dead.push(block);
            self.counters.invalidated.add(1);
        }
        killed
    }
}

// SAFETY: `written` walks a list under a walk of the epoch and changes atomics.
unsafe impl<P: Payload> PageObserver for Killer<P> {
    type Data = PageBlocks<P>;

    fn written(&self, PageBlocks(list): &Self::Data, write: &PageWrite) {
        let mut killed = 0;
        if !list.is_empty() {
            let _walk = self.epoch.walk();
            // SAFETY: under a walk.
            unsafe { list.for_each(|block| killed += u64::from(self.kill(block))) };
        }
        // Pages are opened and mapped in bulk: what hit no block is no news.
        if killed > 0 || matches!(write.cause, Cause::Store { .. }) {
            self.journal.record(write, killed);
        }
    }
}

/// What changes under the commit lock.
struct Commits<P: Payload> {
    /// Cells in the table.
    cells: usize,
    live: Vec<NonNull<Block<P>>>,
}

// SAFETY: the pointers own their blocks, which are Send.
unsafe impl<P: Payload> Send for Commits<P> {}

struct Shared<P: Payload> {
    // Dropped in this order: nobody faults into the killer once the tracker's
    // regions are gone.
    tracker: Tracker<Killer<P>>,
    killer: Arc<Killer<P>>,
    table: Table<P>,
    commits: Mutex<Commits<P>>,
    counters: Arc<Counters>,
}

/// A cache of translated code whose blocks own payloads of type `P`: what is
/// dropped when a block's memory may be reused. A handle: clones share the cache.
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
    /// An empty cache without regions.
    ///
    /// # Errors
    ///
    /// [`Error::BadArgument`] where the two stubs are equal.
    pub fn new(stubs: EntryStubs) -> Result<Self, Error> {
        if stubs.dead == stubs.pending {
            return Err(Error::BadArgument("the dead and the pending stub must differ"));
        }
        let counters = Arc::new(Counters::default());
        let killer = Arc::new(Killer {
            stubs,
            epoch: Epoch::new(),
            dead: DeadStack::new(),
            counters: counters.clone(),
            journal: Journal::new(),
        });
        Ok(Self(Arc::new(Shared {
            tracker: Tracker::with_counters(killer.clone(), Arc::new(Adaptive::new()), counters.clone()),
            killer,
            table: Table::new(),
            commits: Mutex::new(Commits { cells: 0, live: Vec::new() }),
            counters,
        })))
    }

    /// The tracker below: regions are added to it, writes announced to it.
    pub fn tracker(&self) -> &Tracker<Killer<P>> {
        &self.0.tracker
    }

    /// What went on so far.
    pub fn stats(&self) -> Stats {
        self.0.counters.snapshot()
    }

    /// How many writes have hit pages with translated code so far.
    pub fn writes_recorded(&self) -> u64 {
        self.0.killer.journal.count()
    }

    /// The last writes that hit pages with translated code, from the `since`-th
    /// on: some hundreds are kept.
    pub fn recent_writes(&self, since: u64) -> Vec<RecentWrite> {
        self.0.killer.journal.since(since)
    }

    fn epoch(&self) -> &Epoch<Garbage<P>> {
        &self.0.killer.epoch
    }

    fn table(&self) -> &Table<P> {
        &self.0.table
    }

    /// `address` unless it is a stub's.
    fn live(&self, address: usize) -> Option<usize> {
        let stubs = self.0.killer.stubs;
        (address != stubs.dead && address != stubs.pending).then_some(address)
    }

    /// A new vCPU. `ask_to_leave` is called by other threads where the vCPU holds
    /// memory back for long: it should make emitted code return to its dispatcher
    /// soon, and the pin be renewed. It must not call into the cache.
    pub fn attach_vcpu(&self, ask_to_leave: impl Fn() + Send + Sync + 'static) -> VCpu<P> {
        VCpu::new(self.clone(), self.epoch().join(Box::new(ask_to_leave)))
    }

    /// Begins a translation that will be found by `key`.
    pub fn begin(&self, key: Key) -> Ticket<P> {
        Ticket::new(self.clone(), key)
    }

    fn claim(&self, guest: GuestAddr) -> Result<PageClaim<Killer<P>>, BeginError> {
        self.0.tracker.begin(guest)
    }

    /// The cell that the blocks of `key` are reached through, now and later. Its
    /// address is stable as long as the cache: a link is a jump to what it holds.
    ///
    /// # Errors
    ///
    /// [`Error::BadArgument`] for the key `u64::MAX`.
    pub fn entry_cell(&self, key: Key) -> Result<&EntryCell, Error> {
        if key.0 == u64::MAX {
            return Err(Error::BadArgument("u64::MAX is not a key"));
        }
        Ok(&self.cell(&mut lock(&self.0.commits), key).entry)
    }

    /// The cell of `key`, which is not `u64::MAX`.
    fn cell(&self, commits: &mut Commits<P>, key: Key) -> &Cell<P> {
        // SAFETY: under the commit lock, with its count of cells.
        let (cell, replaced) = unsafe { self.0.table.get_or_make(key, self.0.killer.stubs, &mut commits.cells) };
        if let Some(slots) = replaced {
            self.epoch().retire(Garbage::Slots(slots));
        }
        cell
    }

    fn commit(&self, key: Key, block: NonNull<Block<P>>) -> Result<(), CommitError> {
        let result = {
            let mut commits = lock(&self.0.commits);
            self.reap(&mut commits);
            let result = self.commit_locked(&mut commits, key, block);
            if result == Err(CommitError::Written) {
                self.reap(&mut commits);
            }
            result
        };
        self.collect_garbage();
        result
    }

    fn commit_locked(
        &self,
        commits: &mut Commits<P>,
        key: Key,
        mut block: NonNull<Block<P>>,
    ) -> Result<(), CommitError> {
        let killer = &*self.0.killer;
        let cell = self.cell(commits, key);
        // SAFETY: from `Ticket::commit`'s box; nobody else knows of it yet.
        unsafe { block.as_mut() }.bind(&cell.entry);
        // SAFETY: the block lives until it is reaped; it is shared from here on.
        let shared = unsafe { block.as_ref() };
        // SAFETY: under the commit lock: not reaped, so alive, or null.
        if let Some(old) = unsafe { cell.block.load(Ordering::Relaxed).as_ref() } {
            killer.kill(old);
        }
        cell.block.store(block.as_ptr(), Ordering::Relaxed);
        cell.entry.begin(killer.stubs);
        for BlockPage { claim, node } in &shared.pages {
            // SAFETY: under the commit lock; the node is the block's, which the
            // epoch frees after it was taken out.
            unsafe { claim.data().0.enter(node) };
        }
        Self::add_live(commits, block);
        // `is_current` fences: from here a handler sees the nodes, or we see its
        // generation.
        if shared.is_current() && cell.entry.publish(killer.stubs, shared.entry) {
            let counters = &self.0.counters;
            counters.committed.add(1);
            counters.retranslated.add(cell.used.swap(1, Ordering::Relaxed));
            return Ok(());
        }
        killer.kill(shared);
        self.0.counters.refused.add(1);
        Err(CommitError::Written)
    }

    fn add_live(commits: &mut Commits<P>, block: NonNull<Block<P>>) {
        // SAFETY: not freed before it was reaped.
        unsafe { block.as_ref() }.live_index.store(commits.live.len(), Ordering::Relaxed);
        commits.live.push(block);
    }

    /// Takes the dead blocks out of their lists and hands them to the epoch.
    fn reap(&self, commits: &mut Commits<P>) {
        // SAFETY: under the commit lock; blocks are freed after they were taken.
        let dead = unsafe { self.0.killer.dead.take_all() };
        for &block in &dead {
            // SAFETY: not retired yet.
            let shared = unsafe { block.as_ref() };
            for BlockPage { claim, .. } in &shared.pages {
                // SAFETY: under the commit lock.
                unsafe { claim.data().0.take_out_reaped() };
            }
            // SAFETY: a committed block's cell lives as long as the cache, and is
            // the first field of its `Cell`.
            let cell = unsafe { &*shared.cell.cast::<Cell<P>>() };
            let _ = cell.block.compare_exchange(block.as_ptr(), ptr::null_mut(), Ordering::Relaxed, Ordering::Relaxed);
            let index = shared.live_index.load(Ordering::Relaxed);
            commits.live.swap_remove(index);
            if let Some(&moved) = commits.live.get(index) {
                // SAFETY: live blocks are not freed.
                unsafe { moved.as_ref() }.live_index.store(index, Ordering::Relaxed);
            }
        }
        for block in dead {
            // SAFETY: from `Ticket::commit`'s box, taken out of every list, and
            // handed over by the stack once.
            self.epoch().retire(Garbage::Block(unsafe { Box::from_raw(block.as_ptr()) }));
        }
    }

    /// Frees what nobody can reach any more. Payloads are the embedder's and are
    /// dropped here: to be called under no lock.
    fn collect_garbage(&self) {
        for garbage in self.epoch().collect() {
            match garbage {
                Garbage::Block(block) => {
                    self.0.counters.freed.add(1);
                    drop(block);
                }
                Garbage::Slots(slots) => drop(slots),
            }
        }
    }

    /// Frees what dead blocks own, as far as no vCPU can be inside them. Commits
    /// do it in passing; an embedder that stops translating may call it.
    pub fn collect(&self) {
        self.reap(&mut lock(&self.0.commits));
        self.collect_garbage();
    }
}

/// A cache that stands still over a `fork`: see [`CodeCache::before_fork`].
#[must_use = "the cache stands still until this is dropped"]
pub struct ForkGuard<'a, P: Payload> {
    cache: &'a CodeCache<P>,
    tracker: tracker::ForkGuard<'a, Killer<P>>,
    commits: MutexGuard<'a, Commits<P>>,
    epoch: EpochForkGuard<'a, Garbage<P>>,
}

impl<P: Payload> fmt::Debug for ForkGuard<'_, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ForkGuard").field("cache", &self.cache).finish_non_exhaustive()
    }
}

impl<P: Payload> CodeCache<P> {
    /// Called before `fork`, by a thread whose vCPU is not pinned: waits until no
    /// other thread is inside the cache. In the parent, drop the guard or call
    /// [`ForkGuard::after_fork_parent`]; in the child call
    /// [`ForkGuard::after_fork_child`] before anything else.
    pub fn before_fork(&self) -> ForkGuard<'_, P> {
        ForkGuard {
            cache: self,
            tracker: self.0.tracker.before_fork(),
            commits: lock(&self.0.commits),
            epoch: self.epoch().before_fork(),
        }
    }
}

impl<P: Payload> ForkGuard<'_, P> {
    /// In the parent: everything goes on as before.
    pub fn after_fork_parent(self) {}

    /// In the child: every block is dead, and the child's own memory is tracked
    /// from now on. vCPUs of the parent's other threads hold nothing back.
    ///
    /// # Errors
    ///
    /// A region that cannot be tracked here: nothing can be translated from it.
    pub fn after_fork_child(self) -> Result<(), Error> {
        let Self { cache, tracker, commits, epoch } = self;
        epoch.after_fork_child();
        drop(commits);
        let done = tracker.after_fork_child();
        cache.collect();
        done
    }
}

impl<P: Payload> Drop for Shared<P> {
    fn drop(&mut self) {
        self.tracker.clear();
        let live = std::mem::take(&mut lock(&self.commits).live);
        for block in live {
            // SAFETY: what was committed and not reaped is here once; no vCPU,
            // ticket or handler is left: each keeps the cache or was waited for.
            drop(unsafe { Box::from_raw(block.as_ptr()) });
        }
        // Its blocks keep their regions, and these the killer with its epoch.
        drop(self.killer.epoch.drain());
    }
}
