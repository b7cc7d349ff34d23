//! One tracked region: what happens to a page of it when a translation begins
//! and when a write arrives.

use std::ops::Range;

use crate::addr::{GuestAddr, HostAddr, HostRange, PageIndex, PageSize};
use crate::error::Error;
use crate::page_table::{Begin, Busy, Generation, PageDesc, PageState, PageTable};
use crate::protection::{Access, FaultSink, Handled, Mode, Options, Protection, WriteFault};
use crate::stats::Counters;
use crate::sync::{Arc, AtomicBool, Mutex, Ordering, Rule, fence, left_out, lock, yield_now};
use crate::sys::clock::coarse_ms;

use super::harvest::HarvestSet;
use super::repeat::Repeats;
use super::{BeginError, Cause, PageObserver, PageWrite};

pub(crate) struct Region<O: PageObserver> {
    guest: GuestAddr,
    host: HostRange,
    page: PageSize,
    mode: Mode,
    pub(super) protection: Arc<dyn Protection>,
    options: Options,
    pub(super) pages: PageTable<O::Data>,
    observer: Arc<O>,
    counters: Arc<Counters>,
    repeats: Repeats,
    /// The pages that a harvest looks at. It is also the lock that makes
    /// harvests serial: an announcement that waits for it knows that every
    /// earlier harvest has finished invalidating.
    harvest: Mutex<HarvestSet>,
    /// The kernel tracks this region no more; nothing in it is translated.
    lost: AtomicBool,
}

impl<O: PageObserver> std::fmt::Debug for Region<O> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Region")
            .field("guest", &self.guest)
            .field("host", &self.host)
            .field("mode", &self.mode)
            .finish_non_exhaustive()
    }
}

impl<O: PageObserver> Region<O> {
    pub(super) fn new(
        guest: GuestAddr,
        host: HostRange,
        page: PageSize,
        protection: Arc<dyn Protection>,
        options: Options,
        observer: Arc<O>,
        counters: Arc<Counters>,
    ) -> Self {
        let (mode, pages) = (protection.mode(), host.len() >> page.shift());
        let harvested = if mode == Mode::Deferred { pages } else { 0 };
        Self {
            guest,
            host,
            page,
            mode,
            protection,
            options,
            pages: PageTable::new(pages),
            observer,
            counters,
            repeats: Repeats::new(),
            harvest: Mutex::new(HarvestSet::new(harvested)),
            lost: AtomicBool::new(false),
        }
    }

    pub(crate) fn mode(&self) -> Mode {
        self.mode
    }

    pub(crate) fn host(&self) -> HostRange {
        self.host
    }

    pub(crate) fn page_size(&self) -> PageSize {
        self.page
    }

    pub(crate) fn contains(&self, guest: GuestAddr) -> bool {
        guest.0.wrapping_sub(self.guest.0) < self.host.len() as u64
    }

    /// The page that holds `guest`, which lies in the region.
    pub(crate) fn page_of(&self, guest: GuestAddr) -> PageIndex {
        PageIndex(((guest.0 - self.guest.0) >> self.page.shift()) as usize)
    }

    /// First byte of `page` as the guest sees it.
    pub(crate) fn guest_of(&self, page: PageIndex) -> GuestAddr {
        GuestAddr(self.guest.0 + ((page.0 as u64) << self.page.shift()))
    }

    /// The host's pages of a run of pages of this region.
    pub(super) fn host_of(&self, pages: &Range<usize>) -> Result<HostRange, Error> {
        let start = HostAddr(self.host.start().0 + (pages.start << self.page.shift()));
        HostRange::new(start, pages.len() << self.page.shift(), self.page)
    }

    /// The pages of this region that have a byte in `start..end`.
    pub(super) fn pages_within(&self, start: u64, end: u64) -> Option<Range<usize>> {
        let first = start.max(self.guest.0) - self.guest.0;
        let last = end.min(self.guest.0.saturating_add(self.host.len() as u64)).saturating_sub(self.guest.0);
        let pages = (first >> self.page.shift()) as usize..last.div_ceil(self.page.bytes() as u64) as usize;
        (!pages.is_empty()).then_some(pages)
    }

    pub(super) fn pages_of_host(&self, range: HostRange) -> Range<usize> {
        let offset = range.start().0 - self.host.start().0;
        let first = offset >> self.page.shift();
        first..first + (range.len() >> self.page.shift())
    }

    /// Makes the kernel tell this region of writes to `range`, which is all of it
    /// or a part whose mapping was replaced.
    pub(super) fn attach(self: &Arc<Self>, range: HostRange, access: Access) -> Result<(), Error> {
        let sink: Arc<dyn FaultSink> = self.clone();
        self.protection.attach(range, &sink, access)
    }

    /// Ends the tracking. The claims that are left keep the descriptors.
    pub(super) fn retire(&self) -> Result<(), Error> {
        self.lose();
        // The memory is the embedder's alone afterwards.
        self.await_cancelled(0..self.pages.pages());
        self.protection.detach(self.host)
    }

