//! The pages of a deferred region that a harvest has to look at, those with a begun translation,
//! and the spans that it asks the kernel about.
//!
//! A call for each run of neighbouring pages would cost by the number of runs. A call costs as much
//! as the walk of a page table of 512 protected pages. So a span may have gaps: data pages between
//! its runs. The kernel reports them as well, and protects them. The set drops their reports: no
//! block is on them. A begin on one of them protects it again, and reads its bytes after that.
//!
//! A protected data page has a price. Its next write costs the guest a fault, and the next scan a
//! flush of the TLB. So each chunk of 512 pages has a *debt*, in calls. A chunk with a debt is asked
//! about run by run, and each harvest pays off the calls that this costs. A chunk without one is
//! asked about as a whole, with the chunks near it. If such a scan costs more than it saves, by the
//! data pages that it finds written, the chunk has a new debt: that cost, times two for each such
//! scan in a row. So a wrong choice costs about as much as the right one, and not more and more.

use std::collections::BTreeMap;
use std::ops::Range;

const WORD_PAGES: usize = u64::BITS as usize;
const WORDS: usize = 8;
/// The pages of one page table, if a page has 4 KiB. No gap has more: its scan would cost more than
/// a call, and would make page tables.
const CHUNK_PAGES: usize = WORD_PAGES * WORDS;

/// The debt of a new chunk: the guest may write to its data pages, and they are not protected yet.
const FIRST_DEBT: u32 = 32;
/// The debt after a failed scan. It ended the translations of a whole span.
const DEBT_OF_A_FAILURE: u32 = 1 << 20;
/// The price of a written data page, in calls: a fault, and a report.
const PRICE_OF_A_PAGE: u32 = 2;
/// The price of the first one: a flush of the TLB.
const PRICE_OF_A_FLUSH: u32 = 8;
/// A debt is doubled so many times at most.
const MOST_DOUBLINGS: u32 = 8;

/// The longest span with gaps. If it fails, all of its translations end. A call is about a
/// hundredth of its cost.
const MOST_SPAN_PAGES: usize = 64 * CHUNK_PAGES;

/// A set of pages, as chunks by number; no chunk is empty. The cost follows the pages in it and
/// not the size of the region.
#[derive(Debug, Default)]
pub(super) struct HarvestSet(BTreeMap<usize, Chunk>);

#[derive(Debug)]
struct Chunk {
    words: [u64; WORDS],
    /// Its first page, the end of its last one, and the number of its runs. Every harvest asks.
    start: usize,
    end: usize,
    runs: u32,
    /// Calls that it has to pay before it is asked about as a whole.
    debt: u32,
    /// Scans in a row that cost more than they saved.
    doublings: u32,
    /// Data pages that this harvest found written.
    data_pages: u32,
    /// It was asked about as a whole: a data page that is found was written since.
    is_known: bool,
}

/// Pages that one call asks about. The first and the last one are in the set.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Span {
    pub(super) pages: Range<usize>,
    /// Some pages between are not in the set.
    pub(super) has_gaps: bool,
    /// None of its chunks has a debt.
    may_grow: bool,
}

/// The bits of the word from page `first` on that stand for `pages`.
fn bits_of(first: usize, pages: &Range<usize>) -> u64 {
    let [start, end] = [pages.start, pages.end].map(|page| page.saturating_sub(first).min(WORD_PAGES));
    // 64 shifts would overflow.
    let below = |bit: usize| if bit == WORD_PAGES { u64::MAX } else { (1 << bit) - 1 };
    below(end) & !below(start)
}

/// The numbers of the chunks that `pages` touch.
fn chunks_of(pages: &Range<usize>) -> Range<usize> {
    let first = pages.start / CHUNK_PAGES;
    first..pages.end.div_ceil(CHUNK_PAGES).max(first)
}

impl Default for Chunk {
    fn default() -> Self {
        let (words, start) = ([0; WORDS], CHUNK_PAGES);
        Self { words, start, end: 0, runs: 0, debt: FIRST_DEBT, doublings: 0, data_pages: 0, is_known: false }
    }
}

impl Chunk {
    /// The first place from `from` on that is in the set, or is not in it if `is_in` is false.
    fn next(&self, from: usize, is_in: bool) -> usize {
        let mut at = from;
        while at < CHUNK_PAGES {
            let word = self.words[at / WORD_PAGES];
            let bits = if is_in { word } else { !word } >> (at % WORD_PAGES);
            if bits != 0 {
                return at + bits.trailing_zeros() as usize;
            }
            at = (at / WORD_PAGES + 1) * WORD_PAGES;
        }
        CHUNK_PAGES
    }

