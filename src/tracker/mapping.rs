//! Mappings that the embedder declares or changes, or that get other access rights.

use std::fmt;

use super::hold::HeldPages;
use super::observer::PageData;
use super::regions::Tracker;
use super::space::{Space, Tracked, for_all};
use super::views::SharedMemory;
use crate::addr::{GuestAddr, PageIndex, PageSize, Span};
use crate::error::Error;
use crate::page_table::HeldFor;
use crate::protection::Access;

/// A change of mappings that is under way: see
/// [`Tracker::change_mapping`](super::Tracker::change_mapping).
///
/// After the change, drop this if the mapping is still the same (contents thrown away) or
/// nothing is mapped any more. If another mapping is there now, call
/// [`MappingChange::finish_replaced`], even if nothing was mapped before.
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
trait ChangedPages: Send + Sync {
    fn finish_replaced(
        &self,
        changing: Span,
        page: PageSize,
        access: Access,
        shared: Option<SharedMemory>,
    ) -> Result<(), Error>;
}

impl MappingChange {
    /// The mapping was replaced (`MAP_FIXED`, `mremap`) by one with `access`: tracks the new
    /// one. If it is not private, `shared` is the memory that the first page of the change
    /// shows. That page holds the first byte passed to
    /// [`Tracker::change_mapping`](super::Tracker::change_mapping).
    ///
    /// # Errors
    ///
    /// The new mapping cannot be tracked in the region's mode; `shared` is not on a page
    /// boundary, or wraps ([`Error::BadRange`]). Then no translation begins on the pages until
    /// a later change of them finishes without an error. [`Error::NotTracked`]: a region was
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
}

impl<D: PageData> ChangedPages for HeldPages<D> {
    fn finish_replaced(
        &self,
        changing: Span,
        page: PageSize,
        access: Access,
        shared: Option<SharedMemory>,
    ) -> Result<(), Error> {
        let held = self;
        let shows = |memory: &SharedMemory| {
            memory.offset & (page.bytes() as u64 - 1) == 0 && changing.moved_to(memory.offset).is_some()
        };
        let usable = if shared.as_ref().is_none_or(shows) {
            Ok(())
        } else {
            let why = "the offset in shared memory is a multiple of the page size, and the view of it does not wrap";
            Err(Error::BadRange { start: changing.first(), len: changing.len_bytes(), why })
        };
        held.gate.check_moves()?;
        let space = &mut *held.gate.write();
        let mut done = Ok(());
        for (id, hold) in &held.holds {
            let pages = hold.pages();
            let Some(region) = space.get(*id).map(|tracked| tracked.region.clone()) else {
                done = done.and(Err(Error::NotTracked { start: changing.first(), len: changing.len_bytes() }));
                continue;
            };
            let attached = usable.clone().and_then(|()| {
                let host = region.host_of(pages);
                let at = Span::of_region(region.guest_of(PageIndex(pages.start)), host);
                match shared {
                    Some(memory) => {
                        let offset = memory.offset + (at.first() - changing.first());
                        held.gate.declare(space, at, SharedMemory { offset, ..memory });
                    }
                    None => space.views.remove(at),
                }
                region.attach(host, access, hold.permit())
            });
            if let Some(tracked) = space.get_mut(*id) {
                match attached {
                    Ok(()) => tracked.refused.remove(pages.clone()),
                    Err(_) => tracked.refused.insert(pages.clone()),
                }
            }
            done = done.and(attached);
        }
        done.and(held.stop_unheld(space, changing))
    }
}

impl<D: PageData> HeldPages<D> {
    /// The mapping of `changing` was replaced. Regions that were added there meanwhile are not
    /// held, and their pages may show the old mapping.
    fn stop_unheld(&self, space: &mut Space<D>, changing: Span) -> Result<(), Error> {
        let is_held = |tracked: &Tracked<D>| self.holds.iter().any(|(id, _)| *id == tracked.id);
        let unheld = space.within(changing).filter(|(tracked, _)| !is_held(tracked));
        let unheld: Vec<_> = unheld.map(|(tracked, pages)| (tracked.id, pages)).collect();
        if unheld.is_empty() {
            return Ok(());
        }
        for (id, pages) in unheld {
            if let Some(tracked) = space.get_mut(id) {
                tracked.region.stop_translating(pages.clone());
                // Only after the blocks are dead. The kernel does not track the new mapping,
                // and a harvest would give up the region for it.
                tracked.region.forget(pages.clone());
                tracked.refused.insert(pages);
            }
        }
        let why = "a region was added there while its mapping changed: change the mapping again, with the region there";
        Err(Error::BadRange { start: changing.first(), len: changing.len_bytes(), why })
    }
}

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
        if (start.0 | len_bytes | memory.offset) & mask != 0 || span.moved_to(memory.offset).is_none() {
            let why = "a view of shared memory is whole pages and does not wrap";
            return Err(Error::BadRange { start: start.0, len: len_bytes, why });
        }
        let space = &mut *self.gate.write();
        space.tracks_all(span)?;
        self.gate.declare(space, span, memory);
        Ok(())
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
