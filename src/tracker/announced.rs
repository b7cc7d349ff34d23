//! The calls for a range of guest memory: announcements of writes and of changes, and
//! what the guest may do with it.
//!
//! A range reaches as far as its length says, to the last byte of the 64-bit space if
//! need be; no bytes are no error, and nothing is done. [`views`](super::views) says
//! what each call means for the other views of the range.

use std::ops::Range;

use crate::addr::{GuestAddr, Span};
use crate::error::Error;
use crate::page_table::HeldFor;
use crate::protection::{Access, KernelWrites, Mode};

use super::space::{Space, Tracked};
use super::{Held, MappingChange, PageObserver, SharedMemory, Tracker};

/// Calls `each` for every region, those behind one that fails too, and gives the first
/// error.
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
    /// Says that `len_bytes` from `start`, in a region and mapped already, show
    /// `memory`, which may be mapped elsewhere too. To be said of every mapping of
    /// memory that has several, before the guest can store to it. What was made from
    /// the range, or from another view of its bytes, becomes unreachable.
    ///
    /// # Errors
    ///
    /// [`Error::BadRange`] where the range wraps or is not whole pages;
    /// [`Error::NotTracked`] where not all of it lies in regions. Nothing was declared.
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

    /// The guest announces that code may have changed: when this returns,
    /// nothing that was derived from bytes written before the call in a deferred
    /// region can be reached. Costs nothing in the other regions.
    ///
    /// # Errors
    ///
    /// The kernel could not say what was written; then everything in the range
    /// that was asked about counts as written. A later call asks again only about pages
    /// that something was made from since.
    pub fn sync(&self) -> Result<(), Error> {
        self.gate.check_moves()?;
        self.gate.read().sync(Span::ALL)
    }

    /// [`Tracker::sync`] for `len_bytes` from `start`: for the bytes of the range,
    /// whichever of their views they were written through.
    ///
    /// # Errors
    ///
    /// As [`Tracker::sync`]; [`Error::BadRange`] where the range wraps,
    /// [`Error::NotTracked`] where no byte of it is tracked.
    pub fn sync_range(&self, start: GuestAddr, len_bytes: u64) -> Result<(), Error> {
        self.gate.check_moves()?;
        let Some(span) = Span::new(start.0, len_bytes)? else { return Ok(()) };
        let space = self.gate.read();
        drop(space.tracked(span)?);
        // All of it is tried: an error of one part leaves the others to be asked about.
        let mut done = Ok(());
        for part in space.views.others(span).into_iter().chain([span]) {
            done = done.and(space.sync(part));
        }
        done
    }

    /// The bytes changed behind the tracker's back (by the host through another
    /// view, by a debugger, by a device): when this returns, nothing that was
    /// derived from the pages in the range can be reached, through whichever view of
    /// their bytes it was made.
    ///
    /// # Errors
    ///
    /// [`Error::BadRange`] where the range wraps, [`Error::NotTracked`] where no byte of
    /// it is tracked.
    pub fn invalidate(&self, start: GuestAddr, len_bytes: u64) -> Result<(), Error> {
        self.gate.check_moves()?;
        let Some(span) = Span::new(start.0, len_bytes)? else { return Ok(()) };
        self.gate.read().tracked(span)?.for_each(|(tracked, pages)| tracked.region.invalidate(pages));
        Ok(())
    }

    /// The kernel is about to write `len_bytes` from `start` for the guest
    /// (`read`, an out parameter). Until the result is dropped the pages are
    /// writable, and nothing is translated from their bytes, through any view of them,
    /// but blocks that compare themselves, where the policy has such. Costs nothing
    /// where the kernel's writes are tracked like the guest's, and next to nothing on
    /// pages that are open or checked already.
    ///
    /// Not to be called in a signal handler.
    ///
    /// # Errors
    ///
    /// [`Error::BadRange`] where the range wraps, [`Error::NotTracked`] where no byte of
    /// it is tracked; a page that could not be made writable.
    pub fn prepare_kernel_write(&self, start: GuestAddr, len_bytes: u64) -> Result<Held<O>, Error> {
        let refused = |tracked: &Tracked<O>| tracked.region.protection.kernel_writes() == KernelWrites::Refused;
        self.hold(HeldFor::Writing, start, len_bytes, refused)
    }

    /// Somebody is about to write `len_bytes` from `start` in a way of which the
    /// kernel delivers no fault in any mode: into pages that were pinned (buffers
    /// registered with io_uring, aio and `O_DIRECT` that are under way), as a
    /// debugger, or at a thread's end (`clear_child_tid`, robust lists). Until the
    /// result is dropped the pages are held as by [`Tracker::prepare_kernel_write`],
    /// in every mode.
    ///
    /// Not to be called in a signal handler.
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
        // Its end takes the gate.
        done.map(|()| held)
    }

    /// The embedder is about to change what is mapped at `len_bytes` from
    /// `start`, or to throw its contents away. When this returns nothing that was
    /// derived from the range can be reached, through any view of its bytes, and nothing
    /// is translated from it until the result is dropped or finished ([`MappingChange`]
    /// says which). Bounds are rounded to whole pages.
    ///
    /// Not to be called in a signal handler.
    ///
    /// # Errors
    ///
    /// [`Error::BadRange`] where the range wraps, [`Error::NotTracked`] where no byte of
    /// it is tracked; a page that could not be made writable.
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
                // Not before: until then blocks lie on them that a harvest by
                // another thread has to find, and a begin may enter one again.
                tracked.region.forget(pages);
                Ok(())
            })
        };
        done.map(|()| MappingChange::new(held, changing, self.page))
    }

    /// Carries out the guest's own mprotect: what the guest may do with the
    /// range, without losing the tracking's protection. Bounds are rounded to
    /// whole pages. The other views of its bytes keep their access.
    ///
    /// No block dies of it. Where the guest may not run what is there any more, hold
    /// [`Tracker::change_mapping`] over it.
    ///
    /// # Errors
    ///
    /// [`Error::BadRange`] where the range wraps, [`Error::NotTracked`] where not all of
    /// its pages are tracked: nothing was changed. What mprotect answered.
    pub fn set_access(&self, start: GuestAddr, len_bytes: u64, access: Access) -> Result<(), Error> {
        self.gate.check_moves()?;
        let Some(span) = Span::new(start.0, len_bytes)? else { return Ok(()) };
        let space = self.gate.read();
        space.tracks_all(span)?;
        for_all(space.within(span), |tracked, pages| tracked.region.set_access(pages, access))
    }
}

impl<O: PageObserver> Space<O> {
    /// Harvests what deferred regions have of `span`; the rest of it where one fails.
    fn sync(&self, span: Span) -> Result<(), Error> {
        let deferred = self.within(span).filter(|(tracked, _)| tracked.region.mode() == Mode::Deferred);
        for_all(deferred, |tracked, pages| tracked.region.sync(pages))
    }
}
