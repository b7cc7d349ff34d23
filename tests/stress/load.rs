//! A load of writers, translators and vCPUs on one code cache that detects stale code.
//!
//! Guest memory holds words with version numbers; each word has one writer, so its versions only
//! grow. A block is made from one word, or from two on neighbouring pages, and its code contains
//! their versions. A writer publishes a version once its store has retired (in a deferred region:
//! once the announcement after it has returned). A thread that saw a published version and then
//! finds a block of an older one has found stale code.
//!
//! A senseless policy makes pages self-checking and cools them all the time, opens pages ahead and
//! protects them in batches. So every change of a page's state races every other. Not all blocks
//! have room, so some are evicted all the time. Now and then the process forks: the child must
//! find no block, the parent every one.
//!
//! # Safety
//!
//! A block's entry is the address of its [`Code`], which its payload owns. The code is read under
//! the pin of its lookup. Guest memory outlives the cache.
#![allow(unsafe_code)]

#[path = "../support/child.rs"]
mod child;
#[path = "../support/limit.rs"]
mod limit;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use codewarden::addr::GuestAddr;
use codewarden::guest_memory::GuestMemory;
use codewarden::policy::{Decision, Limits, PageHistory, Policy};
use codewarden::protection::Mode;
use codewarden::tracker::RegionOptions;
use codewarden::{CodeCache, Entry, EntryStubs, Key, MemoryLimit, Pin, Stats};

use child::{Ended, in_child};

const PAGES: usize = 8;
const WORDS_PER_PAGE: usize = 4;
const WORDS: usize = PAGES * WORDS_PER_PAGE;
/// A key for each word, and one for each word with the word a page further.
const KEYS: usize = 2 * WORDS;
const WRITERS: usize = 2;
const TRANSLATORS: usize = 2;
const VCPUS: usize = 2;
/// Stores of a deferred region between two announcements.
const STORES_PER_SYNC: usize = 8;

/// Bytes from a word to data: another code line.
const TO_DATA_BYTES: usize = 2048;
/// Room for some two thirds of the blocks.
const LIMIT: MemoryLimit = MemoryLimit::of_bytes(32 << 10);
const TURN: Duration = Duration::from_millis(2);
/// Turns from one fork to the next.
const TURNS_PER_FORK: u32 = 25;

/// A bit in an entry: compare the words first.
const CHECKED: usize = 1;

const ALIVE: u32 = 0xa11e;
const DEAD: u32 = 0xdead;

/// A block's entry points to its code.
struct Code {
    alive: AtomicU32,
    key: usize,
    versions: [u32; 2],
}

/// The payload of a block.
struct Owned(Box<Code>);

impl Drop for Owned {
    fn drop(&mut self) {
        self.0.alive.store(DEAD, Ordering::Relaxed);
    }
}

/// Decides by counting: correctness must not depend on it.
#[derive(Debug, Default)]
struct Fickle(AtomicU32);

impl Fickle {
    fn one_in(&self, n: u32) -> bool {
        let count = self.0.fetch_add(1, Ordering::Relaxed);
        count.wrapping_mul(0x9e37_79b9) >> 16 & 0xff < 0x100 / n
    }
}

impl Policy for Fickle {
    fn on_begin(&self, _: &PageHistory) -> Decision {
        if self.one_in(4) { Decision::SelfCheck } else { Decision::Protect }
    }

    fn on_harvest(&self, _: &PageHistory) -> bool {
        self.one_in(4)
    }

    fn has_cooled(&self, _: &PageHistory) -> bool {
        self.one_in(2)
    }

    fn limits(&self) -> Limits {
        Limits::default().with_open_ahead(4).with_protect_batch(4).with_checks_on_data_write(true)
    }
}

/// The work done, and the faults found.
pub(crate) struct Outcome {
    pub(crate) mode: Mode,
    pub(crate) memory: &'static str,
    pub(crate) stores: u64,
    pub(crate) lookups: u64,
    pub(crate) hits: u64,
    /// Blocks of an older version than the published one.
    pub(crate) stale: u64,
    /// Blocks whose memory was freed under a pin.
    pub(crate) freed_under_pin: u64,
    /// Blocks that a fork's child found, or could not make.
    pub(crate) wrong_in_child: u64,
    pub(crate) forks: u64,
    pub(crate) stats: Stats,
}

impl Outcome {
    /// The head of the table; [`fmt::Display`] writes a line of it.
    pub(crate) const HEAD: &str = "mode      memory        stores    faults   commits   refused    killed   checked   evicted   revived     \
                            freed  forks   lookups      hits  stale";
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { mode, memory, stores, lookups, hits, stale, forks, stats, .. } = self;
        let Stats { faults, committed, refused, invalidated, self_checking, evicted, revived, freed, .. } = stats;
        write!(f, "{:<9} {memory:<9} {stores:>10}{faults:>10}{committed:>10}{refused:>10}", mode.name())?;
        write!(
            f,
            "{invalidated:>10}{self_checking:>10}{evicted:>10}{revived:>10}{freed:>10}{forks:>7}{lookups:>10}{hits:>10}{stale:>7}"
        )
    }
}

