//! Write, invalidate, translate again, for ever: memory stays what it was.
//!
//! ```text
//! cargo run --release --example soak -- --cycles 10000000
//! ```
//!
//! In sigbus and in deferred mode one thread stores other bytes to a block, finds it
//! gone and translates it again, and now and then translates cold code, so that the
//! limit is reached and blocks are evicted all the time. Beside it a vCPU runs in a
//! loop of blocks that are linked through their entry cells, and makes those that were
//! evicted under it again; another one is attached and sleeps.
//!
//! Prints a table with what the process took after the first 100,000 cycles and at the
//! end; exits 1 where it grew: resident memory by more than 2 %, mappings, descriptors
//! or threads by any; or where stale or freed code was found.
//!
//! # Safety
//!
//! A block's entry is the address of its [`Code`], in memory that its payload owns: it
//! is looked at under the pin that it was found under. Guest memory outlives the cache.
#![allow(unsafe_code)]

use std::fmt;
use std::fs;
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
use codewarden::{CodeCache, CommitError, EntryCell, EntryStubs, Footprint, Key, Link, MemoryLimit, Stats, VCpu};

/// Pages whose code is written again and again, one block each.
const HOT: u64 = 256;
/// Pages whose code is translated now and then.
const COLD: u64 = 1024;
/// Pages of the loop.
const RING: u64 = 8;
const PAGES: u64 = HOT + COLD + RING;
/// Cycles from one cold block to the next.
const CYCLES_PER_COLD: u64 = 4;
/// Bytes that a block is made from, from the start of its page.
const SOURCE_BYTES: usize = 64;

/// About half of what all blocks would take.
const LIMIT: MemoryLimit = MemoryLimit::of_bytes(1 << 20);
const BUFFER_BYTES: usize = 1 << 20;

const WARM_CYCLES: u64 = 100_000;

/// What a block's entry points to.
#[repr(C)]
struct Code {
    /// The key, in a pattern that freed memory does not have.
    mark: AtomicU64,
    /// The cell of the next block of the loop.
    next: *const EntryCell,
}

