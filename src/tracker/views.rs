//! Guest addresses that show the same bytes.
//!
//! Protection belongs to a mapping: a store through another mapping of the same memory
//! raises no fault. So a translator of shared memory claims every page that shows the
//! same bytes. Then a store through any of them finds the block, and a page of memory
//! counts as protected only if all its mappings are.
//!
//! A view that appears later is recorded before the guest sees it. Then translations of the other
//! views become unreachable and their claims end. A translation that begins after that finds the
//! new view and claims it too.
//!
//! # The effect of a call for a range on the other views
//!
//! A block lies on every view's page. So a kill or a hold of any one of these pages reaches the
//! block. An announcement of a write or of a change therefore needs only the pages of the range. A
//! harvest differs: it asks which bytes were written, and a store may have come through any view.
//! So [`sync_range`](super::Tracker::sync_range) asks about the other views of the range too. A
//! range may cut a view. Then a part of another view belongs to the range if, and only if, it shows
//! bytes of the range.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use crate::addr::{GuestAddr, Span};
use crate::error::Error;
use crate::memory::guest_memory::BackingId;

/// Memory that may be mapped at several places.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SharedMemory {
    /// The file or memfd.
    pub backing: BackingId,
    /// The offset in it, in bytes, at which the mapping begins: a multiple of the page
    /// size.
    pub offset: u64,
}

#[derive(Clone, Copy, Debug)]
struct View {
    /// Its guest addresses.
    at: Span,
    backing: BackingId,
    /// The bytes of the memory that it shows, as many as `at` has.
    shown: Span,
}

impl View {
    /// The part of it at `at`.
    fn part(self, at: Span) -> Option<Self> {
        let at = self.at.intersection(at)?;
        let shown = at.moved_to(self.shown.first() + (at.first() - self.at.first()))?;
        Some(Self { at, shown, ..self })
    }

    /// The guest addresses at which it shows its part of `bytes`.
    fn showing(self, bytes: Span) -> Option<Span> {
        let shown = self.shown.intersection(bytes)?;
        shown.moved_to(self.at.first() + (shown.first() - self.shown.first()))
    }
}

/// The views of a tracker.
#[derive(Debug, Default)]
pub(super) struct Views {
    /// By their first guest address; they do not overlap.
    views: BTreeMap<u64, View>,
    memories: HashMap<BackingId, Shown>,
}

/// The views of one memory. A search looks at those that may show its bytes, and not at all of them.
#[derive(Debug, Default)]
struct Shown {
    /// The first byte that each one shows, and its first guest address.
    starts: BTreeSet<(u64, u64)>,
    /// No view is longer than this and one byte.
    longest: u64,
}

impl Views {
    /// `at` shows `memory`.
    ///
    /// # Errors
    ///
    /// [`Error::BadRange`] if the end of the 64-bit space cuts the memory short: nothing was changed.
    pub(super) fn insert(&mut self, at: Span, memory: SharedMemory) -> Result<(), Error> {
        let shown = at.moved_to(memory.offset).ok_or_else(|| Self::wraps(at))?;
        self.remove(at);
        self.enter(View { at, backing: memory.backing, shown });
        Ok(())
    }

    /// The error for a view at `at` of memory that ends before it.
    pub(super) fn wraps(at: Span) -> Error {
        let why = "a view of shared memory does not wrap";
        Error::BadRange { start: at.first(), len: at.len_bytes(), why }
    }

    fn enter(&mut self, view: View) {
        let memory = self.memories.entry(view.backing).or_default();
        memory.starts.insert((view.shown.first(), view.at.first()));
        memory.longest = memory.longest.max(view.at.last() - view.at.first());
        self.views.insert(view.at.first(), view);
    }

    fn leave(&mut self, view: &View) {
        self.views.remove(&view.at.first());
        if let Some(memory) = self.memories.get_mut(&view.backing) {
            memory.starts.remove(&(view.shown.first(), view.at.first()));
            if memory.starts.is_empty() {
                self.memories.remove(&view.backing);
            }
        }
    }

