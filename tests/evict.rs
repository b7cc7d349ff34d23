//! Memory of translations has a bound: tests of the evicted blocks and of those that come back.
//! Each payload is dropped once.
//!
//! # Safety
//!
//! Each region's memory outlives its cache.
#![allow(unsafe_code)]

#[path = "support/region.rs"]
mod region;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use codewarden::addr::GuestAddr;
use codewarden::code_buffer::{Allocation, CodeBuffer};
use codewarden::error::Error;
use codewarden::guest_memory::GuestMemory;
use codewarden::protection::Mode;
use codewarden::{CodeCache, EntryStubs, Footprint, Key, MemoryLimit, MemoryUse, Payload, Ticket};
use region::{GUEST, PAGES, page_bytes, region};

/// Guest memory, and a cache over it of blocks that are made of 4 bytes each.
struct Fixture<P: Payload> {
    cache: CodeCache<P>,
    /// Dropped after the cache.
    _memory: GuestMemory,
}

impl<P: Payload> Fixture<P> {
    /// Every page has or had a block, so no commit makes memory for pages.
    fn new(limit: MemoryLimit) -> Self {
        let memory = GuestMemory::anonymous(PAGES * page_bytes()).unwrap();
        let cache = CodeCache::new(EntryStubs::NOT_CODE).unwrap();
        // SAFETY: fields are dropped in order: the cache before the memory.
        unsafe { cache.tracker().add_region(region(GUEST, &memory, Mode::Mprotect)) }.unwrap();
        cache.set_limit(limit);
        Self { cache, _memory: memory }
    }

    /// A ticket of the block of `key`, with its bytes declared.
    fn ticket(&self, key: u64) -> Ticket<P> {
        let at = GuestAddr(GUEST + key * 4 % (PAGES * page_bytes()) as u64);
        let mut ticket = self.cache.begin(Key::new(key));
        ticket.claim(at).unwrap();
        ticket.add_source(at, &[0; 4]).unwrap();
        ticket
    }

    fn commit(&self, key: u64, payload_bytes: usize, payload: P) {
        let mut ticket = self.ticket(key);
        ticket.set_payload_bytes(payload_bytes);
        ticket.commit(0x1000 + key as usize, payload).unwrap();
    }

    fn revive(&self, key: u64) -> bool {
        self.ticket(key).revive().unwrap().is_none()
    }

    fn is_there(&self, key: u64) -> bool {
        self.cache.attach_vcpu().pin().lookup(Key::new(key)).is_some()
    }
}

const LIMIT: MemoryLimit = MemoryLimit::of_bytes(200_000);

#[test]
fn translations_stay_within_the_limit_and_the_newest_stays() {
    let guest = Fixture::new(LIMIT);
    let payload = Arc::new(());
    for key in 0..2000 {
        let payload_bytes = (key * 37 % 2000) as usize;
        guest.commit(key, payload_bytes, payload.clone());
        assert!(guest.is_there(key), "{key}");
        let footprint = guest.cache.footprint();
        assert!(footprint.live.bytes() <= LIMIT.live_bytes, "{key}: {footprint:?}");
        assert!(footprint.retained.bytes() <= LIMIT.retained_bytes, "{key}: {footprint:?}");
        // Eviction is a little ahead of the limit, and never evicts all.
        let is_full = guest.cache.stats().evicted > 0;
        assert!(!is_full || footprint.live.bytes() > LIMIT.live_bytes / 4 * 3, "{key}: {footprint:?}");
        assert!(!is_full || !guest.is_there(0), "the oldest goes first");
        guest.cache.collect();
        let footprint = guest.cache.footprint();
        assert_eq!(footprint.garbage, MemoryUse::default());
        assert_eq!(Arc::strong_count(&payload) - 1, footprint.live.blocks + footprint.retained.blocks);
    }
    let (stats, footprint) = (guest.cache.stats(), guest.cache.footprint());
    assert_eq!(stats.evicted as usize, 2000 - footprint.live.blocks);
    assert_eq!(stats.discarded as usize, 2000 - footprint.live.blocks - footprint.retained.blocks);
    assert_eq!(stats.discarded, stats.freed);
    assert_eq!(stats.invalidated, 0);
    drop(guest);
    assert_eq!(Arc::strong_count(&payload), 1);
}