fn mark(key: u64) -> u64 {
    0x50a6_0000_0000_0000 | key
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
        for page in 0..PAGES {
            memory.write((page * page_bytes) as usize, &page.to_le_bytes())?;
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

    fn at(&self, key: u64) -> GuestAddr {
        GuestAddr(key * self.page_bytes)
    }

    /// The block that follows the one of `key`: in the loop, where that is in the loop.
    fn next_of(key: u64) -> u64 {
        let ring = HOT + COLD;
        if key < ring { ring } else { ring + (key + 1 - ring) % RING }
    }

    fn alloc(&self, len_bytes: usize) -> Result<Allocation, Error> {
        loop {
            match self.buffer.alloc(len_bytes, 64) {
                Err(Error::Full { .. }) => self.cache.evict(BUFFER_BYTES / 32),
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
            self.memory.read((key * self.page_bytes) as usize, &mut bytes)?;
            ticket.made_from(self.at(key), &bytes)?;
            let mut ticket = match ticket.revive() {
                Ok(None) => return Ok(()),
                Ok(Some(ticket)) => ticket,
                Err(_) => continue,
            };
            // Other bytes make code of another length.
            let sum = bytes.iter().fold(key, |sum, &byte| sum.wrapping_mul(31).wrapping_add(byte.into()));
            let code = self.alloc(64 + sum as usize % 1200)?;
            let next = self.cache.link(Key::new(Self::next_of(key)))?;
            let made = Code { mark: AtomicU64::new(mark(key)), next: next.cell() };
            // SAFETY: the allocation is as long and as aligned.
            unsafe { code.rw().cast::<Code>().write(made) };
            code.publish()?;
            ticket.weighs(code.len() + size_of::<Owned>());
            match ticket.commit(code.rx() as usize, Owned { _code: code, _next: next }) {
                Ok(()) => return Ok(()),
                Err(CommitError::Written) => {}
                Err(error) => panic!("{error}"),
            }
        }
    }

    /// One cycle; whether the block was gone after the write.
    fn cycle(&self, vcpu: &mut VCpu<Owned>, cycle: u64) -> Result<(), Error> {
        // Neither page by page, which would be a stream, nor a byte often.
        let key = cycle * 97 % HOT;
        let word = cycle / HOT % (SOURCE_BYTES as u64 / 8) * 8;
        self.memory.write((key * self.page_bytes + word) as usize, &(cycle << 8 | 1).to_le_bytes())?;
        if self.mode == Mode::Deferred {
            self.cache.tracker().sync_range(self.at(key), self.page_bytes)?;
        }
        if vcpu.pin().lookup(Key::new(key)).is_some() {
            self.wrong.fetch_add(1, Ordering::Relaxed);
        }
        self.translate(key)?;
        if vcpu.pin().lookup(Key::new(key)).is_none() {
            self.wrong.fetch_add(1, Ordering::Relaxed);
        }
        if cycle.is_multiple_of(CYCLES_PER_COLD) {
            self.translate(HOT + cycle / CYCLES_PER_COLD * 389 % COLD)?;
        }
        Ok(())
    }

    /// Runs the loop of blocks until it is to stop.
    fn spin(&self) -> Result<(), Error> {
        let leave = self.leave.clone();
        let mut vcpu = self.cache.attach_vcpu(move || leave.store(true, Ordering::Relaxed));
        let mut key = HOT + COLD;
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
                if code.mark.load(Ordering::Relaxed) != mark(key) {
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

    fn taken(&self) -> Taken {
        self.cache.collect();
        let count = |path: &str| fs::read_dir(path).map_or(0, Iterator::count);
        let lines = |path: &str| fs::read_to_string(path).map_or(0, |text| text.lines().count());
        let statm = fs::read_to_string("/proc/self/statm").unwrap_or_default();
        let pages = statm.split(' ').nth(1).and_then(|pages| pages.parse::<u64>().ok());
        Taken {
            resident_bytes: pages.unwrap_or(0) * self.page_bytes,
            mappings: lines("/proc/self/maps"),
            descriptors: count("/proc/self/fd"),
            threads: count("/proc/self/task"),
            footprint: self.cache.footprint(),
        }
    }
}

/// What the process has of the system.
#[derive(Clone, Copy)]
struct Taken {
    resident_bytes: u64,
    mappings: usize,
    descriptors: usize,
    threads: usize,
    footprint: Footprint,
}

struct Outcome {
    mode: Mode,
    cycles: u64,
    warm: Taken,
    end: Taken,
    stats: Stats,
    hops: u64,
    wrong: u64,
    time: Duration,
}

impl Outcome {
    fn is_fine(&self) -> bool {
        let Self { warm, end, .. } = self;
        let most_bytes = warm.resident_bytes + warm.resident_bytes / 50;
        self.wrong == 0
            && self.stats.evicted > 0
            && self.stats.revived > 0
            && end.resident_bytes <= most_bytes
            && end.mappings <= warm.mappings
            && end.descriptors <= warm.descriptors
            && end.threads <= warm.threads
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { mode, cycles, warm, end, stats, hops, wrong, time } = self;
        let kib = |bytes: u64| bytes / 1024;
        let (warm_kib, end_kib) = (kib(warm.resident_bytes), kib(end.resident_bytes));
        let change = (end.resident_bytes as f64 / warm.resident_bytes as f64 - 1.0) * 100.0;
        writeln!(f, "{mode}: {cycles} cycles in {:.1} s", time.as_secs_f64())?;
        writeln!(f, "  {:<24}{:>14}{:>14}", "", "warm", "end")?;
        let mut row = |what: &str, warm: u64, end: u64| writeln!(f, "  {what:<24}{warm:>14}{end:>14}");
        row("resident, KiB", warm_kib, end_kib)?;
        row("mappings", warm.mappings as u64, end.mappings as u64)?;
        row("descriptors", warm.descriptors as u64, end.descriptors as u64)?;
        row("threads", warm.threads as u64, end.threads as u64)?;
        for (what, weight) in [
            ("live", [warm.footprint.live, end.footprint.live]),
            ("kept", [warm.footprint.former, end.footprint.former]),
            ("waiting", [warm.footprint.waiting, end.footprint.waiting]),
        ] {
            row(&format!("{what}, blocks"), weight[0].blocks as u64, weight[1].blocks as u64)?;
            row(&format!("{what}, bytes"), weight[0].bytes() as u64, weight[1].bytes() as u64)?;
        }
        row("all of the cache, bytes", warm.footprint.bytes() as u64, end.footprint.bytes() as u64)?;
        let Stats { invalidated, committed, evicted, revived, given_up, freed, .. } = stats;
        writeln!(f, "  resident memory changed by {change:+.2} %; {wrong} stale or freed blocks found")?;
        writeln!(f, "  {invalidated} invalidated, {committed} committed, {evicted} evicted, {revived} revived,")?;
        write!(f, "  {given_up} given up, {freed} freed; the other vCPU ran {hops} blocks")
    }
}

fn run(mode: Mode, cycles: u64) -> Result<Outcome, Error> {
    let soak = Soak::new(mode)?;
    let started = Instant::now();
    let warm_cycles = WARM_CYCLES.min(cycles / 2);
    let (wake, sleeper) = mpsc::channel::<()>();
    let (warm, end) = std::thread::scope(|scope| {
        let soak = &soak;
        let spinner = scope.spawn(|| soak.spin());
        scope.spawn(move || {
            let mut vcpu = soak.cache.attach_vcpu(|| {});
            drop(vcpu.pin());
            // Until the other end is dropped.
            let _ = sleeper.recv();
        });
        let mut vcpu = soak.cache.attach_vcpu(|| {});
        let mut cycle_through = |cycles: std::ops::Range<u64>| -> Result<Taken, Error> {
            for cycle in cycles {
                soak.cycle(&mut vcpu, cycle)?;
            }
            Ok(soak.taken())
        };
        let warm = cycle_through(0..warm_cycles);
        let end = cycle_through(warm_cycles..cycles);
        soak.stop.store(true, Ordering::Relaxed);
        soak.leave.store(true, Ordering::Relaxed);
        drop(wake);
        spinner.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        Ok::<_, Error>((warm?, end?))
    })?;
    let (hops, wrong) = (soak.hops.into_inner(), soak.wrong.into_inner());
    Ok(Outcome { mode, cycles, warm, end, stats: soak.cache.stats(), hops, wrong, time: started.elapsed() })
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
        match run(mode, cycles) {
            Ok(outcome) => {
                println!("{outcome}");
                if !outcome.is_fine() {
                    println!("{mode}: FAILED");
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
