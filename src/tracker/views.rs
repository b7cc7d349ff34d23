//! Which guest addresses show the same bytes.
//!
//! Protection belongs to a mapping: a store through another mapping of the same
//! memory raises nothing. So whoever translates from a page of shared memory
//! claims every page that shows the same bytes; then a store through any of them
//! finds the block, and a page of memory is protected only where all its mappings
//! are.
//!
//! A view that appears later is written down before the guest sees it, then what
//! was made from the other views is made unreachable and their claims end: what
//! begins after that finds the new view and claims it too.

use std::collections::BTreeMap;
use std::ops::Range;

use crate::addr::GuestAddr;
use crate::guest_memory::BackingId;

/// Memory that may be mapped at several places.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SharedMemory {
    /// Which file or memfd.
    pub backing: BackingId,
    /// Where in it the mapping begins, in bytes.
    pub offset: u64,
}

#[derive(Clone, Copy, Debug)]
struct View {
    end: u64,
    memory: SharedMemory,
}

/// The views of a tracker, by their first guest address; they do not overlap.
#[derive(Debug, Default)]
pub(super) struct Views(BTreeMap<u64, View>);

impl Views {
    pub(super) fn insert(&mut self, range: Range<u64>, memory: SharedMemory) {
        if range.is_empty() {
            return;
        }
        self.remove(range.clone());
        self.0.insert(range.start, View { end: range.end, memory });
    }

    /// Nothing in `range` is a view any more.
    pub(super) fn remove(&mut self, range: Range<u64>) {
        let hit: Vec<(u64, View)> = self
            .0
            .range(..range.end)
            .filter(|(_, view)| view.end > range.start)
            .map(|(&start, &view)| (start, view))
            .collect();
        for (start, view) in hit {
            self.0.remove(&start);
            if start < range.start {
                self.0.insert(start, View { end: range.start, ..view });
            }
            if range.end < view.end {
                let offset = view.memory.offset + (range.end - start);
                let memory = SharedMemory { offset, ..view.memory };
                self.0.insert(range.end, View { end: view.end, memory });
            }
        }
    }

    /// The guest ranges outside `range` that show bytes which `range` shows.
    pub(super) fn others(&self, range: Range<u64>) -> Vec<Range<u64>> {
        let mut others = Vec::new();
        if self.0.len() < 2 {
            return others;
        }
        for (&start, view) in self.0.range(..range.end).filter(|(_, view)| view.end > range.start) {
            let part = start.max(range.start)..view.end.min(range.end);
            let shown = view.memory.offset + (part.start - start)..view.memory.offset + (part.end - start);
            for (&other, its) in self.0.iter().filter(|(_, its)| its.memory.backing == view.memory.backing) {
                let first = shown.start.max(its.memory.offset);
                let last = shown.end.min(its.memory.offset + (its.end - other));
                if first < last {
                    let at = other + (first - its.memory.offset);
                    others.push(at..at + (last - first));
                }
            }
        }
        others.retain(|other| other.end <= range.start || range.end <= other.start);
        others
    }

    /// The guest pages other than the one at `page` that show its bytes.
    pub(super) fn aliases(&self, page: GuestAddr, page_bytes: u64) -> Vec<GuestAddr> {
        self.others(page.0..page.0.saturating_add(page_bytes)).into_iter().map(|range| GuestAddr(range.start)).collect()
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    const P: u64 = 0x1000;

    fn memory(inode: u64, offset: u64) -> SharedMemory {
        SharedMemory { backing: BackingId::of_file(1, inode), offset }
    }

    #[test]
    fn views_of_the_same_bytes_find_each_other() {
        let mut views = Views::default();
        views.insert(0..4 * P, memory(7, 0));
        assert!(views.aliases(GuestAddr(0), P).is_empty());
        views.insert(10 * P..12 * P, memory(7, 2 * P));
        views.insert(20 * P..24 * P, memory(8, 0));
        assert_eq!(views.aliases(GuestAddr(2 * P), P), [GuestAddr(10 * P)]);
        assert_eq!(views.aliases(GuestAddr(11 * P), P), [GuestAddr(3 * P)]);
        assert!(views.aliases(GuestAddr(P), P).is_empty());
        assert!(views.aliases(GuestAddr(20 * P), P).is_empty());
        assert_eq!(views.others(10 * P..12 * P), vec![2 * P..4 * P]);
    }

    #[test]
    fn a_view_that_is_cut_keeps_its_offsets() {
        let mut views = Views::default();
        views.insert(0..8 * P, memory(7, 0));
        views.insert(100 * P..108 * P, memory(7, 0));
        views.remove(2 * P..4 * P);
        assert!(views.aliases(GuestAddr(103 * P), P).is_empty());
        assert_eq!(views.aliases(GuestAddr(101 * P), P), [GuestAddr(P)]);
        assert_eq!(views.aliases(GuestAddr(105 * P), P), [GuestAddr(5 * P)]);
    }

    #[test]
    fn a_view_of_nothing_hides_no_view() {
        let mut views = Views::default();
        views.insert(0..4 * P, memory(7, 0));
        views.insert(10 * P..12 * P, memory(7, 0));
        views.insert(0..0, memory(8, 0));
        assert_eq!(views.aliases(GuestAddr(P), P), [GuestAddr(11 * P)]);
        assert!(views.aliases(GuestAddr(0u64.wrapping_sub(P)), P).is_empty());
    }
}
