//! No tracking: the control. No write is noticed, so translations go stale.

use std::sync::Arc;

use super::contract::{Access, Inherited, KernelWrites, Opening, Protection};
use crate::addr::HostRange;
use crate::error::Error;
use crate::mode::Mode;
use crate::page_table::Permit;
use crate::sys::mmap;
use crate::sys::ranges::FaultSink;

#[derive(Debug)]
pub(super) struct NoProtection;

impl Protection for NoProtection {
    fn mode(&self) -> Mode {
        Mode::None
    }

    fn kernel_writes(&self) -> KernelWrites {
        KernelWrites::Missed
    }

    fn reserve(&self, _: HostRange, _: &Arc<dyn FaultSink>) -> Result<(), Error> {
        Ok(())
    }

    fn attach(&self, _: HostRange, _: &Arc<dyn FaultSink>, _: Access, _: Permit<'_>) -> Result<(), Error> {
        Ok(())
    }

    fn detach(&self, _: HostRange, _: Permit<'_>) -> Result<(), Error> {
        Ok(())
    }

    fn give_up(&self, _: HostRange) {}

    fn protect(&self, _: HostRange) -> Result<(), Error> {
        Ok(())
    }

    fn unprotect(&self, _: HostRange, _: Opening<'_>) -> Result<(), Error> {
        Ok(())
    }

    fn harvest(&self, _: HostRange, _: &mut dyn FnMut(HostRange)) -> Result<(), Error> {
        Ok(())
    }

    fn open_in_child(&self) -> Result<Inherited, Error> {
        Ok(Inherited::Protected)
    }

    fn set_access(&self, range: HostRange, access: Access) -> Result<(), Error> {
        mmap::set_access(range, access != Access::None, access == Access::ReadWrite)
    }
}
