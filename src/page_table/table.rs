//! The page descriptors of one region, in a sparse table.
//!
//! A translator makes descriptors, a chunk at a time, when it first looks at a page. A
//! fault handler only finds them. A page without a descriptor never held a block.
//! Descriptors stay until the region goes.

use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
use core::{fmt, ops::Range};

use super::history::History;
use super::hold_book::HoldBook;
use super::word::PageWord;
use crate::addr::PageIndex;
use crate::error::Error;
use crate::sparse::Sparse;
use crate::sync::{AtomicBool, AtomicUsize, Mutex, lock};

/// Descriptors of a chunk: 256 KiB of guest memory with pages of 4 KiB. Larger chunks cost memory for
/// pages without code; smaller ones cost nodes, and one more load on the way to a page.
#[cfg(not(any(loom, miri)))]
pub(super) const CHUNK_PAGES: usize = 64;
#[cfg(loom)]
pub(super) const CHUNK_PAGES: usize = 2;
#[cfg(miri)]
pub(super) const CHUNK_PAGES: usize = 32;

/// A page's lines, one for each bit of a word: 64 bytes each in a page of 4 KiB.
const CODE_LINES: usize = 64;

/// One page. A write that is found, by a fault or by a harvest, reads and changes most of it. So it
/// is one cache line, if the data has no more than 16 bytes.
#[derive(Debug)]
#[repr(align(64))]
pub(crate) struct PageDesc<D> {
    pub(crate) word: PageWord,
    /// The recent events on the page.
    pub(crate) history: History,
    /// The lines, of [`CODE_LINES`], that may hold bytes of a translation. This is a
    /// performance hint. A wrong answer is always safe: blocks compare themselves after a
    /// supposed write to data.
    code_lines: AtomicU64,
    /// The data of the layer above the tracker.
    pub(crate) data: D,
}

impl<D> PageDesc<D> {
    /// The translator that protects the page finds no code on it. Called before any
    /// thread can have its generation.
    #[inline]
    pub(crate) fn clear_code(&self) {
        self.code_lines.store(0, Relaxed);
    }

    /// A translation is made from `bytes` of the page, of `page_bytes`.
    #[inline]
    pub(crate) fn add_code(&self, bytes: Range<usize>, page_bytes: usize) {
        let lines = lines_of(bytes, page_bytes);
        // Mostly they are marked already, and a locked operation costs more than a look.
        if self.code_lines.load(Relaxed) & lines != lines {
            self.code_lines.fetch_or(lines, Relaxed);
        }
    }

    /// Whether the page may hold bytes of any translation.
    #[inline]
    pub(crate) fn has_any_code(&self) -> bool {
        self.code_lines.load(Relaxed) != 0
    }

    /// Whether a line that holds one of `bytes` may hold code.
    #[inline]
    pub(crate) fn has_code(&self, bytes: Range<usize>, page_bytes: usize) -> bool {
        self.code_lines.load(Relaxed) & lines_of(bytes, page_bytes) != 0
    }
}

/// The lines that hold `bytes` of a page, as bits.
#[inline]
fn lines_of(bytes: Range<usize>, page_bytes: usize) -> u64 {
    let line_bytes = page_bytes / CODE_LINES;
    let (first, last) = (bytes.start / line_bytes, (bytes.end.max(1) - 1) / line_bytes);
    if bytes.is_empty() || first >= CODE_LINES {
        return 0;
    }
    let last = last.min(CODE_LINES - 1);
    (u64::MAX >> (CODE_LINES - 1 - last)) & (u64::MAX << first)
}

/// States of all pages at once.
#[derive(Debug)]
pub(super) struct Whole {
    /// Writes are no longer noticed.
    pub(super) lost: AtomicBool,
    /// A thread has made every block unreachable since `lost` was set.
    pub(super) is_told_of_loss: AtomicBool,
    /// How many threads are opening all pages.
    pub(super) opening: AtomicUsize,
}

impl Default for Whole {
    fn default() -> Self {
        Self { lost: AtomicBool::new(false), is_told_of_loss: AtomicBool::new(false), opening: AtomicUsize::new(0) }
    }
}

/// The table of a region.
pub(crate) struct PageTable<D> {
    chunks: Sparse<PageDesc<D>>,
    /// Chunks are also made under this lock, so that a hold and a new chunk agree on
    /// the counts.
    pub(super) book: Mutex<HoldBook>,
    pub(super) whole: Whole,
}

impl<D> fmt::Debug for PageTable<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PageTable").field("chunks", &self.chunks).finish_non_exhaustive()
    }
}

impl<D: Default + Send + Sync> PageTable<D> {
    pub(crate) fn new(pages: usize) -> Result<Self, Error> {
        Ok(Self { chunks: Sparse::new(pages, CHUNK_PAGES)?, book: Mutex::default(), whole: Whole::default() })
    }

    /// The descriptor of `page`, made if there is none; `None` outside the region.
    ///
    /// # Errors
    ///
    /// [`Error::NoMemory`] if there is no memory for it.
    #[inline]
    pub(crate) fn get_or_make(&self, page: PageIndex) -> Result<Option<&PageDesc<D>>, Error> {
        if page.0 >= self.pages() {
            return Ok(None);
        }
        if let Some(desc) = self.get(page) {
            return Ok(Some(desc));
        }
        let book = lock(&self.book);
        self.chunks.make(page.0, |page| PageDesc {
            word: PageWord::new(book.of_page(page).number() > 0),
            history: History::default(),
            code_lines: AtomicU64::new(0),
            data: D::default(),
        })?;
        drop(book);
        Ok(self.get(page))
    }
}

impl<D> PageTable<D> {
    pub(crate) fn pages(&self) -> usize {
        self.chunks.len()
    }

    /// The descriptor of `page`, if there is one. Async-signal-safe.
    #[inline]
    pub(crate) fn get(&self, page: PageIndex) -> Option<&PageDesc<D>> {
        self.chunks.get(page.0)
    }

    /// Every existing descriptor in `pages`, with its page. The cost follows their
    /// number. Async-signal-safe.
    pub(crate) fn existing(&self, pages: Range<usize>) -> impl Iterator<Item = (PageIndex, &PageDesc<D>)> {
        self.chunks.existing(pages).map(|(page, desc)| (PageIndex(page), desc))
    }

    /// Memory of all descriptors, in bytes.
    pub(crate) fn bytes(&self) -> usize {
        self.chunks.bytes()
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    /// The data of a code cache has 16 bytes.
    #[test]
    fn a_descriptor_is_one_cache_line() {
        assert_eq!((size_of::<PageDesc<[usize; 2]>>(), align_of::<PageDesc<()>>()), (64, 64));
    }

    #[test]
    fn descriptors_are_made_at_the_first_look() {
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
    fn lines_hold_code_where_bytes_of_it_lie() {
        let page_bytes = 64 * CODE_LINES;
        let table = PageTable::<()>::new(1).unwrap();
        let desc = table.get_or_make(PageIndex(0)).unwrap().unwrap();
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
