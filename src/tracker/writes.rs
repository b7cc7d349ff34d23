//! The handling of a write, learned of by a fault, by a harvest or by an announcement; and of a
//! lost mechanism.
//!
//! Every way takes the same four steps:
//!
//! 1. The page's word moves on, so that no generation that a translator holds stays valid.
//! 2. The observer makes the page's translations unreachable. If the write is beside them and
//!    the region's policy has checked pages, they compare themselves from now on instead.
//! 3. Every thread passes a barrier.
//! 4. The page is opened.
//!
//! Every opener takes all four steps, even if another thread has moved the word already: that
//! thread may not have finished.

use std::ops::Range;

use crate::addr::{GuestAddr, PageIndex, Span};
use crate::error::Error;
use crate::page_table::{Counted, HeldFor, Hit, Hold, PageDesc, PageState, Permit, Unprotect, Word};
use crate::protection::{FaultSink, Handled, Mode, WriteFault};
use crate::sync::{Rule, fence, left_out, lock, yield_now};
use crate::sys::clock::{coarse_ms, precise_ns};

use super::harvest::HarvestSet;
use super::region::Region;
use super::{Cause, PageObserver, PageWrite};

/// A stream enters a page within this many of its first bytes: a cache line, as a store over
/// two pages faults at the second one's first byte.
const ENTERED_WITHIN_BYTES: usize = 64;

/// The pages that a harvest found written.
type Found<'a, D> = Vec<(PageIndex, &'a PageDesc<D>)>;

/// The page was opened together with others. A page without code, which was protected only as a
/// neighbour, is not taken along again.
fn set_opened_in_bulk<D>(desc: &PageDesc<D>) {
    if desc.has_any_code() {
        desc.history.set_opened_in_bulk();
    }
}

impl<O: PageObserver> Region<O> {
    /// Tells the observer, after the word moved on.
    pub(super) fn invalidated(&self, page: PageIndex, desc: &PageDesc<O::Data>, cause: Cause) {
        self.fence_before_walk();
        self.observer.written(&desc.data, &PageWrite { page: self.guest_of(page), cause });
    }

    /// As [`Region::invalidated`], for a page whose word says checked.
    fn compared(&self, page: PageIndex, desc: &PageDesc<O::Data>, cause: Cause) {
        self.fence_before_walk();
        self.observer.beside(&desc.data, &PageWrite { page: self.guest_of(page), cause });
    }

    fn fence_before_walk(&self) {
        // Pairs with the fence of a commit between entering its block and looking at the
        // generations: one of the two sees the other.
        fence(Rule::FenceBeforeWalk);
    }

    /// Called after an un-protect of the page was entered, which found `before`.
    fn tell(&self, page: PageIndex, desc: &PageDesc<O::Data>, before: Word, why: Unprotect, cause: Cause) {
        match before.state() {
            PageState::Protected if why == Unprotect::Beside => {
                self.compared(page, desc, cause);
                self.became_checked(desc);
            }
            // The thread that made it checked may not have told the observer yet.
            PageState::Checked if why != Unprotect::Change => self.compared(page, desc, cause),
            _ => self.invalidated(page, desc, cause),
        }
    }

    fn count_fault(&self, fault: &WriteFault, hits_code: bool) {
        self.counters.faults.add(1);
        let kind = if hits_code { &self.counters.faults_code } else { &self.counters.faults_beside };
        kind.add(1);
        if fault.pc.is_none() {
            self.counters.faults_by_thread.add(1);
        }
    }

    /// Finds the pages of `pages` that were written since the last harvest, protects them again
    /// and invalidates them. Then it asks the policy which of them become checked.
    pub(super) fn sync(&self, pages: Range<usize>) -> Result<(), Error> {
        let entered_ns = precise_ns();
        let (found, done) = self.harvest(pages);
        self.counters.histograms.sync_ns.record(precise_ns().saturating_sub(entered_ns));
        // Under no lock, and after all reports: this calls code of the embedder's.
        self.ask_of_harvested(&found);
        done
    }

