//! uffd-wp in the modes sigbus and deferred, which need no thread of the library's own.
//!
//! **Sigbus.** With `UFFD_FEATURE_SIGBUS` the kernel queues no message. A user-mode store to a
//! protected page gives SIGBUS with `BUS_ADRERR` and the address of the byte, in the thread that
//! stored. The handler un-protects and returns, and the store is tried again. A kernel-mode write
//! (`read` into the page) fails with EFAULT, so the embedder announces those. The kernel kills a
//! thread that has SIGBUS blocked at its first such store.
//!
//! **Deferred.** With `UFFD_FEATURE_WP_ASYNC` a store to a protected page clears the page's
//! protection and goes on, without a report. One `PAGEMAP_SCAN` finds the written pages and
//! protects them again in the same step. The kernel's own writes and regular file mappings are
//! covered like everything else. Only the scan protects: `UFFDIO_WRITEPROTECT` on a page that was
//! written since the last scan would hide that write from the next one. A fresh range counts as
//! written, and its first harvest reports all of it. (Linux 6.17 omits pages to which no page table
//! leads. No write came this way, so nothing is lost.)

use std::os::fd::RawFd;
use std::sync::Arc;

use super::contract::{Access, Inherited, KernelWrites, Opening, Protection};
use super::uffd_ranges::UffdRanges;
use crate::addr::HostRange;
use crate::error::Error;
use crate::mode::Mode;
use crate::page_table::Permit;
use crate::sys::pagemap::Pagemap;
use crate::sys::ranges::{Delivery, FaultSink};
use crate::sys::uffd::Uffd;

#[derive(Debug)]
pub(super) struct UffdProtection {
    ranges: UffdRanges,
    /// In a deferred region.
    scan: Option<Pagemap>,
}

impl UffdProtection {
    /// Takes a descriptor that was negotiated with `UFFD_FEATURE_SIGBUS`.
    pub(super) fn sigbus(uffd: Uffd) -> Self {
        Self { ranges: UffdRanges::new(uffd, Delivery::Sigbus), scan: None }
    }

    /// Takes a descriptor that was negotiated with `UFFD_FEATURE_WP_ASYNC`.
    pub(super) fn deferred(uffd: Uffd, scan: Pagemap) -> Self {
        Self { ranges: UffdRanges::new(uffd, Delivery::Never), scan: Some(scan) }
    }
}

impl Protection for UffdProtection {
    fn mode(&self) -> Mode {
        if self.scan.is_some() { Mode::Deferred } else { Mode::Sigbus }
    }

    fn kernel_writes(&self) -> KernelWrites {
        if self.scan.is_some() { KernelWrites::Tracked } else { KernelWrites::Refused }
    }

    fn reserve(&self, range: HostRange, sink: &Arc<dyn FaultSink>) -> Result<(), Error> {
        self.ranges.reserve(range, sink)
    }

    fn attach(&self, range: HostRange, sink: &Arc<dyn FaultSink>, _: Access, leave: Permit<'_>) -> Result<(), Error> {
        self.ranges.attach(range, sink, leave)
    }

    fn detach(&self, range: HostRange, leave: Permit<'_>) -> Result<(), Error> {
        self.ranges.detach(range, leave)
    }

    fn give_up(&self, range: HostRange) {
        self.ranges.give_up(range);
    }

    fn is_own(&self) -> bool {
        self.ranges.is_own()
    }

    fn descriptors(&self) -> Vec<RawFd> {
        let scan = self.scan.as_ref().and_then(Pagemap::descriptor);
        self.ranges.descriptors().into_iter().chain(scan).collect()
    }

    fn protect(&self, range: HostRange) -> Result<(), Error> {
        if self.scan.is_some() {
            return Err(Error::BadArgument("a deferred region is protected by its harvest alone"));
        }
        self.ranges.protect(range)
    }

    /// In a deferred region the pages count as written at the next harvest.
    fn unprotect(&self, range: HostRange, opening: Opening<'_>) -> Result<(), Error> {
        self.ranges.unprotect(range, opening)
    }

    fn check(&self) -> Result<(), Error> {
        self.ranges.check()?;
        self.scan.as_ref().map_or(Ok(()), Pagemap::check)
    }

    fn abandon(&self, range: HostRange, opening: Opening<'_>) -> Result<(), Error> {
        self.ranges.abandon(range, opening)
    }

    fn end(&self) {
        self.ranges.close();
        if let Some(scan) = &self.scan {
            scan.close();
        }
    }

    fn harvest(&self, range: HostRange, written: &mut dyn FnMut(HostRange)) -> Result<(), Error> {
        match &self.scan {
            Some(scan) => scan.harvest(range, written),
            None => Ok(()), // every write was reported when it was made
        }
    }

    fn open_in_child(&self) -> Result<Inherited, Error> {
        let was_intact = self.ranges.close_inherited();
        if let Some(scan) = &self.scan {
            scan.close_inherited();
        }
        self.ranges.open_in_child()?;
        self.scan.as_ref().map_or(Ok(()), Pagemap::open_in_child)?;
        // A fresh range counts as written: the writes since the last harvest are not known here.
        Ok(Inherited::if_intact(was_intact && self.scan.is_none()))
    }

    fn take_over(&self, range: HostRange) -> Result<(), Error> {
        self.ranges.take_over(range)
    }

    fn attach_again(
        &self,
        range: HostRange,
        sink: &Arc<dyn FaultSink>,
        _: Access,
        leave: Permit<'_>,
    ) -> Result<(), Error> {
        self.ranges.attach_again(range, sink, leave)
    }

    fn set_access(&self, range: HostRange, access: Access) -> Result<(), Error> {
        self.ranges.set_access(range, access)
    }
}