    /// The place behind the last one before `end` that is in the set.
    fn end_before(&self, end: usize) -> usize {
        let words = self.words.iter().enumerate().rev();
        let ends = words.map(|(index, word)| {
            let first = index * WORD_PAGES;
            first + WORD_PAGES - (word & bits_of(first, &(0..end))).leading_zeros() as usize
        });
        ends.zip((0..WORDS).rev()).find(|(end, index)| *end > index * WORD_PAGES).map_or(0, |(end, _)| end)
    }

    fn has(&self, at: usize) -> bool {
        self.words.get(at / WORD_PAGES).is_some_and(|word| word >> (at % WORD_PAGES) & 1 != 0)
    }

    fn insert(&mut self, at: usize) {
        if self.has(at) {
            return;
        }
        self.words[at / WORD_PAGES] |= 1 << (at % WORD_PAGES);
        let neighbours = [at.checked_sub(1), Some(at + 1)].into_iter().flatten().filter(|&at| self.has(at)).count();
        self.runs = self.runs + 1 - neighbours as u32;
        (self.start, self.end) = (self.start.min(at), self.end.max(at + 1));
    }

    /// Takes out those of `pages`, of a chunk that begins at page `first`. Returns whether it is
    /// empty now.
    fn remove(&mut self, first: usize, pages: &Range<usize>) -> bool {
        for (word, first) in self.words.iter_mut().zip((first..).step_by(WORD_PAGES)) {
            *word &= !bits_of(first, pages);
        }
        let before = core::iter::once(0).chain(self.words).map(|word: u64| word >> (WORD_PAGES - 1));
        let runs = self.words.iter().zip(before).map(|(word, before)| (word & !(word << 1 | before)).count_ones());
        self.runs = runs.sum();
        (self.start, self.end) = (self.next(0, true), self.end_before(CHUNK_PAGES));
        self.runs == 0
    }

    /// A scan of it as a whole is over, and found so many data pages written.
    fn settle(&mut self, found: u32) {
        if !core::mem::replace(&mut self.is_known, true) {
            return; // found for the first time: nobody knows when they were written
        }
        let price = if found == 0 { 0 } else { found * PRICE_OF_A_PAGE + PRICE_OF_A_FLUSH };
        if price <= self.runs {
            self.doublings = 0;
        } else {
            self.debt = price << self.doublings;
            self.doublings = (self.doublings + 1).min(MOST_DOUBLINGS);
        }
    }

    /// Each run of it costs a call.
    fn pay(&mut self) {
        self.debt = self.debt.saturating_sub(self.runs);
        self.is_known = false;
    }
}

impl Span {
    /// Takes the next piece along, if one call for both is better than two.
    fn join(&mut self, next: &Self) -> bool {
        let gap = next.pages.start - self.pages.end;
        let is_run = gap == 0 && !self.has_gaps && !next.has_gaps;
        let is_near = gap < CHUNK_PAGES && next.pages.end - self.pages.start <= MOST_SPAN_PAGES;
        let joins = is_run || is_near && self.may_grow && next.may_grow;
        if joins {
            self.pages.end = next.pages.end;
            self.has_gaps |= gap > 0 || next.has_gaps;
            self.may_grow &= next.may_grow;
        }
        joins
    }
}

impl HarvestSet {
    /// Adds one page.
    pub(super) fn insert(&mut self, page: usize) {
        self.0.entry(page / CHUNK_PAGES).or_default().insert(page % CHUNK_PAGES);
    }

    /// Takes pages out.
    pub(super) fn remove(&mut self, pages: Range<usize>) {
        let mut numbers = chunks_of(&pages);
        while let Some((&number, chunk)) = self.0.range_mut(numbers.clone()).next() {
            if chunk.remove(number * CHUNK_PAGES, &pages) {
                self.0.remove(&number);
            }
            numbers.start = number + 1;
        }
    }

    /// The first span in `pages`, cut to them.
    pub(super) fn next_span(&self, pages: Range<usize>) -> Option<Span> {
        let mut pieces = self.pieces(pages);
        let mut span = pieces.next()?;
        while pieces.next().is_some_and(|next| span.join(&next)) {}
        Some(span)
    }

