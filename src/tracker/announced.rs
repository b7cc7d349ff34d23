//! The calls for a range of guest memory: announcements of writes and of changes, and
//! the guest's access to it.
//!
//! A range may reach to the last byte of the 64-bit space. An empty range is no error,
//! and nothing is done. [`views`](super::views) says what each call means for the other
//! views of the range.

use std::ops::Range;

use crate::addr::{GuestAddr, Span};
use crate::error::Error;
use crate::page_table::HeldFor;
use crate::protection::{Access, KernelWrites, Mode};

use super::space::{Space, Tracked};
use super::{Held, MappingChange, PageObserver, SharedMemory, Tracker};

/// Calls `each` for every region, even after one failed, and returns the first error.
fn for_all<'a, O: PageObserver>(
    found: impl Iterator<Item = (&'a Tracked<O>, Range<usize>)>,
    mut each: impl FnMut(&Tracked<O>, Range<usize>) -> Result<(), Error>,
) -> Result<(), Error> {
    let mut done = Ok(());
    for (tracked, pages) in found {
        done = done.and(each(tracked, pages));
    }
    done
}

impl<O: PageObserver> Tracker<O> {
    /// Declares that `len_bytes` from `start`, in a region and mapped already, show
    /// `memory`, which may be mapped elsewhere too. If memory has several mappings,
    /// declare every one before the guest can store to it. Blocks made from the range,
    /// or from another view of its bytes, become unreachable.
    ///
    /// # Errors
    ///
    /// [`Error::BadRange`] if the range wraps or is not whole pages;
    /// [`Error::NotTracked`] if not all of it lies in regions. Then nothing was
    /// declared.
    pub fn declare_shared(&self, start: GuestAddr, len_bytes: u64, memory: SharedMemory) -> Result<(), Error> {
        self.gate.check_moves()?;
        let Some(span) = Span::new(start.0, len_bytes)? else { return Ok(()) };
        let mask = self.page.bytes() as u64 - 1;
        if (start.0 | len_bytes | memory.offset) & mask != 0 || span.moved_to(memory.offset).is_none() {
            let why = "a view of shared memory is whole pages and does not wrap";
            return Err(Error::BadRange { start: start.0, len: len_bytes, why });
        }
        let space = &mut *self.gate.write();
        space.tracks_all(span)?;
        self.gate.declare(space, span, memory);
        Ok(())
    }

    /// The guest announces that code may have changed. When this returns, in deferred
    /// regions no block from bytes written before the call can be reached. Costs nothing
    /// in the other regions.
    ///
    /// # Errors
    ///
    /// The kernel could not report the written pages; then everything in the requested
    /// range counts as written. A later call asks again only about pages that something
    /// was made from since.
    pub fn sync(&self) -> Result<(), Error> {
        self.gate.check_moves()?;
        self.gate.read().sync(Span::ALL)
    }

    /// [`Tracker::sync`] for `len_bytes` from `start`: for the bytes of the range,
    /// written through any of their views.
    ///
    /// # Errors
    ///
    /// As [`Tracker::sync`]; [`Error::BadRange`] if the range wraps,
    /// [`Error::NotTracked`] if no byte of it is tracked.
    pub fn sync_range(&self, start: GuestAddr, len_bytes: u64) -> Result<(), Error> {
        self.gate.check_moves()?;
        let Some(span) = Span::new(start.0, len_bytes)? else { return Ok(()) };
        let space = self.gate.read();
        drop(space.tracked(span)?);
        // Every part is tried, even after an error in one.
        let mut done = Ok(());
        for part in space.views.others(span).into_iter().chain([span]) {
            done = done.and(space.sync(part));
        }
        done
    }

    /// The bytes changed behind the tracker's back (by the host through another view, by
    /// a debugger, by a device). When this returns, no block derived from the pages in
    /// the range can be reached, whichever view of their bytes it was made through.
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

    /// The kernel is about to write `len_bytes` from `start` for the guest (`read`, an
    /// out parameter). Until the result is dropped the pages are writable. During that
    /// time only blocks that compare themselves are made from their bytes, through any
    /// view of them, if the policy has such blocks. Costs nothing if the kernel's writes
    /// are tracked like the guest's, and next to nothing on pages that are open or
    /// checked already.
    ///
    /// Do not call it in a signal handler.
    ///
    /// # Errors
    ///
    /// [`Error::BadRange`] if the range wraps, [`Error::NotTracked`] if no byte of it is
    /// tracked; a page that could not be made writable.
    pub fn prepare_kernel_write(&self, start: GuestAddr, len_bytes: u64) -> Result<Held<O>, Error> {
        let refused = |tracked: &Tracked<O>| tracked.region.protection.kernel_writes() == KernelWrites::Refused;
        self.hold(HeldFor::Writing, start, len_bytes, refused)
    }

