//! How a block dies or becomes self-checking.
//!
//! A commit stores `pending` in the entry cell ([`super::entry`]), enters the block in the list of
//! every page that it lies on, fences, checks the generations, and exchanges `pending` for the
//! entry. A thread that learned of a write has moved the generation. It then fences and walks the
//! page's list. It kills each block with a cell that holds one of its entries or `pending`. One of
//! the two threads sees the other. A kill takes `pending` away, so a commit that lost cannot
//! publish.
//!
//! # A write to data on the block's page
//!
//! A write that hit none of a block's bytes leaves the block valid and makes its page writable.
//! From then on the block compares its bytes each time it is entered. The walk exchanges the plain
//! entry for the self-checking one (a **downgrade**). The plain entry never comes back for this
//! block; a later block of the key may have one. A commit that is under way is killed, since it may
//! still publish the plain entry. Both steps compare and exchange the cell's content, so a
//! downgrade never brings back an entry that a kill took away.
//!
//! # The order of cell, flag and mark
//!
//! Every caller changes the cell first and then the stale flag, even if it finds one of them
//! changed. The thread that made that change may not have finished, and the caller's own store is
//! about to retire. The mark that the *record* is dead comes last. So a caller that finds the mark
//! knows that cell and flag are changed. The record goes to the dead stack once, even if several
//! walkers find it.
//!
//! # Safety
//!
//! Dead blocks reach the translators through a stack that only grows, until a translator takes it
//! as a whole. A block on it is not freed before that.
#![allow(unsafe_code)]

use std::ptr::{self, NonNull};

use super::entry::{Entry, EntryCell, EntryStubs};
use super::stale_flag::StaleFlag;
use crate::sync::{AtomicPtr, Ordering, Rule, left_out, prefetch};

/// The part of a block that the stack needs.
pub(crate) trait Record: Sized {
    fn life(&self) -> &Life<Self>;
}

/// The ways to a block, for threads that enter it and threads that are inside.
#[derive(Clone, Copy)]
pub(crate) struct Reach<'a> {
    pub(crate) cell: &'a EntryCell,
    /// The flag, if emitted code polls one.
    pub(crate) flag: Option<&'a StaleFlag>,
    pub(crate) entry: Entry,
    pub(crate) stubs: EntryStubs,
}

impl Reach<'_> {
    fn kill_flag(&self) {
        if let Some(flag) = self.flag {
            flag.kill();
        }
    }

    /// Returns whether it was valid until now.
    fn downgrade_flag(&self, to: u8) -> bool {
        self.flag.is_some_and(|flag| flag.downgrade(to))
    }

    /// Brings the words near that a kill will change.
    #[inline]
    pub(crate) fn prefetch(&self) {
        prefetch(self.cell);
        if let Some(flag) = self.flag {
            prefetch(flag);
        }
    }
}

/// The result of a downgrade.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Downgrade {
    /// It is entered by its self-checking entry from now on.
    Checked,
    /// It was self-checking before, or is dead.
    Nothing,
    /// It had to die, and this call killed it.
    Killed,
}

/// The part of a block's record that a handler may change.
pub(crate) struct Life<B> {
    /// Null while the block is alive. Any other pointer is the mark: cell and flag are done. The
    /// thread that set the mark hands the block over, and stores the next dead block or [`last`].
    next_dead: AtomicPtr<B>,
}

/// The end of a list of dead blocks: the address of no block, for a block is aligned.
fn last<B>() -> *mut B {
    ptr::without_provenance_mut(1)
}

impl<B> Life<B> {
    pub(crate) fn new() -> Self {
        Self { next_dead: AtomicPtr::new(ptr::null_mut()) }
    }

