//! The attached pages and the guest's access to each, as runs of equal pages. So a region of any
//! size is at first one run.

use std::collections::BTreeMap;
use std::ops::Range;

use super::contract::Access;

/// End and access of each run, by its first page. Runs are disjoint.
#[derive(Debug, Default)]
pub(crate) struct Attached(BTreeMap<usize, (usize, Access)>);

impl Attached {
    /// `pages` are attached from now on, if they were not, with `access`.
    pub(crate) fn set(&mut self, mut pages: Range<usize>, access: Access) {
        self.remove(pages.clone());
        if let Some((&start, &(end, before))) = self.0.range(..pages.start).next_back()
            && (end, before) == (pages.start, access)
        {
            pages.start = start;
        }
        if let Some(&(end, behind)) = self.0.get(&pages.end)
            && behind == access
        {
            self.0.remove(&pages.end);
            pages.end = end;
        }
        self.0.insert(pages.start, (pages.end, access));
    }

    pub(crate) fn remove(&mut self, pages: Range<usize>) {
        while let Some((&start, &(end, access))) = self.0.range(..pages.end).next_back()
            && end > pages.start
        {
            self.0.remove(&start);
            if end > pages.end {
                self.0.insert(pages.end, (end, access));
            }
            if start < pages.start {
                self.0.insert(start, (pages.start, access));
            }
        }
    }

    /// The guest's access to `page`; `None` if it is not attached.
    pub(crate) fn access_of(&self, page: usize) -> Option<Access> {
        self.around(page).map(|(_, access)| access)
    }

    /// The run of pages with one access that holds `page`, and the access.
    pub(crate) fn around(&self, page: usize) -> Option<(Range<usize>, Access)> {
        let (&start, &(end, access)) = self.0.range(..=page).next_back()?;
        (page < end).then_some((start..end, access))
    }

    /// The attached parts of `pages`.
    pub(crate) fn within(&self, pages: Range<usize>) -> impl Iterator<Item = Range<usize>> {
        self.runs(pages).map(|(part, _)| part)
    }

    /// The attached parts of `pages`, and the guest's access to each.
    pub(crate) fn runs(&self, pages: Range<usize>) -> impl Iterator<Item = (Range<usize>, Access)> {
        let first = self.0.range(..=pages.start).next_back().map_or(pages.start, |(&start, _)| start);
        let runs = self.0.range(first..pages.end.max(first));
        let cut = move |(&start, &(end, access)): (&usize, &(usize, Access))| {
            (start.max(pages.start)..end.min(pages.end), access)
        };
        runs.map(cut).filter(|(part, _)| !part.is_empty())
    }

    /// The first of `pages` that is not attached.
    pub(crate) fn first_missing(&self, pages: Range<usize>) -> Option<usize> {
        let mut next = pages.start;
        for part in self.within(pages.clone()) {
            if part.start != next {
                break;
            }
            next = part.end;
        }
        (next < pages.end).then_some(next)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn agrees_with_a_list_of_pages() {
        let mut seed = 5u64;
        let mut next = |below: u64| {
            seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            ((seed >> 33) % below) as usize
        };
        let mut attached = Attached::default();
        let mut oracle = [None; 64];
        for _ in 0..if cfg!(miri) { 100 } else { 20_000 } {
            let start = next(64);
            let pages = start..(start + 1 + next(8)).min(64);
            let access = [None, Some(Access::None), Some(Access::Read), Some(Access::ReadWrite)][next(4)];
            match access {
                None => attached.remove(pages.clone()),
                Some(access) => attached.set(pages.clone(), access),
            }
            oracle[pages].fill(access);
            assert!((0..64).all(|page| attached.access_of(page) == oracle[page]));
            let asked = next(32)..32 + next(33);
            let within: Vec<usize> = attached.within(asked.clone()).flatten().collect();
            assert!(within.iter().copied().eq(asked.clone().filter(|&page| oracle[page].is_some())));
            let runs: Vec<_> =
                attached.runs(asked.clone()).flat_map(|(part, access)| part.map(move |page| (page, access))).collect();
            assert!(runs.iter().all(|&(page, access)| oracle[page] == Some(access)) && runs.len() == within.len());
            assert_eq!(attached.first_missing(asked.clone()), asked.clone().find(|&page| oracle[page].is_none()));
            let runs: Vec<_> = attached.0.iter().collect();
            assert!(runs.windows(2).all(|pair| pair[0].1.0 < *pair[1].0 || pair[0].1.1 != pair[1].1.1));
        }
    }
}
