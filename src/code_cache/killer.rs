//! The code cache's observer of pages: makes blocks unreachable, or keeps them beside a write.
//!
//! Fault handlers call it, so nothing here takes a lock or allocates.
//!
//! # Safety
//!
//! Lists are walked under a walk of the epoch.
#![allow(unsafe_code)]

use std::fmt;
use std::hint::black_box;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::Payload;
use super::record::{Block, Garbage};
use crate::block::{BlockList, DeadStack, Downgrade, EntryStubs, Node};
use crate::epoch::Epoch;
use crate::journal::Journal;
use crate::stats::Counters;
use crate::sync::Arc;
use crate::tracker::{Cause, PageObserver, PageWrite};

/// The most blocks on one page. A store to the page walks all of them in a signal handler, with
/// signals blocked, before it retires. A page of 4 KiB has a sixteenth of these if a block of one
/// key begins at each byte.
const MOST_BLOCKS: usize = if cfg!(miri) { 64 } else { 1 << 16 };

/// The blocks on one page.
#[derive(Debug)]
pub struct PageBlocks<P: Payload> {
    list: BlockList<Block<P>>,
    /// The number of blocks. Used only under the commit lock.
    count: AtomicUsize,
}

impl<P: Payload> Default for PageBlocks<P> {
    fn default() -> Self {
        Self { list: BlockList::default(), count: AtomicUsize::new(0) }
    }
}

impl<P: Payload> PageBlocks<P> {
    pub(super) fn list(&self) -> &BlockList<Block<P>> {
        &self.list
    }

    /// Whether the page has no room for another block. Under the commit lock.
    pub(super) fn is_full(&self) -> bool {
        self.count.load(Ordering::Relaxed) >= MOST_BLOCKS
    }

    /// # Safety
    ///
    /// As [`BlockList::enter`].
    pub(super) unsafe fn enter(&self, node: &Node<Block<P>>) {
        self.count.store(self.count.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
        // SAFETY: by this function's contract.
        unsafe { self.list.enter(node) };
    }

    /// # Safety
    ///
    /// As [`Node::take_out`]; it was entered here.
    pub(super) unsafe fn take_out(&self, node: &Node<Block<P>>) {
        self.count.store(self.count.load(Ordering::Relaxed) - 1, Ordering::Relaxed);
        // SAFETY: by this function's contract.
        unsafe { node.take_out() };
    }
}

/// The tracker's observer: makes blocks unreachable.
pub struct Killer<P: Payload> {
    pub(super) stubs: EntryStubs,
    pub(super) epoch: Epoch<Garbage<P>>,
    pub(super) dead: DeadStack<Block<P>>,
    counters: Arc<Counters>,
    pub(super) journal: Journal,
}

impl<P: Payload> fmt::Debug for Killer<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Killer")
    }
}

impl<P: Payload> Killer<P> {
    pub(super) fn new(stubs: EntryStubs, counters: Arc<Counters>) -> Self {
        Self { stubs, epoch: Epoch::new(), dead: DeadStack::new(), counters, journal: Journal::new() }
    }

    /// Kills a block in a list, which was committed. Returns whether it was alive.
    pub(super) fn kill(&self, block: &Block<P>) -> bool {
        let killed = block.life.kill(block.reach(self.stubs));
        if killed {
            self.dead.push(block);
        }
        killed
    }

    /// Makes sure that a block in a list compares its bytes before each use, or cannot be reached.
    fn downgrade(&self, block: &Block<P>) -> Downgrade {
        let became = block.life.downgrade(block.reach(self.stubs), block.checked_flag());
        if became == Downgrade::Killed {
            self.dead.push(block);
        }
        became
    }

    /// Calls `each` with every block on a page.
    fn walk(&self, PageBlocks { list, .. }: &PageBlocks<P>, each: impl FnMut(&Block<P>)) {
        if !list.is_empty() {
            let _walk = self.epoch.walk();
            // SAFETY: under a walk.
            unsafe { list.for_each(each) };
        }
    }

    fn record(&self, write: &PageWrite, killed: u64, kept: u64) {
        if killed > 0 {
            self.counters.invalidated.add(killed);
        }
        if kept > 0 {
            self.counters.downgraded.add(kept);
        }
        // Pages are opened and mapped in bulk: a write that hit no block is no news.
        if killed + kept > 0 || matches!(write.cause, Cause::Store { .. }) {
            self.journal.record(write, killed);
        }
    }
}

// SAFETY: `written` and `beside` walk a list under a walk of the epoch and change atomics.
unsafe impl<P: Payload> PageObserver for Killer<P> {
    type Data = PageBlocks<P>;

    fn written(&self, blocks: &Self::Data, write: &PageWrite) {
        let mut killed = 0;
        self.walk(blocks, |block| killed += u64::from(self.kill(block)));
        self.record(write, killed, 0);
    }

    fn written_all(&self, writes: &[(&Self::Data, PageWrite)]) {
        let _walk = self.epoch.walk();
        // A block's cell and flag are some cache misses away, each behind the previous one. The
        // misses of many blocks overlap as long as no locked instruction comes in between. So look
        // at all blocks before killing the first.
        let mut seen = 0;
        for (PageBlocks { list, .. }, _) in writes {
            // SAFETY: under the walk.
            unsafe { list.for_each(|block| seen ^= block.reach(self.stubs).look()) };
        }
        black_box(seen);
        let mut all_killed = 0;
        for (PageBlocks { list, .. }, write) in writes {
            let mut killed = 0;
            // SAFETY: under the walk.
            unsafe { list.for_each(|block| killed += u64::from(self.kill(block))) };
            if killed > 0 {
                self.journal.record(write, killed);
            }
            all_killed += killed;
        }
        self.counters.invalidated.add(all_killed);
    }

    fn beside(&self, blocks: &Self::Data, write: &PageWrite) {
        let (mut killed, mut kept) = (0, 0);
        self.walk(blocks, |block| match self.downgrade(block) {
            Downgrade::Checked => kept += 1,
            Downgrade::Killed => killed += 1,
            Downgrade::Nothing => {}
        });
        self.record(write, killed, kept);
    }
}
