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
mod views;

use std::fmt;
use std::ops::Range;
use std::sync::PoisonError;

pub(crate) use region::Region;
pub use views::SharedMemory;

use views::Views;

use crate::addr::{GuestAddr, HostAddr, HostRange, PageSize};
use crate::error::Error;
use crate::page_table::{Busy, Generation, PageDesc};
use crate::protection::{self, Access, KernelWrites, Mode, Protection};
use crate::stats::{Counters, Stats};
use crate::sync::{Arc, Ordering, Rule, RwLock, RwLockReadGuard, RwLockWriteGuard, fence, left_out};

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

/// The regions of a tracker. It is also the gate of a fork: whoever takes a lock
/// of the tracker or of a mechanism has this one for reading.
struct Regions<O: PageObserver>(Arc<RwLock<Space<O>>>);

/// What a tracker knows of guest memory.
#[derive(Debug)]
struct Space<O: PageObserver> {
    regions: Vec<Arc<Region<O>>>,
    views: Views,
}

impl<O: PageObserver> Default for Regions<O> {
    fn default() -> Self {
        Self(Arc::new(RwLock::new(Space { regions: Vec::new(), views: Views::default() })))
    }
}

impl<O: PageObserver> Clone for Regions<O> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<O: PageObserver> fmt::Debug for Regions<O> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Regions")
    }
}

impl<O: PageObserver> Regions<O> {
    fn read(&self) -> RwLockReadGuard<'_, Space<O>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Space<O>> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<O: PageObserver> Space<O> {
    /// Writes a view down, then ends what was begun without knowing of it.
    fn declare(&mut self, range: Range<u64>, memory: SharedMemory) {
        self.views.insert(range.clone(), memory);
        for other in self.views.others(range) {
            for region in &self.regions {
                if let Some(pages) = region.pages_within(other.start, other.end) {
                    region.invalidate(pages);
                }
            }
        }
    }
}

/// Protects pages and tells `O` of writes to them.
pub struct Tracker<O: PageObserver> {
    observer: Arc<O>,
    page: PageSize,
    counters: Arc<Counters>,
    regions: Regions<O>,
}

impl<O: PageObserver> fmt::Debug for Tracker<O> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tracker").field("regions", &self.regions.read().regions.len()).finish_non_exhaustive()
    }
}

impl<O: PageObserver> Tracker<O> {
    /// A tracker without regions that tells `observer`.
    pub fn new(observer: Arc<O>) -> Self {
        Self::with_counters(observer, Arc::default())
    }

    pub(crate) fn with_counters(observer: Arc<O>, counters: Arc<Counters>) -> Self {
        Self { observer, page: PageSize::host(), counters, regions: Regions::default() }
    }

    /// What went on so far; the code cache's own counters are 0 here.
    pub fn stats(&self) -> Stats {
        self.counters.snapshot()
    }

    /// The page size of this host.
    pub fn page_size(&self) -> PageSize {
        self.page
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
        let options = protection::Options { embedder_owns_signals };
        self.add_region_on(guest, host, access, options, || protection::open(mode, self.page, options))
    }

    /// [`Tracker::add_region`] on a mechanism of the caller's choice.
    pub(crate) fn add_region_on(
        &self,
        guest: GuestAddr,
        host: HostRange,
        access: Access,
        options: protection::Options,
        open: impl FnOnce() -> Result<Arc<dyn Protection>, Error>,
    ) -> Result<(), Error> {
        let bad = |why| Error::BadRange { start: guest.0, len: host.len() as u64, why };
        if guest.0 & (self.page.bytes() as u64 - 1) != 0 || guest.checked_add(host.len() as u64).is_none() {
            return Err(bad("a region starts on a page of the guest and does not wrap"));
        }
        let regions = &mut self.regions.write().regions;
        let end = guest.0 + host.len() as u64;
        for other in regions.iter() {
            if other.pages_within(guest.0, end).is_some() || other.host().intersection(host).is_some() {
                return Err(bad("it overlaps a region that is tracked already"));
            }
        }
        let (observer, counters) = (self.observer.clone(), self.counters.clone());
        let region = Arc::new(Region::new(guest, host, self.page, open()?, options, observer, counters));
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
        let space = &mut *self.regions.write();
        let at = space
            .regions
            .iter()
            .position(|region| region.guest_of(crate::addr::PageIndex(0)) == guest)
            .ok_or(Error::BadArgument("no tracked region starts at this address"))?;
        let region = space.regions.swap_remove(at);
        space.views.remove(guest.0..guest.0 + region.host().len() as u64);
        region.retire()
    }

    /// Stops tracking every region.
    pub(crate) fn clear(&self) {
        for region in self.regions.write().regions.drain(..) {
            // A mechanism that fails to detach has lost the region: nothing more
            // can be done for it, and nothing is translated from it.
            let _ = region.retire();
        }
    }

    /// How writes at `guest` are learned of; `None` outside every region.
    pub fn mode_at(&self, guest: GuestAddr) -> Option<Mode> {
        self.regions.read().regions.iter().find(|region| region.contains(guest)).map(|region| region.mode())
    }

    /// Protects the page that holds `guest` for a translator.
    ///
    /// # Errors
    ///
    /// [`BeginError::Busy`]: a write is going on; interpret and come back.
    /// [`BeginError::Failed`]: no region, or the kernel refused.
    pub fn begin(&self, guest: GuestAddr) -> Result<PageClaim<O>, BeginError> {
        let regions = self.regions.read();
        let region = regions.regions.iter().find(|region| region.contains(guest)).ok_or(Error::BadRange {
            start: guest.0,
            len: 1,
            why: "no tracked region holds this address",
        })?;
        let page = region.page_of(guest);
        let (_, generation) = region.begin(page)?;
        Ok(PageClaim { region: region.clone(), page, generation })
    }

