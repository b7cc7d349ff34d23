//! The guest stores that wrote to translated pages, counted by page and by store.
//!
//! The engine reports each write in the library's journal, with the guest's store if it is known.
//! The journal is a ring: if the guest writes faster than the engine reads, writes are lost here,
//! and only the library counts them.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, TryLockError};

use codewarden::tracker::Cause;

use crate::engine::{Event, Listener};

/// The most pages that are counted, and the most stores of each.
const PAGES_MAX: usize = 4096;
const STORES_MAX: usize = 64;

/// One guest store, and its writes to one page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Writer {
    /// The guest's store.
    pub pc: u64,
    /// How often it was reported.
    pub writes: u64,
    /// The byte that it hit last.
    pub last_byte: u64,
}

/// The writers of a page.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PageWriters {
    /// The stores that are known, the most frequent first.
    pub known: Vec<Writer>,
    /// Writes by other stores: unknown ones, or too many.
    pub other_writes: u64,
}

/// The counts of each page.
#[derive(Debug, Default)]
struct Pages {
    /// The process of these writes: in a fork's child the library begins its pages anew.
    process: u32,
    by_address: BTreeMap<u64, Page>,
}

#[derive(Debug, Default)]
struct Page {
    stores: BTreeMap<u64, Writer>,
    other_writes: u64,
}

/// Counts them, as a listener of the engine.
#[derive(Debug, Default)]
pub struct Writers(Mutex<Pages>);

impl Writers {
    /// The `most` most frequent stores to the page that begins at `page`.
    pub fn of_page(&self, page: u64, most: usize) -> PageWriters {
        let Some(pages) = self.lock() else { return PageWriters::default() };
        let Some(page) = pages.by_address.get(&page) else { return PageWriters::default() };
        let mut known: Vec<_> = page.stores.values().copied().collect();
        known.sort_by_key(|writer| (std::cmp::Reverse(writer.writes), writer.pc));
        let rest: u64 = known.iter().skip(most).map(|writer| writer.writes).sum();
        known.truncate(most);
        PageWriters { known, other_writes: page.other_writes + rest }
    }

    fn count(&self, page: u64, byte: u64, store_pc: Option<u64>) {
        let Some(mut pages) = self.lock() else { return };
        let pages = &mut pages.by_address;
        if pages.len() >= PAGES_MAX && !pages.contains_key(&page) {
            return;
        }
        let page = pages.entry(page).or_default();
        match store_pc {
            Some(pc) if page.stores.len() < STORES_MAX || page.stores.contains_key(&pc) => {
                let writer = page.stores.entry(pc).or_insert(Writer { pc, writes: 0, last_byte: byte });
                writer.writes += 1;
                writer.last_byte = byte;
            }
            _ => page.other_writes += 1,
        }
    }

    /// `None` if the lock stays held: for ever in a fork's child, if another hart had it. The child
    /// then reports less, and goes on.
    fn lock(&self) -> Option<MutexGuard<'_, Pages>> {
        const TRIES: usize = 10_000;
        for _ in 0..TRIES {
            let mut pages = match self.0.try_lock() {
                Ok(pages) => pages,
                Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
                Err(TryLockError::WouldBlock) => {
                    std::thread::yield_now();
                    continue;
                }
            };
            let process = std::process::id();
            if pages.process != process {
                *pages = Pages { process, by_address: BTreeMap::new() };
            }
            return Some(pages);
        }
        None
    }
}

impl Listener for std::sync::Arc<Writers> {
    fn on_event(&self, event: &Event<'_>) {
        if let Event::Written { write, store_pc, .. } = event
            && let Cause::Store { byte, .. } = write.cause
        {
            self.count(write.page.0, byte.0, *store_pc);
        }
    }

    fn wants_blocks(&self) -> bool {
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_frequent_stores_come_first_and_none_is_lost() {
        let writers = Writers::default();
        for (pc, times) in [(0x100, 1), (0x104, 5), (0x108, 3)] {
            (0..times).for_each(|n| writers.count(0x2000, 0x2000 + n, Some(pc)));
        }
        writers.count(0x2000, 0x2000, None);
        writers.count(0x3000, 0x3000, None);
        let all = writers.of_page(0x2000, 9);
        assert_eq!(all.known.iter().map(|writer| writer.pc).collect::<Vec<_>>(), [0x104, 0x108, 0x100]);
        assert_eq!((all.known[0].writes, all.known[0].last_byte, all.other_writes), (5, 0x2004, 1));
        let two = writers.of_page(0x2000, 2);
        assert_eq!((two.known.len(), two.other_writes), (2, 2));
        assert_eq!(writers.of_page(0x4000, 2), PageWriters::default());
    }

    #[test]
    fn memory_is_bounded() {
        let writers = Writers::default();
        let stores = 2 * STORES_MAX as u64;
        (0..stores).for_each(|pc| writers.count(0, 0, Some(pc)));
        let page = writers.of_page(0, usize::MAX);
        assert_eq!((page.known.len(), page.other_writes), (STORES_MAX, stores - STORES_MAX as u64));
        (0..2 * PAGES_MAX as u64).for_each(|page| writers.count(page << 12, 0, None));
        assert_eq!(writers.lock().unwrap().by_address.len(), PAGES_MAX);
    }
}
