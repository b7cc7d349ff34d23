//! The whole life of a block, in every mode, on the real kernel: protected,
//! committed, found, written, unreachable, protected again.
//!
//! # Safety
//!
//! Each region's memory outlives its cache.
#![allow(unsafe_code)]

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use codewarden::addr::GuestAddr;
use codewarden::error::Error;
use codewarden::guest_memory::GuestMemory;
use codewarden::protection::{Facility, Mode};
use codewarden::tracker::{BeginError, SharedMemory};
use codewarden::{CodeCache, CommitError, EntryStubs, Key};
use support::{Fixture, GUEST, PAGES, has_or_skips, in_modes, page_bytes, region, tracking_modes};

/// Runs `test` in every mode but `none`, over anonymous and memfd memory.
fn in_every_mode(test: impl Fn(&Fixture)) {
    in_modes(tracking_modes(), test);
}

#[test]
fn a_write_makes_the_block_unreachable_and_it_comes_back() {
    in_every_mode(|guest| {
        let page = GUEST + 0x3000;
        for round in 0..20 {
            // Another byte each time: a byte that faults repeatedly becomes hot.
            guest.store(page + 5, round);
            guest.store(page + 100 + u64::from(round), round);
            guest.announce();
            assert_eq!(guest.lookup(page), None);
            let entry = guest.translate(page, &[page + 5]).unwrap();
            assert_eq!(entry, 0x1000 | usize::from(round));
            assert_eq!(guest.lookup(page), Some(entry));
        }
        let stats = guest.cache.stats();
        assert_eq!((stats.committed, stats.retranslated, stats.invalidated), (20, 19, 19));
    });
}

#[test]
fn a_block_over_two_pages_dies_of_either() {
    in_every_mode(|guest| {
        let (first, second) = (GUEST + 0x1fff, GUEST + 0x2000);
        for written in [first, second] {
            guest.translate(first, &[first, second]).unwrap();
            assert!(guest.lookup(first).is_some());
            guest.store(written, 1);
            guest.announce();
            assert_eq!(guest.lookup(first), None, "{written:#x}");
        }
    });
}

#[test]
fn a_write_before_the_commit_refuses_it() {
    in_every_mode(|guest| {
        let page = GUEST + 0x4000;
        let mut ticket = guest.cache.begin(Key::new(page));
        ticket.claim(GuestAddr(page)).unwrap();
        assert!(ticket.is_current());
        guest.store(page + 9, 1);
        guest.announce();
        assert!(!ticket.is_current());
        assert_eq!(ticket.commit(0x1000, 0), Err(CommitError::Written));
        assert_eq!(guest.lookup(page), None);
    });
}

#[test]
fn blocks_on_other_pages_stay() {
    in_every_mode(|guest| {
        for page in 0..PAGES as u64 {
            guest.translate(page, &[GUEST + page * 0x1000]).unwrap();
        }
        guest.store(GUEST + 0x7800, 1);
        guest.announce();
        for page in 0..PAGES as u64 {
            assert_eq!(guest.lookup(page).is_none(), page == 7, "{page}");
        }
    });
}

#[test]
fn cells_lead_to_the_block_of_now() {
    in_every_mode(|guest| {
        let page = GUEST + 0x5000;
        let link = guest.cache.link(Key::new(page)).unwrap();
        let cell = link.cell();
        assert_eq!(cell.load(), EntryStubs::NOT_CODE.dead);
        let entry = guest.translate(page, &[page]).unwrap();
        assert_eq!(cell.load(), entry);
        guest.store(page, 9);
        guest.announce();
        assert_eq!(cell.load(), EntryStubs::NOT_CODE.dead);
        let entry = guest.translate(page, &[page]).unwrap();
        assert_eq!(cell.load(), entry);
    });
}

/// A block's links last as long as the block: its cells are not swept.
#[test]
fn a_block_keeps_the_cells_that_it_is_linked_to() {
    in_every_mode(|guest| {
        let [page, target] = [GUEST + 0x5000, GUEST + 0x6000].map(Key::new);
        let mut ticket = guest.cache.begin(page);
        ticket.claim(GuestAddr(page.raw())).unwrap();
        let cell = ticket.link(target).unwrap();
        assert!(ticket.link(Key::new(u64::MAX)).is_err());
        ticket.commit(0x700, 0).unwrap();
        let shown = || std::ptr::from_ref(guest.cache.link(target).unwrap().cell());
        // Cells without links are swept.
        (0..20_000).for_each(|key| drop(guest.cache.link(Key::new(key)).unwrap()));
        assert_eq!(shown(), cell, "{}", guest.mode);
        guest.store(page.raw(), 1);
        guest.announce();
        guest.cache.evict(usize::MAX);
        guest.cache.collect();
        (0..20_000).for_each(|key| drop(guest.cache.link(Key::new(key)).unwrap()));
        assert_ne!(shown(), cell, "{}: the block is freed, and its link with it", guest.mode);
    });
}

