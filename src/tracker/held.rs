//! Pages that are held open for a write that the kernel does not report.

use std::ops::Range;

use crate::addr::{PageIndex, PageSize, Span};
use crate::error::Error;
use crate::page_table::{HeldFor, Hold};
use crate::protection::Access;
use crate::sys::errno::this_thread;

use super::PageObserver;
use super::space::{Gate, RegionId, Space, Tracked};
use super::views::SharedMemory;

/// Pages that are held writable: only blocks that compare themselves are made from them.
///
/// A hold ends with its region: a region added there later is not held. In a fork's child the
/// holds of the forking thread go on until they are dropped there too; those of other threads
/// have ended.
#[derive(Debug)]
#[must_use = "the pages are held until this is dropped"]
pub struct Held<O: PageObserver> {
    gate: Gate<O>,
    why: HeldFor,
    /// The thread that made this.
    thread: u64,
    holds: Vec<(RegionId, Hold)>,
}

impl<O: PageObserver> Held<O> {
    /// A hold of no pages yet.
    pub(super) fn new(gate: &Gate<O>, why: HeldFor) -> Self {
        Self { gate: gate.clone(), why, thread: this_thread(), holds: Vec::new() }
    }

    /// Holds the pages of `tracked` that have a byte in `asked`.
    pub(super) fn hold(&mut self, tracked: &Tracked<O>, pages: Range<usize>, asked: Span) -> Result<(), Error> {
        let (hold, done) = tracked.region.hold(pages, self.why, self.thread, asked);
        // After an error too, so that the pages that a failed hold entered are released.
        self.holds.push((tracked.id, hold));
        done
    }

    /// The mapping of `changing` was replaced. Regions that were added there meanwhile are not
    /// held, and their pages may show the former mapping.
    fn stop_unheld(&self, space: &mut Space<O>, changing: Span) -> Result<(), Error> {
        let is_held = |tracked: &Tracked<O>| self.holds.iter().any(|(id, _)| *id == tracked.id);
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

impl<O: PageObserver> Drop for Held<O> {
    fn drop(&mut self) {
        self.gate.release(self.holds.drain(..));
    }
}

/// A change of mappings that is under way: see
/// [`Tracker::change_mapping`](super::Tracker::change_mapping).
///
/// After the change, drop this if the mapping is still the same (contents thrown away) or
/// nothing is mapped any more. If another mapping is there now, call
/// [`MappingChange::finish_replaced`], even if nothing was mapped before.
///
/// It ends with its regions, as [`Held`] does, and does not cover a region that is added later:
/// begin another change for that one.
#[derive(Debug)]
#[must_use = "nothing is translated from the range until this is finished or dropped"]
pub struct MappingChange<O: PageObserver> {
    held: Held<O>,
    /// The whole pages that change; `None` if there are none.
    changing: Option<Span>,
    page: PageSize,
}

impl<O: PageObserver> MappingChange<O> {
    pub(super) fn new(held: Held<O>, changing: Option<Span>, page: PageSize) -> Self {
        Self { held, changing, page }
    }

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
        let Self { held, changing, page } = &self;
        let Some(changing) = *changing else { return Ok(()) };
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
                let host = region.host_of(pages)?;
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
