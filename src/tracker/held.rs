//! Pages that are kept open for somebody who writes where the kernel cannot tell.

use std::ops::Range;

use crate::addr::{GuestAddr, PageIndex};
use crate::error::Error;
use crate::page_table::HeldFor;
use crate::protection::Access;
use crate::sync::Arc;

use super::PageObserver;
use super::region::Region;
use super::space::Gate;
use super::views::SharedMemory;

/// Pages that are held writable: nothing is translated from them but blocks that
/// compare themselves.
#[derive(Debug)]
#[must_use = "the pages are held until this is dropped"]
pub struct Held<O: PageObserver> {
    gate: Gate<O>,
    why: HeldFor,
    /// The guest bytes that were asked for.
    asked: Range<u64>,
    holds: Vec<(Arc<Region<O>>, Range<usize>)>,
}

impl<O: PageObserver> Held<O> {
    /// Nothing is held yet of the `len_bytes` from `start`.
    pub(super) fn new(gate: &Gate<O>, why: HeldFor, start: GuestAddr, len_bytes: u64) -> Self {
        let asked = start.0..start.0.saturating_add(len_bytes);
        Self { gate: gate.clone(), why, asked, holds: Vec::new() }
    }

    pub(super) fn hold(&mut self, region: &Arc<Region<O>>, pages: Range<usize>) -> Result<(), Error> {
        // In the list first: what a failed hold entered is released as well.
        self.holds.push((region.clone(), pages.clone()));
        region.hold(pages, self.why, &self.asked)
    }
}

impl<O: PageObserver> Drop for Held<O> {
    fn drop(&mut self) {
        // A thread that holds the fork guard has the gate.
        let _gate = (!self.gate.stands_still_here()).then(|| self.gate.read());
        for (region, pages) in self.holds.drain(..) {
            region.pages.release(pages, self.why);
        }
    }
}

/// A change of mappings that is going on: see [`Tracker::change_mapping`](super::Tracker::change_mapping).
///
/// To be dropped when the change is done where the mapping is still the same (contents
/// thrown away) or nothing is mapped any more. Where something else is mapped there now:
/// [`MappingChange::finish_replaced`], also for a mapping that comes where nothing was.
#[derive(Debug)]
#[must_use = "nothing is translated from the range until this is finished or dropped"]
pub struct MappingChange<O: PageObserver> {
    held: Held<O>,
}

impl<O: PageObserver> MappingChange<O> {
    pub(super) fn new(held: Held<O>) -> Self {
        Self { held }
    }

    /// The mapping was replaced (`MAP_FIXED`, `mremap`) by one with `access`, of
    /// `shared` memory where it is not private: tracks the new one.
    ///
    /// # Errors
    ///
    /// The new mapping cannot be tracked in the region's mode. Nothing can be
    /// translated from it then.
    pub fn finish_replaced(self, access: Access, shared: Option<SharedMemory>) -> Result<(), Error> {
        let Held { gate, asked, holds, .. } = &self.held;
        gate.check_moves()?;
        let space = &mut *gate.write();
        let mut done = Ok(());
        for (region, pages) in holds {
            let host = region.host_of(pages)?;
            let start = region.guest_of(PageIndex(pages.start)).0;
            let range = start..start + host.len() as u64;
            match shared {
                Some(memory) => {
                    let offset = memory.offset + (start - asked.start);
                    gate.declare(space, range, SharedMemory { offset, ..memory });
                }
                None => space.views.remove(range),
            }
            done = done.and(region.attach(host, access));
        }
        done
    }
}
