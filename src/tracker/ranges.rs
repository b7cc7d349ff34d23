//! A set of page numbers as disjoint ranges.

use std::collections::BTreeMap;
use std::ops::Range;

/// The end of each range, by its first page; neighbours are one range.
#[derive(Debug, Default)]
pub(super) struct Ranges(BTreeMap<usize, usize>);

impl Ranges {
    pub(super) fn insert(&mut self, mut pages: Range<usize>) {
        if pages.is_empty() {
            return;
        }
        if let Some((&start, &end)) = self.0.range(..=pages.start).next_back()
            && end >= pages.start
        {
            pages.start = start;
            pages.end = pages.end.max(end);
        }
        while let Some((&start, &end)) = self.0.range(pages.start..=pages.end).next() {
            pages.end = pages.end.max(end);
            self.0.remove(&start);
        }
        self.0.insert(pages.start, pages.end);
    }

    pub(super) fn remove(&mut self, pages: Range<usize>) {
        if pages.is_empty() {
            return;
        }
        while let Some((&start, &end)) = self.0.range(..pages.end).next_back()
            && end > pages.start
        {
            self.0.remove(&start);
            if end > pages.end {
                self.0.insert(pages.end, end);
            }
            if start < pages.start {
                self.0.insert(start, pages.start);
            }
        }
    }

    pub(super) fn contains(&self, page: usize) -> bool {
        self.around(page).is_some()
    }

    /// The range that holds `page`.
    pub(super) fn around(&self, page: usize) -> Option<Range<usize>> {
        let (&start, &end) = self.0.range(..=page).next_back()?;
        (page < end).then_some(start..end)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn agrees_with_a_set_of_pages() {
        let mut seed = 7u64;
        let mut next = |below: u64| {
            seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            ((seed >> 33) % below) as usize
        };
        let mut ranges = Ranges::default();
        let mut oracle = [false; 64];
        const CHANGES: usize = if cfg!(miri) { 100 } else { 20_000 };
        for _ in 0..CHANGES {
            let start = next(64);
            let end = (start + next(8)).min(64);
            let inserts = next(2) == 0;
            if inserts {
                ranges.insert(start..end)
            } else {
                ranges.remove(start..end)
            }
            oracle[start..end].fill(inserts);
            for page in 0..64 {
                let around = ranges.around(page);
                assert_eq!(around.is_some(), oracle[page]);
                let Some(around) = around else { continue };
                assert!(around.contains(&page) && oracle[around.clone()].iter().all(|&is_in| is_in));
                assert!(around.start == 0 || !oracle[around.start - 1]);
                assert!(around.end == 64 || !oracle[around.end]);
            }
        }
    }
}
