//! Mappings that are moved by `mremap`, or grow or shrink.
//!
//! Whatever the kernel does with the protection of a mapping that moves, no page of it is protected
//! then: both ranges are held. So the old place is given up and the new one attached, with the records of the old
//! one.

use super::hold::HeldPages;
use super::observer::PageData;
use super::space::{Space, not_tracked};
use super::views::SharedMemory;
use crate::addr::Span;
use crate::error::Error;
use crate::protection::Access;

/// What a mapping that was moved has left behind.
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
            for (at, memory) in &views {
                if let Some(part) = at.intersection(all) {
                    let offset = memory.offset + (part.first() - at.first());
                    self.gate.declare(space, part, SharedMemory { offset, ..*memory });
                }
            }
            for (at, access) in &attached {
                if let Some(pages) = at.intersection(all).and_then(|part| region.pages_within(part)) {
                    done = done.and(region.attach(pages, *access, hold.permit()));
                }
            }
        }
        done.and(self.stop_unheld(space, to)).and(source.stop_unheld(space, from))
    }

    /// The places to which attached parts go, and the guest's access to each.
    fn attached(&self, space: &Space<D>, way: Move) -> Vec<(Span, Access)> {
        let mut found = Vec::new();
        for (id, hold) in &self.holds {
            let Some(tracked) = space.get(*id) else { continue };
            for (pages, access) in tracked.region.attached_within(hold.pages().clone()) {
                found.extend(way.of(tracked.region.span_of(&pages)).map(|at| (at, access)));
            }
        }
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
                    // The kernel may have taken the tracking along.
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
