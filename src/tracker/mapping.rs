//! Mappings that the embedder declares or changes, or that get other access rights.

use std::any::Any;
use std::fmt;

use super::hold::HeldPages;
use super::moved::MovedFrom;
use super::observer::PageData;
use super::regions::Tracker;
use super::space::for_all;
use super::views::SharedMemory;
use crate::addr::{GuestAddr, PageSize, Span};
use crate::error::Error;
use crate::page_table::HeldFor;
use crate::protection::Access;

/// A change of mappings that is under way: see
/// [`Tracker::change_mapping`](super::Tracker::change_mapping).
///
/// After the change, call one of these:
///
/// | afterwards | call |
/// |---|---|
/// | another mapping is there, or one with another access | [`finish_replaced`](MappingChange::finish_replaced), even if nothing was mapped before |
/// | the guest has no mapping there, with or without a reservation in its place | [`finish_unmapped`](MappingChange::finish_unmapped) |
/// | a mapping of the guest's was moved there by `mremap`, or has grown or shrunk | [`finish_moved`](MappingChange::finish_moved) |
/// | the same mapping, with other contents or none | nothing: drop it |
///
/// It ends with its regions, as [`Held`](super::Held) does, and does not cover a region that is
/// added later: begin another change for that one.
#[must_use = "nothing is translated from the range until this is finished or dropped"]
pub struct MappingChange {
    held: Box<dyn ChangedPages>,
    /// The whole pages that change; `None` if there are none.
    changing: Option<Span>,
    page: PageSize,
}

impl fmt::Debug for MappingChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MappingChange").field("changing", &self.changing).finish_non_exhaustive()
    }
}

/// The [`HeldPages`] of a change, of any tracker.
trait ChangedPages: Any + Send + Sync {
    fn finish_replaced(
        &self,
        changing: Span,
        page: PageSize,
        access: Access,
        shared: Option<SharedMemory>,
    ) -> Result<(), Error>;

    fn finish_unmapped(&self, changing: Span) -> Result<(), Error>;

    /// A fork by another thread waits until `end_move`, which gets the result.
    fn begin_move(&self) -> Result<u64, Error>;

    /// See [`MappingChange::moving`].
    fn release(&self) -> Result<(), Error>;

    /// It was not moved.
    fn take_back(&self);

    /// The records say where the mapping is.
    fn end_move(&self, mover: u64);

    /// See [`MappingChange::finish_moved`].
    fn finish_moved(&self, to: Span, from: (&dyn ChangedPages, Span), left: MovedFrom) -> Result<(), Error>;
}

impl MappingChange {
    /// The mapping was replaced (`MAP_FIXED`) by one with `access`: tracks the new
    /// one. All of the range is mapped. If it is not private, `shared` is the memory that the first page of the change
    /// shows. That page holds the first byte passed to
    /// [`Tracker::change_mapping`](super::Tracker::change_mapping).
    ///
    /// # Errors
    ///
    /// The new mapping cannot be tracked in the region's mode; `shared` is not on a page
    /// boundary, or wraps ([`Error::BadRange`]). Then no translation begins on the pages
    /// ([`BeginError::Untrackable`](super::BeginError::Untrackable)) until
    /// a later change of them finishes without an error. If the range has several mappings,
    /// those that can be tracked are tracked.
    ///
    /// [`Error::NotTracked`]: a region was
    /// removed meanwhile; its memory is the embedder's alone. The pages of other regions are
    /// tracked.
    ///
    /// [`Error::BadRange`]: a region with pages of the range was added meanwhile, and was not
    /// told of the change. Translations of those pages are unreachable, and none begins on them
    /// until a change that begins later finishes without an error.
    pub fn finish_replaced(self, access: Access, shared: Option<SharedMemory>) -> Result<(), Error> {
        let Some(changing) = self.changing else { return Ok(()) };
        self.held.finish_replaced(changing, self.page, access, shared)
    }

