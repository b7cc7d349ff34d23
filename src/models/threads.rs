//! Whole caches under the system's threads, over the software [`kernel`](super::kernel): every part
//! of a cache at once, to check the use of memory. Miri reports a block that is read after it was
//! freed, a pointer used against its provenance, and a data race. Elsewhere the runs are longer,
//! and only this file's own assertions check.
//!
//! A block's code is memory that its payload owns. It holds the bytes that the block was made from.
//! To run it is to read that memory, at the address that a lookup or a cell gave.
//!
//! # Safety
//!
//! Code is read under a pin, by an address that was found under it.
#![allow(unsafe_code)]

use std::alloc::{Layout, alloc, dealloc, handle_alloc_error};
use std::ptr::{NonNull, with_exposed_provenance};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::thread;

use super::guest::cache_over;
use super::kernel::Kernel;
use crate::addr::GuestAddr;
use crate::code_cache::{CodeCache, Entry, EntryStubs, Key, Link, MemoryLimit, Pin, VCpu};
use crate::policy::{Adaptive, Plain, Policy};
use crate::protection::Mode;
use crate::sync::Arc;

const PAGES: usize = 3;

/// For each page: enough keys that they are evicted.
const KEYS_PER_PAGE: usize = 4;

/// The number of each thread's rounds.
const ROUNDS: usize = if cfg!(miri) { 10 } else { 3_000 };

/// Keys that come and go in a round.
const NEW_KEYS: u64 = if cfg!(miri) { 6 } else { 100 };

/// The contents of a block's memory. An address with the lowest bit set is the self-checking
/// entry's.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C, align(8))]
struct Made {
    key: u64,
    byte: u8,
}

/// Host code, as its allocation.
struct Code {
    memory: NonNull<Made>,
    alive: Arc<AtomicUsize>,
}

// SAFETY: it owns plain memory.
unsafe impl Send for Code {}
// SAFETY: as above; it is not written to.
unsafe impl Sync for Code {}

impl Code {
    const LAYOUT: Layout = Layout::new::<Made>();

    fn new(made: Made, alive: &Arc<AtomicUsize>) -> Self {
        // SAFETY: the layout is not empty.
        let Some(memory) = NonNull::new(unsafe { alloc(Self::LAYOUT) }.cast::<Made>()) else {
            handle_alloc_error(Self::LAYOUT)
        };
        // SAFETY: just allocated.
        unsafe { memory.write(made) };
        alive.fetch_add(1, Relaxed);
        Self { memory, alive: alive.clone() }
    }

    fn entry(&self) -> Entry {
        let address = self.memory.as_ptr().expose_provenance();
        Entry::with_check(address, address | 1)
    }
}

impl Drop for Code {
    fn drop(&mut self) {
        // So that a later read shows in a debug build as well.
        // SAFETY: from `new`, and no thread reads it any more.
        unsafe {
            self.memory.write(Made { key: u64::MAX, byte: 0xff });
            dealloc(self.memory.as_ptr().cast(), Self::LAYOUT);
        }
        self.alive.fetch_sub(1, Relaxed);
    }
}

/// Numbers that look random, the same in each run.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 33) as usize % end
    }
}

struct World {
    cache: CodeCache<Code>,
    kernel: Arc<Kernel>,
    alive: Arc<AtomicUsize>,
    /// The writers have ended.
    done: AtomicBool,
}

/// Each block is of the first byte of its key's page.
fn page_of(key: Key) -> usize {
    key.raw() as usize / 2 % PAGES
}

fn key_of(page: usize, number: usize) -> Key {
    Key::new((number * PAGES + page) as u64 * 2)
}

fn any_key(numbers: &mut Numbers) -> Key {
    key_of(numbers.below(PAGES), numbers.below(KEYS_PER_PAGE))
}

impl World {
    fn new(mode: Mode, policy: impl Policy) -> Self {
        let kernel = Arc::new(Kernel::new(mode, PAGES));
        Self { cache: cache_over(&kernel, policy), kernel, alive: Arc::default(), done: AtomicBool::new(false) }
    }

    fn page_bytes(&self) -> u64 {
        self.cache.tracker().page_size().bytes() as u64
    }

    fn page_at(&self, page: usize) -> GuestAddr {
        GuestAddr(page as u64 * self.page_bytes())
    }

    /// Translates; does nothing if the page is busy or a write comes between.
    fn translate(&self, key: Key) {
        let at = self.page_at(page_of(key));
        let mut ticket = self.cache.begin(key);
        if ticket.claim(at).is_err() {
            return;
        }
        let byte = self.kernel.load(page_of(key));
        ticket.add_source(at, &[byte]).unwrap();
        let Ok(Some(mut ticket)) = ticket.revive() else { return };
        let code = Code::new(Made { key: key.raw(), byte }, &self.alive);
        ticket.set_payload_bytes(size_of::<Made>());
        let _ = ticket.commit(code.entry(), code);
    }

    /// Runs the block at `address`, if its comparison lets it run.
    fn run(&self, _pin: &Pin<'_, Code>, key: Key, address: usize) -> Option<u8> {
        // SAFETY: the entry of a block that was found under the pin.
        let made = unsafe { *with_exposed_provenance::<Made>(address & !1) };
        assert_eq!(made.key, key.raw(), "the block of another key runs");
        let is_same = address & 1 == 0 || self.kernel.load(page_of(key)) == made.byte;
        if !is_same {
            self.cache.remove(key);
        }
        is_same.then_some(made.byte)
    }

