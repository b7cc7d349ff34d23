//! A mapping that is made outside the guest's window and moved into it.
//!
//! Linux replaces a mapping by another in one step: no thread finds a hole, or half of the new
//! contents. So a mapping that may replace another is made here first, complete, and then moved
//! with mremap. Every failure comes before anything is lost, except a lack of memory for the
//! kernel's own tables.
//!
//! # Safety
//!
//! A staged mapping is at an address of the kernel's choice, and only its value knows the address;
//! it is unmapped with the value. The ranges that are read, shown again or replaced lie in the
//! guest's window, as for [`host_memory`].
#![allow(unsafe_code)]

use std::os::fd::RawFd;
use std::ptr;

use codewarden::addr::HostRange;
use codewarden::protection::Access;

use super::errno::Errno;
use super::host_memory::{self, host_protection};

/// A mapping outside the window, until it is moved or dropped.
#[derive(Debug)]
pub struct Staged {
    start: *mut libc::c_void,
    len_bytes: usize,
}

impl Staged {
    fn map(len_bytes: usize, access: Access, flags: i32, fd: RawFd, offset: u64) -> Result<Self, Errno> {
        let (protection, flags) = (host_protection(access), flags | libc::MAP_NORESERVE);
        // SAFETY: a new mapping at an address of the kernel's choice.
        let start = unsafe { libc::mmap(ptr::null_mut(), len_bytes, protection, flags, fd, offset as libc::off_t) };
        if start == libc::MAP_FAILED { Err(Errno::last()) } else { Ok(Self { start, len_bytes }) }
    }

    /// Zeroed private memory.
    pub fn anonymous(len_bytes: usize, access: Access) -> Result<Self, Errno> {
        Self::map(len_bytes, access, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1, 0)
    }

    /// Private memory with the bytes of `fd` from `offset` on; zero behind its end.
    pub fn file(len_bytes: usize, access: Access, fd: RawFd, offset: u64) -> Result<Self, Errno> {
        let staged = Self::anonymous(len_bytes, Access::ReadWrite)?;
        // SAFETY: the mapping has that length and belongs to this value alone.
        unsafe { host_memory::read_file(staged.start.cast(), len_bytes, fd, offset)? };
        staged.protected(access)
    }

    /// Shared memory: a file's pages from `offset` on, or new ones for an `fd` of -1.
    pub fn shared(len_bytes: usize, access: Access, fd: RawFd, offset: u64) -> Result<Self, Errno> {
        let anonymous = if fd < 0 { libc::MAP_ANONYMOUS } else { 0 };
        Self::map(len_bytes, access, libc::MAP_SHARED | anonymous, fd, offset)
    }

    /// A second view of the shared memory from the start of `from` on, with any current protection
    /// of `from`.
    pub fn view_of(from: HostRange, len_bytes: usize, access: Access) -> Result<Self, Errno> {
        // SAFETY: with an old length of 0 nothing of the window is changed.
        let start = unsafe { libc::mremap(from.start().as_ptr().cast(), 0, len_bytes, libc::MREMAP_MAYMOVE) };
        if start == libc::MAP_FAILED {
            return Err(Errno::last());
        }
        Self { start, len_bytes }.protected(access)
    }

    /// Private memory with the contents of `from`, which must be readable and not longer; zero
    /// after them.
    pub fn copy_of(from: HostRange, len_bytes: usize, access: Access) -> Result<Self, Errno> {
        debug_assert!(from.len() <= len_bytes);
        let staged = Self::anonymous(len_bytes, Access::ReadWrite)?;
        // SAFETY: the mapping has that length, is zero and belongs to this value alone.
        unsafe { host_memory::copy_pages(from, staged.start.cast()) };
        staged.protected(access)
    }

    fn protected(self, access: Access) -> Result<Self, Errno> {
        // SAFETY: the mapping belongs to this value alone.
        let done = unsafe { libc::mprotect(self.start, self.len_bytes, host_protection(access)) };
        if done == 0 { Ok(self) } else { Err(Errno::last()) }
    }

    /// Replaces the mapping at `to`, a range of its length, in one step. After an error the new
    /// mapping, none, or the old one is there.
    pub fn move_onto(self, to: HostRange) -> Result<(), Errno> {
        debug_assert_eq!(to.len(), self.len_bytes);
        let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
        // SAFETY: it replaces a range of the guest's window (module head).
        let moved = unsafe { libc::mremap(self.start, self.len_bytes, self.len_bytes, flags, to.start().as_ptr()) };
        if moved == libc::MAP_FAILED {
            return Err(Errno::last());
        }
        std::mem::forget(self);
        Ok(())
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        // SAFETY: nothing refers to it. A failure leaves it mapped.
        unsafe { libc::munmap(self.start, self.len_bytes) };
    }
}
