//! Mappings and memfds that go away by themselves.
//!
//! # Safety
//!
//! A [`Mapping`] owns its address range: it is unmapped once, on drop.
#![allow(unsafe_code)]

use core::ffi::c_void;
use core::ptr;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::MemfdFlags;
use rustix::io::Errno;
use rustix::mm::{MapFlags, MprotectFlags, ProtFlags};

use crate::addr::{HostAddr, HostRange, PageSize};
use crate::error::Error;
use crate::sys::{descriptor, signal};

/// A mapping of this process, unmapped on drop.
#[derive(Debug)]
pub(crate) struct Mapping {
    range: HostRange,
}

impl Mapping {
    /// `len` bytes (whole pages) of fresh private memory, readable and writable;
    /// pages cost nothing until they are touched.
    pub(crate) fn anonymous(len: usize, page: PageSize) -> Result<Self, Error> {
        // SAFETY: a new mapping at an address of the kernel's choice replaces no other.
        let start = unsafe {
            rustix::mm::mmap_anonymous(ptr::null_mut(), len, READ_WRITE, MapFlags::PRIVATE | MapFlags::NORESERVE)
        };
        Self::adopt(start, len, page)
    }

    /// Like [`Mapping::anonymous`], at `start` and nowhere else; an existing mapping there
    /// stays.
    pub(crate) fn anonymous_at(start: HostAddr, len: usize, page: PageSize) -> Result<Self, Error> {
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE | MapFlags::FIXED_NOREPLACE;
        // SAFETY: FIXED_NOREPLACE fails if something is mapped there.
        let mapped = unsafe { rustix::mm::mmap_anonymous(start.0 as *mut c_void, len, READ_WRITE, flags) };
        let mapping = Self::adopt(mapped, len, page)?;
        if mapping.range.start() != start {
            // A kernel before 4.17 takes the address for a hint.
            return Err(Error::system("mmap(MAP_FIXED_NOREPLACE)", start.0, len, Errno::EXIST));
        }
        Ok(mapping)
    }

    /// The first `len` bytes of `memfd`, shared with every other view of it.
    pub(crate) fn shared(memfd: impl AsFd, len: usize, page: PageSize) -> Result<Self, Error> {
        // SAFETY: as above.
        let start = unsafe { rustix::mm::mmap(ptr::null_mut(), len, READ_WRITE, MapFlags::SHARED, memfd, 0) };
        Self::adopt(start, len, page)
    }

    fn adopt(mapped: Result<*mut c_void, Errno>, len: usize, page: PageSize) -> Result<Self, Error> {
        let start = mapped.map_err(|errno| Error::system("mmap", 0, len, errno))?;
        Ok(Self { range: HostRange::new(HostAddr(start as usize), len, page)? })
    }

    /// Its addresses.
    pub(crate) fn range(&self) -> HostRange {
        self.range
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the range is this object's own.
        let unmapped = unsafe { rustix::mm::munmap(self.range.start().0 as *mut c_void, self.range.len()) };
        debug_assert!(unmapped.is_ok(), "munmap of an own mapping: {unmapped:?}");
    }
}

const READ_WRITE: ProtFlags = ProtFlags::READ.union(ProtFlags::WRITE);

/// A memory file of `len` bytes.
pub(crate) fn memfd(name: &str, len: usize) -> Result<OwnedFd, Error> {
    let fd = rustix::fs::memfd_create(name, MemfdFlags::CLOEXEC)
        .map_err(|errno| Error::system("memfd_create", 0, len, errno))?;
    // Beyond the limit on file sizes the kernel returns EFBIG, and sends a signal that ends the
    // process.
    signal::without(libc::SIGXFSZ, || rustix::fs::ftruncate(&fd, len as u64))
        .map_err(|errno| Error::system("ftruncate", 0, len, errno))?;
    Ok(descriptor::raise(fd))
}

/// Sets the access of `range` as the guest's own mprotect asks.
pub(crate) fn set_access(range: HostRange, read: bool, write: bool) -> Result<(), Error> {
    let mut flags = MprotectFlags::empty();
    flags.set(MprotectFlags::READ, read);
    flags.set(MprotectFlags::WRITE, write);
    // SAFETY: changes the access to memory that its owner gave to the tracker; no reference to
    // guest bytes exists that could be broken by it.
    unsafe { rustix::mm::mprotect(range.start().0 as *mut c_void, range.len(), flags) }
        .map_err(|errno| Error::system("mprotect", range.start().0, range.len(), errno))
}