    /// The pages that were found written. The observer has been told of them when this returns.
    fn harvest(&self, pages: Range<usize>) -> (Found<'_, O::Data>, Result<(), Error>) {
        let mut set = lock(&self.harvest);
        let (mut failed, mut found) = (Vec::new(), Vec::new());
        let mut done = Ok(());
        for run in set.within(pages) {
            self.counters.harvests.add(1);
            self.counters.pages_scanned.add(run.len() as u64);
            self.count_call();
            let found_before = found.len();
            let harvested = self.host_of(&run).and_then(|host| {
                self.protection.harvest(host, &mut |written| {
                    found.extend(self.pages.existing(self.pages_of_host(written)));
                })
            });
            self.counters.histograms.harvest_scanned_pages.record(run.len() as u64);
            self.counters.histograms.harvest_found_pages.record((found.len() - found_before) as u64);
            if let Err(error) = harvested {
                failed.push(run);
                done = done.and(Err(error));
            }
        }
        self.harvested(&found, &mut set);
        // Pages that could not be asked about count as stale. Under the lock: the next
        // announcement no longer asks about these pages.
        for run in failed {
            set.remove(run.clone());
            self.stop_translating(run);
        }
        (found, done)
    }

    /// A harvest found these pages written.
    fn harvested(&self, found: &[(PageIndex, &PageDesc<O::Data>)], set: &mut HarvestSet) {
        if found.is_empty() {
            return;
        }
        // If code is spread, each descriptor is a cache miss. These loads overlap; the locked
        // operations below would wait for one after the other.
        core::hint::black_box(
            found.iter().fold(0u64, |words, (_, desc)| words ^ u64::from(desc.word.load().is_pristine())),
        );
        let now_ms = coarse_ms();
        let mut written = Vec::with_capacity(found.len());
        for &(page, desc) in found {
            desc.history.record(Hit::Harvested, None, 0, now_ms);
            if desc.word.load().state() == PageState::Checked {
                // An announcement made it checked, and may not have told the observer yet.
                self.compared(page, desc, Cause::Harvest);
                set.remove(page.0..page.0 + 1);
            } else {
                desc.word.bump();
                written.push((&desc.data, PageWrite { page: self.guest_of(page), cause: Cause::Harvest }));
            }
        }
        self.counters.pages_harvested.add(found.len() as u64);
        // One fence between every word and every walk.
        self.fence_before_walk();
        self.observer.written_all(&written);
    }

