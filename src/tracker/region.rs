//! One tracked region: its pages, and the steps by which a translation begins on one of
//! them. [`writes`](super::writes) has the steps for a write.

use std::ops::Range;

use crate::addr::{GuestAddr, HostAddr, HostRange, PageIndex, PageSize, Span};
use crate::error::Error;
use crate::memory::guest_memory::GuestMemory;
use crate::page_table::{
    Begin, Busy, Generation, InFlight, PageDesc, PageState, PageTable, Permit, Protecting, Stopped,
};
use crate::panics::FirstPanic;
use crate::policy::{Decision, Limits, Policy};
use crate::protection::{Access, FaultSink, Mode, Opening, Options, Protection};
use crate::stats::Counters;
use crate::sync::{Arc, AtomicBool, Mutex, Ordering, lock};
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
    /// The pages that a harvest looks at. Its lock also makes harvests serial: an
    /// announcement that waits for it knows that every earlier harvest has finished
    /// invalidating.
    pub(super) harvest: Mutex<HarvestSet>,
    pub(super) policy: Arc<dyn Policy>,
    pub(super) limits: Limits,
    pub(super) streams: Streams,
    /// Whether a page may be checked.
    has_checked: AtomicBool,
    /// Pages that the guest may not write. One system call protects them all, as none of
    /// them will be opened soon.
    read_only: Mutex<Ranges>,
    /// The memory behind it, if the library allocated it. Dropped last.
    memory: Option<Arc<GuestMemory>>,
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
            policy,
            limits,
            streams: Streams::new(),
            has_checked: AtomicBool::new(false),
            read_only: Mutex::default(),
            memory: None,
        })
    }

    /// Keeps `memory`, the memory behind it.
    pub(super) fn keeping(self, memory: Option<Arc<GuestMemory>>) -> Self {
        Self { memory, ..self }
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

    /// The guest addresses of the region.
    pub(super) fn span(&self) -> Span {
        Span::of_region(self.guest, self.host)
    }

    /// The pages of this region that have a byte in `span`; `None` if there are none.
    pub(super) fn pages_within(&self, span: Span) -> Option<Range<usize>> {
        let part = self.span().intersection(span)?;
        Some(self.page_of(GuestAddr(part.first())).0..self.page_of(GuestAddr(part.last())).0 + 1)
    }

    pub(super) fn pages_of_host(&self, range: HostRange) -> Range<usize> {
        let offset = range.start().0 - self.host.start().0;
        let first = offset >> self.page.shift();
        first..first + (range.len() >> self.page.shift())
    }

    /// Makes the kernel report writes to all of this new region.
    pub(super) fn attach_all(self: &Arc<Self>, access: Access) -> Result<(), Error> {
        let opening = self.pages.open_all(|_, _, _| ());
        self.attach(self.host, access, opening.permit())
    }

    /// Makes the kernel report writes to `range`, a part of the region with a replaced
    /// mapping, under a hold that gave `leave`.
    pub(super) fn attach(self: &Arc<Self>, range: HostRange, access: Access, leave: Permit<'_>) -> Result<(), Error> {
        let sink: Arc<dyn FaultSink> = self.clone();
        self.note_access(self.pages_of_host(range), access);
        self.protection.attach(range, &sink, access, leave)
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

    /// Ends the tracking. Claims that still exist keep the descriptors. Each step is taken
    /// even if an earlier one failed; returns the first error.
    pub(super) fn retire(&self) -> Result<(), Error> {
        let leave = self.lose();
        // The memory is the embedder's alone afterwards.
        self.await_cancelled(0..self.pages.pages());
        // With a barrier or without one, no page may stay protected: no code answers a
        // fault here any more.
        let (opening, fenced) = match self.protection.opening(leave) {
            Ok(opening) => (opening, Ok(())),
            Err(error) => (Opening::at_the_end_of_a_region(leave), Err(error)),
        };
        // A claim may keep the mechanism for long.
        let detached = self.protection.detach(self.host, leave);
        fenced.and(detached.or_else(|_| self.protection.abandon(self.host, opening)))
    }

    /// The harvest no longer looks at `pages`.
    pub(super) fn forget(&self, pages: Range<usize>) {
        if self.mode == Mode::Deferred {
            lock(&self.harvest).remove(pages);
        }
    }

    /// Makes `page` ready for a translator. The generation vouches for bytes that are read
    /// after this call.
    pub(crate) fn begin(&self, page: PageIndex) -> Result<Begun, BeginError> {
        if self.pages.is_lost() {
            return Err(BeginError::Failed(Error::TrackingLost));
        }
        if !self.protection.is_own() {
            // Pages that are protected by their words are so in the parent, but open here.
            let _ = self.abandon();
            return Err(BeginError::Failed(Error::InForkChild));
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
        let held = word.unprotects_in_flight() > 0 && self.pages.is_held_for_writing(desc);
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
            if held { self.pages.begin_check_held(desc) } else { desc.word.begin_check(InFlight::Heeded) }
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

    /// Called after the page's word was claimed.
    fn not_lost(&self) -> Result<(), BeginError> {
        self.pages.check_not_stopped().map_err(|stopped| match stopped {
            Stopped::Lost => BeginError::Failed(Error::TrackingLost),
            Stopped::Opening => BeginError::Busy(Busy::Unprotecting),
        })
    }

    fn begin_protected(&self, desc: &PageDesc<O::Data>, page: PageIndex) -> Result<Begun, BeginError> {
        let mut claimed = match self.pages.begin_protect(page, desc) {
            Ok(pages) => Claimed { region: self, pages },
            Err(found) => return already(found),
        };
        if self.limits.protect_batch_pages > 1 {
            claimed.extend(self.limits.protect_batch_pages);
        }
        self.not_lost()?;
        let host = self.host_of(&claimed.pages.pages())?;
        self.count_call();
        let mut protected = self.protection.protect(host);
        if protected.is_err() && claimed.pages.pages().len() > 1 {
            // The mapping of a neighbour may be gone.
            claimed.give_up_neighbours(page);
            self.count_call();
            protected = self.host_of(&claimed.pages.pages()).and_then(|host| self.protection.protect(host));
        }
        if protected == Err(Error::TrackingLost) {
            // Not this page alone: the other protected pages may be open by now.
            let _ = self.abandon();
        }
        protected?;
        self.count_protected(claimed.pages.pages().len());
        claimed.finish(page)
    }

    /// Takes the protection by a harvest of the page, under the lock. This does not hide a
    /// write that another announcement should have reported.
    fn begin_deferred(&self, desc: &PageDesc<O::Data>, page: PageIndex) -> Result<Begun, BeginError> {
        let mut set = lock(&self.harvest);
        let claimed = match self.pages.begin_protect(page, desc) {
            Ok(pages) => Claimed { region: self, pages },
            Err(found) => return already(found),
        };
        self.not_lost()?;
        // In the set before it is protected: from then on every harvest looks at it. An
        // earlier write to it does not matter: no block is on an open page.
        set.insert(page.0);
        self.count_call();
        self.protection.harvest(self.host_of(&claimed.pages.pages())?, &mut |_| {})?;
        self.count_protected(1);
        claimed.finish(page)
    }

    /// The page's blocks compare themselves from now on.
    pub(super) fn became_checked(&self, desc: &PageDesc<O::Data>) {
        desc.history.enter_checked(coarse_ms());
        self.counters.checked.add(1);
        self.has_checked.store(true, Ordering::Release);
    }

    /// Checks that the mechanism still works, and lets cooled checked pages be protected
    /// again. If the policy panics for a page, the page stays checked.
    pub(super) fn tend(&self, panics: &mut FirstPanic) {
        if !self.pages.is_lost() && self.protection.check().is_err() {
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
            let history = desc.history.read(now_ms, self.pages.is_held_for_writing(desc));
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

    /// Makes `pages`, with dead blocks, writable. Async-signal-safe.
    pub(super) fn unprotect_pages(&self, pages: Range<usize>, leave: Permit<'_>) -> Result<(), Error> {
        let opening = self.protection.opening(leave)?;
        let done = self.unprotect_run(pages.start, pages.len(), opening);
        if done.is_ok() || pages.len() == 1 { done } else { self.unprotect_each(pages, opening) }
    }

    fn unprotect_run(&self, first: usize, count: usize, opening: Opening<'_>) -> Result<(), Error> {
        self.count_call();
        let start = HostAddr(self.host.start().0 + (first << self.page.shift()));
        self.protection.unprotect(HostRange::of_pages(start, count, self.page), opening)
    }

    /// A piece of `pages` may be gone, and the pages behind it are still protected.
    #[cold]
    #[inline(never)]
    fn unprotect_each(&self, pages: Range<usize>, opening: Opening<'_>) -> Result<(), Error> {
        let mut done = Ok(());
        for page in pages {
            done = done.and(self.unprotect_run(page, 1, opening));
        }
        done
    }

    pub(super) fn count_call(&self) {
        if self.mode != Mode::None {
            self.counters.protection_calls.add(1);
        }
    }

    /// One system call protected this many pages.
    fn count_protected(&self, pages: usize) {
        if self.mode != Mode::None {
            self.counters.histograms.protect_pages.record(pages as u64);
        }
    }

    /// In a fork's child: returns the region that replaces this one. All translations of
    /// this one are unreachable, and nothing begins in it.
    pub(super) fn continue_in_child(&self) -> Result<Arc<Self>, Error> {
        let leave = self.lose();
        let mut child = None;
        self.protection.clone().continue_in_child(self.host, leave, &mut |protection| {
            let (observer, counters) = (self.observer.clone(), self.counters.clone());
            let wiring = Wiring { observer, counters, policy: self.policy.clone() };
            // The policy was asked when the region was added.
            let (options, limits) = (self.options, self.limits);
            let region = Region::new(self.guest, self.host, self.page, protection, options, limits, wiring)?;
            let region = region.keeping(self.memory.clone());
            Ok(child.insert(Arc::new(region)).clone())
        })?;
        child.ok_or(Error::InForkChild)
    }
}

/// The result for a translator that begins.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Begun {
    pub(super) generation: Generation,
    /// Translations of the page must compare themselves.
    pub(super) checked: bool,
}

/// The page is ready already, or busy.
fn already(begin: Begin) -> Result<Begun, BeginError> {
    match begin {
        Begin::Protected(generation) => Ok(Begun { generation, checked: false }),
        Begin::Checked(generation) => Ok(Begun { generation, checked: true }),
        Begin::Busy(busy) => Err(BeginError::Busy(busy)),
    }
}

/// Pages that this translator is about to protect. The drop restores their words and the
/// kernel's protection.
struct Claimed<'a, O: PageObserver> {
    region: &'a Region<O>,
    pages: Protecting<'a, O::Data>,
}

impl<'a, O: PageObserver> Claimed<'a, O> {
    /// Takes neighbours along that were opened in bulk, or that the guest cannot write: one
    /// system call protects them all.
    fn extend(&mut self, most: usize) {
        let read_only = lock(&self.region.read_only).around(self.pages.pages().start).unwrap_or(0..0);
        while self.pages.pages().len() < most {
            let Some(next) = self.take(self.pages.pages().end, &read_only) else { break };
            self.pages.join(next);
        }
        while self.pages.pages().len() < most {
            let before = self.pages.pages().start.checked_sub(1);
            let Some(next) = before.and_then(|page| self.take(page, &read_only)) else { break };
            self.pages.join(next);
        }
    }

    fn take(&self, page: usize, read_only: &Range<usize>) -> Option<Protecting<'a, O::Data>> {
        let table = &self.region.pages;
        let desc = table.get(PageIndex(page))?;
        let wanted = desc.history.take_opened_in_bulk() || read_only.contains(&page);
        if wanted { table.begin_protect(PageIndex(page), desc).ok() } else { None }
    }

    fn give_up_neighbours(&mut self, page: PageIndex) {
        let region = self.region;
        let behind = self.pages.split_off(page.0 + 1);
        let own = self.pages.split_off(page.0);
        let before = core::mem::replace(&mut self.pages, own);
        drop([before, behind].map(|pages| Self { region, pages }));
    }

    /// The system call protected them all. Returns the result for `page`.
    fn finish(mut self, page: PageIndex) -> Result<Begun, BeginError> {
        let region = self.region;
        let mut begun = Err(BeginError::Busy(Busy::Written));
        while let Some((at, finished)) = self.pages.finish_first() {
            match finished {
                Ok(generation) => {
                    region.counters.protects.add(1);
                    if at == page {
                        begun = Ok(Begun { generation, checked: false });
                    }
                }
                Err(pages) => drop(Self { region, pages }),
            }
        }
        begun
    }
}

impl<O: PageObserver> Drop for Claimed<'_, O> {
    fn drop(&mut self) {
        let pages = self.pages.pages();
        if !pages.is_empty() && self.region.unprotect_pages(pages, self.pages.permit()).is_err() {
            // An announcement takes an open page for a writable one, so the kernel's own
            // writes would be refused.
            let _ = self.region.open_all();
        }
    }
}
