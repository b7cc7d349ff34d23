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
//! A [`Views`] owns both address ranges: `map` maps them, `renew` and `replace_by` put other memory behind
//! them, and the drop unmaps them. No reference to the bytes is ever formed, but for the word behind a
//! copy's code, which is used as an atomic alone.
#![allow(unsafe_code)]

use core::ffi::c_void;
use core::sync::atomic::{AtomicU32, Ordering};
use std::ops::Range;
use std::ptr;

use rustix::io::Errno;
use rustix::mm::{Advice, MapFlags, MprotectFlags, MremapFlags, ProtFlags};

use crate::addr::PageSize;
use crate::error::Error;

/// A copy of code has the pages of this many bytes mapped at a time: a process is near its largest size
/// when it forks.
const COPIED_AT_ONCE_BYTES: usize = 1 << 20;

/// See the module.
#[derive(Debug)]
pub(crate) struct Views {
    pub(crate) rw: *mut u8,
    pub(crate) rx: *mut u8,
    pub(crate) len: usize,
}

// SAFETY: two addresses of mappings that belong to the process, not a thread.
unsafe impl Send for Views {}
// SAFETY: as for `Send`; an allocation reaches bytes of its own range through a shared `Views`, and the kernel
// copies all for a fork's child.
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
        copied.map_err(|errno| self.not_replaced(rw, errno))?;
        self.make_writable()
    }

    /// The kernel may have unmapped the view before it failed. The addresses stay this object's.
    fn not_replaced(&self, view: *mut c_void, errno: Errno) -> Error {
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE | MapFlags::FIXED_NOREPLACE;
        // SAFETY: FIXED_NOREPLACE replaces nothing.
        let _ = unsafe { rustix::mm::mmap_anonymous(view, self.len, ProtFlags::empty(), flags) };
        Error::system("mremap of code", view as usize, self.len, errno)
    }

    /// A copy of `ranges`, with zeroes elsewhere, for one child of a fork. Another thread may be writing to
    /// a range: the copy of its bytes is any.
    pub(crate) fn copy(&self, ranges: impl Iterator<Item = Range<usize>>) -> Result<CodeCopy, Error> {
        let views = Self::map(self.len + PageSize::host().bytes())?;
        for Range { mut start, end } in ranges {
            debug_assert!(end <= self.len);
            while start < end {
                let piece_bytes = COPIED_AT_ONCE_BYTES.min(end - start);
                // Reading the writable view would map its pages again.
                copy_by_kernel(self.rx.wrapping_add(start), views.rw.wrapping_add(start), piece_bytes)?;
                views.unmap_written();
                start += piece_bytes;
            }
        }
        Ok(CodeCopy(views))
    }

    /// In a fork's child: puts the memory of `copy` behind both views, at the same addresses.
    ///
    /// After an error each may have the old memory or none. [`Error::BadArgument`]: another child has taken the
    /// copy, and nothing was changed.
    pub(crate) fn replace_by(&self, copy: CodeCopy) -> Result<(), Error> {
        if !copy.take() {
            return Err(Error::BadArgument("another child has taken this copy of the code: fork once under a guard"));
        }
        for (from, to) in [(copy.0.rx, self.rx), (copy.0.rw, self.rw)] {
            // SAFETY: moves a view of the copy, which is not used any more, in place of one of this object. The
            // copy's drop unmaps what is left: no other thread maps anything in the hole.
            unsafe { rustix::mm::mremap_fixed(from.cast(), self.len, self.len, MremapFlags::MAYMOVE, to.cast()) }
                .map_err(|errno| self.not_replaced(to.cast(), errno))?;
        }
        Ok(())
    }

    fn make_writable(&self) -> Result<(), Error> {
        let flags = MprotectFlags::READ | MprotectFlags::WRITE;
        // SAFETY: a mapping of this object, which has not been written to or run yet.
        unsafe { rustix::mm::mprotect(self.rw.cast(), self.len, flags) }
            .map_err(|errno| Error::system("mprotect of code", self.rw as usize, self.len, errno))
    }

    /// Takes the pages of the writable view out of the process's page table, so that written code counts once in
    /// the resident size and not twice. No byte is lost: the memory is shared, and the executable view shows it.
    /// A later access maps its page again, and so does one of another thread at this moment.
    ///
    /// If the system refuses (locked memory), the pages stay.
    pub(crate) fn unmap_written(&self) {
        // SAFETY: a shared mapping of this object, whose bytes no view loses by it.
        let _ = unsafe { rustix::mm::madvise(self.rw.cast(), self.len, Advice::LinuxDontNeed) };
    }

    /// Gives the memory of `len` bytes at `start`, whole pages that are not in use, back to the
    /// system. Both views show zeroes there afterwards.
    pub(crate) fn give_back(&self, start: usize, len: usize) -> Result<(), Errno> {
        // SAFETY: inside the view; the caller says that the bytes are not in use.
        unsafe { rustix::mm::madvise(self.rw.wrapping_add(start).cast(), len, Advice::LinuxRemove) }
    }
}

/// A copy of code for a fork's child. Parent and children share it: so one child takes it. The views are a page
/// longer than the code.
#[derive(Debug)]
pub(crate) struct CodeCopy(Views);

impl CodeCopy {
    /// Whether no process has taken it before.
    fn take(&self) -> bool {
        let word = self.0.rw.wrapping_add(self.0.len - PageSize::host().bytes());
        // SAFETY: a page of the copy's own that has no code.
        unsafe { AtomicU32::from_ptr(word.cast()) }.swap(1, Ordering::SeqCst) == 0
    }
}

/// Copies bytes that another thread may be writing, which Rust's own copy must not.
fn copy_by_kernel(from: *mut u8, into: *mut u8, len: usize) -> Result<(), Error> {
    let mut done = 0;
    while done < len {
        let piece = |start: *mut u8| libc::iovec { iov_base: start.wrapping_add(done).cast(), iov_len: len - done };
        let (local, remote) = (piece(into), piece(from));
        // SAFETY: `into` is memory of a copy, which nobody else has.
        let copied = unsafe { libc::process_vm_readv(libc::getpid(), &raw const local, 1, &raw const remote, 1, 0) };
        if copied <= 0 {
            let errno = Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::FAULT);
            return Err(Error::system("process_vm_readv", from as usize, len, errno));
        }
        done += copied as usize;
    }
    Ok(())
}

impl Drop for Views {
    fn drop(&mut self) {
        for view in [self.rw, self.rx] {
            // SAFETY: mapped by `map` with this length, and still this object's. Every allocation holds the
            // `Shared` that contains this, so none is left.
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
