//! Writes, invalidates and translates again, for ever: the memory in use must not grow.
//!
//! ```text
//! cargo run --release --example soak -- --cycles 10000000
//! ```
//!
//! In sigbus and in deferred mode one thread stores other bytes to a block, finds it gone,
//! translates it again and runs it. Every other time it also runs cold code, most of it at
//! addresses that never come again. So blocks are evicted all the time and entry cells are
//! swept. A second vCPU runs a loop of blocks that are linked through their entry cells, and
//! translates an evicted one again. A third vCPU is attached and sleeps.
//!
//! Everything is in use long before the first 100,000 cycles are over: each page of the guest, each
//! page of the code buffer in both views, the limit. From then on nothing may grow. About 90 MB are
//! resident, so the allocator's variation is small compared with 2 %. A leak of 8 bytes for each
//! cycle doubles the memory in 10,000,000 cycles.
//!
//! # The table
//!
//! The columns stand for the first 100,000 cycles, a third and two thirds of the others, and
//! the end. "Heap" is the memory that was allocated and not freed, to the byte. "Beside the
//! footprint" is the part that the footprint omits: maps, queues, and every leak. The process
//! ends with 1 if the last column differs from the first too much:
//!
//! - resident memory changed by more than 2 %, or there are more mappings, descriptors or
//!   threads;
//! - the heap beside the footprint grew by more than 256 KiB, or the heap less the blocks that
//!   wait for vCPUs to leave grew by more than 1 MiB;
//! - fewer than nine tenths of the blocks fit, cells that are not needed are not swept, or memory
//!   is left when the cache, the buffer and the guest's memory were dropped.
//!
//! It also ends with 1 if stale or freed code was found, or if a part of the load did not take
//! place.
//!
//! # Safety
//!
//! A block's entry is the address of its [`Code`], in memory that its payload owns. The code
//! is read under the pin of its lookup. Guest memory outlives the cache.
#![allow(unsafe_code)]

#[path = "../../tests/support/heap.rs"]
mod heap;
#[path = "../../tests/support/limit.rs"]
mod limit;
mod outcome;
mod taken;

use std::process::{Command, ExitCode};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use codewarden::addr::{GuestAddr, PageSize};
use codewarden::code_buffer::{Allocation, CodeBuffer};
use codewarden::error::Error;
use codewarden::guest_memory::GuestMemory;
use codewarden::protection::{Mode, Probe};
use codewarden::tracker::{BeginError, RegionOptions};
use codewarden::{CodeCache, CommitError, EntryCell, EntryStubs, Key, Link, MemoryLimit, VCpu};
use heap::Heap;
use outcome::Outcome;
use taken::Taken;

/// Pages whose code is written again and again, one block each.
const HOT: u64 = 1024;
/// Places of code that runs now and then: together more than the limit.
const COLD: u64 = 16 << 10;
/// Places of a page of cold code.
const COLD_PER_PAGE: u64 = 4;
/// Pages of the loop, one block each.
const RING: u64 = 8;
const PAGES: u64 = HOT + RING + COLD / COLD_PER_PAGE;
/// Cycles from one cold block to the next.
const CYCLES_PER_COLD: u64 = 2;
/// One of so many cold blocks is at an address that comes again. The others use up the
/// table of cells twice before the first look.
const COLD_PER_OLD: u64 = 4;
/// Keys from here on are used once.
const NEW: u64 = 1 << 40;
/// Links that are made once and never used.
const SPARE_LINKS: u64 = 100_000;
/// Bytes that a block is made from, from the start of its place.
const SOURCE_BYTES: usize = 64;

const LIMIT: MemoryLimit = MemoryLimit::of_bytes(32 << 20);
/// A little more than payloads take at the limit.
const BUFFER_BYTES: usize = 28 << 20;
/// This much is evicted at once if the buffer is full.
const EVICTED_BYTES: usize = BUFFER_BYTES / 32;
/// A vCPU that does not leave within this time never will, in seconds.
const PATIENCE_S: u32 = 30;

