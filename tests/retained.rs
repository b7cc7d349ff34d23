//! Dead blocks used again with their bytes, and blocks removed by hand, in every mode on
//! the real kernel.
//!
//! # Safety
//!
//! Each region's memory outlives its cache.
#![allow(unsafe_code)]

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use codewarden::addr::GuestAddr;
use codewarden::guest_memory::GuestMemory;
use codewarden::protection::Mode;
use codewarden::tracker::BeginError;
use codewarden::{CodeCache, CommitError, Entry, EntryStubs, Key, MemoryLimit, MemoryUse, StaleFlag, Ticket};
use support::{Fixture, GUEST, PAGES, in_modes, page_bytes, region, tracking_modes};

/// Runs `test` in every mode but `none`, over anonymous and memfd memory.
fn in_every_mode(test: impl Fn(&Fixture)) {
    in_modes(tracking_modes(), test);
}

/// A ticket over `len` bytes from `start`, claimed, read and declared.
fn ticket(guest: &Fixture, key: u64, start: u64, len: usize) -> Ticket<u32> {
    let mut ticket = guest.cache.begin(Key::new(key));
    for at in [start, start + len as u64 - 1] {
        while let Err(error) = ticket.claim(GuestAddr(at)) {
            assert!(matches!(error, BeginError::Busy(_)), "{error}");
        }
    }
    let mut bytes = vec![0; len];
    guest.memory.read((start - GUEST) as usize, &mut bytes).unwrap();
    ticket.add_source(GuestAddr(start), &bytes).unwrap();
    ticket
}

fn revive(guest: &Fixture, key: u64, start: u64, len: usize) -> bool {
    ticket(guest, key, start, len).revive().unwrap().is_none()
}

/// Commits a block of `key` and one of the next key, and removes the first of them.
fn commit_two_and_remove_one(guest: &Fixture, key: u64, at: u64, remove: fn(&CodeCache<u32>, Key)) {
    let remove = |key| remove(&guest.cache, Key::new(key));
    remove(key); // There is none yet.
    ticket(guest, key, at, 4).commit(0x1000, 0).unwrap();
    ticket(guest, key + 1, at, 4).commit(0x1001, 0).unwrap();
    remove(key);
    remove(key);
    remove(u64::MAX);
    assert_eq!((guest.lookup(key), guest.lookup(key + 1)), (None, Some(0x1001)));
}

fn flag_of<T: Send + Sync + 'static>(ticket: &mut Ticket<T>) -> *const AtomicU8 {
    ticket.stale_flag().cast()
}

/// The stale flag of a live or retained block.
fn flag(flag: *const AtomicU8) -> u8 {
    // SAFETY: the payload was not dropped.
    unsafe { &*flag }.load(Ordering::Relaxed)
}

#[test]
fn a_block_whose_bytes_come_back_is_used_again() {
    in_every_mode(|guest| {
        // Over two pages, either of which is written.
        let (key, start, len) = (7, GUEST + 0x2ffc, 8);
        guest.store(start, 1);
        guest.announce();
        let mut ticket = ticket(guest, key, start, len);
        let stale = flag_of(&mut ticket);
        ticket.commit(0x1000, 0).unwrap();
        for (at, byte) in [(start, 1), (start + 6, 0), (start, 1)] {
            guest.store(at, 77);
            guest.announce();
            assert_eq!((guest.lookup(key), flag(stale)), (None, StaleFlag::DEAD));
            assert!(!revive(guest, key, start, len), "the bytes differ");
            guest.store(at, byte);
            guest.announce();
            assert_eq!(guest.lookup(key), None);
            assert!(!revive(guest, key, start, len - 1), "another block");
            assert!(!revive(guest, key + 1, start, len), "another key");
            let mut other = self::ticket(guest, key, start, len);
            other.set_options(1);
            assert!(other.revive().unwrap().is_some(), "other options");
            assert!(revive(guest, key, start, len));
            assert_eq!((guest.lookup(key), flag(stale)), (Some(0x1000), StaleFlag::VALID));
        }
        guest.store(start, 2);
        guest.announce();
        assert_eq!((guest.lookup(key), flag(stale)), (None, StaleFlag::DEAD), "a block that was revived");
        let stats = guest.cache.stats();
        assert_eq!((stats.committed, stats.retranslated, stats.revived), (1, 0, 3));
    });
}

#[test]
fn two_versions_that_take_turns_are_translated_once_each() {
    in_every_mode(|guest| {
        let (key, at) = (7, GUEST + 0x3010);
        for round in 0..20 {
            // A data write, so that no byte faults often.
            guest.store(at + 64 + round, 1);
            guest.store(at, round as u8 % 2);
            guest.announce();
            if let Some(ticket) = ticket(guest, key, at, 4).revive().unwrap() {
                ticket.commit(0x1000 + round as usize, 0).unwrap();
            }
            assert_eq!(guest.lookup(key), Some(0x1000 + round as usize % 2), "{round}");
        }
        let stats = guest.cache.stats();
        assert_eq!((stats.committed, stats.revived), (2, 18));
    });
}

#[test]
fn a_write_before_a_revival_refuses_it() {
    in_every_mode(|guest| {
        let (key, at) = (7, GUEST + 0x4000);
        ticket(guest, key, at, 4).commit(0x1000, 0).unwrap();
        guest.store(at + 9, 1);
        guest.announce();
        let ticket = ticket(guest, key, at, 4);
        guest.store(at + 10, 1);
        guest.announce();
        assert_eq!(ticket.revive().err(), Some(CommitError::Written));
        assert_eq!(guest.lookup(key), None);
        assert!(revive(guest, key, at, 4), "it was retained all the same");
        assert_eq!(guest.lookup(key), Some(0x1000));
        assert!(revive(guest, key, at, 4), "it is reachable");
        assert_eq!(guest.cache.stats().revived, 1);
    });
}

