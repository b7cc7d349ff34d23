//! Finds the owner of a fault: the table of tracked ranges, and the code that a signal handler
//! runs.
//!
//! [`handle_fault`] is all that the library does in signal context. It asks three questions:
//! does write protection give this signal, did the instruction write, is the address in a
//! tracked range? Then the range's [`FaultSink`] decides. Nothing here takes a lock, allocates
//! or touches guest memory, and errno is kept.
//!
//! # Safety
//!
//! The raw pointers are those that the kernel gives to a signal handler.
#![allow(unsafe_code)]

use core::ffi::{c_int, c_void};
use core::fmt;
use std::sync::Arc;

use crate::addr::{HostAddr, HostRange};
use crate::error::{Error, TRACKED_RANGE};
use crate::page_table::Permit;
use crate::sys::fork::Generation;
use crate::sys::range_table::{InsertError, Lookup, RangeTable, SlotId, Writer};
use crate::sys::statics;

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
/// The implementation is async-signal-safe: no lock, no allocation, no
/// thread-local, no panic, no access to tracked memory, errno kept.
pub(crate) unsafe trait FaultSink: Send + Sync {
    /// Resolves one write fault: un-protects the page or says that it is not ours. In a handler
    /// thread the call may be late: another thread opened the page, the store went through, and
    /// the page may be protected anew. A handler thread gets only faults of the protection, so
    /// there "not ours" says that the page cannot be opened.
    fn on_write(&self, fault: &WriteFault) -> Handled;

    /// The mechanism can no longer learn of writes (its thread died, its descriptor was lost):
    /// all translations of the sink's ranges are stale from here on. Called before any page is
    /// opened because of it; the result is leave to do so.
    fn on_lost(&self) -> Permit<'_>;
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

pub(crate) struct Entry {
    range: HostRange,
    owner: RangeOwner,
    delivery: Delivery,
    sink: Arc<dyn FaultSink>,
}

/// The limit of regions of a process at once, in all its trackers. A region may be as large as
/// the address space at no cost, so make neighbouring memory one region.
pub const MAX_REGIONS: usize = 1024;

static RANGES: RangeTable<Entry, MAX_REGIONS> = RangeTable::new();

/// The only thread that may change the table of ranges.
pub(crate) type RangesWriter = Writer<'static, Entry, MAX_REGIONS>;

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

/// Sends the faults of a range to a sink, until this is dropped. Dropping waits until no
/// handler is inside the sink, so it must not happen in a sink.
pub(crate) struct Registration {
    range: HostRange,
    /// Taken by `drop` alone.
    slot: Option<SlotId>,
    generation: Generation,
}

impl Registration {
    /// From here on the faults in `range` go to `sink`.
    ///
    /// # Errors
    ///
    /// [`Error::AlreadyTracked`] if another registration has a part of it, [`Error::Full`] if
    /// the process has no slot left.
    pub(crate) fn new(
        range: HostRange,
        owner: &RangeOwner,
        delivery: Delivery,
        sink: &Arc<dyn FaultSink>,
    ) -> Result<Self, Error> {
        let generation = Generation::of_this_process()?;
        let entry = Entry { range, owner: owner.clone(), delivery, sink: sink.clone() };
        let slot = statics::with(|all| all.ranges.insert(range, entry)).map_err(|error| match error {
            InsertError::Overlap => Error::AlreadyTracked { start: range.start().0, len: range.len() },
            InsertError::Full => Error::Full { what: TRACKED_RANGE, limit: MAX_REGIONS },
        })?;
        Ok(Self { range, slot: Some(slot), generation })
    }

    /// Its range.
    pub(crate) fn range(&self) -> HostRange {
        self.range
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        if let Some(slot) = self.slot.take() {
            let slot = RANGES.take_out(slot, !self.generation.is_current());
            statics::with(|all| all.ranges.give_back(slot));
        }
    }
}

impl fmt::Debug for Registration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.range.fmt(f)
    }
}

/// Hands a fault to the sink of its range. `None` if no range holds its address, or the faults
/// of that range arrive in another way. Async-signal-safe.
pub(crate) fn dispatch(delivery: Delivery, fault: &WriteFault) -> Option<Handled> {
    let on_entry = |entry: &Entry| (entry.delivery == delivery).then(|| entry.sink.on_write(fault));
    match RANGES.with(fault.addr, on_entry) {
        Lookup::Found(handled) => handled,
        // The store faulted before the range was given up: a new try goes through.
        Lookup::Retired => Some(Handled::Retry),
        Lookup::Missing => None,
    }
}