    /// Ends every view in `at`.
    pub(super) fn remove(&mut self, at: Span) {
        let hit: Vec<View> = self.within(at).collect();
        for view in hit {
            self.leave(&view);
            let left = view.at.without(at).into_iter().flatten().filter_map(|left| view.part(left));
            left.for_each(|left| self.enter(left));
        }
    }

    /// The views that have an address in `at`, whole.
    fn within(&self, at: Span) -> impl Iterator<Item = View> {
        let before = self.views.range(..at.first()).next_back().filter(|(_, view)| view.at.last() >= at.first());
        before.into_iter().chain(self.views.range(at.first()..=at.last())).map(|(_, &view)| view)
    }

    /// The views in `at`, each cut to it, with the memory that it shows.
    pub(super) fn parts(&self, at: Span) -> Vec<(Span, SharedMemory)> {
        let parts = self.within(at).filter_map(|view| view.part(at));
        parts.map(|part| (part.at, SharedMemory { backing: part.backing, offset: part.shown.first() })).collect()
    }

    /// The guest ranges outside `at` that show bytes of `at`. They do not overlap.
    pub(super) fn others(&self, at: Span) -> Vec<Span> {
        let mut others = Vec::new();
        for part in self.within(at).filter_map(|view| view.part(at)) {
            let Some(memory) = self.memories.get(&part.backing) else { continue };
            let first = part.shown.first().saturating_sub(memory.longest);
            let near = memory.starts.range((first, 0)..=(part.shown.last(), u64::MAX));
            let same = near.filter_map(|(_, start)| self.views.get(start));
            for found in same.filter_map(|view| view.showing(part.shown)) {
                others.extend(found.without(at).into_iter().flatten());
            }
        }
        // Two views in `at` may show the same bytes.
        others.sort_unstable_by_key(|span| span.first());
        let mut rest: Option<Span> = Some(Span::ALL);
        others.retain_mut(|span| {
            let Some(new) = rest.and_then(|rest| span.intersection(rest)) else { return false };
            *span = new;
            [_, rest] = Span::ALL.without(new);
            true
        });
        others
    }

