//! How a page becomes read-only and how a write to it is learned of.
//!
//! A [`Protection`] is one mechanism (uffd-wp with SIGBUS, uffd-wp with a
//! handler thread, uffd-wp asynchronous, mprotect, nothing) behind one
//! contract. It knows ranges of host memory and nothing else: no page state, no
//! block. What a page's state is, and when it may change, is the tracker's.
//!
//! # Contract
//!
//! - When [`Protection::protect`] has returned, no store to the range that had
//!   not retired before can retire without being learned of.
//! - A synchronous mechanism calls its [`FaultSink`] for each store that hits a
//!   protected page, before the store retires; the sink un-protects (or not),
//!   and the store is tried again.
//! - A deferred one lets the store retire and reports its page at the next
//!   [`Protection::harvest`], which protects it again atomically.
//! - [`Protection::unprotect`] and everything that a signal handler reaches take
//!   no lock, allocate nothing, use no thread-locals and keep errno.

use core::fmt;

use crate::addr::{HostAddr, HostRange};
use crate::error::Error;

/// How the writes to a region are learned of.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub enum Mode {
    /// uffd-wp, the fault handled by SIGBUS in the faulting thread. Synchronous.
    Sigbus,
    /// uffd-wp, the fault handled by a thread of the library; the kernel's own
    /// writes are covered where the permissions allow. Synchronous.
    Thread,
    /// uffd-wp asynchronous: writes are found by `sync`.
    Deferred,
    /// mprotect and SIGSEGV: the baseline that every kernel has. Synchronous.
    Mprotect,
    /// No tracking at all: promises nothing.
    None,
}

impl Mode {
    /// All modes, best synchronous one first.
    pub const ALL: [Mode; 5] = [Mode::Sigbus, Mode::Thread, Mode::Mprotect, Mode::Deferred, Mode::None];

    /// Whether blocks are unreachable as soon as the store has retired.
    pub fn is_synchronous(self) -> bool {
        matches!(self, Mode::Sigbus | Mode::Thread | Mode::Mprotect)
    }

    /// The name that command lines and reports use.
    pub fn name(self) -> &'static str {
        match self {
            Mode::Sigbus => "sigbus",
            Mode::Thread => "thread",
            Mode::Deferred => "deferred",
            Mode::Mprotect => "mprotect",
            Mode::None => "none",
        }
    }

    /// The mode of that [`Mode::name`].
    pub fn from_name(name: &str) -> Option<Self> {
        Mode::ALL.into_iter().find(|mode| mode.name() == name)
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A store that hit a protected page of a synchronous region.
#[derive(Clone, Copy, Debug)]
pub struct WriteFault {
    /// Where it faulted; not the extent of the store, which nobody knows here.
    pub addr: HostAddr,
    /// The host instruction that stored; `None` where a thread handles the
    /// fault of another one or the kernel wrote.
    pub pc: Option<HostAddr>,
    /// Kernel thread id of the storing thread, 0 where it is not known.
    pub tid: u32,
}

/// What became of a fault.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use]
pub enum Handled {
    /// It was ours: the store may be tried again.
    Retry,
    /// It was not: somebody else's handler must see it.
    NotOurs,
}

/// Who is told of write faults. Called in a signal handler or in the handler
/// thread, by any number of threads at once.
///
/// # Safety
///
/// The implementation is async-signal-safe: no lock, no allocation, no
/// thread-local, no panic, no access to tracked memory, errno kept.
#[allow(unsafe_code)]
pub unsafe trait FaultSink: Send + Sync {
    /// Resolves one write fault: un-protects the page or says that it is not
    /// ours.
    fn on_write(&self, fault: &WriteFault) -> Handled;
}

/// What happens to a write by the kernel for the guest (`read`, an out
/// parameter) into a protected page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum KernelWrites {
    /// It works and is learned of like any other.
    Tracked,
    /// The system call fails with EFAULT or is cut short: announce the write.
    Refused,
    /// It works and nobody is told.
    Missed,
}

/// What the guest itself may do with memory, as its own mprotect says.
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
    /// Which one it is.
    fn mode(&self) -> Mode;

    /// What the kernel's own writes do.
    fn kernel_writes(&self) -> KernelWrites;

    /// Makes `range` trackable: mapped, by whom it may be; writable afterwards.
    /// Again on a range whose mapping was replaced.
    fn attach(&self, range: HostRange) -> Result<(), Error>;

    /// Ends the tracking of `range`: nothing in it stays protected, no writer
    /// stays asleep. A piece that is no longer mapped is no error.
    fn detach(&self, range: HostRange) -> Result<(), Error>;

    /// Write-protects `range`, all of it attached. In a deferred mechanism this
    /// is a harvest that must be made by [`Protection::harvest`] instead.
    fn protect(&self, range: HostRange) -> Result<(), Error>;

    /// Lets stores to `range` through again and wakes who waits for it.
    /// Async-signal-safe.
    fn unprotect(&self, range: HostRange) -> Result<(), Error>;

    /// Deferred only: reports the parts of `range` that were written since they
    /// were last protected, and protects them again in the same step.
    fn harvest(&self, range: HostRange, written: &mut dyn FnMut(HostRange)) -> Result<(), Error>;

    /// Carries out the guest's own mprotect on `range`, without losing the
    /// tracking's protection of any page of it.
    fn set_access(&self, range: HostRange, access: Access) -> Result<(), Error>;
}