    /// The harvest looks at `pages` no more.
    pub(super) fn forget(&self, pages: Range<usize>) {
        if self.mode == Mode::Deferred {
            lock(&self.harvest).remove(pages);
        }
    }

    /// Protects `page` for a translator and hands out its generation. What is
    /// read from the page afterwards is what the generation vouches for.
    pub(crate) fn begin(&self, page: PageIndex) -> Result<(&PageDesc<O::Data>, Generation), BeginError> {
        if self.lost.load(Ordering::Relaxed) {
            return Err(BeginError::Failed(Error::TrackingLost));
        }
        let Some(desc) = self.pages.get_or_make(page) else {
            return Err(BeginError::Failed(Error::BadRange {
                start: self.guest_of(page).0,
                len: self.page.bytes() as u64,
                why: "the page lies outside its region",
            }));
        };
        let word = desc.word.load();
        if word.state() == PageState::Protected {
            return Ok((desc, word.generation()));
        }
        if desc.heat.is_hot(coarse_ms) {
            self.counters.begins_busy.add(1);
            return Err(BeginError::Busy(Busy::Hot));
        }
        let begun = match self.mode {
            Mode::Deferred => self.begin_deferred(desc, page),
            _ => self.begin_with(desc, page, |host| self.protection.protect(host)),
        };
        if let Err(BeginError::Busy(_)) = begun {
            self.counters.begins_busy.add(1);
        }
        Ok((desc, begun?))
    }

    fn begin_with(
        &self,
        desc: &PageDesc<O::Data>,
        page: PageIndex,
        protect: impl FnOnce(HostRange) -> Result<(), Error>,
    ) -> Result<Generation, BeginError> {
        match desc.word.begin_protect() {
            Begin::Protected(generation) => return Ok(generation),
            Begin::Busy(busy) => return Err(BeginError::Busy(busy)),
            Begin::Protect => {}
        }
        // Pairs with the fence in `lose`.
        fence(Ordering::SeqCst);
        if self.lost.load(Ordering::Acquire) {
            desc.word.abort_protect();
            return Err(BeginError::Failed(Error::TrackingLost));
        }
        let host = self.host_of(&(page.0..page.0 + 1));
        self.count_call();
        let protected = host.clone().and_then(protect);
        if protected.is_ok()
            && let Some(generation) = desc.word.finish_protect()
        {
            self.counters.protects.add(1);
            return Ok(generation);
        }
        let undone = host.and_then(|host| self.unprotect(host));
        desc.word.abort_protect();
        protected.and(undone)?;
        Err(BeginError::Busy(Busy::Written))
    }

    /// Taking the protection by a harvest of the page, under the lock: a write
    /// that another announcement should have reported is not hidden from it.
    fn begin_deferred(&self, desc: &PageDesc<O::Data>, page: PageIndex) -> Result<Generation, BeginError> {
        let mut set = lock(&self.harvest);
        self.begin_with(desc, page, |host| {
            // In the set before it is protected: from then on every harvest
            // looks at it. That it was written before does not matter: no block
            // is on an open page.
            set.insert(page.0);
            self.protection.harvest(host, &mut |_| {})
        })
    }

    /// Finds what was written in `pages` since the last harvest, protects it
    /// again and invalidates it.
    pub(super) fn sync(&self, pages: Range<usize>) -> Result<(), Error> {
        let mut set = lock(&self.harvest);
        let mut failed = Vec::new();
        let mut done = Ok(());
        for run in set.within(pages) {
            self.counters.harvests.add(1);
            self.count_call();
            let harvested = self.host_of(&run).and_then(|host| {
                self.protection.harvest(host, &mut |written| {
                    for (page, desc) in self.pages.existing(self.pages_of_host(written)) {
                        desc.word.bump();
                        self.counters.pages_harvested.add(1);
                        self.invalidated(page, desc, Cause::Harvest);
                    }
                })
            });
            if let Err(error) = harvested {
                failed.push(run);
                done = done.and(Err(error));
            }
        }
        // Never run on hope: what could not be asked about is stale. Under the
        // lock: the next announcement asks about these pages no more.
        for run in failed {
            set.remove(run.clone());
            self.stop_translating(run);
        }
        done
    }

    fn unprotect(&self, range: HostRange) -> Result<(), Error> {
        self.count_call();
        self.protection.unprotect(range)
    }

    fn count_call(&self) {
        if self.mode != Mode::None {
            self.counters.protection_calls.add(1);
        }
    }

    /// Tells the observer, after the word moved on.
    fn invalidated(&self, page: PageIndex, desc: &PageDesc<O::Data>, cause: Cause) {
        // Pairs with the fence of a commit between entering its block and
        // looking at the generations: one of the two sees the other.
        if !left_out(Rule::FenceBeforeWalk) {
            fence(Ordering::SeqCst);
        }
        self.observer.written(&desc.data, &PageWrite { page: self.guest_of(page), cause });
    }

    /// Every block on `pages` dies and they are open afterwards, whatever the
    /// kernel holds.
    pub(super) fn stop_translating(&self, pages: Range<usize>) {
        for (page, desc) in self.pages.existing(pages) {
            desc.word.enter_unprotect();
            self.invalidated(page, desc, Cause::Lost);
            desc.word.leave_unprotect();
        }
    }

