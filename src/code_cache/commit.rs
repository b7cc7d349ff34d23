//! Work under the commit lock: makes a block reachable, for the first time or again, and reaps the
//! dead.
//!
//! # A revival
//!
//! A former translation is published by the same steps as a new one, with the claims of a ticket
//! that has just read the same bytes under them. A vCPU may have been inside its code since before
//! the block died. It runs code of bytes that are the guest's again, just as if it had entered now.
//! It checks the stale flag after each of its own stores, and leaves if the flag is not valid. If
//! it finds the flag valid again, its store came before the ticket's reading, which found the bytes
//! unchanged. A later store moves the generation before it retires. Then either the commit sees
//! that and the flag never becomes valid, or the walk finds the block and sets the flag.
//!
//! A walker may have found the *old* record just before that was taken out of its lists. It would
//! kill in the name of the old record: it would set the flag of a valid block, or take its entry
//! away and hand no record over. So nothing is revived while there is any walker. A handler is
//! inside a list for a moment only.
//!
//! # One address of two blocks
//!
//! An embedder may use one address for two successive blocks of a key: its memory was freed and
//! reused, or one piece of code runs all blocks. A late walker with a record of the old block
//! exchanges the old plain entry for the old checked one. It would find the new block's entry in
//! the cell. So a cell knows the plain entries of its former blocks, as a set of bits. A commit or
//! a revival of an address that may be in this set needs every earlier record out of its lists and
//! no walker inside. It waits for that only a moment, because a walker's thread may have lost its
//! processor. After that the commit is refused as for a write. (A late *kill* takes the new block's
//! entry away, and leaves the block to the next commit of its key, or to an eviction.)
//!
//! # Safety
//!
//! The cache owns blocks from their commit on: the lists of live and of dead blocks own them, then
//! the epoch does. This module keeps the contracts of [`crate::block`]: lists change only under the
//! commit lock, and the epoch frees blocks.
#![allow(unsafe_code)]

use std::ptr::NonNull;

use super::cells::{CellRef, Cells};
use super::former::{Formers, Source};
use super::limit::MemoryLimit;
use super::live::Live;
use super::record::{Block, BlockPage, BlockPages, Garbage, Retired, Translation};
use super::{CodeCache, CommitError, Key, Payload};
use crate::block::{Entry, StaleFlag};
use crate::panics::FirstPanic;
use crate::sync::{Arc, Rule, left_out, spin_loop};

/// How often a commit checks whether the handlers inside lists have left. A handler is inside for
/// about a microsecond, unless its thread is not running.
const WALKER_LOOKS: u32 = if cfg!(loom) { 1 } else { 200 };

/// The state that the commit lock guards.
pub(super) struct Commits<P: Payload> {
    pub(super) cells: Cells<P>,
    pub(super) live: Live<P>,
    /// The most that live blocks may weigh.
    pub(super) live_limit_bytes: usize,
    pub(super) formers: Formers<P>,
}

// SAFETY: the pointers own their blocks, which are Send.
unsafe impl<P: Payload> Send for Commits<P> {}

impl<P: Payload> Commits<P> {
    pub(super) fn new() -> Self {
        let live_limit_bytes = MemoryLimit::default().live_bytes;
        Self { cells: Cells::new(), live: Live::new(), live_limit_bytes, formers: Formers::new() }
    }
}

/// The result of a search for a block of the ticket's bytes.
pub(super) enum Found<P: Payload> {
    /// A block that is reachable.
    Block,
    /// A former translation, which only the caller has now.
    Former(Arc<Translation<P>>),
    Nothing,
}

