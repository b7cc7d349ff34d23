//! Makes a block reachable.
//!
//! # One address of two blocks
//!
//! An embedder may use one address for two successive blocks of a key: its memory was freed and
//! reused, or one piece of code runs all blocks. Then a late walker with the record of the old
//! block is a danger. It exchanges the old plain entry for the old self-checking one, and would
//! take the new block's entry for the old. So a cell remembers the plain entries of its earlier
//! blocks, as a set of bits. A commit or a revival of an address that may be in this set first
//! takes every earlier record out of its lists, and needs a moment without walkers. It waits for
//! that only briefly, because a walker's thread may have lost its processor. Then it refuses the
//! commit as if a write had come. (A late *kill* takes the new block's entry away. The block stays
//! unreachable until the next commit of its key, or an eviction.)
//!
//! # Safety
//!
//! The cache owns blocks from their commit on: first the lists of live and of dead blocks, then the
//! epoch. Lists change only under the commit lock, and the epoch frees blocks.
#![allow(unsafe_code)]

use std::ptr::NonNull;

use super::cache::{CodeCache, Commits};
use super::entry::Entry;
use super::errors::CommitError;
use super::garbage::{Garbage, RawBox};
use super::key::{Key, Payload};
use super::record::{Block, BlockPage, BlockPages};
use super::stale_flag::StaleFlag;
use super::table::CellRef;
use super::translation::Translation;
use crate::sync::{Rule, left_out, spin_loop};

/// How often a commit checks whether the handlers inside lists have left. A handler is inside for
/// about a microsecond, unless its thread is not running.
const WALKER_LOOKS: u32 = if cfg!(loom) { 1 } else { 200 };

impl<P: Payload> CodeCache<P> {
    /// The cell of `key`, which is not `u64::MAX`.
    ///
    /// # Safety
    ///
    /// For `'a` the caller holds the commit lock, and makes no other cell unless this one has a
    /// record.
    unsafe fn cell<'a>(&self, commits: &mut Commits<P>, key: Key) -> CellRef<'a> {
        let (cell, swept) = self.0.table.cell_or_new(&mut commits.cells, key, self.0.invalidator.stubs);
        let cell = cell.ptr();
        if let Some(swept) = swept {
            commits.garbage.retire(Garbage::Swept(Box::new(swept)));
        }
        // SAFETY: by this function's contract; it is in the table, and only a new cell makes a sweep.
        unsafe { CellRef::new(cell) }
    }

    /// Makes a new block reachable.
    pub(super) fn commit(
        &self,
        key: Key,
        pages: BlockPages<P>,
        translation: Box<Translation<P>>,
    ) -> Result<(), CommitError> {
        let block = Box::new(Block::new(pages, translation));
        let mut commits = self.commits();
        self.reap(&mut commits);
        let result = self.publish(&mut commits, key, block).map(|cell| {
            self.0.counters.committed.add(1);
            if cell.mark_used() {
                self.0.counters.retranslated.add(1);
            }
        });
        if result.is_ok() {
            self.enforce_limit(&mut commits);
        }
        self.collect_if_due(commits);
        result
    }

    /// Evicts the blocks of a page that has the most blocks that a fault handler may have to walk.
    fn make_room_on(&self, commits: &mut Commits<P>, pages: &BlockPages<P>) {
        for blocks in pages.iter().map(|page| page.claim.data()).filter(|blocks| blocks.is_full()) {
            let mut evicted = 0;
            // SAFETY: under the commit lock.
            unsafe { blocks.list().for_each(|block| evicted += u64::from(self.0.invalidator.kill(block))) };
            self.0.counters.evicted.add(evicted);
            self.reap(commits);
        }
    }

    /// Kills the block behind `cell`, and makes sure that no walker can take `entry` for an entry of
    /// an earlier block. Returns whether it could.
    fn supersede(&self, commits: &mut Commits<P>, cell: CellRef<'_>, entry: Entry) -> bool {
        if let Some(old) = Self::newest(cell)
            && old.life.kill(old.reach(self.0.invalidator.stubs))
        {
            // SAFETY: committed, not reaped, and killed by this call.
            unsafe { self.reap_one(commits, old) };
        }
        if !cell.is_clear_of(entry) && !left_out(Rule::OneAddressOneWalker) {
            if !self.outlast_walkers(commits) {
                return false;
            }
            cell.forget_downgradable();
        }
        cell.note_downgradable(entry);
        true
    }

