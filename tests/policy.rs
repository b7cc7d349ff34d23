//! The policy's decisions about a page, seen through the tracker alone, in every mode on the
//! real kernel.
//!
//! # Safety
//!
//! The memory outlives its tracker; the observer counts and does nothing else.
#![allow(unsafe_code)]

#[path = "support/facilities.rs"]
mod facilities;
#[path = "support/modes.rs"]
mod modes;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use codewarden::addr::{GuestAddr, PageSize};
use codewarden::guest_memory::GuestMemory;
use codewarden::policy::{Adaptive, Decision, Limits, PageHistory, Plain, Policy};
use codewarden::protection::{Access, Facility, Mode};
use codewarden::tracker::{BeginError, PageClaim, PageObserver, PageWrite, RegionOptions, Tracker};
use codewarden::{Busy, Stats};

use facilities::has_or_skips;

const PAGES: usize = 200;

/// Counts its calls.
struct Counting;

#[derive(Debug, Default)]
struct Told {
    written: AtomicU32,
    data_written: AtomicU32,
}

impl Told {
    fn take(&self) -> (u32, u32) {
        (self.written.swap(0, Ordering::Relaxed), self.data_written.swap(0, Ordering::Relaxed))
    }
}

// SAFETY: one addition each.
unsafe impl PageObserver for Counting {
    type Data = Told;

    fn written(&self, told: &Told, _: &PageWrite) {
        told.written.fetch_add(1, Ordering::Relaxed);
    }

    fn data_written(&self, told: &Told, _: &PageWrite) {
        told.data_written.fetch_add(1, Ordering::Relaxed);
    }
}

struct Guest {
    tracker: Tracker<Told>,
    memory: GuestMemory,
    mode: Mode,
    page: usize,
}

impl Guest {
    fn new(mode: Mode, policy: impl Policy) -> Self {
        let page = PageSize::host().bytes();
        let memory = GuestMemory::anonymous(PAGES * page).unwrap();
        let tracker = Tracker::with_policy(Arc::new(Counting), Arc::new(policy));
        let options = RegionOptions::new(GuestAddr(0), memory.range(), mode);
        // SAFETY: fields are dropped in order: the tracker before the memory.
        unsafe { tracker.add_region(options) }.unwrap();
        Self { tracker, memory, mode, page }
    }

    fn addr(&self, page: usize, byte: usize) -> GuestAddr {
        GuestAddr((page * self.page + byte) as u64)
    }

    /// Claims the page and marks its first 64 bytes as code.
    fn translate(&self, page: usize) -> PageClaim<Told> {
        loop {
            match self.tracker.begin(self.addr(page, 0)) {
                Ok(claim) => {
                    claim.add_code(0..64);
                    return claim;
                }
                // In thread mode the store may go on a moment before the
                // un-protect is over.
                Err(BeginError::Busy(Busy::Unprotecting | Busy::Protecting)) => {}
                Err(error) => panic!("{}: {error}", self.mode),
            }
        }
    }

    /// A store, announced if the mode needs it.
    fn store(&self, page: usize, byte: usize) {
        self.memory.write(page * self.page + byte, &[1]).unwrap();
        self.tracker.sync().unwrap();
    }

    fn stats(&self) -> Stats {
        self.tracker.stats()
    }
}

fn names_the_byte(mode: Mode) -> bool {
    mode.is_synchronous() && has_or_skips(mode, Facility::ExactAddress)
}

/// The modes that are available and of which `wanted` is true.
fn modes_that(wanted: impl Fn(Mode) -> bool) -> Vec<Mode> {
    modes::tracking_modes().into_iter().filter(|&mode| wanted(mode)).collect()
}

#[test]
fn a_data_write_makes_its_page_self_checking_and_then_costs_nothing() {
    for mode in modes_that(names_the_byte) {
        let guest = Guest::new(mode, Adaptive::with_checks());
        let claim = guest.translate(3);
        assert!(!claim.is_self_checking());
        guest.store(3, 2048);
        assert_eq!(claim.data().take(), (0, 1), "{mode}: nothing dies, all compare themselves");
        assert!(!claim.is_current(), "{mode}: what was begun before would not compare itself");
        for byte in 0..guest.page {
            guest.store(3, byte);
        }
        let stats = guest.stats();
        assert_eq!((stats.faults, stats.faults_data, stats.self_checking), (1, 1, 1), "{mode}");
        let again = guest.translate(3);
        assert!(again.is_self_checking());
        guest.store(3, 0);
        assert!(again.is_current(), "{mode}: a self-checking page changes without notice");
        assert_eq!(again.data().take(), (0, 0), "{mode}");
        let hot = guest.tracker.hottest_pages(5);
        assert_eq!(hot.len(), 1, "{mode}");
        assert_eq!((hot[0].page, hot[0].is_self_checking, hot[0].data_hits), (guest.addr(3, 0), true, 1), "{mode}");
        assert_eq!(hot[0].last_byte, Some(guest.addr(3, 2048)), "{mode}");
        assert_eq!(guest.tracker.pages_by_state().self_checking, 1, "{mode}");
    }
}

