//! `sync` over many code pages, compared with the bare ioctl that it needs.
//!
//! Each side has the same number of contiguous pages of its own, all protected. Both are measured
//! in turn in one run. The bare side counts the pages that the ioctl reports. The library also
//! kills the block of each of these pages. For the cost of a written page, take a call with written
//! pages less the call without in the same round. Divide by the number of written pages.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use codewarden::addr::{HostAddr, HostRange, PageSize};
use codewarden::guest_memory::GuestMemory;
use codewarden::protection::Mode;

use super::measure::{Start, StopOnDrop};
use super::rows::Threads;
use super::side::Side;
use super::translator::{BLOCK_BYTES, Cpu, Machine, Source, meaning};
use crate::floor::BareProtection;
use crate::spread::Spread;

/// Contiguous pages with code, of each thread.
pub const PAGES: usize = 4096;
/// Pages written before a call of the second kind: 1 %.
pub const WRITTEN: usize = 41;

/// One of so many pages is written.
const PART: usize = PAGES / WRITTEN;
/// A policy counts writes within this time as repeated.
const WINDOW: Duration = Duration::from_millis(32);

/// Nanoseconds of each call, in rounds.
#[derive(Clone, Debug, Default)]
pub struct Calls {
    /// Nothing was written.
    pub none_ns: Vec<f64>,
    /// [`WRITTEN`] pages were.
    pub written_ns: Vec<f64>,
}

impl Calls {
    /// The cost of a written page.
    pub fn page(&self) -> Spread {
        let pairs = self.written_ns.iter().zip(&self.none_ns);
        Spread::of(&pairs.map(|(written, none)| (written - none) / WRITTEN as f64).collect::<Vec<_>>())
    }

    fn extend(&mut self, other: Self) {
        self.none_ns.extend(other.none_ns);
        self.written_ns.extend(other.written_ns);
    }
}

/// The calls of both sides.
#[derive(Clone, Debug)]
pub struct Measured {
    /// The calling threads and the others.
    pub threads: Threads,
    /// `sync_range` of a tracker.
    pub library: Calls,
    /// `PAGEMAP_SCAN`.
    pub bare: Calls,
}

/// The bare side's memory.
#[derive(Debug)]
pub(super) struct Bare {
    protection: BareProtection,
    memory: GuestMemory,
    page: PageSize,
}

impl Bare {
    /// `pages` populated pages, all protected.
    pub(super) fn new(pages: usize) -> Self {
        let page = PageSize::host();
        let memory = GuestMemory::anonymous(pages * page.bytes()).expect("address space");
        (0..pages).for_each(|index| memory.write(index * page.bytes(), &[1]).expect("inside the memory"));
        let protection = BareProtection::new(Mode::Deferred, memory.range());
        protection.protect(memory.range()).expect("asynchronous protection");
        Self { protection, memory, page }
    }

    fn write(&self, index: usize, byte: u8) {
        self.memory.write(index * self.page.bytes(), &[byte]).expect("inside the memory");
    }

    /// How many of the `pages` from `first` on were written.
    pub(super) fn harvest(&self, first: usize, pages: usize) -> usize {
        let start = HostAddr(self.memory.range().start().0 + first * self.page.bytes());
        let range = HostRange::new(start, pages * self.page.bytes(), self.page).expect("whole pages");
        let mut bytes = 0;
        self.protection.harvest(range, |from, to| bytes += to - from);
        bytes / self.page.bytes()
    }
}

/// One thread, on its pages of both sides.
struct Caller<'m> {
    cpu: Cpu<'m>,
    bare: &'m Bare,
    first_page: usize,
    page_bytes: usize,
    /// The present first byte of each page.
    bytes: Vec<u8>,
}

impl<'m> Caller<'m> {
    fn new(machine: &'m Machine, bare: &'m Bare, thread: usize) -> Self {
        let page_bytes = machine.page_bytes();
        let first_page = thread * PAGES;
        let mut caller = Self { cpu: machine.cpu(), bare, first_page, page_bytes, bytes: vec![1; PAGES] };
        (0..PAGES).for_each(|page| caller.run(page));
        caller
    }

    /// Runs the code of `page`, and checks that it is the code of the page's bytes.
    fn run(&mut self, page: usize) {
        let mut source: Source = [0; BLOCK_BYTES];
        source[0] = self.bytes[page];
        let result = self.cpu.run((self.first_page + page) * self.page_bytes);
        assert_eq!(result, meaning(&source), "sync left stale code");
    }