impl<P: Payload> CodeCache<P> {
    /// The cell of `key`, which is not `u64::MAX`.
    fn cell<'a>(&self, cells: &'a mut Cells<P>, key: Key) -> CellRef<'a, P> {
        let (cell, swept) = self.0.table.cell_or_new(cells, key, self.0.killer.stubs);
        if let Some(swept) = swept {
            self.epoch().retire(Garbage::Swept(swept));
        }
        cell
    }

    /// The block that was committed last behind `cell`, if it was not reaped.
    fn newest<'a>(cell: CellRef<'a, P>) -> Option<&'a Block<P>> {
        // SAFETY: a caller with a `CellRef` holds the commit lock, and gives the `CellRef` up
        // before it reaps. So the block was not reaped and is alive, or the pointer is null.
        unsafe { cell.block().as_ref() }
    }

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
                self.keep_limit(&mut commits);
            }
            result
        };
        self.collect_garbage();
        result
    }

    /// Makes a former block of the same bytes reachable. Gives the pages back if there is none.
    pub(super) fn revive(
        &self,
        key: Key,
        pages: BlockPages<P>,
        source: &Source,
        options: u64,
    ) -> Result<Option<BlockPages<P>>, CommitError> {
        let needs_check = pages.iter().any(|page| page.claim.is_checked());
        let result = {
            let mut commits = self.commits();
            self.reap(&mut commits);
            match self.find(
                &mut commits,
                key,
                |made| made.options == options && made.source.as_ref() == Some(source),
                needs_check,
            ) {
                Found::Block => Ok(None),
                Found::Nothing => Ok(Some(pages)),
                Found::Former(translation) => {
                    let result = self.publish(&mut commits, key, Box::new(Block::new(key, pages, translation)));
                    self.0.counters.revived.add(u64::from(result.is_ok()));
                    self.keep_limit(&mut commits);
                    result.map(|()| None)
                }
            }
        };
        self.collect_garbage();
        result
    }

    fn find(
        &self,
        commits: &mut Commits<P>,
        key: Key,
        same: impl Fn(&Translation<P>) -> bool,
        needs_check: bool,
    ) -> Found<P> {
        let stubs = self.0.killer.stubs;
        let newest = self.0.table.cell(&commits.cells, key).and_then(Self::newest);
        if let Some(block) = newest.filter(|block| same(&block.translation)) {
            let reach = block.reach(stubs);
            // If its cell does not lead to it, it is dying.
            return if reach.entry.has(reach.cell.load()) { Found::Block } else { Found::Nothing };
        }
        if !self.outlast_walkers(commits) && !left_out(Rule::ReviveAfterWalkers) {
            return Found::Nothing;
        }
        let usable = |former: &Translation<P>| same(former) && former.entry.address(needs_check).is_some();
        commits.formers.take(key, usable).map_or(Found::Nothing, Found::Former)
    }

    /// Evicts the blocks of a page that has the most blocks that a fault handler may have to walk.
    fn make_room_on(&self, commits: &mut Commits<P>, pages: &BlockPages<P>) {
        for blocks in pages.iter().map(|page| page.claim.data()).filter(|blocks| blocks.is_full()) {
            let mut evicted = 0;
            // SAFETY: under the commit lock.
            unsafe { blocks.list().for_each(|block| evicted += u64::from(self.0.killer.kill(block))) };
            self.0.counters.evicted.add(evicted);
            self.reap(commits);
        }
    }

    /// Kills the block of `key`, and makes sure that no walker can take `entry` for an entry of an
    /// earlier block. Returns whether it could.
    fn supersede(&self, commits: &mut Commits<P>, key: Key, entry: Entry) -> bool {
        let cell = self.cell(&mut commits.cells, key);
        if let Some(old) = Self::newest(cell) {
            self.0.killer.kill(old);
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
    fn outlast_walkers(&self, commits: &mut Commits<P>) -> bool {
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
    fn publish(&self, commits: &mut Commits<P>, key: Key, block: Box<Block<P>>) -> Result<(), CommitError> {
        let killer = &*self.0.killer;
        self.make_room_on(commits, &block.pages);
        if !self.supersede(commits, key, block.translation.entry) {
            self.0.counters.refused.add(1);
            // Not dropped under the lock: the payload is the embedder's.
            let given_up = commits.formers.keep(key, &block.translation);
            self.give_up(given_up);
            return Err(CommitError::Written);
        }
        let cell = self.cell(&mut commits.cells, key);
        // From here on the block belongs to the cache.
        let mut block = NonNull::from(Box::leak(block));
        // SAFETY: just made; no other thread knows of it yet.
        unsafe { block.as_mut() }.bind(block, cell.link());
        // SAFETY: the block lives until it is reaped; it is shared from here on.
        let shared = unsafe { block.as_ref() };
        cell.set_block(block.as_ptr());
        cell.entry().begin(killer.stubs);
        let is_checked = shared.needs_check();
        let Translation { entry, flag, .. } = &*shared.translation;
        let valid = if is_checked { shared.checked_flag() } else { StaleFlag::VALID };
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
            && let Some(address) = entry.address(is_checked)
        {
            // First: as soon as the cell leads to the block, it may be downgraded.
            publish_flag();
            if cell.entry().publish(killer.stubs, address) {
                return Ok(());
            }
        }
        killer.kill(shared);
        self.0.counters.refused.add(1);
        self.reap(commits);
        Err(CommitError::Written)
    }

    /// Makes the block of `key` unreachable: the embedder found at its entry that its bytes have
    /// changed, or no longer wants it. [`Ticket::revive`](super::Ticket::revive) can still find it.
    ///
    /// # Panics
    ///
    /// If this thread holds the guard of a fork ([`CodeCache::before_fork`]).
    #[track_caller]
    pub fn remove(&self, key: Key) {
        let commits = self.commits();
        let Some(block) = self.0.table.cell(&commits.cells, key).and_then(Self::newest) else { return };
        self.0.counters.removed.add(u64::from(self.0.killer.kill(block)));
    }

    /// Takes the dead blocks out of their lists. Their translations are retained or, like the
    /// records, handed to the epoch.
    pub(super) fn reap(&self, commits: &mut Commits<P>) {
        // SAFETY: under the commit lock; blocks are freed after they were taken.
        let mut dead = unsafe { self.0.killer.dead.take_all() };
        for block in &mut dead {
            // SAFETY: not retired yet.
            let shared = unsafe { block.as_ref() };
            for BlockPage { claim, node, .. } in &shared.pages {
                // SAFETY: under the commit lock; entered by `publish`, and handed over once.
                unsafe { claim.data().take_out(node) };
            }
            shared.leave_cell();
            // SAFETY: in the queue since its commit.
            *block = unsafe { commits.live.remove(shared) };
        }
        for block in dead {
            // SAFETY: as above.
            let shared = unsafe { block.as_ref() };
            let given_up = commits.formers.keep(shared.key, &shared.translation);
            self.give_up(given_up);
            self.0.waiting.add(shared.record_weight());
            // SAFETY: from `publish`'s box, taken out of every list and handed over by the stack
            // once. The epoch keeps it as long as a thread is in a list.
            self.epoch().retire(Garbage::Block(unsafe { Retired::new(block) }));
        }
    }

    pub(super) fn give_up(&self, translations: Vec<Arc<Translation<P>>>) {
        self.0.counters.given_up.add(translations.len() as u64);
        for translation in translations {
            self.0.waiting.add(translation.weight());
            self.epoch().retire(Garbage::Former(translation));
        }
    }

    /// Frees the garbage that no thread can reach any more, and asks vCPUs to leave if they hold
    /// much back. Drops the embedder's payloads, so call it under no lock. If a payload panics, the
    /// rest is done first.
    pub(super) fn collect_garbage(&self) {
        let mut panics = FirstPanic::default();
        let mut cells = Vec::new();
        for garbage in self.epoch().collect() {
            let translation = match garbage {
                Garbage::Block(block) => {
                    let block = block.into_box();
                    self.0.waiting.sub(block.record_weight());
                    block.translation
                }
                Garbage::Former(translation) => translation,
                Garbage::Swept(swept) => {
                    cells.extend(swept.cells);
                    continue;
                }
            };
            // Another owner remains: a record that waits as well, or a block that lives again. The
            // last owner frees it.
            if let Some(last) = Arc::into_inner(translation) {
                self.0.waiting.sub(last.weight());
                self.0.counters.freed.add(1);
                panics.catch(|| drop(last));
            }
        }
        if !cells.is_empty() {
            self.commits().cells.give_back(cells);
        }
        if self.0.waiting.is_too_much() || self.epoch().is_held_back() {
            panics.catch(|| self.epoch().ask_all_to_leave());
        }
        panics.resume();
    }

    /// Frees the payloads of dead blocks if no vCPU can be inside them and they are not kept. Each
    /// commit does this too; an embedder that stops translating may call it.
    ///
    /// # Panics
    ///
    /// If this thread holds the guard of a fork ([`CodeCache::before_fork`]).
    #[track_caller]
    pub fn collect(&self) {
        self.reap(&mut self.commits());
        self.collect_garbage();
    }

    /// Gives up the retained translations of dead blocks.
    pub(super) fn forget_formers(&self) {
        {
            let mut commits = self.commits();
            self.reap(&mut commits);
            let given_up = commits.formers.clear();
            self.give_up(given_up);
        }
        self.collect_garbage();
    }
}
