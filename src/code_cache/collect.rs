//! Takes dead blocks out of their lists, and frees garbage.
//!
//! # Safety
//!
//! Lists change only under the commit lock. The epoch frees blocks.
#![allow(unsafe_code)]

use std::ptr;

use smallvec::SmallVec;

use super::cache::{CodeCache, Commits};
use super::epoch::Epoch;
use super::garbage::{Garbage, RawBox};
use super::key::Payload;
use super::record::{Block, BlockPage};
use super::retained::Discarded;
use super::table::CellRef;
use crate::panics::FirstPanic;
use crate::sync::MutexGuard;

impl<P: Payload> Commits<P> {
    /// Retires discarded translations. Returns their number.
    fn retire(&mut self, translations: Discarded<P>) -> u64 {
        let count = translations.len() as u64;
        translations.into_iter().for_each(|translation| self.garbage.retire(Garbage::Translation(translation)));
        count
    }

    /// Takes out the garbage that no thread can reach any more. Cells are used again from here on.
    fn take_free(&mut self, epoch: &Epoch) -> SmallVec<[Garbage<P>; 4]> {
        let mut free = self.garbage.collect(epoch);
        for garbage in &mut free {
            match garbage {
                // SAFETY: under the commit lock, and no walker can find the record.
                Garbage::Block(block) => unsafe { block.get().cell() }.into_iter().for_each(CellRef::forget_record),
                Garbage::Swept(swept) => self.cells.give_back(std::mem::take(&mut swept.cells)),
                Garbage::Translation(_) => {}
            }
        }
        free
    }
}

impl<P: Payload> CodeCache<P> {
    /// Takes the dead blocks out of their lists. Their translations are retained or, like the
    /// records, retired.
    pub(super) fn reap(&self, commits: &mut Commits<P>) {
        // SAFETY: under the commit lock; blocks are freed after they were taken, and each was handed
        // over by the kill that ended it.
        unsafe { self.0.invalidator.dead.take_all().for_each(|block| self.reap_one(commits, block.as_ref())) };
    }

    /// Takes `block` out of its lists: see [`CodeCache::reap`].
    ///
    /// # Safety
    ///
    /// It was committed and then killed, and is not reaped by another call.
    pub(super) unsafe fn reap_one(&self, commits: &mut Commits<P>, block: &Block<P>) {
        // SAFETY: by this function's contract.
        let (cell, block) = unsafe { self.take_out(commits, block) };
        self.discard(commits, cell, block);
    }

    /// The same, but its translation is not retained.
    ///
    /// # Safety
    ///
    /// As [`CodeCache::reap_one`].
    pub(super) unsafe fn reap_for_good(&self, commits: &mut Commits<P>, block: &Block<P>) {
        // SAFETY: by this function's contract.
        let (_, block) = unsafe { self.take_out(commits, block) };
        commits.garbage.retire(Garbage::Block(block));
        self.count_discarded(1);
    }