    /// The chunks of the set as a whole, or their runs if they have a debt, cut to `pages`.
    fn pieces(&self, pages: Range<usize>) -> impl Iterator<Item = Span> {
        let mut chunks = self.0.range(chunks_of(&pages));
        let mut from = pages.start;
        let mut current = None;
        std::iter::from_fn(move || {
            loop {
                let (&number, chunk) = match current {
                    Some(current) => current,
                    None => *current.insert(chunks.next()?),
                };
                let first = number * CHUNK_PAGES;
                let end = (pages.end - first).min(chunk.end);
                let from_here = from.saturating_sub(first);
                let start = if from_here <= chunk.start { chunk.start } else { chunk.next(from_here, true) };
                if start >= end {
                    current = None;
                    continue;
                }
                let run_end = if chunk.runs == 1 { end } else { chunk.next(start, false).min(end) };
                let may_grow = chunk.debt == 0;
                let piece_end = match may_grow && run_end < end {
                    true if end == chunk.end => end,
                    true => chunk.end_before(end),
                    false => run_end,
                };
                from = first + piece_end;
                return Some(Span { pages: first + start..from, has_gaps: run_end < piece_end, may_grow });
            }
        })
    }

    /// The kernel reported `pages` of a span as written. Calls `found` for those of the set.
    pub(super) fn found(&mut self, pages: Range<usize>, mut found: impl FnMut(usize)) {
        for (&number, chunk) in self.0.range_mut(chunks_of(&pages)) {
            let first_of = |word: usize| number * CHUNK_PAGES + word * WORD_PAGES;
            let skipped = pages.start.saturating_sub(first_of(0)) / WORD_PAGES;
            for (index, word) in chunk.words.iter().enumerate().skip(skipped) {
                let first = first_of(index);
                if first >= pages.end {
                    break;
                }
                let reported = bits_of(first, &pages);
                let mut code = reported & word;
                chunk.data_pages += (reported & !word).count_ones();
                while code != 0 {
                    found(first + code.trailing_zeros() as usize);
                    code &= code - 1;
                }
            }
        }
    }

    /// A harvest of `pages` is over. Each chunk learns from it, if it was asked about in full.
    pub(super) fn settle(&mut self, pages: Range<usize>) {
        for (&number, chunk) in self.0.range_mut(chunks_of(&pages)) {
            let first = number * CHUNK_PAGES;
            let found = core::mem::take(&mut chunk.data_pages);
            if pages.start > first + chunk.start || pages.end < first + chunk.end {
                continue;
            }
            if chunk.debt == 0 { chunk.settle(found) } else { chunk.pay() }
        }
    }

