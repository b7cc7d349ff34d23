//! The guest announces that code may have changed: a harvest of the deferred regions.
//!
//! A harvest asks the kernel about *spans* of pages (`harvest_set`). For each page the kernel does
//! two things in one step: it reports the page as written, and protects it again. So a write that
//! comes before the step is in this report, and a later one is in the next. Both hold for data pages
//! of a span as well. Their reports are dropped, for no block is on them: under the lock of the set
//! every page with a begun translation is in it.
//!
//! A call that fails may have protected pages that it did not report. So all pages with code of its
//! span count as written. If the span had gaps, a mapping in a gap may be the cause. So each of its
//! runs is asked about alone, and only runs that fail themselves are given up.

use std::ops::Range;

use smallvec::SmallVec;

use super::harvest_set::{self, HarvestSet};
use super::observer::{Cause, PageData};
use super::region::Region;
use super::regions::Tracker;
use super::space::{Space, for_all};
use crate::addr::{GuestAddr, PageIndex, Span};
use crate::error::Error;
use crate::mode::Mode;
use crate::page_table::{Hit, PageDesc, PageState};
use crate::sync::{Rule, RwLockReadGuard, fence, lock, prefetch};
use crate::sys::clock::{coarse_ms, precise_ns};

impl<D: PageData> Tracker<D> {
    /// The guest announces that code may have changed. When this returns, in deferred
    /// regions no block from bytes written before the call can be reached. In the other regions it
    /// costs a fence, which is what a guest with explicit fetch needs
    /// ([`RegionOptions::explicit_fetch`](super::RegionOptions::explicit_fetch)).
    ///
    /// In a deferred region it costs a scan of the pages with translations by the kernel, and more for
    /// each that was written. Near pages share one system call, and data pages between them are scanned
    /// too. If the guest writes such data pages between most calls, the pages with translations around
    /// them take a system call for each run of neighbours.
    ///
    /// # Errors
    ///
    /// The kernel could not report the written pages; then everything in the requested range counts
    /// as written. A later call asks again only about pages from which a translation was made
    /// since.
    pub fn sync(&self) -> Result<(), Error> {
        self.gate.check_moves()?;
        self.fenced().sync(Span::ALL)
    }

    /// [`Tracker::sync`] for `len_bytes` from `start`: for the bytes of the range,
    /// written through any of their views.
    ///
    /// # Errors
    ///
    /// As [`Tracker::sync`]; [`Error::BadRange`] if the range wraps,
    /// [`Error::NotTracked`] if no byte of it is tracked.
    pub fn sync_range(&self, start: GuestAddr, len_bytes: u64) -> Result<(), Error> {
        self.gate.check_moves()?;
        let Some(span) = Span::new(start.0, len_bytes)? else { return Ok(()) };
        let space = self.fenced();
        drop(space.tracked(span)?);
        // Every part is tried, even after an error in one.
        let mut done = Ok(());
        for part in space.views.others(span).into_iter().chain([span]) {
            done = done.and(space.sync(part));
        }
        done
    }

    /// The space. This thread looks at translations after it makes its earlier stores.
    fn fenced(&self) -> RwLockReadGuard<'_, Space<D>> {
        fence(Rule::FenceAtSync);
        self.gate.read()
    }
}

impl<D: PageData> Space<D> {
    /// Harvests the deferred regions in `span`, even after one of them failed.
    fn sync(&self, span: Span) -> Result<(), Error> {
        let deferred = self.within(span).filter(|(tracked, _)| tracked.region.mode() == Mode::Deferred);
        for_all(deferred, |tracked, pages| tracked.region.sync(pages))
    }
}

/// The pages that a harvest found written. Few are often all.
type Found<'a, D> = SmallVec<[(PageIndex, &'a PageDesc<D>); 64]>;

impl<D: PageData> Region<D> {
    /// Finds the pages of `pages` that were written since the last harvest, protects them again
    /// and invalidates them. Then it asks the policy which of them become self-checking.
    pub(super) fn sync(&self, pages: Range<usize>) -> Result<(), Error> {
        let entered_ns = precise_ns();
        let (found, done) = self.harvest(pages);
        self.counters.histograms.sync_ns.record(precise_ns().saturating_sub(entered_ns));
        // Under no lock, and after all reports: this calls code of the embedder's.
        self.ask_of_harvested(&found);
        done
    }

