//! A translation block's record, the list of the blocks on a page, and how a
//! block dies.
//!
//! A block is reached through its **entry cell** alone: one word that holds the
//! address of its code. There is one cell for each key, whatever becomes of the
//! blocks behind it; lookup tables and links hold the cell's address, so killing
//! a block is one store to it.
//!
//! | the cell holds | meaning |
//! |---|---|
//! | the block's entry | the block is valid |
//! | [`EntryStubs::pending`] | a commit is under way; nothing to run |
//! | [`EntryStubs::dead`] | nothing to run |
//!
//! A commit stores `pending`, enters the block in the list of every page that it
//! lies on, fences, asks for the generations, and exchanges `pending` for the
//! entry. Whoever learned of a write has moved the generation, fences, and walks
//! the page's list: each block on it whose cell holds its entry or `pending`
//! becomes dead. One of the two sees the other; and because a kill takes
//! `pending` away, a commit that lost cannot publish.
//!
//! # Safety
//!
//! Handlers change words, never lists: nodes are entered and taken out under the
//! cache's commit lock, by translators. A block that was taken out is freed by
//! the epoch, which counts the walkers in; so every node that a walker can reach
//! lives. Blocks hand themselves to the translators through a stack that only
//! grows until it is taken whole.
#![allow(unsafe_code)]

use std::fmt;
use std::ptr::{self, NonNull};

use crate::sync::{AtomicBool, AtomicPtr, AtomicU8, AtomicUsize, Ordering, Rule, left_out};

/// The two addresses that an entry cell holds while there is nothing to run.
///
/// Emitted code jumps to whatever a cell holds: both must be code of the
/// embedder that goes back to its dispatcher. They must differ from each other
/// and from every block's entry. An embedder that never jumps through cells, and
/// asks for each entry instead, can use [`EntryStubs::NOT_CODE`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EntryStubs {
    /// Where a dead block's cell leads.
    pub dead: usize,
    /// Where the cell of a block that is being committed leads.
    pub pending: usize,
}

impl EntryStubs {
    /// For embedders that never jump through cells.
    pub const NOT_CODE: EntryStubs = EntryStubs { dead: 0, pending: 1 };
}

/// The word that blocks are reached through; its address is stable as long as
/// the cache.
#[repr(transparent)]
#[derive(Debug)]
pub struct EntryCell(AtomicUsize);

impl EntryCell {
    pub(crate) fn new(stubs: EntryStubs) -> Self {
        Self(AtomicUsize::new(stubs.dead))
    }

    /// The address to jump to: a block's entry or one of the stubs.
    pub fn load(&self) -> usize {
        self.0.load(Ordering::Acquire)
    }

    /// A commit begins. Under the commit lock.
    pub(crate) fn begin(&self, stubs: EntryStubs) {
        self.0.store(stubs.pending, Ordering::Relaxed);
    }

    /// A commit ends: whether the cell now leads to `entry`.
    pub(crate) fn publish(&self, stubs: EntryStubs, entry: usize) -> bool {
        if left_out(Rule::PublishByExchange) {
            self.0.store(entry, Ordering::Release);
            return true;
        }
        self.0.compare_exchange(stubs.pending, entry, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    }

    /// Makes it lead nowhere if it leads to `entry` or is about to.
    fn kill(&self, stubs: EntryStubs, entry: usize) {
        // One loop over both: between two, a commit turns one into the other.
        let mut seen = self.0.load(Ordering::Relaxed);
        while seen == entry || seen == stubs.pending {
            match self.0.compare_exchange_weak(seen, stubs.dead, Ordering::AcqRel, Ordering::Relaxed) {
                Ok(_) => return,
                Err(now) => seen = now,
            }
        }
    }
}

/// One block on one page.
pub(crate) struct Node<B> {
    next: AtomicPtr<Node<B>>,
    block: NonNull<B>,
}

impl<B> Node<B> {
    /// Of a block that has no place yet: [`Node::bind`] it before it is entered.
    pub(crate) fn unbound() -> Self {
        Self::new(NonNull::dangling())
    }

    /// Says which block it is of.
    pub(crate) fn bind(&mut self, block: NonNull<B>) {
        self.block = block;
    }

    pub(crate) fn new(block: NonNull<B>) -> Self {
        Self { next: AtomicPtr::new(ptr::null_mut()), block }
    }
}

/// What the list and the stack need to know of a block.
pub(crate) trait Record: Sized {
    fn life(&self) -> &Life<Self>;
}

/// The part of a block that a handler may change.
pub(crate) struct Life<B> {
    /// Not 0 once the block is dead; emitted code may poll it.
    stale: AtomicU8,
    /// Being taken out of its lists. Used under the commit lock only.
    reaped: AtomicBool,
    next_dead: AtomicPtr<B>,
}

impl<B> Life<B> {
    pub(crate) fn new() -> Self {
        Self { stale: AtomicU8::new(0), reaped: AtomicBool::new(false), next_dead: AtomicPtr::new(ptr::null_mut()) }
    }

    pub(crate) fn stale_flag(&self) -> &AtomicU8 {
        &self.stale
    }

