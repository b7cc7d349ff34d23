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
use super::garbage::Garbage;
use super::key::{Key, Payload};
use super::record::{Block, BlockPage, BlockPages};
use super::stale_flag::StaleFlag;
use super::table::{CellRef, Cells};
use super::translation::Translation;
use crate::sync::{Arc, Rule, left_out, spin_loop};

/// How often a commit checks whether the handlers inside lists have left. A handler is inside for
/// about a microsecond, unless its thread is not running.
const WALKER_LOOKS: u32 = if cfg!(loom) { 1 } else { 200 };

impl<P: Payload> CodeCache<P> {
    /// The cell of `key`, which is not `u64::MAX`.
    fn cell<'a>(&self, cells: &'a mut Cells, key: Key) -> CellRef<'a> {
        let (cell, swept) = self.0.table.cell_or_new(cells, key, self.0.invalidator.stubs);
        if let Some(swept) = swept {
            self.epoch().retire(Garbage::Swept(swept));
        }
        cell
    }

    /// Makes a new block reachable.
    pub(super) fn commit(
        &self,
        key: Key,
        pages: BlockPages<P>,
        translation: Translation<P>,
    ) -> Result<(), CommitError> {
        let block = Box::new(Block::new(key, pages, Arc::new(translation)));
        let result = {
            let mut commits = self.commits();
            self.reap(&mut commits);
            let result = self.publish(&mut commits, key, block);
            if result.is_ok() {
                let before = self.cell(&mut commits.cells, key).mark_used();
                self.0.counters.committed.add(1);
                self.0.counters.retranslated.add(u64::from(before));
                self.enforce_limit(&mut commits);
            }
            result
        };
        self.collect_garbage();
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

    /// Kills the block of `key`, and makes sure that no walker can take `entry` for an entry of an
    /// earlier block. Returns whether it could.
    fn supersede(&self, commits: &mut Commits<P>, key: Key, entry: Entry) -> bool {
        let cell = self.cell(&mut commits.cells, key);
        if let Some(old) = Self::newest(cell) {
            self.0.invalidator.kill(old);
        }
        if !cell.is_clear_of(entry) && !left_out(Rule::OneAddressOneWalker) {
            if !self.outlast_walkers(commits) {
                return false;
            }
            self.cell(&mut commits.cells, key).forget_downgradable();
        }
        self.cell(&mut commits.cells, key).note_downgradable(entry);
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

    /// Makes `block` reachable in place of the key's current block.
    pub(super) fn publish(&self, commits: &mut Commits<P>, key: Key, block: Box<Block<P>>) -> Result<(), CommitError> {
        let invalidator = &*self.0.invalidator;
        self.make_room_on(commits, &block.pages);
        if !self.supersede(commits, key, block.translation.entry) {
            self.0.counters.refused.add(1);
            // Not dropped under the lock: the payload is the embedder's.
            let discarded = commits.retained.retain(key, &block.translation);
            self.retire(discarded);
            return Err(CommitError::Written);
        }
        let cell = self.cell(&mut commits.cells, key);
        // From here on the block belongs to the cache.
        let mut block = NonNull::from(Box::leak(block));
        // SAFETY: just made; no other thread knows of it yet.
        unsafe { block.as_mut() }.bind(block, cell.link());
        // SAFETY: the block lives until it is reaped; it is shared from here on.
        let shared = unsafe { block.as_ref() };
        Block::become_newest(block, cell);
        cell.entry().begin(invalidator.stubs);
        let is_self_checking = shared.needs_check();
        let Translation { entry, flag, .. } = &*shared.translation;
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
                return Ok(());
            }
        }
        invalidator.kill(shared);
        self.0.counters.refused.add(1);
        self.reap(commits);
        Err(CommitError::Written)
    }
}
