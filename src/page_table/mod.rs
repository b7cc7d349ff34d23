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

mod history;
mod word;

use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
use core::{fmt, ops::Range};

pub(crate) use history::{History, Hit};
pub use word::Busy;
pub(crate) use word::{Begin, Generation, InFlight, PageState, PageWord, Unprotect, Word};

use crate::addr::PageIndex;
use crate::error::{Error, room_for};
use crate::sync::{AtomicPtr, Mutex, Ordering, lock};

/// Descriptors of a chunk: 2 MiB of guest memory with pages of 4 KiB.
#[cfg(not(any(loom, miri)))]
const CHUNK_PAGES: usize = 512;
#[cfg(loom)]
const CHUNK_PAGES: usize = 2;
#[cfg(miri)]
const CHUNK_PAGES: usize = 32;

/// A page's lines, one for each bit of a word: 64 bytes each in a page of 4 KiB.
const CODE_LINES: usize = 64;

/// One page.
#[derive(Debug)]
pub(crate) struct PageDesc<D> {
    pub(crate) word: PageWord,
    /// What happened on it lately.
    pub(crate) history: History,
    /// Which of its [`CODE_LINES`] lines may hold bytes that something was made
    /// from. It decides what is worth while and never what is right: a write
    /// that is taken for one beside code makes blocks compare themselves.
    code_lines: AtomicU64,
    /// What lies on it, for whoever stands on the tracker.
    pub(crate) data: D,
}

impl<D> PageDesc<D> {
    /// The translator that protects the page finds no code on it. Before anybody
    /// can have its generation.
    pub(crate) fn clear_code(&self) {
        self.code_lines.store(0, Relaxed);
    }

    /// Something is made from `bytes` of the page, of `page_bytes`.
    pub(crate) fn add_code(&self, bytes: Range<usize>, page_bytes: usize) {
        self.code_lines.fetch_or(lines_of(bytes, page_bytes), Relaxed);
    }

    /// Whether anything may be made from the page.
    pub(crate) fn has_any_code(&self) -> bool {
        self.code_lines.load(Relaxed) != 0
    }

    /// Whether a line that holds one of `bytes` may hold code.
    pub(crate) fn has_code(&self, bytes: Range<usize>, page_bytes: usize) -> bool {
        self.code_lines.load(Relaxed) & lines_of(bytes, page_bytes) != 0
    }
}

/// The lines that hold `bytes` of a page, as bits.
fn lines_of(bytes: Range<usize>, page_bytes: usize) -> u64 {
    let line_bytes = page_bytes / CODE_LINES;
    let (first, last) = (bytes.start / line_bytes, (bytes.end.max(1) - 1) / line_bytes);
    if bytes.is_empty() || first >= CODE_LINES {
        return 0;
    }
    let last = last.min(CODE_LINES - 1);
    (u64::MAX >> (CODE_LINES - 1 - last)) & (u64::MAX << first)
}

/// The table of a region.
pub(crate) struct PageTable<D> {
    pages: usize,
    chunks: Box<[AtomicPtr<PageDesc<D>>]>,
    /// Also the lock under which chunks are made, so that a hold and a new chunk
    /// agree on the counts.
    book: Mutex<Book>,
}

/// Why pages are held open.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum HeldFor {
    /// Their bytes are written: what compares itself may be made from them.
    Writing,
    /// Their mapping or their contents go away: nothing may be.
    Change,
}

#[derive(Default)]
struct Book {
    /// Ranges that are held open.
    held: Vec<(Range<usize>, HeldFor)>,
    /// The numbers of the chunks that there are.
    made: Vec<usize>,
}

impl<D> fmt::Debug for PageTable<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PageTable").field("pages", &self.pages).finish_non_exhaustive()
    }
}