    /// Looks `key` up in every way, and runs each block that is found.
    fn enter(&self, vcpu: &mut VCpu<Code>, key: Key, link: &Link) -> impl Iterator<Item = u8> {
        let mut pin = vcpu.pin();
        let EntryStubs { dead, pending } = EntryStubs::NOT_CODE;
        let linked = Some(link.cell().load()).filter(|&address| address != dead && address != pending);
        let found = [linked, pin.lookup(key), pin.lookup_shared(key)];
        found.map(|address| address.and_then(|address| self.run(&pin, key, address))).into_iter().flatten()
    }

    /// Stores to a page that only this thread stores to. Once the store has retired (in a deferred
    /// region: was announced), no block of the old byte runs.
    fn write(&self, page: usize) {
        let (tracker, mut numbers) = (self.cache.tracker(), Numbers(page as u64));
        let mut vcpu = self.cache.attach_vcpu();
        let links: Vec<Link> =
            (0..KEYS_PER_PAGE).map(|number| self.cache.link(key_of(page, number)).unwrap()).collect();
        for round in 0..ROUNDS {
            // In any order of the threads, there is a block to kill.
            self.translate(key_of(page, numbers.below(KEYS_PER_PAGE)));
            // Old bytes come back: blocks are revived.
            let byte = (round % 3) as u8;
            if numbers.below(4) == 0 {
                let _held = tracker.prepare_kernel_write(self.page_at(page), 1).unwrap();
                assert!(self.kernel.kernel_store(page, byte) || tracker.mode_at(GuestAddr(0)) == Some(Mode::Deferred));
            }
            self.kernel.store(page, byte, page as u32);
            tracker.sync().unwrap();
            for (number, link) in links.iter().enumerate() {
                for old in self.enter(&mut vcpu, key_of(page, number), link) {
                    assert_eq!(old, byte, "round {round}: what was made from another byte runs");
                }
            }
        }
    }

    /// Calls `each` until the writers have ended, with an upper limit.
    fn until_done(&self, seed: u64, mut each: impl FnMut(&mut Numbers)) {
        let mut numbers = Numbers(seed);
        for _ in (0..10 * ROUNDS).take_while(|_| !self.done.load(Relaxed)) {
            each(&mut numbers);
        }
    }

    fn translate_all(&self, seed: u64) {
        self.until_done(seed, |numbers| self.translate(any_key(numbers)));
    }

    /// A vCPU without knowledge of the writers.
    fn execute(&self, seed: u64) {
        let mut vcpu = self.cache.attach_vcpu();
        self.until_done(seed, |numbers| {
            let key = any_key(numbers);
            self.enter(&mut vcpu, key, &self.cache.link(key).unwrap()).for_each(drop);
        });
    }

    /// Enough keys that cells are swept.
    fn link_ever_new_keys(&self) {
        let mut next = 1_u64 << 40;
        self.until_done(0, |_| {
            let kept = self.cache.link(Key::new(next)).unwrap();
            for key in next..next + NEW_KEYS {
                drop(self.cache.link(Key::new(key)).unwrap());
            }
            assert_eq!(kept.cell().load(), EntryStubs::NOT_CODE.dead);
            next += NEW_KEYS;
        });
    }

    /// All other calls that may come at any time.
    fn disturb(&self, seed: u64) {
        let tracker = self.cache.tracker();
        self.until_done(seed, |numbers| {
            let page = numbers.below(PAGES);
            match numbers.below(7) {
                0 => self.kernel.store_data(page, 100),
                1 => tracker.invalidate(self.page_at(page), self.page_bytes()).unwrap(),
                2 => drop(tracker.change_mapping(self.page_at(page), self.page_bytes()).unwrap()),
                3 => tracker.maintain(),
                4 => self.cache.remove(any_key(numbers)),
                5 => self.cache.evict(size_of::<Made>()),
                _ => self.cache.collect(),
            }
        });
    }
}

/// Writers, translators, vCPUs and all else at once; in the end all memory is free.
fn all_at_once(mode: Mode, policy: impl Policy) {
    let world = World::new(mode, policy);
    // Some live blocks, and some retained ones.
    world.cache.set_limit(MemoryLimit { live_bytes: 2_000, retained_bytes: 1_000 });
    thread::scope(|scope| {
        let world = &world;
        let writers: Vec<_> = (0..PAGES).map(|page| scope.spawn(move || world.write(page))).collect();
        scope.spawn(|| world.translate_all(1));
        scope.spawn(|| world.translate_all(2));
        scope.spawn(|| world.execute(3));
        scope.spawn(|| world.link_ever_new_keys());
        scope.spawn(|| world.disturb(4));
        let ended: Vec<_> = writers.into_iter().map(|writer| writer.join()).collect();
        world.done.store(true, Relaxed);
        ended.into_iter().for_each(|ended| ended.unwrap());
    });
    let World { cache, alive, .. } = world;
    let stats = cache.stats();
    println!("{stats:?}");
    drop(cache);
    assert_eq!(alive.load(Relaxed), 0, "payloads were left");
}

#[test]
fn all_at_once_in_a_synchronous_region() {
    all_at_once(Mode::Sigbus, Plain);
}

#[test]
fn all_at_once_with_self_checking_pages() {
    all_at_once(Mode::Sigbus, Adaptive::with_checks());
}

#[test]
fn all_at_once_in_a_deferred_region() {
    all_at_once(Mode::Deferred, Plain);
}
