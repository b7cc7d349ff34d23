//! The tracker: protects guest pages, learns of writes to them and tells an
//! observer. It stands without the code cache, for an emulator that has one of
//! its own.
//!
//! # A translation, as the tracker sees it
//!
//! 1. [`Tracker::begin`] protects the page and returns a [`PageClaim`].
//! 2. Read the guest's bytes and translate. Not before: what is read before the
//!    protection may change unseen.
//! 3. Enter the translation wherever [`PageObserver::written`] finds it, then ask
//!    [`PageClaim::is_current`]: only if it says yes may the translation be
//!    reached. A write that comes later finds it; one that came earlier moved the
//!    generation.
//!
//! When a write arrives, [`PageObserver::written`] runs before the store retires
//! (synchronous modes), or before [`Tracker::sync`] returns (deferred).
//!
//! # Writes that the kernel cannot tell of
//!
//! [`Tracker::announce_write`] for writes that the kernel makes for the guest,
//! [`Tracker::change_mapping`] for mmap, munmap and the like, and
//! [`Tracker::invalidate`] for bytes that changed behind the tracker's back.

mod harvest;
mod region;
mod repeat;

use std::fmt;
use std::ops::Range;

pub(crate) use region::Region;

use crate::addr::{GuestAddr, HostAddr, HostRange, PageSize};
use crate::error::Error;
use crate::page_table::{Busy, Generation, PageDesc};
use crate::protection::{self, Access, KernelWrites, Mode, Protection};
use crate::stats::{Counters, Stats};
use crate::sync::{Arc, Ordering, Rule, RwLock, RwLockReadGuard, fence, left_out};

/// Why a translator is told that the bytes of a page changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Cause {
    /// A store hit the protected page and is about to retire.
    Store {
        /// Where it faulted. Not its extent, which nobody knows here.
        byte: GuestAddr,
        /// The host instruction that stored, where it is known.
        pc: Option<HostAddr>,
        /// Kernel thread id of the storing thread where another thread tells of
        /// it; 0 where the storing thread itself does, and where it is not known.
        tid: u32,
    },
    /// A harvest found the page written.
    Harvest,
    /// It was announced: a write by the kernel, a change of the mapping.
    Announced,
    /// The page is tracked no more.
    Lost,
}

/// What [`PageObserver::written`] is told.
#[derive(Clone, Copy, Debug)]
pub struct PageWrite {
    /// First byte of the page.
    pub page: GuestAddr,
    /// How it was learned of.
    pub cause: Cause,
}

/// Who makes unreachable what was derived from a page.
///
/// # Safety
///
/// `written` runs in signal handlers, by any number of threads at once: it is
/// async-signal-safe (no lock, no allocation, no thread-local, no panic, no
/// access to tracked memory, errno kept).
#[allow(unsafe_code)]
pub unsafe trait PageObserver: Send + Sync + 'static {
    /// What it keeps for each page.
    type Data: Default + Send + Sync;

    /// The bytes of a page are about to change or have changed: when this
    /// returns, nothing that was derived from them can be reached.
    fn written(&self, data: &Self::Data, write: &PageWrite);
}

/// Why a page cannot be translated from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BeginError {
    /// Not just now: interpret the instruction, and come back.
    Busy(Busy),
    /// Not at all.
    Failed(Error),
}

impl fmt::Display for BeginError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Busy(busy) => write!(f, "the page is busy: {busy:?}"),
            Self::Failed(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for BeginError {}

impl From<Error> for BeginError {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

/// A page that was protected for a translator.
pub struct PageClaim<O: PageObserver> {
    region: Arc<Region<O>>,
    /// Points into the table of `region`, which the claim keeps.
    page: crate::addr::PageIndex,
    generation: Generation,
}

impl<O: PageObserver> fmt::Debug for PageClaim<O> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PageClaim").field("page", &self.guest_page()).field("generation", &self.generation).finish()
    }
}

impl<O: PageObserver> PageClaim<O> {
    /// First byte of the page as the guest sees it.
    pub fn guest_page(&self) -> GuestAddr {
        self.region.guest_of(self.page)
    }

    /// The page in this process.
    pub fn host_page(&self) -> HostRange {
        let start = self.region.host().start().0 + (self.page.0 << self.region.page_size().shift());
        HostRange::page_of(HostAddr(start), self.region.page_size())
    }