    /// Returns whether this call marked it.
    fn mark(&self) -> bool {
        self.next_dead.compare_exchange(ptr::null_mut(), last(), Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    /// Makes the block unreachable. Returns whether this call killed it: then hand the block
    /// over. Async-signal-safe.
    pub(crate) fn kill(&self, reach: Reach<'_>) -> bool {
        if left_out(Rule::KillCellFirst) && !self.mark() {
            return false;
        }
        reach.cell.kill(reach.stubs, reach.entry);
        reach.kill_flag();
        left_out(Rule::KillCellFirst) || self.mark()
    }

    /// Makes sure that the block is entered by its self-checking entry or not at all. Tells threads
    /// that are inside by `flag`. Async-signal-safe.
    pub(crate) fn downgrade(&self, reach: Reach<'_>, flag: u8) -> Downgrade {
        let killed = || if self.kill(reach) { Downgrade::Killed } else { Downgrade::Nothing };
        let (plain, Some(checked)) = (reach.entry.plain, reach.entry.checked()) else { return killed() };
        if left_out(Rule::DowngradeCellFirst) && !reach.downgrade_flag(flag) {
            return Downgrade::Nothing;
        }
        let found = reach.cell.downgrade(plain, checked);
        if found == reach.stubs.pending && !left_out(Rule::DowngradeKillsPending) {
            return killed();
        }
        // Even if the cell was right already: the thread that changed it may not have
        // reached the flag yet.
        reach.downgrade_flag(flag);
        if found == plain { Downgrade::Checked } else { Downgrade::Nothing }
    }
}

/// Dead blocks that no translator has handled yet.
pub(crate) struct DeadStack<B> {
    /// [`last`] if there is none.
    top: AtomicPtr<B>,
}

/// Dead blocks that a walker is about to hand over together.
pub(crate) struct DeadChain<B> {
    first: *mut B,
    end: *mut B,
}

impl<B: Record> DeadChain<B> {
    pub(crate) fn new() -> Self {
        Self { first: last(), end: ptr::null_mut() }
    }

    /// Adds a block that the caller marked.
    pub(crate) fn add(&mut self, block: &B) {
        block.life().next_dead.store(self.first, Ordering::Relaxed);
        self.first = ptr::from_ref(block).cast_mut();
        if self.end.is_null() {
            self.end = self.first;
        }
    }
}

// SAFETY: it owns nothing; its pointers are handed over whole.
unsafe impl<B: Send + Sync> Send for DeadStack<B> {}
// SAFETY: as above.
unsafe impl<B: Send + Sync> Sync for DeadStack<B> {}

impl<B> DeadStack<B> {
    pub(crate) fn new() -> Self {
        Self { top: AtomicPtr::new(last()) }
    }
}

impl<B: Record> DeadStack<B> {
    /// Hands over a dead block that the caller marked. Async-signal-safe.
    pub(crate) fn push(&self, block: &B) {
        self.put_on_top(block, ptr::from_ref(block).cast_mut());
    }

    /// Hands over all of `chain`.
    ///
    /// # Safety
    ///
    /// Under the walk that found its blocks.
    pub(crate) unsafe fn push_all(&self, chain: DeadChain<B>) {
        // SAFETY: null or a block of the walk, which is not freed before it was handed over and the
        // walk has ended.
        if let Some(end) = unsafe { chain.end.as_ref() } {
            self.put_on_top(end, chain.first);
        }
    }

    /// Puts the blocks from `first` to `end` on top.
    fn put_on_top(&self, end: &B, first: *mut B) {
        let mut top = self.top.load(Ordering::Relaxed);
        loop {
            end.life().next_dead.store(top, Ordering::Relaxed);
            match self.top.compare_exchange_weak(top, first, Ordering::Release, Ordering::Relaxed) {
                Ok(_) => return,
                Err(now) => top = now,
            }
        }
    }

    /// Takes all.
    ///
    /// # Safety
    ///
    /// Under the commit lock; every block that was pushed lives until the iterator returns it.
    pub(crate) unsafe fn take_all(&self) -> impl Iterator<Item = NonNull<B>> + use<B> {
        let mut next = match self.top.load(Ordering::Relaxed) == last() {
            true => last(),
            false => self.top.swap(last(), Ordering::Acquire),
        };
        std::iter::from_fn(move || {
            let block = NonNull::new(next).filter(|&block| block.as_ptr() != last())?;
            // SAFETY: by this function's contract.
            let life = unsafe { block.as_ref() }.life();
            next = life.next_dead.load(Ordering::Relaxed);
            Some(block)
        })
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    const STUBS: EntryStubs = EntryStubs::NOT_CODE;

    struct Fake {
        life: Life<Fake>,
        cell: EntryCell,
        flag: StaleFlag,
        entry: Entry,
    }

    impl Fake {
        /// A block whose commit is under way.
        fn pending(entry: Entry) -> Self {
            let cell = EntryCell::new(STUBS);
            cell.begin(STUBS);
            Self { life: Life::new(), cell, flag: StaleFlag::new(), entry }
        }

        fn valid(entry: Entry) -> Self {
            let block = Self::pending(entry);
            block.flag.publish(StaleFlag::VALID);
            assert!(block.cell.publish(STUBS, 10));
            block
        }

        fn reach(&self) -> Reach<'_> {
            Reach { cell: &self.cell, flag: Some(&self.flag), entry: self.entry, stubs: STUBS }
        }

        fn kill(&self) -> bool {
            self.life.kill(self.reach())
        }

        fn downgrade(&self) -> Downgrade {
            self.life.downgrade(self.reach(), StaleFlag::CHECKED)
        }

        /// The content of the cell, and the flag.
        fn state(&self) -> (usize, u8) {
            (self.cell.load(), self.flag.load())
        }
    }

    impl Record for Fake {
        fn life(&self) -> &Life<Self> {
            &self.life
        }
    }

    #[test]
    fn a_data_write_leaves_a_block_its_self_checking_entry() {
        let block = Fake::valid(Entry::with_check(10, 11));
        assert_eq!(block.downgrade(), Downgrade::Checked);
        assert_eq!(block.state(), (11, StaleFlag::CHECKED));
        assert_eq!(block.downgrade(), Downgrade::Nothing);
        assert_eq!(block.state(), (11, StaleFlag::CHECKED));
        assert!(block.kill());
        assert_eq!(block.state(), (STUBS.dead, StaleFlag::DEAD));
    }

    #[test]
    fn a_block_without_a_self_checking_entry_dies_of_it() {
        let block = Fake::valid(Entry::plain(10));
        assert_eq!(block.downgrade(), Downgrade::Killed);
        assert_eq!(block.state(), (STUBS.dead, StaleFlag::DEAD));
        assert_eq!(block.downgrade(), Downgrade::Nothing);
    }

    #[test]
    fn a_commit_that_is_under_way_dies_of_it() {
        let block = Fake::pending(Entry::with_check(10, 11));
        assert_eq!(block.downgrade(), Downgrade::Killed);
        assert!(!block.cell.publish(STUBS, 10));
        assert_eq!(block.state(), (STUBS.dead, StaleFlag::DEAD));
    }

    #[test]
    fn the_dead_stay_dead_and_are_handed_over_once() {
        let block = Fake::valid(Entry::with_check(10, 11));
        assert!(block.kill());
        assert!(!block.kill());
        assert_eq!(block.downgrade(), Downgrade::Nothing);
        assert_eq!(block.state(), (STUBS.dead, StaleFlag::DEAD));
    }

    #[test]
    fn a_downgrade_leaves_the_block_of_another_record_alone() {
        let block = Fake::valid(Entry::with_check(20, 21));
        assert_eq!(block.downgrade(), Downgrade::Nothing);
        assert_eq!(block.cell.load(), 10);
        block.kill();
        assert_eq!(block.cell.load(), 10);
    }
}
