//! The page descriptors of one region, in a sparse table.
//!
//! Descriptors are made by translators, a chunk at a time, where they first
//! look; a fault handler only finds them. A page without a descriptor never
//! held a block. Descriptors stay until the region goes.

mod history;
mod word;

use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
use core::{fmt, ops::Range};

pub(crate) use history::{History, Hit};
pub use word::Busy;
pub(crate) use word::{Begin, Generation, InFlight, PageState, PageWord, Unprotect, Word};

use crate::addr::PageIndex;
use crate::error::Error;
use crate::sparse::Sparse;
use crate::sync::{Mutex, lock};

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
    chunks: Sparse<PageDesc<D>>,
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

/// A hold of pages of one table.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Hold {
    pub(crate) pages: Range<usize>,
    pub(crate) why: HeldFor,
    /// The thread that took it, whose holds go on in a fork's child.
    pub(crate) thread: u64,
}

#[derive(Default)]
struct Book {
    /// What is held open.
    held: Vec<Hold>,
}

impl<D> fmt::Debug for PageTable<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PageTable").field("chunks", &self.chunks).finish_non_exhaustive()
    }
}

impl<D: Default + Send + Sync> PageTable<D> {
    pub(crate) fn new(pages: usize) -> Result<Self, Error> {
        Ok(Self { chunks: Sparse::new(pages, CHUNK_PAGES)?, book: Mutex::default() })
    }

    pub(crate) fn pages(&self) -> usize {
        self.chunks.len()
    }

    /// The descriptor of `page`, where there is one. Async-signal-safe.
    pub(crate) fn get(&self, page: PageIndex) -> Option<&PageDesc<D>> {
        self.chunks.get(page.0)
    }

    /// The descriptor of `page`, made where there is none; `None` outside the
    /// region.
    ///
    /// # Errors
    ///
    /// [`Error::NoMemory`], where there is none for it.
    pub(crate) fn get_or_make(&self, page: PageIndex) -> Result<Option<&PageDesc<D>>, Error> {
        if page.0 >= self.pages() {
            return Ok(None);
        }
        if let Some(desc) = self.get(page) {
            return Ok(Some(desc));
        }
        let book = lock(&self.book);
        self.chunks.make(page.0, |page| {
            let count = book.held.iter().filter(|hold| hold.pages.contains(&page)).count();
            PageDesc {
                word: PageWord::new(count as u64),
                history: History::default(),
                code_lines: AtomicU64::new(0),
                data: D::default(),
            }
        })?;
        drop(book);
        Ok(self.get(page))
    }

    /// Every descriptor there is in `pages`, with its page. What it costs follows how
    /// many there are. Async-signal-safe.
    pub(crate) fn existing(&self, pages: Range<usize>) -> impl Iterator<Item = (PageIndex, &PageDesc<D>)> {
        self.chunks.existing(pages).map(|(page, desc)| (PageIndex(page), desc))
    }

    /// Memory of all descriptors, in bytes.
    pub(crate) fn bytes(&self) -> usize {
        self.chunks.bytes()
    }

    /// Enters an un-protect on every page of `hold`, those that have no
    /// descriptor yet included: `enter` does it for each that has one. Until
    /// [`PageTable::release`] nobody protects one of them.
    pub(crate) fn hold(&self, hold: Hold, mut enter: impl FnMut(PageIndex, &PageDesc<D>)) {
        let mut book = lock(&self.book);
        for (page, desc) in self.existing(hold.pages.clone()) {
            enter(page, desc);
        }
        book.held.push(hold);
    }

    /// The holds that `thread` took and nobody released.
    pub(crate) fn holds_of(&self, thread: u64) -> Vec<Hold> {
        lock(&self.book).held.iter().filter(|hold| hold.thread == thread).cloned().collect()
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

    /// Ends one hold that equals `hold`, where there is one.
    pub(crate) fn release(&self, hold: &Hold) {
        let mut book = lock(&self.book);
        if let Some(at) = book.held.iter().position(|held| held == hold) {
            book.held.swap_remove(at);
            for (_, desc) in self.existing(hold.pages.clone()) {
                desc.word.leave_unprotect();
            }
        }
    }
}

impl Book {
    fn is_held_for_writing(&self, page: PageIndex) -> bool {
        let mut held = self.held.iter().filter(|hold| hold.pages.contains(&page.0)).peekable();
        held.peek().is_some() && held.all(|hold| hold.why == HeldFor::Writing)
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
        let write = Hold { pages: 0..CHUNK_PAGES + 4, why: HeldFor::Writing, thread: 0 };
        table.hold(write.clone(), |_, desc| {
            desc.word.enter_unprotect(Unprotect::Write);
        });
        let late = table.get_or_make(PageIndex(CHUNK_PAGES)).unwrap().unwrap();
        let beyond = table.get(PageIndex(CHUNK_PAGES + 4)).unwrap();
        assert_eq!(early.word.begin_protect(), Begin::Busy(Busy::Unprotecting));
        assert_eq!(late.word.begin_protect(), Begin::Busy(Busy::Unprotecting));
        assert_eq!(beyond.word.begin_protect(), Begin::Protect);
        assert!(table.is_held_for_writing(PageIndex(1)) && !table.is_held_for_writing(PageIndex(CHUNK_PAGES + 4)));
        let change = Hold { pages: 1..2, why: HeldFor::Change, thread: 0 };
        table.hold(change.clone(), |_, desc| {
            desc.word.enter_unprotect(Unprotect::Change);
        });
        assert_eq!(table.begin_check_held(PageIndex(1), early), Err(Begin::Busy(Busy::Unprotecting)));
        assert!(!table.is_held_for_writing(PageIndex(1)));
        table.release(&change);
        table.release(&write);
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
