//! The tracker: its policy, its observer and its regions.

use std::fmt;

use super::observer::{PageData, PageObserver};
use super::region::{Region, RegionOptions, Wiring};
use super::space::Gate;
use crate::addr::{GuestAddr, HostAddr, PageSize, Span};
use crate::error::Error;
use crate::memory::guest_memory::GuestMemory;
use crate::mode::Mode;
use crate::policy::{Adaptive, Policy};
#[cfg(feature = "userfaultfd")]
use crate::protection;
use crate::protection::{Mechanisms, Protection};
use crate::stats::{Counters, Histograms, Stats};
use crate::sync::Arc;
use crate::sys::mmap::first_hole;

/// Protects pages and tells its observer of writes to them. `D` is the observer's data for a
/// page.
pub struct Tracker<D: PageData> {
    pub(super) wiring: Wiring<D>,
    pub(super) page: PageSize,
    pub(super) gate: Gate<D>,
}

impl<D: PageData> fmt::Debug for Tracker<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut regions = 0;
        self.gate.for_each_region(|_| regions += 1);
        f.debug_struct("Tracker").field("regions", &regions).finish_non_exhaustive()
    }
}

impl<D: PageData> Tracker<D> {
    /// A tracker without regions that tells `observer`; no page becomes self-checking.
    pub fn new(observer: Arc<impl PageObserver<Data = D>>) -> Self {
        Self::with_policy(observer, Arc::new(Adaptive::new()))
    }

    /// A tracker with `policy` for its pages.
    pub fn with_policy(observer: Arc<impl PageObserver<Data = D>>, policy: Arc<dyn Policy>) -> Self {
        Self::with_counters(observer, policy, Arc::default())
    }

    pub(crate) fn with_counters(
        observer: Arc<impl PageObserver<Data = D>>,
        policy: Arc<dyn Policy>,
        counters: Arc<Counters>,
    ) -> Self {
        Self { wiring: Wiring { observer, counters, policy }, page: PageSize::host(), gate: Gate::default() }
    }

    /// All counters so far; the code cache's own counters are 0 here.
    pub fn stats(&self) -> Stats {
        self.wiring.counters.snapshot()
    }

    /// The histograms so far.
    pub fn histograms(&self) -> Histograms {
        self.wiring.counters.histograms()
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
    /// last clone, vCPU and ticket. Of a [reserved](RegionOptions::reserved) region only the mappings
    /// that were declared are guest memory.) Parts of the range are replaced or unmapped only under
    /// [`Tracker::change_mapping`]. The library takes the write permission of its pages away
    /// and gives it back. A page is readable, and stays so, while a translator reads it by
    /// [`Ticket::read`](crate::Ticket::read).
    ///
    /// # Errors
    ///
    /// A range that overlaps another region's or is not aligned; [`Error::NotMapped`] if a part
    /// of it is not mapped; a mode that is not available here; a mapping that the mode cannot
    /// track; a thread that blocks the signal by which the mode's faults arrive.
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
        self.add_region_on(options, memory, |mechanisms| {
            must_be_mapped(options, self.page)?;
            mechanisms.open(options.mode, self.page, options.of_protection(), self.wiring.observer.fault_lock())
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
        self.add_region_on(options, None, |_| {
            must_be_mapped(options, self.page)?;
            protection::open_on(
                uffd,
                options.mode,
                self.page,
                options.of_protection(),
                self.wiring.observer.fault_lock(),
            )
        })
    }

    /// [`Tracker::add_region`] on a mechanism of the caller's choice: one of those that the regions
    /// share, or another.
    pub(crate) fn add_region_on(
        &self,
        options: RegionOptions,
        memory: Option<Arc<GuestMemory>>,
        open: impl FnOnce(&mut Mechanisms) -> Result<Arc<dyn Protection>, Error>,
    ) -> Result<(), Error> {
        let RegionOptions { guest, host, .. } = options;
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
        if space.within(span).next().is_some() || space.has_host(host) {
            return Err(bad("it overlaps a region that is tracked already"));
        }
        let protection = open(&mut space.mechanisms)?;
        let region = Region::new(options, self.page, protection.clone(), limits, self.wiring.clone());
        let tracked = region.map(|region| Arc::new(region.keeping(memory))).and_then(|region| {
            region.begin_tracking()?;
            Ok(region)
        });
        match tracked {
            Ok(region) => space.add(region),
            Err(error) => {
                space.mechanisms.give_back(&protection);
                return Err(error);
            }
        }
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
        let region = space.remove(guest).ok_or(Error::BadArgument("no tracked region starts at this address"))?;
        space.views.remove(region.span());
        let retired = region.retire();
        space.mechanisms.give_back(&region.protection);
        retired
    }

    /// Stops tracking every region.
    pub(crate) fn clear(&self) {
        let (regions, mut mechanisms) = self.gate.take_regions();
        for region in &regions {
            // A mechanism that fails to detach has lost the region. Nothing more can be done,
            // and no translation begins in it.
            let _ = region.retire();
        }
        regions.iter().for_each(|region| mechanisms.give_back(&region.protection));
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
}

/// Called before anything is allocated for the region: an error of tables that are too large
/// would say less.
fn must_be_mapped(options: RegionOptions, page: PageSize) -> Result<(), Error> {
    let host = options.host;
    match if options.reserved { None } else { first_hole(host, page) } {
        Some(HostAddr(hole)) => Err(Error::NotMapped { start: host.start().0, len: host.len(), hole }),
        None => Ok(()),
    }
}

impl<D: PageData> Drop for Tracker<D> {
    fn drop(&mut self) {
        self.clear();
    }
}
