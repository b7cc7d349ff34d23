//! The record of the guest's mappings: their ranges and their properties.
//!
//! A pure data structure: it makes no system call. Ranges are page-aligned and
//! disjoint; neighbours that continue each other are one entry.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

/// Guest protection bits, as `PROT_*`: read 1, write 2, execute 4.
pub type Prot = u8;

/// The memory of a mapping.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// Private memory: anonymous, or a file's contents read into it.
    Private,
    /// A real shared mapping of a file or of anonymous shared memory, whose
    /// first byte is at `offset`.
    Shared {
        /// Device of the file.
        device: u64,
        /// Inode of the file.
        inode: u64,
        /// Offset of the first byte.
        offset: u64,
    },
}

/// The file that a shared mapping shows.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct FileId {
    /// Its device; 0 for anonymous shared memory.
    pub device: u64,
    /// Its inode.
    pub inode: u64,
}

/// A fork's child's view of a mapping; by default a copy of it.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct OnFork {
    /// The child has nothing there (MADV_DONTFORK). This takes precedence over `wiped`.
    pub left_out: bool,
    /// The child has zeros there (MADV_WIPEONFORK).
    pub wiped: bool,
}

/// One mapping.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Mapping {
    /// First address.
    pub start: u64,
    /// One past the last.
    pub end: u64,
    /// Guest protection.
    pub prot: Prot,
    /// The memory.
    pub kind: Kind,
    /// A fork's child's view of it.
    pub on_fork: OnFork,
}

impl Mapping {
    /// Length in bytes.
    pub fn len_bytes(&self) -> u64 {
        self.end - self.start
    }

    /// The file that it shows.
    pub(super) fn file(&self) -> Option<FileId> {
        match self.kind {
            Kind::Private => None,
            Kind::Shared { device, inode, .. } => Some(FileId { device, inode }),
        }
    }

    /// The part of it that shows `bytes` of its file.
    pub(super) fn showing(&self, bytes: &Range<u64>) -> Option<Self> {
        let Kind::Shared { offset, .. } = self.kind else { return None };
        let first = bytes.start.max(offset);
        let last = bytes.end.min(offset.saturating_add(self.len_bytes()));
        (first < last).then(|| self.clip(self.start + (first - offset), self.start + (last - offset)))
    }

    /// The part of it in `start..end`.
    pub(super) fn clip(&self, start: u64, end: u64) -> Self {
        let from = self.start.max(start);
        let kind = match self.kind {
            Kind::Private => Kind::Private,
            Kind::Shared { device, inode, offset } => {
                Kind::Shared { device, inode, offset: offset + (from - self.start) }
            }
        };
        Self { start: from, end: self.end.min(end), kind, ..*self }
    }

    /// Whether `next` continues this mapping.
    fn continues_with(&self, next: &Mapping) -> bool {
        if self.end != next.start || self.prot != next.prot || self.on_fork != next.on_fork {
            return false;
        }
        match (self.kind, next.kind) {
            (Kind::Private, Kind::Private) => true,
            (Kind::Shared { .. }, Kind::Shared { .. }) => self.clip(self.start, u64::MAX).moved_to_end() == next.kind,
            _ => false,
        }
    }

    fn moved_to_end(&self) -> Kind {
        match self.kind {
            Kind::Private => Kind::Private,
            Kind::Shared { device, inode, offset } => Kind::Shared { device, inode, offset: offset + self.len_bytes() },
        }
    }
}

/// All mappings of one address space.
#[derive(Clone, Default, Debug)]
pub struct Mappings {
    /// By first address; disjoint.
    by_start: BTreeMap<u64, Mapping>,
    /// First addresses of the shared mappings, by file.
    by_file: BTreeMap<FileId, BTreeSet<u64>>,
}

impl Mappings {
    /// The mapping that holds `address`.
    pub fn at(&self, address: u64) -> Option<Mapping> {
        let (_, mapping) = self.by_start.range(..=address).next_back()?;
        (address < mapping.end).then_some(*mapping)
    }

    /// The parts of mappings in `start..end`, in order.
    pub fn within(&self, start: u64, end: u64) -> Vec<Mapping> {
        let first = self.at(start).map_or(start, |mapping| mapping.start);
        self.by_start.range(first..end.max(first)).map(|(_, mapping)| mapping.clip(start, end)).collect()
    }

    /// Whether nothing is mapped in `start..end`.
    pub fn is_free(&self, start: u64, end: u64) -> bool {
        start >= end || self.at(start).is_none() && self.by_start.range(start..end).next().is_none()
    }

