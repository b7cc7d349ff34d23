//! `/proc/self/pagemap`: its entries, and `PAGEMAP_SCAN`, which finds the written pages and protects
//! them again in one step.
//!
//! With `PM_SCAN_WP_MATCHING` the kernel reports the written pages of a span and write-protects
//! them again, atomically per page table and with one TLB flush for the span. A page replaced by
//! `MAP_FIXED` has no asynchronous protection. Without `PM_SCAN_CHECK_WPASYNC` the kernel skips it
//! in silence. With it the call fails with EPERM. The pages that it had found by then are not
//! reported, but are protected again. So on EPERM the whole span counts as written.
//!
//! A descriptor of `/proc/self/pagemap` stays with the address space that
//! opened it: in a fork's child it would scan the parent.
//!
//! # Safety
//!
//! The ioctl works on `pm_scan_arg` and a buffer that outlives the call.
#![allow(unsafe_code)]

use core::ffi::c_void;
use core::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};

use linux_raw_sys::general as raw;
use rustix::fs::{Mode as FileMode, OFlags};
use rustix::io::Errno;
use rustix::ioctl::{Ioctl, IoctlOutput, Opcode, opcode};

use crate::addr::{HostAddr, HostRange, PageSize};
use crate::error::Error;
use crate::sys::descriptor;
use crate::sys::guarded_fd::GuardedFd;
use crate::sys::process::Owner;

/// Bits of an entry. `Documentation/admin-guide/mm/pagemap.rst` of the kernel has them all.
pub(crate) mod entry {
    /// The page table leads to a page.
    pub(crate) const PRESENT: u64 = 1 << 63;
    /// The page is in swap or on its way to another place, or a marker stands for it.
    pub(crate) const SWAPPED: u64 = 1 << 62;
    /// A userfaultfd holds the page write-protected. Always 0 before Linux 5.14.
    pub(crate) const UFFD_WP: u64 = 1 << 57;
}

/// Number of regions that one call reports before it stops and is called again.
const REGIONS_PER_CALL: usize = 128;

/// `/proc/self/pagemap`.
#[derive(Debug)]
pub(crate) struct Pagemap {
    fd: GuardedFd,
    page: PageSize,
    owner: Owner,
}

impl Pagemap {
    /// Opens it.
    pub(crate) fn open(page: PageSize) -> Result<Self, Error> {
        let owner = Owner::this_process()?;
        Ok(Self { fd: GuardedFd::new(open_own()?), page, owner })
    }

    /// In a fork's child, with no other thread inside: closes the parent's file.
    /// [`Pagemap::open_in_child`] follows.
    pub(crate) fn close_inherited(&self) {
        self.fd.close_inherited();
    }

    /// Opens this process's own file in the place of its parent's.
    pub(crate) fn open_in_child(&self) -> Result<(), Error> {
        self.fd.renew(open_own()?);
        self.owner.take_over()
    }

    /// Closes it, when it is not used any more.
    pub(crate) fn close(&self) {
        self.fd.close();
    }

    /// Whether the descriptor is still the one that was opened.
    pub(crate) fn check(&self) -> Result<(), Error> {
        if self.fd.is_ours() { Ok(()) } else { Err(Error::TrackingLost) }
    }

    /// Its number in this process.
    pub(crate) fn descriptor(&self) -> Option<RawFd> {
        self.fd.number().filter(|_| self.owner.is_current())
    }

    /// Reads the entry of each host page from `start` on.
    pub(crate) fn entries(&self, start: HostAddr, into: &mut [u64]) -> Result<(), Error> {
        if !self.owner.is_current() {
            return Err(Error::InForkChild);
        }
        read_entries(self.fd.as_fd(), start, into).map_err(|errno| match errno {
            Errno::BADF => Error::TrackingLost,
            errno => Error::system("read(/proc/self/pagemap)", start.0, into.len() * PageSize::host().bytes(), errno),
        })?;
        // Another file under our number can be read too.
        self.check()
    }

