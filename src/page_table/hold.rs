//! Pages that are held open. The word of a page counts all its holds as one un-protect in
//! flight: the first hold raises the count and the last one lowers it.

use core::ops::Range;

use super::hold_book::{HeldFor, HeldPages, Hold};
use super::permit::Permit;
use super::table::{PageDesc, PageTable};
use super::word::{Busy, Generation, InFlight, NotOpen, Unprotect, Word};
use crate::addr::PageIndex;
use crate::sync::lock;

impl<D> PageTable<D> {
    /// Keeps translators away from every page of `pages`, with or without a descriptor. For each
    /// page with a descriptor, `how` chooses the un-protect. Then `then` gets the word before, and
    /// a permit for the pages passed to it so far.
    pub(crate) fn hold(
        &self,
        pages: Range<usize>,
        why: HeldFor,
        thread: u64,
        how: impl Fn(PageIndex, &PageDesc<D>) -> Unprotect,
        mut then: impl FnMut(PageIndex, &PageDesc<D>, Word, Unprotect, Permit<'_>),
    ) -> Hold {
        let mut book = lock(&self.book);
        let hold = book.enter(HeldPages { pages, why, thread });
        for (page, desc) in self.existing(hold.pages().clone()) {
            let is_first = book.of_page(page.0).number() == 1;
            let how = how(page, desc);
            // The count of an earlier hold stays up until ours is released.
            let before = if is_first { desc.word.enter_unprotect(how) } else { desc.word.change_held(how) };
            then(page, desc, before, how, hold.permit());
        }
        hold
    }

    /// Ends a hold. In a fork's child it does nothing if another thread took the hold.
    pub(crate) fn release(&self, hold: Hold) {
        let mut book = lock(&self.book);
        let Some(held) = book.leave(hold.number) else { return };
        for (page, desc) in self.existing(held.pages) {
            if book.of_page(page.0).number() == 0 {
                desc.word.leave_unprotect();
            }
        }
    }

    /// Whether `page` is held now, and only for writing.
    pub(crate) fn is_held_for_writing(&self, page: PageIndex) -> bool {
        lock(&self.book).of_page(page.0).is_for_writing()
    }

    /// [`PageWord::begin_check`](super::word::PageWord::begin_check) of `page`, with its descriptor
    /// `desc`, if it is held only for writing. A change that begins meanwhile waits, and finds the
    /// page self-checking.
    pub(crate) fn begin_check_held(&self, page: PageIndex, desc: &PageDesc<D>) -> Result<Generation, NotOpen> {
        let book = lock(&self.book);
        if book.of_page(page.0).is_for_writing() {
            desc.word.begin_check(InFlight::Ignored)
        } else {
            Err(NotOpen::Busy(Busy::Unprotecting))
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::super::table::CHUNK_PAGES;
    use super::*;

    const BUSY: NotOpen = NotOpen::Busy(Busy::Unprotecting);

    fn table() -> PageTable<()> {
        PageTable::new(2 * CHUNK_PAGES).unwrap()
    }

    fn made(table: &PageTable<()>, page: usize) -> &PageDesc<()> {
        table.get_or_make(PageIndex(page)).unwrap().unwrap()
    }

    fn hold(table: &PageTable<()>, pages: Range<usize>, why: HeldFor) -> Hold {
        let how = if why == HeldFor::Change { Unprotect::Change } else { Unprotect::Write };
        table.hold(pages, why, 0, |_, _| how, |_, _, _, _, _| ())
    }

    #[test]
    fn a_hold_reaches_descriptors_made_after_it() {
        let table = table();
        let early = made(&table, 1);
        let held = hold(&table, 0..CHUNK_PAGES + 4, HeldFor::Writing);
        let late = made(&table, CHUNK_PAGES);
        let beyond = table.get(PageIndex(CHUNK_PAGES + 4)).unwrap();
        assert_eq!(early.word.begin_protect(), Err(BUSY));
        assert_eq!(late.word.begin_protect(), Err(BUSY));
        assert_eq!(beyond.word.begin_protect(), Ok(()));
        assert!(table.is_held_for_writing(PageIndex(1)) && !table.is_held_for_writing(PageIndex(CHUNK_PAGES + 4)));
        table.release(held);
        assert_eq!(early.word.begin_protect(), Ok(()));
        assert_eq!(late.word.begin_protect(), Ok(()));
    }

    /// More holds than the word can count, on a page with a descriptor and on one that
    /// gets it meanwhile; released in another order.
    #[test]
    fn holds_have_no_limit() {
        const HOLDS: usize = if cfg!(miri) { 50 } else { 9_000 };
        let table = table();
        let early = made(&table, 0);
        let both = [(); 2].map(|()| hold(&table, 0..1, HeldFor::Writing));
        assert_eq!(early.word.load().unprotects_in_flight(), 1);
        both.into_iter().for_each(|hold| table.release(hold));
        let mut held: Vec<Hold> = (0..HOLDS).map(|_| hold(&table, 0..CHUNK_PAGES + 1, HeldFor::Writing)).collect();
        let late = made(&table, CHUNK_PAGES);
        held.extend((0..HOLDS).map(|_| hold(&table, 0..CHUNK_PAGES + 1, HeldFor::Change)));
        for desc in [early, late] {
            assert_eq!(desc.word.load().unprotects_in_flight(), 1);
        }
        while let Some(last) = held.pop() {
            for desc in [early, late] {
                assert_eq!(desc.word.begin_protect(), Err(BUSY), "{} are left", held.len() + 1);
            }
            table.release(last);
            held.reverse();
        }
        for desc in [early, late] {
            assert_eq!(desc.word.load().unprotects_in_flight(), 0);
            assert_eq!(desc.word.begin_protect(), Ok(()));
        }
    }

    /// Two holds of the same pages for different reasons: a release ends its own hold.
    #[test]
    fn a_release_ends_the_hold_of_its_own_kind() {
        for [first, second] in [[HeldFor::Writing, HeldFor::Change], [HeldFor::Change, HeldFor::Writing]] {
            for ends_first in [false, true] {
                let table = table();
                let early = made(&table, 0);
                let pages = 0..CHUNK_PAGES + 1;
                let holds = (hold(&table, pages.clone(), first), hold(&table, pages, second));
                let (ended, left) = if ends_first { holds } else { (holds.1, holds.0) };
                let why = if ends_first { second } else { first };
                table.release(ended);
                // Its word and a new one agree with the book.
                let late = made(&table, CHUNK_PAGES);
                for (page, desc) in [(0, early), (CHUNK_PAGES, late)].map(|(page, desc)| (PageIndex(page), desc)) {
                    assert_eq!(table.is_held_for_writing(page), why == HeldFor::Writing);
                    assert_eq!(table.begin_check_held(page, desc).is_ok(), why == HeldFor::Writing);
                    assert!(desc.word.begin_protect().is_err());
                }
                table.release(left);
                for desc in [early, late] {
                    assert_eq!(desc.word.load().unprotects_in_flight(), 0);
                }
            }
        }
    }
}
