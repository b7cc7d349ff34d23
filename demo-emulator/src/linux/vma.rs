//! Which ranges of the guest's address space are mapped, and how.
//!
//! A pure data structure: it makes no system call. Ranges are page-aligned and
//! disjoint; neighbours that continue each other are one entry.

use std::collections::BTreeMap;

/// Guest protection bits, as `PROT_*`: read 1, write 2, execute 4.
pub type Prot = u8;

/// What lies under a mapping.
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

/// One mapping.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Mapping {
    /// First address.
    pub start: u64,
    /// One past the last.
    pub end: u64,
    /// Guest protection.
    pub prot: Prot,
    /// What lies under it.
    pub kind: Kind,
}

impl Mapping {
    /// Length in bytes.
    pub fn len_bytes(&self) -> u64 {
        self.end - self.start
    }

    /// The part of it in `start..end`.
    fn clip(&self, start: u64, end: u64) -> Self {
        let from = self.start.max(start);
        let kind = match self.kind {
            Kind::Private => Kind::Private,
            Kind::Shared { device, inode, offset } => {
                Kind::Shared { device, inode, offset: offset + (from - self.start) }
            }
        };
        Self { start: from, end: self.end.min(end), prot: self.prot, kind }
    }

    /// Whether `next` is the same mapping going on.
    fn continues_with(&self, next: &Mapping) -> bool {
        if self.end != next.start || self.prot != next.prot {
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

    /// Forgets what is mapped in `start..end`, splitting what sticks out.
    pub fn remove(&mut self, start: u64, end: u64) {
        if start >= end {
            return;
        }
        let mut touched: Vec<Mapping> = self.by_start.range(start..end).map(|(_, mapping)| *mapping).collect();
        touched.extend(self.at(start).filter(|mapping| mapping.start < start));
        for mapping in touched {
            self.by_start.remove(&mapping.start);
            if mapping.start < start {
                self.by_start.insert(mapping.start, mapping.clip(mapping.start, start));
            }
            if mapping.end > end {
                let rest = mapping.clip(end, mapping.end);
                self.by_start.insert(rest.start, rest);
            }
        }
    }

    /// Puts `mapping` there in place of whatever was.
    pub fn insert(&mut self, mut mapping: Mapping) {
        self.remove(mapping.start, mapping.end);
        if let Some((&start, before)) = self.by_start.range(..mapping.start).next_back()
            && before.continues_with(&mapping)
        {
            mapping = Mapping { end: mapping.end, ..*before };
            self.by_start.remove(&start);
        }
        if let Some(after) = self.by_start.get(&mapping.end).copied()
            && mapping.continues_with(&after)
        {
            self.by_start.remove(&after.start);
            mapping.end = after.end;
        }
        self.by_start.insert(mapping.start, mapping);
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
        Mapping { start: start * PAGE, end: end * PAGE, prot, kind: Kind::Private }
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
    }

    #[test]
    fn shared_parts_keep_their_offset() {
        let kind = |offset| Kind::Shared { device: 1, inode: 2, offset };
        let mut all = Mappings::default();
        all.insert(Mapping { start: 0, end: 8 * PAGE, prot: 1, kind: kind(0) });
        all.remove(2 * PAGE, 3 * PAGE);
        assert_eq!(all.at(5 * PAGE).unwrap().kind, kind(3 * PAGE));
        all.insert(Mapping { start: 2 * PAGE, end: 3 * PAGE, prot: 1, kind: kind(2 * PAGE) });
        assert_eq!(all.iter().count(), 1);
    }

    #[test]
    fn removal_splits() {
        let mut all = mappings(&[private(1, 9, 3)]);
        all.remove(3 * PAGE, 5 * PAGE);
        assert_eq!(all.within(0, 100 * PAGE), [private(1, 3, 3), private(5, 9, 3)]);
        assert!(all.is_free(3 * PAGE, 5 * PAGE) && !all.is_free(2 * PAGE, 5 * PAGE));
        assert!(!all.is_covered(PAGE, 9 * PAGE) && all.is_covered(6 * PAGE, 9 * PAGE));
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
