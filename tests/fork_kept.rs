//! A fork's child of a tracker keeps the translations of its parent, and hears of each store to them. It is
//! told of those that it cannot keep.
//!
//! # Safety
//!
//! Memory outlives its tracker. A child makes no call that needs a lock of the standard library, and closes
//! descriptors that are the tracker's, which is the tested case.
#![allow(unsafe_code)]

#[path = "support/child.rs"]
mod child;
#[path = "support/facilities.rs"]
mod facilities;
#[path = "support/limit.rs"]
mod limit;
#[path = "support/modes.rs"]
mod modes;

use std::os::fd::RawFd;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use codewarden::addr::{GuestAddr, PageSize};
use codewarden::guest_memory::{BackingId, GuestMemory};
use codewarden::protection::{Facility, Mode};
use codewarden::tracker::{
    BeginError, Cause, PageClaim, PageObserver, PageWrite, RegionOptions, SharedMemory, Tracker,
};

use child::{Ended, in_child};
use facilities::has_or_skips;
use modes::tracking_modes;

const PAGES: usize = 8;

/// One test at a time forks.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Counts the reports of each of the first pages, by the cause.
#[derive(Default)]
struct Told {
    lost: [AtomicU64; PAGES],
    others: [AtomicU64; PAGES],
}

struct Observer(Arc<Told>);

// SAFETY: atomics alone.
unsafe impl PageObserver for Observer {
    type Data = ();

    fn written(&self, (): &(), write: &PageWrite) {
        let of = if write.cause == Cause::Lost { &self.0.lost } else { &self.0.others };
        of[(write.page.0 / page_bytes() as u64) as usize].fetch_add(1, SeqCst);
    }
}

impl Told {
    /// The pages with a report since the last call: of a loss, and of a write.
    fn take(&self) -> [Vec<usize>; 2] {
        let pages = |of: &[AtomicU64; PAGES]| (0..PAGES).filter(|&page| of[page].swap(0, SeqCst) != 0).collect();
        [pages(&self.lost), pages(&self.others)]
    }
}

fn page_bytes() -> usize {
    PageSize::host().bytes()
}

fn at(page: usize) -> GuestAddr {
    GuestAddr((page * page_bytes()) as u64)
}

struct Guest {
    tracker: Tracker<()>,
    memory: GuestMemory,
    told: Arc<Told>,
}

impl Guest {
    fn new(mode: Mode) -> Self {
        Self::on(mode, GuestMemory::anonymous(PAGES * page_bytes()).unwrap())
    }

    fn on(mode: Mode, memory: GuestMemory) -> Self {
        let told = Arc::new(Told::default());
        let tracker = Tracker::new(Arc::new(Observer(told.clone())));
        // SAFETY: dropped behind the tracker, or never, if the test fails.
        unsafe { tracker.add_region(RegionOptions::new(GuestAddr(0), memory.range(), mode)) }.unwrap();
        Self { tracker, memory, told }
    }

    fn claim(&self, page: usize) -> PageClaim<()> {
        let claim = loop {
            match self.tracker.begin(at(page)) {
                Ok(claim) => break claim,
                Err(error) => assert!(matches!(error, BeginError::Busy(_)), "{error}"),
            }
        };
        claim.add_code(0..page_bytes());
        claim
    }

    fn claims(&self) -> Vec<PageClaim<()>> {
        (0..PAGES).map(|page| self.claim(page)).collect()
    }

    /// Stores to the page, and waits until the observer was told.
    fn store(&self, page: usize) {
        self.memory.write(page * page_bytes(), &[1]).unwrap();
        self.tracker.sync().unwrap();
    }

    /// Whether a store to each of the pages is told of, and ends its claim.
    fn hears_of(&self, claims: &[PageClaim<()>], pages: &[usize]) -> bool {
        // No stream of stores, ahead of which pages are opened.
        const ORDER: [usize; PAGES] = [4, 1, 6, 3, 0, 7, 2, 5];
        self.told.take();
        ORDER.iter().filter(|page| pages.contains(page)).all(|&page| {
            self.store(page);
            self.told.take() == [vec![], vec![page]] && !claims[page].is_current()
        })
    }
}

fn current(claims: &[PageClaim<()>]) -> Vec<usize> {
    (0..claims.len()).filter(|&page| claims[page].is_current()).collect()
}

