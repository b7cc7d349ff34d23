//! Keeps a tracker consistent over a `fork`.

use std::ops::Range;

use crate::addr::{HostAddr, Span};
use crate::error::Error;
use crate::page_table::{PageDesc, PageState};
use crate::protection::{Inherited, Opening, Protection, name_of};
use crate::sync::Arc;
use crate::sys::errno::this_thread;
use crate::sys::fork::Fork;

use super::observer::{Cause, PageData};
use super::region::Region;
use super::regions::Tracker;
use super::space::{Space, Standing, Tracked};

/// A tracker that stands still over a `fork`: see [`Tracker::before_fork`].
#[derive(Debug)]
#[must_use = "the tracker stands still until this is dropped"]
pub struct TrackerForkGuard<'a, D: PageData> {
    standing: Standing<'a, D>,
    fork: Fork,
}

impl<D: PageData> Tracker<D> {
    /// Call it before `fork`: it waits until no other thread is inside the tracker or is moving a mapping
    /// ([`MovingMapping`](super::MovingMapping)). A thread that is moving one waits for the caller in no way: for no lock
    /// that the caller has, for no tracker or cache whose guard the caller has, and in no `before_fork` of its own.
    ///
    /// The guard lasts in the parent until it is dropped, and in the child until
    /// [`TrackerForkGuard::after_fork_child`] is called. During that time no other thread gets in,
    /// and none adds or removes a region or a code buffer of any other instance. Faults are
    /// handled. If several threads each take the guards of several trackers, all take them in the same order.
    ///
    /// Until then, a call of this thread that would wait for itself returns
    /// [`Error::BadArgument`]. A call that has no error to return panics, and the guard stays
    /// as it was: [`Tracker::maintain`], [`Tracker::aliases`], another `before_fork`. The thread
    /// can still read numbers, and drop its objects.
    ///
    /// A child never waits for the locks of instances without a guard: it leaves those
    /// instances alone.
    ///
    /// # Panics
    ///
    /// If this thread holds a guard of the tracker, or of its cache, already.
    #[track_caller]
    pub fn before_fork(&self) -> TrackerForkGuard<'_, D> {
        // Before the static locks are taken: a panic would lose them.
        self.assert_moves();
        let (standing, fork) = Fork::around(|| self.stand_still());
        TrackerForkGuard { standing, fork }
    }

    /// Waits until no thread is inside.
    pub(crate) fn stand_still(&self) -> Standing<'_, D> {
        self.gate.stand_still()
    }
}

impl<D: PageData> TrackerForkGuard<'_, D> {
    /// In the child: its own memory is tracked from now on. Translations stay as they are, and so do
    /// claims: a page that was protected is protected here, with the same bytes. The observer is told
    /// ([`Cause::Lost`]) of the pages for which this does not hold:
    ///
    /// - those that another thread was writing, and those of other threads' holds, which end here;
    /// - shared memory that was declared ([`SharedMemory`](super::SharedMemory)): the parent may have
    ///   written it meanwhile;
    /// - all pages of regions in mode deferred, whose last writes are not known here, and of regions
    ///   that cannot be tracked here, or whose tracking had been lost.
    ///
    /// The forking thread's holds ([`Held`](super::Held),
    /// [`MappingChange`](super::MappingChange)) hold here too, until they are dropped here.
    ///
    /// Until this call nothing in the child stores to guest memory, except on pages that the forking
    /// thread holds. If the fork itself has changed memory (`MADV_WIPEONFORK`, `MADV_DONTFORK`), announce
    /// that afterwards, as any other change of a mapping.
    ///
    /// # Errors
    ///
    /// [`Error::NotInForkChild`] in the process that made the guard: nothing was changed.
    /// Otherwise the error of a region, or of a mapping in a region, that cannot be tracked here; no
    /// translation begins in it. The others are tracked.
    pub fn after_fork_child(self) -> Result<(), Error> {
        self.fork.check_child()?;
        self.standing.continue_in_child(Blocks::Stay)
    }
}

/// The translations of a tracker in a fork's child.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Blocks {
    /// All that are not known to be stale.
    Stay,
    /// All of them.
    Die,
}

impl<D: PageData> Standing<'_, D> {
    /// In a child of the process that made it: see [`TrackerForkGuard::after_fork_child`].
    pub(crate) fn continue_in_child(self, blocks: Blocks) -> Result<(), Error> {
        let Space { regions, views, .. } = &*self.space;
        let mut opened = Opened::default();
        let mut done = Ok(());
        for Tracked { region, .. } in regions {
            let opened = opened.open(&region.protection);
            let keep = blocks == Blocks::Stay && opened == Ok(Inherited::Protected);
            let shared = views.parts(region.span()).into_iter().map(|(at, _)| at);
            let continued = region.continue_in_child(opened.map(drop), keep, shared);
            done = done.and(continued);
        }
        done
    }
}

/// The mechanisms that were opened in this child, by their names: a few at most.
#[derive(Default)]
struct Opened(Vec<(HostAddr, Result<Inherited, Error>)>);

impl Opened {
    fn open(&mut self, mechanism: &Arc<dyn Protection>) -> Result<Inherited, Error> {
        let name = name_of(mechanism);
        if let Some((_, opened)) = self.0.iter().find(|(known, _)| *known == name) {
            return opened.clone();
        }
        let opened = mechanism.open_in_child();
        self.0.push((name, opened.clone()));
        opened
    }
}

impl<D: PageData> Region<D> {
    /// In a fork's child. `opened` says whether the mechanism is this process's own; `shared` are the guest
    /// addresses of memory that the parent has too.
    fn continue_in_child(
        self: &Arc<Self>,
        opened: Result<(), Error>,
        keep: bool,
        shared: impl Iterator<Item = Span>,
    ) -> Result<(), Error> {
        let mut stale = Vec::new();
        let leave = self.pages.continue_in_child(this_thread(), keep, |page, desc| {
            self.invalidated(page, desc, Cause::Lost);
            stale.push(page.0..page.0 + 1);
        });
        // The harvest looks at pages with blocks.
        self.forget(self.all_pages());
        for pages in shared.filter_map(|at| self.pages_within(at)) {
            self.stop_translating(pages.clone());
            self.for_each_used_run(pages, |run| stale.push(run));
        }
        if let Err(error) = opened.and_then(|()| self.protection.take_over(self.host)) {
            let _ = self.lose();
            return Err(error);
        }
        let attached = self.attach_again(leave);
        let opening = Opening::without_barrier(leave);
        let open = |pages: Range<usize>| self.protection.open_again(self.host_of(&pages), opening);
        let opened = stale.into_iter().try_for_each(open).or_else(|_| self.open_all());
        self.protect_again(opening);
        opened.and(attached)
    }

    /// Protects the pages that have kept their blocks. It makes no list of them: at the limit of mappings there
    /// may be no memory for it.
    fn protect_again(&self, opening: Opening<'_>) {
        let keeps_blocks = |desc: &PageDesc<D>| desc.word.load().state() == PageState::Protected;
        self.for_each_run(self.all_pages(), keeps_blocks, |run| {
            let host = self.host_of(&run);
            if self.protection.protect_again(host).is_err() {
                self.stop_translating(run);
                let _ = self.protection.unprotect(host, opening).or_else(|_| self.abandon());
            }
        });
    }
}
