//! The loss of a mechanism, and the end of a region: all translations become unreachable, then all
//! pages are opened.

use std::ops::Range;

use super::observer::{Cause, PageData};
use super::region::Region;
use crate::error::Error;
use crate::page_table::Permit;
use crate::protection::Opening;

impl<D: PageData> Region<D> {
    /// Every block on `pages` dies, and by their words they are open afterwards, whatever the
    /// kernel holds.
    pub(super) fn stop_translating(&self, pages: Range<usize>) {
        self.pages.stop(pages, |page, desc, _| self.invalidated(page, desc, Cause::Lost));
    }

    /// The kernel no longer tracks anything here.
    pub(super) fn lose(&self) -> Permit<'_> {
        self.pages.lose(|page, desc, _| self.invalidated(page, desc, Cause::Lost))
    }

    /// The mechanism has failed. Makes all translations of the region unreachable and then
    /// opens every page of it, by any means that is left. If that opens the mechanism's other regions,
    /// the mechanism makes their translations unreachable before. Async-signal-safe.
    ///
    /// If that fails too, or if the barrier between the two steps is refused, the same fault
    /// comes back and is handed on: the process ends, rather than run stale code or fault for
    /// ever. Without the barrier a core may be about to enter a dead block that it looked up
    /// ahead of its store. No later system call of ours orders that. A page that stays
    /// protected lets no such store retire.
    pub(super) fn abandon(&self) -> Result<(), Error> {
        let opening = self.opening(self.lose())?;
        self.protection.abandon(self.host, opening)
    }

    /// The mechanism has failed: returns when the region's translations are unreachable. The thread that noticed it may
    /// still be telling, so this tells of every page itself.
    #[cold]
    pub(super) fn ensure_abandoned(&self) {
        if !self.pages.is_told_of_loss() {
            let _ = self.abandon();
        }
    }

    /// An un-protect failed. At the limit of mappings, for example, one page cannot be opened
    /// but all pages together can. Makes all translations of the region unreachable and then
    /// opens every page; translators may begin again. If that fails, abandons the region.
    /// Async-signal-safe.
    ///
    /// The caller keeps its own permit until this is over: a hold that comes between the two would
    /// take the page for open.
    // Even in a debug build: a signal stack is small.
    #[inline(always)]
    pub(super) fn open_all(&self) -> Result<(), Error> {
        // One after the other: `abandon` takes most of what a signal stack has.
        if self.opens_all() { Ok(()) } else { self.abandon() }
    }

    /// Makes all translations of the region unreachable and opens every page; returns whether that
    /// worked.
    fn opens_all(&self) -> bool {
        let all = self.pages.open_all(|page, desc, _| self.invalidated(page, desc, Cause::Lost));
        let opening = self.opening(all.permit());
        opening.and_then(|opening| self.unprotect_used(opening)).is_ok()
    }

    fn unprotect_used(&self, opening: Opening<'_>) -> Result<(), Error> {
        let mut opened = Ok(());
        self.for_each_used_run(self.all_pages(), |run| {
            if let Err(error) = self.protection.unprotect(self.host_of(&run), opening) {
                opened = Err(error);
            }
        });
        opened
    }

    /// Ends the tracking. Each step is taken
    /// even if an earlier one failed; returns the first error.
    pub(super) fn retire(&self) -> Result<(), Error> {
        let leave = self.lose();
        // The memory is the embedder's alone afterwards.
        self.await_cancelled(self.all_pages());
        // With a barrier or without one, no page may stay protected: no code answers a
        // fault here any more.
        let (opening, fenced) = match self.opening(leave) {
            Ok(opening) => (opening, Ok(())),
            Err(error) => (Opening::without_barrier(leave), Err(error)),
        };
        // Other regions have the mechanism too, and a claim may keep it for long.
        let mut detached = Ok(());
        for (pages, _) in self.attached_within(self.all_pages()) {
            detached = detached.and(self.protection.detach(self.host_of(&pages), leave));
        }
        let opened = detached.or_else(|_| self.unprotect_used(opening));
        self.protection.give_up(self.host);
        fenced.and(opened.or_else(|_| self.protection.abandon(self.host, opening)))
    }
}
