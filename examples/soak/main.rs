//! Write, invalidate, translate again, for ever: memory stays what it was.
//!
//! ```text
//! cargo run --release --example soak -- --cycles 10000000
//! ```
//!
//! In sigbus and in deferred mode one thread stores other bytes to a block, finds it
//! gone, translates it again and runs it; and every other time it runs cold code, some
//! of it at addresses that never come again, so that blocks are evicted all the time
//! and entry cells are swept. Beside it a vCPU runs in a loop of blocks that are linked
//! through their entry cells, and makes those that were evicted under it again; another
//! one is attached and sleeps.
//!
//! Everything is in use long before the first 100,000 cycles are over: each page of the
//! guest, each page of the code buffer in both views, the limit. From then on nothing
//! may grow. About 90 MB are resident, so that what the allocator does is little beside
//! 2 %; and 8 bytes that each of 10,000,000 cycles leaves behind are as much again.
//!
//! # The table
//!
//! What there was after the first 100,000 cycles (a tenth of all, where that is less), a
//! quarter, the half and all of them. The process ends with 1 where the last column
//! differs from the first too much:
//!
//! - resident memory is not within 2 % of what it was, or there are more mappings,
//!   descriptors or threads;
//! - the heap holds 256 KiB more beside what the cache's footprint tells;
//! - cells that nobody needs are not swept, or allocations are left when the cache, the
//!   buffer and the guest's memory were dropped;
//!
//! or where stale or freed code was found, or a part of the load did not take place.
//!
//! # Safety
//!
//! A block's entry is the address of its [`Code`], in memory that its payload owns: it
//! is looked at under the pin that it was found under. Guest memory outlives the cache.
#![allow(unsafe_code)]

mod taken;

use std::fmt;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use codewarden::addr::{GuestAddr, PageSize};
use codewarden::code_buffer::{Allocation, CodeBuffer};
use codewarden::error::Error;
use codewarden::guest_memory::GuestMemory;
use codewarden::protection::{Access, Mode, Probe};
use codewarden::tracker::{BeginError, RegionOptions};
use codewarden::{CodeCache, CommitError, EntryCell, EntryStubs, Key, Link, MemoryLimit, Stats, VCpu};
use taken::{Heap, Taken};

/// Pages whose code is written again and again, one block each.
const HOT: u64 = 1024;
/// Places of code that runs now and then: all of it is more than the limit.
const COLD: u64 = 16 << 10;
/// Places of a page of cold code.
const COLD_PER_PAGE: u64 = 4;
/// Pages of the loop, one block each.
const RING: u64 = 8;
const PAGES: u64 = HOT + RING + COLD / COLD_PER_PAGE;
/// Cycles from one cold block to the next.
const CYCLES_PER_COLD: u64 = 2;
/// Of so many cold blocks one is at an address that never comes again.
const COLD_PER_NEW: u64 = 4;
/// Keys from here on are such addresses.
const NEW: u64 = 1 << 40;
/// Bytes that a block is made from, from the start of its place.
const SOURCE_BYTES: usize = 64;

const LIMIT: MemoryLimit = MemoryLimit::of_bytes(32 << 20);
/// A little more than payloads take at the limit.
const BUFFER_BYTES: usize = 28 << 20;
/// Given up at once where the buffer is full.
const EVICTED_BYTES: usize = BUFFER_BYTES / 32;

const WARM_CYCLES: u64 = 100_000;

/// What the heap may hold more at the end, beside what the footprint tells: the maps of
/// what is kept and of free code memory are a little larger or smaller each time.
const ROUGH_BYTES: i64 = 256 << 10;
/// Allocations that stay with the process.
const ROUGH_ALLOCATIONS: u64 = 16;

/// What a block's entry points to: the start of its code.
#[repr(C)]
struct Code {
    /// The key, in a pattern that freed memory does not have. The code's last word is
    /// the same.
    mark: AtomicU64,
    /// The cell of the next block of the loop.
    next: *const EntryCell,
    len_bytes: usize,
}

