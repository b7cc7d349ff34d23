//! The tracked ranges of the process, and the sink of each range's faults.

use std::sync::Arc;

use crate::addr::{HostAddr, HostRange};
use crate::page_table::Permit;
use crate::sys::range_table::{Lookup, RangeTable, Writer};

/// A store that hit a protected page of a synchronous region.
#[derive(Clone, Copy, Debug)]
pub(crate) struct WriteFault {
    /// The address that faulted. The extent of the store is not known here.
    pub(crate) addr: HostAddr,
    /// The host instruction that stored; `None` if a thread handles the fault of another one or
    /// the kernel wrote.
    pub(crate) pc: Option<HostAddr>,
    /// Kernel thread id of the storing thread, if another thread handles its fault. 0 in the
    /// thread itself, which would need a system call for it in every fault, and 0 if it is not
    /// known.
    pub(crate) tid: u32,
}

/// The result for a fault.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use]
pub enum Handled {
    /// It was ours: the store may be tried again.
    Retry,
    /// It was not: another handler must see it.
    NotOurs,
}

/// The receiver of write faults. Called in a signal handler or in the handler thread, by any
/// number of threads at once.
///
/// # Safety
///
/// The implementation is async-signal-safe: no lock, no allocation, no thread-local, no panic, no
/// access to tracked memory, errno preserved.
#[allow(unsafe_code)]
pub(crate) unsafe trait FaultSink: Send + Sync {
    /// Resolves one write fault: un-protects the page or says that it is not ours. In a handler
    /// thread the call may be late: another thread opened the page, the store went through, and
    /// the page may be protected anew. A handler thread gets only faults of the protection, so
    /// there "not ours" says that the page cannot be opened.
    fn on_write(&self, fault: &WriteFault) -> Handled;

    /// The mechanism can no longer learn of writes (its thread died, its descriptor was lost): all
    /// translations of the sink's ranges are stale from here on. Called before any page is opened
    /// because of it; the result is the permit to do so.
    fn on_lost(&self) -> Permit<'_>;

    /// Calls `each` for the parts of `range`, one of the sink's, outside which no page was ever
    /// protected.
    fn for_each_used(&self, range: HostRange, each: &mut dyn FnMut(HostRange)) {
        each(range);
    }
}

/// How the faults of a range arrive.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Delivery {
    /// By SIGBUS with `BUS_ADRERR`, in the faulting thread.
    Sigbus,
    /// By SIGSEGV with `SEGV_ACCERR`, in the faulting thread.
    Sigsegv,
    /// As a message to the handler thread.
    Thread,
    /// Not at all: writes are found by a scan.
    Never,
}

pub(crate) struct TrackedRange {
    pub(super) range: HostRange,
    pub(super) owner: RangeOwner,
    pub(super) delivery: Delivery,
    pub(super) sink: Arc<dyn FaultSink>,
}

/// The limit of regions of a process at once, in all its trackers. A region may be as large as
/// the address space at no cost, so make neighbouring memory one region.
pub const MAX_REGIONS: usize = 1024;

pub(super) static RANGES: RangeTable<TrackedRange, MAX_REGIONS> = RangeTable::new();

/// The only thread that may change the table of ranges.
pub(crate) type RangesWriter = Writer<'static, TrackedRange, MAX_REGIONS>;

/// For [`statics`] alone, which takes it in its order.
pub(super) fn ranges_writer() -> RangesWriter {
    RANGES.writer()
}

/// Whether a thread is changing the table now.
#[cfg(test)]
pub(super) fn ranges_writer_is_held() -> bool {
    RANGES.has_writer()
}

/// Tells the ranges of one mechanism from those of others.
#[derive(Clone, Debug)]
pub(crate) struct RangeOwner(Arc<()>);

impl RangeOwner {
    pub(crate) fn new() -> Self {
        Self(Arc::new(()))
    }

    /// Calls `each` for every range that is registered for this owner. A thread that drops a
    /// [`Registration`] waits for it. Takes no lock.
    pub(crate) fn for_each_range(&self, mut each: impl FnMut(HostRange, &dyn FaultSink)) {
        RANGES.for_each(|entry| {
            if Arc::ptr_eq(&entry.owner.0, &self.0) {
                each(entry.range, &*entry.sink);
            }
        });
    }
}

/// Hands a fault to the sink of its range. `None` if no range holds its address, or the faults
/// of that range arrive in another way. Async-signal-safe.
#[inline]
pub(crate) fn dispatch(delivery: Delivery, fault: &WriteFault) -> Option<Handled> {
    let on_entry = |entry: &TrackedRange| (entry.delivery == delivery).then(|| entry.sink.on_write(fault));
    match RANGES.with(fault.addr, on_entry) {
        Lookup::Found(handled) => handled,
        // The store faulted before the range was given up: a new try goes through.
        Lookup::Retired => Some(Handled::Retry),
        Lookup::Missing => None,
    }
}