    /// The guest pages other than `page`, one page, that show its bytes.
    pub(super) fn aliases(&self, page: Span) -> Vec<GuestAddr> {
        self.others(page).into_iter().map(|other| GuestAddr(other.first())).collect()
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    const P: u64 = 0x1000;

    fn memory(inode: u64, offset: u64) -> SharedMemory {
        SharedMemory { backing: BackingId::of_file(1, inode), offset }
    }

    fn pages(first: u64, count: u64) -> Span {
        Span::new(first * P, count * P).unwrap().unwrap()
    }

    fn aliases(views: &Views, page: u64) -> Vec<u64> {
        views.aliases(pages(page, 1)).into_iter().map(|alias| alias.0 / P).collect()
    }

    #[test]
    fn views_of_the_same_bytes_find_each_other() {
        let mut views = Views::default();
        views.insert(pages(0, 4), memory(7, 0)).unwrap();
        assert!(aliases(&views, 0).is_empty());
        views.insert(pages(10, 2), memory(7, 2 * P)).unwrap();
        views.insert(pages(20, 4), memory(8, 0)).unwrap();
        assert_eq!(aliases(&views, 2), [10]);
        assert_eq!(aliases(&views, 11), [3]);
        assert!(aliases(&views, 1).is_empty() && aliases(&views, 20).is_empty());
        assert_eq!(views.others(pages(10, 2)), [pages(2, 2)]);
        assert_eq!(views.others(pages(0, 11)), [pages(11, 1)], "a view that the range cuts is cut");
    }

    /// The views of one file are far apart, and those of another one are left alone.
    #[test]
    fn a_search_looks_at_few_of_many_views() {
        let mut views = Views::default();
        for view in 0..1000 {
            views.insert(pages(2 * view, 1), memory(view % 2, view * P)).unwrap();
        }
        views.insert(pages(5000, 1), memory(0, 0)).unwrap();
        assert_eq!((aliases(&views, 5000), aliases(&views, 0)), (vec![0], vec![5000]));
        assert_eq!(views.memories[&BackingId::of_file(1, 1)].starts.len(), 500);
        (0..1000).for_each(|view| views.remove(pages(2 * view, 1)));
        assert_eq!((views.views.len(), views.memories.len()), (1, 1));
    }

    #[test]
    fn a_view_that_is_cut_keeps_its_offsets() {
        let mut views = Views::default();
        views.insert(pages(0, 8), memory(7, 0)).unwrap();
        views.insert(pages(100, 8), memory(7, 0)).unwrap();
        views.remove(pages(2, 2));
        assert!(aliases(&views, 103).is_empty());
        assert_eq!(aliases(&views, 101), [1]);
        assert_eq!(aliases(&views, 105), [5]);
    }

    /// The last page of the space, and one more.
    #[test]
    fn a_view_that_wraps_is_refused() {
        let mut views = Views::default();
        views.insert(pages(0, 1), memory(7, 0)).unwrap();
        views.insert(pages(5, 1), memory(7, u64::MAX - P + 1)).unwrap();
        assert!(views.insert(pages(0, 2), memory(7, u64::MAX - P + 1)).is_err());
        views.insert(pages(9, 1), memory(7, 0)).unwrap();
        assert_eq!(aliases(&views, 9), [0], "nothing was changed");
    }

    /// A memory, and a page of it.
    type Shown = (u64, u64);

    /// Compares with a map of pages, at either end of the address space.
    #[test]
    fn agrees_with_a_map_of_pages() {
        const PAGES: u64 = 40;
        const ROUNDS: u64 = if cfg!(miri) { 3 } else { 300 };
        for round in 0..ROUNDS {
            let mut seed = round;
            let mut next = |below: u64| {
                seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                (seed >> 33) % below
            };
            let base = if round % 2 == 0 { 0 } else { (u64::MAX - PAGES * P) / P + 1 };
            let file_base = if round % 3 == 0 { (u64::MAX - PAGES * P) / P + 1 } else { 0 };
            let mut views = Views::default();
            let mut oracle: BTreeMap<u64, Shown> = BTreeMap::new();
            for step in 0..40 {
                let first = next(PAGES);
                let count = 1 + next(PAGES - first);
                let at = pages(base + first, count);
                if next(3) == 0 {
                    views.remove(at);
                    oracle.retain(|page, _| !(first..first + count).contains(page));
                } else {
                    let (inode, offset) = (next(2), next(PAGES - count + 1));
                    views.insert(at, memory(inode, (file_base + offset) * P)).unwrap();
                    oracle.extend((0..count).map(|page| (first + page, (inode, offset + page))));
                }
                let first = next(PAGES);
                let asked = first..first + 1 + next(PAGES - first);
                let shown: BTreeSet<Shown> = oracle.range(asked.clone()).map(|(_, &shown)| shown).collect();
                let outside = oracle.iter().filter(|(page, it)| !asked.contains(page) && shown.contains(it));
                let expected: Vec<u64> = outside.map(|(page, _)| page + base).collect();
                let found = views.others(pages(base + asked.start, asked.end - asked.start));
                let found: Vec<u64> = found.into_iter().flat_map(|span| span.first() / P..=span.last() / P).collect();
                assert_eq!(found, expected, "round {round}, step {step}");
                let one = oracle.get(&first);
                let same = oracle.iter().filter(|(page, it)| **page != first && Some(*it) == one);
                let expected: Vec<u64> = same.map(|(page, _)| page + base).collect();
                assert_eq!(aliases(&views, base + first), expected, "round {round}, step {step}");
            }
        }
    }
}
