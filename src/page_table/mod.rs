//! The page descriptors of one region: a sparse table, two levels deep.
//!
//! Descriptors are made by translators, a chunk at a time, where they first
//! look; a fault handler only finds them. A page without a descriptor never
//! held a block. Descriptors stay until the region goes.
//!
//! # Safety
//!
//! A chunk is published once by a release store of its pointer and freed when
//! the table is dropped; a reference to a descriptor lives as long as the table.
#![allow(unsafe_code)]

mod word;

use core::{fmt, ops::Range};

pub use word::Busy;
pub(crate) use word::{Begin, Generation, PageState, PageWord, Word};

use crate::addr::PageIndex;
use crate::sync::{AtomicPtr, Mutex, Ordering, lock};

/// Descriptors of a chunk: 2 MiB of guest memory with pages of 4 KiB.
#[cfg(not(loom))]
const CHUNK_PAGES: usize = 512;
#[cfg(loom)]
const CHUNK_PAGES: usize = 2;

/// One page.
#[derive(Debug)]
pub(crate) struct PageDesc<D> {
    pub(crate) word: PageWord,
    /// Recent faults, for the decision to leave the page writable a while.
    pub(crate) heat: Heat,
    /// What lies on it, for whoever stands on the tracker.
    pub(crate) data: D,
}

/// How often the same byte of the page faulted lately.
#[derive(Debug)]
pub(crate) struct Heat(core::sync::atomic::AtomicU64);

/// Faults at the same byte within one window after which the page stays
/// writable until the window is over. A store over two pages needs both to be
/// writable at once; against an eager translator that took 1,790 faults.
const HOT_FAULTS: u64 = 8;
/// Length of the window.
const WINDOW_MS: u64 = 32;

impl Heat {
    fn new() -> Self {
        Self(core::sync::atomic::AtomicU64::new(0))
    }

    // bits 0..16: byte within the page, plus 1; 16..24: faults; 24..64: when the
    // window began, in ms.
    fn unpack(word: u64) -> (u64, u64, u64) {
        (word & 0xffff, (word >> 16) & 0xff, word >> 24)
    }

    /// A fault at byte `offset` of the page, `now_ms` on a monotonic clock.
    pub(crate) fn record(&self, offset: usize, now_ms: u64) {
        let (byte, faults, since_ms) = Self::unpack(self.0.load(Ordering::Relaxed));
        let this = (offset as u64 + 1) & 0xffff;
        let same = byte == this && now_ms.wrapping_sub(since_ms) < WINDOW_MS;
        let (faults, since_ms) = if same { ((faults + 1).min(0xff), since_ms) } else { (1, now_ms) };
        self.0.store(this | faults << 16 | since_ms << 24, Ordering::Relaxed);
    }

    /// Whether the page should stay writable just now.
    pub(crate) fn is_hot(&self, now_ms: impl FnOnce() -> u64) -> bool {
        let (_, faults, since_ms) = Self::unpack(self.0.load(Ordering::Relaxed));
        faults >= HOT_FAULTS && now_ms().wrapping_sub(since_ms) < WINDOW_MS
    }
}

/// The table of a region.
pub(crate) struct PageTable<D> {
    pages: usize,
    chunks: Box<[AtomicPtr<PageDesc<D>>]>,
    /// Ranges that are held open. It is also the lock under which chunks are
    /// made, so that a hold and a new chunk agree on the counts.
    held: Mutex<Vec<Range<usize>>>,
}

impl<D> fmt::Debug for PageTable<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PageTable").field("pages", &self.pages).finish_non_exhaustive()
    }
}

impl<D: Default> PageTable<D> {
    pub(crate) fn new(pages: usize) -> Self {
        let chunks = (0..pages.div_ceil(CHUNK_PAGES)).map(|_| AtomicPtr::new(core::ptr::null_mut())).collect();
        Self { pages, chunks, held: Mutex::new(Vec::new()) }
    }

    pub(crate) fn pages(&self) -> usize {
        self.pages
    }

    fn chunk(&self, number: usize) -> Option<&[PageDesc<D>]> {
        let first = self.chunks.get(number)?.load(Ordering::Acquire);
        if first.is_null() {
            return None;
        }
        // SAFETY: a pointer that is not null came from `make_chunk`: it points to
        // CHUNK_PAGES descriptors that are freed only by `drop`.
        Some(unsafe { core::slice::from_raw_parts(first, CHUNK_PAGES) })
    }

    /// The descriptor of `page`, where there is one. Async-signal-safe.
    pub(crate) fn get(&self, page: PageIndex) -> Option<&PageDesc<D>> {
        self.chunk(page.0 / CHUNK_PAGES)?.get(page.0 % CHUNK_PAGES)
    }

