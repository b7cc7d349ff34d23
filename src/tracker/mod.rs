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
//! [`Tracker::prepare_kernel_write`] for writes that the kernel makes for the guest,
//! [`Tracker::prepare_unseen_write`] for those that no mode learns of,
//! [`Tracker::change_mapping`] for mmap, munmap and the like, and
//! [`Tracker::invalidate`] for bytes that changed behind the tracker's back.

mod census;
mod claim;
#[cfg(all(test, not(loom)))]
mod ending;
mod fork;
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
use std::ops::Range;
use std::os::fd::RawFd;

pub use census::{HotPage, PagesByState};
pub use claim::{BeginError, PageClaim};
pub use fork::ForkGuard;
pub(crate) use fork::Still;
pub use held::{Held, MappingChange};
pub(crate) use region::Region;
pub use views::SharedMemory;

use space::Gate;

use crate::addr::{GuestAddr, HostAddr, HostRange, PageSize};
use crate::error::Error;
use crate::page_table::HeldFor;
use crate::panics::FirstPanic;
use crate::policy::{Adaptive, Policy};
use crate::protection::{self, Access, KernelWrites, Mode, Protection};
use crate::stats::{Counters, Histograms, Stats};
use crate::sync::Arc;

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
    /// A stream of stores is about to reach the page: it was opened ahead.
    Ahead,
    /// Nothing was written: the page was checked and has cooled, and what is made
    /// from it from now on need not compare itself.
    Cooled,
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
/// `written` and `beside` run in signal handlers, by any number of threads at once:
/// they are async-signal-safe (no lock, no allocation, no thread-local, no panic, no
/// access to tracked memory, errno kept).
#[allow(unsafe_code)]
pub unsafe trait PageObserver: Send + Sync + 'static {
    /// What it keeps for each page.
    type Data: Default + Send + Sync;

    /// The bytes of a page are about to change or have changed: when this
    /// returns, nothing that was derived from them can be reached.
    fn written(&self, data: &Self::Data, write: &PageWrite);

    /// [`PageObserver::written`] for many pages that a harvest found, in no signal
    /// handler: together they may cost less than one by one.
    fn written_all(&self, writes: &[(&Self::Data, PageWrite)]) {
        writes.iter().for_each(|(data, write)| self.written(data, write));
    }

    /// The page is checked from now on: it stays writable, and its bytes change
    /// without further notice. When this returns, whatever was derived from it
    /// compares the bytes before each use, or cannot be reached.
    fn beside(&self, data: &Self::Data, write: &PageWrite) {
        self.written(data, write);
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

impl RegionOptions {
    /// Memory that the guest may read and write, with the library's signal handlers.
    pub const fn new(guest: GuestAddr, host: HostRange, mode: Mode) -> Self {
        Self { guest, host, mode, access: Access::ReadWrite, embedder_owns_signals: false }
    }
}

/// What a tracker's regions have in common.
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
        // Also under the guard of a fork, whose thread would wait for itself.
        let regions = (!self.gate.stands_still_here()).then(|| self.gate.read().regions.len());
        f.debug_struct("Tracker").field("regions", &regions).finish_non_exhaustive()
    }
}

impl<O: PageObserver> Tracker<O> {
    /// A tracker without regions that tells `observer`; no page becomes checked.
    pub fn new(observer: Arc<O>) -> Self {
        Self::with_policy(observer, Arc::new(Adaptive::new()))
    }

    /// A tracker whose pages are kept as `policy` says.
    pub fn with_policy(observer: Arc<O>, policy: Arc<dyn Policy>) -> Self {
        Self::with_counters(observer, policy, Arc::default())
    }

    pub(crate) fn with_counters(observer: Arc<O>, policy: Arc<dyn Policy>, counters: Arc<Counters>) -> Self {
        Self { wiring: Wiring { observer, counters, policy }, page: PageSize::host(), gate: Gate::default() }
    }

    /// What went on so far; the code cache's own counters are 0 here.
    pub fn stats(&self) -> Stats {
        self.wiring.counters.snapshot()
    }

