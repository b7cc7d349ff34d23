//! The guest's address window: guest address `g` lives at host address
//! `base + g`, for every `g` below [`WINDOW_LEN_BYTES`].
//!
//! The whole window is reserved once, without access and without memory behind it; guest mappings
//! are placed over it with `MAP_FIXED`. So the host page's own protection decides the guest's loads
//! and stores, and no table is read on the way. Instruction fetch is the exception: guest code is
//! never executable for the host. A table with one byte for each page tells which pages the guest
//! may run. Guards before
//! and behind the window catch accesses near its ends, so that one test of an address serves for
//! all accesses close to it. If possible, the window lies at the host address that is its own
//! length: then compiled code needs one register to test an address and to reach it.
//!
//! # Safety
//!
//! The two mappings made here are never unmapped, so the pointers of a `Window` are valid for as
//! long as the process lives. The window's memory is never touched through a reference, only by the
//! stubs of [`access`](super::access), which survive any fault. The table consists of atomics,
//! which are zero when mapped, a valid value.
#![allow(unsafe_code)]

use std::io;
use std::ops::Range;
use std::ptr;
use std::sync::atomic::{AtomicU8, Ordering};

use codewarden::addr::PageSize;

/// Bytes of guest address space: the same as for an Sv39 user process.
pub const WINDOW_LEN_BYTES: u64 = 1 << 38;

/// Bytes of a guest page.
pub const PAGE_LEN_BYTES: u64 = 4096;

/// The page may be read.
pub const READ: u8 = 1;
/// The page may be written.
pub const WRITE: u8 = 2;
/// Instructions may be fetched from the page.
pub const EXEC: u8 = 4;

const PAGE_SHIFT: u32 = PAGE_LEN_BYTES.trailing_zeros();
const PAGE_COUNT: usize = (WINDOW_LEN_BYTES >> PAGE_SHIFT) as usize;

/// Bytes of the guards before and behind the window, which nothing is ever mapped in.
pub const GUARD_LEN_BYTES: usize = 64 << 10;

/// The guest's address space. A copy means the same space.
#[derive(Clone, Copy, Debug)]
pub struct Window {
    base: *mut u8,
    permissions: *const AtomicU8,
}

// SAFETY: the pointers are to mappings of the whole process that are never unmapped; their memory
// is accessed by fault-proof stubs and atomics.
unsafe impl Send for Window {}
// SAFETY: as for `Send`; no method needs exclusive access.
unsafe impl Sync for Window {}

impl Window {
    /// An error on a host with other pages than a guest's, which maps and protects single pages.
    pub fn check_host_page() -> Result<(), String> {
        match PageSize::host().bytes() as u64 {
            PAGE_LEN_BYTES => Ok(()),
            other => Err(format!("a guest has pages of {PAGE_LEN_BYTES} bytes, this kernel has pages of {other}")),
        }
    }

    /// Reserves a new, empty guest address space.
    pub fn reserve() -> io::Result<Self> {
        let wanted = WINDOW_LEN_BYTES as usize - GUARD_LEN_BYTES;
        let with_guards = WINDOW_LEN_BYTES as usize + 2 * GUARD_LEN_BYTES;
        let before = reserve(wanted, with_guards, libc::PROT_NONE)?;
        let permissions = reserve(0, PAGE_COUNT, libc::PROT_READ | libc::PROT_WRITE)?;
        Ok(Self { base: before.wrapping_add(GUARD_LEN_BYTES), permissions: permissions.cast() })
    }

    /// Host address of guest address 0.
    pub fn base(&self) -> *mut u8 {
        self.base
    }

    /// The host address of a guest address in the window.
    #[inline]
    pub fn host(&self, addr: u64) -> Option<*mut u8> {
        (addr < WINDOW_LEN_BYTES).then(|| self.base.wrapping_add(addr as usize))
    }

    /// The guest address of a host address in the window.
    pub fn guest(&self, host: usize) -> Option<u64> {
        let addr = (host as u64).checked_sub(self.base as u64)?;
        (addr < WINDOW_LEN_BYTES).then_some(addr)
    }

    /// The guest's permissions for the page of `addr`: [`READ`], [`WRITE`] and [`EXEC`] bits; 0 for
    /// a page that is not mapped.
    #[inline]
    pub fn permissions(&self, addr: u64) -> u8 {
        if addr >= WINDOW_LEN_BYTES {
            return 0;
        }
        self.permission(addr >> PAGE_SHIFT).load(Ordering::Acquire)
    }

    /// Records the guest's permissions for the pages that `range` touches. The caller maps or
    /// protects the memory itself.
    pub fn set_permissions(&self, range: Range<u64>, permissions: u8) {
        let end = range.end.min(WINDOW_LEN_BYTES).div_ceil(PAGE_LEN_BYTES);
        for page in range.start >> PAGE_SHIFT..end {
            self.permission(page).store(permissions, Ordering::Release);
        }
    }

    fn permission(&self, page: u64) -> &AtomicU8 {
        debug_assert!((page as usize) < PAGE_COUNT);
        // SAFETY: both callers bound the address by the window; the table has a byte for each of
        // its pages and is never unmapped.
        unsafe { &*self.permissions.add(page as usize) }
    }
}

/// Reserves memory at the address `wanted` if it is free, else anywhere.
fn reserve(wanted: usize, len_bytes: usize, protection: libc::c_int) -> io::Result<*mut u8> {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    // SAFETY: a new anonymous mapping at an address of the kernel's choice: without MAP_FIXED the
    // address is a hint.
    let mapping = unsafe { libc::mmap(ptr::without_provenance_mut(wanted), len_bytes, protection, flags, -1, 0) };
    if mapping == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(mapping.cast()) }
}