    /// The descriptor of `page`, made where there is none; `None` outside the
    /// region.
    pub(crate) fn get_or_make(&self, page: PageIndex) -> Option<&PageDesc<D>> {
        if page.0 >= self.pages {
            return None;
        }
        if let Some(desc) = self.get(page) {
            return Some(desc);
        }
        let held = lock(&self.held);
        let number = page.0 / CHUNK_PAGES;
        if self.chunk(number).is_none() {
            self.make_chunk(number, &held);
        }
        drop(held);
        self.get(page)
    }

    fn make_chunk(&self, number: usize, held: &[Range<usize>]) {
        let descs: Box<[PageDesc<D>]> = (0..CHUNK_PAGES)
            .map(|i| {
                let page = number * CHUNK_PAGES + i;
                let count = held.iter().filter(|range| range.contains(&page)).count();
                PageDesc { word: PageWord::new(count as u64), heat: Heat::new(), data: D::default() }
            })
            .collect();
        let first = Box::into_raw(descs).cast::<PageDesc<D>>();
        self.chunks[number].store(first, Ordering::Release);
    }

    /// Every descriptor there is in `pages`, with its page.
    pub(crate) fn existing(&self, pages: Range<usize>) -> impl Iterator<Item = (PageIndex, &PageDesc<D>)> {
        let end = pages.end.min(self.pages);
        let mut next = pages.start;
        core::iter::from_fn(move || {
            while next < end {
                let page = PageIndex(next);
                if let Some(desc) = self.get(page) {
                    next += 1;
                    return Some((page, desc));
                }
                next = (next / CHUNK_PAGES + 1) * CHUNK_PAGES;
            }
            None
        })
    }

    /// Enters an un-protect on every page of `pages`, those that have no
    /// descriptor yet included; `entered` is told of each that has one, with its
    /// word before. Until [`PageTable::release`] nobody begins there.
    pub(crate) fn hold(&self, pages: Range<usize>, mut entered: impl FnMut(PageIndex, &PageDesc<D>, Word)) {
        let mut held = lock(&self.held);
        for (page, desc) in self.existing(pages.clone()) {
            let before = desc.word.enter_unprotect();
            entered(page, desc, before);
        }
        held.push(pages);
    }

    /// Ends one hold of the same pages.
    pub(crate) fn release(&self, pages: Range<usize>) {
        let mut held = lock(&self.held);
        if let Some(at) = held.iter().position(|range| *range == pages) {
            held.swap_remove(at);
            for (_, desc) in self.existing(pages) {
                desc.word.leave_unprotect();
            }
        }
    }
}

impl<D> Drop for PageTable<D> {
    fn drop(&mut self) {
        for chunk in &mut self.chunks {
            let first = chunk.load(Ordering::Relaxed);
            if !first.is_null() {
                let descs = core::ptr::slice_from_raw_parts_mut(first, CHUNK_PAGES);
                // SAFETY: made by `make_chunk` from a box of that length, and
                // nobody has the table any more.
                drop(unsafe { Box::from_raw(descs) });
            }
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn descriptors_are_made_where_somebody_looks() {
        let table = PageTable::<()>::new(3 * CHUNK_PAGES + 1);
        assert!(table.get(PageIndex(700)).is_none());
        assert!(table.get_or_make(PageIndex(700)).is_some());
        assert!(table.get(PageIndex(701)).is_some() && table.get(PageIndex(0)).is_none());
        assert!(table.get_or_make(PageIndex(3 * CHUNK_PAGES)).is_some());
        assert!(table.get_or_make(PageIndex(3 * CHUNK_PAGES + 1)).is_none());
        assert_eq!(table.existing(0..usize::MAX).count(), CHUNK_PAGES + 1);
    }

    #[test]
    fn a_hold_reaches_descriptors_made_after_it() {
        let table = PageTable::<()>::new(2 * CHUNK_PAGES);
        let early = table.get_or_make(PageIndex(1)).unwrap();
        let pages = 0..CHUNK_PAGES + 4;
        table.hold(pages.clone(), |_, _, _| {});
        let late = table.get_or_make(PageIndex(CHUNK_PAGES)).unwrap();
        let beyond = table.get(PageIndex(CHUNK_PAGES + 4)).unwrap();
        assert_eq!(early.word.begin_protect(), Begin::Busy(Busy::Unprotecting));
        assert_eq!(late.word.begin_protect(), Begin::Busy(Busy::Unprotecting));
        assert_eq!(beyond.word.begin_protect(), Begin::Protect);
        table.release(pages);
        assert_eq!(early.word.begin_protect(), Begin::Protect);
        assert_eq!(late.word.begin_protect(), Begin::Protect);
    }

    #[test]
    fn a_byte_that_keeps_faulting_makes_its_page_hot() {
        let heat = Heat::new();
        for _ in 0..HOT_FAULTS {
            assert!(!heat.is_hot(|| 1_000));
            heat.record(4095, 1_000);
        }
        assert!(heat.is_hot(|| 1_000 + WINDOW_MS - 1));
        assert!(!heat.is_hot(|| 1_000 + WINDOW_MS));
        heat.record(0, 1_001);
        assert!(!heat.is_hot(|| 1_001));
    }
}