    /// How writes to it are learned of.
    pub fn mode(&self) -> Mode {
        self.region.mode()
    }

    /// What the observer keeps for the page.
    pub fn data(&self) -> &O::Data {
        &self.desc().data
    }

    fn desc(&self) -> &PageDesc<O::Data> {
        // Claims are made from descriptors, which stay as long as their region.
        self.region.pages.get(self.page).unwrap_or_else(|| unreachable!("a claimed page has a descriptor"))
    }

    /// Whether no write came since the page was claimed. The translation must
    /// have been entered where the observer finds it before this is asked.
    pub fn is_current(&self) -> bool {
        if !left_out(Rule::FenceBeforeGenerations) {
            fence(Ordering::SeqCst);
        }
        self.desc().word.holds(self.generation)
    }
}

/// What a region is made of.
#[derive(Clone, Copy, Debug)]
pub struct RegionOptions {
    /// Where the guest sees it. A multiple of the page size.
    pub guest: GuestAddr,
    /// Where it lies in this process; mapped, at least with PROT_NONE.
    pub host: HostRange,
    /// How writes to it are learned of.
    pub mode: Mode,
    /// What the guest may do with it as it is mapped now. Later changes go through
    /// [`Tracker::set_access`].
    pub access: Access,
    /// The embedder's own handlers of SIGBUS and SIGSEGV call
    /// [`protection::handle_fault`]: the library installs none.
    pub embedder_owns_signals: bool,
}

/// Protects pages and tells `O` of writes to them.
pub struct Tracker<O: PageObserver> {
    observer: Arc<O>,
    page: PageSize,
    counters: Arc<Counters>,
    regions: RwLock<Vec<Arc<Region<O>>>>,
}

impl<O: PageObserver> fmt::Debug for Tracker<O> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tracker").field("regions", &self.read_regions().len()).finish_non_exhaustive()
    }
}

impl<O: PageObserver> Tracker<O> {
    /// A tracker without regions that tells `observer`.
    pub fn new(observer: Arc<O>) -> Self {
        Self::with_counters(observer, Arc::default())
    }

    pub(crate) fn with_counters(observer: Arc<O>, counters: Arc<Counters>) -> Self {
        Self { observer, page: PageSize::host(), counters, regions: RwLock::new(Vec::new()) }
    }

    /// What went on so far; the code cache's own counters are 0 here.
    pub fn stats(&self) -> Stats {
        self.counters.snapshot()
    }

    /// The page size of this host.
    pub fn page_size(&self) -> PageSize {
        self.page
    }