#[test]
fn announced_changes_keep_translators_away() {
    in_every_mode(|guest| {
        let page = GUEST + 0x6000;
        guest.translate(page, &[page]).unwrap();
        let change = guest.cache.tracker().change_mapping(GuestAddr(page), 0x1000).unwrap();
        assert_eq!(guest.lookup(page), None);
        let mut ticket = guest.cache.begin(Key::new(page));
        assert!(ticket.claim(GuestAddr(page)).is_err());
        assert!(ticket.claim(GuestAddr(page + 0x1000)).is_ok());
        drop(change);
        guest.translate(page, &[page]).unwrap();
    });
}

/// An announcement alone kills, without the other tests' store.
#[test]
fn invalidation_by_hand_reaches_the_pages_of_the_range() {
    in_every_mode(|guest| {
        for page in [GUEST, GUEST + 0x1000, GUEST + 0x2000] {
            guest.translate(page, &[page]).unwrap();
        }
        guest.cache.tracker().invalidate(GuestAddr(GUEST + 0x1fff), 2).unwrap();
        assert!(guest.lookup(GUEST).is_some());
        assert_eq!(guest.lookup(GUEST + 0x1000), None);
        assert_eq!(guest.lookup(GUEST + 0x2000), None);
    });
}

#[test]
fn an_invalidation_before_the_commit_refuses_it() {
    in_every_mode(|guest| {
        let page = GUEST + 0x4000;
        let mut ticket = guest.cache.begin(Key::new(page));
        ticket.claim(GuestAddr(page)).unwrap();
        guest.cache.tracker().invalidate(GuestAddr(page + 9), 1).unwrap();
        assert_eq!(ticket.commit(0x1000, 0), Err(CommitError::Written));
        assert_eq!(guest.lookup(page), None);
    });
}

/// A negative control: without tracking the block stays.
#[test]
fn without_tracking_the_block_stays() {
    let guest = Fixture::new(Mode::None, GuestMemory::anonymous(PAGES << 12).unwrap());
    let entry = guest.translate(GUEST, &[GUEST]).unwrap();
    guest.store(GUEST, 1);
    assert_eq!(guest.lookup(GUEST), Some(entry));
}

#[test]
fn what_blocks_own_is_freed() {
    struct Counted(Arc<AtomicUsize>);
    impl Drop for Counted {
        fn drop(&mut self) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }
    let freed = Arc::new(AtomicUsize::new(0));
    let memory = GuestMemory::anonymous(0x1000).unwrap();
    let cache = CodeCache::<Counted>::new(EntryStubs::NOT_CODE).unwrap();
    // SAFETY: the memory outlives the cache.
    unsafe { cache.tracker().add_region(region(0, &memory, Mode::Mprotect)) }.unwrap();
    for i in 0..100 {
        let mut ticket = cache.begin(Key::new(8));
        ticket.claim(GuestAddr(0)).unwrap();
        ticket.commit(0x1000 + i, Counted(freed.clone())).unwrap();
    }
    cache.collect();
    assert_eq!(freed.load(Ordering::Relaxed), 99);
    drop(cache);
    assert_eq!(freed.load(Ordering::Relaxed), 100);
}

#[test]
fn arguments_that_cannot_be_used() {
    let memory = GuestMemory::anonymous(0x2000).unwrap();
    let other = GuestMemory::anonymous(0x2000).unwrap();
    assert!(CodeCache::<()>::new(EntryStubs { dead: 7, pending: 7 }).is_err());
    let cache = CodeCache::<()>::new(EntryStubs::NOT_CODE).unwrap();
    // SAFETY: the memory outlives the cache.
    let add = |options| unsafe { cache.tracker().add_region(options) };
    assert!(add(region(1, &memory, Mode::None)).is_err());
    add(region(0x1000, &memory, Mode::None)).unwrap();
    assert!(add(region(0x2000, &other, Mode::None)).is_err());
    assert!(add(region(0x8000, &memory, Mode::None)).is_err());
    assert!(cache.tracker().remove_region(GuestAddr(0x2000)).is_err());
    assert!(cache.link(Key::new(u64::MAX)).is_err());
    assert!(cache.tracker().change_mapping(GuestAddr(u64::MAX), 2).is_err());
    assert!(cache.begin(Key::new(0)).claim(GuestAddr(0x3000)).is_err());
    assert_eq!(cache.begin(Key::new(0)).commit(5, ()), Err(CommitError::NoPages));
    let mut ticket = cache.begin(Key::new(0));
    ticket.claim(GuestAddr(0x1000)).unwrap();
    assert_eq!(ticket.commit(EntryStubs::NOT_CODE.pending, ()), Err(CommitError::BadEntry));
}

