//! A page was written: the code cache's observer kills the blocks on it, or makes them compare
//! their bytes.
//!
//! Fault handlers call it, so nothing here takes a lock or allocates.
//!
//! # Safety
//!
//! Lists are walked under a walk of the epoch.
#![allow(unsafe_code)]

use std::fmt;
use std::hint::black_box;

use super::block_list::PageBlocks;
use super::entry::EntryStubs;
use super::epoch::Epoch;
use super::journal::Journal;
use super::key::Payload;
use super::kill::{DeadStack, Downgrade};
use super::record::Block;
use crate::stats::Counters;
use crate::sync::Arc;
use crate::tracker::{Cause, PageObserver, PageWrite};

/// The tracker's observer: makes blocks unreachable.
pub(super) struct Invalidator<P: Payload> {
    pub(super) stubs: EntryStubs,
    pub(super) epoch: Epoch,
    pub(super) dead: DeadStack<Block<P>>,
    counters: Arc<Counters>,
    pub(super) journal: Journal,
}

impl<P: Payload> fmt::Debug for Invalidator<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Invalidator")
    }
}

impl<P: Payload> Invalidator<P> {
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
    fn walk(&self, blocks: &PageBlocks<Block<P>>, each: impl FnMut(&Block<P>)) {
        let list = blocks.list();
        if !list.is_empty() {
            let _walk = self.epoch.walk();
            // SAFETY: under a walk.
            unsafe { list.for_each(each) };
        }
    }

    fn record(&self, write: &PageWrite, killed: u64, downgraded: u64) {
        if killed > 0 {
            self.counters.invalidated.add(killed);
        }
        if downgraded > 0 {
            self.counters.downgraded.add(downgraded);
        }
        // Pages are opened and mapped in bulk, so such a write is recorded only if it hit a block.
        if killed + downgraded > 0 || matches!(write.cause, Cause::Store { .. }) {
            self.journal.record(write, killed);
        }
    }
}

// SAFETY: `written` and `data_written` walk a list under a walk of the epoch and change atomics.
// Only pinned vCPUs look at cells and flags, and a pin fences.
unsafe impl<P: Payload> PageObserver for Invalidator<P> {
    type Data = PageBlocks<Block<P>>;

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
        for (blocks, _) in writes {
            // SAFETY: under the walk.
            unsafe { blocks.list().for_each(|block| seen ^= block.reach(self.stubs).prefetch()) };
        }
        black_box(seen);
        let mut all_killed = 0;
        for (blocks, write) in writes {
            let mut killed = 0;
            // SAFETY: under the walk.
            unsafe { blocks.list().for_each(|block| killed += u64::from(self.kill(block))) };
            if killed > 0 {
                self.journal.record(write, killed);
            }
            all_killed += killed;
        }
        self.counters.invalidated.add(all_killed);
    }

    fn data_written(&self, blocks: &Self::Data, write: &PageWrite) {
        let (mut killed, mut downgraded) = (0, 0);
        self.walk(blocks, |block| match self.downgrade(block) {
            Downgrade::Checked => downgraded += 1,
            Downgrade::Killed => killed += 1,
            Downgrade::Nothing => {}
        });
        self.record(write, killed, downgraded);
    }

    fn others_may_look(&self) -> bool {
        self.epoch.has_other_pins()
    }
}
