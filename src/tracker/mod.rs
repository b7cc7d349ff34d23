//! The tracker: protects guest pages, learns of writes to them and tells an observer. It works
//! without the code cache, for an emulator with a cache of its own.
//!
//! # A translation, as the tracker sees it
//!
//! 1. [`Tracker::begin`] protects the page and returns a [`PageClaim`].
//! 2. Read the guest's bytes and translate. Not before: bytes that are read before the
//!    protection may change unseen.
//! 3. Enter the translation where [`PageObserver::written`] will find it, then ask
//!    [`PageClaim::is_current`]. Only if it says yes may the translation be reached. A later
//!    write finds it; an earlier one moved the generation.
//!
//! When a write arrives, [`PageObserver::written`] runs before the store retires
//! (synchronous modes), or before [`Tracker::sync`] returns (deferred).
//!
//! # Writes that the kernel does not report
//!
//! - [`Tracker::prepare_kernel_write`]: writes that the kernel makes for the guest;
//! - [`Tracker::prepare_unseen_write`]: writes that no mode learns of;
//! - [`Tracker::change_mapping`]: mmap, munmap and the like;
//! - [`Tracker::invalidate`]: bytes that changed behind the tracker's back.

mod announced;
mod census;
mod claim;
#[cfg(all(test, not(loom)))]
mod ending;
mod fork;
mod generations;
mod harvest;
mod held;
#[cfg(all(test, not(loom)))]
mod larger_pages;
#[cfg(all(test, not(loom)))]
mod opened_whole;
mod ranges;
mod region;
mod repeat;
mod space;
mod streams;
mod views;
mod writes;

use std::fmt;
use std::os::fd::RawFd;

pub use census::{HotPage, PagesByState};
pub use claim::{BeginError, PageClaim, PageData};
pub use fork::ForkGuard;
pub use generations::{Generations, PageGeneration};
pub use held::{Held, MappingChange};
pub(crate) use region::Region;
pub use views::SharedMemory;

pub(crate) use space::Standing;
use space::{Gate, Tracked};

use crate::addr::{GuestAddr, HostAddr, HostRange, PageSize, Span};
use crate::error::Error;
use crate::memory::guest_memory::GuestMemory;
use crate::panics::FirstPanic;
use crate::policy::{Adaptive, Policy};
use crate::protection::{self, Access, Mode, Protection};
use crate::stats::{Counters, Histograms, Stats};
use crate::sync::Arc;
use crate::sys::mmap::first_hole;

/// The reason why a page's translations become stale.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Cause {
    /// A store hit the protected page and is about to retire.
    Store {
        /// The address that faulted. The extent of the store is not known here.
        byte: GuestAddr,
        /// The host instruction that stored, if known.
        pc: Option<HostAddr>,
        /// Kernel thread id of the storing thread, if another thread reports the store. 0 if
        /// the storing thread itself reports it, or if it is not known.
        tid: u32,
    },
    /// A harvest found the page written.
    Harvest,
    /// An announced write by the kernel, or an announced change of the mapping.
    Announced,
    /// A stream of stores is about to reach the page: it was opened ahead.
    Ahead,
    /// No write: the page was checked and has cooled. Translations made from it from now on
    /// need not compare themselves.
    Cooled,
    /// The page is tracked no more.
    Lost,
}

/// One write, as [`PageObserver::written`] gets it.
#[derive(Clone, Copy, Debug)]
pub struct PageWrite {
    /// First byte of the page.
    pub page: GuestAddr,
    /// How the tracker learned of the write.
    pub cause: Cause,
}

/// The layer that makes translations of a page unreachable.
///
/// # Safety
///
/// `written` and `beside` run in signal handlers, by any number of threads at once:
/// they are async-signal-safe (no lock, no allocation, no thread-local, no panic, no
/// access to tracked memory, errno kept).
#[allow(unsafe_code)]
pub unsafe trait PageObserver: Send + Sync + 'static {
    /// The observer's data for each page.
    type Data: Default + Send + Sync;

    /// The bytes of a page are about to change or have changed. When this returns, no
    /// translation of them can be reached.
    fn written(&self, data: &Self::Data, write: &PageWrite);

    /// [`PageObserver::written`] for many pages that a harvest found, outside signal handlers.
    /// Together they may cost less than one by one.
    fn written_all(&self, writes: &[(&Self::Data, PageWrite)]) {
        writes.iter().for_each(|(data, write)| self.written(data, write));
    }

    /// The page is checked from now on: it stays writable, and its bytes change without further
    /// notice. When this returns, each translation of it compares the bytes before each use, or
    /// cannot be reached.
    fn beside(&self, data: &Self::Data, write: &PageWrite) {
        self.written(data, write);
    }
}

