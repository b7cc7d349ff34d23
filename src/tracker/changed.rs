//! The end of a change of mappings, in each region that it held.

use super::hold::HeldPages;
use super::observer::PageData;
use super::region::Region;
use super::space::{Space, Tracked, not_tracked};
use crate::addr::Span;
use crate::error::Error;
use crate::page_table::Hold;
use crate::sync::Arc;

impl<D: PageData> HeldPages<D> {
    /// Ends the change of `changing` in each region that it holds, even after one failed.
    pub(super) fn finish(
        &self,
        changing: Span,
        mut end: impl FnMut(&mut Space<D>, &Arc<Region<D>>, &Hold) -> Result<(), Error>,
    ) -> Result<(), Error> {
        self.gate.check_moves()?;
        let space = &mut *self.gate.write();
        let mut done = Ok(());
        for (id, hold) in &self.holds {
            let ended = match space.get(*id).map(|tracked| tracked.region.clone()) {
                Some(region) => end(space, &region, hold),
                None => Err(not_tracked(changing)),
            };
            done = done.and(ended);
        }
        done.and(self.stop_unheld(space, changing))
    }

    /// The mapping of `changing` was replaced. Regions that were added there meanwhile are not
    /// held, and their pages may show the old mapping.
    pub(super) fn stop_unheld(&self, space: &Space<D>, changing: Span) -> Result<(), Error> {
        let is_held = |tracked: &Tracked<D>| self.holds.iter().any(|(id, _)| *id == tracked.id);
        let mut done = Ok(());
        for (tracked, pages) in space.within(changing).filter(|(tracked, _)| !is_held(tracked)) {
            tracked.region.stop_translating(pages.clone());
            // Only after the blocks are dead. The kernel does not track the new mapping,
            // and a harvest would give up the region for it.
            tracked.region.forget(pages.clone());
            tracked.region.detach(pages);
            let why =
                "a region was added there while its mapping changed: change the mapping again, with the region there";
            done = Err(Error::BadRange { start: changing.first(), len: changing.len_bytes(), why });
        }
        done
    }
}