struct Load {
    mode: Mode,
    cache: CodeCache<Owned>,
    // After the cache: dropped later.
    memory: GuestMemory,
    page_bytes: usize,
    published: [AtomicU32; WORDS],
    stop: AtomicBool,
    stores: AtomicU64,
    lookups: AtomicU64,
    hits: AtomicU64,
    stale: AtomicU64,
    freed_under_pin: AtomicU64,
    forks: AtomicU64,
    wrong_in_child: AtomicU64,
}

/// Runs the load for `time`.
pub(crate) fn run(mode: Mode, memory: &'static str, time: Duration) -> Outcome {
    let load = Load::new(mode, memory);
    std::thread::scope(|scope| {
        let load = &load;
        let mut threads = Vec::new();
        for index in 0..WRITERS {
            threads.push(scope.spawn(move || load.write(index)));
        }
        for index in 0..TRANSLATORS {
            threads.push(scope.spawn(move || load.translate(Random(100 + index as u64))));
        }
        for index in 0..VCPUS {
            threads.push(scope.spawn(move || load.execute(Random(200 + index as u64))));
        }
        let end = Instant::now() + time;
        let mut turns = 0;
        while Instant::now() < end {
            std::thread::sleep(TURN);
            load.cache.tracker().maintain();
            turns += 1;
            if turns % TURNS_PER_FORK == 0 {
                load.fork();
            }
        }
        load.stop.store(true, Ordering::Relaxed);
        // ThreadSanitizer learns of a join, and not of the end of a scope.
        threads.into_iter().for_each(|thread| thread.join().unwrap());
    });
    load.look_at_all();
    load.cache.collect();
    load.outcome(memory)
}

impl Load {
    fn new(mode: Mode, memory: &str) -> Self {
        let page_bytes = codewarden::addr::PageSize::host().bytes();
        let bytes = PAGES * page_bytes;
        let guest = if memory == "memfd" { GuestMemory::memfd(bytes) } else { GuestMemory::anonymous(bytes) }.unwrap();
        let cache = CodeCache::with_policy(EntryStubs::NOT_CODE, Arc::new(Fickle::default())).unwrap();
        cache.set_limit(LIMIT);
        let region = RegionOptions::new(GuestAddr(0), guest.range(), mode);
        // SAFETY: the load drops its cache before its memory.
        unsafe { cache.tracker().add_region(region) }.unwrap();
        Self {
            mode,
            cache,
            memory: guest,
            page_bytes,
            published: [const { AtomicU32::new(0) }; WORDS],
            stop: AtomicBool::new(false),
            stores: AtomicU64::new(0),
            lookups: AtomicU64::new(0),
            hits: AtomicU64::new(0),
            stale: AtomicU64::new(0),
            freed_under_pin: AtomicU64::new(0),
            forks: AtomicU64::new(0),
            wrong_in_child: AtomicU64::new(0),
        }
    }