fn mark(key: u64) -> u64 {
    0x50a6_0000_0000_0000 ^ key
}

impl Code {
    /// Writes code of `key` to all of `memory`.
    fn write(memory: &Allocation, key: u64, next: *const EntryCell) {
        let len_bytes = memory.len();
        let made = Self { mark: AtomicU64::new(mark(key)), next, len_bytes };
        // SAFETY: the allocation is as long, and aligned; nobody else has it yet.
        unsafe {
            memory.rw().write_bytes(0x90, len_bytes);
            memory.rw().cast::<Self>().write(made);
            memory.rw().add(len_bytes - 8).cast::<u64>().write(mark(key));
        }
    }

    /// Whether the code is that of `key` from its start to its end.
    fn is_of(&self, key: u64) -> bool {
        let start = &raw const *self;
        self.mark.load(Ordering::Relaxed) == mark(key)
            // SAFETY: alive and so long.
            && unsafe { start.byte_add(self.len_bytes - 8).cast::<u64>().read() } == mark(key)
    }
}

/// What a block owns.
struct Owned {
    _code: Allocation,
    /// Keeps the cell that the code goes on through.
    _next: Link,
}

struct Soak {
    mode: Mode,
    cache: CodeCache<Owned>,
    // After the cache: dropped later.
    memory: GuestMemory,
    buffer: CodeBuffer,
    page_bytes: u64,
    stop: AtomicBool,
    leave: Arc<AtomicBool>,
    hops: AtomicU64,
    /// Blocks that were found where they must not be, or whose memory was freed.
    wrong: AtomicU64,
}

impl Soak {
    fn new(mode: Mode) -> Result<Self, Error> {
        let page_bytes = PageSize::host().bytes() as u64;
        let memory = GuestMemory::anonymous((PAGES * page_bytes) as usize)?;
        for at in (0..PAGES * page_bytes).step_by(8) {
            memory.write(at as usize, &at.to_le_bytes())?;
        }
        let cache = CodeCache::new(EntryStubs::NOT_CODE)?;
        cache.set_limit(LIMIT);
        let region = RegionOptions {
            guest: GuestAddr(0),
            host: memory.range(),
            mode,
            access: Access::ReadWrite,
            embedder_owns_signals: false,
        };
        // SAFETY: the cache is dropped before the memory.
        unsafe { cache.tracker().add_region(region) }?;
        let buffer = CodeBuffer::new(BUFFER_BYTES)?;
        let [stop, leave] = [(); 2].map(|()| AtomicBool::new(false));
        let [hops, wrong] = [(); 2].map(|()| AtomicU64::new(0));
        Ok(Self { mode, cache, memory, buffer, page_bytes, stop, leave: Arc::new(leave), hops, wrong })
    }

    /// Where the code of `key` starts.
    fn at(&self, key: u64) -> GuestAddr {
        let place = if key >= NEW { HOT + RING + spread(key) % COLD } else { key };
        GuestAddr(match place.checked_sub(HOT + RING) {
            Some(cold) => (HOT + RING) * self.page_bytes + cold * (self.page_bytes / COLD_PER_PAGE),
            None => place * self.page_bytes,
        })
    }

    /// The block that follows the one of `key`: in the loop, where that is in the loop.
    fn next_of(key: u64) -> u64 {
        if (HOT..HOT + RING).contains(&key) { HOT + (key + 1 - HOT) % RING } else { HOT }
    }

    fn alloc(&self, len_bytes: usize) -> Result<Allocation, Error> {
        loop {
            match self.buffer.alloc(len_bytes, 64) {
                Err(Error::Full { .. }) => self.cache.evict(EVICTED_BYTES),
                done => return done,
            }
            // Until who is inside what was evicted has left.
            std::thread::yield_now();
        }
    }

