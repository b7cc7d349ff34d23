//! The cost of finding a block: in a vCPU's front, and in the shared table.
//!
//! The floors are an array of keys and entries, probed once, and a read-only
//! hash map with the same hash function, keys and order.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::hint::black_box;
use std::time::{Duration, Instant};

use codewarden::addr::GuestAddr;
use codewarden::guest_memory::GuestMemory;
use codewarden::protection::Mode;
use codewarden::{CodeCache, EntryStubs, FRONT_SLOTS, Key, VCpu};

use crate::library::add_region;
use crate::pair::{Aim, Pair};

/// Blocks that are found in the front.
pub const FRONT_BLOCKS: usize = 1024;
/// Bytes between two blocks.
const BLOCK_BYTES: u64 = 32;

/// How many blocks lie in the shared table.
#[derive(Clone, Copy, Debug)]
pub struct Sizes {
    /// Many times the front.
    pub small: usize,
    /// As many as a large guest has.
    pub large: usize,
}

impl Sizes {
    /// The measured sizes.
    pub const FULL: Self = Self { small: 100_000, large: 1_000_000 };
    /// Enough to see that it runs.
    pub const QUICK: Self = Self { small: 2_000, large: 10_000 };
}

/// The ways to find a block.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Finder {
    /// [`codewarden::Pin::lookup`], if the front has the block.
    Front,
    /// A bare array, probed as the front is.
    Array,
    /// [`codewarden::Pin::lookup_shared`].
    Shared,
    /// A read-only hash map.
    Map,
}

impl Finder {
    /// Each with its floor behind it.
    pub const ALL: [Finder; 4] = [Finder::Front, Finder::Array, Finder::Shared, Finder::Map];

    /// For tables and for the names of benches.
    pub fn name(self) -> &'static str {
        match self {
            Finder::Front => "lookup: hit in the front",
            Finder::Array => "floor: array probe",
            Finder::Shared => "lookup: hit in the shared table",
            Finder::Map => "floor: read-only hash map",
        }
    }
}

/// The library's multiplication, so that the tables alone differ.
#[derive(Default)]
struct Fibonacci(u64);

impl Hasher for Fibonacci {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|&byte| self.write_u64(byte.into()));
    }

    fn write_u64(&mut self, number: u64) {
        let product = (self.0 ^ number).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.0 = product ^ product >> 32;
    }
}

/// A cache full of blocks, and its floors.
pub struct Lookups {
    vcpu: VCpu<()>,
    _memory: GuestMemory,
    array: Box<[(u64, usize)]>,
    map: HashMap<u64, usize, BuildHasherDefault<Fibonacci>>,
    /// In the order of the lookups.
    front_keys: Vec<u64>,
    shared_keys: Vec<u64>,
}

fn entry_of(key: u64) -> usize {
    key as usize + 0x1000
}

/// `count` keys, `step` bytes apart, out of order.
pub(crate) fn shuffled(count: usize, step: u64, mut seed: u64) -> Vec<u64> {
    let mut keys: Vec<u64> = (0..count as u64).map(|index| index * step).collect();
    for at in (1..count).rev() {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        keys.swap(at, (seed >> 33) as usize % (at + 1));
    }
    keys
}

impl Lookups {
    /// Commits `blocks` blocks.
    pub fn new(blocks: usize) -> Self {
        let len = blocks.max(FRONT_BLOCKS) * BLOCK_BYTES as usize;
        let memory = GuestMemory::anonymous(len).expect("address space");
        let cache = CodeCache::<()>::new(EntryStubs::NOT_CODE).expect("the stubs differ");
        add_region(&cache, GuestAddr(0), &memory, Mode::None);
        // The order of the lookups differs from that of the allocations.
        let (front_keys, shared_keys) = (shuffled(FRONT_BLOCKS, 4, 1), shuffled(blocks, BLOCK_BYTES, 2));
        let committed = shuffled(blocks, BLOCK_BYTES, 3);
        let mut array = vec![(u64::MAX, 0); FRONT_SLOTS].into_boxed_slice();
        for &key in &front_keys {
            array[Key::new(key).front_index()] = (key, entry_of(key));
        }
        for &key in front_keys.iter().chain(&committed) {
            let mut ticket = cache.begin(Key::new(key));
            ticket.claim(GuestAddr(key)).expect("an open page");
            ticket.commit(entry_of(key), ()).expect("nobody writes");
        }
        let map = committed.iter().map(|&key| (key, entry_of(key))).collect();
        Self { vcpu: cache.attach_vcpu(), _memory: memory, array, map, front_keys, shared_keys }
    }

    /// Looks every key of `finder` up once: nanoseconds for one.
    pub fn run(&mut self, finder: Finder) -> f64 {
        let keys = match finder {
            Finder::Front | Finder::Array => &self.front_keys,
            Finder::Shared | Finder::Map => &self.shared_keys,
        };
        let mut pin = self.vcpu.pin();
        let time = match finder {
            Finder::Front => find(keys, |key| pin.lookup(Key::new(key))),
            Finder::Array => find(keys, |key| {
                let (found, entry) = self.array[Key::new(key).front_index()];
                (found == key).then_some(entry)
            }),
            Finder::Shared => find(keys, |key| pin.lookup_shared(Key::new(key))),
            Finder::Map => find(keys, |key| self.map.get(&key).copied()),
        };
        time.as_nanos() as f64 / keys.len() as f64
    }
}

/// Finds all keys twice and gives the time of the second pass: then the front is filled,
/// and the processor's caches are as warm as they get.
fn find(keys: &[u64], mut lookup: impl FnMut(u64) -> Option<usize>) -> Duration {
    let wanted: usize = keys.iter().map(|&key| entry_of(key)).sum();
    let mut time = Duration::ZERO;
    for _ in 0..2 {
        let mut sum = 0;
        let start = Instant::now();
        for &key in keys {
            sum += lookup(black_box(key)).unwrap_or(0);
        }
        time = start.elapsed();
        assert_eq!(sum, wanted, "every key has its own entry");
    }
    time
}

/// All of them by turns, each with its floor.
pub fn measure(rounds: usize, sizes: Sizes) -> Vec<Pair> {
    let pair = |what: String, beside: &str, unit: &'static str, aim: Aim| Pair {
        what,
        beside: beside.into(),
        unit,
        samples: Vec::new(),
        aim,
    };
    let mut pairs = Vec::new();
    for blocks in [sizes.small, sizes.large] {
        let mut lookups = Lookups::new(blocks);
        let of = |name: &str| format!("{name}, {blocks} blocks");
        let mut found =
            [(Finder::Front, Finder::Array, Aim::AtMostOr(1.5, 3.0)), (Finder::Shared, Finder::Map, Aim::AtMost(1.3))]
                .map(|(finder, floor, aim)| (finder, floor, pair(of(finder.name()), floor.name(), "ns", aim)));
        for _ in 0..rounds {
            for (finder, floor, pair) in &mut found {
                pair.samples.push((lookups.run(*finder), lookups.run(*floor)));
            }
        }
        pairs.extend(found.into_iter().map(|(_, _, pair)| pair));
    }
    pairs
}
