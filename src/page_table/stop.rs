//! All pages of a region at once: a thread is opening them, or the library no longer learns of
//! their writes.

use core::ops::Range;

use super::permit::Permit;
use super::table::{PageDesc, PageTable, Whole};
use super::word::{Unprotect, Word};
use crate::addr::PageIndex;
use crate::sync::{Ordering, Rule, fence, fence_behind_rmw};

/// The reason why no translator may begin on any page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Stopped {
    /// Writes are no longer noticed.
    Lost,
    /// All pages are being opened.
    Opening,
}

/// All pages are about to be opened: no translator begins until this is dropped.
#[must_use = "translators begin again at once"]
pub(crate) struct OpeningAll<'a>(&'a Whole);

impl OpeningAll<'_> {
    pub(crate) fn permit(&self) -> Permit<'_> {
        Permit::new()
    }
}

impl Drop for OpeningAll<'_> {
    fn drop(&mut self) {
        self.0.opening.fetch_sub(1, Ordering::AcqRel);
    }
}

impl<D> PageTable<D> {
    /// Whether the region is lost, as far as this thread knows.
    pub(crate) fn is_lost(&self) -> bool {
        self.whole.lost.load(Ordering::Relaxed)
    }

    /// Whether the region is lost and all its blocks are unreachable. After `is_lost` alone some may still be reachable: the
    /// thread that set it may be asleep before it has told of them.
    pub(crate) fn is_told_of_loss(&self) -> bool {
        self.whole.is_told_of_loss.load(Ordering::Acquire)
    }

    /// Whether all pages are being opened.
    pub(crate) fn is_opening(&self) -> bool {
        self.whole.opening.load(Ordering::Acquire) != 0
    }

    /// A translator asks this right after it has claimed a page's word, before it protects the
    /// page and before it reads the page's bytes. The fence here pairs with the fences of
    /// [`PageTable::lose`] and [`PageTable::open_all`]: either this call sees the stop,
    /// or the other thread sees the claim. It also pairs with the fence of an
    /// announcement of changed bytes: either that sees the claim, or the translator reads
    /// the new bytes.
    #[inline]
    pub(crate) fn check_not_stopped(&self) -> Result<(), Stopped> {
        fence_behind_rmw(Rule::FenceBeforeStopCheck);
        if self.whole.lost.load(Ordering::Acquire) {
            return Err(Stopped::Lost);
        }
        if self.is_opening() { Err(Stopped::Opening) } else { Ok(()) }
    }

    /// Afterwards every page of `pages` is open by its word, whatever the kernel holds.
    /// `told` gets each word before, and makes the page's blocks unreachable.
    /// Async-signal-safe if `told` is.
    pub(crate) fn stop(&self, pages: Range<usize>, mut told: impl FnMut(PageIndex, &PageDesc<D>, Word)) {
        for (page, desc) in self.existing(pages) {
            let (before, _counted) = self.enter_unprotect(page, desc, Unprotect::Change);
            told(page, desc, before);
        }
    }

    /// Writes are no longer noticed: from here on nothing begins, and `told` makes the
    /// blocks of each page unreachable. Every caller does all of it, because the first
    /// one may not have finished. Async-signal-safe if `told` is.
    // Even in a debug build: a signal stack is small.
    #[inline(always)]
    pub(crate) fn lose(&self, told: impl FnMut(PageIndex, &PageDesc<D>, Word)) -> Permit<'_> {
        self.whole.lost.store(true, Ordering::Release);
        fence(Rule::FenceBehindStop);
        self.stop(0..self.pages(), told);
        self.whole.is_told_of_loss.store(true, Ordering::Release);
        Permit::new()
    }

    /// All pages are about to be opened, and `told` makes the blocks of each unreachable.
    /// Async-signal-safe if `told` is.
    pub(crate) fn open_all(&self, told: impl FnMut(PageIndex, &PageDesc<D>, Word)) -> OpeningAll<'_> {
        self.whole.opening.fetch_add(1, Ordering::AcqRel);
        let opening = OpeningAll(&self.whole);
        fence(Rule::FenceBehindStop);
        self.stop(0..self.pages(), told);
        opening
    }
}