#[test]
fn a_store_to_code_kills() {
    for mode in modes_that(Mode::is_synchronous) {
        let guest = Guest::new(mode, Adaptive::with_checks());
        let claim = guest.translate(3);
        guest.store(3, 63);
        assert_eq!(claim.data().take(), (1, 0), "{mode}");
        assert!(!guest.translate(3).is_self_checking(), "{mode}: once is no habit");
        // Without self-checking pages a data write kills as well.
        let guest = Guest::new(mode, Adaptive::new());
        let claim = guest.translate(3);
        guest.store(3, 2048);
        assert_eq!(claim.data().take(), (1, 0), "{mode}");
        assert!(!guest.translate(3).is_self_checking(), "{mode}");
    }
}

#[test]
fn code_that_is_written_again_and_again_is_self_checking() {
    for mode in modes_that(|_| true) {
        let guest = Guest::new(mode, Adaptive::with_checks());
        let mut stores = 0;
        while !guest.translate(5).is_self_checking() {
            guest.store(5, 0);
            stores += 1;
            // A window may end between two stores on a slow machine.
            assert!(stores < 1_000, "{mode}: {:?}", guest.stats());
        }
        let before = guest.stats();
        for _ in 0..100 {
            assert!(guest.translate(5).is_self_checking());
            guest.store(5, 0);
        }
        let after = guest.stats();
        assert_eq!((after.faults, after.pages_harvested), (before.faults, before.pages_harvested), "{mode}");
        assert_eq!(after.protection_calls, before.protection_calls, "{mode}: what is checked costs no system call");
    }
}

/// Makes everything self-checking, and cools it at once.
#[derive(Debug)]
struct CheckOnceThenProtect(AtomicU32);

impl Policy for CheckOnceThenProtect {
    fn on_begin(&self, _: &PageHistory) -> Decision {
        if self.0.fetch_add(1, Ordering::Relaxed) == 0 { Decision::SelfCheck } else { Decision::Protect }
    }

    fn on_harvest(&self, _: &PageHistory) -> bool {
        false
    }

    fn has_cooled(&self, page: &PageHistory) -> bool {
        !page.held
    }

    fn limits(&self) -> Limits {
        Limits::default()
    }
}

#[test]
fn a_page_that_has_cooled_is_protected_again() {
    for mode in modes_that(|_| true) {
        let guest = Guest::new(mode, CheckOnceThenProtect(AtomicU32::new(0)));
        let claim = guest.translate(7);
        assert!(claim.is_self_checking());
        guest.store(7, 0);
        assert_eq!(claim.data().take(), (0, 0), "{mode}");
        let held = guest.tracker.prepare_kernel_write(guest.addr(7, 0), 1).unwrap();
        if guest.mode == Mode::Sigbus || guest.mode == Mode::Mprotect {
            guest.tracker.maintain();
            assert!(claim.is_current(), "{mode}: a held page does not cool");
        }
        drop(held);
        guest.tracker.maintain();
        assert_eq!(claim.data().take(), (1, 0), "{mode}: its blocks die");
        assert!(!claim.is_current(), "{mode}");
        let claim = guest.translate(7);
        assert!(!claim.is_self_checking(), "{mode}");
        guest.store(7, 0);
        assert_eq!(claim.data().take(), (1, 0), "{mode}: the store is learned of");
        assert_eq!(guest.stats().cooled, 1, "{mode}");
    }
}

#[test]
fn a_stream_of_stores_opens_pages_ahead_and_batches_protect_them_again() {
    for mode in modes_that(Mode::is_synchronous) {
        let guest = Guest::new(mode, Adaptive::new());
        let claims: Vec<_> = (0..PAGES).map(|page| guest.translate(page)).collect();
        for (page, claim) in claims.iter().enumerate() {
            guest.store(page, 0);
            assert!(!claim.is_current(), "{mode}: page {page}");
        }
        let stats = guest.stats();
        // 1, 2, 4, ... 128 pages.
        assert!(stats.faults < 12, "{mode}: {stats:?}");
        assert_eq!(stats.opened_ahead, PAGES as u64 - stats.faults, "{mode}");
        assert!(claims.iter().all(|claim| claim.data().take().0 >= 1), "{mode}");

        let claims: Vec<_> = (0..PAGES).map(|page| guest.translate(page)).collect();
        let calls = guest.stats().protection_calls - stats.protection_calls;
        assert!(calls < 12, "{mode}: {calls} calls for {PAGES} pages");
        assert_eq!(guest.stats().protects - stats.protects, PAGES as u64, "{mode}");
        // Each of them is protected.
        for page in (0..PAGES).rev() {
            guest.store(page, 0);
            assert!(!claims[page].is_current(), "{mode}: page {page}");
            assert_eq!(claims[page].data().take(), (1, 0), "{mode}: page {page}");
        }
    }
}