/// The description of a region to track.
#[derive(Clone, Copy, Debug)]
pub struct RegionOptions {
    /// The guest address of its start. A multiple of the page size.
    pub guest: GuestAddr,
    /// The host addresses; mapped, at least with PROT_NONE.
    pub host: HostRange,
    /// The mechanism that learns of writes to it.
    pub mode: Mode,
    /// The guest's access under the present mapping. Later changes go through
    /// [`Tracker::set_access`].
    pub access: Access,
    /// The embedder's own handlers of SIGBUS and SIGSEGV call
    /// [`protection::handle_fault`]: the library installs none.
    pub embedder_owns_signals: bool,
}

impl RegionOptions {
    /// Memory that the guest may read and write, with the library's signal handlers.
    pub const fn new(guest: GuestAddr, host: HostRange, mode: Mode) -> Self {
        Self { guest, host, mode, access: Access::ReadWrite, embedder_owns_signals: false }
    }
}

/// The parts that all regions of a tracker share.
pub(crate) struct Wiring<O: PageObserver> {
    observer: Arc<O>,
    counters: Arc<Counters>,
    policy: Arc<dyn Policy>,
}

impl<O: PageObserver> Clone for Wiring<O> {
    fn clone(&self) -> Self {
        let Self { observer, counters, policy } = self;
        Self { observer: observer.clone(), counters: counters.clone(), policy: policy.clone() }
    }
}

/// Protects pages and tells `O` of writes to them.
pub struct Tracker<O: PageObserver> {
    wiring: Wiring<O>,
    page: PageSize,
    gate: Gate<O>,
}

impl<O: PageObserver> fmt::Debug for Tracker<O> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut regions = 0;
        self.gate.for_each_region(|_| regions += 1);
        f.debug_struct("Tracker").field("regions", &regions).finish_non_exhaustive()
    }
}

impl<O: PageObserver> Tracker<O> {
    /// A tracker without regions that tells `observer`; no page becomes checked.
    pub fn new(observer: Arc<O>) -> Self {
        Self::with_policy(observer, Arc::new(Adaptive::new()))
    }

    /// A tracker with `policy` for its pages.
    pub fn with_policy(observer: Arc<O>, policy: Arc<dyn Policy>) -> Self {
        Self::with_counters(observer, policy, Arc::default())
    }

    pub(crate) fn with_counters(observer: Arc<O>, policy: Arc<dyn Policy>, counters: Arc<Counters>) -> Self {
        Self { wiring: Wiring { observer, counters, policy }, page: PageSize::host(), gate: Gate::default() }
    }

    /// All counters so far; the code cache's own counters are 0 here.
    pub fn stats(&self) -> Stats {
        self.wiring.counters.snapshot()
    }

    /// The histograms so far.
    pub fn histograms(&self) -> Histograms {
        self.wiring.counters.histograms.snapshot()
    }

    /// The page size of this host.
    pub fn page_size(&self) -> PageSize {
        self.page
    }

    /// Starts to track `memory`, which the guest sees at `guest`. Its pages are open. The
    /// tracker keeps the memory alive.
    ///
    /// # Errors
    ///
    /// Those of [`Tracker::add_region`].
    #[allow(unsafe_code)]
    pub fn add_memory(&self, guest: GuestAddr, memory: Arc<GuestMemory>, mode: Mode) -> Result<(), Error> {
        let options = RegionOptions::new(guest, memory.range(), mode);
        // SAFETY: the region keeps the memory. Nothing safe unmaps or replaces a part of it.
        unsafe { self.add_region_with(options, Some(memory)) }
    }

    /// Starts to track a region of the embedder's own memory. Its pages are open.
    ///
    /// # Safety
    ///
    /// The host range is mapped as guest memory and stays so until [`Tracker::remove_region`]
    /// or the tracker's end. (The tracker of a [`CodeCache`](crate::CodeCache) ends with its
    /// last clone, vCPU and ticket.) Parts of the range are replaced or unmapped only under
    /// [`Tracker::change_mapping`]. The library takes the write permission of its pages away
    /// and gives it back. A page is readable, and stays so, while a translator reads it by
    /// [`Ticket::read`](crate::Ticket::read).
    ///
    /// # Errors
    ///
    /// A range that overlaps another region's or is not aligned; [`Error::NotMapped`] if a part
    /// of it is not mapped; a mode that is not available here; a mapping that the mode cannot
    /// track; one region more than the process may have
    /// ([`MAX_REGIONS`](protection::MAX_REGIONS)); a thread that blocks the signal by which the
    /// mode's faults arrive.
    #[allow(unsafe_code)]
    pub unsafe fn add_region(&self, options: RegionOptions) -> Result<(), Error> {
        // SAFETY: the caller's.
        unsafe { self.add_region_with(options, None) }
    }