    /// Asks the policy about pages that were found written, and makes those checked that it
    /// chooses.
    fn ask_of_harvested(&self, found: &[(PageIndex, &PageDesc<O::Data>)]) {
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
                self.became_checked(desc);
                // A checked page may be written at any time: a harvest need not look at it.
                set.remove(page.0..page.0 + 1);
            }
        }
    }

    /// Every block on `pages` dies, and by their words they are open afterwards, whatever the
    /// kernel holds.
    pub(super) fn stop_translating(&self, pages: Range<usize>) {
        self.pages.stop(pages, |page, desc, _| self.invalidated(page, desc, Cause::Lost));
    }

    /// The bytes of `pages` changed or are about to, and the kernel does not report it.
    pub(super) fn invalidate(&self, pages: Range<usize>) {
        // The caller stored the bytes and looks for words now; a translator stores its word and
        // then reads the bytes. Pairs with the fence in `not_lost`: either this sees the page
        // that is about to be translated from, or its translator reads the new bytes. Pristine
        // words and missing descriptors are only read here: no exchange orders that.
        fence(Rule::FenceBeforeLook);
        for (page, desc) in self.pages.existing(pages) {
            desc.word.bump();
            self.invalidated(page, desc, Cause::Announced);
        }
    }

    /// Makes `pages` writable and their blocks unreachable or checked. Keeps translators from
    /// protecting one of them until `PageTable::release`. Of their bytes, those at guest
    /// addresses `asked` are held, by `thread`. After an error the pages are held too.
    pub(super) fn hold(
        &self,
        pages: Range<usize>,
        held_for: HeldFor,
        thread: u64,
        asked: Span,
    ) -> (Hold, Result<(), Error>) {
        let mut done = Ok(());
        let mut run: Option<Range<usize>> = None;
        let mut flush = |run: Option<Range<usize>>, leave: Permit<'_>| {
            if let (Some(run), true) = (run, self.mode.is_synchronous())
                && let Err(error) = self.unprotect_pages(run, leave)
            {
                done = Err(error);
            }
        };
        let now_ms = coarse_ms();
        let how = |page, desc: &PageDesc<O::Data>| self.why_held(page, desc, held_for, asked);
        let hold = self.pages.hold(pages, held_for, thread, how, |page, desc, before, why, leave| {
            // If an un-protect is in flight, its thread may not have told the observer or made
            // its system call yet. An opener of all pages makes that call last, without a
            // count.
            let in_flight = before.unprotects_in_flight() != 0 || self.pages.is_opening();
            let settled = !in_flight || left_out(Rule::HoldBehindHandler);
            let open = match before.state() {
                PageState::Open => true,
                PageState::Checked => why != Unprotect::Change,
                _ => false,
            };
            if open && settled {
                return;
            }
            self.counters.pages_announced.add(1);
            if held_for == HeldFor::Writing {
                self.counters.pages_kernel_written.add(1);
                desc.history.record(Hit::Kernel, None, 0, now_ms);
            }
            self.tell(page, desc, before, why, Cause::Announced);
            if before.state() == PageState::Protected && why == Unprotect::Write {
                set_opened_in_bulk(desc);
            }
            match &mut run {
                Some(run) if run.end == page.0 => run.end += 1,
                _ => flush(run.replace(page.0..page.0 + 1), leave),
            }
        });
        flush(run, hold.permit());
        if done.is_err() {
            done = self.open_all();
        }
        // A translator that was about to protect one of them may still do so, and undoes it.
        // Until then the kernel's writes would be refused.
        self.await_cancelled(hold.pages().clone());
        (hold, done)
    }

    fn why_held(&self, page: PageIndex, desc: &PageDesc<O::Data>, held_for: HeldFor, asked: Span) -> Unprotect {
        if held_for == HeldFor::Change {
            return Unprotect::Change;
        }
        let page_span = Span::page_of(self.guest_of(page).0, self.page.bytes() as u64);
        let bytes = asked.intersection(page_span).map_or(0..0, |held| {
            let offset = |at: u64| (at - page_span.first()) as usize;
            offset(held.first())..offset(held.last()) + 1
        });
        let beside = self.limits.checks_beside && !desc.has_code(bytes, self.page.bytes()) && desc.has_any_code();
        if beside { Unprotect::Beside } else { Unprotect::Write }
    }

    /// Waits for translators that were about to protect one of `pages` when these were
    /// un-protected, until none of them can do so any more.
    pub(super) fn await_cancelled(&self, pages: Range<usize>) {
        for (_, desc) in self.pages.existing(pages) {
            while desc.word.load().state() == PageState::Cancelled {
                yield_now();
            }
        }
    }

    /// The kernel no longer tracks anything here.
    pub(super) fn lose(&self) -> Permit<'_> {
        self.pages.lose(|page, desc, _| self.invalidated(page, desc, Cause::Lost))
    }

    /// The mechanism has failed. Makes all translations of the region unreachable and then
    /// opens every page of it, by any means that is left. Async-signal-safe.
    ///
    /// If that fails too, or if the barrier between the two steps is refused, the same fault
    /// comes back and is handed on: the process ends, rather than run stale code or fault for
    /// ever. Without the barrier a core may be about to enter a dead block that it looked up
    /// ahead of its store. No later system call of ours orders that. A page that stays
    /// protected lets no such store retire.
    pub(super) fn abandon(&self) -> Result<(), Error> {
        let opening = self.protection.opening(self.lose())?;
        self.protection.abandon(self.host, opening)
    }

    /// An un-protect failed. At the limit of mappings, for example, one page cannot be opened
    /// but all pages together can. Makes all translations of the region unreachable and then
    /// opens every page; translators may begin again. If that fails, abandons the region.
    /// Async-signal-safe.
    ///
    /// The caller keeps its own leave until this is over: a hold that comes between the two
    /// would take the page for open.
    pub(super) fn open_all(&self) -> Result<(), Error> {
        let all = self.pages.open_all(|page, desc, _| self.invalidated(page, desc, Cause::Lost));
        let opening = self.protection.opening(all.permit());
        let opened = opening.and_then(|opening| self.protection.unprotect(self.host, opening));
        drop(all);
        opened.or_else(|_| self.abandon())
    }

    /// A fault on a page that was never protected. The fault may have been under way when the
    /// previous region here ended; then the store goes through now. If it comes back it is not
    /// ours.
    fn retry_once(&self, fault: &WriteFault) -> Handled {
        const NEVER: u64 = 0;
        let changes = self.protection.access_changes(fault.addr);
        if self.is_repeat(fault, NEVER, changes) {
            return Handled::NotOurs;
        }
        self.repeats.record(fault, NEVER, changes);
        Handled::Retry
    }

    /// Whether the same fault came back although its page is writable as far as we know.
    ///
    /// A handler thread is sent only faults of the protection itself, so it has no such
    /// repeats. A message that looks like the last one is an old one, another thread's, or of a
    /// page that the kernel protects after all.
    fn is_repeat(&self, fault: &WriteFault, word: u64, changes: Option<u64>) -> bool {
        self.mode != Mode::Thread && self.repeats.is_repeat(fault, word, changes)
    }

    /// Takes along the protected pages behind `counted`, up to `most` pages in all.
    fn enter_ahead<'a>(&'a self, counted: &mut Counted<'a, O::Data>, most: usize) {
        let first = counted.pages().start;
        for page in (first + 1..first + most).map(PageIndex) {
            let Some(desc) = self.pages.get(page) else { break };
            if desc.word.load().state() != PageState::Protected {
                break;
            }
            let (before, next) = self.pages.enter_unprotect(page, desc, Unprotect::Write);
            self.tell(page, desc, before, Unprotect::Write, Cause::Ahead);
            set_opened_in_bulk(desc);
            counted.join(next);
        }
        self.counters.opened_ahead.add((counted.pages().len() - 1) as u64);
    }
}