    /// Scattered: one page in each part, another one in each round until every page had its turn.
    fn choose_pages(&self, round: usize) -> Vec<usize> {
        (0..WRITTEN).map(|index| index * PART + (round * 37 + index * 13) % PART).collect()
    }

    fn call_library(&mut self, written: &[usize]) -> Duration {
        for &page in written {
            self.bytes[page] = self.bytes[page].wrapping_add(2);
            self.cpu.machine().store((self.first_page + page) * self.page_bytes, &[self.bytes[page]]);
        }
        let start = Instant::now();
        self.cpu.machine().announce(self.first_page..self.first_page + PAGES, std::iter::empty());
        let time = start.elapsed();
        // Restores its block for the next round.
        written.iter().for_each(|&page| self.run(page));
        time
    }

    fn call_bare(&mut self, written: &[usize]) -> Duration {
        for &page in written {
            self.bare.write(self.first_page + page, 2);
        }
        let start = Instant::now();
        let found = self.bare.harvest(self.first_page, PAGES);
        let time = start.elapsed();
        assert_eq!(found, written.len(), "written pages that the ioctl found");
        time
    }

    fn rounds(&mut self, rounds: usize) -> (Calls, Calls) {
        let (mut library, mut bare) = (Calls::default(), Calls::default());
        for round in 0..rounds {
            if round % PART == PART - 1 {
                // Else the policy sees pages that are written again and again.
                std::thread::sleep(2 * WINDOW);
            }
            let pages = self.choose_pages(round);
            for (pages, is_written) in [(&[][..], false), (&pages[..], true)] {
                let times = if round % 2 == 0 {
                    let library = self.call_library(pages);
                    (library, self.call_bare(pages))
                } else {
                    let bare = self.call_bare(pages);
                    (self.call_library(pages), bare)
                };
                for (calls, time) in [(&mut library, times.0), (&mut bare, times.1)] {
                    let into = if is_written { &mut calls.written_ns } else { &mut calls.none_ns };
                    into.push(time.as_nanos() as f64);
                }
            }
        }
        (library, bare)
    }
}

/// `rounds` rounds of both sides by each thread.
///
/// # Panics
///
/// If the library harvested other pages than the written ones.
pub fn measure(threads: Threads, rounds: usize) -> Measured {
    let machine = Machine::new(Side::Adaptive(Mode::Deferred), threads.all() * PAGES);
    let bare = Bare::new(threads.all() * PAGES);
    let (start, stop) = (Start::new(threads.all()), AtomicBool::new(false));
    let work = |thread| {
        let place = start.place();
        let mut caller = Caller::new(&machine, &bare, thread);
        place.wait();
        caller.rounds(rounds)
    };
    let run_code = || {
        let place = start.place();
        let mut runner = Caller::new(&machine, &bare, threads.working());
        place.wait();
        while !stop.load(Ordering::Relaxed) {
            (0..PAGES).for_each(|page| runner.run(page));
        }
    };
    let (library, bare_calls) = std::thread::scope(|scope| {
        let work = &work;
        let others: Vec<_> = (1..threads.working()).map(|thread| scope.spawn(move || work(thread))).collect();
        if threads == Threads::OneBesideRunning {
            scope.spawn(run_code);
        }
        let _stop = StopOnDrop(&stop);
        let (mut library, mut bare) = work(0);
        for other in others {
            let (other_library, other_bare) = other.join().expect("a calling thread ends");
            library.extend(other_library);
            bare.extend(other_bare);
        }
        (library, bare)
    });
    let written = (threads.working() * rounds * WRITTEN) as u64;
    assert_eq!(machine.stats().pages_harvested, written, "pages that sync found written");
    Measured { threads, library, bare: bare_calls }
}

/// Calls of each kind, by each thread; as a check, few.
pub fn rounds(is_check: bool) -> usize {
    if is_check { 2 } else { 300 }
}

/// The rows of every company, if there is a deferred mode.
pub fn all(modes: &[Mode], rounds: usize) -> Vec<Measured> {
    if !modes.contains(&Mode::Deferred) {
        return Vec::new();
    }
    let measure = |threads: Threads| {
        eprintln!("sync, {}", threads.name());
        measure(threads, rounds)
    };
    Threads::ALL.into_iter().map(measure).collect()
}
