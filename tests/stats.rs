//! The counts agree with the operations and with each other, in every mode on the real kernel.
//! No time is asserted, only that it was measured.
//!
//! # Safety
//!
//! The memory outlives its tracker; the observer does nothing.
#![allow(unsafe_code)]

#[path = "support/facilities.rs"]
mod facilities;

use std::sync::Arc;
use std::thread::yield_now;

use codewarden::addr::{GuestAddr, PageSize};
use codewarden::guest_memory::GuestMemory;
use codewarden::policy::Plain;
use codewarden::protection::{Facility, Mode, Probe};
use codewarden::tracker::{BeginError, PageObserver, PageWrite, RegionOptions, Tracker};
use codewarden::{Histogram, Histograms, Stats};

use facilities::has_or_skips;

const PAGES: usize = 64;

struct NoObserver;

// SAFETY: it does nothing.
unsafe impl PageObserver for NoObserver {
    type Data = ();

    fn written(&self, (): &(), _: &PageWrite) {}
}

struct Guest {
    tracker: Tracker<()>,
    memory: GuestMemory,
    page: usize,
}

impl Guest {
    /// Under a policy that opens and protects page by page, so the operations are known.
    fn new(mode: Mode) -> Self {
        let page = PageSize::host().bytes();
        let memory = GuestMemory::anonymous(PAGES * page).unwrap();
        let tracker = Tracker::with_policy(Arc::new(NoObserver), Arc::new(Plain));
        let options = RegionOptions::new(GuestAddr(0), memory.range(), mode);
        // SAFETY: fields are dropped in order: the tracker before the memory.
        unsafe { tracker.add_region(options) }.unwrap();
        Self { tracker, memory, page }
    }

    /// Claims the page and marks its first 64 bytes as code.
    fn translate(&self, page: usize) {
        loop {
            match self.tracker.begin(GuestAddr((page * self.page) as u64)) {
                Ok(claim) => return claim.add_code(0..64),
                // In thread mode the store may go on before the handler is done.
                Err(BeginError::Busy(_)) => yield_now(),
                Err(error) => panic!("{error}"),
            }
        }
    }

    fn store(&self, page: usize, byte: usize) {
        self.memory.write(page * self.page + byte, &[1]).unwrap();
    }

    /// Counters and histograms once `faults` handlers, of which the first is timed, have come to
    /// their end.
    fn told(&self, faults: u64) -> (Stats, Histograms) {
        loop {
            let (stats, histograms) = (self.tracker.stats(), self.tracker.histograms());
            if stats.faults == faults && (faults == 0) == (histograms.fault_ns.count() == 0) {
                return (stats, histograms);
            }
            yield_now();
        }
    }
}

fn can_be_had(mode: Mode) -> bool {
    let check = Probe::of_this_process().check(mode);
    if let Err(error) = &check {
        assert!(std::env::var_os("CODEWARDEN_REQUIRE_ALL").is_none(), "{error}");
        println!("skipped: {error}");
    }
    check.is_ok()
}

fn count_and_sum(histogram: &Histogram) -> (u64, u64) {
    (histogram.count(), histogram.sum())
}

/// As `guide::statistics` and [`Histograms::fault_ns`] say.
#[test]
fn one_fault_of_16_is_timed() {
    for mode in Mode::ALL.into_iter().filter(|&mode| mode.is_synchronous() && can_be_had(mode)) {
        let guest = Guest::new(mode);
        (0..40).for_each(|page| {
            guest.translate(page);
            guest.store(page, 8);
        });
        // The last timed fault is the 33rd.
        assert_eq!(guest.told(40).1.fault_ns.count(), 3, "{mode}");
    }
}