    /// The guest has no mapping there any more. From now on the range is nobody's, and its memory
    /// is not touched: it may be unmapped, reserved (PROT_NONE), or mapped by the process for itself.
    /// Views end there. Makes no system call.
    ///
    /// A mapping that stays (`mprotect` in place of `munmap`) stays registered with the tracker's userfaultfd, so that
    /// no other one can track it, until the tracker's last region of the mode is removed. If that matters, map over it.
    ///
    /// # Errors
    ///
    /// As [`MappingChange::finish_replaced`], if a region was removed or added meanwhile.
    pub fn finish_unmapped(self) -> Result<(), Error> {
        let Some(changing) = self.changing else { return Ok(()) };
        self.held.finish_unmapped(changing)
    }

    /// The mapping of this range is about to be moved by `mremap`. Gives up the kernel's tracking of it: a kernel
    /// that moves tracked memory beside other tracked memory may silently forget about both. End the
    /// change of the new place by [`MappingChange::finish_moved`]. If the call of `mremap` fails, drop the result:
    /// the range is tracked as before.
    ///
    /// The calling thread ends the move too. A fork by another thread waits for that
    /// ([`Tracker::before_fork`](super::Tracker::before_fork)).
    ///
    /// # Errors
    ///
    /// The kernel cannot give it up, as at the limit of mappings: then do not call `mremap`.
    pub fn moving(self) -> Result<MovingMapping, Error> {
        let mover = self.held.begin_move()?;
        let moving = MovingMapping { change: self, mover, is_over: false };
        moving.change.held.release()?;
        Ok(moving)
    }

    /// The mapping of `from` was moved to this range by `mremap`: access
    /// and views move with it, and what could not be tracked there cannot be tracked here. If this range is
    /// longer, the mapping has grown; if it is shorter, the rest is gone. The two may be in different regions
    /// of one tracker, and overlap: a mapping that grew or shrank in its place has the same start in both.
    ///
    /// Begin this change before the call as well, if it says where the mapping goes (`MREMAP_FIXED`).
    /// If the kernel chose the place, begin it after the call and before the guest learns of it.
    ///
    /// # Errors
    ///
    /// As [`MappingChange::finish_replaced`]. [`Error::BadArgument`]: `from` is another tracker's, or has no
    /// bytes (`mremap` of a length of 0 makes a second mapping: call `finish_replaced`). Nothing is then
    /// translated from this range.
    pub fn finish_moved(self, mut from: MovingMapping, left: MovedFrom) -> Result<(), Error> {
        from.is_over = true;
        match (self.changing, from.change.changing) {
            (Some(to), Some(source)) => self.held.finish_moved(to, (&*from.change.held, source), left),
            (Some(to), None) => self.held.finish_unmapped(to).and(Err(NOTHING_MOVED)),
            (None, Some(source)) => from.change.held.finish_unmapped(source),
            (None, None) => Ok(()),
        }
    }
}

/// A mapping that is about to be moved: see [`MappingChange::moving`].
#[derive(Debug)]
#[must_use = "the range is not tracked until this is passed on or dropped"]
pub struct MovingMapping {
    change: MappingChange,
    /// The thread that moves it.
    mover: u64,
    is_over: bool,
}

impl Drop for MovingMapping {
    fn drop(&mut self) {
        if !self.is_over {
            self.change.held.take_back();
        }
        self.change.held.end_move(self.mover);
    }
}

impl<D: PageData> ChangedPages for HeldPages<D> {
    fn finish_replaced(
        &self,
        changing: Span,
        page: PageSize,
        access: Access,
        shared: Option<SharedMemory>,
    ) -> Result<(), Error> {
        let shows = |memory: &SharedMemory| {
            memory.offset & (page.bytes() as u64 - 1) == 0 && changing.moved_to(memory.offset).is_some()
        };
        let usable = if shared.as_ref().is_none_or(shows) {
            Ok(())
        } else {
            let why = "the offset in shared memory is a multiple of the page size, and the view of it does not wrap";
            Err(Error::BadRange { start: changing.first(), len: changing.len_bytes(), why })
        };
        self.finish(changing, |space, region, hold| {
            if let Err(error) = &usable {
                region.detach(hold.pages().clone());
                return Err(error.clone());
            }
            let at = region.span_of(hold.pages());
            match shared {
                Some(memory) => {
                    let offset = memory.offset + (at.first() - changing.first());
                    // (It was checked as a whole.)
                    self.gate.declare(space, at, SharedMemory { offset, ..memory })?;
                }
                None => space.views.remove(at),
            }
            region.attach(hold.pages().clone(), access, hold.permit())
        })
    }