/// One memfd mapped twice, for a JIT whose pages are never both writable and executable: a
/// store through one view kills the blocks of the other.
#[test]
fn a_store_through_another_view_kills() {
    for mode in tracking_modes().into_iter().filter(|&mode| has_or_skips(mode, Facility::WpShmem)) {
        let first = GuestMemory::memfd(PAGES << 12).unwrap();
        let second = first.another_view().unwrap();
        let guest = Fixture::new(mode, first);
        let tracker = guest.cache.tracker();
        let other = GUEST + 0x100_0000;
        // A block from before the second view is known.
        guest.translate(GUEST, &[GUEST]).unwrap();
        // SAFETY: both views live until the fixture is gone; the cache goes first.
        unsafe { tracker.add_region(region(other, &second, mode)) }.unwrap();
        let memory = |memory: &GuestMemory| SharedMemory { backing: memory.backing_id().unwrap(), offset: 0 };
        tracker.declare_shared(GuestAddr(GUEST), (PAGES << 12) as u64, memory(&guest.memory)).unwrap();
        tracker.declare_shared(GuestAddr(other), (PAGES << 12) as u64, memory(&second)).unwrap();
        assert_eq!(guest.lookup(GUEST), None, "{mode}: made without the second view");

        guest.translate(GUEST, &[GUEST]).unwrap();
        second.write(8, &[1]).unwrap();
        guest.announce();
        assert_eq!(guest.lookup(GUEST), None, "{mode}: a store through the second view");
        guest.translate(GUEST, &[GUEST]).unwrap();
        guest.store(GUEST + 8, 2);
        guest.announce();
        assert_eq!(guest.lookup(GUEST), None, "{mode}: a store through the first view");
        guest.translate(GUEST + 0x1000, &[GUEST + 0x1000]).unwrap();
        second.write(8, &[3]).unwrap();
        guest.announce();
        assert!(guest.lookup(GUEST + 0x1000).is_some(), "{mode}: another page");
        drop(guest);
    }
}

/// The fuzzer held a page through its second view and claimed it through the first. The claim
/// was refused, yet the ticket kept half of it, and the next call found the page claimed. A
/// store through the unprotected second view left the block reachable.
#[test]
fn a_claim_that_another_view_refuses_leaves_nothing_claimed() {
    let first = GuestMemory::memfd(PAGES << 12).unwrap();
    let second = first.another_view().unwrap();
    let other = GUEST + 0x100_0000;
    let guest = Fixture::new(Mode::Mprotect, first);
    let tracker = guest.cache.tracker();
    // SAFETY: both views live until the fixture is gone; the cache goes first.
    unsafe { tracker.add_region(region(other, &second, Mode::Mprotect)) }.unwrap();
    for (start, memory) in [(GUEST, &guest.memory), (other, &second)] {
        let shared = SharedMemory { backing: memory.backing_id().unwrap(), offset: 0 };
        tracker.declare_shared(GuestAddr(start), (PAGES << 12) as u64, shared).unwrap();
    }
    let wraps = SharedMemory { backing: second.backing_id().unwrap(), offset: 0u64.wrapping_sub(1 << 12) };
    assert!(tracker.declare_shared(GuestAddr(other), 2 << 12, wraps).is_err());
    let mut ticket = guest.cache.begin(Key::new(GUEST));
    let held = tracker.prepare_kernel_write(GuestAddr(other), 1).unwrap();
    for _ in 0..2 {
        assert!(matches!(ticket.claim(GuestAddr(GUEST)), Err(BeginError::Busy(_))));
    }
    drop(held);
    ticket.claim(GuestAddr(GUEST)).unwrap();
    ticket.commit(0x1000, 0).unwrap();
    second.write(0, &[1]).unwrap();
    assert_eq!(guest.lookup(GUEST), None);
    drop(guest);
}

#[test]
fn bytes_of_a_page_that_was_not_claimed_make_no_block() {
    in_every_mode(|guest| {
        let last = GuestAddr(GUEST + page_bytes() as u64 - 1);
        // An unclaimed page, and a range that wraps.
        let bad = [last, GuestAddr(u64::MAX)];
        for (revives, bad) in [true, false].into_iter().flat_map(|revives| bad.map(|bad| (revives, bad))) {
            let mut ticket = guest.cache.begin(Key::new(1));
            ticket.claim(last).unwrap();
            ticket.add_source(last, &[0]).unwrap();
            let refused = ticket.add_source(bad, &[0, 0]);
            assert!(matches!(refused, Err(Error::BadRange { .. })), "{refused:?}");
            // It has already read them.
            ticket.claim(GuestAddr(last.0 + 1)).unwrap();
            ticket.add_source(last, &[0, 0]).unwrap();
            let done = if revives { ticket.revive().map(|_| ()) } else { ticket.commit(0x100_usize, 0) };
            assert_eq!(done, Err(CommitError::NotClaimed));
            assert_eq!(guest.lookup(1), None);
        }
    });
}
