//! The record of all holds: which pages are held, and for which reason.

use std::collections::BTreeMap;

use core::ops::Range;

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

/// How many holds a page has.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Holds {
    writing: usize,
    change: usize,
}

impl Holds {
    pub(super) fn number(self) -> usize {
        self.writing + self.change
    }

    pub(super) fn is_for_writing(self) -> bool {
        self.writing != 0 && self.change == 0
    }

    fn of(&mut self, why: HeldFor) -> &mut usize {
        match why {
            HeldFor::Writing => &mut self.writing,
            HeldFor::Change => &mut self.change,
        }
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

#[derive(Debug)]
pub(super) struct HeldPages {
    pub(super) pages: Range<usize>,
    pub(super) why: HeldFor,
    /// The thread that took it. Its holds go on in a fork's child.
    pub(super) thread: u64,
}

/// All holds. A page that gets its descriptor late is held as well.
#[derive(Debug, Default)]
pub(super) struct HoldBook {
    /// By number.
    held: BTreeMap<u64, HeldPages>,
    next: u64,
    /// The holds of the pages from each key up to the next one. Pages before the first key have
    /// none, and neighbouring keys have different holds.
    holds: BTreeMap<usize, Holds>,
}

impl HoldBook {
    pub(super) fn enter(&mut self, held: HeldPages) -> Hold {
        let number = self.next;
        self.next += 1;
        let pages = held.pages.clone();
        self.change(&pages, |holds| *holds.of(held.why) += 1);
        self.held.insert(number, held);
        Hold { number, pages }
    }

    /// Ends hold `number`, if it is here.
    pub(super) fn leave(&mut self, number: u64) -> Option<HeldPages> {
        let held = self.held.remove(&number)?;
        self.change(&held.pages, |holds| *holds.of(held.why) -= 1);
        Some(held)
    }

    /// Ends the holds of every other thread.
    pub(super) fn keep(&mut self, thread: u64) {
        let others: Vec<u64> =
            self.held.iter().filter(|(_, held)| held.thread != thread).map(|(number, _)| *number).collect();
        for number in others {
            self.leave(number);
        }
    }

    /// The holds of `page`.
    pub(super) fn of_page(&self, page: usize) -> Holds {
        self.holds.range(..=page).next_back().map_or(Holds::default(), |(_, holds)| *holds)
    }

    fn change(&mut self, pages: &Range<usize>, change: impl Fn(&mut Holds)) {
        if pages.is_empty() {
            return;
        }
        let edges = [pages.start, pages.end];
        for edge in edges {
            self.holds.insert(edge, self.of_page(edge));
        }
        self.holds.range_mut(pages.clone()).for_each(|(_, holds)| change(holds));
        for edge in edges {
            let before = edge.checked_sub(1).map_or(Holds::default(), |page| self.of_page(page));
            if before == self.of_page(edge) {
                self.holds.remove(&edge);
            }
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    /// Compared with a count of each page.
    #[test]
    fn the_holds_of_each_page_are_counted() {
        const PAGES: usize = 20;
        let mut seed = 1u64;
        let mut next = |below: u64| {
            seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (seed >> 33) % below
        };
        let (mut book, mut held) = (HoldBook::default(), Vec::new());
        for _ in 0..if cfg!(miri) { 100 } else { 5_000 } {
            if next(2) == 0 || held.is_empty() {
                let start = next(PAGES as u64) as usize;
                let pages = start..(start + next(6) as usize).min(PAGES);
                let why = if next(2) == 0 { HeldFor::Writing } else { HeldFor::Change };
                held.push((book.enter(HeldPages { pages: pages.clone(), why, thread: next(2) }), why));
            } else {
                let (hold, _) = held.swap_remove(next(held.len() as u64) as usize);
                assert!(book.leave(hold.number).is_some() && book.leave(hold.number).is_none());
            }
            for page in 0..PAGES {
                let of = |why| held.iter().filter(|(hold, of)| *of == why && hold.pages.contains(&page)).count();
                let expected = Holds { writing: of(HeldFor::Writing), change: of(HeldFor::Change) };
                assert_eq!(book.of_page(page), expected);
            }
            let differ = book.holds.values().zip(book.holds.values().skip(1)).all(|(one, next)| one != next);
            assert!(differ && book.holds.len() <= 2 * held.len());
        }
        book.keep(1);
        assert!(book.held.values().all(|held| held.thread == 1));
        let own = book.held.len();
        let left = held.into_iter().filter(|(hold, _)| book.leave(hold.number).is_some()).count();
        assert_eq!(left, own);
        assert!(book.holds.is_empty());
    }
}
