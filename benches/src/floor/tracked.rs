//! The pages of a floor and their blocks, shared with its handler.

use std::sync::atomic::{AtomicUsize, Ordering};

use codewarden::addr::{HostRange, PageSize};
use codewarden::protection::Mode;

use super::calls::Calls;

/// The state of the pages and their blocks.
#[derive(Debug)]
pub(super) struct Tracked {
    pub(super) calls: Calls,
    pub(super) mode: Mode,
    pub(super) start: usize,
    pub(super) len: usize,
    pub(super) page_bytes: usize,
    /// One word for each page of the memory: its block's entry, or 0.
    pub(super) entries: Box<[AtomicUsize]>,
    /// If it opens pages ahead of stores.
    pub(super) ahead: Option<Ahead>,
}

/// The last run of pages that was opened: the page behind it, and its length. The next run is twice
/// as long.
#[derive(Debug)]
pub(super) struct Ahead {
    next: AtomicUsize,
    run: AtomicUsize,
    most: usize,
}

impl Ahead {
    /// It opens `most` pages at once at most.
    pub(super) fn new(most: usize) -> Self {
        Self { next: AtomicUsize::new(0), run: AtomicUsize::new(0), most }
    }

    /// How many pages a fault at `page` opens.
    fn arrive(&self, page: usize) -> usize {
        let follows = self.next.load(Ordering::SeqCst) == page;
        let run = if follows { (2 * self.run.load(Ordering::SeqCst)).clamp(1, self.most) } else { 1 };
        self.run.store(run, Ordering::SeqCst);
        self.next.store(page + run, Ordering::SeqCst);
        run
    }
}

impl Tracked {
    /// Opens the kernel's tracking of `mode` on `range`.
    pub(super) fn new(mode: Mode, range: HostRange, page: PageSize) -> Self {
        let (start, len, page_bytes) = (range.start().0, range.len(), page.bytes());
        let entries = (0..len / page_bytes).map(|_| AtomicUsize::new(0)).collect();
        Self { calls: Calls::open(mode, start, len), mode, start, len, page_bytes, entries, ahead: None }
    }

    /// Handles a store to the page that holds `address`; false if the address is not tracked.
    /// Async-signal-safe.
    pub(super) fn resolve(&self, address: usize) -> bool {
        let offset = address.wrapping_sub(self.start);
        if offset >= self.len {
            return false;
        }
        let page = offset / self.page_bytes;
        let opened = self.ahead.as_ref().map_or(1, |ahead| ahead.arrive(page)).min(self.entries.len() - page);
        self.entries[page..page + opened].iter().for_each(|entry| entry.store(0, Ordering::SeqCst));
        self.calls.unprotect(address & !(self.page_bytes - 1), opened * self.page_bytes)
    }

    /// Harvests `len` bytes from `start`: protects the written pages again and kills their
    /// blocks.
    pub(super) fn harvest(&self, start: usize, len: usize) {
        self.calls.harvest(start, len, |from, to| {
            let pages = (from - self.start) / self.page_bytes..(to - self.start) / self.page_bytes;
            for entry in &self.entries[pages] {
                entry.store(0, Ordering::SeqCst);
            }
        });
    }
}
