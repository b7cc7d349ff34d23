//! The pages of a deferred region that a harvest has to look at: those with a begun
//! translation, as runs of neighbouring pages. So the cost of `sync` follows the amount
//! of code and not the size of guest memory.

use std::collections::BTreeMap;
use std::ops::Range;

const WORD_PAGES: usize = u64::BITS as usize;

/// A set of pages, as words of bits by the number of the word; no word is 0. The cost
/// follows the pages in it and not the size of the region.
#[derive(Debug, Default)]
pub(super) struct HarvestSet(BTreeMap<usize, u64>);

/// The bits of word `word` that stand for `pages`.
fn bits_of(word: usize, pages: &Range<usize>) -> u64 {
    let first = word * WORD_PAGES;
    let [start, end] = [pages.start, pages.end].map(|page| page.saturating_sub(first).min(WORD_PAGES));
    // 64 shifts would overflow.
    let below = |bit: usize| if bit == WORD_PAGES { u64::MAX } else { (1 << bit) - 1 };
    below(end) & !below(start)
}

impl HarvestSet {
    /// Adds one page.
    pub(super) fn insert(&mut self, page: usize) {
        *self.0.entry(page / WORD_PAGES).or_default() |= 1 << (page % WORD_PAGES);
    }

    /// Takes pages out.
    pub(super) fn remove(&mut self, pages: Range<usize>) {
        let mut word = pages.start / WORD_PAGES;
        while let Some((&found, bits)) = self.0.range_mut(word..pages.end.div_ceil(WORD_PAGES).max(word)).next() {
            *bits &= !bits_of(found, &pages);
            if *bits == 0 {
                self.0.remove(&found);
            }
            word = found + 1;
        }
    }

    /// The runs of neighbouring pages of the set that lie in `pages`, cut to it.
    pub(super) fn within(&self, pages: Range<usize>) -> impl Iterator<Item = Range<usize>> {
        let first = pages.start / WORD_PAGES;
        let mut words = self.0.range(first..pages.end.div_ceil(WORD_PAGES).max(first)).peekable();
        // The rest of the current word.
        let mut left = (0, 0);
        std::iter::from_fn(move || {
            while left.1 == 0 {
                let (&word, &bits) = words.next()?;
                left = (word, bits & bits_of(word, &pages));
            }
            let start = left.0 * WORD_PAGES + left.1.trailing_zeros() as usize;
            let mut end = start;
            loop {
                let bit = end % WORD_PAGES;
                let run = (left.1 >> bit).trailing_ones() as usize;
                end += run;
                if bit + run < WORD_PAGES {
                    left.1 &= !bits_of(left.0, &(start..end));
                    break;
                }
                // The run reaches the word's end: it may go on in the next.
                left.1 = 0;
                let Some((&word, &bits)) = words.next_if(|(word, _)| **word == left.0 + 1) else { break };
                left = (word, bits & bits_of(word, &pages));
            }
            Some(start..end)
        })
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

    /// Compares with a plain set of pages.
    #[test]
    fn agrees_with_a_set_of_pages() {
        let mut seed = 1u64;
        let mut next = |below: u64| {
            seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            ((seed >> 33) % below) as usize
        };
        // Far apart; the last place is at the end of the largest region.
        const PAGES: usize = 1 << 45;
        let places = [0, 20_000, PAGES / 8 * 5, PAGES - 100];
        let mut set = HarvestSet::default();
        let mut oracle = std::collections::BTreeSet::new();
        const CHANGES: usize = if cfg!(miri) { 100 } else { 5_000 };
        for _ in 0..CHANGES {
            if next(4) == 0 {
                let start = places[next(4)] + next(94);
                let end = start + next(6);
                set.remove(start..end);
                oracle.retain(|page| !(start..end).contains(page));
            } else {
                let page = places[next(4)] + next(100);
                set.insert(page);
                oracle.insert(page);
            }
            let pages: Vec<usize> = runs(&set).into_iter().flatten().collect();
            assert!(pages.iter().eq(oracle.iter()));
            assert!(runs(&set).windows(2).all(|pair| pair[0].end < pair[1].start));
        }
    }
}
