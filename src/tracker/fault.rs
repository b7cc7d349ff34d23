//! A store hit a protected page: the handling of its fault, in a signal handler or in the
//! handler thread.
//!
//! 1. **Recognise**: find the page. A fault that came back although the page is writable is not
//!    ours.
//! 2. **Classify**: does it hit code or data, and is it part of a stream of writes?
//! 3. **Notify**: the page's word moves on, so that no generation that a translator holds stays
//!    valid. Then the observer makes the page's translations unreachable, or makes them compare
//!    themselves.
//! 4. **Open** the page, after every thread has passed a barrier, if another one may be looking at
//!    translations.
//! 5. **Remember** the fault, to know it if it comes back.
//!
//! The kernel has just flushed the TLB, so each further page of code or data costs a walk of the page
//! tables. This is why small functions on this way are `inline` in all their files, and why nothing
//! here calls the C library.
//!
//! Every opener takes the steps 3 and 4, even if another thread has moved the word already: that
//! thread may not have finished.

use super::observer::{Cause, PageData};
use super::region::{Region, set_opened_in_bulk};
use super::streams::Place;
use crate::addr::{GuestAddr, HostRange, PageIndex};
use crate::error::Error;
use crate::mode::Mode;
use crate::page_table::{Counted, Hit, PageDesc, PageState, Permit, Unprotect};
use crate::protection::{FaultSink, Handled, WriteFault};
use crate::sys::clock::precise_ns;

/// A stream enters a page within this many of its first bytes: a cache line, as a store over
/// two pages faults at the second one's first byte.
const ENTERED_WITHIN_BYTES: usize = 64;

/// The page of a fault that is ours.
struct HitPage<'a, D> {
    page: PageIndex,
    desc: &'a PageDesc<D>,
}

/// The way in which a fault is handled.
struct Class {
    /// Its place in a stream of writes.
    place: Place,
    why: Unprotect,
}

