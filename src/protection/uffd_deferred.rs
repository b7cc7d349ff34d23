//! uffd-wp asynchronous: the kernel lets a store through and remembers it.
//!
//! With `UFFD_FEATURE_WP_ASYNC` a store to a protected page clears the page's
//! protection and goes on, without a report. One `PAGEMAP_SCAN` finds the pages that
//! were written and protects them again in the same step. The kernel's own writes and
//! regular file mappings are covered like everything else.
//!
//! Only the scan protects: `UFFDIO_WRITEPROTECT` on a page that was written since the
//! last scan would hide that write from the next one. A fresh range counts as written:
//! its first harvest reports all of it.

use std::os::fd::RawFd;
use std::sync::Arc;

use super::uffd_ranges::UffdRanges;
use super::{Access, FaultSink, KernelWrites, Mode, Opening, Protection};
use crate::addr::HostRange;
use crate::error::Error;
use crate::page_table::Permit;
use crate::sys::fault::Delivery;
use crate::sys::pagemap::Pagemap;
use crate::sys::uffd::Uffd;

#[derive(Debug)]
pub(super) struct UffdDeferred {
    ranges: UffdRanges,
    pagemap: Pagemap,
}

impl UffdDeferred {
    /// Takes a descriptor that was negotiated with `UFFD_FEATURE_WP_ASYNC`.
    pub(super) fn new(uffd: Uffd, pagemap: Pagemap) -> Self {
        Self { ranges: UffdRanges::new(uffd, Delivery::Never), pagemap }
    }
}

impl Protection for UffdDeferred {
    fn mode(&self) -> Mode {
        Mode::Deferred
    }

    fn kernel_writes(&self) -> KernelWrites {
        KernelWrites::Tracked
    }

    fn attach(&self, range: HostRange, sink: &Arc<dyn FaultSink>, _: Access, leave: Permit<'_>) -> Result<(), Error> {
        self.ranges.attach(range, sink, leave)
    }

    fn detach(&self, range: HostRange, leave: Permit<'_>) -> Result<(), Error> {
        self.ranges.detach(range, leave)
    }

    fn is_own(&self) -> bool {
        self.ranges.is_own()
    }

    fn descriptors(&self) -> Vec<RawFd> {
        let uffd = self.ranges.descriptors().into_iter();
        uffd.chain(self.pagemap.descriptor()).collect()
    }

    fn protect(&self, _: HostRange) -> Result<(), Error> {
        Err(Error::BadArgument("a deferred region is protected by its harvest alone"))
    }

    /// The pages count as written at the next harvest.
    fn unprotect(&self, range: HostRange, opening: Opening<'_>) -> Result<(), Error> {
        self.ranges.unprotect(range, opening)
    }

    fn check(&self) -> Result<(), Error> {
        self.ranges.check().and(self.pagemap.check())
    }

    fn abandon(&self, _: HostRange, opening: Opening<'_>) -> Result<(), Error> {
        self.ranges.abandon(opening)
    }

    fn harvest(&self, range: HostRange, written: &mut dyn FnMut(HostRange)) -> Result<(), Error> {
        self.pagemap.harvest(range, written)
    }

    fn open_in_child(&self) -> Result<Arc<dyn Protection>, Error> {
        let (uffd, pagemap) = (self.ranges.reopen_in_child(), self.pagemap.reopen_in_child());
        Ok(Arc::new(Self::new(uffd?, pagemap?)))
    }

    fn set_access(&self, range: HostRange, access: Access) -> Result<(), Error> {
        self.ranges.set_access(range, access)
    }
}