impl<D: Default> PageTable<D> {
    pub(crate) fn new(pages: usize) -> Result<Self, Error> {
        let count = pages.div_ceil(CHUNK_PAGES);
        room_for::<AtomicPtr<PageDesc<D>>>(count, "the table of pages")?;
        let chunks = (0..count).map(|_| AtomicPtr::new(core::ptr::null_mut())).collect();
        Ok(Self { pages, chunks, book: Mutex::default() })
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
    ///
    /// # Errors
    ///
    /// [`Error::NoMemory`], where there is none for it.
    pub(crate) fn get_or_make(&self, page: PageIndex) -> Result<Option<&PageDesc<D>>, Error> {
        if page.0 >= self.pages {
            return Ok(None);
        }
        if let Some(desc) = self.get(page) {
            return Ok(Some(desc));
        }
        let mut book = lock(&self.book);
        let number = page.0 / CHUNK_PAGES;
        if self.chunk(number).is_none() {
            room_for::<PageDesc<D>>(CHUNK_PAGES + book.made.len(), "page descriptors")?;
            self.make_chunk(number, &book.held);
            book.made.push(number);
        }
        drop(book);
        Ok(self.get(page))
    }

    fn make_chunk(&self, number: usize, held: &[(Range<usize>, HeldFor)]) {
        let descs: Box<[PageDesc<D>]> = (0..CHUNK_PAGES)
            .map(|i| {
                let page = number * CHUNK_PAGES + i;
                let count = held.iter().filter(|(pages, _)| pages.contains(&page)).count();
                PageDesc {
                    word: PageWord::new(count as u64),
                    history: History::default(),
                    code_lines: AtomicU64::new(0),
                    data: D::default(),
                }
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

    /// Calls `each` with every descriptor there is: what it costs follows how many
    /// there are, not how large the region is.
    pub(crate) fn for_each_made(&self, mut each: impl FnMut(PageIndex, &PageDesc<D>)) {
        let made = lock(&self.book).made.clone();
        for number in made {
            let pages = number * CHUNK_PAGES..(number + 1) * CHUNK_PAGES;
            self.existing(pages).for_each(|(page, desc)| each(page, desc));
        }
    }

    /// Memory of all descriptors, in bytes.
    pub(crate) fn bytes(&self) -> usize {
        let made = lock(&self.book).made.len();
        made * CHUNK_PAGES * size_of::<PageDesc<D>>() + size_of_val(&*self.chunks)
    }

    /// Enters an un-protect on every page of `pages`, those that have no
    /// descriptor yet included: `enter` does it for each that has one. Until
    /// [`PageTable::release`] nobody protects one of them.
    pub(crate) fn hold(&self, pages: Range<usize>, why: HeldFor, mut enter: impl FnMut(PageIndex, &PageDesc<D>)) {
        let mut book = lock(&self.book);
        for (page, desc) in self.existing(pages.clone()) {
            enter(page, desc);
        }
        book.held.push((pages, why));
    }

    /// Whether `page` is held now, for nothing but writing.
    pub(crate) fn is_held_for_writing(&self, page: PageIndex) -> bool {
        lock(&self.book).is_held_for_writing(page)
    }

    /// [`PageWord::begin_check`] of a page that is held, as long as that is for
    /// nothing but writing: a change that begins meanwhile waits, and finds the page
    /// checked.
    pub(crate) fn begin_check_held(&self, page: PageIndex, desc: &PageDesc<D>) -> Result<Generation, Begin> {
        let book = lock(&self.book);
        if book.is_held_for_writing(page) {
            desc.word.begin_check(InFlight::Ignored)
        } else {
            Err(Begin::Busy(Busy::Unprotecting))
        }
    }

    /// Ends one hold of the same pages.
    pub(crate) fn release(&self, pages: Range<usize>, why: HeldFor) {
        let mut book = lock(&self.book);
        if let Some(at) = book.held.iter().position(|held| held.0 == pages && held.1 == why) {
            book.held.swap_remove(at);
            for (_, desc) in self.existing(pages) {
                desc.word.leave_unprotect();
            }
        }
    }
}

impl Book {
    fn is_held_for_writing(&self, page: PageIndex) -> bool {
        let mut held = self.held.iter().filter(|(pages, _)| pages.contains(&page.0)).peekable();
        held.peek().is_some() && held.all(|(_, why)| *why == HeldFor::Writing)
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
        let table = PageTable::<()>::new(3 * CHUNK_PAGES + 1).unwrap();
        let page = CHUNK_PAGES + CHUNK_PAGES / 2;
        assert!(table.get(PageIndex(page)).is_none());
        assert!(table.get_or_make(PageIndex(page)).unwrap().is_some());
        assert!(table.get(PageIndex(page + 1)).is_some() && table.get(PageIndex(0)).is_none());
        assert!(table.get_or_make(PageIndex(3 * CHUNK_PAGES)).unwrap().is_some());
        assert!(table.get_or_make(PageIndex(3 * CHUNK_PAGES + 1)).unwrap().is_none());
        assert_eq!(table.existing(0..usize::MAX).count(), CHUNK_PAGES + 1);
    }

    #[test]
    fn a_hold_reaches_descriptors_made_after_it() {
        let table = PageTable::<()>::new(2 * CHUNK_PAGES).unwrap();
        let early = table.get_or_make(PageIndex(1)).unwrap().unwrap();
        let pages = 0..CHUNK_PAGES + 4;
        table.hold(pages.clone(), HeldFor::Writing, |_, desc| {
            desc.word.enter_unprotect(Unprotect::Write);
        });
        let late = table.get_or_make(PageIndex(CHUNK_PAGES)).unwrap().unwrap();
        let beyond = table.get(PageIndex(CHUNK_PAGES + 4)).unwrap();
        assert_eq!(early.word.begin_protect(), Begin::Busy(Busy::Unprotecting));
        assert_eq!(late.word.begin_protect(), Begin::Busy(Busy::Unprotecting));
        assert_eq!(beyond.word.begin_protect(), Begin::Protect);
        assert!(table.is_held_for_writing(PageIndex(1)) && !table.is_held_for_writing(PageIndex(CHUNK_PAGES + 4)));
        table.hold(1..2, HeldFor::Change, |_, desc| {
            desc.word.enter_unprotect(Unprotect::Change);
        });
        assert_eq!(table.begin_check_held(PageIndex(1), early), Err(Begin::Busy(Busy::Unprotecting)));
        assert!(!table.is_held_for_writing(PageIndex(1)));
        table.release(1..2, HeldFor::Change);
        table.release(pages, HeldFor::Writing);
        assert_eq!(early.word.begin_protect(), Begin::Protect);
        assert_eq!(late.word.begin_protect(), Begin::Protect);
    }

    #[test]
    fn lines_hold_code_where_bytes_of_it_lie() {
        let page_bytes = 64 * CODE_LINES;
        let desc =
            PageDesc { word: PageWord::new(0), history: History::default(), code_lines: AtomicU64::new(0), data: () };
        desc.add_code(100..130, page_bytes);
        desc.add_code(page_bytes - 2..page_bytes, page_bytes);
        let code: Vec<usize> =
            (0..CODE_LINES).filter(|line| desc.has_code(line * 64..line * 64 + 1, page_bytes)).collect();
        assert_eq!(code, [1, 2, CODE_LINES - 1]);
        assert!(desc.has_code(0..65, page_bytes) && !desc.has_code(0..64, page_bytes));
        assert!(!desc.has_code(64..64, page_bytes));
        desc.clear_code();
        assert!(!desc.has_code(0..page_bytes, page_bytes));
        desc.add_code(0..page_bytes, page_bytes);
        assert_eq!(desc.code_lines.load(Relaxed), u64::MAX);
    }
}