    fn finish_unmapped(&self, changing: Span) -> Result<(), Error> {
        self.finish(changing, |space, region, hold| {
            space.views.remove(region.span_of(hold.pages()));
            region.detach(hold.pages().clone());
            Ok(())
        })
    }

    fn begin_move(&self) -> Result<u64, Error> {
        self.gate.begin_move()
    }

    fn release(&self) -> Result<(), Error> {
        self.release_all()
    }

    fn take_back(&self) {
        self.take_back_all();
    }

    fn end_move(&self, mover: u64) {
        self.gate.end_move(mover);
    }

    fn finish_moved(&self, to: Span, from: (&dyn ChangedPages, Span), left: MovedFrom) -> Result<(), Error> {
        let source: &dyn Any = from.0;
        match source.downcast_ref::<Self>().filter(|source| source.gate.is(&self.gate)) {
            Some(source) => self.moved(to, source, from.1, left),
            None => self.finish_unmapped(to).and(Err(ANOTHER_TRACKER)),
        }
    }
}

const ANOTHER_TRACKER: Error = Error::BadArgument("the two changes of a move are of one tracker");

const NOTHING_MOVED: Error =
    Error::BadArgument("no bytes were moved: end the change of the new mapping by finish_replaced");

impl<D: PageData> Tracker<D> {
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
        if (start.0 | len_bytes | memory.offset) & mask != 0 {
            let why = "a view of shared memory is whole pages";
            return Err(Error::BadRange { start: start.0, len: len_bytes, why });
        }
        let space = &mut *self.gate.write();
        space.tracks_all(span)?;
        self.gate.declare(space, span, memory)
    }

    /// The embedder is about to change the mapping at `len_bytes` from `start`, or to
    /// throw its contents away. When this returns, no block derived from the range can
    /// be reached, through any view of its bytes. No block is made from it until the
    /// result is dropped or finished ([`MappingChange`] says how). Bounds are rounded
    /// to whole pages.
    ///
    /// Do not call it in a signal handler.
    ///
    /// # Errors
    ///
    /// [`Error::BadRange`] if the range wraps, [`Error::NotTracked`] if no byte of it is
    /// tracked; a page that could not be made writable.
    pub fn change_mapping(&self, start: GuestAddr, len_bytes: u64) -> Result<MappingChange, Error> {
        let mut held = HeldPages::new(&self.gate, HeldFor::Change);
        self.gate.check_moves()?;
        let asked = Span::new(start.0, len_bytes)?;
        let changing = asked.map(|span| span.whole_pages(self.page.bytes() as u64));
        let Some(span) = asked else {
            return Ok(MappingChange { held: Box::new(held), changing: None, page: self.page });
        };
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
        done.map(|()| MappingChange { held: Box::new(held), changing, page: self.page })
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
    /// [`Error::BadRange`] if the range wraps, [`Error::NotTracked`] with the first page that is in no
    /// region, or from which no translation can begin
    /// ([`BeginError::Untrackable`](super::BeginError::Untrackable)): nothing was changed. Such pages
    /// may be the process's own, so call mprotect for the guest's among them. Otherwise the error of mprotect.
    pub fn set_access(&self, start: GuestAddr, len_bytes: u64, access: Access) -> Result<(), Error> {
        self.gate.check_moves()?;
        let Some(span) = Span::new(start.0, len_bytes)? else { return Ok(()) };
        let space = self.gate.read();
        space.tracks_all(span)?;
        for (tracked, pages) in space.within(span) {
            tracked.region.check_attached(pages)?;
        }
        for_all(space.within(span), |tracked, pages| tracked.region.set_access(pages, access))
    }
}
