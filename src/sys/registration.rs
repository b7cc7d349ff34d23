//! A range's place in the table of tracked ranges.

use core::fmt;
use std::sync::Arc;

use crate::addr::HostRange;
use crate::error::Error;
use crate::sys::process::ProcessNumber;
use crate::sys::range_table::SlotId;
use crate::sys::ranges::{Delivery, FaultSink, RangeOwner, TrackedRange, take_out, take_over};
use crate::sys::statics;

/// Sends the faults of a range to a sink, until this is dropped. Dropping waits until no
/// handler is inside the sink, so it must not happen in a sink.
pub(crate) struct Registration {
    range: HostRange,
    /// Taken by `drop` alone.
    slot: Option<SlotId>,
    process: ProcessNumber,
}

impl Registration {
    /// From here on the faults in `range` go to `sink`.
    ///
    /// # Errors
    ///
    /// [`Error::AlreadyTracked`] if another registration has a part of it.
    pub(crate) fn new(
        range: HostRange,
        owner: &RangeOwner,
        delivery: Delivery,
        sink: &Arc<dyn FaultSink>,
    ) -> Result<Self, Error> {
        let process = ProcessNumber::current()?;
        let entry = TrackedRange { range, owner: owner.clone(), delivery, sink: sink.clone() };
        let slot = statics::with(|all| all.ranges.insert(entry, process.number()))
            .map_err(|_| Error::AlreadyTracked { start: range.start().0, len: range.len() })?;
        Ok(Self { range, slot: Some(slot), process })
    }

    /// In a fork's child, with no other thread inside: it is this process's own from now on.
    pub(crate) fn take_over(&mut self) -> Result<(), Error> {
        self.slot.iter().for_each(take_over);
        self.process = ProcessNumber::current()?;
        Ok(())
    }

    /// Its range.
    pub(crate) fn range(&self) -> HostRange {
        self.range
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        let slot = self.slot.take().and_then(|slot| take_out(slot, !self.process.is_current()));
        if let Some(slot) = slot {
            statics::with(|all| all.ranges.give_back(slot));
        }
    }
}

impl fmt::Debug for Registration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.range.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    //! # Safety
    //! The sink only counts.
    #![allow(unsafe_code)]

    use core::sync::atomic::{AtomicU64, Ordering::SeqCst};

    use super::*;
    use crate::addr::{HostAddr, PageSize};
    use crate::page_table::Permit;
    use crate::sys::ranges::{Handled, WriteFault, dispatch};

    #[derive(Default)]
    struct Count(AtomicU64);

    // SAFETY: one atomic addition.
    unsafe impl FaultSink for Count {
        fn on_write(&self, _: &WriteFault) -> Handled {
            self.0.fetch_add(1, SeqCst);
            Handled::Retry
        }

        fn on_lost(&self) -> Permit<'_> {
            Permit::for_test()
        }
    }

    /// A store faults, another thread gives the range up, and only then the store's handler
    /// runs: it must not kill the process.
    #[test]
    fn a_fault_that_comes_after_its_range_was_given_up_is_tried_again() {
        // Below everything that the kernel maps: no region of another test was ever here.
        let range = HostRange::new(HostAddr(4096), 4096, PageSize::from_shift(12)).unwrap();
        let fault = WriteFault { addr: range.start(), pc: None, tid: 0 };
        let count = Arc::new(Count::default());
        let sink: Arc<dyn FaultSink> = count.clone();
        assert_eq!(dispatch(Delivery::Sigbus, &fault), None);
        let registration = Registration::new(range, &RangeOwner::new(), Delivery::Sigbus, &sink).unwrap();
        assert_eq!(dispatch(Delivery::Sigbus, &fault), Some(Handled::Retry));
        assert_eq!(dispatch(Delivery::Sigsegv, &fault), None, "not how its faults arrive");
        drop(registration);
        assert_eq!(Arc::strong_count(&count), 2, "the sink is let go of");
        assert_eq!(dispatch(Delivery::Sigbus, &fault), Some(Handled::Retry));
        assert_eq!(count.0.load(SeqCst), 1);
    }
}
