//! The two mappings of a code buffer's memory.
//!
//! The memory is shared and anonymous. It needs no descriptor and has no file size, so the limits
//! on open files and on file sizes do not concern it. `mremap` with an old size of 0 makes the
//! second view: it leaves the first view in place and maps the same memory at another address.
//!
//! The executable view is mapped first and never changes. The copy gives up the right to execute
//! and gains the right to write. Kernels and filters that refuse to make memory executable
//! afterwards (`PR_SET_MDWE`, systemd's `MemoryDenyWriteExecute`) allow that order.
//!
//! # Safety
//!
//! A [`Views`] owns both address ranges: `map` maps them, `renew` replaces them in place and the
//! drop unmaps them. No reference to the bytes is ever formed.
#![allow(unsafe_code)]

use core::ffi::c_void;
use std::mem::ManuallyDrop;
use std::ops::Range;
use std::ptr;

use rustix::io::Errno;
use rustix::mm::{Advice, MapFlags, MprotectFlags, MremapFlags, ProtFlags};

use crate::error::Error;

/// See the module.
#[derive(Debug)]
pub(crate) struct Views {
    pub(crate) rw: *mut u8,
    pub(crate) rx: *mut u8,
    pub(crate) len: usize,
}

// SAFETY: two addresses of mappings that belong to the process, not a thread.
unsafe impl Send for Views {}
// SAFETY: as for `Send`; only an allocation reaches bytes through a shared `Views`, and it owns its
// range.
unsafe impl Sync for Views {}

impl Views {
    /// Views of `len` bytes (whole pages) of new memory, at addresses that the kernel chooses.
    pub(crate) fn map(len: usize) -> Result<Self, Error> {
        // SAFETY: a new mapping at an address that the kernel chooses.
        let rx = unsafe { map_executable(ptr::null_mut(), len, MapFlags::empty()) }?;
        // SAFETY: the mapping is our own and stays in place; the copy is a new one.
        let rw = unsafe { rustix::mm::mremap(rx, 0, len, MremapFlags::MAYMOVE) };
        let rw = rw.map_err(|errno| Error::system("mremap of code", rx as usize, len, errno));
        let rw = rw.inspect_err(|_| {
            // SAFETY: mapped above, and no other code has the address.
            let _ = unsafe { rustix::mm::munmap(rx, len) };
        })?;
        let views = Self { rw: rw.cast(), rx: rx.cast(), len };
        views.make_writable()?;
        Ok(views)
    }

    /// Puts new memory, full of zeroes, behind both views, at the same addresses.
    ///
    /// After an error the old memory may be behind one of them or behind both.
    pub(crate) fn renew(&self) -> Result<(), Error> {
        let (rw, rx) = (self.rw.cast::<c_void>(), self.rx.cast::<c_void>());
        // SAFETY: replaces the executable view of this object.
        unsafe { map_executable(rx, self.len, MapFlags::FIXED) }?;
        // SAFETY: replaces the writable view of this object by a copy of the other one.
        let copied = unsafe { rustix::mm::mremap_fixed(rx, 0, self.len, MremapFlags::MAYMOVE, rw) };
        if let Err(errno) = copied {
            // The kernel may have unmapped the view before it failed. The addresses stay this
            // object's.
            let flags = MapFlags::PRIVATE | MapFlags::NORESERVE | MapFlags::FIXED_NOREPLACE;
            // SAFETY: FIXED_NOREPLACE replaces nothing.
            let _ = unsafe { rustix::mm::mmap_anonymous(rw, self.len, ProtFlags::empty(), flags) };
            return Err(Error::system("mremap of code", rw as usize, self.len, errno));
        }
        self.make_writable()
    }

    /// Views of new memory at addresses that the kernel chooses, with the same bytes in `ranges` and
    /// zeroes elsewhere. Nothing writes to these ranges meanwhile.
    pub(crate) fn copy(&self, ranges: impl Iterator<Item = Range<usize>>) -> Result<Self, Error> {
        let copy = Self::map(self.len)?;
        for range in ranges {
            debug_assert!(range.end <= self.len);
            let (from, to) = (self.rw.wrapping_add(range.start), copy.rw.wrapping_add(range.start));
            // SAFETY: inside both views; the copy is new.
            unsafe { ptr::copy_nonoverlapping(from, to, range.len()) };
        }
        Ok(copy)
    }

    /// Puts the memory of `other`, views of the same length, behind both views, at the same
    /// addresses.
    ///
    /// After an error the old memory may be behind one of them or behind both.
    pub(crate) fn replace_by(&self, other: Self) -> Result<(), Error> {
        let other = ManuallyDrop::new(other);
        for (from, to) in [(other.rx, self.rx), (other.rw, self.rw)] {
            // SAFETY: moves a view of `other`, which is not used any more, in place of one of this
            // object.
            unsafe { rustix::mm::mremap_fixed(from.cast(), self.len, self.len, MremapFlags::MAYMOVE, to.cast()) }
                .map_err(|errno| Error::system("mremap of code", to as usize, self.len, errno))?;
        }
        Ok(())
    }

    fn make_writable(&self) -> Result<(), Error> {
        let flags = MprotectFlags::READ | MprotectFlags::WRITE;
        // SAFETY: a mapping of this object, which has not been written to or run yet.
        unsafe { rustix::mm::mprotect(self.rw.cast(), self.len, flags) }
            .map_err(|errno| Error::system("mprotect of code", self.rw as usize, self.len, errno))
    }

    /// Gives the memory of `len` bytes at `start`, whole pages that are not in use, back to the
    /// system. Both views show zeroes there afterwards.
    pub(crate) fn give_back(&self, start: usize, len: usize) -> Result<(), Errno> {
        // SAFETY: inside the view; the caller says that the bytes are not in use.
        unsafe { rustix::mm::madvise(self.rw.wrapping_add(start).cast(), len, Advice::LinuxRemove) }
    }
}

impl Drop for Views {
    fn drop(&mut self) {
        for view in [self.rw, self.rx] {
            // SAFETY: mapped by `map` with this length. Every allocation holds the `Shared` that
            // contains this, so none is left.
            let _ = unsafe { rustix::mm::munmap(view.cast(), self.len) };
        }
    }
}

/// New shared memory that takes no swap space before it is touched.
///
/// # Safety
///
/// With `MapFlags::FIXED` the caller owns the mapping at `at`.
unsafe fn map_executable(at: *mut c_void, len: usize, more: MapFlags) -> Result<*mut c_void, Error> {
    let flags = MapFlags::SHARED | MapFlags::NORESERVE | more;
    // SAFETY: the caller's obligation.
    unsafe { rustix::mm::mmap_anonymous(at, len, ProtFlags::READ | ProtFlags::EXEC, flags) }
        .map_err(|errno| Error::system("mmap of code", at as usize, len, errno))
}
