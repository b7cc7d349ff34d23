//! The free bytes of a code buffer. Ranges are ordered by address, so that neighbours coalesce, and
//! by length, so that the best fit is found without a search. Both orders hold the same ranges.
//!
//! Every range is a multiple of a cache line. Blocks have a few hundred bytes, so this wastes
//! little. In return, two blocks never share a line, and every remnant is large enough for some
//! block.

use std::collections::{BTreeMap, BTreeSet};
use std::iter;
use std::ops::Range;

/// Every range starts and ends at a multiple of this many bytes.
const UNIT_BYTES: usize = 64;

#[derive(Debug)]
pub(super) struct FreeList {
    /// Start to end. Invariant: no two ranges overlap or touch.
    by_address: BTreeMap<usize, usize>,
    /// (length, start) of the same ranges.
    by_len: BTreeSet<(usize, usize)>,
    /// Sum of the lengths.
    free: usize,
    len: usize,
}

impl FreeList {
    /// `len` bytes, all free. `len` is a multiple of the unit.
    pub(super) fn new(len: usize) -> Self {
        debug_assert!(len.is_multiple_of(UNIT_BYTES));
        let mut list = Self { by_address: BTreeMap::new(), by_len: BTreeSet::new(), free: 0, len };
        list.insert(0..len);
        list
    }

    /// The length of the range that [`take`](Self::take) returns for `len` bytes.
    pub(super) fn range_bytes(len: usize) -> Option<usize> {
        len.max(1).checked_next_multiple_of(UNIT_BYTES)
    }

    /// The smallest free range that holds `len` bytes at a multiple of `align`, a power of two; of
    /// equal ones the lowest.
    pub(super) fn take(&mut self, len: usize, align: usize) -> Option<Range<usize>> {
        let len = Self::range_bytes(len)?;
        // Any range this long contains an aligned place.
        let enough = len.checked_add(align.saturating_sub(UNIT_BYTES))?;
        let aligned = |start: usize| start.next_multiple_of(align);
        let fits = |&&(found, start): &&(usize, usize)| aligned(start) + len <= start + found;
        // A shorter range may happen to be aligned: try the first one.
        let (found, start) =
            *(self.by_len.range((len, 0)..).next().filter(fits)).or_else(|| self.by_len.range((enough, 0)..).next())?;
        self.remove(start, start + found);
        let taken = aligned(start)..aligned(start) + len;
        self.insert(start..taken.start);
        self.insert(taken.end..start + found);
        Some(taken)
    }

    /// Frees a range that [`take`](Self::take) returned.
    pub(super) fn give(&mut self, range: Range<usize>) {
        let Range { mut start, mut end } = range;
        if let Some((&below, &below_end)) = self.by_address.range(..start).next_back() {
            debug_assert!(below_end <= start, "freed twice: {start:#x}");
            if below_end == start {
                self.remove(below, below_end);
                start = below;
            }
        }
        if let Some((&above, &above_end)) = self.by_address.range(start..).next() {
            debug_assert!(above >= end, "freed twice: {start:#x}");
            if above == end {
                self.remove(above, above_end);
                end = above_end;
            }
        }
        self.insert(start..end);
    }

    /// The number of bytes, free or not.
    pub(super) fn len_bytes(&self) -> usize {
        self.len
    }

    /// The number of free bytes.
    pub(super) fn free_bytes(&self) -> usize {
        self.free
    }

    /// Length of the largest free range.
    pub(super) fn largest_bytes(&self) -> usize {
        self.by_len.last().map_or(0, |&(len, _)| len)
    }

    /// The ranges that are not free, by their addresses.
    pub(super) fn used(&self) -> impl Iterator<Item = Range<usize>> + '_ {
        let starts = iter::once(0).chain(self.by_address.values().copied());
        let ends = self.by_address.keys().copied().chain([self.len]);
        starts.zip(ends).map(|(start, end)| start..end).filter(|range| !range.is_empty())
    }

    /// The free ranges, largest first.
    pub(super) fn largest_first(&self) -> impl Iterator<Item = Range<usize>> + '_ {
        self.by_len.iter().rev().map(|&(len, start)| start..start + len)
    }

    fn insert(&mut self, range: Range<usize>) {
        if !range.is_empty() {
            self.by_address.insert(range.start, range.end);
            self.by_len.insert((range.len(), range.start));
            self.free += range.len();
        }
    }

    fn remove(&mut self, start: usize, end: usize) {
        self.by_address.remove(&start);
        self.by_len.remove(&(end - start, start));
        self.free -= end - start;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_coalesce_whatever_the_order() {
        for order in [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
            let mut list = FreeList::new(4096);
            let taken: Vec<_> = (0..3).map(|_| list.take(100, 16).unwrap()).collect();
            assert_eq!(taken.iter().map(|range| range.start).collect::<Vec<_>>(), [0, 128, 256]);
            for index in order {
                list.give(taken[index].clone());
            }
            assert!(list.largest_first().eq(iter::once(0..4096)), "{order:?}: {list:?}");
        }
    }

    #[test]
    fn used_ranges_lie_between_the_free_ones() {
        let mut list = FreeList::new(4096);
        assert_eq!(list.used().count(), 0);
        let taken: Vec<_> = (0..4).map(|_| list.take(1024, 16).unwrap()).collect();
        assert!(list.used().eq(iter::once(0..4096)));
        list.give(taken[1].clone());
        assert!(list.used().eq([0..1024, 2048..4096]));
        list.give(taken[0].clone());
        list.give(taken[3].clone());
        assert!(list.used().eq(iter::once(2048..3072)));
    }

    #[test]
    fn the_best_fit_is_taken_and_the_alignment_kept() {
        let mut list = FreeList::new(1 << 16);
        let holes: Vec<_> = [256, 64, 128, 64, 512, 64].map(|len| list.take(len, 1).unwrap()).into();
        for index in [0, 2, 4] {
            list.give(holes[index].clone());
        }
        assert_eq!(list.take(120, 16).unwrap(), holes[2]);
        assert_eq!(list.take(250, 16).unwrap(), holes[0]);
        assert!(list.take(64, 4096).unwrap().start.is_multiple_of(4096));
        assert!(list.take(1 << 16, 1).is_none());
        assert!(list.take(usize::MAX, 4096).is_none());
    }
}