    /// Makes the block of `key` reachable, unless it is.
    fn translate(&self, key: u64) -> Result<(), Error> {
        loop {
            let mut ticket = self.cache.begin(Key::new(key));
            match ticket.claim(self.at(key)) {
                Err(BeginError::Busy(_)) => {
                    std::thread::yield_now();
                    continue;
                }
                Err(BeginError::Failed(error)) => return Err(error),
                Ok(_) => {}
            }
            let mut bytes = [0; SOURCE_BYTES];
            self.memory.read(self.at(key).0 as usize, &mut bytes)?;
            ticket.made_from(self.at(key), &bytes)?;
            let mut ticket = match ticket.revive() {
                Ok(None) => return Ok(()),
                Ok(Some(ticket)) => ticket,
                Err(_) => continue,
            };
            // Other bytes make code of another length.
            let sum = bytes.iter().fold(key, |sum, &byte| sum.wrapping_mul(31).wrapping_add(byte.into()));
            let code = self.alloc(64 + spread(sum) as usize % 4000 / 8 * 8)?;
            let next = self.cache.link(Key::new(Self::next_of(key)))?;
            Code::write(&code, key, next.cell());
            code.publish()?;
            ticket.weighs(code.len());
            match ticket.commit(code.rx() as usize, Owned { _code: code, _next: next }) {
                Ok(()) => return Ok(()),
                Err(CommitError::Written) => {}
                Err(error) => panic!("{error}"),
            }
        }
    }

    /// Runs the block of `key` if it is there.
    fn run(&self, vcpu: &mut VCpu<Owned>, key: u64) -> bool {
        let mut pin = vcpu.pin();
        let Some(entry) = pin.lookup(Key::new(key)) else { return false };
        // SAFETY: reachable under the pin.
        let is_right = unsafe { &*(entry as *const Code) }.is_of(key);
        self.wrong.fetch_add(u64::from(!is_right), Ordering::Relaxed);
        true
    }

    /// One write to a block, and what follows of it.
    fn cycle(&self, vcpu: &mut VCpu<Owned>, cycle: u64) -> Result<(), Error> {
        // Neither page by page, which would be a stream, nor a byte often.
        let key = cycle * 97 % HOT;
        let word = cycle / HOT % (SOURCE_BYTES as u64 / 8) * 8;
        self.memory.write((self.at(key).0 + word) as usize, &(cycle << 8 | 1).to_le_bytes())?;
        if self.mode == Mode::Deferred {
            self.cache.tracker().sync_range(self.at(key), self.page_bytes)?;
        }
        let mut wrong = self.run(vcpu, key);
        self.translate(key)?;
        wrong |= !self.run(vcpu, key);
        if cycle.is_multiple_of(CYCLES_PER_COLD) {
            let cold = cycle / CYCLES_PER_COLD;
            let key = if cold.is_multiple_of(COLD_PER_NEW) { NEW + cold } else { HOT + RING + spread(cold) % COLD };
            if !self.run(vcpu, key) {
                self.translate(key)?;
                wrong |= !self.run(vcpu, key);
            }
        }
        self.wrong.fetch_add(u64::from(wrong), Ordering::Relaxed);
        Ok(())
    }

    /// Runs the loop of blocks until it is to stop.
    fn spin(&self) -> Result<(), Error> {
        let leave = self.leave.clone();
        let mut vcpu = self.cache.attach_vcpu(move || leave.store(true, Ordering::Relaxed));
        let mut key = HOT;
        while !self.stop.load(Ordering::Relaxed) {
            self.leave.store(false, Ordering::Relaxed);
            let mut pin = vcpu.pin();
            let Some(mut entry) = pin.lookup(Key::new(key)) else {
                drop(pin);
                self.translate(key)?;
                continue;
            };
            let mut hops = 0;
            while entry > EntryStubs::NOT_CODE.pending && !self.leave.load(Ordering::Relaxed) && hops < 1 << 20 {
                // SAFETY: reachable under the pin.
                let code = unsafe { &*(entry as *const Code) };
                if !code.is_of(key) {
                    self.wrong.fetch_add(1, Ordering::Relaxed);
                    break;
                }
                // SAFETY: the block keeps the cell.
                entry = unsafe { &*code.next }.load();
                key = Self::next_of(key);
                hops += 1;
            }
            self.hops.fetch_add(hops, Ordering::Relaxed);
        }
        Ok(())
    }