    fn outcome(&self, memory: &'static str) -> Outcome {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Outcome {
            mode: self.mode,
            memory,
            stores: get(&self.stores),
            lookups: get(&self.lookups),
            hits: get(&self.hits),
            stale: get(&self.stale),
            freed_under_pin: get(&self.freed_under_pin),
            forks: get(&self.forks),
            wrong_in_child: get(&self.wrong_in_child),
            stats: self.cache.stats(),
        }
    }

    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    fn offset_of(&self, word: usize) -> usize {
        word / WORDS_PER_PAGE * self.page_bytes + word % WORDS_PER_PAGE * 64
    }

    /// The words that the block of `key` is made from.
    fn words_of(key: usize) -> [usize; 2] {
        let word = key % WORDS;
        [word, if key < WORDS { word } else { (word + WORDS_PER_PAGE) % WORDS }]
    }

    /// Stores to the words of one writer, now and then as an announced write.
    fn write(&self, index: usize) {
        let mut random = Random(1 + index as u64);
        let mut versions = [0u32; WORDS];
        let mut announced = Vec::new();
        while !self.stopped() {
            let word = random.below(WORDS / WRITERS) * WRITERS + index;
            versions[word] += 1;
            let bytes = versions[word].to_le_bytes();
            let held = (random.below(16) == 0)
                .then(|| self.cache.tracker().prepare_kernel_write(GuestAddr(self.offset_of(word) as u64), 4).unwrap());
            let to_data = if random.below(4) == 0 { TO_DATA_BYTES } else { 0 };
            self.memory.write(self.offset_of(word) + to_data, &bytes).unwrap();
            if to_data != 0 {
                self.memory.write(self.offset_of(word), &bytes).unwrap();
            }
            drop(held);
            self.stores.fetch_add(1, Ordering::Relaxed);
            announced.push(word);
            if self.mode != Mode::Deferred || announced.len() == STORES_PER_SYNC {
                self.announce();
                for word in announced.drain(..) {
                    self.published[word].store(versions[word], Ordering::Release);
                }
            }
            random.pause(200);
        }
        self.announce();
    }

    /// The guest's announcement after it wrote code.
    fn announce(&self) {
        if self.mode == Mode::Deferred {
            self.cache.tracker().sync().unwrap();
        }
    }

    fn translate(&self, mut random: Random) {
        while !self.stopped() {
            self.translate_one(random.below(KEYS));
            random.pause(100);
        }
    }

    fn translate_one(&self, key: usize) {
        let mut ticket = self.cache.begin(Key::new(key as u64));
        let mut versions = [0; 2];
        for (version, word) in versions.iter_mut().zip(Self::words_of(key)) {
            if ticket.claim(GuestAddr(self.offset_of(word) as u64)).is_err() {
                return;
            }
            *version = self.version_of(word);
            let at = GuestAddr(self.offset_of(word) as u64);
            if ticket.add_source(at, &version.to_le_bytes()).is_err() {
                return;
            }
        }
        let Ok(Some(ticket)) = ticket.revive() else { return };
        let code = Box::new(Code { alive: AtomicU32::new(ALIVE), key, versions });
        let entry = (&raw const *code) as usize;
        // A refusal is as good.
        let _ = ticket.commit(Entry::with_check(entry, entry | CHECKED), Owned(code));
    }

    fn version_of(&self, word: usize) -> u32 {
        let mut bytes = [0; 4];
        self.memory.read(self.offset_of(word), &mut bytes).unwrap();
        u32::from_le_bytes(bytes)
    }

    fn execute(&self, mut random: Random) {
        let mut vcpu = self.cache.attach_vcpu();
        while !self.stopped() {
            let mut pin = vcpu.pin();
            for _ in 0..32 {
                self.look_at(&mut pin, random.below(KEYS), &mut random);
            }
            drop(pin);
            self.translate_one(random.below(KEYS));
        }
    }

    fn look_at(&self, pin: &mut Pin<'_, Owned>, key: usize, random: &mut Random) {
        let at_least = Self::words_of(key).map(|word| self.published[word].load(Ordering::Acquire));
        self.lookups.fetch_add(1, Ordering::Relaxed);
        let Some(entry) = pin.lookup(Key::new(key as u64)) else { return };
        self.hits.fetch_add(1, Ordering::Relaxed);
        // SAFETY: it was found under this pin, so its payload lives.
        let code = unsafe { &*((entry & !CHECKED) as *const Code) };
        if entry & CHECKED != 0 && Self::words_of(key).map(|word| self.version_of(word)) != code.versions {
            self.cache.remove(Key::new(key as u64));
            return;
        }
        random.pause(50);
        if code.alive.load(Ordering::Relaxed) != ALIVE || code.key != key {
            self.freed_under_pin.fetch_add(1, Ordering::Relaxed);
        }
        if code.versions[0] < at_least[0] || code.versions[1] < at_least[1] {
            self.stale.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// The child has no block, and can make one; then it is gone.
    fn fork(&self) {
        let guard = self.cache.before_fork();
        // It uses memory from the allocator too, which libc keeps whole.
        let status = in_child(|| if guard.after_fork_child().is_ok() { self.look_in_child() } else { 9 });
        self.forks.fetch_add(1, Ordering::Relaxed);
        self.wrong_in_child.fetch_add(u64::from(status != Ended::Returned(0)), Ordering::Relaxed);
    }

    fn look_in_child(&self) -> u8 {
        let lookup = |key| self.cache.attach_vcpu().pin().lookup(Key::new(key));
        if (0..KEYS).any(|key| lookup(key as u64).is_some()) {
            return 1;
        }
        // A parent's announced write may hold a page for ever here.
        (0..WORDS).for_each(|key| self.translate_one(key));
        if (0..WORDS).all(|key| lookup(key as u64).is_none()) { 2 } else { 0 }
    }

    /// After all other threads have ended, every block is of the present bytes.
    fn look_at_all(&self) {
        for (word, published) in self.published.iter().enumerate() {
            published.store(self.version_of(word), Ordering::Relaxed);
        }
        let mut vcpu = self.cache.attach_vcpu();
        let mut pin = vcpu.pin();
        (0..KEYS).for_each(|key| self.look_at(&mut pin, key, &mut Random(300)));
    }
}

/// Cheap numbers that are random enough.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % bound
    }

    /// Some turns, up to `bound`.
    fn pause(&mut self, bound: usize) {
        (0..self.below(bound)).for_each(|_| std::hint::spin_loop());
    }
}
