//! One tracked region: its pages, its addresses, and the calls to its mechanism.

use std::ops::Range;

use super::errors::BeginError;
use super::harvest_set::HarvestSet;
use super::observer::{PageData, PageObserver};
use super::streams::Streams;
use crate::addr::{GuestAddr, HostAddr, HostRange, PageIndex, PageSize, Span};
use crate::error::Error;
use crate::memory::guest_memory::GuestMemory;
use crate::mode::Mode;
use crate::page_table::{PageDesc, PageTable, Permit};
use crate::policy::{Limits, Policy};
use crate::protection::{Access, Attached, FaultSink, Opening, Options, Protection};
use crate::stats::Counters;
use crate::sync::{Arc, AtomicBool, Mutex, lock};
use crate::sys::repeats::Repeats;

/// The description of a region to track.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct RegionOptions {
    /// The guest address of its start. A multiple of the page size.
    pub guest: GuestAddr,
    /// The host addresses; mapped, at least with PROT_NONE, unless the region is `reserved`.
    pub host: HostRange,
    /// The mechanism that learns of writes to it.
    pub mode: Mode,
    /// The guest's access under the present mapping. Later changes go through
    /// [`Tracker::set_access`](super::Tracker::set_access).
    pub access: Access,
    /// The embedder's own handlers of SIGBUS and SIGSEGV call
    /// [`protection::handle_fault`](crate::protection::handle_fault): the library installs none.
    pub embedder_owns_signals: bool,
    /// The guest's processor may run old bytes until it executes an instruction for that: FENCE.I
    /// on RISC-V, ISB on Arm, isync on POWER. At each of these the embedder calls
    /// [`Tracker::sync`](super::Tracker::sync), in every mode and on the thread of that vCPU. Then
    /// a write fault needs no barrier on all threads, also while other vCPUs run. See the promise
    /// S7 of [`promises`](crate::guide::promises).
    pub explicit_fetch: bool,
    /// The guest has no mapping there yet. Its mappings come and go under
    /// [`Tracker::change_mapping`](super::Tracker::change_mapping), and only those that
    /// [`MappingChange::finish_replaced`](super::MappingChange::finish_replaced) has attached are
    /// touched. Holes and memory of the process itself may lie between. The region may be as large as the
    /// address space: its size costs nothing.
    pub reserved: bool,
}

impl RegionOptions {
    /// Memory that the guest may read and write, with the library's signal handlers.
    pub const fn new(guest: GuestAddr, host: HostRange, mode: Mode) -> Self {
        Self {
            guest,
            host,
            mode,
            access: Access::ReadWrite,
            embedder_owns_signals: false,
            explicit_fetch: false,
            reserved: false,
        }
    }

    /// The same with another `access` of the guest.
    #[must_use]
    pub const fn with_access(mut self, access: Access) -> Self {
        self.access = access;
        self
    }

    /// The same, for an embedder with signal handlers of its own or without them.
    #[must_use]
    pub const fn with_embedder_signals(mut self, embedder_owns_signals: bool) -> Self {
        self.embedder_owns_signals = embedder_owns_signals;
        self
    }

    /// The same, for a guest that fetches its code explicitly ([`RegionOptions::explicit_fetch`])
    /// or that does not, as x86.
    #[must_use]
    pub const fn with_explicit_fetch(mut self, explicit_fetch: bool) -> Self {
        self.explicit_fetch = explicit_fetch;
        self
    }

    /// The same for address space without a mapping of the guest's ([`RegionOptions::reserved`]).
    #[must_use]
    pub const fn with_reserved(mut self, reserved: bool) -> Self {
        self.reserved = reserved;
        self
    }
}

impl RegionOptions {
    /// The part for its mechanism.
    pub(super) const fn of_protection(self) -> Options {
        Options { embedder_owns_signals: self.embedder_owns_signals }
    }
}

/// The parts that all regions of a tracker share.
pub(crate) struct Wiring<D: PageData> {
    pub(super) observer: Arc<dyn PageObserver<Data = D>>,
    pub(super) counters: Arc<Counters>,
    pub(super) policy: Arc<dyn Policy>,
}

impl<D: PageData> Clone for Wiring<D> {
    fn clone(&self) -> Self {
        let Self { observer, counters, policy } = self;
        Self { observer: observer.clone(), counters: counters.clone(), policy: policy.clone() }
    }
}

pub(crate) struct Region<D: PageData> {
    pub(super) guest: GuestAddr,
    pub(super) host: HostRange,
    pub(super) page: PageSize,
    pub(super) mode: Mode,
    pub(super) protection: Arc<dyn Protection>,
    /// As it was added.
    pub(super) options: RegionOptions,
    pub(super) pages: PageTable<D>,
    pub(super) observer: Arc<dyn PageObserver<Data = D>>,
    pub(super) counters: Arc<Counters>,
    pub(super) repeats: Repeats,
    /// The pages that a harvest looks at. Its lock also makes harvests serial: an
    /// announcement that waits for it knows that every earlier harvest has finished
    /// invalidating.
    pub(super) harvest: Mutex<HarvestSet>,
    pub(super) policy: Arc<dyn Policy>,
    pub(super) limits: Limits,
    pub(super) streams: Streams,
    /// Whether a page may be self-checking.
    pub(super) has_self_checking: AtomicBool,
    /// The attached pages, and the guest's access to each. From any other page no translation begins: nothing
    /// is mapped there, or its mapping cannot be tracked.
    pub(super) attached: Mutex<Attached>,
    /// The memory behind it, if the library allocated it. Dropped last.
    _memory: Option<Arc<GuestMemory>>,
}

