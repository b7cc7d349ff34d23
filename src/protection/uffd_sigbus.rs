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
use super::{Access, FaultSink, KernelWrites, Mode, Protection};
use crate::addr::HostRange;
use crate::error::Error;
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

    fn attach(&self, range: HostRange, sink: &Arc<dyn FaultSink>, _: Access) -> Result<(), Error> {
        self.ranges.attach(range, sink)
    }

    fn detach(&self, range: HostRange) -> Result<(), Error> {
        self.ranges.detach(range)
    }

    fn descriptors(&self) -> Vec<RawFd> {
        self.ranges.uffd.descriptors()
    }

    fn protect(&self, range: HostRange) -> Result<(), Error> {
        self.ranges.uffd.protect(range)
    }

    fn unprotect(&self, range: HostRange) -> Result<(), Error> {
        self.ranges.uffd.unprotect(range)
    }

    fn check(&self) -> Result<(), Error> {
        self.ranges.uffd.check()
    }

    fn abandon(&self, _: HostRange) -> Result<(), Error> {
        self.ranges.uffd.abandon()
    }

    fn harvest(&self, _: HostRange, _: &mut dyn FnMut(HostRange)) -> Result<(), Error> {
        Ok(()) // every write was told when it was made
    }

    fn open_in_child(&self) -> Result<Arc<dyn Protection>, Error> {
        Ok(Arc::new(Self::new(self.ranges.uffd.reopen_in_child()?)))
    }

    fn set_access(&self, range: HostRange, access: Access) -> Result<(), Error> {
        self.ranges.set_access(range, access)
    }
}