    /// Whether every page of `start..end` is mapped.
    pub fn is_covered(&self, start: u64, end: u64) -> bool {
        let mut at = start;
        for mapping in self.within(start, end) {
            if mapping.start != at {
                return false;
            }
            at = mapping.end;
        }
        at >= end
    }

    /// The end of the mapped pages from the page of `address` on; `address` itself if that page is
    /// not mapped.
    pub fn mapped_up_to(&self, address: u64) -> u64 {
        let mut end = address;
        while let Some(mapping) = self.at(end) {
            end = mapping.end;
        }
        end
    }

    /// Forgets the mappings in `start..end`, and splits those that reach beyond it.
    pub fn remove(&mut self, start: u64, end: u64) {
        if start >= end {
            return;
        }
        let mut touched: Vec<Mapping> = self.by_start.range(start..end).map(|(_, mapping)| *mapping).collect();
        touched.extend(self.at(start).filter(|mapping| mapping.start < start));
        for mapping in touched {
            self.take(mapping.start);
            if mapping.start < start {
                self.put(mapping.clip(mapping.start, start));
            }
            if mapping.end > end {
                self.put(mapping.clip(end, mapping.end));
            }
        }
    }

    /// Enters a mapping in both maps.
    fn put(&mut self, mapping: Mapping) {
        self.by_start.insert(mapping.start, mapping);
        if let Some(file) = mapping.file() {
            self.by_file.entry(file).or_default().insert(mapping.start);
        }
    }

    /// Takes the mapping at `start` out of both.
    fn take(&mut self, start: u64) {
        let Some(file) = self.by_start.remove(&start).and_then(|mapping| mapping.file()) else { return };
        if let Some(starts) = self.by_file.get_mut(&file) {
            starts.remove(&start);
            if starts.is_empty() {
                self.by_file.remove(&file);
            }
        }
    }

    /// The parts of mappings that show `bytes` of `file`.
    pub fn showing(&self, file: FileId, bytes: &Range<u64>) -> Vec<Mapping> {
        let starts = self.by_file.get(&file).into_iter().flatten();
        starts.filter_map(|start| self.by_start.get(start)?.showing(bytes)).collect()
    }

    /// Puts `mapping` there in place of any other.
    pub fn insert(&mut self, mut mapping: Mapping) {
        self.remove(mapping.start, mapping.end);
        if let Some((&start, before)) = self.by_start.range(..mapping.start).next_back()
            && before.continues_with(&mapping)
        {
            mapping = Mapping { end: mapping.end, ..*before };
            self.take(start);
        }
        if let Some(after) = self.by_start.get(&mapping.end).copied()
            && mapping.continues_with(&after)
        {
            self.take(after.start);
            mapping.end = after.end;
        }
        self.put(mapping);
    }

    /// The highest free place of `len` bytes below `limit` and from `floor` on.
    pub fn find_top_down(&self, len: u64, floor: u64, limit: u64) -> Option<u64> {
        let mut top = limit;
        for (_, mapping) in self.by_start.range(..limit).rev() {
            if mapping.end <= top && top - mapping.end >= len {
                break;
            }
            top = top.min(mapping.start);
        }
        let start = top.checked_sub(len)?;
        (start >= floor && self.is_free(start, top)).then_some(start)
    }

    /// The lowest free place of `len` bytes from `floor` on and below `limit`.
    pub fn find_bottom_up(&self, len: u64, floor: u64, limit: u64) -> Option<u64> {
        let mut at = self.at(floor).map_or(floor, |mapping| mapping.end);
        for (_, mapping) in self.by_start.range(at..) {
            if mapping.start - at >= len {
                break;
            }
            at = mapping.end;
        }
        (at.checked_add(len)? <= limit).then_some(at)
    }

