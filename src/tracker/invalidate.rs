//! Bytes that have changed unseen: makes their translations unreachable.

use std::ops::Range;

use super::observer::{Cause, PageData};
use super::region::Region;
use super::regions::Tracker;
use crate::addr::{GuestAddr, Span};
use crate::error::Error;
use crate::sync::{Rule, fence};

impl<D: PageData> Tracker<D> {
    /// Call this after bytes have changed unseen (by the host through another view, by a debugger,
    /// by a device). When this returns, no block derived from the pages in the range can be
    /// reached, whichever view of their bytes it was made through.
    ///
    /// # Errors
    ///
    /// [`Error::BadRange`] if the range wraps, [`Error::NotTracked`] if no byte of it is
    /// tracked.
    pub fn invalidate(&self, start: GuestAddr, len_bytes: u64) -> Result<(), Error> {
        self.gate.check_moves()?;
        let Some(span) = Span::new(start.0, len_bytes)? else { return Ok(()) };
        self.gate.read().tracked(span)?.for_each(|(tracked, pages)| tracked.region.invalidate(pages));
        Ok(())
    }
}

impl<D: PageData> Region<D> {
    /// The bytes of `pages` changed or are about to, and the kernel does not report it.
    pub(super) fn invalidate(&self, pages: Range<usize>) {
        // The caller stored the bytes and looks for words now; a translator stores its word and
        // then reads the bytes. Pairs with the fence in `not_lost`: either this sees the page
        // that is about to be translated from, or its translator reads the new bytes. Pristine
        // words and missing descriptors are only read here: no exchange orders that.
        fence(Rule::FenceBeforeLook);
        for (page, desc) in self.pages.existing(pages) {
            desc.word.bump();
            self.invalidated(page, desc, Cause::Announced);
        }
    }
}