    /// # Safety
    ///
    /// That of [`Tracker::add_region`], if the region does not keep its memory itself.
    #[allow(unsafe_code)]
    unsafe fn add_region_with(&self, options: RegionOptions, memory: Option<Arc<GuestMemory>>) -> Result<(), Error> {
        let RegionOptions { guest, host, mode, access, embedder_owns_signals } = options;
        let options = protection::Options { embedder_owns_signals };
        self.add_region_on(guest, host, access, options, memory, || {
            must_be_mapped(host, self.page)?;
            protection::open(mode, self.page, options)
        })
    }

    /// [`Tracker::add_region`] on a userfaultfd that the embedder has opened, by
    /// [`open_uffd`](protection::open_uffd) or with [`uffd_features`](protection::uffd_features).
    /// The region owns it from now on: open one for each region.
    ///
    /// # Safety
    ///
    /// That of [`Tracker::add_region`]. Keep no copy of the descriptor, in this process or in
    /// another: as a last resort the library opens all pages by closing the last descriptor.
    ///
    /// # Errors
    ///
    /// Those of [`Tracker::add_region`]; [`Error::BadArgument`] for a descriptor that was not
    /// opened with the features of the mode, and for a mode that uses none.
    #[cfg(feature = "userfaultfd")]
    #[allow(unsafe_code)]
    pub unsafe fn add_region_on_uffd(&self, options: RegionOptions, uffd: userfaultfd::Uffd) -> Result<(), Error> {
        let RegionOptions { guest, host, mode, access, embedder_owns_signals } = options;
        let options = protection::Options { embedder_owns_signals };
        self.add_region_on(guest, host, access, options, None, || {
            must_be_mapped(host, self.page)?;
            protection::open_on(uffd, mode, self.page, options)
        })
    }

    /// [`Tracker::add_region`] on a mechanism of the caller's choice.
    pub(crate) fn add_region_on(
        &self,
        guest: GuestAddr,
        host: HostRange,
        access: Access,
        options: protection::Options,
        memory: Option<Arc<GuestMemory>>,
        open: impl FnOnce() -> Result<Arc<dyn Protection>, Error>,
    ) -> Result<(), Error> {
        let bad = |why| Error::BadRange { start: guest.0, len: host.len() as u64, why };
        let Ok(Some(span)) = Span::new(guest.0, host.len() as u64) else {
            return Err(bad("a region ends with the 64-bit space of the guest at the latest"));
        };
        if guest.0 & (self.page.bytes() as u64 - 1) != 0 {
            return Err(bad("a region starts on a page of the guest"));
        }
        self.gate.check_moves()?;
        // Under no lock: this calls code of the embedder's.
        let limits = self.wiring.policy.limits();
        let space = &mut *self.gate.write();
        let overlaps = |tracked: &Tracked<O>| tracked.region.host().intersection(host).is_some();
        if space.within(span).next().is_some() || space.regions.iter().any(overlaps) {
            return Err(bad("it overlaps a region that is tracked already"));
        }
        let region = Region::new(guest, host, self.page, open()?, options, limits, self.wiring.clone())?;
        let region = Arc::new(region.keeping(memory));
        region.attach_all(access)?;
        space.add(region);
        Ok(())
    }

    /// Stops tracking the region that starts at `guest`. Its translations become unreachable,
    /// through other views of its bytes too. No writer stays asleep, and the memory is the
    /// embedder's alone. The region's views and holds are forgotten.
    ///
    /// # Errors
    ///
    /// [`Error::BadArgument`] if no region starts there. After any other error the region is
    /// removed all the same: no translation of it can be reached, and as far as the system
    /// allowed it is no longer tracked. If `membarrier` is refused its pages are open too, and
    /// a thread that runs a block of it may go on into another one once.
    pub fn remove_region(&self, guest: GuestAddr) -> Result<(), Error> {
        self.gate.check_moves()?;
        let space = &mut *self.gate.write();
        let at = space
            .regions
            .iter()
            .position(|tracked| tracked.region.span().first() == guest.0)
            .ok_or(Error::BadArgument("no tracked region starts at this address"))?;
        let region = space.regions.swap_remove(at).region;
        space.views.remove(region.span());
        region.retire()
    }

    /// Stops tracking every region.
    pub(crate) fn clear(&self) {
        for region in self.gate.take_regions() {
            // A mechanism that fails to detach has lost the region. Nothing more can be done,
            // and no translation begins in it.
            let _ = region.retire();
        }
    }

    /// Whether the calling thread holds the guard of a fork ([`Tracker::before_fork`]). If so,
    /// it would wait for itself in a call that needs the tracker.
    pub fn stands_still_here(&self) -> bool {
        self.gate.stands_still_here()
    }