#[test]
fn a_read_only_segment_is_protected_once() {
    for mode in modes_that(Mode::is_synchronous) {
        let guest = Guest::new(mode, Adaptive::new());
        let segment = 20..100;
        let (start, len_bytes) = (guest.addr(20, 0), (80 * guest.page) as u64);
        guest.tracker.set_access(start, len_bytes, Access::Read).unwrap();
        let claims: Vec<_> = segment.clone().map(|page| guest.translate(page)).collect();
        let stats = guest.stats();
        assert_eq!(stats.protection_calls, 1, "{mode}");
        assert_eq!(stats.protects, 80, "{mode}");
        // The pages beside it are not part of it. It ends when the guest may write.
        drop(guest.translate(19));
        drop(guest.translate(100));
        assert_eq!(guest.stats().protection_calls, 3, "{mode}");
        guest.tracker.set_access(start, len_bytes, Access::ReadWrite).unwrap();
        for (page, claim) in segment.zip(&claims).rev() {
            assert!(claim.is_current(), "{mode}");
            guest.store(page, 0);
            assert!(!claim.is_current(), "{mode}: page {page}");
        }
        drop(guest.translate(50));
        assert_eq!(guest.stats().protects, 83, "{mode}");
    }
}

#[test]
fn a_batch_goes_round_a_held_page() {
    for mode in modes_that(|mode| mode == Mode::Sigbus || mode == Mode::Mprotect) {
        let guest = Guest::new(mode, Adaptive::new());
        (0..16).for_each(|page| drop(guest.translate(page)));
        drop(guest.tracker.prepare_kernel_write(GuestAddr(0), 16 * guest.page as u64).unwrap());
        let held = guest.tracker.prepare_kernel_write(guest.addr(4, 0), 1).unwrap();
        let claims: Vec<_> = (0..16).filter(|&page| page != 4).map(|page| guest.translate(page)).collect();
        let busy = guest.tracker.begin(guest.addr(4, 0)).map(|claim| claim.is_self_checking());
        assert_eq!(busy, Err(BeginError::Busy(Busy::Unprotecting)), "{mode}");
        guest.store(4, 0);
        assert_eq!(guest.stats().faults, 0, "{mode}: the held page is writable");
        for claim in claims {
            guest.store(claim.guest_page().0 as usize / guest.page, 0);
            assert!(!claim.is_current(), "{mode}: {claim:?}");
        }
        drop(held);
    }
}

#[test]
fn a_kernel_write_to_data_kills_nothing() {
    for mode in modes_that(names_the_byte) {
        let guest = Guest::new(mode, Adaptive::with_checks());
        let claim = guest.translate(2);
        let tracked = mode == Mode::Thread;
        // The kernel refuses it unless it is announced or thread mode handles it.
        let host = guest.memory.range().start().as_ptr().wrapping_add(2 * guest.page + 1024);
        let held = guest.tracker.prepare_kernel_write(guest.addr(2, 1024), 8).unwrap();
        // SAFETY: eight bytes of the guest's memory, without any references.
        let read = unsafe {
            let zero = libc::open(c"/dev/zero".as_ptr(), libc::O_RDONLY);
            let read = libc::read(zero, host.cast(), 8);
            libc::close(zero);
            read
        };
        assert_eq!(read, 8, "{mode}");
        assert_eq!(claim.data().take(), (0, 1), "{mode}");
        // A long hold: blocks that compare themselves may still be made from the page.
        assert!(guest.translate(2).is_self_checking(), "{mode}");
        drop(held);
        assert!(guest.translate(2).is_self_checking(), "{mode}");
        let calls = guest.stats().protection_calls;
        drop(guest.tracker.prepare_kernel_write(guest.addr(2, 0), 8).unwrap());
        assert_eq!(guest.stats().protection_calls, calls, "{mode}: a self-checking page is writable already");

        // A write over the code of a protected page.
        let claim = guest.translate(3);
        drop(guest.tracker.prepare_kernel_write(guest.addr(3, 60), 8).unwrap());
        assert_eq!(claim.data().take(), if tracked { (0, 0) } else { (1, 0) }, "{mode}");
    }
}

