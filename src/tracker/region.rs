//! One tracked region: its pages, and what happens to one of them when a
//! translation begins. [`writes`](super::writes) has what happens when a write
//! arrives.

use std::ops::Range;

use crate::addr::{GuestAddr, HostAddr, HostRange, PageIndex, PageSize, Span};
use crate::error::Error;
use crate::page_table::{Begin, Busy, Generation, InFlight, PageDesc, PageState, PageTable};
use crate::panics::FirstPanic;
use crate::policy::{Decision, Limits, Policy};
use crate::protection::{Access, FaultSink, Mode, Options, Protection};
use crate::stats::Counters;
use crate::sync::{Arc, AtomicBool, AtomicUsize, Mutex, Ordering, Rule, fence, left_out, lock};
use crate::sys::clock::coarse_ms;

use super::harvest::HarvestSet;
use super::ranges::Ranges;
use super::repeat::Repeats;
use super::streams::Streams;
use super::{BeginError, Cause, PageObserver, Wiring};

pub(crate) struct Region<O: PageObserver> {
    pub(super) guest: GuestAddr,
    pub(super) host: HostRange,
    pub(super) page: PageSize,
    pub(super) mode: Mode,
    pub(super) protection: Arc<dyn Protection>,
    options: Options,
    pub(super) pages: PageTable<O::Data>,
    pub(super) observer: Arc<O>,
    pub(super) counters: Arc<Counters>,
    pub(super) repeats: Repeats,
    /// The pages that a harvest looks at. It is also the lock that makes
    /// harvests serial: an announcement that waits for it knows that every
    /// earlier harvest has finished invalidating.
    pub(super) harvest: Mutex<HarvestSet>,
    /// The kernel tracks this region no more; nothing in it is translated.
    pub(super) lost: AtomicBool,
    /// How many threads are opening all of it; nobody begins meanwhile.
    pub(super) opening: AtomicUsize,
    pub(super) policy: Arc<dyn Policy>,
    pub(super) limits: Limits,
    pub(super) streams: Streams,
    /// Whether a page may be checked.
    has_checked: AtomicBool,
    /// What the guest may not write: protected with one system call, as none of
    /// it will be opened soon.
    read_only: Mutex<Ranges>,
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
        limits: Limits,
        wiring: Wiring<O>,
    ) -> Result<Self, Error> {
        let Wiring { observer, counters, policy } = wiring;
        let (mode, pages) = (protection.mode(), host.len() >> page.shift());
        Ok(Self {
            guest,
            host,
            page,
            mode,
            protection,
            options,
            pages: PageTable::new(pages)?,
            observer,
            counters,
            repeats: Repeats::new(),
            harvest: Mutex::default(),
            lost: AtomicBool::new(false),
            opening: AtomicUsize::new(0),
            policy,
            limits,
            streams: Streams::new(),
            has_checked: AtomicBool::new(false),
            read_only: Mutex::default(),
        })
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

    /// Where the guest sees it.
    pub(super) fn span(&self) -> Span {
        Span::of_region(self.guest, self.host)
    }

    /// The pages of this region that have a byte in `span`, if there is any.
    pub(super) fn pages_within(&self, span: Span) -> Option<Range<usize>> {
        let part = self.span().intersection(span)?;
        Some(self.page_of(GuestAddr(part.first())).0..self.page_of(GuestAddr(part.last())).0 + 1)
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
        self.note_access(self.pages_of_host(range), access);
        self.protection.attach(range, &sink, access)
    }

    /// Carries out the guest's own mprotect.
    pub(super) fn set_access(&self, pages: Range<usize>, access: Access) -> Result<(), Error> {
        let host = self.host_of(&pages)?;
        self.note_access(pages, access);
        self.protection.set_access(host, access)
    }

    fn note_access(&self, pages: Range<usize>, access: Access) {
        let mut read_only = lock(&self.read_only);
        match access {
            Access::Read => read_only.insert(pages),
            Access::None | Access::ReadWrite => read_only.remove(pages),
        }
    }

    /// Ends the tracking. The claims that are left keep the descriptors. Each step is
    /// taken, whatever became of the one before; the first error is told.
    pub(super) fn retire(&self) -> Result<(), Error> {
        self.lose();
        // The memory is the embedder's alone afterwards.
        self.await_cancelled(0..self.pages.pages());
        let fenced = self.fence_threads();
        // A claim may keep the mechanism for long, and nobody answers a fault any more.
        let detached = self.protection.detach(self.host).or_else(|_| self.protection.abandon(self.host));
        fenced.and(detached)
    }

    /// The harvest looks at `pages` no more.
    pub(super) fn forget(&self, pages: Range<usize>) {
        if self.mode == Mode::Deferred {
            lock(&self.harvest).remove(pages);
        }
    }

    /// Makes `page` ready for a translator. What is read from it afterwards is what
    /// the generation vouches for.
    pub(crate) fn begin(&self, page: PageIndex) -> Result<Begun, BeginError> {
        if self.lost.load(Ordering::Relaxed) {
            return Err(BeginError::Failed(Error::TrackingLost));
        }
        let Some(desc) = self.pages.get_or_make(page)? else {
            return Err(BeginError::Failed(Error::BadRange {
                start: self.guest_of(page).0,
                len: self.page.bytes() as u64,
                why: "the page lies outside its region",
            }));
        };
        let word = desc.word.load();
        match word.state() {
            PageState::Protected => return Ok(Begun { generation: word.generation(), checked: false }),
            PageState::Checked => return Ok(Begun { generation: word.generation(), checked: true }),
            _ => {}
        }
        let held = word.unprotects_in_flight() > 0 && self.pages.is_held_for_writing(page);
        let begun = match self.policy.on_begin(&desc.history.read(coarse_ms(), held)) {
            Decision::Interpret => Err(BeginError::Busy(if held { Busy::Unprotecting } else { Busy::Hot })),
            Decision::Check => self.begin_checked(desc, page, held),
            Decision::Protect if self.mode == Mode::Deferred => self.begin_deferred(desc, page),
            Decision::Protect => self.begin_protected(desc, page),
        };
        if let Err(BeginError::Busy(_)) = begun {
            self.counters.begins_busy.add(1);
        }
        begun
    }

    fn begin_checked(&self, desc: &PageDesc<O::Data>, page: PageIndex, held: bool) -> Result<Begun, BeginError> {
        let begin = || {
            if held { self.pages.begin_check_held(page, desc) } else { desc.word.begin_check(InFlight::Heeded) }
        };
        let begun = if self.mode == Mode::Deferred {
            // Under the lock: a page that another translator protects meanwhile
            // stays in the set.
            let mut set = lock(&self.harvest);
            let begun = begin();
            if begun.is_ok() {
                // A harvest would protect it again, for nothing.
                set.remove(page.0..page.0 + 1);
            }
            begun
        } else {
            begin()
        };
        let generation = match begun {
            Ok(generation) => generation,
            Err(other) => return already(other),
        };
        self.became_checked(desc);
        self.not_lost()?;
        Ok(Begun { generation, checked: true })
    }

    /// After the page's word was claimed: either the region is not lost, or who
    /// lost it sees the claim.
    fn not_lost(&self) -> Result<(), BeginError> {
        // Pairs with the fences in `lose`, in `open_all` and in `invalidate`.
        fence(Ordering::SeqCst);
        if self.lost.load(Ordering::Acquire) {
            return Err(BeginError::Failed(Error::TrackingLost));
        }
        match self.opening.load(Ordering::Acquire) {
            0 => Ok(()),
            _ => Err(BeginError::Busy(Busy::Unprotecting)),
        }
    }

    fn begin_protected(&self, desc: &PageDesc<O::Data>, page: PageIndex) -> Result<Begun, BeginError> {
        match desc.word.begin_protect() {
            Begin::Protect => {}
            other => return already(other),
        }
        let mut claimed = Claimed { region: self, pages: page.0..page.0 + 1 };
        if self.limits.protect_batch_pages > 1 {
            claimed.extend(self.limits.protect_batch_pages);
        }
        self.not_lost()?;
        let host = self.host_of(&claimed.pages)?;
        self.count_call();
        let mut protected = self.protection.protect(host);
        if protected.is_err() && claimed.pages.len() > 1 {
            // A neighbour whose mapping is gone, perhaps.
            claimed.give_up_neighbours(page);
            self.count_call();
            protected = self.host_of(&claimed.pages).and_then(|host| self.protection.protect(host));
        }
        if protected == Err(Error::TrackingLost) {
            // Not this page alone: whatever else was protected may be open by now.
            let _ = self.abandon();
        }
        protected?;
        self.count_protected(claimed.pages.len());
        claimed.finish(page)
    }

    /// Taking the protection by a harvest of the page, under the lock: a write
    /// that another announcement should have reported is not hidden from it.
    fn begin_deferred(&self, desc: &PageDesc<O::Data>, page: PageIndex) -> Result<Begun, BeginError> {
        let mut set = lock(&self.harvest);
        match desc.word.begin_protect() {
            Begin::Protect => {}
            other => return already(other),
        }
        let claimed = Claimed { region: self, pages: page.0..page.0 + 1 };
        self.not_lost()?;
        // In the set before it is protected: from then on every harvest
        // looks at it. That it was written before does not matter: no block
        // is on an open page.
        set.insert(page.0);
        self.count_call();
        self.protection.harvest(self.host_of(&claimed.pages)?, &mut |_| {})?;
        self.count_protected(1);
        claimed.finish(page)
    }

    /// The page's blocks compare themselves from now on.
    pub(super) fn became_checked(&self, desc: &PageDesc<O::Data>) {
        desc.history.enter_checked(coarse_ms());
        self.counters.checked.add(1);
        self.has_checked.store(true, Ordering::Release);
    }

    /// Looks whether the mechanism is still there, and lets checked pages that have
    /// cooled be protected again. A page about which the policy panics stays checked.
    pub(super) fn tend(&self, panics: &mut FirstPanic) {
        if !self.lost.load(Ordering::Relaxed) && self.protection.check().is_err() {
            let _ = self.abandon();
        }
        if !self.has_checked.load(Ordering::Relaxed) || !self.has_checked.swap(false, Ordering::AcqRel) {
            return;
        }
        let now_ms = coarse_ms();
        let mut left = false;
        self.pages.existing(0..self.pages.pages()).for_each(|(page, desc)| {
            if desc.word.load().state() != PageState::Checked {
                return;
            }
            let history = desc.history.read(now_ms, self.pages.is_held_for_writing(page));
            let has_cooled = panics.catch(|| self.policy.has_cooled(&history)).unwrap_or(false);
            if has_cooled && desc.word.cool() {
                desc.history.leave_checked(now_ms);
                self.counters.cooled.add(1);
                self.invalidated(page, desc, Cause::Cooled);
            } else {
                left = true;
            }
        });
        if left {
            self.has_checked.store(true, Ordering::Release);
        }
    }

    /// Between a kill and the opening of its pages: what any thread looked up before the
    /// kill, for something behind a store that is still to come, is looked up again.
    /// Async-signal-safe.
    pub(super) fn fence_threads(&self) -> Result<(), Error> {
        if self.mode.is_synchronous() && !left_out(Rule::FenceThreads) {
            self.protection.fence_threads()?;
        }
        Ok(())
    }

    /// Makes `pages` writable, whose blocks died. Async-signal-safe.
    pub(super) fn unprotect_pages(&self, pages: Range<usize>) -> Result<(), Error> {
        self.fence_threads()?;
        let done = self.unprotect_run(pages.start, pages.len());
        if done.is_ok() || pages.len() == 1 { done } else { self.unprotect_each(pages) }
    }

    fn unprotect_run(&self, first: usize, count: usize) -> Result<(), Error> {
        self.count_call();
        let start = HostAddr(self.host.start().0 + (first << self.page.shift()));
        self.protection.unprotect(HostRange::of_pages(start, count, self.page))
    }

    /// A piece of `pages` may be gone, and what lies behind that is protected still.
    #[cold]
    #[inline(never)]
    fn unprotect_each(&self, pages: Range<usize>) -> Result<(), Error> {
        let mut done = Ok(());
        for page in pages {
            done = done.and(self.unprotect_run(page, 1));
        }
        done
    }

    pub(super) fn count_call(&self) {
        if self.mode != Mode::None {
            self.counters.protection_calls.add(1);
        }
    }

    /// One system call protected so many pages.
    fn count_protected(&self, pages: usize) {
        if self.mode != Mode::None {
            self.counters.histograms.protect_pages.record(pages as u64);
        }
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
        self.protection.clone().continue_in_child(self.host, &mut |protection| {
            let (observer, counters) = (self.observer.clone(), self.counters.clone());
            let wiring = Wiring { observer, counters, policy: self.policy.clone() };
            // The policy was asked when the region was added.
            let (options, limits) = (self.options, self.limits);
            let region = Region::new(self.guest, self.host, self.page, protection, options, limits, wiring)?;
            Ok(child.insert(Arc::new(region)).clone())
        })?;
        child.ok_or(Error::InForkChild)
    }
}