    fn read_regions(&self) -> RwLockReadGuard<'_, Vec<Arc<Region<O>>>> {
        self.regions.read().unwrap_or_else(|poison| poison.into_inner())
    }

    /// Starts to track a region. Its pages are open.
    ///
    /// # Safety
    ///
    /// The host range is mapped as guest memory and stays so until
    /// [`Tracker::remove_region`] or the tracker's end; parts of it are replaced
    /// or unmapped only under [`Tracker::change_mapping`]. The library takes the
    /// write permission of its pages away and gives it back.
    ///
    /// # Errors
    ///
    /// A range that overlaps another region's or is not aligned, a mode that
    /// cannot be had here, a mapping that the mode cannot track.
    #[allow(unsafe_code)]
    pub unsafe fn add_region(&self, options: RegionOptions) -> Result<(), Error> {
        let RegionOptions { guest, host, mode, access, embedder_owns_signals } = options;
        let open = || protection::open(mode, self.page, protection::Options { embedder_owns_signals });
        self.add_region_on(guest, host, access, open)
    }

    /// [`Tracker::add_region`] on a mechanism of the caller's choice.
    pub(crate) fn add_region_on(
        &self,
        guest: GuestAddr,
        host: HostRange,
        access: Access,
        open: impl FnOnce() -> Result<Arc<dyn Protection>, Error>,
    ) -> Result<(), Error> {
        let bad = |why| Error::BadRange { start: guest.0, len: host.len() as u64, why };
        if guest.0 & (self.page.bytes() as u64 - 1) != 0 || guest.checked_add(host.len() as u64).is_none() {
            return Err(bad("a region starts on a page of the guest and does not wrap"));
        }
        let mut regions = self.regions.write().unwrap_or_else(|poison| poison.into_inner());
        let end = guest.0 + host.len() as u64;
        for other in regions.iter() {
            if other.pages_within(guest.0, end).is_some() || other.host().intersection(host).is_some() {
                return Err(bad("it overlaps a region that is tracked already"));
            }
        }
        let region = Region::new(guest, host, self.page, open()?, self.observer.clone(), self.counters.clone());
        let region = Arc::new(region);
        region.attach(host, access)?;
        regions.push(region);
        Ok(())
    }

    /// Stops tracking the region that starts at `guest`: what was translated
    /// from it becomes unreachable, no writer stays asleep, the memory is the
    /// embedder's alone.
    ///
    /// # Errors
    ///
    /// [`Error::BadArgument`] where no region starts there.
    pub fn remove_region(&self, guest: GuestAddr) -> Result<(), Error> {
        let mut regions = self.regions.write().unwrap_or_else(|poison| poison.into_inner());
        let at = regions
            .iter()
            .position(|region| region.guest_of(crate::addr::PageIndex(0)) == guest)
            .ok_or(Error::BadArgument("no tracked region starts at this address"))?;
        let region = regions.swap_remove(at);
        drop(regions);
        region.retire()
    }

    /// Stops tracking every region.
    pub(crate) fn clear(&self) {
        let regions = std::mem::take(&mut *self.regions.write().unwrap_or_else(|poison| poison.into_inner()));
        for region in regions {
            // A mechanism that fails to detach has lost the region: nothing more
            // can be done for it, and nothing is translated from it.
            let _ = region.retire();
        }
    }

    fn region_at(&self, guest: GuestAddr) -> Option<Arc<Region<O>>> {
        self.read_regions().iter().find(|region| region.contains(guest)).cloned()
    }

    /// How writes at `guest` are learned of; `None` outside every region.
    pub fn mode_at(&self, guest: GuestAddr) -> Option<Mode> {
        self.region_at(guest).map(|region| region.mode())
    }

    /// Protects the page that holds `guest` for a translator.
    ///
    /// # Errors
    ///
    /// [`BeginError::Busy`]: a write is going on; interpret and come back.
    /// [`BeginError::Failed`]: no region, or the kernel refused.
    pub fn begin(&self, guest: GuestAddr) -> Result<PageClaim<O>, BeginError> {
        let region = self.region_at(guest).ok_or(Error::BadRange {
            start: guest.0,
            len: 1,
            why: "no tracked region holds this address",
        })?;
        let page = region.page_of(guest);
        let (_, generation) = region.begin(page)?;
        Ok(PageClaim { region, page, generation })
    }

    /// Calls `each` with every region that has bytes in the range and its pages.
    fn for_regions(
        &self,
        start: GuestAddr,
        len_bytes: u64,
        mut each: impl FnMut(&Arc<Region<O>>, Range<usize>) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let end = start.checked_add(len_bytes).ok_or(Error::BadRange {
            start: start.0,
            len: len_bytes,
            why: "the range wraps",
        })?;
        let mut done = Ok(());
        for region in self.read_regions().iter() {
            if let Some(pages) = region.pages_within(start.0, end.0) {
                done = done.and(each(region, pages));
            }
        }
        done
    }

    /// The guest announces that code may have changed: when this returns,
    /// nothing that was derived from bytes written before the call in a deferred
    /// region can be reached. Costs nothing in the other regions.
    ///
    /// # Errors
    ///
    /// The kernel could not say what was written; then everything in the range
    /// that was asked about counts as written.
    pub fn sync(&self) -> Result<(), Error> {
        self.sync_range(GuestAddr(0), u64::MAX)
    }

    /// [`Tracker::sync`] for `len_bytes` from `start`.
    ///
    /// # Errors
    ///
    /// As [`Tracker::sync`].
    pub fn sync_range(&self, start: GuestAddr, len_bytes: u64) -> Result<(), Error> {
        self.for_regions(start, len_bytes, |region, pages| match region.mode() {
            Mode::Deferred => region.sync(pages),
            _ => Ok(()),
        })
    }

    /// The bytes changed behind the tracker's back (by the host through another
    /// view, by a debugger, by a device): when this returns, nothing that was
    /// derived from the pages in the range can be reached.
    ///
    /// # Errors
    ///
    /// [`Error::BadRange`] where the range wraps.
    pub fn invalidate(&self, start: GuestAddr, len_bytes: u64) -> Result<(), Error> {
        self.for_regions(start, len_bytes, |region, pages| {
            region.invalidate(pages);
            Ok(())
        })
    }

    /// The kernel is about to write `len_bytes` from `start` for the guest
    /// (`read`, an out parameter). Until the result is dropped the pages are
    /// writable and nothing is translated from them. Costs nothing where the
    /// kernel's writes are tracked like the guest's.
    ///
    /// Not to be called in a signal handler.
    ///
    /// # Errors
    ///
    /// [`Error::BadRange`] where the range wraps; a page that could not be made
    /// writable.
    pub fn announce_write(&self, start: GuestAddr, len_bytes: u64) -> Result<Held<O>, Error> {
        let mut held = Held(Vec::new());
        self.for_regions(start, len_bytes, |region, pages| {
            if region.protection.kernel_writes() == KernelWrites::Refused {
                held.hold(region, pages)?;
            }
            Ok(())
        })?;
        Ok(held)
    }

    /// The embedder is about to change what is mapped at `len_bytes` from
    /// `start`, or to throw its contents away. When this returns nothing that was
    /// derived from the range can be reached, and nothing is translated from it
    /// until the result is dropped or finished.
    ///
    /// # Errors
    ///
    /// [`Error::BadRange`] where the range wraps; a page that could not be made
    /// writable.
    pub fn change_mapping(&self, start: GuestAddr, len_bytes: u64) -> Result<MappingChange<O>, Error> {
        let mut held = Held(Vec::new());
        self.for_regions(start, len_bytes, |region, pages| {
            held.hold(region, pages.clone())?;
            // Not before: until then blocks lie on them that a harvest by
            // another thread has to find, and a begin may enter one again.
            region.forget(pages);
            Ok(())
        })?;
        Ok(MappingChange(held))
    }

    /// Carries out the guest's own mprotect: what the guest may do with the
    /// range, without losing the tracking's protection. Bounds are rounded to
    /// whole pages.
    ///
    /// # Errors
    ///
    /// What mprotect answered.
    pub fn set_access(&self, start: GuestAddr, len_bytes: u64, access: Access) -> Result<(), Error> {
        self.for_regions(start, len_bytes, |region, pages| {
            region.protection.set_access(region.host_of(&pages)?, access)
        })
    }
}