    /// Announces a write to `len_bytes` from `start` for which the kernel delivers no
    /// fault in any mode: into pages that were pinned (buffers registered with io_uring,
    /// aio and `O_DIRECT` that are under way), by a debugger, or at a thread's end
    /// (`clear_child_tid`, robust lists). Until the result is dropped the pages are held
    /// as by [`Tracker::prepare_kernel_write`], in every mode.
    ///
    /// Do not call it in a signal handler.
    ///
    /// # Errors
    ///
    /// As [`Tracker::prepare_kernel_write`].
    pub fn prepare_unseen_write(&self, start: GuestAddr, len_bytes: u64) -> Result<Held<O>, Error> {
        self.hold(HeldFor::Writing, start, len_bytes, |_| true)
    }

    fn hold(
        &self,
        why: HeldFor,
        start: GuestAddr,
        len_bytes: u64,
        wanted: impl Fn(&Tracked<O>) -> bool,
    ) -> Result<Held<O>, Error> {
        let mut held = Held::new(&self.gate, why);
        self.gate.check_moves()?;
        let Some(span) = Span::new(start.0, len_bytes)? else { return Ok(held) };
        let done = {
            let space = self.gate.read();
            let found = space.tracked(span)?.filter(|(tracked, _)| wanted(tracked));
            for_all(found, |tracked, pages| held.hold(tracked, pages, span))
        };
        // The end of `held` takes the gate.
        done.map(|()| held)
    }

    /// The embedder is about to change the mapping at `len_bytes` from `start`, or to
    /// throw its contents away. When this returns, no block derived from the range can
    /// be reached, through any view of its bytes. No block is made from it until the
    /// result is dropped or finished ([`MappingChange`] says which). Bounds are rounded
    /// to whole pages.
    ///
    /// Do not call it in a signal handler.
    ///
    /// # Errors
    ///
    /// [`Error::BadRange`] if the range wraps, [`Error::NotTracked`] if no byte of it is
    /// tracked; a page that could not be made writable.
    pub fn change_mapping(&self, start: GuestAddr, len_bytes: u64) -> Result<MappingChange<O>, Error> {
        let mut held = Held::new(&self.gate, HeldFor::Change);
        self.gate.check_moves()?;
        let asked = Span::new(start.0, len_bytes)?;
        let changing = asked.map(|span| span.whole_pages(self.page.bytes() as u64));
        let Some(span) = asked else { return Ok(MappingChange::new(held, None, self.page)) };
        let done = {
            let space = self.gate.read();
            for_all(space.tracked(span)?, |tracked, pages| {
                held.hold(tracked, pages.clone(), span)?;
                // Not before: until then the pages have blocks that a harvest by another
                // thread has to find, and a begin may enter one again.
                tracked.region.forget(pages);
                Ok(())
            })
        };
        done.map(|()| MappingChange::new(held, changing, self.page))
    }

    /// Carries out the guest's own mprotect: sets the guest's access to the range
    /// without losing the tracking's protection. Bounds are rounded to whole pages. The
    /// other views of its bytes keep their access.
    ///
    /// No block dies of it. If the guest may not run the range any more, hold
    /// [`Tracker::change_mapping`] over it.
    ///
    /// # Errors
    ///
    /// [`Error::BadRange`] if the range wraps, [`Error::NotTracked`] if not all of its
    /// pages are tracked: nothing was changed. Otherwise the error of mprotect.
    pub fn set_access(&self, start: GuestAddr, len_bytes: u64, access: Access) -> Result<(), Error> {
        self.gate.check_moves()?;
        let Some(span) = Span::new(start.0, len_bytes)? else { return Ok(()) };
        let space = self.gate.read();
        space.tracks_all(span)?;
        for_all(space.within(span), |tracked, pages| tracked.region.set_access(pages, access))
    }
}

impl<O: PageObserver> Space<O> {
    /// Harvests the deferred regions in `span`; if one fails, still the rest.
    fn sync(&self, span: Span) -> Result<(), Error> {
        let deferred = self.within(span).filter(|(tracked, _)| tracked.region.mode() == Mode::Deferred);
        for_all(deferred, |tracked, pages| tracked.region.sync(pages))
    }
}