#[test]
fn faults_are_counted_by_kind_and_timed() {
    let modes = Mode::ALL.into_iter().filter(|&mode| mode.is_synchronous() && can_be_had(mode));
    for mode in modes.filter(|&mode| has_or_skips(mode, Facility::ExactAddress)) {
        let guest = Guest::new(mode);
        (0..PAGES).for_each(|page| guest.translate(page));
        (0..5).for_each(|page| guest.store(page, 8));
        (10..13).for_each(|page| guest.store(page, 2048));
        let (stats, histograms) = guest.told(8);
        assert_eq!((stats.faults, stats.faults_code, stats.faults_data), (8, 5, 3), "{mode}");
        assert_eq!(stats.faults_by_thread, if mode == Mode::Thread { 8 } else { 0 }, "{mode}");
        assert_eq!(count_and_sum(&histograms.fault_opened_pages), (8, 8), "{mode}");
        assert_eq!(count_and_sum(&histograms.protect_pages), (PAGES as u64, PAGES as u64), "{mode}");
        assert_eq!(stats.protection_calls, PAGES as u64 + 8, "{mode}");
        assert!(histograms.fault_ns.max() > 0 && histograms.fault_ns.sum() >= histograms.fault_ns.max(), "{mode}");
        assert_eq!((stats.harvests, histograms.sync_ns.count()), (0, 0), "{mode}: there is nothing to harvest");
        let states = guest.tracker.pages_by_state();
        assert_eq!((states.open, states.protected, states.self_checking), (8, PAGES as u64 - 8, 0), "{mode}");
        let hot = guest.tracker.hottest_pages(PAGES);
        let by_kind = |kind: fn(&codewarden::tracker::HotPage) -> u32| hot.iter().map(kind).sum::<u32>();
        assert_eq!((by_kind(|page| page.code_hits), by_kind(|page| page.data_hits)), (5, 3), "{mode}");
    }
}

#[test]
fn announced_kernel_writes_and_changed_mappings_are_distinguished() {
    for mode in [Mode::Sigbus, Mode::Mprotect].into_iter().filter(|&mode| can_be_had(mode)) {
        let guest = Guest::new(mode);
        (0..10).for_each(|page| guest.translate(page));
        let page = guest.page as u64;
        drop(guest.tracker.prepare_kernel_write(GuestAddr(0), 4 * page).unwrap());
        drop(guest.tracker.change_mapping(GuestAddr(4 * page), 3 * page).unwrap());
        let (stats, _) = guest.told(0);
        assert_eq!((stats.pages_announced, stats.pages_kernel_written, stats.faults), (7, 4, 0), "{mode}");
    }
}

#[test]
fn harvests_are_counted_with_what_they_asked_about_and_found() {
    if !can_be_had(Mode::Deferred) {
        return;
    }
    let guest = Guest::new(Mode::Deferred);
    // Two runs of neighbours.
    (0..20).chain(40..50).for_each(|page| guest.translate(page));
    [3, 4, 45].into_iter().for_each(|page| guest.store(page, 0));
    guest.tracker.sync().unwrap();
    let (stats, histograms) = guest.told(0);
    assert_eq!((stats.harvests, stats.pages_scanned, stats.pages_harvested, stats.faults), (2, 30, 3, 0));
    assert_eq!(count_and_sum(&histograms.harvest_scanned_pages), (2, 30));
    assert_eq!(count_and_sum(&histograms.harvest_found_pages), (2, 3));
    assert_eq!(histograms.harvest_found_pages.max(), 2);
    assert_eq!(histograms.sync_ns.count(), 1);
    guest.tracker.sync().unwrap();
    let (stats, histograms) = guest.told(0);
    assert_eq!((stats.pages_scanned, stats.pages_harvested, histograms.sync_ns.count()), (60, 3, 2));
}

/// Calls follow the page tables with code and the written pages, and not the runs of pages with code.
#[test]
fn scattered_code_pages_make_few_calls() {
    if !can_be_had(Mode::Deferred) {
        return;
    }
    let guest = Guest::new(Mode::Deferred);
    let harvests = |syncs: usize, store: &dyn Fn()| {
        let before = guest.told(0).0;
        for _ in 0..syncs {
            store();
            guest.tracker.sync().unwrap();
        }
        let after = guest.told(0).0;
        (after.harvests - before.harvests, after.pages_harvested - before.pages_harvested)
    };
    (0..PAGES).for_each(|page| guest.store(page, 0));
    (0..PAGES).step_by(4).for_each(|page| guest.translate(page));
    assert_eq!(harvests(1, &|| ()), (16, 0), "each run alone, while the data pages may be written");
    harvests(20, &|| ());
    assert_eq!(harvests(100, &|| ()), (100, 0));
    assert_eq!(harvests(1, &|| [3, 4, 8, 9].into_iter().for_each(|page| guest.store(page, 0))), (1, 2));
    // Pages between that are written each time cost more than the calls for each run.
    let (calls, found) = harvests(100, &|| (0..PAGES).for_each(|page| guest.store(page, 0)));
    assert_eq!(found, 1_600);
    assert!((1_300..1_600).contains(&calls), "{calls} calls");
    harvests(1_000, &|| ());
    assert_eq!(harvests(100, &|| ()), (100, 0));
}
