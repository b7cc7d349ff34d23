//! The contract that every mechanism keeps.
//!
//! - When `Protection::protect` has returned, each store to the range either retired before or
//!   is noticed.
//! - A synchronous mechanism calls the range's `FaultSink` for each store that hits a
//!   protected page, before the store retires; the sink un-protects (or not),
//!   and the store is tried again.
//! - A deferred one lets the store retire and reports its page at the next
//!   `Protection::harvest`, which protects it again atomically.
//! - A mechanism has ranges of several sinks. Steps for one range leave the others as they are, or
//!   their sinks hear of it before.
//! - Nothing opens a page without a `Permit`, which only code that keeps translators away from
//!   the page can give.
//! - `Protection::unprotect` and everything that a signal handler reaches take
//!   no lock, allocate nothing, use no thread-locals and keep errno.

use core::fmt;
use std::os::fd::RawFd;
use std::sync::Arc;

use crate::addr::{HostAddr, HostRange, PageSize};
use crate::error::Error;
use crate::mode::Mode;
use crate::page_table::Permit;
use crate::sync::{Rule, left_out};
use crate::sys::ranges::FaultSink;
use crate::sys::{maps, membarrier};

/// The fate of a write by the kernel for the guest (`read`, an out parameter) into a protected
/// page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum KernelWrites {
    /// It works and is noticed like any other.
    Tracked,
    /// It works and is noticed, but waits for the embedder's lock. The writer may have the lock: announce the write.
    WaitForTheLock,
    /// The system call fails with EFAULT or is cut short: announce the write.
    Refused,
    /// It works and is not noticed.
    Missed,
}

/// The guest's own access to memory, as its own mprotect says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Access {
    /// Nothing.
    None,
    /// Read.
    Read,
    /// Read and write.
    ReadWrite,
}

/// One mechanism. See the module's contract.
pub(crate) trait Protection: Send + Sync + fmt::Debug {
    /// Its mode.
    fn mode(&self) -> Mode;

    /// The fate of the kernel's own writes.
    fn kernel_writes(&self) -> KernelWrites;

    /// Sends the faults of `range`, a whole region, to `sink`. None of it is attached yet, and it
    /// costs the same for any range.
    ///
    /// Holds the sink until [`Protection::give_up`].
    fn reserve(&self, range: HostRange, sink: &Arc<dyn FaultSink>) -> Result<(), Error>;

    /// Makes `range`, which is mapped with `access`, trackable, and sends its faults to `sink`;
    /// none of it is protected afterwards. Call it again on all or a part of the range if the
    /// mapping was replaced by one with `access`; the sink stays the same. A range of another sink
    /// is an error. After an error [`Protection::forget`] follows.
    ///
    /// Holds the sink until all of the range is detached: a sink that owns its mechanism would
    /// never be dropped. Never called from a sink.
    fn attach(
        &self,
        range: HostRange,
        sink: &Arc<dyn FaultSink>,
        access: Access,
        leave: Permit<'_>,
    ) -> Result<(), Error>;

