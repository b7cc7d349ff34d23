//! Which pages of a deferred region a harvest has to look at: those that a
//! translation was ever begun on, as runs of neighbouring pages, so that the
//! cost of `sync` follows where code lies and not the size of guest memory.

use std::ops::Range;

use crate::error::{Error, room_for};

/// A set of pages, as bits: the first level has one for each page, each further
/// level one for each word of the level below that is not 0. Adding a page costs
/// the same however many there are, and finding the next one skips what is empty.
/// Words that were never set take no memory.
#[derive(Debug)]
pub(super) struct HarvestSet {
    /// At least one level; the last has few words.
    levels: Vec<Vec<u64>>,
}

/// Words of the last level at most, where there are several.
const LAST_LEVEL_WORDS: usize = 256;

impl HarvestSet {
    /// An empty set of pages below `pages`.
    pub(super) fn new(pages: usize) -> Result<Self, Error> {
        let mut words = pages.div_ceil(64);
        // The levels above are a small part of the first.
        room_for::<u64>(words + words / 32, "the harvest's pages")?;
        let mut levels = vec![vec![0; words]];
        while words > LAST_LEVEL_WORDS {
            words = words.div_ceil(64);
            levels.push(vec![0; words]);
        }
        Ok(Self { levels })
    }

    /// Adds one page.
    pub(super) fn insert(&mut self, page: usize) {
        let mut at = page;
        for level in &mut self.levels {
            let Some(word) = level.get_mut(at / 64) else { return };
            let was = *word;
            *word |= 1 << (at % 64);
            if was != 0 {
                return;
            }
            at /= 64;
        }
    }

    /// Takes pages out.
    pub(super) fn remove(&mut self, pages: Range<usize>) {
        let mut next = pages.start;
        while let Some(page) = self.next_in(0, next).filter(|&page| page < pages.end) {
            self.clear(page);
            next = page + 1;
        }
    }

    fn clear(&mut self, page: usize) {
        let mut at = page;
        for level in &mut self.levels {
            level[at / 64] &= !(1 << (at % 64));
            if level[at / 64] != 0 {
                return;
            }
            at /= 64;
        }
    }

    /// The first bit of `level` that is set, from `from` on.
    fn next_in(&self, level: usize, from: usize) -> Option<usize> {
        let words = &self.levels[level];
        let word = from / 64;
        let here = words.get(word)? & (u64::MAX << (from % 64));
        if here != 0 {
            return Some(word * 64 + here.trailing_zeros() as usize);
        }
        let next = if level + 1 < self.levels.len() {
            self.next_in(level + 1, word + 1)?
        } else {
            word + 1 + words[word + 1..].iter().position(|&word| word != 0)?
        };
        Some(next * 64 + words[next].trailing_zeros() as usize)
    }

    /// The first page from `from` on that is not in the set.
    fn next_out(&self, from: usize) -> usize {
        let words = &self.levels[0];
        let mut word = from / 64;
        let mut out = !words[word] & (u64::MAX << (from % 64));
        while out == 0 {
            word += 1;
            match words.get(word) {
                Some(&bits) => out = !bits,
                None => return word * 64,
            }
        }
        word * 64 + out.trailing_zeros() as usize
    }

    /// The runs of neighbouring pages of the set that lie in `pages`, cut to it.
    pub(super) fn within(&self, pages: Range<usize>) -> impl Iterator<Item = Range<usize>> {
        let mut next = pages.start;
        std::iter::from_fn(move || {
            let start = self.next_in(0, next).filter(|&page| page < pages.end)?;
            let end = self.next_out(start).min(pages.end);
            next = end;
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
        let mut set = HarvestSet::new(1_000).unwrap();
        for page in [5, 7, 6, 6, 1, 0] {
            set.insert(page);
        }
        assert_eq!(runs(&set), [0..2, 5..8]);
        assert!(set.within(6..7).eq(std::iter::once(6..7)));
        assert_eq!(set.within(2..5).count(), 0);
    }

    #[test]
    fn removing_cuts_runs() {
        let mut set = HarvestSet::new(1_000).unwrap();
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
        // Far apart, so that every level is used; the last ends with the set.
        const PAGES: usize = if cfg!(miri) { 64 << 10 } else { 64 << 20 };
        let places = [0, 20_000, PAGES / 8 * 5, PAGES - 100];
        let mut set = HarvestSet::new(PAGES).unwrap();
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