#[test]
fn an_evicted_block_that_is_wanted_again_is_the_newest() {
    let guest = Fixture::new(LIMIT);
    let mut next = 0;
    let mut commit_until = |is_enough: &dyn Fn() -> bool| {
        while !is_enough() {
            guest.commit(next, 1000, ());
            next += 1;
        }
    };
    commit_until(&|| guest.cache.stats().evicted > 0);
    assert!(!guest.is_there(0) && guest.cache.footprint().retained.blocks > 0);
    assert!(guest.revive(0) && guest.is_there(0));
    assert_eq!(guest.cache.stats().revived, 1);
    // The blocks committed before its revival go first.
    let evicted = guest.cache.stats().evicted;
    commit_until(&|| guest.cache.stats().evicted > evicted);
    assert!(guest.is_there(0));
    // An unused retained block is discarded in the end.
    commit_until(&|| guest.cache.stats().discarded > 200);
    assert!(!guest.is_there(0) && !guest.revive(0));
}

#[test]
fn blocks_in_use_outlive_a_scan() {
    const HOT: u64 = 20;
    let guest = Fixture::new(LIMIT);
    (0..HOT).for_each(|key| guest.commit(key, 1000, ()));
    for cold in HOT..5000 {
        guest.commit(cold, 1000, ());
        let hot = cold % HOT;
        assert!(guest.is_there(hot) || guest.revive(hot), "{hot} was discarded while {cold} came");
    }
    let stats = guest.cache.stats();
    assert!((100..2000).contains(&stats.revived), "{stats:?}");
    assert_eq!(stats.retranslated, 0);
}

#[test]
fn a_block_without_source_is_discarded_at_once() {
    let guest = Fixture::new(LIMIT);
    let payload = Arc::new(());
    for key in 0..500 {
        let mut ticket = guest.cache.begin(Key::new(key));
        ticket.claim(GuestAddr(GUEST)).unwrap();
        ticket.set_payload_bytes(10_000);
        ticket.commit(0x1000, payload.clone()).unwrap();
    }
    guest.cache.collect();
    let MemoryUse { blocks, .. } = guest.cache.footprint().live;
    assert!((5..20).contains(&blocks), "{blocks}");
    assert_eq!(Arc::strong_count(&payload) - 1, blocks);
    assert_eq!(guest.cache.footprint().retained, MemoryUse::default());
}

#[test]
fn a_block_that_does_not_fit_stays_until_the_next_one() {
    let guest = Fixture::new(LIMIT);
    (0..10).for_each(|key| guest.commit(key, 100, ()));
    guest.commit(10, 1 << 30, ());
    assert!(guest.is_there(10));
    assert_eq!(guest.cache.footprint().live.blocks, 1);
    guest.commit(11, 100, ());
    assert!(guest.is_there(11) && !guest.is_there(10));
    // Alone it takes more than all retained blocks may.
    assert_eq!(guest.cache.footprint().retained, MemoryUse::default());
    assert!(guest.cache.footprint().live.bytes() <= LIMIT.live_bytes);
}

#[test]
fn a_lower_limit_evicts_at_once() {
    let guest = Fixture::new(LIMIT);
    (0..100).for_each(|key| guest.commit(key, 1000, ()));
    let limit = MemoryLimit { live_bytes: 20_000, retained_bytes: 0 };
    guest.cache.set_limit(limit);
    let footprint = guest.cache.footprint();
    assert!((15_000..=20_000).contains(&footprint.live.bytes()), "{footprint:?}");
    assert_eq!((footprint.retained, footprint.garbage), (MemoryUse::default(), MemoryUse::default()));
    assert!(guest.is_there(99) && !guest.is_there(0));
}