    /// What there is at some points of so many cycles.
    fn cycles(&self, cycles: u64) -> Result<Vec<(u64, Taken)>, Error> {
        let mut vcpu = self.cache.attach_vcpu(|| {});
        let warm = WARM_CYCLES.min(cycles / 10);
        let mut taken: Vec<(u64, Taken)> = Vec::with_capacity(4);
        for point in [warm, cycles / 4, cycles / 2, cycles] {
            let done = taken.last().map_or(0, |(done, _)| *done);
            for cycle in done..point {
                self.cycle(&mut vcpu, cycle)?;
            }
            taken.push((point, self.taken()));
        }
        Ok(taken)
    }

    fn taken(&self) -> Taken {
        self.cache.collect();
        Taken::now(self.cache.footprint(), self.buffer.stats(), self.page_bytes)
    }
}

/// Some number for each.
fn spread(number: u64) -> u64 {
    let mixed = number.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (mixed ^ mixed >> 29).wrapping_mul(0xbf58_476d_1ce4_e5b9) >> 32
}

struct Outcome {
    mode: Mode,
    /// After how many cycles, and what there was.
    taken: Vec<(u64, Taken)>,
    stats: Stats,
    hops: u64,
    wrong: u64,
    time: Duration,
}

impl Outcome {
    /// What it shows that must not be; `left` is on the heap when all was dropped.
    fn complaints(&self, left: u64) -> Vec<&'static str> {
        let Self { taken, stats, hops, wrong, .. } = self;
        let [(_, warm), .., (_, end)] = &taken[..] else { return vec!["nothing was looked at"] };
        let [cells, blocks] = [end.footprint.cells, end.footprint.live.blocks + end.footprint.former.blocks];
        let checks = [
            (end.resident_bytes.abs_diff(warm.resident_bytes) <= warm.resident_bytes / 50, "resident memory changed"),
            (end.mappings <= warm.mappings, "there are more mappings"),
            (end.descriptors <= warm.descriptors, "there are more descriptors"),
            (end.threads <= warm.threads, "there are more threads"),
            (end.untold_bytes() <= warm.untold_bytes() + ROUGH_BYTES, "the heap grew beside the footprint"),
            (left <= ROUGH_ALLOCATIONS, "not all was freed in the end"),
            (cells <= 4 * blocks, "cells that nobody needs are not swept"),
            (*wrong == 0, "stale or freed code was found, or code was missing"),
            (stats.evicted > 0 && stats.revived > 0 && *hops > 0, "a part of the load did not take place"),
        ];
        checks.iter().filter(|(is_fine, _)| !is_fine).map(|(_, complaint)| *complaint).collect()
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { mode, taken, stats, hops, wrong, time } = self;
        writeln!(f, "{mode}: {:.1} s", time.as_secs_f64())?;
        let mut row = |what: &str, of: &dyn Fn(&(u64, Taken)) -> i64| {
            write!(f, "  {what:<32}")?;
            taken.iter().try_for_each(|taken| write!(f, "{:>12}", of(taken)))?;
            writeln!(f)
        };
        let kib = |bytes: u64| (bytes / 1024) as i64;
        row("cycles", &|(cycles, _)| *cycles as i64)?;
        row("resident, KiB", &|(_, taken)| kib(taken.resident_bytes))?;
        row("mappings", &|(_, taken)| taken.mappings as i64)?;
        row("descriptors", &|(_, taken)| taken.descriptors as i64)?;
        row("threads", &|(_, taken)| taken.threads as i64)?;
        row("heap, KiB", &|(_, taken)| kib(taken.heap.bytes))?;
        row("  beside the footprint, bytes", &|(_, taken)| taken.untold_bytes())?;
        row("code buffer, resident, KiB", &|(_, taken)| kib(taken.buffer.resident_bytes as u64))?;
        row("  used, KiB", &|(_, taken)| kib(taken.buffer.used_bytes as u64))?;
        row("live, blocks", &|(_, taken)| taken.footprint.live.blocks as i64)?;
        row("live, KiB", &|(_, taken)| kib(taken.footprint.live.bytes() as u64))?;
        row("kept, blocks", &|(_, taken)| taken.footprint.former.blocks as i64)?;
        row("kept, KiB", &|(_, taken)| kib(taken.footprint.former.bytes() as u64))?;
        row("waiting, blocks", &|(_, taken)| taken.footprint.waiting.blocks as i64)?;
        row("waiting, KiB", &|(_, taken)| kib(taken.footprint.waiting.bytes() as u64))?;
        row("cells in the table", &|(_, taken)| taken.footprint.cells as i64)?;
        row("cells and table, KiB", &|(_, taken)| {
            kib((taken.footprint.cell_bytes + taken.footprint.table_bytes) as u64)
        })?;
        let Stats { invalidated, committed, evicted, revived, given_up, freed, .. } = stats;
        writeln!(f, "  {invalidated} invalidated, {committed} committed, {evicted} evicted, {revived} revived,")?;
        writeln!(f, "  {given_up} given up, {freed} freed; the other vCPU ran {hops} blocks")?;
        let [(_, warm), .., (_, end)] = &taken[..] else { return Ok(()) };
        let change = (end.resident_bytes as f64 / warm.resident_bytes as f64 - 1.0) * 100.0;
        write!(f, "  resident memory changed by {change:+.2} %; {wrong} stale or freed blocks found")
    }
}