    /// The scan of a span with gaps failed: its runs are asked about one by one, for long.
    pub(super) fn keep_apart(&mut self, pages: Range<usize>) {
        for chunk in self.0.range_mut(chunks_of(&pages)).map(|(_, chunk)| chunk) {
            chunk.debt = DEBT_OF_A_FAILURE;
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn runs(set: &HarvestSet) -> Vec<Range<usize>> {
        spans(set, 0..usize::MAX).into_iter().map(|span| span.pages).collect()
    }

    fn spans(set: &HarvestSet, pages: Range<usize>) -> Vec<Span> {
        let mut rest = pages;
        std::iter::from_fn(|| set.next_span(rest.clone()).inspect(|span| rest.start = span.pages.end)).collect()
    }

    /// Pages of the set in spans: all of them.
    fn settle_until_whole(set: &mut HarvestSet) -> usize {
        (1..10_000)
            .find(|_| {
                set.settle(0..usize::MAX);
                spans(set, 0..usize::MAX).iter().all(|span| span.may_grow)
            })
            .unwrap()
    }

    #[test]
    fn neighbours_become_one_run() {
        let mut set = HarvestSet::default();
        for page in [5, 7, 6, 6, 1, 0] {
            set.insert(page);
        }
        assert_eq!(runs(&set), [0..2, 5..8]);
        assert_eq!(spans(&set, 6..7)[0].pages, 6..7);
        assert_eq!(spans(&set, 2..5), []);
        (500..1_100).for_each(|page| set.insert(page));
        assert_eq!(runs(&set), [0..2, 5..8, 500..1_100]);
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

    #[test]
    fn scattered_pages_become_one_span() {
        let mut set = HarvestSet::default();
        (0..2_000).step_by(20).chain([2_600]).for_each(|page| set.insert(page));
        assert_eq!(runs(&set).len(), 101);
        // 26 runs in a chunk.
        assert_eq!(settle_until_whole(&mut set), FIRST_DEBT as usize, "the chunk of one run pays it in calls");
        assert_eq!(runs(&set), [0..1_981, 2_600..2_601], "a gap of more than a page table");
        assert!(spans(&set, 0..1_981)[0].has_gaps);
        assert_eq!(spans(&set, 61..1_000)[0].pages, 80..981, "cut");
        assert_eq!(spans(&set, 1_999..5_000)[0].pages, 2_600..2_601);
    }

    #[test]
    fn long_spans_are_cut_but_long_runs_are_not() {
        let mut set = HarvestSet::default();
        const FAR: usize = 1 << 20;
        (0..2 * MOST_SPAN_PAGES).step_by(100).chain(FAR..FAR + 2 * MOST_SPAN_PAGES).for_each(|page| set.insert(page));
        settle_until_whole(&mut set);
        let found = runs(&set);
        assert_eq!(found.last(), Some(&(FAR..FAR + 2 * MOST_SPAN_PAGES)));
        assert!(
            found[0].len() <= MOST_SPAN_PAGES && found[0].len() > MOST_SPAN_PAGES / 2 && found.len() < 5,
            "{found:?}"
        );
    }

    /// A harvest of all spans; the kernel reports `written` pages of them. Returns the calls.
    fn harvest(set: &mut HarvestSet, written: &[usize]) -> usize {
        let asked = spans(set, 0..usize::MAX);
        for span in &asked {
            for &page in written.iter().filter(|page| span.pages.contains(page)) {
                set.found(page..page + 1, |_| ());
            }
        }
        set.settle(0..usize::MAX);
        asked.len()
    }

    #[test]
    fn a_chunk_with_written_data_pages_is_asked_about_by_runs() {
        let mut set = HarvestSet::default();
        (0..512).step_by(64).for_each(|page| set.insert(page));
        let data = [1, 2, 3, 70];
        settle_until_whole(&mut set);
        assert_eq!(harvest(&mut set, &data), 1, "not known yet");
        let calls: Vec<usize> = (0..2_000).map(|_| harvest(&mut set, &data)).collect();
        assert_eq!(calls[..3], [1, 8, 8]);
        let whole = calls.iter().filter(|&&calls| calls == 1).count();
        assert!((4..40).contains(&whole), "{whole} scans that cost more than they saved");
        let calls: Vec<usize> = (0..2_000).map(|_| harvest(&mut set, &[])).collect();
        assert_eq!(calls.last(), Some(&1), "the guest no longer writes there");
    }

    #[test]
    fn only_pages_of_the_set_are_found() {
        let mut set = HarvestSet::default();
        [3, 5, 6, 511, 512, 1_023].into_iter().for_each(|page| set.insert(page));
        let mut pages = Vec::new();
        set.found(4..6, |page| pages.push(page));
        set.found(500..1_500, |page| pages.push(page));
        assert_eq!(pages, [5, 511, 512, 1_023]);
    }

    #[test]
    fn a_failure_keeps_runs_apart() {
        let mut set = HarvestSet::default();
        [0, 2, 512].into_iter().for_each(|page| set.insert(page));
        settle_until_whole(&mut set);
        assert_eq!(set.next_span(0..5_000).unwrap().pages, 0..513);
        set.keep_apart(0..513);
        assert_eq!(runs(&set), [0..1, 2..3, 512..513]);
        set.settle(0..usize::MAX);
        assert_eq!(runs(&set).len(), 3);
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
            if next(50) == 0 {
                set.settle(0..PAGES);
            }
            let asked = spans(&set, 0..usize::MAX);
            let mut pages = Vec::new();
            for span in asked.clone() {
                let before = pages.len();
                let len = span.pages.len();
                set.found(span.pages.clone(), |page| pages.push(page));
                assert_eq!((pages[before], pages[pages.len() - 1]), (span.pages.start, span.pages.end - 1));
                assert_eq!(span.has_gaps, pages.len() - before < len);
            }
            assert!(pages.iter().eq(oracle.iter()));
            assert!(asked.windows(2).all(|pair| pair[0].pages.end < pair[1].pages.start || pair[1].has_gaps));
            let start = places[next(4)] + next(100);
            let cut = start..start.max(PAGES - next(100));
            let mut pages = Vec::new();
            spans(&set, cut.clone()).into_iter().for_each(|span| set.found(span.pages, |page| pages.push(page)));
            assert!(pages.iter().eq(oracle.range(cut)));
            for chunk in set.0.values() {
                let mut anew = Chunk { words: chunk.words, ..Chunk::default() };
                assert!(!anew.remove(0, &(0..0)), "no chunk is empty");
                assert_eq!((chunk.start, chunk.end, chunk.runs), (anew.start, anew.end, anew.runs));
            }
        }
    }
}