/// What a translator that begins gets.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Begun {
    pub(super) generation: Generation,
    /// What is made from the page compares itself.
    pub(super) checked: bool,
}

/// The page is ready already, or busy.
fn already(begin: Begin) -> Result<Begun, BeginError> {
    match begin {
        Begin::Protected(generation) => Ok(Begun { generation, checked: false }),
        Begin::Checked(generation) => Ok(Begun { generation, checked: true }),
        Begin::Busy(busy) => Err(BeginError::Busy(busy)),
        Begin::Protect => Err(BeginError::Busy(Busy::Protecting)),
    }
}

/// Pages that this translator is about to protect: dropped, their words are as
/// they were before, and so is the kernel.
struct Claimed<'a, O: PageObserver> {
    region: &'a Region<O>,
    pages: Range<usize>,
}

impl<O: PageObserver> Claimed<'_, O> {
    /// Takes neighbours along that were opened in bulk, or that the guest cannot
    /// write: one system call protects them all.
    fn extend(&mut self, most: usize) {
        let read_only = lock(&self.region.read_only).around(self.pages.start).unwrap_or(0..0);
        while self.pages.len() < most && self.take(self.pages.end, &read_only) {
            self.pages.end += 1;
        }
        while self.pages.len() < most && self.pages.start > 0 && self.take(self.pages.start - 1, &read_only) {
            self.pages.start -= 1;
        }
    }

    fn take(&self, page: usize, read_only: &Range<usize>) -> bool {
        let Some(desc) = self.region.pages.get(PageIndex(page)) else { return false };
        let wanted = desc.history.take_opened_in_bulk() || read_only.contains(&page);
        wanted && desc.word.begin_protect() == Begin::Protect
    }

    fn give_up_neighbours(&mut self, page: PageIndex) {
        let all = core::mem::replace(&mut self.pages, page.0..page.0 + 1);
        drop(Claimed { region: self.region, pages: all.start..page.0 });
        drop(Claimed { region: self.region, pages: page.0 + 1..all.end });
    }

    /// The system call protected them all: what `page` got.
    fn finish(mut self, page: PageIndex) -> Result<Begun, BeginError> {
        let pages = core::mem::replace(&mut self.pages, 0..0);
        let mut begun = Err(BeginError::Busy(Busy::Written));
        for (at, desc) in self.region.pages.existing(pages) {
            desc.clear_code();
            match desc.word.finish_protect() {
                Some(generation) => {
                    self.region.counters.protects.add(1);
                    if at == page {
                        begun = Ok(Begun { generation, checked: false });
                    }
                }
                None => drop(Claimed { region: self.region, pages: at.0..at.0 + 1 }),
            }
        }
        begun
    }
}

impl<O: PageObserver> Drop for Claimed<'_, O> {
    fn drop(&mut self) {
        if self.pages.is_empty() {
            return;
        }
        if self.region.unprotect_pages(self.pages.clone()).is_err() {
            // The kernel's own writes would be refused: an announcement takes an open
            // page for a writable one.
            let _ = self.region.open_all();
        }
        for (_, desc) in self.region.pages.existing(self.pages.clone()) {
            desc.word.abort_protect();
        }
    }
}
