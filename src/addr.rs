//! Guest and host addresses, and ranges of whole host pages.
//!
//! A guest address and a host address are both 64-bit numbers that mean
//! different things; mixing them up compiles nowhere. Whoever holds a
//! [`HostRange`] knows that it is not empty, that it starts and ends on a page
//! boundary and that it does not wrap: it is checked once, where it is made.

use core::fmt;

use crate::error::Error;

/// An address as the guest sees it, in bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct GuestAddr(pub u64);

/// An address in this process, in bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct HostAddr(pub usize);

impl GuestAddr {
    /// The address `bytes` further on, or `None` where it would wrap.
    pub fn checked_add(self, bytes: u64) -> Option<Self> {
        self.0.checked_add(bytes).map(Self)
    }
}

impl HostAddr {
    /// The address of what `pointer` points to.
    pub fn of<T: ?Sized>(pointer: *const T) -> Self {
        Self(pointer.cast::<u8>() as usize)
    }

    /// This address as a pointer; using it is the caller's obligation.
    pub fn as_ptr(self) -> *mut u8 {
        self.0 as *mut u8
    }
}

impl fmt::Debug for GuestAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "guest {:#x}", self.0)
    }
}

impl fmt::Display for GuestAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

impl fmt::Debug for HostAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "host {:#x}", self.0)
    }
}

impl fmt::Display for HostAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

/// The size of a host page: a power of two, found once and passed as a value.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PageSize {
    /// Invariant: `1 << shift` is the page size in bytes; `shift >= 12`.
    shift: u32,
}

impl PageSize {
    /// The page size of this host.
    pub fn host() -> Self {
        Self { shift: rustix::param::page_size().trailing_zeros() }
    }

    /// A page of `1 << shift` bytes; for tests and models of other hosts.
    pub const fn from_shift(shift: u32) -> Self {
        assert!(shift >= 12 && shift < 32, "a page has 4 KiB at least");
        Self { shift }
    }

    /// In bytes.
    pub const fn bytes(self) -> usize {
        1 << self.shift
    }

    /// Base-two logarithm of the size in bytes.
    pub const fn shift(self) -> u32 {
        self.shift
    }

    /// `address` rounded down to its page.
    pub const fn floor(self, address: usize) -> usize {
        address & !(self.bytes() - 1)
    }

    /// `address` rounded up to a page boundary, or `None` where it would wrap.
    pub const fn ceil(self, address: usize) -> Option<usize> {
        match address.checked_add(self.bytes() - 1) {
            Some(sum) => Some(self.floor(sum)),
            None => None,
        }
    }
}

/// Whole pages of this process: not empty, page-aligned at both ends, not
/// wrapping.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct HostRange {
    /// Invariant: page-aligned.
    start: usize,
    /// Invariant: page-aligned, at least one page; `start + len` does not wrap.
    len: usize,
}

impl HostRange {
    /// `len` bytes from `start`, which must both be multiples of the page size.
    ///
    /// # Errors
    ///
    /// [`Error::BadRange`] where the range is empty, wraps or is not aligned.
    pub fn new(start: HostAddr, len: usize, page: PageSize) -> Result<Self, Error> {
        let mask = page.bytes() - 1;
        if len == 0 || (start.0 | len) & mask != 0 || start.0.checked_add(len).is_none() {
            return Err(Error::BadRange {
                start: start.0 as u64,
                len: len as u64,
                why: "a range is whole pages, at least one, and does not wrap",
            });
        }
        Ok(Self { start: start.0, len })
    }

    /// The one page of `page` bytes that holds `address`.
    pub fn page_of(address: HostAddr, page: PageSize) -> Self {
        Self { start: page.floor(address.0), len: page.bytes() }
    }

    /// `count` pages from `start`, both known to be good.
    pub(crate) fn of_pages(start: HostAddr, count: usize, page: PageSize) -> Self {
        debug_assert!(start.0 & (page.bytes() - 1) == 0 && count > 0);
        Self { start: start.0, len: count << page.shift() }
    }

    /// First byte.
    pub fn start(self) -> HostAddr {
        HostAddr(self.start)
    }

    /// One past the last byte.
    pub fn end(self) -> HostAddr {
        HostAddr(self.start + self.len)
    }

    /// Length in bytes.
    #[allow(clippy::len_without_is_empty)] // never empty
    pub fn len(self) -> usize {
        self.len
    }

    /// Whether `address` lies in it.
    pub fn contains(self, address: HostAddr) -> bool {
        address.0.wrapping_sub(self.start) < self.len
    }

    /// Whether all of `other` lies in it.
    pub(crate) fn contains_range(self, other: HostRange) -> bool {
        other.start >= self.start && other.start + other.len <= self.start + self.len
    }

    /// What of this range lies below and above `other`.
    pub(crate) fn without(self, other: HostRange) -> [Option<HostRange>; 2] {
        let (end, other_end) = (self.start + self.len, other.start + other.len);
        let part = |start: usize, end: usize| (start < end).then(|| HostRange { start, len: end - start });
        [part(self.start, end.min(other.start)), part(self.start.max(other_end), end)]
    }

    /// What both have in common.
    pub(crate) fn intersection(self, other: HostRange) -> Option<HostRange> {
        let start = self.start.max(other.start);
        let end = (self.start + self.len).min(other.start + other.len);
        (start < end).then(|| HostRange { start, len: end - start })
    }
}

impl fmt::Debug for HostRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "host {:#x}..{:#x}", self.start, self.start + self.len)
    }
}

/// Number of a page within its region, from 0.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct PageIndex(pub usize);

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: PageSize = PageSize::from_shift(12);

    #[test]
    fn a_range_is_whole_pages() {
        for (start, len) in [(0, 0), (1, 4096), (0, 4095), (usize::MAX - 4095, 8192)] {
            assert!(HostRange::new(HostAddr(start), len, PAGE).is_err(), "{start:#x}+{len:#x}");
        }
        let range = HostRange::new(HostAddr(0x2000), 0x3000, PAGE).unwrap();
        assert!(range.contains(HostAddr(0x4fff)) && !range.contains(HostAddr(0x5000)));
        assert!(!range.contains(HostAddr(0x1fff)));
    }

    #[test]
    fn intersections() {
        let range = |start, len| HostRange::new(HostAddr(start), len, PAGE).unwrap();
        assert_eq!(range(0x1000, 0x2000).intersection(range(0x2000, 0x4000)), Some(range(0x2000, 0x1000)));
        assert_eq!(range(0x1000, 0x1000).intersection(range(0x2000, 0x1000)), None);
    }

    #[test]
    fn differences() {
        let range = |start, len| HostRange::new(HostAddr(start), len, PAGE).unwrap();
        let whole = range(0x2000, 0x4000);
        assert_eq!(whole.without(range(0x3000, 0x1000)), [Some(range(0x2000, 0x1000)), Some(range(0x4000, 0x2000))]);
        assert_eq!(whole.without(range(0x1000, 0x8000)), [None, None]);
        assert_eq!(whole.without(range(0x1000, 0x1000)), [None, Some(whole)]);
        assert_eq!(whole.without(range(0x8000, 0x1000)), [Some(whole), None]);
    }
}