    /// All of them in order.
    pub fn iter(&self) -> impl Iterator<Item = &Mapping> {
        self.by_start.values()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: u64 = 4096;

    fn private(start: u64, end: u64, prot: Prot) -> Mapping {
        Mapping { start: start * PAGE, end: end * PAGE, prot, kind: Kind::Private, on_fork: OnFork::default() }
    }

    fn mappings(all: &[Mapping]) -> Mappings {
        let mut mappings = Mappings::default();
        all.iter().for_each(|mapping| mappings.insert(*mapping));
        mappings
    }

    #[test]
    fn neighbours_that_continue_each_other_are_one() {
        let all = mappings(&[private(1, 3, 3), private(5, 6, 3), private(3, 5, 3)]);
        assert_eq!(all.iter().copied().collect::<Vec<_>>(), [private(1, 6, 3)]);
        let all = mappings(&[private(1, 3, 3), private(3, 5, 1)]);
        assert_eq!(all.iter().count(), 2);
        let left_out = OnFork { left_out: true, wiped: false };
        let all = mappings(&[private(1, 3, 3), Mapping { on_fork: left_out, ..private(3, 5, 3) }]);
        assert_eq!(all.iter().count(), 2);
    }

    #[test]
    fn shared_parts_keep_their_offset() {
        let kind = |offset| Kind::Shared { device: 1, inode: 2, offset };
        let mut all = Mappings::default();
        all.insert(Mapping { kind: kind(0), ..private(0, 8, 1) });
        all.remove(2 * PAGE, 3 * PAGE);
        assert_eq!(all.at(5 * PAGE).unwrap().kind, kind(3 * PAGE));
        all.insert(Mapping { kind: kind(2 * PAGE), ..private(2, 3, 1) });
        assert_eq!(all.iter().count(), 1);
    }

    #[test]
    fn the_views_of_a_file_are_found_by_its_bytes() {
        let kind = |inode, offset| Kind::Shared { device: 1, inode, offset };
        let view = |start: u64, pages: u64, kind| Mapping { kind, ..private(start, start + pages, 5) };
        let file = |inode| FileId { device: 1, inode };
        let mut all = mappings(&[private(1, 9, 3)]);
        all.insert(view(10, 4, kind(7, 0)));
        all.insert(view(20, 4, kind(7, 2 * PAGE)));
        all.insert(view(30, 4, kind(8, 0)));
        let shown = |all: &Mappings, inode, bytes| {
            all.showing(file(inode), &bytes).iter().map(|part| part.start..part.end).collect::<Vec<_>>()
        };
        let at = 3 * PAGE + 4..3 * PAGE + 8;
        assert_eq!(shown(&all, 7, at.clone()), [13 * PAGE + 4..13 * PAGE + 8, 21 * PAGE + 4..21 * PAGE + 8]);
        assert_eq!(shown(&all, 7, 0..u64::MAX), [10 * PAGE..14 * PAGE, 20 * PAGE..24 * PAGE]);
        assert!(shown(&all, 7, 6 * PAGE..u64::MAX).is_empty() && shown(&all, 9, 0..u64::MAX).is_empty());
        // Some cut, some gone.
        all.remove(11 * PAGE, 21 * PAGE);
        assert_eq!(shown(&all, 7, 0..u64::MAX), [10 * PAGE..11 * PAGE, 21 * PAGE..24 * PAGE]);
        all.remove(0, 30 * PAGE);
        assert!(shown(&all, 7, 0..u64::MAX).is_empty());
        assert_eq!(all.by_file.len(), 1);
    }

    #[test]
    fn removal_splits() {
        let mut all = mappings(&[private(1, 9, 3)]);
        all.remove(3 * PAGE, 5 * PAGE);
        assert_eq!(all.within(0, 100 * PAGE), [private(1, 3, 3), private(5, 9, 3)]);
        assert!(all.is_free(3 * PAGE, 5 * PAGE) && !all.is_free(2 * PAGE, 5 * PAGE));
        assert!(!all.is_covered(PAGE, 9 * PAGE) && all.is_covered(6 * PAGE, 9 * PAGE));
        all.insert(private(9, 10, 0));
        assert_eq!((all.mapped_up_to(6 * PAGE + 5), all.mapped_up_to(3 * PAGE + 5)), (10 * PAGE, 3 * PAGE + 5));
    }

    #[test]
    fn places() {
        let all = mappings(&[private(4, 6, 3), private(8, 9, 3)]);
        assert_eq!(all.find_top_down(PAGE, PAGE, 10 * PAGE), Some(9 * PAGE));
        assert_eq!(all.find_top_down(2 * PAGE, PAGE, 10 * PAGE), Some(6 * PAGE));
        assert_eq!(all.find_top_down(3 * PAGE, PAGE, 10 * PAGE), Some(PAGE));
        assert_eq!(all.find_top_down(4 * PAGE, PAGE, 10 * PAGE), None);
        assert_eq!(all.find_top_down(PAGE, PAGE, 5 * PAGE), Some(3 * PAGE));
        assert_eq!(all.find_bottom_up(2 * PAGE, 5 * PAGE, 10 * PAGE), Some(6 * PAGE));
        assert_eq!(all.find_bottom_up(3 * PAGE, 5 * PAGE, 10 * PAGE), None);
    }
}