    /// Ends the tracking of `range`: nothing in it stays protected, and no writer stays asleep.
    /// After the return no sink of a range that lies wholly in it runs or will be called. A
    /// piece that is no longer mapped is no error. Never called from a sink.
    fn detach(&self, range: HostRange, leave: Permit<'_>) -> Result<(), Error>;

    /// The mapping of `range` is gone, or another one that is not tracked has taken its place. Its
    /// pages are open. They are not attached any more, and nobody asks the kernel about them.
    fn forget(&self, _range: HostRange) {}

    /// The end of a region, with nothing attached any more: after the return no sink of a range
    /// that lies wholly in `range` runs or will be called. Never called from a sink.
    fn give_up(&self, range: HostRange);

    /// The parts of `range` that are mappings of their own; the rest is not mapped. One of them may
    /// be refused where the others can be attached.
    fn mappings(&self, range: HostRange, page: PageSize) -> Vec<HostRange> {
        maps::mappings(range, page)
    }

    /// Write-protects `range`, all of it attached. An unmapped piece is skipped. A piece with a
    /// replaced mapping is an error; the part before it may be protected, which the caller
    /// undoes. A deferred mechanism refuses: protecting would hide writes since the last
    /// [`Protection::harvest`], and the harvest protects.
    fn protect(&self, range: HostRange) -> Result<(), Error>;

    /// The barrier of [`Opening::behind_a_barrier`]. Async-signal-safe.
    fn fence_threads(&self) -> Result<(), Error> {
        membarrier::fence_threads()
    }

    /// Lets stores to `range` through again and wakes the threads that wait for it.
    /// Async-signal-safe.
    fn unprotect(&self, range: HostRange, opening: Opening<'_>) -> Result<(), Error>;

    /// Checks that writes are still noticed: the descriptor is the one that was opened, the
    /// thread lives. After an error the mechanism is lost. One or two cheap system calls.
    fn check(&self) -> Result<(), Error> {
        Ok(())
    }

    /// Whether it is this process's. In a fork's child a descriptor is the parent's, and the
    /// child's own pages are open: no store to them is noticed.
    fn is_own(&self) -> bool {
        true
    }

    /// The numbers of the descriptors that it keeps open in this process.
    fn descriptors(&self) -> Vec<RawFd> {
        Vec::new()
    }

    /// The last resort, if un-protecting failed and all translations of `range` are
    /// unreachable; `range` is all that is attached for its sink. Opens it all, by giving up the
    /// descriptor if there is one. That opens the ranges of the other sinks too: each of them hears
    /// of the loss first, and the object is used for no new range. Async-signal-safe, if
    /// [`FaultSink::on_lost`] is.
    fn abandon(&self, range: HostRange, opening: Opening<'_>) -> Result<(), Error> {
        self.unprotect(range, opening)
    }

    /// Nothing is reserved or attached any more, or ever will be: gives back what the object holds of
    /// the system. The object may stay for long, kept by a claim.
    fn end(&self) {}

    /// The number of access changes by this object at the page of `address` that a store may
    /// have met half done; `None` while one is under way. A fault that comes back with this
    /// number unchanged was not caused by one of them. Async-signal-safe.
    fn access_changes(&self, _address: HostAddr) -> Option<u64> {
        Some(0)
    }

    /// Deferred only: reports the parts of `range` that were written since they
    /// were last protected, and protects them again in the same step.
    fn harvest(&self, range: HostRange, written: &mut dyn FnMut(HostRange)) -> Result<(), Error>;

    /// Carries out the guest's own mprotect on `range`, without losing the
    /// tracking's protection of any page of it.
    fn set_access(&self, range: HostRange, access: Access) -> Result<(), Error>;

    /// In a fork's child, with no other thread inside: makes the parent's mechanism this process's own.
    /// Inherited descriptors are closed first, since the child may get no other numbers. Called once; then
    /// [`Protection::take_over`] for each region. After an error nothing uses the mechanism any more.
    fn open_in_child(&self) -> Result<Inherited, Error> {
        Err(Error::InForkChild)
    }

    /// In a fork's child, behind [`Protection::open_in_child`]: the faults of `range`, a whole region, go
    /// to its sink as in the parent. Threads of the parent that were in a handler are not waited for.
    fn take_over(&self, _range: HostRange) -> Result<(), Error> {
        Ok(())
    }

    /// In a fork's child, behind [`Protection::take_over`]: attaches `range`, which was attached in
    /// the parent with `access`. The guest's access stays.
    fn attach_again(
        &self,
        range: HostRange,
        sink: &Arc<dyn FaultSink>,
        access: Access,
        leave: Permit<'_>,
    ) -> Result<(), Error> {
        self.attach(range, sink, access, leave)
    }

    /// In a fork's child: protects `range`, all of it attached again, as it was in the parent. Errors as
    /// of [`Protection::protect`].
    fn protect_again(&self, range: HostRange) -> Result<(), Error> {
        self.protect(range)
    }

    /// In a fork's child: opens `range`, if its protection was inherited.
    fn open_again(&self, _range: HostRange, _opening: Opening<'_>) -> Result<(), Error> {
        Ok(())
    }
}

/// The pages that were protected by their words when a process forked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Inherited {
    /// None had been written up to then.
    Protected,
    /// They may have been: the parent had lost its mechanism, or would have asked later.
    Unknown,
}

impl Inherited {
    pub(super) fn if_intact(is_intact: bool) -> Self {
        if is_intact { Self::Protected } else { Self::Unknown }
    }
}

/// A permit to open pages, after a barrier on every thread.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Opening<'a> {
    _leave: Permit<'a>,
}

impl<'a> Opening<'a> {
    /// The barrier on every thread of the process between a kill and the opening of the page.
    /// A core may run a load ahead of its own older store, if that store waits for its address.
    /// The load found the block that is dead now, and the store would find the page open, and
    /// retire. Behind the barrier such a load runs again.
    pub(crate) fn behind_a_barrier(
        leave: Permit<'a>,
        barrier: impl FnOnce() -> Result<(), Error>,
    ) -> Result<Self, Error> {
        if !left_out(Rule::FenceThreads) {
            barrier()?;
        }
        Ok(Self { _leave: leave })
    }

    /// If no load can be ahead of a store: in a deferred region, whose stores wait for nobody, and
    /// beside threads that look at no translation. Also at the end of a region, if the barrier is
    /// refused: its pages must not stay protected, as no code answers their faults any more.
    pub(crate) fn without_barrier(leave: Permit<'a>) -> Self {
        Self { _leave: leave }
    }

    /// For tests of a mechanism alone, without translations.
    #[cfg(all(test, not(loom)))]
    pub(crate) fn for_test() -> Opening<'static> {
        Opening::without_barrier(Permit::for_test())
    }
}

/// A lock of the embedder's that the handler thread of mode thread takes: see
/// [`PageObserver::fault_lock`](crate::tracker::PageObserver::fault_lock).
pub trait FaultLock: Send + Sync {
    /// Takes the lock, calls `handle` once, and gives the lock back.
    fn hold(&self, handle: &mut dyn FnMut());
}

/// Options of [`open`](super::open).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Options {
    /// The embedder's own handler calls [`handle_fault`](super::handle_fault): install none.
    pub embedder_owns_signals: bool,
}