    /// The bytes of `pages` changed or are about to, in a way that the kernel
    /// does not tell.
    pub(super) fn invalidate(&self, pages: Range<usize>) {
        for (page, desc) in self.pages.existing(pages) {
            desc.word.bump();
            self.invalidated(page, desc, Cause::Announced);
        }
    }

    /// Makes `pages` writable, their blocks unreachable, and keeps translators
    /// away until `PageTable::release`.
    pub(super) fn hold(&self, pages: Range<usize>) -> Result<(), Error> {
        let mut done = Ok(());
        let mut run: Option<Range<usize>> = None;
        let mut flush = |run: Option<Range<usize>>| {
            if let (Some(run), true) = (run, self.mode.is_synchronous()) {
                let opened = self.host_of(&run).and_then(|host| self.unprotect(host));
                if opened.is_err() {
                    done = opened;
                }
            }
        };
        self.pages.hold(pages.clone(), |page, desc, before| {
            // Where an un-protect is in flight, whoever made it may not have
            // killed a block or made its system call yet.
            let settled = before.unprotects_in_flight() == 0 || left_out(Rule::HoldBehindHandler);
            if before.state() == PageState::Open && settled {
                return;
            }
            self.counters.pages_announced.add(1);
            self.invalidated(page, desc, Cause::Announced);
            match &mut run {
                Some(run) if run.end == page.0 => run.end += 1,
                _ => flush(run.replace(page.0..page.0 + 1)),
            }
        });
        flush(run);
        // A translator that was about to protect one of them still may, and
        // undoes it: the kernel's writes would be refused until then.
        self.await_cancelled(pages);
        done
    }

    /// Waits until no translator can protect one of `pages` any more that was
    /// about to when they were un-protected.
    fn await_cancelled(&self, pages: Range<usize>) {
        for (_, desc) in self.pages.existing(pages) {
            while desc.word.load().state() == PageState::Cancelled {
                yield_now();
            }
        }
    }

    /// The kernel tracks nothing here any more.
    fn lose(&self) {
        self.lost.store(true, Ordering::Release);
        // Pairs with the fence of a translator that begins: either it sees that
        // all is lost, or we see its descriptor and cancel it.
        fence(Ordering::SeqCst);
        // By every caller: the first may not be through yet, and ours is about to
        // open pages.
        self.stop_translating(0..self.pages.pages());
    }

    /// In a fork's child: the region that goes on for this one. Everything that
    /// was translated from this one is unreachable, and nothing begins in it.
    pub(super) fn continue_in_child(&self) -> Result<Arc<Self>, Error> {
        self.lost.store(true, Ordering::SeqCst);
        for (page, desc) in self.pages.existing(0..self.pages.pages()) {
            // Where the protection is the process's own, the child inherited it; of a
            // page as well that a thread was opening, which did not come along.
            let word = desc.word.load();
            if (word.state() != PageState::Open || word.unprotects_in_flight() != 0)
                && let Ok(host) = self.host_of(&(page.0..page.0 + 1))
            {
                let _ = self.protection.unprotect(host);
            }
        }
        self.stop_translating(0..self.pages.pages());
        let mut child = None;
        self.protection.clone().continue_in_child(self.host, self.page, self.options, &mut |protection| {
            let (observer, counters) = (self.observer.clone(), self.counters.clone());
            let region = Region::new(self.guest, self.host, self.page, protection, self.options, observer, counters);
            child.insert(Arc::new(region)).clone()
        })?;
        child.ok_or(Error::InForkChild)
    }
}

#[allow(unsafe_code)]
// SAFETY: `on_write` finds a descriptor, changes atomics and makes one system
// call by `Protection::unprotect`, which the contract says is async-signal-safe,
// as `PageObserver::written` is.
unsafe impl<O: PageObserver> FaultSink for Region<O> {
    fn on_write(&self, fault: &WriteFault) -> Handled {
        let page = PageIndex((fault.addr.0 - self.host.start().0) >> self.page.shift());
        let Some(desc) = self.pages.get(page) else { return Handled::NotOurs };
        let seen = desc.word.load();
        if seen.is_pristine() {
            return Handled::NotOurs;
        }
        let writable = matches!(seen.state(), PageState::Open | PageState::Checked);
        if writable && self.repeats.is_repeat(fault, seen.without_count()) {
            return Handled::NotOurs;
        }
        desc.heat.record(fault.addr.0 & (self.page.bytes() - 1), coarse_ms());
        desc.word.enter_unprotect();
        let byte = GuestAddr(self.guest.0 + (fault.addr.0 - self.host.start().0) as u64);
        self.invalidated(page, desc, Cause::Store { byte, pc: fault.pc, tid: fault.tid });
        let opened = self.unprotect(HostRange::page_of(fault.addr, self.page));
        self.counters.faults.add(1);
        let after = desc.word.leave_unprotect();
        self.repeats.record(fault, after.without_count());
        if opened.is_err() {
            self.lose();
        }
        Handled::Retry
    }

    fn on_lost(&self) {
        self.lose();
    }
}