impl<D: PageData> Region<D> {
    /// Finds the page of `fault`, or answers it.
    #[inline]
    fn recognise(&self, fault: &WriteFault) -> Result<HitPage<'_, D>, Handled> {
        let page = PageIndex((fault.addr.0 - self.host.start().0) >> self.page.shift());
        let used = self.pages.get(page).map(|desc| (desc, desc.word.load())).filter(|(_, seen)| !seen.is_pristine());
        let Some((desc, seen)) = used else { return Err(self.retry_once(fault)) };
        let is_writable = matches!(seen.state(), PageState::Open | PageState::SelfChecking);
        let changes = self.protection.access_changes(fault.addr);
        if is_writable && self.is_repeat(fault, seen.without_count(), changes) {
            return Err(Handled::NotOurs);
        }
        Ok(HitPage { page, desc })
    }

    /// Decides about the page's translations, and notes the write.
    #[inline]
    fn classify(&self, fault: &WriteFault, hit: &HitPage<'_, D>) -> Class {
        let desc = hit.desc;
        let place = self.streams.arrive(hit.page.0, self.limits.open_ahead_pages);
        let offset = fault.addr.0 & (self.page.bytes() - 1);
        let hits_code = desc.has_code(offset..offset + 1, self.page.bytes());
        // A stream is about to write all of the page, and enters it at its first bytes. A guest
        // that appends code to successive pages does not.
        let in_stream = place.run > 1 && offset < ENTERED_WITHIN_BYTES;
        let is_data = self.limits.checks_on_data_write && !hits_code && !in_stream && desc.has_any_code();
        let kind = if hits_code { Hit::Code } else { Hit::Data };
        desc.history.record(kind, Some(offset), fault.pc.map_or(0, |pc| pc.0));
        self.count_fault(fault, hits_code);
        Class { place, why: if is_data { Unprotect::DataWrite } else { Unprotect::Write } }
    }

    /// Moves the word of the page, and of the pages that the stream is about to enter, and tells
    /// the observer.
    #[inline]
    fn notify<'a>(&'a self, fault: &WriteFault, hit: &HitPage<'a, D>, class: &Class) -> Counted<'a, D> {
        let (before, mut counted) = self.pages.enter_unprotect(hit.page, hit.desc, class.why);
        let byte = GuestAddr(self.guest.0 + (fault.addr.0 - self.host.start().0) as u64);
        self.notify_observer(
            hit.page,
            hit.desc,
            before,
            class.why,
            Cause::Store { byte, pc: fault.pc, tid: fault.tid },
        );
        if class.place.run > 1 && class.why == Unprotect::Write {
            set_opened_in_bulk(hit.desc);
            self.enter_ahead(&mut counted, class.place.run);
        }
        counted
    }

    /// Opens the pages, or all of them if the kernel refuses to open these.
    #[inline]
    fn open(&self, counted: &Counted<'_, D>) -> Result<(), Error> {
        // No closure: the way on is the deepest on a signal stack.
        if self.unprotect_pages(counted.pages(), counted.permit()).is_ok() {
            return Ok(());
        }
        self.open_all()
    }

    /// Ends the un-protect, and notes the fault and the stream.
    #[inline]
    fn remember(&self, fault: &WriteFault, place: Place, counted: Counted<'_, D>) {
        let pages = counted.pages();
        self.streams.opened(place, pages.start, pages.len());
        if let Some(after) = counted.leave() {
            self.repeats.record(fault, after.without_count(), self.protection.access_changes(fault.addr));
        }
        if pages.len() > 1 {
            self.counters.histograms.fault_opened_pages.record(pages.len() as u64);
        }
    }

    fn count_fault(&self, fault: &WriteFault, hits_code: bool) {
        let kind = if hits_code { &self.counters.faults_code } else { &self.counters.faults_data };
        kind.add(1);
        if fault.pc.is_none() {
            self.counters.faults_by_thread.add(1);
        }
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
    fn enter_ahead<'a>(&'a self, counted: &mut Counted<'a, D>, most: usize) {
        let first = counted.pages().start;
        for page in (first + 1..first + most).map(PageIndex) {
            let Some(desc) = self.pages.get(page) else { break };
            if desc.word.load().state() != PageState::Protected {
                break;
            }
            let (before, next) = self.pages.enter_unprotect(page, desc, Unprotect::Write);
            self.notify_observer(page, desc, before, Unprotect::Write, Cause::Ahead);
            set_opened_in_bulk(desc);
            counted.join(next);
        }
        self.counters.opened_ahead.add((counted.pages().len() - 1) as u64);
    }
}

#[allow(unsafe_code)]
// SAFETY: `on_write` finds descriptors, changes atomics and makes system calls by
// `Protection::unprotect`, which is async-signal-safe by contract, as are
// `PageObserver::written` and `PageObserver::data_written`.
unsafe impl<D: PageData> FaultSink for Region<D> {
    fn on_write(&self, fault: &WriteFault) -> Handled {
        let entered_ns = self.counters.times_fault().then(precise_ns);
        let hit = match self.recognise(fault) {
            Ok(hit) => hit,
            Err(handled) => return handled,
        };
        let class = self.classify(fault, &hit);
        let counted = self.notify(fault, &hit, &class);
        let opened = self.open(&counted);
        self.remember(fault, class.place, counted);
        if let Some(entered_ns) = entered_ns {
            self.counters.histograms.fault_ns.record(precise_ns().saturating_sub(entered_ns));
        }
        match opened {
            // No signal will end this process. Instead the thread ends, which opens the page or
            // ends the process.
            Err(_) if self.mode == Mode::Thread => Handled::NotOurs,
            _ => Handled::Retry,
        }
    }

    fn on_lost(&self) -> Permit<'_> {
        self.lose()
    }

    fn for_each_used(&self, range: HostRange, each: &mut dyn FnMut(HostRange)) {
        self.for_each_used_run(self.pages_of_host(range), |run| each(self.host_of(&run)));
    }

    fn others_may_look(&self) -> bool {
        self.needs_barrier()
    }
}
