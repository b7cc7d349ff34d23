//! A guest's work on its code, one thread of it at a time, each on pages of its own.
//!
//! All written code runs again, and must compute the result of its new bytes.

use std::time::{Duration, Instant};

use super::translator::{BLOCK_BYTES, Cpu, Source, meaning};

/// The period of an embedder's timer, which calls `maintain`.
const TEND: Duration = Duration::from_millis(100);
/// The timer's clock is read once in so many operations.
const OPERATIONS_BETWEEN_CLOCKS: usize = 1024;

/// The offset of the data of [`Workload::DataWrite`] on its code's page.
const DATA: usize = 2048;
/// Bytes of that data.
const DATA_BYTES: usize = 1024;

/// The byte that [`Workload::Write`] stores.
const WRITTEN_BYTE: u8 = 0x93;

/// A program.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Workload {
    /// One store to each of half of the pages, out of order; all pages hold code. Then the
    /// guest announces it.
    Write,
    /// Every page is overwritten, front to back, by copies of other bytes; then
    /// the code of each is run again.
    Bulk,
    /// A store to data, then a run of the code on the same page, again and again.
    DataWrite,
    /// An instruction gets a new value and is run, again and again.
    Patch,
}

/// One thread's share of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Size {
    /// Pages with code.
    pub pages: usize,
    /// Operations: stores, pages, or rounds of a store and a run.
    pub operations: usize,
}

/// How long one thread took.
#[derive(Clone, Copy, Debug, Default)]
pub struct Took {
    /// The program.
    pub work: Duration,
    /// Its announcement, if the program ends with one.
    pub announcement: Duration,
}

impl Workload {
    /// All.
    pub const ALL: [Workload; 4] = [Workload::Write, Workload::Bulk, Workload::DataWrite, Workload::Patch];

    /// For tables.
    pub fn name(self) -> &'static str {
        match self {
            Workload::Write => "a store to a page of code",
            Workload::Bulk => "a page of code overwritten in a bulk, and run again",
            Workload::DataWrite => "a store to data beside hot code, and the code run",
            Workload::Patch => "an instruction patched with a new value, and run",
        }
    }

    /// The size for each of `threads` threads; small if it is only a check.
    pub fn size(self, threads: usize, is_check: bool) -> Size {
        match self {
            Workload::Write | Workload::Bulk => {
                let operations = if is_check { 32 } else { 512 };
                let pages = if self == Workload::Write { 2 * operations } else { operations };
                Size { pages, operations }
            }
            Workload::DataWrite | Workload::Patch => {
                let all = if is_check { 400 } else { 100_000 };
                Size { pages: 1, operations: all / threads }
            }
        }
    }
}

/// One thread of a guest in a program.
#[derive(Debug)]
pub struct Worker<'m> {
    cpu: Cpu<'m>,
    workload: Workload,
    size: Size,
    /// The first of its consecutive pages.
    first_page: usize,
    page_bytes: usize,
}

