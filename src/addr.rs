//! Guest and host addresses, and ranges of whole host pages.
//!
//! A guest address and a host address are 64-bit numbers with different meanings, so each has its
//! own type. A [`HostRange`] is never empty, starts and ends on a page boundary and does not wrap:
//! this is checked once, when it is made.

use core::fmt;

use crate::error::Error;

/// An address as the guest sees it, in bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct GuestAddr(pub u64);

/// An address in this process, in bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct HostAddr(pub usize);

impl GuestAddr {
    /// The address `bytes` further on, or `None` if it would wrap.
    pub fn checked_add(self, bytes: u64) -> Option<Self> {
        self.0.checked_add(bytes).map(Self)
    }
}

impl From<u64> for GuestAddr {
    fn from(raw: u64) -> Self {
        Self(raw)
    }
}

impl HostAddr {
    /// The address that `pointer` holds.
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

    /// The size in bytes.
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

    /// `address` rounded up to a page boundary, or `None` if it would wrap.
    pub const fn ceil(self, address: usize) -> Option<usize> {
        match address.checked_add(self.bytes() - 1) {
            Some(sum) => Some(self.floor(sum)),
            None => None,
        }
    }
}

/// Whole pages of this process: not empty, page-aligned at both ends, not wrapping.
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
    /// [`Error::BadRange`] if the range is empty, wraps or is not aligned.
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
    ///
    /// # Panics
    ///
    /// If that is the last page of the address space, which no process has: a range does not wrap.
    pub fn page_of(address: HostAddr, page: PageSize) -> Self {
        let (start, len) = (page.floor(address.0), page.bytes());
        assert!(start.checked_add(len).is_some(), "no process has the last page of the address space");
        Self { start, len }
    }

    /// `count` pages from `start`, both known to be good.
    #[inline]
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

    /// The parts of this range below and above `other`.
    pub(crate) fn without(self, other: HostRange) -> [Option<HostRange>; 2] {
        let (end, other_end) = (self.start + self.len, other.start + other.len);
        let part = |start: usize, end: usize| (start < end).then(|| HostRange { start, len: end - start });
        [part(self.start, end.min(other.start)), part(self.start.max(other_end), end)]
    }

    /// The part that both have in common.
    pub(crate) fn intersection(self, other: HostRange) -> Option<HostRange> {
        let start = self.start.max(other.start);
        let end = (self.start + self.len).min(other.start + other.len);
        (start < end).then(|| HostRange { start, len: end - start })
    }
}

/// One or more bytes of a 64-bit space (the guest's addresses or a file). `last` is included, so
/// that a span can reach the end of the space.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Span {
    first: u64,
    /// Invariant: not below `first`.
    last: u64,
}

impl Span {
    /// Every address.
    pub(crate) const ALL: Self = Self { first: 0, last: u64::MAX };

    /// `len_bytes` from `start`; `None` for no bytes.
    ///
    /// # Errors
    ///
    /// [`Error::BadRange`] if the bytes go beyond the end of the space.
    pub(crate) fn new(start: u64, len_bytes: u64) -> Result<Option<Self>, Error> {
        let Some(more) = len_bytes.checked_sub(1) else { return Ok(None) };
        match start.checked_add(more) {
            Some(last) => Ok(Some(Self { first: start, last })),
            None => Err(Error::BadRange { start, len: len_bytes, why: "the range wraps" }),
        }
    }

    /// The page of `page_bytes` that holds `address`.
    pub(crate) fn page_of(address: u64, page_bytes: u64) -> Self {
        Self { first: address & !(page_bytes - 1), last: address | (page_bytes - 1) }
    }

    /// The guest addresses of `host`, from `guest` on; the span does not wrap.
    pub(crate) fn of_region(guest: GuestAddr, host: HostRange) -> Self {
        Self { first: guest.0, last: guest.0 + (host.len() as u64 - 1) }
    }

    /// First byte.
    pub(crate) fn first(self) -> u64 {
        self.first
    }

    /// Last byte.
    pub(crate) fn last(self) -> u64 {
        self.last
    }

    /// Length in bytes; 2^64 is returned as 2^64 - 1.
    pub(crate) fn len_bytes(self) -> u64 {
        (self.last - self.first).saturating_add(1)
    }

    /// All pages of `page_bytes` that contain a byte of this span.
    pub(crate) fn whole_pages(self, page_bytes: u64) -> Self {
        Self { first: self.first & !(page_bytes - 1), last: self.last | (page_bytes - 1) }
    }

    /// As many bytes from `first` on; `None` if they do not fit.
    pub(crate) fn moved_to(self, first: u64) -> Option<Self> {
        Some(Self { first, last: first.checked_add(self.last - self.first)? })
    }

    /// The part that both have in common.
    pub(crate) fn intersection(self, other: Self) -> Option<Self> {
        let (first, last) = (self.first.max(other.first), self.last.min(other.last));
        (first <= last).then_some(Self { first, last })
    }

    /// The parts of this span below and above `other`.
    pub(crate) fn without(self, other: Self) -> [Option<Self>; 2] {
        let below = other.first.checked_sub(1).and_then(|last| self.intersection(Self { first: 0, last }));
        let above = other.last.checked_add(1).and_then(|first| self.intersection(Self { first, last: u64::MAX }));
        [below, above]
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
    #[should_panic(expected = "the last page")]
    fn no_range_wraps() {
        HostRange::page_of(HostAddr(usize::MAX), PAGE);
    }

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
    fn a_span_may_reach_the_end_of_the_space() {
        let span = |start, len| Span::new(start, len).unwrap().unwrap();
        assert_eq!(Span::new(5, 0).unwrap(), None);
        assert_eq!(Span::new(u64::MAX, 0).unwrap(), None);
        assert!(Span::new(u64::MAX, 2).is_err());
        let top = span(u64::MAX - 0xfff, 0x1000);
        assert_eq!((top.last(), top.len_bytes()), (u64::MAX, 0x1000));
        assert_eq!(span(u64::MAX - 5, 2).whole_pages(0x1000), top);
        assert_eq!(top.moved_to(1), Some(span(1, 0x1000)));
        assert_eq!(top.moved_to(u64::MAX - 0xffe), None);
        assert_eq!(Span::ALL.without(top), [Some(span(0, u64::MAX - 0xfff)), None]);
        assert_eq!(top.without(Span::ALL), [None, None]);
        assert_eq!(Span::ALL.without(span(0, 1)), [None, Some(span(1, u64::MAX))]);
        assert_eq!(span(2, 4).without(span(3, 1)), [Some(span(2, 1)), Some(span(4, 2))]);
        assert_eq!(span(2, 4).without(span(9, 1)), [Some(span(2, 4)), None]);
        assert_eq!(span(2, 4).intersection(span(6, 1)), None);
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