    /// What went on so far, as histograms.
    pub fn histograms(&self) -> Histograms {
        self.wiring.counters.histograms.snapshot()
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
    /// [`Tracker::remove_region`] or the tracker's end (that of a
    /// [`CodeCache`](crate::CodeCache) is the end of its last clone, vCPU and ticket);
    /// parts of it are replaced
    /// or unmapped only under [`Tracker::change_mapping`]. The library takes the
    /// write permission of its pages away and gives it back.
    ///
    /// # Errors
    ///
    /// A range that overlaps another region's or is not aligned, a mode that
    /// cannot be had here, a mapping that the mode cannot track, one region more than
    /// [`MAX_REGIONS`](protection::MAX_REGIONS) of the process, a thread that blocks the
    /// signal by which the mode's faults arrive.
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
        self.gate.check_moves()?;
        // Under no lock: this is code of the embedder's.
        let limits = self.wiring.policy.limits();
        let regions = &mut self.gate.write().regions;
        let end = guest.0 + host.len() as u64;
        for other in regions.iter() {
            if other.pages_within(guest.0, end).is_some() || other.host().intersection(host).is_some() {
                return Err(bad("it overlaps a region that is tracked already"));
            }
        }
        let region = Region::new(guest, host, self.page, open()?, options, limits, self.wiring.clone())?;
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
    /// [`Error::BadArgument`] where no region starts there. After any other error the
    /// region is removed all the same: nothing made from it can be reached, and it is
    /// tracked no more, as far as the system let it.
    pub fn remove_region(&self, guest: GuestAddr) -> Result<(), Error> {
        self.gate.check_moves()?;
        let space = &mut *self.gate.write();
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
        for region in self.gate.write().regions.drain(..) {
            // A mechanism that fails to detach has lost the region: nothing more
            // can be done for it, and nothing is translated from it.
            let _ = region.retire();
        }
    }

    /// How writes at `guest` are learned of; `None` outside every region.
    pub fn mode_at(&self, guest: GuestAddr) -> Option<Mode> {
        self.gate.read().regions.iter().find(|region| region.contains(guest)).map(|region| region.mode())
    }

    /// Protects the page that holds `guest` for a translator.
    ///
    /// # Errors
    ///
    /// [`BeginError::Busy`]: a write is going on; interpret and come back.
    /// [`BeginError::Failed`]: no region, or the kernel refused.
    pub fn begin(&self, guest: GuestAddr) -> Result<PageClaim<O>, BeginError> {
        self.gate.check_moves()?;
        let space = self.gate.read();
        let region = space.regions.iter().find(|region| region.contains(guest)).ok_or(Error::BadRange {
            start: guest.0,
            len: 1,
            why: "no tracked region holds this address",
        })?;
        let page = region.page_of(guest);
        let begun = region.begin(page)?;
        Ok(PageClaim { region: region.clone(), page, begun })
    }

    /// The other guest pages that show the bytes of the page that holds `guest`.
    /// Who translates from a page begins on each of these too, *after* the page
    /// itself: a store through any of them changes the bytes.
    pub fn aliases(&self, guest: GuestAddr) -> Vec<GuestAddr> {
        let page = GuestAddr(self.page.floor(guest.0 as usize) as u64);
        self.gate.aliases(page, self.page.bytes() as u64)
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
        let is_whole = (start.0 | len_bytes | memory.offset) & mask == 0;
        let end = start.checked_add(len_bytes).filter(|_| is_whole && memory.offset.checked_add(len_bytes).is_some());
        let Some(end) = end else {
            let why = "a view of shared memory is whole pages and does not wrap";
            return Err(Error::BadRange { start: start.0, len: len_bytes, why });
        };
        self.gate.check_moves()?;
        self.gate.declare(&mut self.gate.write(), start.0..end.0, memory);
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
        self.gate.check_moves()?;
        let mut done = Ok(());
        for region in self.gate.read().regions.iter() {
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
        self.gate.check_moves()?;
        let others = self.gate.read().views.others(start.0..end);
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
    /// writable, and nothing is translated from them but blocks that compare
    /// themselves, where the policy has such. Costs nothing where the kernel's
    /// writes are tracked like the guest's, and next to nothing on pages that are
    /// open or checked already.
    ///
    /// Not to be called in a signal handler.
    ///
    /// # Errors
    ///
    /// [`Error::BadRange`] where the range wraps; a page that could not be made
    /// writable.
    pub fn prepare_kernel_write(&self, start: GuestAddr, len_bytes: u64) -> Result<Held<O>, Error> {
        let mut held = Held::new(&self.gate, HeldFor::Writing, start, len_bytes);
        self.for_regions(start, len_bytes, |region, pages| {
            if region.protection.kernel_writes() == KernelWrites::Refused {
                held.hold(region, pages)?;
            }
            Ok(())
        })?;
        Ok(held)
    }

    /// Somebody is about to write `len_bytes` from `start` in a way of which the
    /// kernel delivers no fault in any mode: into pages that were pinned (buffers
    /// registered with io_uring, aio and `O_DIRECT` that are under way), as a
    /// debugger, or at a thread's end (`clear_child_tid`, robust lists). Until the
    /// result is dropped the pages are held as by [`Tracker::prepare_kernel_write`],
    /// in every mode.
    ///
    /// Not to be called in a signal handler.
    ///
    /// # Errors
    ///
    /// [`Error::BadRange`] where the range wraps; a page that could not be made
    /// writable.
    pub fn prepare_unseen_write(&self, start: GuestAddr, len_bytes: u64) -> Result<Held<O>, Error> {
        let mut held = Held::new(&self.gate, HeldFor::Writing, start, len_bytes);
        self.for_regions(start, len_bytes, |region, pages| held.hold(region, pages))?;
        Ok(held)
    }

    /// The embedder is about to change what is mapped at `len_bytes` from
    /// `start`, or to throw its contents away. When this returns nothing that was
    /// derived from the range can be reached, and nothing is translated from it
    /// until the result is dropped or finished ([`MappingChange`] says which).
    ///
    /// Not to be called in a signal handler.
    ///
    /// # Errors
    ///
    /// [`Error::BadRange`] where the range wraps; a page that could not be made
    /// writable.
    pub fn change_mapping(&self, start: GuestAddr, len_bytes: u64) -> Result<MappingChange<O>, Error> {
        let mut held = Held::new(&self.gate, HeldFor::Change, start, len_bytes);
        self.for_regions(start, len_bytes, |region, pages| {
            held.hold(region, pages.clone())?;
            // Not before: until then blocks lie on them that a harvest by
            // another thread has to find, and a begin may enter one again.
            region.forget(pages);
            Ok(())
        })?;
        Ok(MappingChange::new(held))
    }

    /// Carries out the guest's own mprotect: what the guest may do with the
    /// range, without losing the tracking's protection. Bounds are rounded to
    /// whole pages.
    ///
    /// No block dies of it. Where the guest may not run what is there any more, hold
    /// [`Tracker::change_mapping`] over it.
    ///
    /// # Errors
    ///
    /// What mprotect answered.
    pub fn set_access(&self, start: GuestAddr, len_bytes: u64, access: Access) -> Result<(), Error> {
        self.for_regions(start, len_bytes, |region, pages| region.set_access(pages, access))
    }

    /// The numbers of the descriptors that the regions keep open. An emulator whose
    /// guest's descriptors are its own process's keeps the guest from closing these and
    /// from putting others there: once all of a region's are gone, so is the protection
    /// of its pages.
    pub fn descriptors(&self) -> Vec<RawFd> {
        self.gate.read().regions.iter().flat_map(|region| region.protection.descriptors()).collect()
    }

    /// Lets checked pages be protected again that have cooled, as the policy says, and
    /// notices a mechanism that is lost (all its descriptors closed, its thread killed).
    /// To be called now and then, some times a second, by whoever has a timer. It takes
    /// one or two cheap system calls a region, and looks at the pages where some are
    /// checked.
    ///
    /// If the policy panics, every region is looked at all the same, and then the panic
    /// goes on.
    pub fn tend(&self) {
        let mut panics = FirstPanic::default();
        self.gate.read().regions.iter().for_each(|region| region.tend(&mut panics));
        panics.resume();
    }
}

impl<O: PageObserver> Drop for Tracker<O> {
    fn drop(&mut self) {
        self.clear();
    }
}