    /// The pages that were found written. The observer has been told of them when this returns.
    fn harvest(&self, pages: Range<usize>) -> (Found<'_, D>, Result<(), Error>) {
        let mut set = lock(&self.harvest);
        let (mut failed, mut found) = (Vec::new(), Found::new());
        let mut done = Ok(());
        let mut rest = pages.clone();
        // The end of a span that failed, and may have protected its pages again without a report.
        let mut unreported = 0;
        while let Some(span) = set.next_span(rest.clone()) {
            let span = self.without_foreign(&set, span);
            let found_before = found.len();
            let asked = self.ask(&mut set, &span, &mut found);
            rest.start = span.pages.end;
            match asked {
                Ok(()) if span.pages.start < unreported => {
                    found.truncate(found_before);
                    found.extend(self.pages.existing(span.pages));
                }
                Ok(()) => {}
                Err(_) if span.has_gaps => {
                    // A mapping in a gap was replaced, or one with code: ask about each run.
                    found.truncate(found_before);
                    set.keep_apart(span.pages.clone());
                    (rest.start, unreported) = (span.pages.start, span.pages.end);
                }
                Err(error) => {
                    failed.push(span.pages);
                    done = done.and(Err(error));
                }
            }
        }
        set.settle(pages);
        self.harvested(&found, &mut set);
        // Pages that could not be asked about count as stale. Under the lock: the next
        // announcement no longer asks about these pages.
        for run in failed {
            set.remove(run.clone());
            self.stop_translating(run);
        }
        (found, done)
    }

    /// `span`, or its first part if memory that is not attached lies in a gap. That may be the process's own,
    /// and tracked by another userfaultfd of the same mode, whose reports the scan would take.
    fn without_foreign(&self, set: &HarvestSet, span: harvest_set::Span) -> harvest_set::Span {
        let foreign = if span.has_gaps { lock(&self.attached).first_missing(span.pages.clone()) } else { None };
        match foreign.and_then(|foreign| set.next_span(span.pages.start..foreign)) {
            Some(part) => part,
            None => span,
        }
    }

    /// Asks the kernel about `span`. Those of its written pages that are in the set are found.
    fn ask<'a>(
        &'a self,
        set: &mut HarvestSet,
        span: &harvest_set::Span,
        found: &mut Found<'a, D>,
    ) -> Result<(), Error> {
        let scanned = span.pages.len() as u64;
        self.counters.harvests.add(1);
        self.counters.pages_scanned.add(scanned);
        self.count_call();
        let found_before = found.len();
        let mut found_page = |page: usize| {
            if let Some(desc) = self.pages.get(PageIndex(page)) {
                // If code is spread, each descriptor is a cache miss. These overlap.
                prefetch(desc);
                found.push((PageIndex(page), desc));
            }
        };
        let harvested = self.protection.harvest(self.host_of(&span.pages), &mut |written| {
            let pages = self.pages_of_host(written);
            if span.has_gaps { set.found(pages, &mut found_page) } else { pages.for_each(&mut found_page) }
        });
        self.counters.histograms.harvest_scanned_pages.record(scanned);
        self.counters.histograms.harvest_found_pages.record((found.len() - found_before) as u64);
        harvested
    }

    /// A harvest found these pages written.
    fn harvested(&self, found: &[(PageIndex, &PageDesc<D>)], set: &mut HarvestSet) {
        if found.is_empty() {
            return;
        }
        let mut written = SmallVec::<[_; 64]>::with_capacity(found.len());
        for &(page, desc) in found {
            desc.history.record(Hit::Harvested, None, 0);
            if desc.word.load().state() == PageState::SelfChecking {
                // An announcement made it self-checking, and may not have told the observer yet.
                self.compared(page, desc, Cause::Harvest);
                set.remove(page.0..page.0 + 1);
            } else {
                desc.word.bump();
                written.push((self.guest_of(page), &desc.data));
            }
        }
        self.counters.pages_harvested.add(found.len() as u64);
        // One fence between every word and every walk.
        self.fence_before_walk();
        self.observer.written_all(&written);
    }

    /// Asks the policy about pages that were found written, and makes those self-checking that it
    /// chooses.
    fn ask_of_harvested(&self, found: &[(PageIndex, &PageDesc<D>)]) {
        let now_ms = coarse_ms();
        for &(page, desc) in found {
            let is_protected = desc.word.load().state() == PageState::Protected;
            if !is_protected || !self.policy.on_harvest(&desc.history.read(now_ms, false)) {
                continue;
            }
            // An announcement that no longer asks about the page comes after the walk.
            let mut set = lock(&self.harvest);
            if desc.word.check_harvested() {
                // For blocks that were committed since.
                self.compared(page, desc, Cause::Harvest);
                self.became_self_checking(desc);
                // A self-checking page may be written at any time: a harvest need not look at it.
                set.remove(page.0..page.0 + 1);
            }
        }
    }
}