/// Pages that are held writable and from which nothing is translated.
#[derive(Debug)]
#[must_use = "the pages are held until this is dropped"]
pub struct Held<O: PageObserver>(Vec<(Arc<Region<O>>, Range<usize>)>);

impl<O: PageObserver> Held<O> {
    fn hold(&mut self, region: &Arc<Region<O>>, pages: Range<usize>) -> Result<(), Error> {
        // In the list first: what a failed hold entered is released as well.
        self.0.push((region.clone(), pages.clone()));
        region.hold(pages)
    }
}

impl<O: PageObserver> Drop for Held<O> {
    fn drop(&mut self) {
        for (region, pages) in self.0.drain(..) {
            region.pages.release(pages);
        }
    }
}

/// A change of mappings that is going on: see [`Tracker::change_mapping`].
#[derive(Debug)]
#[must_use = "nothing is translated from the range until this is finished or dropped"]
pub struct MappingChange<O: PageObserver>(Held<O>);

impl<O: PageObserver> MappingChange<O> {
    /// The mapping was replaced (`MAP_FIXED`, `mremap`) by one with `access`:
    /// tracks the new one.
    ///
    /// # Errors
    ///
    /// The new mapping cannot be tracked in the region's mode. Nothing can be
    /// translated from it then.
    pub fn finish_replaced(self, access: Access) -> Result<(), Error> {
        for (region, pages) in &self.0.0 {
            region.attach(region.host_of(pages)?, access)?;
        }
        Ok(())
    }
}

impl<O: PageObserver> Drop for Tracker<O> {
    fn drop(&mut self) {
        self.clear();
    }
}
