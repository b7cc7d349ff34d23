//! uffd-wp with SIGBUS: the fault is handled in the thread that stored.
//!
//! With `UFFD_FEATURE_SIGBUS` the kernel queues no message: a user-mode store to
//! a protected page gives SIGBUS with `BUS_ADRERR` and the address of the byte.
//! The handler un-protects and returns, and the store is tried again: no second
//! thread, no context switch. A kernel-mode write (`read` into the page) fails
//! with EFAULT, so the embedder announces those. A thread that has SIGBUS
//! blocked is killed at its first such store.

use std::os::fd::RawFd;
use std::sync::Arc;

use super::uffd_ranges::UffdRanges;
use super::{Access, FaultSink, KernelWrites, Mode, Opening, Protection};
use crate::addr::HostRange;
use crate::error::Error;
use crate::page_table::Permit;
use crate::sys::fault::Delivery;
use crate::sys::uffd::Uffd;

#[derive(Debug)]
pub(super) struct UffdSigbus {
    ranges: UffdRanges,
}

impl UffdSigbus {
    /// Takes a descriptor that was negotiated with `UFFD_FEATURE_SIGBUS`.
    pub(super) fn new(uffd: Uffd) -> Self {
        Self { ranges: UffdRanges::new(uffd, Delivery::Sigbus) }
    }
}

impl Protection for UffdSigbus {
    fn mode(&self) -> Mode {
        Mode::Sigbus
    }

    fn kernel_writes(&self) -> KernelWrites {
        KernelWrites::Refused
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
        self.ranges.descriptors()
    }

    fn protect(&self, range: HostRange) -> Result<(), Error> {
        self.ranges.protect(range)
    }

    fn unprotect(&self, range: HostRange, opening: Opening<'_>) -> Result<(), Error> {
        self.ranges.unprotect(range, opening)
    }

    fn check(&self) -> Result<(), Error> {
        self.ranges.check()
    }

    fn abandon(&self, _: HostRange, opening: Opening<'_>) -> Result<(), Error> {
        self.ranges.abandon(opening)
    }

    fn harvest(&self, _: HostRange, _: &mut dyn FnMut(HostRange)) -> Result<(), Error> {
        Ok(()) // every write was reported when it was made
    }

    fn open_in_child(&self) -> Result<Arc<dyn Protection>, Error> {
        Ok(Arc::new(Self::new(self.ranges.reopen_in_child()?)))
    }

    fn set_access(&self, range: HostRange, access: Access) -> Result<(), Error> {
        self.ranges.set_access(range, access)
    }
}
