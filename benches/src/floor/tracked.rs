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
}

impl Tracked {
    /// Opens the kernel's tracking of `mode` on `range`.
    pub(super) fn new(mode: Mode, range: HostRange, page: PageSize) -> Self {
        let (start, len, page_bytes) = (range.start().0, range.len(), page.bytes());
        let entries = (0..len / page_bytes).map(|_| AtomicUsize::new(0)).collect();
        Self { calls: Calls::open(mode, start, len), mode, start, len, page_bytes, entries }
    }

    /// Handles a store to the page that holds `address`; false if the address is not tracked.
    /// Async-signal-safe.
    pub(super) fn resolve(&self, address: usize) -> bool {
        let offset = address.wrapping_sub(self.start);
        if offset >= self.len {
            return false;
        }
        self.entries[offset / self.page_bytes].store(0, Ordering::SeqCst);
        self.calls.unprotect(address & !(self.page_bytes - 1), self.page_bytes)
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
