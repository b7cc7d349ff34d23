//! Pages with words that one thread has changed and will change again: a handler opens them, or a
//! translator protects them.

use core::ops::Range;

use super::permit::Permit;
use super::table::{PageDesc, PageTable};
use super::word::{Generation, NotOpen, Unprotect, Word};
use crate::addr::PageIndex;

/// Neighbouring pages with a count of un-protects that this has raised. Its drop lowers the
/// counts. Async-signal-safe.
#[must_use = "the counts are lowered at once"]
pub(crate) struct Counted<'a, D> {
    table: &'a PageTable<D>,
    pages: Range<usize>,
}

impl<D> Counted<'_, D> {
    pub(crate) fn pages(&self) -> Range<usize> {
        self.pages.clone()
    }

    pub(crate) fn permit(&self) -> Permit<'_> {
        Permit::new()
    }

    /// Takes over `next`, the page behind the last one, with its raised count.
    pub(crate) fn join(&mut self, mut next: Self) {
        debug_assert_eq!(self.pages.end, next.pages.start);
        self.pages.end = next.pages.end;
        next.pages = 0..0;
    }

    /// The pages are open. Returns the first one's word afterwards.
    #[inline]
    pub(crate) fn leave(mut self) -> Option<Word> {
        let mut descs = self.table.existing(core::mem::replace(&mut self.pages, 0..0));
        let first = descs.next().map(|(_, desc)| desc.word.leave_unprotect());
        descs.for_each(|(_, desc)| {
            desc.word.leave_unprotect();
        });
        first
    }
}

impl<D> Drop for Counted<'_, D> {
    fn drop(&mut self) {
        for (_, desc) in self.table.existing(self.pages.clone()) {
            desc.word.leave_unprotect();
        }
    }
}

/// Neighbouring pages that this translator alone is about to protect. No other one begins on
/// them, and a write makes them Cancelled. The drop opens their words; undo the kernel's
/// protection before.
#[must_use = "the pages are given up at once"]
pub(crate) struct Protecting<'a, D> {
    table: &'a PageTable<D>,
    pages: Range<usize>,
}

impl<'a, D> Protecting<'a, D> {
    pub(crate) fn pages(&self) -> Range<usize> {
        self.pages.clone()
    }

    pub(crate) fn permit(&self) -> Permit<'_> {
        Permit::new()
    }

    /// Takes neighbours along, on either side.
    pub(crate) fn join(&mut self, mut other: Self) {
        debug_assert!(self.pages.end == other.pages.start || other.pages.end == self.pages.start);
        self.pages = self.pages.start.min(other.pages.start)..self.pages.end.max(other.pages.end);
        other.pages = 0..0;
    }

    /// The pages before `page` stay; those from `page` on are the result.
    pub(crate) fn split_off(&mut self, page: usize) -> Self {
        let behind = page.clamp(self.pages.start, self.pages.end)..self.pages.end;
        self.pages.end = behind.start;
        Self { table: self.table, pages: behind }
    }

    /// The system call protected the first of the pages; takes it off. Returns its generation.
    /// If a write came meanwhile, returns the page itself, which the caller opens.
    #[inline]
    pub(crate) fn finish_first(&mut self) -> Option<(PageIndex, Result<Generation, Self>)> {
        let page = PageIndex(self.pages.clone().next()?);
        let desc = self.table.get(page)?;
        desc.clear_code();
        match desc.word.finish_protect() {
            Some(generation) => {
                self.pages.start += 1;
                Some((page, Ok(generation)))
            }
            None => {
                let rest = self.split_off(page.0 + 1);
                Some((page, Err(core::mem::replace(self, rest))))
            }
        }
    }
}

impl<D> Drop for Protecting<'_, D> {
    fn drop(&mut self) {
        for (_, desc) in self.table.existing(self.pages.clone()) {
            desc.word.abort_protect();
        }
    }
}

impl<D> PageTable<D> {
    /// [`PageWord::enter_unprotect`](super::PageWord::enter_unprotect) of `page`, with its
    /// descriptor `desc`. Async-signal-safe.
    #[inline]
    pub(crate) fn enter_unprotect(
        &self,
        page: PageIndex,
        desc: &PageDesc<D>,
        why: Unprotect,
    ) -> (Word, Counted<'_, D>) {
        (desc.word.enter_unprotect(why), Counted { table: self, pages: page.0..page.0 + 1 })
    }

    /// A translator begins on `page`, with its descriptor `desc`.
    #[inline]
    pub(crate) fn begin_protect(&self, page: PageIndex, desc: &PageDesc<D>) -> Result<Protecting<'_, D>, NotOpen> {
        desc.word.begin_protect()?;
        Ok(Protecting { table: self, pages: page.0..page.0 + 1 })
    }
}