    /// Takes `block` out of its lists. Returns its cell, and the record for the queue of garbage.
    ///
    /// # Safety
    ///
    /// As [`CodeCache::reap_one`].
    unsafe fn take_out<'a>(&self, commits: &mut Commits<P>, block: &'a Block<P>) -> (CellRef<'a>, RawBox<Block<P>>) {
        for BlockPage { claim, node, .. } in &block.pages {
            // SAFETY: under the commit lock; entered by `publish`, and taken out once.
            unsafe { claim.data().take_out(node) };
        }
        // SAFETY: under the commit lock; the epoch has not handed it out.
        let cell = unsafe { block.cell() }.unwrap_or_else(|| unreachable!("it was committed"));
        cell.leave(ptr::from_ref(block).cast());
        // SAFETY: in the queue since its commit.
        let block = unsafe { commits.live.remove(block) };
        // SAFETY: from `publish`'s box, and in no list any more. The queue of garbage keeps it as
        // long as a thread may have found it before.
        (cell, unsafe { RawBox::new(block) })
    }

    /// Retires a record. Its translation is retained for the key of `cell`, or retired as well.
    pub(super) fn discard(&self, commits: &mut Commits<P>, cell: CellRef<'_>, block: RawBox<Block<P>>) {
        let is_wanted = block.get().translation().is_some_and(|translation| commits.retained.wants(translation));
        // SAFETY: under the commit lock.
        let wanted = if is_wanted { unsafe { block.get().take_translation() } } else { None };
        commits.garbage.retire(Garbage::Block(block));
        let discarded = match wanted {
            Some(translation) => {
                let discarded = commits.retained.retain(cell, translation);
                commits.retire(discarded)
            }
            None => 1,
        };
        self.count_discarded(discarded);
    }

    /// Hands discarded translations to the epoch.
    pub(super) fn retire(&self, commits: &mut Commits<P>, translations: Discarded<P>) {
        self.count_discarded(commits.retire(translations));
    }

    fn count_discarded(&self, discarded: u64) {
        if discarded > 0 {
            self.0.counters.discarded.add(discarded);
        }
    }

    /// Frees the garbage that no thread can reach any more, and asks vCPUs to leave if they hold
    /// much back. Drops the embedder's payloads, so it ends the lock first, and the caller must hold
    /// no other. If a payload panics, the rest is done first. Returns whether a block is left.
    pub(super) fn collect_garbage(&self, mut commits: MutexGuard<'_, Commits<P>>) -> bool {
        let free = commits.take_free(self.epoch());
        let (is_too_much, is_left) = (commits.garbage.is_too_much(), commits.garbage.memory_use().blocks > 0);
        drop(commits);
        if free.is_empty() && !is_too_much {
            return is_left;
        }
        let mut panics = FirstPanic::default();
        for garbage in free {
            let freed = garbage.memory_use().blocks as u64;
            if freed > 0 {
                self.0.counters.freed.add(freed);
            }
            panics.catch(|| drop(garbage));
        }
        if is_too_much {
            panics.catch(|| self.epoch().ask_all_to_leave());
        }
        panics.resume();
        is_left
    }

    /// At the end of a commit or a revival: as [`CodeCache::collect_garbage`], but leaves a little
    /// garbage to the next one.
    pub(super) fn collect_if_due(&self, commits: MutexGuard<'_, Commits<P>>) {
        if commits.garbage.is_due() {
            self.collect_garbage(commits);
        }
    }

    /// Frees the payloads of dead blocks if no vCPU can be inside them and they are not retained.
    /// Commits do this too, for some at a time; an embedder that stops translating may call it.
    ///
    /// # Panics
    ///
    /// If this thread holds the guard of a fork ([`CodeCache::before_fork`]).
    #[track_caller]
    pub fn collect(&self) {
        let mut commits = self.commits();
        self.reap(&mut commits);
        self.collect_garbage(commits);
    }

    /// Discards the retained translations of dead blocks.
    pub(super) fn discard_retained(&self) {
        let mut commits = self.commits();
        self.reap(&mut commits);
        let discarded = commits.retained.clear();
        self.retire(&mut commits, discarded);
        self.collect_garbage(commits);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
    use std::sync::Arc;

    use super::*;
    use crate::addr::GuestAddr;
    use crate::code_cache::{EntryStubs, Key};
    use crate::memory::guest_memory::GuestMemory;
    use crate::protection::Mode;

    struct Panics;

    impl Drop for Panics {
        fn drop(&mut self) {
            resume_unwind(Box::new("planted"));
        }
    }

    #[test]
    fn payloads_that_all_panic_are_all_dropped_and_counted() {
        let cache = CodeCache::<Panics>::new(EntryStubs::NOT_CODE).unwrap();
        let memory = Arc::new(GuestMemory::anonymous(1 << 16).unwrap());
        cache.add_memory(GuestAddr(0), memory, Mode::None).unwrap();
        for key in 0..4 {
            let mut ticket = cache.begin(Key::new(key));
            ticket.claim(GuestAddr(0)).unwrap();
            ticket.commit(0x1000, Panics).unwrap();
        }
        let end = catch_unwind(AssertUnwindSafe(|| cache.evict(usize::MAX)));
        assert_eq!(end.unwrap_err().downcast_ref(), Some(&"planted"));
        assert_eq!((cache.stats().freed, cache.footprint().garbage.blocks), (4, 0));
    }
}