/// The first code of a page: other words on each page.
fn first_code(page: usize) -> Source {
    let mut source = [0x13; BLOCK_BYTES];
    source[..8].copy_from_slice(&(page as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes());
    source
}

impl<'m> Worker<'m> {
    /// On the pages from `first_page` on; nothing is written yet.
    pub fn new(cpu: Cpu<'m>, workload: Workload, size: Size, first_page: usize) -> Self {
        let page_bytes = cpu.machine().page_bytes();
        Self { cpu, workload, size, first_page, page_bytes }
    }

    /// Blocks that could not be translated when they were to run.
    pub fn interpreted(&self) -> u64 {
        self.cpu.interpreted
    }

    fn offset(&self, page: usize) -> usize {
        (self.first_page + page) * self.page_bytes
    }

    /// Writes the code and translates it.
    pub fn set_up(&mut self) {
        for page in 0..self.size.pages {
            self.cpu.machine().store(self.offset(page), &first_code(page));
        }
        for page in 0..self.size.pages {
            self.run(page, &first_code(page));
        }
    }

    /// Runs the code of `page`.
    ///
    /// # Panics
    ///
    /// If the result is not that of `source`: the block is stale.
    fn run(&mut self, page: usize, source: &Source) {
        let result = self.cpu.run(self.offset(page));
        assert_eq!(result, meaning(source), "{}: page {page} ran stale code", self.cpu.machine().side().name());
    }

    /// Runs the code of its pages once, without any writes.
    pub fn run_all(&mut self) {
        (0..self.size.pages).for_each(|page| self.run(page, &first_code(page)));
    }

    /// Announces that the code of `pages` was written.
    fn announce(&self, pages: impl Iterator<Item = usize>) {
        let all = self.first_page..self.first_page + self.size.pages;
        self.cpu.machine().announce(all, pages.map(|page| self.offset(page)));
    }

    /// The program, after [`Worker::set_up`].
    pub fn work(&mut self) -> Took {
        match self.workload {
            Workload::Write => self.write(),
            Workload::Bulk => self.bulk(),
            Workload::DataWrite => self.repeat(Self::data_write),
            Workload::Patch => self.repeat(Self::patch),
        }
    }

    fn write(&mut self) -> Took {
        let pages = every_second_shuffled(self.size.operations);
        let start = Instant::now();
        for &page in &pages {
            self.cpu.machine().store(self.offset(page), &[WRITTEN_BYTE]);
        }
        let work = start.elapsed();
        let start = Instant::now();
        self.announce(pages.iter().copied());
        Took { work, announcement: start.elapsed() }
    }

    /// Checks after the work that the code that [`Workload::Write`] did not run is right. The
    /// other programs ran theirs.
    pub fn check(&mut self) {
        if self.workload != Workload::Write {
            return;
        }
        for page in 0..self.size.pages {
            let mut source = first_code(page);
            if page % 2 == 1 {
                source[0] = WRITTEN_BYTE;
            }
            self.run(page, &source);
        }
    }

    fn bulk(&mut self) -> Took {
        let mut bytes = vec![0x93; self.page_bytes];
        let mut source = [0x93; BLOCK_BYTES];
        let start = Instant::now();
        for page in 0..self.size.pages {
            bytes[..8].copy_from_slice(&(page as u64).to_le_bytes());
            self.cpu.machine().store(self.offset(page), &bytes);
        }
        self.announce(0..self.size.pages);
        for page in 0..self.size.pages {
            source[..8].copy_from_slice(&(page as u64).to_le_bytes());
            self.run(page, &source);
        }
        Took { work: start.elapsed(), announcement: Duration::ZERO }
    }

    /// `operation` again and again.
    fn repeat(&mut self, mut operation: impl FnMut(&mut Self, usize, &mut Source)) -> Took {
        let mut source = first_code(0);
        let start = Instant::now();
        let mut tended = start;
        for round in 0..self.size.operations {
            operation(self, round, &mut source);
            if round % OPERATIONS_BETWEEN_CLOCKS == 0 && tended.elapsed() >= TEND {
                self.cpu.machine().maintain();
                tended = Instant::now();
            }
        }
        Took { work: start.elapsed(), announcement: Duration::ZERO }
    }

    /// Announces nothing, because no code is written.
    fn data_write(&mut self, round: usize, source: &mut Source) {
        let at = self.offset(0) + DATA + round * 8 % DATA_BYTES;
        self.cpu.machine().store(at, &round.to_le_bytes());
        self.run(0, source);
    }

    fn patch(&mut self, round: usize, source: &mut Source) {
        let bytes = (round as u32).to_le_bytes();
        source[..bytes.len()].copy_from_slice(&bytes);
        self.cpu.machine().store(self.offset(0), &bytes);
        self.announce(std::iter::once(0));
        self.run(0, source);
    }
}

/// The odd pages below twice `count`, so that no two are neighbours, out of order.
fn every_second_shuffled(count: usize) -> Vec<usize> {
    let mut pages: Vec<usize> = (0..count).map(|index| 2 * index + 1).collect();
    let mut seed = 1_u64;
    for at in (1..count).rev() {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        pages.swap(at, (seed >> 33) as usize % (at + 1));
    }
    pages
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_page_is_written_once_and_no_neighbour_follows() {
        let mut pages = every_second_shuffled(512);
        assert!(pages.windows(2).filter(|pair| pair[0] + 2 == pair[1]).count() < 10, "out of order");
        pages.sort_unstable();
        assert!(pages.iter().copied().eq((0..512).map(|index| 2 * index + 1)));
    }
}