const ALL: [usize; PAGES] = [0, 1, 2, 3, 4, 5, 6, 7];

/// Each check of a child has a number, which it returns if the check fails.
macro_rules! check {
    ($number:expr, $holds:expr) => {
        if !$holds {
            return $number;
        }
    };
}

/// E3, also in a child of a child: a page that one of them has written is its own affair.
#[test]
fn a_child_hears_of_each_store_to_what_it_keeps() {
    let _alone = alone();
    for mode in tracking_modes() {
        let guest = Guest::new(mode);
        let claims = guest.claims();
        let kept = if mode == Mode::Deferred { vec![] } else { ALL.to_vec() };
        let guard = guest.tracker.before_fork();
        let ended = in_child(|| {
            check!(1, guard.after_fork_child().is_ok());
            let lost = if mode == Mode::Deferred { ALL.to_vec() } else { vec![] };
            check!(2, guest.told.take() == [lost, vec![]] && current(&claims) == kept);
            let claims = guest.claims();
            check!(3, guest.hears_of(&claims, &[0, 5]));
            let guard = guest.tracker.before_fork();
            let ended = in_child(|| {
                check!(4, guard.after_fork_child().is_ok());
                let kept = if mode == Mode::Deferred { vec![] } else { vec![1, 2, 3, 4, 6, 7] };
                check!(5, current(&claims) == kept);
                let claims = guest.claims();
                check!(6, guest.hears_of(&claims, &[2, 4, 7]));
                check!(8, guest.tracker.remove_region(GuestAddr(0)).is_ok());
                0
            });
            assert_eq!(ended, Ended::Returned(0));
            check!(7, guest.hears_of(&claims, &[2, 4, 7]));
            0
        });
        assert_eq!(ended, Ended::Returned(0), "{mode}");
        assert_eq!(current(&claims), ALL, "{mode}: in the parent");
        assert!(guest.hears_of(&claims, &ALL), "{mode}: in the parent");
    }
}

/// A page of the parent's that was written is not current in the child, and is not protected.
#[test]
fn a_child_keeps_only_what_its_parent_had() {
    let _alone = alone();
    for mode in tracking_modes() {
        let guest = Guest::new(mode);
        let claims = guest.claims();
        guest.store(2);
        guest.told.take();
        let guard = guest.tracker.before_fork();
        let ended = in_child(|| {
            check!(1, guard.after_fork_child().is_ok() && !claims[2].is_current());
            guest.told.take();
            guest.store(2);
            check!(2, guest.told.take() == [vec![], vec![]]);
            check!(3, guest.hears_of(&guest.claims(), &[2]));
            0
        });
        assert_eq!(ended, Ended::Returned(0), "{mode}");
    }
}

/// The parent goes on with shared memory, and may write it before the child looks.
#[test]
fn a_child_does_not_keep_memory_that_it_shares_with_its_parent() {
    let _alone = alone();
    for mode in tracking_modes() {
        let Ok(memory) = GuestMemory::memfd(PAGES * page_bytes()) else { continue };
        if !has_or_skips(mode, Facility::WpShmem) {
            continue;
        }
        let guest = Guest::on(mode, memory);
        let shared = SharedMemory { backing: BackingId::numbered(1), offset: 0 };
        guest.tracker.declare_shared(at(2), 3 * page_bytes() as u64, shared).unwrap();
        let claims = guest.claims();
        let guard = guest.tracker.before_fork();
        let ended = in_child(|| {
            check!(1, guard.after_fork_child().is_ok());
            let [lost, written] = guest.told.take();
            let kept = if mode == Mode::Deferred { vec![] } else { vec![0, 1, 5, 6, 7] };
            check!(2, [2, 3, 4].iter().all(|page| lost.contains(page)) && written.is_empty());
            check!(3, current(&claims) == kept);
            check!(4, guest.hears_of(&guest.claims(), &ALL));
            0
        });
        assert_eq!(ended, Ended::Returned(0), "{mode}");
        assert_eq!(current(&claims), ALL, "{mode}: in the parent");
    }
}