#[allow(unsafe_code)]
// SAFETY: `on_write` finds descriptors, changes atomics and makes system calls by
// `Protection::unprotect`, which is async-signal-safe by contract, as are
// `PageObserver::written` and `PageObserver::beside`.
unsafe impl<O: PageObserver> FaultSink for Region<O> {
    fn on_write(&self, fault: &WriteFault) -> Handled {
        let entered_ns = precise_ns();
        let page = PageIndex((fault.addr.0 - self.host.start().0) >> self.page.shift());
        let used = self.pages.get(page).map(|desc| (desc, desc.word.load())).filter(|(_, seen)| !seen.is_pristine());
        let Some((desc, seen)) = used else { return self.retry_once(fault) };
        let writable = matches!(seen.state(), PageState::Open | PageState::Checked);
        let changes = self.protection.access_changes(fault.addr);
        if writable && self.is_repeat(fault, seen.without_count(), changes) {
            return Handled::NotOurs;
        }
        let place = self.streams.arrive(page.0, self.limits.open_ahead_pages);
        let offset = fault.addr.0 & (self.page.bytes() - 1);
        let hits_code = desc.has_code(offset..offset + 1, self.page.bytes());
        // A stream is about to write all of the page, and enters it at its first bytes. A guest
        // that appends code to successive pages does not.
        let in_stream = place.run > 1 && offset < ENTERED_WITHIN_BYTES;
        let beside = self.limits.checks_beside && !hits_code && !in_stream && desc.has_any_code();
        let why = if beside { Unprotect::Beside } else { Unprotect::Write };
        let hit = if hits_code { Hit::Code } else { Hit::Beside };
        desc.history.record(hit, Some(offset), fault.pc.map_or(0, |pc| pc.0), coarse_ms());
        self.count_fault(fault, hits_code);

        let (before, mut counted) = self.pages.enter_unprotect(page, desc, why);
        let byte = GuestAddr(self.guest.0 + (fault.addr.0 - self.host.start().0) as u64);
        self.tell(page, desc, before, why, Cause::Store { byte, pc: fault.pc, tid: fault.tid });
        if place.run > 1 && !beside {
            set_opened_in_bulk(desc);
            self.enter_ahead(&mut counted, place.run);
        }
        let pages = counted.pages();
        let opened = self.unprotect_pages(pages.clone(), counted.permit()).or_else(|_| self.open_all());
        self.streams.opened(place, page.0, pages.len());
        if let Some(after) = counted.leave() {
            self.repeats.record(fault, after.without_count(), self.protection.access_changes(fault.addr));
        }
        self.counters.histograms.fault_opened_pages.record(pages.len() as u64);
        self.counters.histograms.fault_ns.record(precise_ns().saturating_sub(entered_ns));
        if opened.is_err() && self.mode == Mode::Thread {
            // No signal will end this process. Instead the thread ends, which opens the page or
            // ends the process.
            return Handled::NotOurs;
        }
        Handled::Retry
    }

    fn on_lost(&self) -> Permit<'_> {
        self.lose()
    }
}