/// Decides about one SIGBUS or SIGSEGV, for an embedder that owns these signals. Call it first
/// in the handler. On [`Handled::Retry`] return from the handler; on [`Handled::NotOurs`] go on
/// as without this library.
///
/// Async-signal-safe; errno is kept. The handler must be installed with `SA_SIGINFO`, and with
/// `SA_ONSTACK` if the guest may own the stack pointer. No thread that stores to tracked memory
/// may have the signal blocked: the kernel kills the process at such a store.
///
/// # Safety
///
/// The arguments are those that the kernel gave to the handler that runs now.
pub unsafe fn handle_fault(signo: c_int, info: *mut libc::siginfo_t, context: *mut c_void) -> Handled {
    // SAFETY: the caller's obligation: a valid siginfo.
    let code = unsafe { (*info).si_code };
    let delivery = match (signo, code) {
        (libc::SIGBUS, libc::BUS_ADRERR) => Delivery::Sigbus,
        (libc::SIGSEGV, SEGV_ACCERR) => Delivery::Sigsegv,
        _ => return Handled::NotOurs,
    };
    // SAFETY: the caller's obligation: a valid ucontext of this architecture.
    let Some(pc) = (unsafe { storing_pc(context.cast()) }) else {
        return Handled::NotOurs;
    };
    let _errno = KeepErrno::new();
    // SAFETY: both signals carry an address if the code is positive.
    let addr = HostAddr(unsafe { (*info).si_addr() } as usize);
    dispatch(delivery, &WriteFault { addr, pc: Some(pc), tid: 0 }).unwrap_or(Handled::NotOurs)
}

/// The libc crate lacks it; the value is the kernel's.
const SEGV_ACCERR: c_int = 2;

/// The instruction that faulted, if it wrote: write protection never stops a
/// read. Bit 1 of the page fault's error code says so.
#[cfg(target_arch = "x86_64")]
unsafe fn storing_pc(context: *const libc::ucontext_t) -> Option<HostAddr> {
    const WROTE: i64 = 1 << 1;
    // SAFETY: the caller's obligation.
    let registers = unsafe { &(*context).uc_mcontext.gregs };
    let wrote = registers[libc::REG_ERR as usize] & WROTE != 0;
    wrote.then_some(HostAddr(registers[libc::REG_RIP as usize] as usize))
}

/// The instruction that faulted, if it wrote: write protection never stops a
/// read. The kernel appends the exception syndrome to the register frame; bit 6
/// of a data abort's says "write".
#[cfg(target_arch = "aarch64")]
unsafe fn storing_pc(context: *const libc::ucontext_t) -> Option<HostAddr> {
    const ESR_MAGIC: u32 = 0x4553_5201;
    const WROTE: u64 = 1 << 6;
    const RESERVED_BYTES: usize = 4096;
    // SAFETY: the caller's obligation.
    let machine = unsafe { &(*context).uc_mcontext };
    let pc = HostAddr(machine.pc as usize);
    // `__reserved` is private to the libc crate; it is the last member.
    let records = (&raw const *machine).cast::<u8>().wrapping_add(size_of_val(machine) - RESERVED_BYTES);
    let mut at = 0;
    while at + 16 <= RESERVED_BYTES {
        let record = records.wrapping_add(at);
        // SAFETY: within `__reserved`, to which the kernel writes records of a 4-byte magic and
        // a 4-byte size.
        let (magic, len) = unsafe { (record.cast::<u32>().read(), record.cast::<u32>().add(1).read()) };
        match (magic, len) {
            (ESR_MAGIC, _) => {
                // SAFETY: the record's body, within `__reserved` by the loop's condition.
                let syndrome = unsafe { record.cast::<u64>().add(1).read() };
                return (syndrome & WROTE != 0).then_some(pc);
            }
            (0, _) | (_, 0) => break,
            _ => at += len as usize,
        }
    }
    // Without a syndrome, treat it as a write; the sink looks at the page's state.
    Some(pc)
}

/// A number that differs between all living threads, without a system call: the address of
/// errno. Async-signal-safe.
pub(crate) fn this_thread() -> u64 {
    // SAFETY: gives an address; nothing is read.
    (unsafe { libc::__errno_location() }) as u64
}

/// Puts errno back: the interrupted code may be about to look at it.
struct KeepErrno(c_int);

impl KeepErrno {
    fn new() -> Self {
        // SAFETY: errno of this thread.
        Self(unsafe { *libc::__errno_location() })
    }
}

impl Drop for KeepErrno {
    fn drop(&mut self) {
        // SAFETY: errno of this thread.
        unsafe { *libc::__errno_location() = self.0 };
    }
}

#[cfg(test)]
mod tests {
    use core::sync::atomic::{AtomicU64, Ordering::SeqCst};

    use super::*;
    use crate::addr::PageSize;

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