#[test]
fn room_is_made_by_hand() {
    let guest = Fixture::new(LIMIT);
    let payload = Arc::new(());
    (0..100).for_each(|key| guest.commit(key, 1000, payload.clone()));
    guest.cache.remove(Key::new(50));
    guest.cache.evict(40_000);
    let footprint = guest.cache.footprint();
    assert_eq!(footprint.live.blocks, 60, "39 and the one that was dead");
    assert_eq!((footprint.retained, footprint.garbage), (MemoryUse::default(), MemoryUse::default()));
    assert_eq!(Arc::strong_count(&payload) - 1, footprint.live.blocks);
    assert!(!guest.is_there(0) && guest.is_there(99));
    // An embedder whose code memory is full of one block asks until it is free.
    for all in [usize::MAX, 60_001] {
        (100..160).for_each(|key| guest.commit(key, 1000, payload.clone()));
        guest.cache.evict(all);
        let Footprint { live, retained, garbage, .. } = guest.cache.footprint();
        assert_eq!([live, retained, garbage], [MemoryUse::default(); 3], "{all}: the newest as well");
        assert_eq!(Arc::strong_count(&payload), 1);
    }
}

/// A store walks all blocks of its page in a signal handler.
#[test]
fn a_page_has_so_many_blocks_and_no_more() {
    const MOST: usize = 1 << 16;
    let guest = Fixture::new(MemoryLimit::default());
    let payload = Arc::new(());
    let commit = |key: u64| {
        let mut ticket = guest.cache.begin(Key::new(key));
        ticket.claim(GuestAddr(GUEST)).unwrap();
        ticket.commit(0x1000, payload.clone()).unwrap();
    };
    let live = || guest.cache.footprint().live.blocks;
    (0..MOST as u64).for_each(commit);
    guest.commit(1 << 32 | 0x400, 0, payload.clone());
    assert_eq!((live(), guest.cache.stats().evicted), (MOST + 1, 0));
    // Removing a block makes room for another.
    guest.cache.remove(Key::new(7));
    commit(7);
    assert_eq!(live(), MOST + 1);
    commit(MOST as u64);
    assert_eq!((live(), guest.cache.stats().evicted as usize), (2, MOST));
    assert!(guest.is_there(MOST as u64) && guest.is_there(1 << 32 | 0x400), "another page's stays");
    assert_eq!(Arc::strong_count(&payload) - 1, 2);
    (0..100).for_each(commit);
    assert_eq!(live(), 102);
}

/// If the embedder does not declare its payloads, its blocks count for nothing.
#[test]
fn blocks_of_no_declared_size_are_evicted_too() {
    let guest = Fixture::new(LIMIT);
    let payload = Arc::new(());
    (0..10).for_each(|key| guest.commit(key, 1000, payload.clone()));
    (10..20).for_each(|key| guest.commit(key, 0, payload.clone()));
    guest.cache.remove(Key::new(15));
    guest.cache.evict(10_000);
    assert_eq!(guest.cache.footprint().live.blocks, 9, "as much was there");
    guest.cache.evict(1);
    let footprint = guest.cache.footprint();
    assert_eq!(
        (footprint.live.blocks, footprint.retained.blocks, footprint.garbage.blocks),
        (0, 0, 0),
        "{footprint:?}"
    );
    assert_eq!(Arc::strong_count(&payload), 1);
}

#[test]
fn room_that_is_asked_for_again_and_again_is_made_once() {
    let guest = Fixture::new(LIMIT);
    (0..100).for_each(|key| guest.commit(key, 1000, ()));
    let asked = Arc::new(AtomicUsize::new(0));
    let hook = asked.clone();
    let mut slow = guest.cache.attach_vcpu_with(move || {
        hook.fetch_add(1, Ordering::Relaxed);
    });
    let pin = slow.pin();
    for _ in 0..100 {
        guest.cache.evict(10_000);
        let footprint = guest.cache.footprint();
        assert_eq!((footprint.live.blocks, footprint.garbage.blocks), (90, 10), "{footprint:?}");
    }
    assert!(asked.load(Ordering::Relaxed) >= 99, "each time");
    guest.cache.evict(15_000);
    assert_eq!(guest.cache.footprint().live.blocks, 85);
    drop(pin);
    // The room is there now; a caller that needs more gets more.
    guest.cache.collect();
    guest.cache.evict(10_000);
    let footprint = guest.cache.footprint();
    assert_eq!((footprint.live.blocks, footprint.garbage), (75, MemoryUse::default()));
}