#[test]
fn a_held_page_is_self_checking_where_the_policy_has_self_checking_pages() {
    for mode in modes_that(|mode| mode == Mode::Sigbus || mode == Mode::Mprotect) {
        let guest = Guest::new(mode, Adaptive::with_checks());
        let held = guest.tracker.prepare_kernel_write(guest.addr(0, 0), 1).unwrap();
        assert!(guest.translate(0).is_self_checking(), "{mode}");
        drop(held);
        let held = guest.tracker.prepare_kernel_write(guest.addr(0, 0), 1).unwrap();
        let change = guest.tracker.change_mapping(guest.addr(0, 0), 1).unwrap();
        assert_eq!(guest.tracker.pages_by_state().self_checking, 0, "{mode}: a change of the mapping ends it");
        // One of the two pages is new to the translator.
        for page in [0, 1] {
            let busy = guest.tracker.begin(guest.addr(page, 0)).map(|claim| claim.is_self_checking());
            let expected = if page == 0 { Err(BeginError::Busy(Busy::Unprotecting)) } else { Ok(false) };
            assert_eq!(busy, expected, "{mode}: nothing is made of a page whose mapping changes");
        }
        drop(held);
        assert!(guest.tracker.begin(guest.addr(0, 0)).is_err(), "{mode}: the change is not over");
        drop(change);
        assert!(guest.tracker.begin(guest.addr(0, 0)).is_ok(), "{mode}");
    }
}

/// A JIT appends code to its pages, one after the other, and runs the code that it made before.
#[test]
fn code_that_is_appended_page_by_page_ends_nothing() {
    for mode in modes_that(names_the_byte) {
        let guest = Guest::new(mode, Adaptive::with_checks());
        let claims: Vec<_> = (0..20).map(|page| guest.translate(page)).collect();
        for (page, claim) in claims.iter().enumerate() {
            guest.store(page, 2048);
            assert_eq!(claim.data().take(), (0, 1), "{mode}: page {page}");
        }
        assert_eq!(guest.stats().opened_ahead, 0, "{mode}");
    }
}

#[test]
fn pages_without_code_leave_the_batches() {
    for mode in modes_that(Mode::is_synchronous) {
        let guest = Guest::new(mode, Adaptive::new());
        (0..PAGES).for_each(|page| drop(guest.translate(page)));
        (0..PAGES).for_each(|page| guest.store(page, 0));
        // From now on all pages but the first are the guest's data.
        let protects = |claim: PageClaim<Told>| (drop(claim), guest.stats().protects).1;
        let before = guest.stats().protects;
        let first = protects(guest.translate(0));
        // In thread mode the last un-protect may not be over.
        assert!(first - before > 100, "{mode}: {} pages", first - before);
        (0..PAGES).for_each(|page| guest.store(page, 0));
        assert_eq!(protects(guest.translate(0)) - first, 1, "{mode}");
    }
}

#[test]
fn a_range_of_no_bytes_holds_nothing() {
    for mode in modes_that(|_| true) {
        let guest = Guest::new(mode, Adaptive::with_checks());
        let claim = guest.translate(3);
        let tracker = &guest.tracker;
        for at in [guest.addr(3, 0), guest.addr(3, 100), GuestAddr(u64::MAX)] {
            drop(tracker.prepare_kernel_write(at, 0).unwrap());
            drop(tracker.prepare_unseen_write(at, 0).unwrap());
            drop(tracker.change_mapping(at, 0).unwrap());
            tracker.invalidate(at, 0).unwrap();
        }
        assert!(claim.is_current(), "{mode}");
        assert_eq!(claim.data().take(), (0, 0), "{mode}");
    }
}

#[test]
fn a_page_that_an_announcement_made_self_checking_is_none_of_the_harvest() {
    for mode in modes_that(|mode| mode == Mode::Deferred) {
        let guest = Guest::new(mode, Adaptive::with_checks());
        let claim = guest.translate(3);
        let held = guest.tracker.prepare_unseen_write(guest.addr(3, 2048), 8).unwrap();
        assert_eq!(claim.data().take(), (0, 1), "{mode}");
        let checked = guest.translate(3);
        assert!(checked.is_self_checking(), "{mode}");
        guest.store(3, 2048);
        assert_eq!(claim.data().written.load(Ordering::Relaxed), 0, "{mode}: nothing dies");
        guest.store(3, 2048);
        assert!(checked.is_current(), "{mode}");
        assert_eq!(guest.stats().pages_scanned, 1, "{mode}: it left the harvest's pages");
        drop(held);
    }
}

#[test]
fn the_plain_policy_takes_a_fault_for_each_page() {
    for mode in modes_that(Mode::is_synchronous) {
        let guest = Guest::new(mode, Plain);
        for _ in 0..20 {
            (0..4).for_each(|page| drop(guest.translate(page)));
            (0..4).for_each(|page| guest.store(page, 0));
        }
        assert_eq!(guest.stats().faults, 80, "{mode}");
        assert_eq!(guest.stats().protects, 80, "{mode}");
    }
}
