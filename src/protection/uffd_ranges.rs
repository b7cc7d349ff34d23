//! What the three userfaultfd mechanisms share: the descriptor and its ranges.

use std::sync::Arc;

use super::attachments::Attachments;
use super::{Access, FaultSink};
use crate::addr::HostRange;
use crate::error::Error;
use crate::sys::fault::Delivery;
use crate::sys::mmap;
use crate::sys::uffd::Uffd;

#[derive(Debug)]
pub(super) struct UffdRanges {
    pub(super) uffd: Uffd,
    pub(super) attachments: Attachments,
}

impl UffdRanges {
    pub(super) fn new(uffd: Uffd, delivery: Delivery) -> Self {
        Self { uffd, attachments: Attachments::new(delivery) }
    }

    pub(super) fn attach(&self, range: HostRange, sink: &Arc<dyn FaultSink>) -> Result<(), Error> {
        self.attachments.add(range, sink, || {
            self.uffd.register(range)?;
            // A part that was attached before may be protected still.
            self.uffd.unprotect(range)
        })
    }

    pub(super) fn detach(&self, range: HostRange) -> Result<(), Error> {
        self.attachments.remove(range, || self.uffd.release(range))
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
            // An error says that the descriptor was lost, or is the parent's: nothing is left to release.
            let _ = self.uffd.release(range);
        });
    }
}