#[test]
fn vcpus_that_hold_memory_beyond_the_limit_are_asked_to_leave() {
    let guest = Fixture::new(LIMIT);
    let asked = Arc::new(AtomicUsize::new(0));
    let hook = asked.clone();
    let mut vcpu = guest.cache.attach_vcpu_with(move || {
        hook.fetch_add(1, Ordering::Relaxed);
    });
    let mut blocked = guest.cache.attach_vcpu_with(|| panic!("it is not pinned"));
    drop(blocked.pin());
    let pin = vcpu.pin();
    // Few blocks, so their number is not the cause.
    for key in 0..40 {
        guest.commit(key, 20_000, ());
        let footprint = guest.cache.footprint();
        assert!(footprint.live.bytes() <= LIMIT.live_bytes, "{footprint:?}");
    }
    let footprint = guest.cache.footprint();
    assert!(footprint.garbage.payload_bytes > LIMIT.live_bytes, "{footprint:?}");
    assert!(asked.load(Ordering::Relaxed) > 0);
    drop(pin);
    guest.cache.collect();
    assert_eq!(guest.cache.footprint().garbage, MemoryUse::default());
}

/// Blocks of all sizes come and go at the limit. There is always memory for the next, and at
/// most a few of the oldest are discarded for it.
#[test]
fn a_full_code_buffer_serves_for_ever() {
    const BYTES: usize = 2 << 20;
    let buffer = CodeBuffer::new(BYTES).unwrap();
    let guest = Fixture::<Allocation>::new(MemoryLimit::of_bytes(2 * BYTES));
    let alloc = |len_bytes: usize| {
        // Each time a 32nd of the buffer is evicted, and free neighbours merge.
        for _ in 0..6 {
            match buffer.alloc(len_bytes, 64) {
                Ok(allocation) => return allocation,
                Err(Error::Full { .. }) => guest.cache.evict(BYTES / 32),
                Err(error) => panic!("{error}"),
            }
        }
        panic!("{len_bytes} bytes are not to be had: {:?}", buffer.stats());
    };
    let mut seed = 1u64;
    let mut random = |below: u64| {
        seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (seed >> 33) % below
    };
    for round in 0..20_000u64 {
        // Short and long by turns, then one kind for long.
        let is_long = if round / 4000 % 2 == 0 { round % 2 == 0 } else { round / 500 % 2 == 0 };
        let len_bytes = if is_long { 3000 + random(9000) } else { 40 + random(300) } as usize;
        let allocation = alloc(len_bytes);
        guest.commit(round % 3000, len_bytes, allocation);
        if round % 7 == 0 {
            guest.cache.remove(Key::new(random(3000)));
        }
    }
    let stats = buffer.stats();
    assert!(stats.used_bytes > BYTES / 2, "{stats:?}");
    assert!(guest.cache.footprint().live.blocks > 50, "{:?}", guest.cache.footprint());
    drop(guest);
    let stats = buffer.stats();
    assert_eq!((stats.used_bytes, stats.allocations, stats.largest_free_bytes), (0, 0, BYTES));
    assert!(stats.given_back_bytes > 0);
}

/// The sum of the declared payload sizes does not wrap: the limit holds.
#[test]
fn payloads_of_any_size_have_a_sum() {
    let guest = Fixture::new(MemoryLimit { live_bytes: usize::MAX, retained_bytes: 0 });
    for key in 0..5 {
        guest.commit(key, usize::MAX / 2 + 1, ());
    }
    let footprint = guest.cache.footprint();
    assert_eq!(footprint.live.blocks, 5);
    assert!(footprint.bytes() >= footprint.live.bytes());
    guest.cache.set_limit(MemoryLimit { live_bytes: 1 << 30, retained_bytes: 0 });
    assert_eq!(guest.cache.footprint().live.blocks, 1, "the one that was committed last");
}
