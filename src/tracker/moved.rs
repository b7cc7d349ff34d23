//! Mappings that are moved by `mremap`, or grow or shrink.
//!
//! Both ranges are held, so no page of them is protected. Before the call the old place is detached: without
//! `UFFD_FEATURE_EVENT_REMAP` the kernel drops the registration of the mapping that it has moved, and if it
//! has merged that with a neighbour of the same registration, it drops the neighbour's. Memory that is not registered
//! is not merged with registered memory. Afterwards the new place is attached, by the records of the old one.

use std::ops::Range;

use super::hold::HeldPages;
use super::observer::PageData;
use super::region::Region;
use super::space::{Space, not_tracked};
use super::views::{SharedMemory, Views};
use crate::addr::Span;
use crate::error::Error;
use crate::page_table::Permit;
use crate::protection::Access;
use crate::sync::Arc;

/// The rest of a mapping at its old place after a move.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MovedFrom {
    /// Nothing.
    Unmapped,
    /// The mapping without its contents, or with them if it is shared (`MREMAP_DONTUNMAP`).
    Mapped,
}

/// The addresses of a move.
#[derive(Clone, Copy)]
struct Move {
    from: Span,
    to: Span,
}

impl Move {
    /// The place of `part` of the old range in the new one. If the mapping has grown, its last part goes on to
    /// the end.
    fn of(self, part: Span) -> Option<Span> {
        let first = self.to.first().checked_add(part.first() - self.from.first())?;
        let room = self.to.last().checked_sub(first)?;
        let is_last = part.last() == self.from.last();
        let more = if is_last { room } else { room.min(part.last() - part.first()) };
        Span::new(first, more.saturating_add(1)).ok().flatten()
    }
}

impl<D: PageData> HeldPages<D> {
    /// Detaches all attached pages, and keeps the records.
    pub(super) fn release_all(&self) -> Result<(), Error> {
        self.gate.check_moves()?;
        let space = &*self.gate.write();
        let mut done = Ok(());
        self.for_each_attached(space, |region, pages, _, leave| {
            done = done.clone().and(region.protection.detach(region.host_of(&pages), leave));
        });
        done
    }

    /// Attaches the pages of the records.
    pub(super) fn take_back_all(&self) {
        if self.gate.check_moves().is_err() {
            // A claim finds that nothing is attached. In a fork's child it is attached again.
            return;
        }
        let space = &*self.gate.write();
        self.for_each_attached(space, |region, pages, access, leave| _ = region.attach(pages, access, leave));
    }

    fn for_each_attached(
        &self,
        space: &Space<D>,
        mut each: impl FnMut(&Arc<Region<D>>, Range<usize>, Access, Permit<'_>),
    ) {
        for (id, hold) in &self.holds {
            let Some(tracked) = space.get(*id) else { continue };
            for (pages, access) in tracked.region.attached_within(hold.pages().clone()) {
                each(&tracked.region, pages, access, hold.permit());
            }
        }
    }

    /// The mapping of `from`, which `source` holds, is at `to` now, which this holds.
    pub(super) fn moved(&self, to: Span, source: &Self, from: Span, left: MovedFrom) -> Result<(), Error> {
        self.gate.check_moves()?;
        let space = &mut *self.gate.write();
        let way = Move { from, to };
        let attached = source.attached(space, way);
        let views: Vec<(Span, SharedMemory)> =
            space.views.parts(from).into_iter().filter_map(|(at, memory)| Some((way.of(at)?, memory))).collect();
        let mut done = source.leave(space, way, left);
        for (id, hold) in &self.holds {
            let Some(region) = space.get(*id).map(|tracked| tracked.region.clone()) else {
                done = done.and(Err(not_tracked(to)));
                continue;
            };
            let all = region.span_of(hold.pages());
            space.views.remove(all);
            region.detach(hold.pages().clone());
            // Memory that has grown behind the end of the 64-bit space.
            let mut wrapping: Vec<Range<usize>> = Vec::new();
            for (at, memory) in &views {
                if let Some(part) = at.intersection(all) {
                    let offset = at.moved_to(memory.offset).map(|shown| shown.first() + (part.first() - at.first()));
                    let declared = match offset {
                        Some(offset) => self.gate.declare(space, part, SharedMemory { offset, ..*memory }),
                        None => Err(Views::wraps(*at)),
                    };
                    if declared.is_err() {
                        wrapping.extend(region.pages_within(part));
                    }
                    done = done.and(declared);
                }
            }
            for (at, access) in &attached {
                if let Some(pages) = at.intersection(all).and_then(|part| region.pages_within(part)) {
                    done = done.and(region.attach(pages, *access, hold.permit()));
                }
            }
            wrapping.into_iter().for_each(|pages| region.detach(pages));
        }
        done.and(self.stop_unheld(space, to)).and(source.stop_unheld(space, from))
    }

    /// The places to which attached parts go, and the guest's access to each.
    fn attached(&self, space: &Space<D>, way: Move) -> Vec<(Span, Access)> {
        let mut found = Vec::new();
        self.for_each_attached(space, |region, pages, access, _| {
            found.extend(way.of(region.span_of(&pages)).map(|at| (at, access)));
        });
        found
    }

    /// The old range, as far as the new one does not cover it.
    fn leave(&self, space: &mut Space<D>, way: Move, left: MovedFrom) -> Result<(), Error> {
        let mut done = Ok(());
        for (id, hold) in &self.holds {
            let Some(region) = space.get(*id).map(|tracked| tracked.region.clone()) else {
                done = done.and(Err(not_tracked(way.from)));
                continue;
            };
            for rest in region.span_of(hold.pages()).without(way.to).into_iter().flatten() {
                let Some(pages) = region.pages_within(rest) else { continue };
                match left {
                    MovedFrom::Unmapped => {
                        space.views.remove(rest);
                        region.detach(pages);
                    }
                    MovedFrom::Mapped => {
                        for (pages, access) in region.attached_within(pages) {
                            done = done.and(region.attach(pages, access, hold.permit()));
                        }
                    }
                }
            }
        }
        done
    }
}