    /// Panics if the calling thread holds the guard of a fork.
    #[track_caller]
    pub(crate) fn assert_moves(&self) {
        self.gate.assert_moves();
    }

    /// The mechanism that learns of writes at `guest`; `None` outside every region.
    pub fn mode_at(&self, guest: GuestAddr) -> Option<Mode> {
        let mut mode = None;
        self.gate.for_each_region(|region| {
            if region.contains(guest) {
                mode = Some(region.mode());
            }
        });
        mode
    }

    /// Protects the page that holds `guest` for a translator.
    ///
    /// # Errors
    ///
    /// [`BeginError::Busy`]: a write is going on; interpret and come back.
    /// [`BeginError::Failed`]: no region, a mapping there that could not be tracked
    /// ([`MappingChange::finish_replaced`]), or the kernel refused.
    pub fn begin(&self, guest: GuestAddr) -> Result<PageClaim<O>, BeginError> {
        self.gate.check_moves()?;
        let space = self.gate.read();
        let Tracked { region, refused, .. } = space.at(guest)?;
        let page = region.page_of(guest);
        if refused.contains(page.0) {
            let why = "the mapping there could not be tracked, as the end of its change said: map something else";
            return Err(BeginError::Failed(Error::BadRange { start: guest.0, len: 1, why }));
        }
        let begun = region.begin(page)?;
        Ok(PageClaim { region: region.clone(), page, begun })
    }

    /// Copies the bytes at `guest`, which lie on the page of `claim`.
    ///
    /// # Errors
    ///
    /// [`Error::NotTracked`] if the claim's region is no longer tracked.
    pub(crate) fn read(&self, claim: &PageClaim<O>, guest: GuestAddr, into: &mut [u8]) -> Result<(), Error> {
        self.gate.check_moves()?;
        // The region cannot be removed meanwhile.
        let space = self.gate.read();
        let tracked = space.at(guest)?;
        if !Arc::ptr_eq(&tracked.region, &claim.region) {
            return Err(Error::NotTracked { start: guest.0, len: into.len() as u64 });
        }
        claim.read(guest, into);
        Ok(())
    }

    /// The observer's data for the page that holds `guest`; `None` if no translation was ever
    /// begun on the page or its neighbours.
    pub fn data(&self, guest: GuestAddr) -> Option<PageData<O>> {
        let mut found = None;
        self.gate.for_each_region(|region| {
            if region.contains(guest) {
                found = Some(region.clone());
            }
        });
        let region = found?;
        let page = region.page_of(guest);
        region.pages.get(page)?;
        Some(PageData { region, page })
    }

    /// The other guest pages that show the bytes of the page that holds `guest`. A translator
    /// begins on each of these too, *after* the page itself: a store through any of them
    /// changes the bytes.
    ///
    /// # Panics
    ///
    /// If this thread holds the guard of a fork ([`Tracker::before_fork`]).
    #[track_caller]
    pub fn aliases(&self, guest: GuestAddr) -> Vec<GuestAddr> {
        self.gate.aliases(Span::page_of(guest.0, self.page.bytes() as u64))
    }

    /// The numbers of the descriptors that the regions keep open. In some emulators the guest
    /// shares its descriptors with the process. Such an emulator keeps the guest from closing
    /// or replacing these: once all of a region's are gone, so is the protection of its pages.
    pub fn descriptors(&self) -> Vec<RawFd> {
        let mut descriptors = Vec::new();
        self.gate.for_each_region(|region| descriptors.extend(region.protection.descriptors()));
        descriptors
    }

    /// Protects cooled checked pages again, as the policy says, and notices a lost mechanism
    /// (all its descriptors closed, its thread killed). Call it from a timer, a few times a
    /// second. It takes one or two cheap system calls a region, and looks at the pages only if
    /// some are checked.
    ///
    /// If the policy panics, every region is still looked at, and then the panic goes on.
    ///
    /// # Panics
    ///
    /// If this thread holds the guard of a fork ([`Tracker::before_fork`]).
    #[track_caller]
    pub fn tend(&self) {
        let mut panics = FirstPanic::default();
        self.gate.read().regions.iter().for_each(|tracked| tracked.region.tend(&mut panics));
        panics.resume();
    }
}

/// Called before anything is allocated for the region: an error of tables that are too large
/// would say less.
fn must_be_mapped(host: HostRange, page: PageSize) -> Result<(), Error> {
    match first_hole(host, page) {
        Some(HostAddr(hole)) => Err(Error::NotMapped { start: host.start().0, len: host.len(), hole }),
        None => Ok(()),
    }
}

impl<O: PageObserver> Drop for Tracker<O> {
    fn drop(&mut self) {
        self.clear();
    }
}