    /// Whether the kernel has the call and allows it: then an empty scan is no error.
    pub(crate) fn ask() -> Result<(), Errno> {
        let fd = open_file()?;
        let at = PageSize::host().bytes();
        let mut regions = [MaybeUninit::uninit()];
        scan_once(fd.as_fd(), &What::WRITTEN_AND_PROTECT, at, at, &mut regions).map(|_| ())
    }

    /// The entry of the host page at `start`, by a descriptor of its own.
    pub(crate) fn ask_entry(start: HostAddr) -> Result<u64, Errno> {
        let mut entry = [0];
        read_entries(open_file()?.as_fd(), start, &mut entry)?;
        Ok(entry[0])
    }

    /// Reports the pages of `range` that were written since they were last protected, and
    /// protects them again. [`Error::TrackingLost`] if a part of the range is no longer under
    /// asynchronous protection, or the descriptor is gone: then all of it counts as written.
    pub(crate) fn harvest(&self, range: HostRange, written: &mut dyn FnMut(HostRange)) -> Result<(), Error> {
        self.scan(&What::WRITTEN_AND_PROTECT, range, written).map_err(|errno| match errno {
            Errno::PERM | Errno::BADF | Errno::NOTTY => Error::TrackingLost,
            errno => Error::system("PAGEMAP_SCAN", range.start().0, range.len(), errno),
        })
    }

    /// Reports the pages of `range` that a userfaultfd holds write-protected; changes nothing.
    /// For tests, which compare the library's own page table with it.
    ///
    /// Those pages are present, or have a marker, and are not "written"; an empty page-table
    /// entry is neither.
    #[cfg(test)]
    pub(crate) fn protected(&self, range: HostRange) -> Result<Vec<HostRange>, Error> {
        let mut found = Vec::new();
        self.scan(&What::PROTECTED, range, &mut |part| found.push(part))
            .map_err(|errno| Error::system("PAGEMAP_SCAN", range.start().0, range.len(), errno))?;
        Ok(found)
    }

    /// Reports the parts of `range` that are mapped by huge pages. For tests.
    #[cfg(test)]
    pub(crate) fn huge(&self, range: HostRange) -> Result<Vec<HostRange>, Error> {
        let mut found = Vec::new();
        self.scan(&What::HUGE, range, &mut |part| found.push(part))
            .map_err(|errno| Error::system("PAGEMAP_SCAN", range.start().0, range.len(), errno))?;
        Ok(found)
    }

    fn scan(&self, what: &What, range: HostRange, found: &mut dyn FnMut(HostRange)) -> Result<(), Errno> {
        if !self.owner.is_current() {
            return Err(Errno::PERM);
        }
        let mut regions = [const { MaybeUninit::uninit() }; REGIONS_PER_CALL];
        let (mut at, end) = (range.start().0, range.end().0);
        while at < end {
            let (reported, walked_to) = match scan_once(self.fd.as_fd(), what, at, end, &mut regions) {
                Err(Errno::INTR) => continue,
                result => result?,
            };
            for region in reported {
                let len = (region.end - region.start) as usize;
                // The kernel reports whole pages within the span.
                if let Ok(part) = HostRange::new(HostAddr(region.start as usize), len, self.page) {
                    found(part);
                }
            }
            if walked_to <= at {
                return Err(Errno::IO);
            }
            at = walked_to;
        }
        Ok(())
    }
}

fn open_own() -> Result<OwnedFd, Error> {
    open_file().map_err(|errno| Error::system("open(/proc/self/pagemap)", 0, 0, errno))
}

fn open_file() -> Result<OwnedFd, Errno> {
    rustix::fs::open("/proc/self/pagemap", OFlags::RDONLY | OFlags::CLOEXEC, FileMode::empty()).map(descriptor::raise)
}