#[test]
fn a_block_is_removed_by_hand() {
    in_every_mode(|guest| {
        let (key, at) = (7, GUEST + 0x4000);
        commit_two_and_remove_one(guest, key, at, CodeCache::remove);
        assert!(revive(guest, key, at, 4));
        assert_eq!(guest.lookup(key), Some(0x1000));
        let stats = guest.cache.stats();
        assert_eq!((stats.removed, stats.invalidated), (1, 0));
    });
}

#[test]
fn a_block_that_is_removed_for_good_is_not_retained() {
    in_every_mode(|guest| {
        let (key, at) = (7, GUEST + 0x4000);
        commit_two_and_remove_one(guest, key, at, CodeCache::remove_for_good);
        assert!(!revive(guest, key, at, 4));
        guest.cache.collect();
        let (stats, footprint) = (guest.cache.stats(), guest.cache.footprint());
        assert_eq!((stats.removed, stats.discarded, stats.freed), (1, 1, 1));
        assert_eq!((footprint.live.blocks, footprint.retained.blocks), (1, 0));
        // A write was first: the block may come back.
        guest.store(at + 9, 1);
        guest.announce();
        guest.cache.remove_for_good(Key::new(key + 1));
        assert!(revive(guest, key + 1, at, 4));
    });
}

#[test]
fn the_last_block_of_a_key_ends_the_one_before() {
    in_every_mode(|guest| {
        let (key, at) = (7, GUEST + 0x4000);
        let mut first = ticket(guest, key, at, 4);
        let stale = flag_of(&mut first);
        first.commit(0x1000, 0).unwrap();
        ticket(guest, key, at, 8).commit(0x1001, 0).unwrap();
        assert_eq!((guest.lookup(key), flag(stale)), (Some(0x1001), StaleFlag::DEAD));
        let footprint = guest.cache.footprint();
        assert_eq!((footprint.live.blocks, footprint.retained.blocks), (1, 1), "only one of a key lives");
        // Even if the first one was removed by hand.
        guest.cache.remove(Key::new(key));
        assert_eq!(guest.lookup(key), None);
        assert_eq!(guest.cache.footprint().live.blocks, 0);
        for (len, entry) in [(4, 0x1000), (8, 0x1001)] {
            assert!(revive(guest, key, at, len));
            assert_eq!(guest.lookup(key), Some(entry));
        }
        guest.store(at + 7, 1);
        guest.announce();
        assert_eq!(guest.lookup(key), None);
    });
}

#[test]
fn retained_blocks_have_a_bound() {
    let memory = GuestMemory::anonymous(PAGES * page_bytes()).unwrap();
    let cache = CodeCache::<Arc<()>>::new(EntryStubs::NOT_CODE).unwrap();
    // SAFETY: the memory outlives the cache.
    unsafe { cache.tracker().add_region(region(0, &memory, Mode::Mprotect)) }.unwrap();
    let payload = Arc::new(());
    let retained = || Arc::strong_count(&payload) - 1;
    let remove_another = |key| {
        let mut ticket = cache.begin(Key::new(key));
        ticket.claim(GuestAddr(0)).unwrap();
        ticket.add_source(GuestAddr(key), &[0]).unwrap();
        ticket.commit(0x1000, payload.clone()).unwrap();
        cache.remove(Key::new(key));
    };
    remove_another(0);
    let retained_bytes = 10 * cache.footprint().retained.bytes();
    cache.set_limit(MemoryLimit { retained_bytes, ..MemoryLimit::default() });
    (1..30).for_each(remove_another);
    cache.collect();
    assert_eq!(retained(), 10);
    let footprint = cache.footprint();
    assert_eq!((footprint.retained.bytes(), footprint.retained.blocks), (retained_bytes, 10));
    cache.set_limit(MemoryLimit { retained_bytes: 0, ..MemoryLimit::default() });
    assert_eq!(retained(), 0);
    let footprint = cache.footprint();
    assert_eq!([footprint.live, footprint.retained, footprint.garbage], [MemoryUse::default(); 3]);
    assert_eq!(cache.stats().discarded, 30);
    drop(cache);
}

#[test]
fn the_source_of_a_block_was_claimed() {
    let guest = Fixture::new(Mode::Mprotect, GuestMemory::anonymous(PAGES * page_bytes()).unwrap());
    let mut ticket = guest.cache.begin(Key::new(1));
    assert!(ticket.add_source(GuestAddr(GUEST), &[0]).is_err());
    ticket.claim(GuestAddr(GUEST)).unwrap();
    ticket.add_source(GuestAddr(GUEST + 0xffc), &[0; 4]).unwrap();
    assert!(ticket.add_source(GuestAddr(GUEST + 0xffd), &[0; 4]).is_err());
    assert!(ticket.add_source(GuestAddr(u64::MAX), &[0; 4]).is_err());
    assert!(!ticket.needs_check());
    assert_eq!(ticket.commit(Entry::with_check(5, 5), 0), Err(CommitError::NotClaimed));
    let mut ticket = guest.cache.begin(Key::new(1));
    ticket.claim(GuestAddr(GUEST)).unwrap();
    assert_eq!(ticket.commit(Entry::with_check(5, 5), 0), Err(CommitError::BadEntry));
}

#[test]
fn a_block_without_source_is_not_revived() {
    in_every_mode(|guest| {
        guest.translate(GUEST, &[GUEST]).unwrap();
        guest.cache.remove(Key::new(GUEST));
        assert!(!revive(guest, GUEST, GUEST, 1));
        let silent = guest.cache.begin(Key::new(GUEST));
        assert!(silent.revive().unwrap().is_some());
    });
}
