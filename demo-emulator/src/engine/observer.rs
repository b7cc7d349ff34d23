//! Linux's changes to guest memory, reported to codewarden.

use std::cell::RefCell;
use std::os::fd::RawFd;
use std::sync::{Mutex, PoisonError};

use codewarden::addr::{GuestAddr, HostAddr, HostRange};
use codewarden::code_buffer::BufferForkGuard;
use codewarden::guest_memory::BackingId;
use codewarden::protection::{Access, Mode};
use codewarden::tracker::{Held, MappingChange, SharedMemory};
use codewarden::{CacheForkGuard, CodeCache};

use super::maintenance;
use super::payload::Payload;
use crate::linux::errno::Errno;
use crate::linux::observer::{Backing, ByteRange, MemoryObserver, UnseenWrite, WithoutCode};
use crate::memory::Window;
use crate::translate::CodeSpace;

thread_local! {
    /// The kernel writes that this thread has announced and not ended.
    static WRITES: RefCell<Vec<Option<Held>>> = const { RefCell::new(Vec::new()) };
}

thread_local! {
    /// The guards that this thread holds while it forks.
    static FORK: RefCell<Option<(CacheForkGuard<'static, Payload>, Option<BufferForkGuard<'static>>)>> =
        const { RefCell::new(None) };
}

/// Reports to a cache.
pub(super) struct Tracking {
    pub(super) cache: &'static CodeCache<Payload>,
    pub(super) space: Option<&'static CodeSpace>,
    pub(super) window: Window,
    pub(super) mode: Mode,
    /// The mapping change that is going on; there is one at a time.
    pub(super) change: Mutex<Option<MappingChange>>,
}

impl Tracking {
    fn guest(&self, host: HostAddr) -> GuestAddr {
        GuestAddr((host.0 - self.window.base() as usize) as u64)
    }

    fn sync(&self, range: Option<HostRange>) {
        let tracker = self.cache.tracker();
        // A page that could not be harvested counts as written, so going on loses nothing.
        let _ = match range {
            Some(range) => tracker.sync_range(self.guest(range.start()), range.len() as u64),
            None => tracker.sync(),
        };
    }
}

impl MemoryObserver for Tracking {
    fn mapping_change_begin(&self, range: HostRange) {
        let change = self.cache.tracker().change_mapping(self.guest(range.start()), range.len() as u64);
        // If a page stayed protected, its blocks are gone all the same; only the kernel's own
        // writes to it fail.
        *self.change.lock().unwrap_or_else(PoisonError::into_inner) = change.ok();
    }

    fn mapping_change_end(&self, _: HostRange, backing: Backing) {
        let change = self.change.lock().unwrap_or_else(PoisonError::into_inner).take();
        let (access, shared) = match backing {
            Backing::Kept => return,
            Backing::Private { access } => (access, None),
            Backing::Shared { device, inode, offset, access } => {
                (access, Some(SharedMemory { backing: BackingId::of_file(device, inode), offset }))
            }
        };
        // A mapping that cannot be tracked is interpreted.
        let _ = change.map(|change| change.finish_replaced(access, shared));
    }

    fn await_harts(&self) {
        self.cache.wait_for_vcpus().expect("a hart is not pinned in a system call");
    }

    fn without_code(&self, range: &ByteRange) -> WithoutCode {
        let len_bytes = (range.end.0 - range.start.0) as u64;
        // A page that stayed protected has no blocks either.
        let change = self.cache.tracker().change_mapping(self.guest(range.start), len_bytes).ok();
        change.map(|change| Box::new(change) as _)
    }

    fn set_access(&self, range: HostRange, access: Access) -> Result<(), Errno> {
        let done = self.cache.tracker().set_access(self.guest(range.start()), range.len() as u64, access);
        done.map_err(|error| match error {
            codewarden::error::Error::System { errno, .. } => Errno(errno),
            _ => Errno(libc::ENOMEM),
        })
    }

    fn kernel_write_begin(&self, start: HostAddr, len_bytes: usize) {
        // If a page could not be made writable, the kernel answers EFAULT.
        let held = self.cache.tracker().prepare_kernel_write(self.guest(start), len_bytes as u64).ok();
        WRITES.with_borrow_mut(|writes| writes.push(held));
    }

    fn kernel_write_end(&self, _: HostAddr, _: usize) {
        WRITES.with_borrow_mut(Vec::pop);
    }

    fn unseen_write(&self, range: &ByteRange) -> UnseenWrite {
        let len_bytes = (range.end.0 - range.start.0) as u64;
        // If a page could not be made writable, the kernel answers EIO.
        let held = self.cache.tracker().prepare_unseen_write(self.guest(range.start), len_bytes).ok();
        held.map(|held| Box::new(held) as _)
    }

    fn changed(&self, range: &ByteRange) {
        let len_bytes = (range.end.0 - range.start.0) as u64;
        // The range is one of the window, which is a region.
        let _ = self.cache.tracker().invalidate(self.guest(range.start), len_bytes);
    }

    fn flush_icache(&self, range: Option<HostRange>) {
        if self.mode == Mode::Deferred {
            self.sync(range);
        }
    }

    fn before_fork(&self) {
        let mut guards = (self.cache.before_fork(), self.space.map(|space| space.buffer().before_fork()));
        // Without memory for it the child makes all its code anew.
        let _ = guards.1.as_mut().map(BufferForkGuard::copy_code);
        FORK.with_borrow_mut(|fork| *fork = Some(guards));
    }

    fn after_fork_parent(&self) {
        FORK.with_borrow_mut(Option::take);
    }

    fn after_fork_child(&self) {
        let Some((cache, buffer)) = FORK.with_borrow_mut(Option::take) else { return };
        // The buffer goes first: whatever frees code must find the child's own buffer.
        let has_code = buffer.as_ref().is_none_or(BufferForkGuard::has_copy);
        let is_lost = buffer.is_some_and(|buffer| buffer.after_fork_child().is_err());
        if is_lost {
            // The buffer's memory is the parent's, so nothing may be compiled. Tier 0 runs
            // everything.
            self.space.iter().for_each(|space| space.lose());
        }
        // A region that cannot be tracked is interpreted.
        let _ = if has_code && !is_lost { cache.after_fork_child_with_blocks() } else { cache.after_fork_child() };
        maintenance::start(self.cache, self.mode);
    }

    fn own_descriptors(&self) -> Vec<RawFd> {
        self.cache.tracker().descriptors()
    }
}