impl<D: PageData> std::fmt::Debug for Region<D> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Region")
            .field("guest", &self.guest)
            .field("host", &self.host)
            .field("mode", &self.mode)
            .finish_non_exhaustive()
    }
}

impl<D: PageData> Region<D> {
    pub(super) fn new(
        options: RegionOptions,
        page: PageSize,
        protection: Arc<dyn Protection>,
        limits: Limits,
        wiring: Wiring<D>,
    ) -> Result<Self, Error> {
        let Wiring { observer, counters, policy } = wiring;
        let RegionOptions { guest, host, .. } = options;
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
            has_self_checking: AtomicBool::new(false),
            attached: Mutex::default(),
            _memory: None,
        })
    }

    /// Keeps `memory`, the memory behind it.
    pub(super) fn keeping(self, memory: Option<Arc<GuestMemory>>) -> Self {
        Self { _memory: memory, ..self }
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

    /// The host's pages of a run of pages of this region; not none.
    #[inline]
    pub(super) fn host_of(&self, pages: &Range<usize>) -> HostRange {
        let start = HostAddr(self.host.start().0 + (pages.start << self.page.shift()));
        HostRange::of_pages(start, pages.len(), self.page)
    }

    /// The guest addresses of the region.
    pub(super) fn span(&self) -> Span {
        Span::of_region(self.guest, self.host)
    }

    /// The guest addresses of a run of pages of this region; not none.
    pub(super) fn span_of(&self, pages: &Range<usize>) -> Span {
        Span::of_region(self.guest_of(PageIndex(pages.start)), self.host_of(pages))
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

    /// All of its pages.
    pub(super) fn all_pages(&self) -> Range<usize> {
        0..self.pages.pages()
    }

    fn sink(self: &Arc<Self>) -> Arc<dyn FaultSink> {
        self.clone()
    }

    /// Makes the kernel report writes to all of this new region, or, if it is reserved, only to mappings that
    /// come later.
    pub(super) fn begin_tracking(self: &Arc<Self>) -> Result<(), Error> {
        let RegionOptions { access, reserved, .. } = self.options;
        if reserved {
            return self.protection.reserve(self.host, &self.sink());
        }
        let opening = self.pages.open_all(|_, _, _| ());
        self.protection.attach(self.host, &self.sink(), access, opening.permit())?;
        lock(&self.attached).set(self.all_pages(), access);
        Ok(())
    }

    /// Makes the kernel report writes to `pages`, with a new mapping of `access`, under a hold that gave
    /// `leave`.
    pub(super) fn attach(
        self: &Arc<Self>,
        pages: Range<usize>,
        access: Access,
        leave: Permit<'_>,
    ) -> Result<(), Error> {
        let sink = self.sink();
        self.attach_by(pages, access, |range| self.protection.attach(range, &sink, access, leave))
    }

    /// In a fork's child: attaches the pages that were attached in the parent. No block is left on those that
    /// cannot be.
    pub(super) fn attach_again(self: &Arc<Self>, leave: Permit<'_>) -> Result<(), Error> {
        let sink = self.sink();
        let mut done = Ok(());
        for (pages, access) in self.attached_within(self.all_pages()) {
            let attach = |range| self.protection.attach_again(range, &sink, access, leave);
            if let Err(error) = self.attach_by(pages.clone(), access, attach) {
                done = done.and(Err(error));
                let mut at = pages.start;
                for (attached, _) in
                    self.attached_within(pages.clone()).into_iter().chain([(pages.end..pages.end, access)])
                {
                    self.stop_translating(at..attached.start);
                    at = attached.end;
                }
            }
        }
        done
    }

    /// Attaches `pages` in one call. If one of their mappings cannot be attached, attaches the others, and
    /// returns the error.
    fn attach_by(
        &self,
        pages: Range<usize>,
        access: Access,
        attach: impl Fn(HostRange) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let host = self.host_of(&pages);
        let Err(error) = attach(host) else {
            lock(&self.attached).set(pages, access);
            return Ok(());
        };
        self.detach(pages);
        // The others failed as well if all is lost.
        if let Error::System { .. } | Error::AlreadyTracked { .. } = error {
            for part in self.protection.mappings(host, self.page) {
                let pages = self.pages_of_host(part);
                match attach(part) {
                    Ok(()) if part != host => lock(&self.attached).set(pages, access),
                    _ => self.detach(pages),
                }
            }
        }
        Err(error)
    }

    /// The mapping of `pages`, which are open, is gone: nothing begins on them until another one is attached.
    pub(super) fn detach(&self, pages: Range<usize>) {
        lock(&self.attached).remove(pages.clone());
        self.protection.forget(self.host_of(&pages));
    }

    /// The attached parts of `pages`, with the guest's access to each.
    pub(super) fn attached_within(&self, pages: Range<usize>) -> Vec<(Range<usize>, Access)> {
        lock(&self.attached).runs(pages).collect()
    }

    /// Calls `each` for runs of pages. No page outside them was ever protected. Async-signal-safe if `each` is.
    pub(super) fn for_each_used_run(&self, pages: Range<usize>, each: impl FnMut(Range<usize>)) {
        self.for_each_run(pages, |_| true, each);
    }

    /// Calls `each` for runs of used pages that are `wanted`. Async-signal-safe if both are.
    pub(super) fn for_each_run(
        &self,
        pages: Range<usize>,
        wanted: impl Fn(&PageDesc<D>) -> bool,
        mut each: impl FnMut(Range<usize>),
    ) {
        let mut run = 0..0;
        for (page, _) in self.pages.existing(pages).filter(|(_, desc)| wanted(desc)) {
            if page.0 != run.end && !run.is_empty() {
                each(run.clone());
            }
            run = if page.0 == run.end { run.start..page.0 + 1 } else { page.0..page.0 + 1 };
        }
        if !run.is_empty() {
            each(run);
        }
    }

    /// An error with the first of `pages` that is not attached.
    pub(super) fn check_attached(&self, pages: Range<usize>) -> Result<(), Error> {
        match lock(&self.attached).first_missing(pages) {
            None => Ok(()),
            Some(page) => Err(self.not_attached(PageIndex(page))),
        }
    }

    /// The memory of `page` may be the process's own.
    pub(super) fn not_attached(&self, page: PageIndex) -> Error {
        Error::NotTracked { start: self.guest_of(page).0, len: self.page.bytes() as u64 }
    }

    /// Carries out the guest's own mprotect on `pages`, which are attached.
    pub(super) fn set_access(&self, pages: Range<usize>, access: Access) -> Result<(), Error> {
        let host = self.host_of(&pages);
        // No reader comes between the two.
        let mut attached = lock(&self.attached);
        attached.set(pages, access);
        self.protection.set_access(host, access)
    }

    /// Calls `read`, which reads bytes of `page`, unless that would fault. Its mapping stays meanwhile: no
    /// change of mappings ends, and the guest's access does not change.
    pub(super) fn while_readable(&self, page: PageIndex, read: impl FnOnce()) -> Result<(), BeginError> {
        let attached = lock(&self.attached);
        match attached.access_of(page.0) {
            Some(Access::Read | Access::ReadWrite) => read(),
            Some(Access::None) => {
                let (start, len) = (self.guest_of(page).0, self.page.bytes() as u64);
                return Err(Error::BadRange { start, len, why: "the guest may not read the page now" }.into());
            }
            None => return Err(BeginError::Untrackable),
        }
        Ok(())
    }

    /// The harvest no longer looks at `pages`.
    pub(super) fn forget(&self, pages: Range<usize>) {
        if self.mode == Mode::Deferred {
            lock(&self.harvest).remove(pages);
        }
    }

    /// Whether another thread may act on a block that it looked up before the block died.
    /// Async-signal-safe.
    #[inline]
    pub(super) fn needs_barrier(&self) -> bool {
        let can_look_ahead = self.mode.is_synchronous() && !self.options.explicit_fetch;
        can_look_ahead && self.observer.others_may_look()
    }

    /// A permit to open pages, after their blocks have died. Async-signal-safe.
    #[inline]
    pub(super) fn opening<'a>(&self, leave: Permit<'a>) -> Result<Opening<'a>, Error> {
        if self.needs_barrier() {
            Opening::behind_a_barrier(leave, || self.protection.fence_threads())
        } else {
            Ok(Opening::without_barrier(leave))
        }
    }

    /// Makes `pages`, with dead blocks, writable. Async-signal-safe.
    #[inline]
    pub(super) fn unprotect_pages(&self, pages: Range<usize>, leave: Permit<'_>) -> Result<(), Error> {
        let opening = self.opening(leave)?;
        let done = self.unprotect_run(pages.start, pages.len(), opening);
        if done.is_ok() || pages.len() == 1 { done } else { self.unprotect_each(pages, opening) }
    }

    #[inline]
    fn unprotect_run(&self, first: usize, count: usize, opening: Opening<'_>) -> Result<(), Error> {
        self.count_call();
        self.protection.unprotect(self.host_of(&(first..first + count)), opening)
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
    pub(super) fn count_protected(&self, pages: usize) {
        if self.mode != Mode::None {
            self.counters.histograms.protect_pages.record(pages as u64);
        }
    }
}

/// The page was opened together with others. A page without code, which was protected only as a
/// neighbour, is not taken along again.
pub(super) fn set_opened_in_bulk<D>(desc: &PageDesc<D>) {
    if desc.has_any_code() {
        desc.history.set_opened_in_bulk();
    }
}
