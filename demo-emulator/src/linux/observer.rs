//! The observer of Linux's changes to guest memory.
//!
//! Bytes change without any guest store: the guest maps and unmaps, the kernel writes a `read`
//! buffer, a fork copies everything. An observer that has translations of those bytes receives each
//! such event here, in order, on the thread that causes it. Ranges are host ranges inside the
//! guest's window.
//!
//! Calls never nest: a mapping change ends before the next one begins. Only
//! [`MemoryObserver::set_access`] may come inside one. Mapping changes are made one at a time (the
//! address space's lock is held), kernel writes by many threads at once.

use std::os::fd::RawFd;

use codewarden::addr::{HostAddr, HostRange};
use codewarden::protection::Access;

use super::errno::Errno;

/// The host mapping of a range after a mapping change.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Backing {
    /// The same host mapping as before, with its pages, its protection and its registrations. Its
    /// contents may still be gone (zero).
    Kept,
    /// A private mapping replaced it: no registration survives.
    Private {
        /// The guest's access to it.
        access: Access,
    },
    /// A shared mapping replaced it. Other ranges with the same file and the
    /// same offsets are aliases of it.
    Shared {
        /// Device of the file, 0 for anonymous shared memory.
        device: u64,
        /// Inode of the file, a number of its own for anonymous shared memory.
        inode: u64,
        /// Offset in the file of the range's first byte.
        offset: u64,
        /// The guest's access to it.
        access: Access,
    },
}

/// Host addresses inside the guest's window, not of whole pages.
pub type ByteRange = std::ops::Range<HostAddr>;

/// Keeps the announcement of [`MemoryObserver::unseen_write`] in force.
pub type UnseenWrite = Option<Box<dyn std::any::Any + Send>>;

/// Stops code from being made, see [`MemoryObserver::without_code`].
pub type WithoutCode = Option<Box<dyn std::any::Any + Send>>;

/// Receives every event that changes guest memory without a guest store.
pub trait MemoryObserver: Send + Sync {
    /// The mapping, the contents or the executable bit of `range` are about to
    /// change. Nothing may be translated from it until the end is announced.
    fn mapping_change_begin(&self, range: HostRange);

    /// The change is done: no translation of `range` made before is true.
    fn mapping_change_end(&self, range: HostRange, backing: Backing);

    /// Returns when no other hart is inside a translation that a change has ended. Needed for
    /// changes that let such code, while it runs, change itself unseen.
    fn await_harts(&self);

    /// On return no translation of the range can be reached, not even one that compares its bytes,
    /// and none is made until the returned value is dropped. May be called outside a mapping change
    /// and last over it.
    fn without_code(&self, range: &ByteRange) -> WithoutCode;

    /// Sets the guest's own protection on the host. An observer that write-protects pages with
    /// mprotect merges both here.
    fn set_access(&self, range: HostRange, access: Access) -> Result<(), Errno>;

    /// The kernel is about to write `len_bytes` from `start` for the guest.
    fn kernel_write_begin(&self, start: HostAddr, len_bytes: usize);

    /// The system call that was announced with the same range has returned.
    fn kernel_write_end(&self, start: HostAddr, len_bytes: usize);

    /// Bytes of the range are about to change in a way that no page protection detects: through a
    /// file that is mapped there, or by `/proc/self/mem`. The change is complete when the returned
    /// value is dropped.
    fn unseen_write(&self, range: &ByteRange) -> UnseenWrite;

    /// Bytes of the range have changed.
    fn changed(&self, range: &ByteRange);

    /// The guest flushed its instruction cache: from now on fetches must see its writes to `range`,
    /// or to any address.
    fn flush_icache(&self, range: Option<HostRange>);

    /// This thread is about to fork; the address space does not change meanwhile.
    fn before_fork(&self);

    /// The fork is done or failed; this is the parent.
    fn after_fork_parent(&self);

    /// The fork is done; this is the child, with this thread alone.
    fn after_fork_child(&self);

    /// The file descriptors that the guest must neither close nor replace.
    fn own_descriptors(&self) -> Vec<RawFd> {
        Vec::new()
    }
}

/// The interpreter's observer. The interpreter has no translations, so this ignores every event.
#[derive(Debug, Default)]
pub struct NoTracking;

impl MemoryObserver for NoTracking {
    fn mapping_change_begin(&self, _range: HostRange) {}
    fn mapping_change_end(&self, _range: HostRange, _backing: Backing) {}
    fn await_harts(&self) {}
    fn without_code(&self, _range: &ByteRange) -> WithoutCode {
        None
    }

    fn set_access(&self, range: HostRange, access: Access) -> Result<(), Errno> {
        super::host_memory::protect(range, access)
    }

    fn kernel_write_begin(&self, _start: HostAddr, _len_bytes: usize) {}
    fn kernel_write_end(&self, _start: HostAddr, _len_bytes: usize) {}
    fn unseen_write(&self, _range: &ByteRange) -> UnseenWrite {
        None
    }
    fn changed(&self, _range: &ByteRange) {}
    fn flush_icache(&self, _range: Option<HostRange>) {}
    fn before_fork(&self) {}
    fn after_fork_parent(&self) {}
    fn after_fork_child(&self) {}
}
