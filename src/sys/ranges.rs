//! The tracked ranges of the process, and the sink of each range's faults.
//!
//! # Safety
//!
//! The table of ranges is static, and so is its only [`Writing`].
#![allow(unsafe_code)]

use core::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use crate::addr::{HostAddr, HostRange};
use crate::page_table::Permit;
use crate::sys::range_table::{FreeSlot, Lookup, Overlap, RangeTable, SlotId, Writing};

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

    /// Whether another thread may act on a translation of the sink's ranges that it looked up before
    /// [`FaultSink::on_lost`]. Then every thread passes a barrier before a page is opened.
    fn others_may_look(&self) -> bool {
        true
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

/// Made by the first writer. A handler that finds none has nothing to do.
static RANGES: OnceLock<RangeTable<TrackedRange>> = OnceLock::new();

static WRITING: Mutex<Writing> = Mutex::new(Writing::new());

/// The only thread that may change the table of ranges.
pub(crate) struct RangesWriter(MutexGuard<'static, Writing>);

impl RangesWriter {
    /// Waits for every other writer. For [`statics`](super::statics) alone, which takes it in its order.
    pub(super) fn lock() -> Self {
        Self(WRITING.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Adds `range` in the process of this number. From here on its faults reach it.
    pub(super) fn insert(&mut self, range: TrackedRange, process: u64) -> Result<SlotId, Overlap> {
        // SAFETY: both are statics, and the table is used with no other.
        unsafe { RANGES.get_or_init(RangeTable::new).insert(&mut self.0, range.range, range, process) }
    }

    /// The slot may be used again.
    pub(super) fn give_back(&mut self, slot: FreeSlot) {
        self.0.give_back(slot);
    }
}

/// Whether a thread is changing the table now.
#[cfg(test)]
pub(super) fn ranges_writer_is_held() -> bool {
    matches!(WRITING.try_lock(), Err(std::sync::TryLockError::WouldBlock))
}

/// Whether a range of this process was ever given up.
static GIVEN_UP: AtomicBool = AtomicBool::new(false);

/// Whether a late fault of a range that was given up may come.
pub(super) fn some_was_given_up() -> bool {
    GIVEN_UP.load(Ordering::Acquire)
}

/// See [`RangeTable::take_over`].
pub(super) fn take_over(slot: &SlotId) {
    if let Some(table) = RANGES.get() {
        table.take_over(slot);
    }
}

/// See [`RangeTable::take_out`].
pub(super) fn take_out(slot: SlotId, in_fork_child: bool) -> Option<FreeSlot> {
    // Before the range goes.
    GIVEN_UP.store(true, Ordering::SeqCst);
    RANGES.get().map(|table| table.take_out(slot, in_fork_child))
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
    // Even in a debug build: a signal stack is small.
    #[inline(always)]
    pub(crate) fn for_each_range(&self, mut each: impl FnMut(HostRange, &dyn FaultSink)) {
        let Some(table) = RANGES.get() else { return };
        table.for_each(|entry| {
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
    let on_entry =
        |entry: &TrackedRange| if entry.delivery == delivery { Some(entry.sink.on_write(fault)) } else { None };
    match RANGES.get()?.with(fault.addr, on_entry) {
        Lookup::Found(handled) => handled,
        // The store faulted before the range was given up: a new try goes through.
        Lookup::Again => Some(Handled::Retry),
        Lookup::Missing => None,
    }
}
