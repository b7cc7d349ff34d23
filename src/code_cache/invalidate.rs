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

use super::block_list::PageBlocks;
use super::entry::EntryStubs;
use super::epoch::Epoch;
use super::journal::{Journal, MOST_OF_A_HARVEST};
use super::key::Payload;
use super::kill::{DeadChain, DeadStack, Downgrade};
use super::record::Block;
use crate::addr::GuestAddr;
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

    fn written_all(&self, pages: &[(GuestAddr, &Self::Data)]) {
        let _walk = self.epoch.walk();
        // A block is a cache miss away from its page, and its cell and flag are one from the block.
        // The misses of many pages overlap, as long as no locked instruction comes in between. So
        // all blocks are brought near, then all cells, before the first one is killed.
        pages.iter().for_each(|(_, blocks)| blocks.list().prefetch());
        let recorded_from = pages.len().saturating_sub(MOST_OF_A_HARVEST);
        self.journal.prefetch(recorded_from);
        for (_, blocks) in pages {
            // SAFETY: under the walk.
            unsafe { blocks.list().for_each(|block| block.reach(self.stubs).prefetch()) };
        }
        let (mut all_killed, mut skipped, mut dead) = (0, 0, DeadChain::new());
        for (at, &(page, blocks)) in pages.iter().enumerate() {
            let mut killed = 0;
            let kill = |block: &Block<P>| {
                if block.life.kill(block.reach(self.stubs)) {
                    dead.add(block);
                    killed += 1;
                }
            };
            // SAFETY: under the walk.
            unsafe { blocks.list().for_each(kill) };
            all_killed += killed;
            if at < recorded_from {
                skipped += u64::from(killed > 0);
                continue;
            }
            if at == recorded_from && skipped > 0 {
                self.journal.skip(skipped);
            }
            if killed > 0 {
                self.journal.record(&PageWrite { page, cause: Cause::Harvest }, killed);
            }
        }
        // SAFETY: under the walk.
        unsafe { self.dead.push_all(dead) };
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

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::code_cache::{CodeCache, Key};
    use crate::memory::guest_memory::GuestMemory;
    use crate::protection::Mode;

    /// Every second page has two blocks, the others none.
    #[test]
    fn a_harvest_kills_all_blocks_and_records_its_last_pages() {
        const PAGES: u64 = 60;
        const PAGE_BYTES: u64 = 1 << 16;
        let cache = CodeCache::<()>::new(EntryStubs::NOT_CODE).unwrap();
        let memory = Arc::new(GuestMemory::anonymous((PAGES * PAGE_BYTES) as usize).unwrap());
        cache.add_memory(GuestAddr(0), memory, Mode::None).unwrap();
        let translate = |addr: u64| {
            let mut ticket = cache.begin(Key::new(addr));
            ticket.claim(GuestAddr(addr)).unwrap();
            ticket.commit(0x1000, ()).unwrap();
        };
        let pages: Vec<u64> = (0..PAGES).map(|page| page * PAGE_BYTES).collect();
        for page in pages.iter().step_by(2) {
            [8, 0].into_iter().for_each(|byte| translate(page + byte));
        }
        let claims: Vec<_> = pages.iter().map(|&page| cache.0.tracker.begin(GuestAddr(page)).unwrap()).collect();
        let written: Vec<_> = claims.iter().map(|claim| (claim.guest_page(), claim.data())).collect();
        let invalidator = &cache.0.invalidator;
        invalidator.written_all(&written);
        assert_eq!((cache.stats().invalidated, cache.writes_recorded()), (PAGES, PAGES / 2));
        let recorded: Vec<_> =
            cache.recent_writes(0).iter().map(|write| (write.sequence, write.page.0, write.killed)).collect();
        let last = (PAGES / 2 - MOST_OF_A_HARVEST as u64 / 2..PAGES / 2).map(|at| (at, 2 * at * PAGE_BYTES, 2));
        assert_eq!(recorded, last.collect::<Vec<_>>());
        // The next commit takes all of them out of their lists.
        assert!(written.iter().step_by(2).all(|(_, blocks)| !blocks.list().is_empty()));
        translate(PAGE_BYTES);
        assert!(written.iter().step_by(2).all(|(_, blocks)| blocks.list().is_empty()));
        invalidator.written_all(&written);
        assert_eq!(cache.stats().invalidated, PAGES + 1);
    }
}