/// Takes `range` out of same-page merging (KSM). A kernel without KSM refuses, and merges nothing.
pub(crate) fn keep_from_merging(range: HostRange) {
    // SAFETY: changes no contents: a merged page becomes one of its own again.
    unsafe { libc::madvise(range.start().0 as *mut c_void, range.len(), libc::MADV_UNMERGEABLE) };
}

/// mprotect by the `region` crate. Async-signal-safe but for errno: the error
/// is a plain number.
pub(crate) fn protect_with_region(start: usize, len: usize, access: region::Protection) -> Result<(), Errno> {
    // SAFETY: as in `set_access`.
    unsafe { region::protect(start as *const u8, len, access) }.map_err(|error| match error {
        region::Error::SystemCall(errno) => Errno::from_raw_os_error(errno),
        _ => Errno::INVAL,
    })
}

/// The first unmapped page of `range`, as far as is known: only a clear answer of the kernel
/// that a part is not mapped counts.
pub(crate) fn first_hole(range: HostRange, page: PageSize) -> Option<HostAddr> {
    // MS_ASYNC changes nothing: the call walks the mappings, and ends at a hole.
    let has_hole = |len_bytes: usize| {
        // SAFETY: an unmapped address is an answer, not an access.
        let asked = unsafe { libc::msync(range.start().0 as *mut c_void, len_bytes, libc::MS_ASYNC) };
        asked != 0 && Errno::from_io_error(&std::io::Error::last_os_error()) == Some(Errno::NOMEM)
    };
    if !has_hole(range.len()) {
        return None;
    }
    // The first `without` pages have no hole; the first `with` pages have one.
    let (mut without, mut with) = (0, range.len() >> page.shift());
    while with - without > 1 {
        let middle = without + (with - without) / 2;
        if has_hole(middle << page.shift()) { with = middle } else { without = middle }
    }
    Some(HostAddr(range.start().0 + (without << page.shift())))
}

/// Whether the page at `page_start` is mapped, as far as is known: only a clear answer of the
/// kernel that it is not mapped counts. Async-signal-safe but for errno.
pub(crate) fn is_mapped(page_start: HostAddr, page: PageSize) -> bool {
    let mut resident = 0_u8;
    // SAFETY: asks about one page and writes one byte; unmapped memory is an answer, not an access.
    let asked = unsafe { libc::mincore(page_start.0 as *mut c_void, page.bytes(), &mut resident) };
    asked == 0 || Errno::from_io_error(&std::io::Error::last_os_error()) != Some(Errno::NOMEM)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_hole_is_found() {
        let page = PageSize::host();
        let pages = |range: HostRange, from: usize, count: usize| {
            HostRange::of_pages(HostAddr(range.start().0 + from * page.bytes()), count, page)
        };
        let mapping = Mapping::anonymous(9 * page.bytes(), page).unwrap();
        let all = mapping.range();
        assert_eq!(first_hole(all, page), None);
        set_access(pages(all, 2, 2), false, false).unwrap();
        assert_eq!(first_hole(all, page), None, "PROT_NONE is mapped");
        let whole = std::mem::ManuallyDrop::new(mapping);
        let hole = |at: usize| pages(whole.range(), at, 1);
        for at in [7, 4, 0] {
            drop(Mapping { range: hole(at) });
            assert_eq!(first_hole(all, page), Some(hole(at).start()));
        }
        for (from, count) in [(1, 3), (5, 2), (8, 1)] {
            drop(Mapping { range: pages(all, from, count) });
        }
        let beyond = HostRange::new(HostAddr(page.bytes()), usize::MAX & !(2 * page.bytes() - 1), page);
        assert!(first_hole(beyond.unwrap(), page).is_some());
    }

    #[test]
    fn a_mapping_lives_as_long_as_its_object() {
        let page = PageSize::host();
        let mapping = Mapping::anonymous(2 * page.bytes(), page).unwrap();
        let start = mapping.range().start();
        assert!(is_mapped(start, page));
        let taken = Mapping::anonymous_at(start, page.bytes(), page).unwrap_err();
        assert!(matches!(taken, Error::System { errno: libc::EEXIST, .. }), "{taken}");
        drop(mapping);
        assert!(!is_mapped(start, page));
    }
}