/// A mapping that the child did not inherit. The other region keeps its translations.
#[test]
fn a_child_does_not_keep_what_it_did_not_inherit() {
    let _alone = alone();
    for mode in tracking_modes().into_iter().filter(|&mode| mode != Mode::Mprotect) {
        let half = PAGES / 2 * page_bytes();
        let missing = GuestMemory::anonymous(half).unwrap();
        let guest = Guest::on(mode, GuestMemory::anonymous(half).unwrap());
        // SAFETY: the memory outlives the region.
        unsafe { guest.tracker.add_region(RegionOptions::new(at(PAGES / 2), missing.range(), mode)) }.unwrap();
        let claims = guest.claims();
        let start = missing.range().start().as_ptr();
        // SAFETY: guest memory, which this test does not use in its child.
        assert_eq!(unsafe { libc::madvise(start.cast(), half, libc::MADV_DONTFORK) }, 0);
        let guard = guest.tracker.before_fork();
        let ended = in_child(|| {
            check!(1, guard.after_fork_child().is_err());
            let lost = if mode == Mode::Deferred { ALL.to_vec() } else { vec![4, 5, 6, 7] };
            check!(2, guest.told.take() == [lost, vec![]]);
            check!(
                3,
                ALL[4..].iter().all(|&page| matches!(guest.tracker.begin(at(page)), Err(BeginError::Untrackable)))
            );
            check!(4, current(&claims) == if mode == Mode::Deferred { vec![] } else { vec![0, 1, 2, 3] });
            let claims: Vec<_> = (0..4).map(|page| guest.claim(page)).collect();
            check!(5, guest.hears_of(&claims, &[0, 1, 2, 3]));
            0
        });
        assert_eq!(ended, Ended::Returned(0), "{mode}");
        assert_eq!(current(&claims), ALL, "{mode}: in the parent");
        guest.tracker.remove_region(at(PAGES / 2)).unwrap();
    }
}

fn close(numbers: Vec<RawFd>) {
    for number in numbers {
        // SAFETY: the tested case.
        assert_eq!(unsafe { libc::close(number) }, 0);
    }
}

/// The parent has lost its descriptors, does not know it yet, and has written since.
#[test]
fn a_child_keeps_nothing_that_its_parent_had_lost() {
    let _alone = alone();
    for mode in tracking_modes().into_iter().filter(|&mode| mode != Mode::Mprotect && mode != Mode::Deferred) {
        let guest = Guest::new(mode);
        let claims = guest.claims();
        let ended = in_child(|| {
            // A process of its own: this one's descriptors stay.
            let guest = Guest::new(mode);
            let claims = guest.claims();
            close(guest.tracker.descriptors());
            guest.memory.write(0, &[1]).unwrap();
            let guard = guest.tracker.before_fork();
            let ended = in_child(|| {
                check!(1, guard.after_fork_child().is_ok());
                check!(2, guest.told.take()[0] == ALL && current(&claims).is_empty());
                check!(3, guest.hears_of(&guest.claims(), &ALL));
                0
            });
            if ended == Ended::Returned(0) { 0 } else { 4 }
        });
        assert_eq!(ended, Ended::Returned(0), "{mode}");
        assert!(guest.hears_of(&claims, &ALL), "{mode}");
    }
}

/// The child gets no descriptor: it has lost everything, and says so.
#[test]
fn a_child_that_gets_no_descriptor_keeps_nothing() {
    let _alone = alone();
    for mode in tracking_modes().into_iter().filter(|&mode| mode != Mode::Mprotect) {
        let guest = Guest::new(mode);
        let claims = guest.claims();
        let guard = guest.tracker.before_fork();
        let ended = in_child(|| {
            let none = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
            // SAFETY: changes a limit of this process.
            check!(1, unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &none) } == 0);
            check!(2, guard.after_fork_child().is_err());
            check!(3, guest.told.take()[0] == ALL && current(&claims).is_empty());
            check!(4, matches!(guest.tracker.begin(at(1)), Err(BeginError::Failed(_))));
            guest.memory.write(0, &[1]).unwrap();
            check!(5, guest.tracker.descriptors().is_empty());
            let _ = guest.tracker.remove_region(GuestAddr(0));
            0
        });
        assert_eq!(ended, Ended::Returned(0), "{mode}");
        assert_eq!(current(&claims), ALL, "{mode}: in the parent");
        assert!(guest.hears_of(&claims, &ALL), "{mode}: in the parent");
    }
}