    /// The other guest pages that show the bytes of the page that holds `guest`.
    /// Who translates from a page begins on each of these too, *after* the page
    /// itself: a store through any of them changes the bytes.
    pub fn aliases(&self, guest: GuestAddr) -> Vec<GuestAddr> {
        let page = GuestAddr(self.page.floor(guest.0 as usize) as u64);
        self.regions.read().views.aliases(page, self.page.bytes() as u64)
    }

    /// Says that `len_bytes` from `start`, in a region and mapped already, show
    /// `memory`, which may be mapped elsewhere too. To be said of every mapping of
    /// memory that has several, before the guest can store to it.
    ///
    /// # Errors
    ///
    /// [`Error::BadRange`] where the range wraps or is not whole pages.
    pub fn declare_shared(&self, start: GuestAddr, len_bytes: u64, memory: SharedMemory) -> Result<(), Error> {
        let mask = self.page.bytes() as u64 - 1;
        let end = start.checked_add(len_bytes).filter(|_| (start.0 | len_bytes | memory.offset) & mask == 0);
        let Some(end) = end else {
            let why = "a view of shared memory is whole pages and does not wrap";
            return Err(Error::BadRange { start: start.0, len: len_bytes, why });
        };
        self.regions.write().declare(start.0..end.0, memory);
        Ok(())
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
        for region in self.regions.read().regions.iter() {
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
        let sync = |region: &Arc<Region<O>>, pages| match region.mode() {
            Mode::Deferred => region.sync(pages),
            _ => Ok(()),
        };
        // The bytes of the range may have been written through another view.
        let end = start.0.saturating_add(len_bytes);
        let others = self.regions.read().views.others(start.0..end);
        let mut done = self.for_regions(start, len_bytes, sync);
        for other in others {
            done = done.and(self.for_regions(GuestAddr(other.start), other.end - other.start, sync));
        }
        done
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
        let mut held = Held::new(&self.regions, start);
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
        let mut held = Held::new(&self.regions, start);
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
pub struct Held<O: PageObserver> {
    gate: Regions<O>,
    /// Where the range that was asked for begins.
    start: GuestAddr,
    holds: Vec<(Arc<Region<O>>, Range<usize>)>,
}

impl<O: PageObserver> Held<O> {
    fn new(gate: &Regions<O>, start: GuestAddr) -> Self {
        Self { gate: gate.clone(), start, holds: Vec::new() }
    }

    fn hold(&mut self, region: &Arc<Region<O>>, pages: Range<usize>) -> Result<(), Error> {
        // In the list first: what a failed hold entered is released as well.
        self.holds.push((region.clone(), pages.clone()));
        region.hold(pages)
    }
}

impl<O: PageObserver> Drop for Held<O> {
    fn drop(&mut self) {
        let _gate = self.gate.read();
        for (region, pages) in self.holds.drain(..) {
            region.pages.release(pages);
        }
    }
}

/// A change of mappings that is going on: see [`Tracker::change_mapping`].
#[derive(Debug)]
#[must_use = "nothing is translated from the range until this is finished or dropped"]
pub struct MappingChange<O: PageObserver>(Held<O>);

impl<O: PageObserver> MappingChange<O> {
    /// The mapping was replaced (`MAP_FIXED`, `mremap`) by one with `access`, of
    /// `shared` memory where it is not private: tracks the new one.
    ///
    /// # Errors
    ///
    /// The new mapping cannot be tracked in the region's mode. Nothing can be
    /// translated from it then.
    pub fn finish_replaced(self, access: Access, shared: Option<SharedMemory>) -> Result<(), Error> {
        let space = &mut *self.0.gate.write();
        let mut done = Ok(());
        for (region, pages) in &self.0.holds {
            let host = region.host_of(pages)?;
            let start = region.guest_of(crate::addr::PageIndex(pages.start)).0;
            let range = start..start + host.len() as u64;
            match shared {
                Some(memory) => {
                    let offset = memory.offset + (start - self.0.start.0);
                    space.declare(range, SharedMemory { offset, ..memory });
                }
                None => space.views.remove(range),
            }
            done = done.and(region.attach(host, access));
        }
        done
    }
}

impl<O: PageObserver> Drop for Tracker<O> {
    fn drop(&mut self) {
        self.clear();
    }
}

/// A tracker that stands still over a `fork`: see [`Tracker::before_fork`].
#[derive(Debug)]
#[must_use = "the tracker stands still until this is dropped"]
pub struct ForkGuard<'a, O: PageObserver>(RwLockWriteGuard<'a, Space<O>>);

impl<O: PageObserver> Tracker<O> {
    /// Called before `fork`: waits until no thread is inside the tracker. Until
    /// the guard is dropped, in the parent, or [`ForkGuard::after_fork_child`] is
    /// called, in the child, no other thread gets in; faults are handled.
    pub fn before_fork(&self) -> ForkGuard<'_, O> {
        ForkGuard(self.regions.write())
    }
}

impl<O: PageObserver> ForkGuard<'_, O> {
    /// In the child: everything that was derived from guest memory becomes
    /// unreachable, and the child's own memory is tracked from now on. What other
    /// threads of the parent held is released.
    ///
    /// # Errors
    ///
    /// A region that cannot be tracked here; nothing can be translated from it.
    pub fn after_fork_child(mut self) -> Result<(), Error> {
        let mut done = Ok(());
        for region in &mut self.0.regions {
            match region.continue_in_child() {
                Ok(child) => *region = child,
                Err(error) => done = Err(error),
            }
        }
        done
    }
}