fn run(mode: Mode, cycles: u64) -> Result<Outcome, Error> {
    let soak = Soak::new(mode)?;
    let started = Instant::now();
    let (wake, sleeper) = mpsc::channel::<()>();
    let taken = std::thread::scope(|scope| {
        let soak = &soak;
        let spinner = scope.spawn(|| soak.spin());
        scope.spawn(move || {
            let mut vcpu = soak.cache.attach_vcpu(|| {});
            drop(vcpu.pin());
            // Until the other end is dropped.
            let _ = sleeper.recv();
        });
        let taken = soak.cycles(cycles);
        soak.stop.store(true, Ordering::Relaxed);
        soak.leave.store(true, Ordering::Relaxed);
        drop(wake);
        spinner.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        taken
    })?;
    let (hops, wrong) = (soak.hops.load(Ordering::Relaxed), soak.wrong.load(Ordering::Relaxed));
    Ok(Outcome { mode, taken, stats: soak.cache.stats(), hops, wrong, time: started.elapsed() })
}

fn main() -> ExitCode {
    let cycles = match std::env::args().skip(1).collect::<Vec<_>>().as_slice() {
        [] => 1_000_000,
        [option, cycles] if option == "--cycles" => match cycles.parse() {
            Ok(cycles) if cycles > 0 => cycles,
            _ => return usage(),
        },
        _ => return usage(),
    };
    let probe = Probe::of_this_process();
    let mut failed = false;
    for mode in [Mode::Sigbus, Mode::Deferred] {
        if let Err(error) = probe.check(mode) {
            println!("skipped: {error}");
            failed |= std::env::var_os("CODEWARDEN_REQUIRE_ALL").is_some();
            continue;
        }
        let before = Heap::now();
        match run(mode, cycles) {
            Ok(outcome) => {
                let left = Heap::now().allocations.saturating_sub(before.allocations);
                println!("{outcome}; {left} allocations left");
                for complaint in outcome.complaints(left) {
                    println!("{mode}: FAILED: {complaint}");
                    failed = true;
                }
            }
            Err(error) => {
                println!("{mode}: {error}");
                failed = true;
            }
        }
    }
    if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

fn usage() -> ExitCode {
    eprintln!("usage: soak [--cycles N]");
    ExitCode::from(2)
}
