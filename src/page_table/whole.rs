//! What is true of all pages of a region at once: they are being opened, or nobody
//! learns of their writes any more.

use super::{PageDesc, PageTable, Permit, Unprotect, Word};
use crate::addr::PageIndex;
use crate::sync::{AtomicBool, AtomicUsize, Ordering, fence};
use core::ops::Range;

/// Why no translator may begin on any page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Stopped {
    /// Nobody learns of writes any more.
    Lost,
    /// All pages are being opened.
    Opening,
}

#[derive(Debug)]
pub(super) struct Whole {
    lost: AtomicBool,
    /// How many threads are opening all pages.
    opening: AtomicUsize,
}

impl Default for Whole {
    fn default() -> Self {
        Self { lost: AtomicBool::new(false), opening: AtomicUsize::new(0) }
    }
}

/// All pages are about to be opened: nobody begins until this is dropped.
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
    /// Whether the region is lost, as far as this thread has heard.
    pub(crate) fn is_lost(&self) -> bool {
        self.whole.lost.load(Ordering::Relaxed)
    }

    /// Whether all pages are being opened.
    pub(crate) fn is_opening(&self) -> bool {
        self.whole.opening.load(Ordering::Acquire) != 0
    }

    /// Asked by a translator that has claimed a page's word, before it protects the page
    /// and before it reads the page's bytes. Its fence pairs with that of
    /// [`PageTable::lose`] and [`PageTable::open_all`]: either this sees the stop, or the
    /// other one sees the claim. It pairs with that of an announcement of bytes that have
    /// changed too: either that sees the claim, or the translator reads the new bytes.
    pub(crate) fn check_not_stopped(&self) -> Result<(), Stopped> {
        fence(Ordering::SeqCst);
        if self.whole.lost.load(Ordering::Acquire) {
            return Err(Stopped::Lost);
        }
        if self.is_opening() { Err(Stopped::Opening) } else { Ok(()) }
    }

    /// Every page of `pages` is open afterwards by its word, whatever the kernel holds.
    /// `told` makes what lies on each unreachable; it gets the word before.
    /// Async-signal-safe if `told` is.
    pub(crate) fn stop(&self, pages: Range<usize>, mut told: impl FnMut(PageIndex, &PageDesc<D>, Word)) {
        for (page, desc) in self.existing(pages) {
            let (before, _counted) = self.enter_unprotect(page, desc, Unprotect::Change);
            told(page, desc, before);
        }
    }

    /// Nobody learns of writes any more: nothing begins from here on, and `told` makes
    /// what lies on each page unreachable. Every caller does all of it, because the first
    /// one may not have come to the end. Async-signal-safe if `told` is.
    pub(crate) fn lose(&self, told: impl FnMut(PageIndex, &PageDesc<D>, Word)) -> Permit<'_> {
        self.whole.lost.store(true, Ordering::Release);
        fence(Ordering::SeqCst);
        self.stop(0..self.pages(), told);
        Permit::new()
    }

    /// All pages are about to be opened, and `told` makes what lies on each unreachable.
    /// Async-signal-safe if `told` is.
    pub(crate) fn open_all(&self, told: impl FnMut(PageIndex, &PageDesc<D>, Word)) -> OpeningAll<'_> {
        self.whole.opening.fetch_add(1, Ordering::AcqRel);
        let opening = OpeningAll(&self.whole);
        fence(Ordering::SeqCst);
        self.stop(0..self.pages(), told);
        opening
    }
}
