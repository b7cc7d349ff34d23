//! Under the commit lock: how a block becomes reachable, again or for the first
//! time, and what becomes of the dead.
//!
//! # A revival
//!
//! A former translation is published by the same steps as a new one, with the
//! claims of a ticket that has just read the same bytes under them. A vCPU may be
//! inside its code all the time, from before the block died: it runs code of bytes
//! that are the guest's again, as it would had it entered just now. It looks at the
//! stale flag after stores of its own, and leaves where it is not valid. Where it
//! finds it valid again, its store came before the ticket's reading, which found
//! the bytes as they were: one that came later moved the generation before it
//! retired, and either the commit saw that and the flag never became valid, or the
//! walk found the block and set the flag.
//!
//! A walker that found the *old* record, just before it was taken out of its lists,
//! would kill in the name of that one: it would set the flag of a valid block, or
//! take its entry away and hand no record over. Hence no revival while there is any
//! walker. A handler is inside a list for a moment only.
//!
//! # One address of two blocks
//!
//! An embedder may use an address for one block of a key after the other: its memory is
//! free again, or one piece of code runs them all. A walker that is late with a record of
//! the old block exchanges its plain entry for its checked one, and finds the new block's
//! in the cell. Hence a cell knows the plain entries of its former blocks, as a set of
//! bits. A commit or a revival of an address that may be among them wants every earlier
//! record out of its lists and no walker inside. It waits for that, but only a moment: a
//! walker's thread may have lost its processor. After that the commit is refused as for a
//! write. (A late *kill* takes the new block's entry away, and leaves the block to
//! the next commit of its key, or to an eviction.)
//!
//! # Safety
//!
//! Blocks are owned by the cache from their commit on: by the lists of live and of
//! dead blocks, then by the epoch. The contracts of [`crate::block`] are kept here:
//! lists change under the commit lock alone, blocks are freed by the epoch.
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

/// How often a commit looks whether the handlers that are inside lists have left. One is
/// inside for about a microsecond, unless its thread is not running.
const WALKER_LOOKS: u32 = if cfg!(loom) { 1 } else { 200 };

/// What changes under the commit lock.
pub(super) struct Commits<P: Payload> {
    pub(super) cells: Cells<P>,
    pub(super) live: Live<P>,
    /// Live blocks weigh this at most.
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

/// What a ticket finds of its bytes.
pub(super) enum Found<P: Payload> {
    /// A block that is reachable.
    Block,
    /// A former translation, which nobody but the caller has now.
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

    /// The block that was committed last behind `cell`, where it was not reaped.
    fn newest<'a>(cell: CellRef<'a, P>) -> Option<&'a Block<P>> {
        // SAFETY: whoever has a cell holds the commit lock, and gives the cell up to
        // reap: not reaped, so alive, or null.
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

    /// Makes reachable what is kept of the same bytes; gives the pages back where
    /// there is nothing.
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
            // Where it leads nowhere it is dying.
            return if reach.entry.has(reach.cell.load()) { Found::Block } else { Found::Nothing };
        }
        if !self.outlast_walkers(commits) && !left_out(Rule::ReviveAfterWalkers) {
            return Found::Nothing;
        }
        let usable = |former: &Translation<P>| same(former) && former.entry.address(needs_check).is_some();
        commits.formers.take(key, usable).map_or(Found::Nothing, Found::Former)
    }

    /// Evicts the blocks of a page that has as many as a fault handler may have to walk.
    fn make_room_on(&self, commits: &mut Commits<P>, pages: &BlockPages<P>) {
        for blocks in pages.iter().map(|page| page.claim.data()).filter(|blocks| blocks.is_full()) {
            let mut evicted = 0;
            // SAFETY: under the commit lock.
            unsafe { blocks.list().for_each(|block| evicted += u64::from(self.0.killer.kill(block))) };
            self.0.counters.evicted.add(evicted);
            self.reap(commits);
        }
    }

    /// Kills the block of `key`, and makes sure that no walker can take `entry` for that of
    /// an earlier block. Whether it is so.
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

    /// Takes every dead block out of its lists, and waits a moment for the walkers that may
    /// have found one of them. Whether none is left.
    fn outlast_walkers(&self, commits: &mut Commits<P>) -> bool {
        (0..WALKER_LOOKS).any(|look| {
            if look > 0 {
                spin_loop();
            }
            // If no walker is left, every dead block was handed over, and is taken out of its
            // lists here; a walker that came meanwhile may have found one of them before.
            !self.epoch().has_walkers() && {
                self.reap(commits);
                !self.epoch().has_walkers()
            }
        })
    }

    /// Makes `block` reachable in place of the key's block of now.
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
        // SAFETY: just made; nobody else knows of it yet.
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
            // SAFETY: under the commit lock; the node is the block's, which the
            // epoch frees after it was taken out.
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

    /// Makes the block of `key` unreachable: the embedder found at its entry that
    /// its bytes are not what they were, or wants it gone. It is kept as what
    /// [`Ticket::revive`](super::Ticket::revive) looks for.
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

    /// Takes the dead blocks out of their lists; their translations are kept or,
    /// like the records, handed to the epoch.
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
            // SAFETY: from `publish`'s box, taken out of every list and handed over by
            // the stack once; the epoch keeps it as long as somebody is in a list.
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

    /// Frees what nobody can reach any more, and asks vCPUs to leave if they hold much
    /// back. Payloads are the embedder's and are dropped here: to be called under no
    /// lock. If one of them panics, all is done first.
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
            // Another owner remains: a record that waits as well, or one that lives again.
            // The last one frees it.
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

    /// Frees what dead blocks own, as far as no vCPU can be inside them and it is
    /// not kept. Commits do it in passing; an embedder that stops translating may
    /// call it.
    ///
    /// # Panics
    ///
    /// If this thread holds the guard of a fork ([`CodeCache::before_fork`]).
    #[track_caller]
    pub fn collect(&self) {
        self.reap(&mut self.commits());
        self.collect_garbage();
    }

    /// Gives up what is kept of dead blocks.
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
