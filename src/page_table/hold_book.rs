//! The record of all holds: which pages are held, and for which reason.

use std::collections::BTreeMap;

use core::ops::Range;
use core::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use super::permit::Permit;

/// The reason for a hold.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum HeldFor {
    /// Their bytes are written: only blocks that compare themselves may be made from
    /// them.
    Writing,
    /// Their mapping or their contents go away: no block may be made from them.
    Change,
}

/// The holds of one page. Read and changed under the lock of the table's book alone.
#[derive(Debug, Default)]
pub(super) struct Holds {
    writing: AtomicUsize,
    change: AtomicUsize,
}

impl Holds {
    fn of(&self, why: HeldFor) -> &AtomicUsize {
        match why {
            HeldFor::Writing => &self.writing,
            HeldFor::Change => &self.change,
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.writing.load(Relaxed) == 0 && self.change.load(Relaxed) == 0
    }

    pub(super) fn is_for_writing(&self) -> bool {
        self.writing.load(Relaxed) != 0 && self.change.load(Relaxed) == 0
    }

    // Each hold has an entry in the book, so memory runs out before the number does.
    pub(super) fn enter(&self, why: HeldFor) {
        self.of(why).fetch_add(1, Relaxed);
    }

    pub(super) fn leave(&self, why: HeldFor) {
        let before = self.of(why).fetch_sub(1, Relaxed);
        debug_assert!(before > 0, "released more often than held");
    }
}

/// Pages that are held open until `PageTable::release`.
#[derive(Debug)]
#[must_use = "the pages are held until it is released"]
pub(crate) struct Hold {
    pub(super) number: u64,
    pages: Range<usize>,
}

impl Hold {
    pub(crate) fn pages(&self) -> &Range<usize> {
        &self.pages
    }

    pub(crate) fn permit(&self) -> Permit<'_> {
        Permit::new()
    }
}

#[derive(Clone, Debug)]
pub(super) struct HeldPages {
    pub(super) pages: Range<usize>,
    pub(super) why: HeldFor,
    /// The thread that took it. Its holds go on in a fork's child.
    pub(super) thread: u64,
}

/// All holds, by number, so that a page that gets its descriptor late is held as well.
#[derive(Debug, Default)]
pub(super) struct HoldBook {
    pub(super) held: BTreeMap<u64, HeldPages>,
    pub(super) next: u64,
}

impl HoldBook {
    pub(super) fn enter(&mut self, held: HeldPages) -> Hold {
        let number = self.next;
        self.next += 1;
        let pages = held.pages.clone();
        self.held.insert(number, held);
        Hold { number, pages }
    }

    /// The holds of `page`, which gets its descriptor now.
    pub(super) fn of_page(&self, page: usize) -> Holds {
        let holds = Holds::default();
        self.held.values().filter(|held| held.pages.contains(&page)).for_each(|held| holds.enter(held.why));
        holds
    }
}
