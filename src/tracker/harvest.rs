//! Which pages of a deferred region a harvest has to look at: those that a
//! translation was ever begun on, as runs of neighbouring pages, so that the
//! cost of `sync` follows where code lies and not the size of guest memory.

use std::collections::BTreeMap;
use std::ops::Range;

/// Disjoint runs of pages that do not touch: start to end.
#[derive(Debug, Default)]
pub(super) struct HarvestSet {
    runs: BTreeMap<usize, usize>,
}

impl HarvestSet {
    /// Adds one page.
    pub(super) fn insert(&mut self, page: usize) {
        let before = self.runs.range(..=page).next_back().map(|(&start, &end)| (start, end));
        let start = match before {
            Some((_, end)) if page < end => return,
            Some((start, end)) if page == end => start,
            _ => page,
        };
        let end = self.runs.remove(&(page + 1)).unwrap_or(page + 1);
        self.runs.insert(start, end);
    }

    /// Takes pages out.
    pub(super) fn remove(&mut self, pages: Range<usize>) {
        let hit: Vec<_> = self.within(pages.clone()).collect();
        for part in hit {
            let Some((&start, &end)) = self.runs.range(..=part.start).next_back() else { continue };
            self.runs.remove(&start);
            if start < part.start {
                self.runs.insert(start, part.start);
            }
            if part.end < end {
                self.runs.insert(part.end, end);
            }
        }
    }

    /// The runs that lie in `pages`, cut to it.
    pub(super) fn within(&self, pages: Range<usize>) -> impl Iterator<Item = Range<usize>> {
        let first = match self.runs.range(..=pages.start).next_back() {
            Some((&start, &end)) if end > pages.start => start,
            _ => pages.start,
        };
        self.runs
            .range(first..pages.end)
            .map(move |(&start, &end)| start.max(pages.start)..end.min(pages.end))
            .filter(|run| !run.is_empty())
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn runs(set: &HarvestSet) -> Vec<Range<usize>> {
        set.within(0..usize::MAX).collect()
    }

    #[test]
    fn neighbours_become_one_run() {
        let mut set = HarvestSet::default();
        for page in [5, 7, 6, 6, 1, 0] {
            set.insert(page);
        }
        assert_eq!(runs(&set), [0..2, 5..8]);
        assert!(set.within(6..7).eq(std::iter::once(6..7)));
        assert_eq!(set.within(2..5).count(), 0);
    }

    #[test]
    fn removing_cuts_runs() {
        let mut set = HarvestSet::default();
        (0..10).for_each(|page| set.insert(page));
        set.remove(3..5);
        assert_eq!(runs(&set), [0..3, 5..10]);
        set.remove(0..1);
        set.remove(9..20);
        assert_eq!(runs(&set), [1..3, 5..9]);
    }

    /// Against a plain set of pages.
    #[test]
    fn agrees_with_a_set_of_pages() {
        let mut seed = 1u64;
        let mut next = |below: u64| {
            seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            ((seed >> 33) % below) as usize
        };
        let mut set = HarvestSet::default();
        let mut oracle = std::collections::BTreeSet::new();
        for _ in 0..5_000 {
            if next(4) == 0 {
                let start = next(60);
                let end = start + next(6);
                set.remove(start..end);
                oracle.retain(|page| !(start..end).contains(page));
            } else {
                let page = next(60);
                set.insert(page);
                oracle.insert(page);
            }
            let pages: Vec<usize> = runs(&set).into_iter().flatten().collect();
            assert!(pages.iter().eq(oracle.iter()));
            assert!(runs(&set).windows(2).all(|pair| pair[0].end < pair[1].start));
        }
    }
}