    /// Takes every dead block out of its lists, and waits a moment for the walkers that may have
    /// found one of them. Returns whether no walker is left.
    pub(super) fn outlast_walkers(&self, commits: &mut Commits<P>) -> bool {
        (0..WALKER_LOOKS).any(|look| {
            if look > 0 {
                spin_loop();
            }
            // If no walker is left, every dead block was handed over, and is taken out of its lists
            // here. A walker that came meanwhile may have found one of them before.
            !self.epoch().has_walkers() && {
                self.reap(commits);
                !self.epoch().has_walkers()
            }
        })
    }

    /// Makes `block` reachable in place of the key's current block. Returns the key's cell.
    pub(super) fn publish<'a>(
        &self,
        commits: &'a mut Commits<P>,
        key: Key,
        block: Box<Block<P>>,
    ) -> Result<CellRef<'a>, CommitError> {
        let invalidator = &*self.0.invalidator;
        self.make_room_on(commits, &block.pages);
        let entry = block.entry();
        // SAFETY: under the commit lock, and nothing else makes a cell here.
        let cell = unsafe { self.cell(commits, key) };
        if !self.supersede(commits, cell, entry) {
            self.0.counters.refused.add(1);
            // Not dropped under the lock: the payload is the embedder's.
            // SAFETY: no other thread knows of it.
            self.discard(commits, cell, unsafe { RawBox::new(NonNull::from(Box::leak(block))) });
            return Err(CommitError::Written);
        }
        // From here on the block belongs to the cache.
        let mut block = NonNull::from(Box::leak(block));
        // SAFETY: just made; no other thread knows of it yet.
        unsafe { block.as_mut() }.bind(block, cell);
        // SAFETY: the block lives until it is reaped; it is shared from here on.
        let shared = unsafe { block.as_ref() };
        cell.entry().begin(invalidator.stubs);
        let is_self_checking = shared.needs_check();
        let flag = shared.reach(invalidator.stubs).flag;
        let valid = if is_self_checking { shared.checked_flag() } else { StaleFlag::VALID };
        let publish_flag = || flag.iter().for_each(|flag| flag.publish(valid));
        flag.iter().for_each(|flag| flag.begin());
        if left_out(Rule::FlagAfterGenerations) {
            publish_flag();
        }
        for BlockPage { claim, node, .. } in &shared.pages {
            // SAFETY: under the commit lock. The node belongs to the block, which the epoch frees
            // after it was taken out.
            unsafe { claim.data().enter(node) };
        }
        // SAFETY: it is new, and reaped before it is freed.
        unsafe { commits.live.add(block) };
        // `is_current` fences: from here a handler sees the nodes, or we see its
        // generation.
        if shared.is_current()
            && let Some(address) = entry.address(is_self_checking)
        {
            // First: as soon as the cell leads to the block, it may be downgraded.
            publish_flag();
            if cell.entry().publish(invalidator.stubs, address) {
                return Ok(cell);
            }
        }
        invalidator.kill(shared);
        self.0.counters.refused.add(1);
        self.reap(commits);
        Err(CommitError::Written)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::addr::GuestAddr;
    use crate::code_cache::EntryStubs;
    use crate::memory::guest_memory::GuestMemory;
    use crate::protection::Mode;
    use crate::sync::Arc;

    /// A handler killed a block after the commit took the dead ones out.
    #[test]
    fn a_wait_for_walkers_leaves_no_dead_block_in_a_list() {
        let (cache, key) = (CodeCache::<()>::new(EntryStubs::NOT_CODE).unwrap(), Key::new(0));
        let memory = Arc::new(GuestMemory::anonymous(1).unwrap());
        cache.add_memory(GuestAddr(0), memory, Mode::None).unwrap();
        let mut ticket = cache.begin(key);
        ticket.claim(GuestAddr(0)).unwrap();
        ticket.commit(0x1000, ()).unwrap();
        let mut commits = cache.commits();
        let block = cache.table().cell(&commits.cells, key).and_then(CodeCache::newest).unwrap();
        assert!(cache.0.invalidator.kill(block));
        let page = cache.0.tracker.data(GuestAddr(0)).unwrap();
        assert!(!page.list().is_empty());
        assert!(cache.outlast_walkers(&mut commits));
        assert!(page.list().is_empty());
    }
}