    /// Makes the block unreachable through `cell`. Returns whether this call is
    /// the one that killed it. Async-signal-safe.
    ///
    /// The cell comes first, and for every caller: who finds the flag set may
    /// have overtaken the one that set it, and its own store is about to retire.
    pub(crate) fn kill(&self, cell: &EntryCell, stubs: EntryStubs, entry: usize) -> bool {
        if left_out(Rule::KillCellFirst) && self.stale.swap(1, Ordering::AcqRel) != 0 {
            return false;
        }
        cell.kill(stubs, entry);
        self.stale.swap(1, Ordering::AcqRel) == 0
    }
}

/// The blocks on one page.
pub(crate) struct BlockList<B> {
    head: AtomicPtr<Node<B>>,
}

impl<B> Default for BlockList<B> {
    fn default() -> Self {
        Self { head: AtomicPtr::new(ptr::null_mut()) }
    }
}

// SAFETY: a list is a pointer to nodes whose blocks are shared between threads
// by design; what is behind it is reached only as the module's head says.
unsafe impl<B: Send + Sync> Send for BlockList<B> {}
// SAFETY: as above.
unsafe impl<B: Send + Sync> Sync for BlockList<B> {}

impl<B> fmt::Debug for BlockList<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("BlockList")
    }
}

impl<B: Record> BlockList<B> {
    pub(crate) fn is_empty(&self) -> bool {
        self.head.load(Ordering::Acquire).is_null()
    }

    /// Enters `node`.
    ///
    /// # Safety
    ///
    /// Under the commit lock; the node is in no list and, with its block, lives
    /// until it was taken out and the epoch has passed.
    pub(crate) unsafe fn enter(&self, node: &Node<B>) {
        let head = self.head.load(Ordering::Relaxed);
        node.next.store(head, Ordering::Relaxed);
        self.head.store(ptr::from_ref(node).cast_mut(), Ordering::Release);
    }

    /// Calls `each` with every block on the page. Async-signal-safe if `each` is.
    ///
    /// # Safety
    ///
    /// Under a walk or a pin of the cache's epoch, or under the commit lock.
    pub(crate) unsafe fn for_each(&self, mut each: impl FnMut(&B)) {
        let mut next = self.head.load(Ordering::Acquire);
        // SAFETY: by this function's contract every node that is reachable, and
        // its block, lives while we walk.
        while let Some(node) = unsafe { next.as_ref() } {
            // SAFETY: as above.
            each(unsafe { node.block.as_ref() });
            next = node.next.load(Ordering::Acquire);
        }
    }

    /// Takes out every block that is marked as reaped.
    ///
    /// # Safety
    ///
    /// Under the commit lock.
    pub(crate) unsafe fn take_out_reaped(&self) {
        let mut link = &self.head;
        // SAFETY: nodes are taken out under the commit lock alone, which we hold,
        // and freed later.
        while let Some(node) = unsafe { link.load(Ordering::Relaxed).as_ref() } {
            // SAFETY: as above.
            let reaped = unsafe { node.block.as_ref() }.life().reaped.load(Ordering::Relaxed);
            if reaped {
                link.store(node.next.load(Ordering::Relaxed), Ordering::Release);
            } else {
                link = &node.next;
            }
        }
    }
}

/// Dead blocks that no translator has looked after yet.
pub(crate) struct DeadStack<B> {
    top: AtomicPtr<B>,
}

// SAFETY: it owns nothing; what it points to is handed over whole.
unsafe impl<B: Send + Sync> Send for DeadStack<B> {}
// SAFETY: as above.
unsafe impl<B: Send + Sync> Sync for DeadStack<B> {}

impl<B> DeadStack<B> {
    pub(crate) fn new() -> Self {
        Self { top: AtomicPtr::new(ptr::null_mut()) }
    }
}

impl<B: Record> DeadStack<B> {
    /// Hands a dead block over; once for each block. Async-signal-safe.
    pub(crate) fn push(&self, block: &B) {
        let this = ptr::from_ref(block).cast_mut();
        let mut top = self.top.load(Ordering::Relaxed);
        loop {
            block.life().next_dead.store(top, Ordering::Relaxed);
            match self.top.compare_exchange_weak(top, this, Ordering::Release, Ordering::Relaxed) {
                Ok(_) => return,
                Err(now) => top = now,
            }
        }
    }

    /// Takes all, each marked as reaped.
    ///
    /// # Safety
    ///
    /// Under the commit lock; every block that was pushed still lives.
    pub(crate) unsafe fn take_all(&self) -> Vec<NonNull<B>> {
        let mut blocks = Vec::new();
        if self.top.load(Ordering::Relaxed).is_null() {
            return blocks;
        }
        let mut next = self.top.swap(ptr::null_mut(), Ordering::Acquire);
        while let Some(block) = NonNull::new(next) {
            // SAFETY: by this function's contract.
            let life = unsafe { block.as_ref() }.life();
            life.reaped.store(true, Ordering::Relaxed);
            next = life.next_dead.load(Ordering::Relaxed);
            blocks.push(block);
        }
        blocks
    }
}