const WARM_CYCLES: u64 = 100_000;

/// A block's entry points to the start of its code.
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
        // SAFETY: the allocation is as long, and aligned; it has no other user yet.
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

/// The memory and the link that a block owns.
struct Owned {
    _code: Allocation,
    /// Keeps the cell through which the code continues.
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
    /// Blocks that were wrongly found, or whose memory was freed.
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
        let region = RegionOptions::new(GuestAddr(0), memory.range(), mode);
        // SAFETY: the cache is dropped before the memory.
        unsafe { cache.tracker().add_region(region) }?;
        let buffer = CodeBuffer::new(BUFFER_BYTES)?;
        let [stop, leave] = [(); 2].map(|()| AtomicBool::new(false));
        let [hops, wrong] = [(); 2].map(|()| AtomicU64::new(0));
        Ok(Self { mode, cache, memory, buffer, page_bytes, stop, leave: Arc::new(leave), hops, wrong })
    }

    /// The address of the code of `key`.
    fn at(&self, key: u64) -> GuestAddr {
        let place = if key >= NEW { HOT + RING + spread(key) % COLD } else { key };
        GuestAddr(match place.checked_sub(HOT + RING) {
            Some(cold) => (HOT + RING) * self.page_bytes + cold * (self.page_bytes / COLD_PER_PAGE),
            None => place * self.page_bytes,
        })
    }

    /// The block that follows the one of `key`: for a block of the loop, the loop's next one.
    fn next_of(key: u64) -> u64 {
        if (HOT..HOT + RING).contains(&key) { HOT + (key + 1 - HOT) % RING } else { HOT }
    }

    fn alloc(&self, len_bytes: usize) -> Result<Allocation, Error> {
        let (started, patience) = (Instant::now(), Duration::from_secs(limit::limit_s(PATIENCE_S).into()));
        loop {
            match self.buffer.alloc(len_bytes, 64) {
                Err(Error::Full { .. }) if started.elapsed() < patience => self.cache.evict(EVICTED_BYTES),
                done => return done,
            }
            // Until the vCPUs inside evicted blocks have left.
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
                Err(BeginError::Untrackable) => panic!("all of the memory is attached"),
                Err(BeginError::Failed(error)) => return Err(error),
                Ok(_) => {}
            }
            let mut bytes = [0; SOURCE_BYTES];
            self.memory.read(self.at(key).0 as usize, &mut bytes)?;
            ticket.add_source(self.at(key), &bytes)?;
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
            ticket.set_payload_bytes(code.len());
            match ticket.commit(code.entry(0)?, Owned { _code: code, _next: next }) {
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

    /// One write to a block, and the work that follows.
    fn cycle(&self, vcpu: &mut VCpu<Owned>, cycle: u64) -> Result<(), Error> {
        // Neither page by page, which would be a stream, nor often to one byte.
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
            let key = if cold.is_multiple_of(COLD_PER_OLD) { HOT + RING + spread(cold) % COLD } else { NEW + cold };
            if !self.run(vcpu, key) {
                self.translate(key)?;
                wrong |= !self.run(vcpu, key);
            }
        }
        self.wrong.fetch_add(u64::from(wrong), Ordering::Relaxed);
        Ok(())
    }

    /// Runs the loop of blocks until `stop` is set.
    fn spin(&self) -> Result<(), Error> {
        let leave = self.leave.clone();
        let mut vcpu = self.cache.attach_vcpu_with(move || leave.store(true, Ordering::Relaxed));
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

    /// Takes the counts at some points of so many cycles.
    fn cycles(&self, cycles: u64) -> Result<Vec<(u64, Taken)>, Error> {
        let mut vcpu = self.cache.attach_vcpu();
        let third = (cycles - WARM_CYCLES) / 3;
        let mut taken: Vec<(u64, Taken)> = Vec::with_capacity(4);
        for point in [WARM_CYCLES, WARM_CYCLES + third, WARM_CYCLES + 2 * third, cycles] {
            let done = taken.last().map_or(0, |(done, _)| *done);
            for cycle in done..point {
                // The table is swept when it is full. So let it reach, early and once, the most
                // unneeded cells that it ever has.
                if cycle == WARM_CYCLES / 2 {
                    (0..SPARE_LINKS).try_for_each(|key| self.cache.link(Key::new(2 * NEW + key)).map(drop))?;
                }
                self.cycle(&mut vcpu, cycle)?;
            }
            taken.push((point, self.taken()));
        }
        Ok(taken)
    }

    fn taken(&self) -> Taken {
        // A table that was just replaced waits too, and the footprint omits it.
        self.cache.wait_for_vcpus().expect("this thread has none pinned");
        self.cache.collect();
        Taken::now(self.cache.footprint(), self.buffer.stats(), self.page_bytes)
    }
}

/// A fixed pseudo-random number for each.
fn spread(number: u64) -> u64 {
    let mixed = number.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (mixed ^ mixed >> 29).wrapping_mul(0xbf58_476d_1ce4_e5b9) >> 32
}

fn run(mode: Mode, cycles: u64) -> Result<Outcome, Error> {
    let before = Heap::now();
    let soak = Soak::new(mode)?;
    let started = Instant::now();
    let (wake, sleeper) = mpsc::channel::<()>();
    let taken = std::thread::scope(|scope| {
        let soak = &soak;
        let spinner = scope.spawn(|| soak.spin());
        scope.spawn(move || {
            let mut vcpu = soak.cache.attach_vcpu();
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
    let time = started.elapsed();
    let (stats, hops, wrong) =
        (soak.cache.stats(), soak.hops.load(Ordering::Relaxed), soak.wrong.load(Ordering::Relaxed));
    let buffer = soak.buffer.clone();
    drop(soak);
    let left_code = buffer.stats().allocations as u64;
    drop(buffer);
    let left_heap = Heap::now().allocations.saturating_sub(before.allocations);
    Ok(Outcome { mode, taken, stats, hops, wrong, left_code, left_heap, time })
}

/// One mode, in this process. Returns whether all was fine.
fn soak(mode: Mode, cycles: u64) -> bool {
    let outcome = match run(mode, cycles) {
        Ok(outcome) => outcome,
        Err(error) => {
            println!("{mode}: {error}");
            return false;
        }
    };
    println!("{outcome}");
    let complaints = outcome.complaints();
    complaints.iter().for_each(|complaint| println!("{mode}: FAILED: {complaint}"));
    complaints.is_empty()
}

/// One mode in a process of its own: memory that one mode frees would hide a leak of the next.
fn soak_apart(mode: Mode, cycles: u64) -> bool {
    if let Err(error) = Probe::of_this_process().check(mode) {
        println!("skipped: {error}");
        return std::env::var_os("CODEWARDEN_REQUIRE_ALL").is_none();
    }
    let mut child = Command::new("/proc/self/exe");
    child.args(["--cycles", &cycles.to_string(), "--mode", mode.name()]);
    child.status().is_ok_and(|status| status.success())
}

fn main() -> ExitCode {
    let (mut cycles, mut mode) = (1_000_000, None);
    for option in std::env::args().skip(1).collect::<Vec<_>>().chunks(2) {
        match option {
            [name, value] if name == "--cycles" => match value.parse() {
                Ok(number) if number >= 2 * WARM_CYCLES => cycles = number,
                _ => return usage(),
            },
            [name, value] if name == "--mode" => match Mode::from_name(value) {
                Some(named) => mode = Some(named),
                None => return usage(),
            },
            _ => return usage(),
        }
    }
    let is_fine = match mode {
        Some(mode) => soak(mode, cycles),
        // Both, even if the first one fails.
        None => soak_apart(Mode::Sigbus, cycles) & soak_apart(Mode::Deferred, cycles),
    };
    if is_fine { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn usage() -> ExitCode {
    eprintln!("usage: soak [--cycles N] [--mode MODE], 200000 cycles or more");
    ExitCode::from(2)
}
