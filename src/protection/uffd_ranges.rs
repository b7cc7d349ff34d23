//! The common part of the three userfaultfd mechanisms: the descriptor and its ranges. They cannot
//! reach the descriptor itself, so they open nothing without a permit.

use std::os::fd::{BorrowedFd, RawFd};
use std::sync::Arc;

use super::attachments::Attachments;
use super::contract::{Access, Opening};
use crate::addr::HostRange;
use crate::error::Error;
use crate::page_table::Permit;
use crate::sys::mmap;
use crate::sys::ranges::Delivery;
use crate::sys::ranges::{FaultSink, WriteFault};
use crate::sys::uffd::{MessageBuffer, Uffd};

#[derive(Debug)]
pub(super) struct UffdRanges {
    uffd: Uffd,
    attachments: Attachments,
}

impl UffdRanges {
    pub(super) fn new(uffd: Uffd, delivery: Delivery) -> Self {
        Self { uffd, attachments: Attachments::new(delivery) }
    }

    pub(super) fn reserve(&self, range: HostRange, sink: &Arc<dyn FaultSink>) -> Result<(), Error> {
        self.attachments.reserve(range, sink)
    }

    pub(super) fn give_up(&self, range: HostRange) {
        self.attachments.give_up(range);
    }

    pub(super) fn attach(&self, range: HostRange, sink: &Arc<dyn FaultSink>, _: Permit<'_>) -> Result<(), Error> {
        self.attachments.add(range, sink, || {
            self.uffd.register(range)?;
            // A page that the kernel merges with an equal one (KSM) loses its protection.
            mmap::keep_from_merging(range);
            // A part that was attached before may be protected still.
            self.uffd.unprotect(range)
        })
    }

    pub(super) fn detach(&self, range: HostRange, _: Permit<'_>) -> Result<(), Error> {
        self.attachments.remove(range, || self.uffd.release(range))
    }

    #[inline]
    pub(super) fn protect(&self, range: HostRange) -> Result<(), Error> {
        self.uffd.protect(range)
    }

    /// Async-signal-safe but for errno, as [`UffdRanges::abandon`] is.
    #[inline]
    pub(super) fn unprotect(&self, range: HostRange, _: Opening<'_>) -> Result<(), Error> {
        self.uffd.unprotect(range)
    }

    /// Opens everything that is attached by giving up the descriptor. The sinks of other ranges than
    /// `range` are told first.
    pub(super) fn abandon(&self, range: HostRange, _: Opening<'_>) -> Result<(), Error> {
        self.attachments.tell_of_loss(Some(range))?;
        self.uffd.abandon()
    }

    #[inline]
    pub(super) fn is_own(&self) -> bool {
        self.uffd.is_own()
    }

    /// See [`Uffd::descriptors`].
    pub(super) fn descriptors(&self) -> Vec<RawFd> {
        self.uffd.descriptors()
    }

    /// See [`Uffd::copies`].
    pub(super) fn copies(&self) -> [BorrowedFd<'_>; 2] {
        self.uffd.copies()
    }

    /// See [`Uffd::read_faults`].
    pub(super) fn read_faults(
        &self,
        which: usize,
        buffer: &mut MessageBuffer,
        on_fault: impl FnMut(WriteFault),
    ) -> Result<(), Error> {
        self.uffd.read_faults(which, buffer, on_fault)
    }

    pub(super) fn wake(&self, range: HostRange) -> Result<(), Error> {
        self.uffd.wake(range)
    }

    pub(super) fn check(&self) -> Result<(), Error> {
        self.attachments.check()?;
        self.uffd.check()
    }

    /// Tells every sink that its ranges are stale. Then, behind a barrier, opens and wakes all
    /// of them, if necessary by giving up the descriptor.
    pub(super) fn lose(&self) -> Result<(), Error> {
        self.attachments.tell_of_loss(None)?;
        self.attachments.open_each(|range, opening| {
            let _ = self.unprotect(range, opening).and(self.uffd.wake(range));
        });
        // If those failed this still opens and wakes.
        self.uffd.abandon()
    }

    /// See [`Uffd::close`].
    pub(super) fn close(&self) {
        self.uffd.close();
    }

    /// See [`Uffd::close_inherited`]. Returns whether the parent's mechanism had its pages as it believed.
    pub(super) fn close_inherited(&self) -> bool {
        let was_given_up = self.attachments.begin_in_child();
        self.uffd.close_inherited() && !was_given_up
    }

    /// See [`Uffd::open_in_child`].
    pub(super) fn open_in_child(&self) -> Result<(), Error> {
        self.uffd.open_in_child()
    }

    pub(super) fn take_over(&self, range: HostRange) -> Result<(), Error> {
        self.attachments.take_over(range)
    }

    /// In a fork's child: `range` is open there, and was attached in the parent.
    pub(super) fn attach_again(&self, range: HostRange, sink: &Arc<dyn FaultSink>, _: Permit<'_>) -> Result<(), Error> {
        self.attachments.add(range, sink, || self.uffd.register(range))
    }

    /// The kernel keeps write protection over `mprotect`, both ways.
    pub(super) fn set_access(&self, range: HostRange, access: Access) -> Result<(), Error> {
        mmap::set_access(range, access != Access::None, access == Access::ReadWrite)
    }
}

impl Drop for UffdRanges {
    /// No writer stays asleep and no handler stays inside; then the descriptor
    /// is closed. In a fork's child the ranges are the parent's and stay so.
    fn drop(&mut self) {
        self.attachments.clear(|range| {
            // An error means that the descriptor was lost, or is the parent's: nothing to release.
            let _ = self.uffd.release(range);
        });
    }
}
