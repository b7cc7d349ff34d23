//! The pages of a region in a fork's child.

use super::permit::Permit;
use super::table::{PageDesc, PageTable};
use crate::addr::PageIndex;
use crate::sync::{Ordering, lock};

impl<D> PageTable<D> {
    /// In a fork's child, with no other thread inside. Holds of `thread` stay, others end. Pages `keep`
    /// their blocks, if no thread of the parent was opening them or giving the region up. `stale` gets
    /// each page that does not keep them, open by its word: it makes the blocks unreachable.
    pub(crate) fn continue_in_child(
        &self,
        thread: u64,
        keep: bool,
        mut stale: impl FnMut(PageIndex, &PageDesc<D>),
    ) -> Permit<'_> {
        // Such a thread may have changed a word, and told nobody of it.
        let is_told = !self.is_lost() && !self.is_opening();
        if !is_told {
            self.whole.lost.store(false, Ordering::Release);
            self.whole.is_told_of_loss.store(false, Ordering::Release);
            self.whole.opening.store(0, Ordering::Release);
        }
        let mut book = lock(&self.book);
        book.keep(thread);
        for (page, desc) in self.existing(0..self.pages()) {
            let is_held = book.of_page(page.0).number() > 0;
            let is_stale = desc.word.continue_in_child(is_held, keep && is_told);
            if is_stale || !(is_told || desc.word.load().is_pristine()) {
                stale(page, desc);
            }
        }
        Permit::new()
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::super::hold_book::HeldFor;
    use super::super::word::{PageState, Unprotect};
    use super::*;

    const PAGES: usize = 6;

    /// Pages 0 to 3 are protected. A thread opens page 1. Thread 7 holds pages 2 and 4, and thread 8 holds
    /// pages 3 and 5.
    fn parent() -> PageTable<()> {
        let table = PageTable::new(PAGES).unwrap();
        for page in 0..4 {
            let desc = table.get_or_make(PageIndex(page)).unwrap().unwrap();
            desc.word.begin_protect().unwrap();
            assert!(desc.word.finish_protect().is_some());
        }
        table.get(PageIndex(1)).unwrap().word.enter_unprotect(Unprotect::Write);
        for (thread, page) in [(7, 2), (7, 4), (8, 3), (8, 5)] {
            // Never released.
            let _hold =
                table.hold(page..page + 1, HeldFor::Writing, thread, |_, _| Unprotect::Write, |_, _, _, _, _| ());
        }
        table
    }

    fn child_of(table: &PageTable<()>, keep: bool) -> Vec<usize> {
        let mut stale = Vec::new();
        let _ = table.continue_in_child(7, keep, |page, _| stale.push(page.0));
        stale
    }

    #[test]
    fn only_threads_that_are_here_hold_pages_back() {
        for keep in [true, false] {
            let table = parent();
            let word = |page| table.get(PageIndex(page)).unwrap().word.load();
            let before = word(0);
            let stale = child_of(&table, keep);
            // The hold of thread 8 ended here, before it could tell, as far as is known.
            assert_eq!(stale, if keep { vec![1, 3, 5] } else { vec![0, 1, 3, 5] });
            assert_eq!(word(0).state(), if keep { PageState::Protected } else { PageState::Open });
            assert_eq!(word(0).generation() == before.generation(), keep);
            let in_flight: Vec<u64> = (0..PAGES).map(|page| word(page).unprotects_in_flight()).collect();
            assert_eq!(in_flight, [0, 0, 1, 0, 1, 0]);
        }
    }

    /// The thread that was telling of all pages had told of some.
    #[test]
    fn a_region_that_was_being_lost_or_opened_keeps_nothing() {
        for lost in [true, false] {
            let table = parent();
            if lost {
                let _ = table.lose(|_, _, _| ());
            } else {
                table.whole.opening.fetch_add(1, Ordering::AcqRel);
            }
            assert_eq!(child_of(&table, true), [0, 1, 2, 3, 5]);
            assert!(!table.is_lost() && !table.is_told_of_loss() && !table.is_opening());
            assert_eq!(child_of(&table, true), [0; 0], "once is enough");
        }
    }
}