fn read_entries(fd: BorrowedFd<'_>, start: HostAddr, into: &mut [u64]) -> Result<(), Errno> {
    const BYTES: usize = size_of::<u64>();
    let first = start.0 >> PageSize::host().shift();
    let mut read = 0;
    while read < into.len() {
        let mut buffer = [0; 64 * BYTES];
        let part = &mut buffer[..(into.len() - read).min(64) * BYTES];
        let count = rustix::io::pread(fd, &mut *part, ((first + read) * BYTES) as u64)? / BYTES;
        if count == 0 {
            return Err(Errno::IO);
        }
        for (entry, bytes) in into[read..].iter_mut().zip(part.chunks_exact(BYTES)).take(count) {
            *entry = bytes.try_into().map_or(0, u64::from_ne_bytes);
        }
        read += count;
    }
    Ok(())
}

/// One call. Returns the regions found, and the end of the searched part.
fn scan_once<'r>(
    fd: BorrowedFd<'_>,
    what: &What,
    start: usize,
    end: usize,
    regions: &'r mut [MaybeUninit<raw::page_region>],
) -> Result<(&'r [raw::page_region], usize), Errno> {
    let mut arg = raw::pm_scan_arg {
        size: size_of::<raw::pm_scan_arg>() as u64,
        flags: what.flags.into(),
        start: start as u64,
        end: end as u64,
        walk_end: 0,
        vec: regions.as_mut_ptr() as u64,
        vec_len: regions.len() as u64,
        max_pages: 0,
        category_inverted: what.inverted.into(),
        category_mask: what.all_of.into(),
        category_anyof_mask: what.any_of.into(),
        return_mask: what.all_of.into(),
    };
    // SAFETY: `regions` is borrowed until the call is over and `vec_len` is its length.
    let count = unsafe { rustix::ioctl::ioctl(fd, ScanIoctl(&mut arg)) }?;
    let reported = &regions[..count.min(regions.len())];
    // SAFETY: the kernel wrote the first `count` regions.
    let reported = unsafe { core::slice::from_raw_parts(reported.as_ptr().cast(), reported.len()) };
    Ok((reported, arg.walk_end as usize))
}

/// The pages that a scan looks for, and its action on them.
struct What {
    flags: u32,
    all_of: u32,
    any_of: u32,
    inverted: u32,
}

impl What {
    const WRITTEN_AND_PROTECT: Self = Self {
        flags: raw::PM_SCAN_WP_MATCHING | raw::PM_SCAN_CHECK_WPASYNC,
        all_of: raw::PAGE_IS_WRITTEN,
        any_of: 0,
        inverted: 0,
    };

    #[cfg(test)]
    const HUGE: Self = Self { flags: 0, all_of: raw::PAGE_IS_HUGE, any_of: 0, inverted: 0 };

    #[cfg(test)]
    const PROTECTED: Self = Self {
        flags: 0,
        all_of: raw::PAGE_IS_WRITTEN,
        any_of: raw::PAGE_IS_PRESENT | raw::PAGE_IS_SWAPPED,
        inverted: raw::PAGE_IS_WRITTEN,
    };
}

struct ScanIoctl<'a>(&'a mut raw::pm_scan_arg);

// SAFETY: `_IOWR('f', 16, struct pm_scan_arg)` reads and writes that structure and the buffer it
// names.
unsafe impl Ioctl for ScanIoctl<'_> {
    type Output = usize;
    const IS_MUTATING: bool = true;

    fn opcode(&self) -> Opcode {
        opcode::read_write::<raw::pm_scan_arg>(b'f', 16)
    }

    fn as_ptr(&mut self) -> *mut c_void {
        (&raw mut *self.0).cast()
    }

    unsafe fn output_from_ptr(out: IoctlOutput, _: *mut c_void) -> rustix::io::Result<usize> {
        Ok(out as usize)
    }
}
