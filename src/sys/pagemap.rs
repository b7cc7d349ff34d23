//! `PAGEMAP_SCAN`: what was written, found and protected again in one step.
//!
//! With `PM_SCAN_WP_MATCHING` the kernel reports the written pages of a span and
//! write-protects them again, atomically per page table and with one TLB flush
//! for the span. A page replaced by `MAP_FIXED` has no asynchronous protection:
//! without `PM_SCAN_CHECK_WPASYNC` it is skipped in silence, with it the call
//! fails with EPERM, and by then the finds of this call are gone, although they
//! are protected again. So EPERM means that the whole span is to be taken for
//! written.
//!
//! A descriptor of `/proc/self/pagemap` stays with the address space that
//! opened it: in a fork's child it would scan the parent.
//!
//! # Safety
//!
//! The ioctl works on `pm_scan_arg` and a buffer that outlives the call.
#![allow(unsafe_code)]

use core::ffi::c_void;
use std::os::fd::OwnedFd;

use linux_raw_sys::general as raw;
use rustix::fs::{Mode as FileMode, OFlags};
use rustix::io::Errno;
use rustix::ioctl::{Ioctl, IoctlOutput, Opcode, opcode};

use crate::addr::{HostAddr, HostRange, PageSize};
use crate::error::Error;
use crate::sys::fork::Generation;

/// How many regions one call reports before it stops and is called again.
const REGIONS_PER_CALL: usize = 128;

/// `/proc/self/pagemap`.
#[derive(Debug)]
pub(crate) struct Pagemap {
    fd: OwnedFd,
    page: PageSize,
    generation: Generation,
}

impl Pagemap {
    /// Opens it.
    pub(crate) fn open(page: PageSize) -> Result<Self, Error> {
        let generation = Generation::of_this_process()?;
        let fd = rustix::fs::open("/proc/self/pagemap", OFlags::RDONLY | OFlags::CLOEXEC, FileMode::empty())
            .map_err(|errno| Error::system("open(/proc/self/pagemap)", 0, 0, errno))?;
        Ok(Self { fd, page, generation })
    }

    /// Whether the kernel knows the call: an empty scan is no error then.
    pub(crate) fn has_scan(&self) -> bool {
        let start = self.page.bytes();
        let mut scan = Scan::new(0, raw::PAGE_IS_WRITTEN, 0, start, start, &mut []);
        scan.run(&self.fd).is_ok()
    }

    /// Reports what was written in `range` since it was last protected and
    /// protects it again. [`Error::TrackingLost`] where a part of the range is
    /// no longer under asynchronous protection: all of it is to be taken for
    /// written.
    pub(crate) fn harvest(&self, range: HostRange, written: &mut dyn FnMut(HostRange)) -> Result<(), Error> {
        let flags = raw::PM_SCAN_WP_MATCHING | raw::PM_SCAN_CHECK_WPASYNC;
        self.scan(flags, raw::PAGE_IS_WRITTEN, 0, range, written).map_err(|errno| match errno {
            Errno::PERM => Error::TrackingLost,
            errno => Error::system("PAGEMAP_SCAN", range.start().0, range.len(), errno),
        })
    }

    /// Reports what a userfaultfd holds write-protected in `range`; changes
    /// nothing. For tests: the library's own page table is checked against it.
    #[cfg(test)]
    pub(crate) fn protected(&self, range: HostRange) -> Result<Vec<HostRange>, Error> {
        let mut found = Vec::new();
        let categories = raw::PAGE_IS_WRITTEN | raw::PAGE_IS_WPALLOWED;
        self.scan(0, categories, raw::PAGE_IS_WRITTEN, range, &mut |part| found.push(part))
            .map_err(|errno| Error::system("PAGEMAP_SCAN", range.start().0, range.len(), errno))?;
        Ok(found)
    }

    fn scan(
        &self,
        flags: u32,
        categories: u32,
        inverted: u32,
        range: HostRange,
        found: &mut dyn FnMut(HostRange),
    ) -> Result<(), Errno> {
        if !self.generation.is_current() {
            return Err(Errno::PERM);
        }
        let mut regions = [raw::page_region { start: 0, end: 0, categories: 0 }; REGIONS_PER_CALL];
        let (mut at, end) = (range.start().0, range.end().0);
        while at < end {
            let mut scan = Scan::new(flags, categories, inverted, at, end, &mut regions);
            let count = match scan.run(&self.fd) {
                Err(Errno::INTR) => continue,
                result => result?,
            };
            let walked_to = scan.arg.walk_end as usize;
            for region in &regions[..count.min(REGIONS_PER_CALL)] {
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

struct Scan {
    arg: raw::pm_scan_arg,
}

impl Scan {
    fn new(
        flags: u32,
        categories: u32,
        inverted: u32,
        start: usize,
        end: usize,
        regions: &mut [raw::page_region],
    ) -> Self {
        let arg = raw::pm_scan_arg {
            size: size_of::<raw::pm_scan_arg>() as u64,
            flags: flags.into(),
            start: start as u64,
            end: end as u64,
            walk_end: 0,
            vec: if regions.is_empty() { 0 } else { regions.as_mut_ptr() as u64 },
            vec_len: regions.len() as u64,
            max_pages: 0,
            category_inverted: inverted.into(),
            category_mask: categories.into(),
            category_anyof_mask: 0,
            return_mask: if regions.is_empty() { 0 } else { u64::from(categories) },
        };
        Self { arg }
    }

    /// How many regions were found.
    fn run(&mut self, fd: &OwnedFd) -> Result<usize, Errno> {
        // SAFETY: the buffer behind `vec` outlives the call in both callers above, and nothing else
        // refers to it until the call is over.
        unsafe { rustix::ioctl::ioctl(fd, ScanIoctl(&mut self.arg)) }
    }
}

struct ScanIoctl<'a>(&'a mut raw::pm_scan_arg);

// SAFETY: `_IOWR('f', 16, struct pm_scan_arg)` reads and writes that structure and the buffer it names.
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
