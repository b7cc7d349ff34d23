//! Data writes to pages with blocks that have a self-checking entry, in every mode on the real
//! kernel, under the policy that makes pages self-checking.
//!
//! # Safety
//!
//! Each region's memory outlives its cache.
#![allow(unsafe_code)]

#[path = "support/alarm.rs"]
mod alarm;
#[path = "support/facilities.rs"]
mod facilities;
#[path = "support/limit.rs"]
mod limit;

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Barrier};

use codewarden::addr::{GuestAddr, PageSize};
use codewarden::guest_memory::GuestMemory;
use codewarden::policy::{Adaptive, Decision, Limits, PageHistory, Policy};
use codewarden::protection::{Facility, Mode, Probe};
use codewarden::tracker::{BeginError, RegionOptions, SharedMemory};
use codewarden::{CodeCache, CommitError, Entry, EntryStubs, Key, StaleFlag, Ticket};

use facilities::has_or_skips;

const PAGES: usize = 16;
const PLAIN: usize = 0x1000;
const CHECKED: usize = 0x1001;
/// A block with both entries.
const BOTH: Entry = Entry::with_check(PLAIN, CHECKED);
const KEY: u64 = 7;

struct Guest {
    cache: CodeCache<u32>,
    /// Dropped after the cache.
    memory: GuestMemory,
    page: u64,
}

fn add_region(cache: &CodeCache<u32>, guest: u64, memory: &GuestMemory, mode: Mode) {
    let options = RegionOptions::new(GuestAddr(guest), memory.range(), mode);
    // SAFETY: each caller drops the cache before the memory.
    unsafe { cache.tracker().add_region(options) }.unwrap();
}

impl Guest {
    fn new(mode: Mode) -> Self {
        Self::with_policy(mode, Arc::new(Adaptive::with_checks()))
    }

    fn with_policy(mode: Mode, policy: Arc<dyn Policy>) -> Self {
        let page = PageSize::host().bytes();
        let on_memfd = has_or_skips(mode, Facility::WpShmem);
        let memory =
            if on_memfd { GuestMemory::memfd(PAGES * page) } else { GuestMemory::anonymous(PAGES * page) }.unwrap();
        let cache = CodeCache::with_policy(EntryStubs::NOT_CODE, policy).unwrap();
        add_region(&cache, 0, &memory, mode);
        Self { cache, memory, page: page as u64 }
    }

    /// A ticket over 8 bytes from `start`, which are declared if `said`.
    fn ticket(&self, key: u64, start: u64, said: bool) -> Ticket<u32> {
        let mut ticket = self.cache.begin(Key::new(key));
        for at in [start, start + 7] {
            while let Err(error) = ticket.claim(GuestAddr(at)) {
                assert!(matches!(error, BeginError::Busy(_)), "{error}");
            }
        }
        let mut bytes = [0; 8];
        self.memory.read(start as usize, &mut bytes).unwrap();
        if said {
            ticket.add_source(GuestAddr(start), &bytes).unwrap();
        }
        ticket
    }

    /// Commits a block over 8 bytes from `start`. Returns its stale flag.
    fn block(&self, key: u64, start: u64, entry: Entry) -> *const AtomicU8 {
        let mut ticket = self.ticket(key, start, true);
        let flag = ticket.stale_flag();
        ticket.commit(entry, 0).unwrap();
        flag.cast()
    }

    fn store(&self, at: u64, value: u8) {
        self.memory.write(at as usize, &[value]).unwrap();
    }

    fn lookup(&self, key: u64) -> Option<usize> {
        self.cache.attach_vcpu().pin().lookup(Key::new(key))
    }
}

/// The stale flag of a live or retained block.
fn flag(flag: *const AtomicU8) -> u8 {
    // SAFETY: the payload was not dropped.
    unsafe { &*flag }.load(Ordering::Relaxed)
}

/// Every synchronous mode that is available here: in a deferred region stores are not learned of
/// one by one.
fn synchronous_modes() -> impl Iterator<Item = Mode> {
    let probe = Probe::of_this_process();
    Mode::ALL.into_iter().filter(|&mode| mode != Mode::None && mode.is_synchronous()).filter(move |&mode| {
        probe
            .check(mode)
            .inspect_err(|error| {
                assert!(std::env::var_os("CODEWARDEN_REQUIRE_ALL").is_none(), "{error}");
                println!("skipped: {error}");
            })
            .is_ok()
    })
}

fn names_the_byte(mode: &Mode) -> bool {
    has_or_skips(*mode, Facility::ExactAddress)
}

#[test]
fn a_data_write_leaves_a_block_its_self_checking_entry() {
    for mode in synchronous_modes().filter(names_the_byte) {
        let guest = Guest::new(mode);
        let page = 3 * guest.page;
        let stale = guest.block(KEY, page, BOTH);
        let other = guest.block(KEY + 1, page + 64, BOTH);
        let plain = guest.block(KEY + 2, page + 128, Entry::plain(0x2000));
        assert_eq!((guest.lookup(KEY), flag(stale)), (Some(PLAIN), StaleFlag::VALID), "{mode}");
        guest.store(page + guest.page / 2, 1);
        assert_eq!((guest.lookup(KEY), flag(stale)), (Some(CHECKED), StaleFlag::CHECKED), "{mode}");
        assert_eq!((guest.lookup(KEY + 1), flag(other)), (Some(CHECKED), StaleFlag::CHECKED), "{mode}");
        assert_eq!((guest.lookup(KEY + 2), flag(plain)), (None, StaleFlag::DEAD), "{mode}: it cannot compare");
        // Stores cost nothing now; the entry compares.
        guest.store(page, 1);
        assert_eq!(guest.lookup(KEY), Some(CHECKED), "{mode}");
        guest.cache.remove(Key::new(KEY));
        assert_eq!((guest.lookup(KEY), flag(stale)), (None, StaleFlag::DEAD), "{mode}");
        let stats = guest.cache.stats();
        assert_eq!((stats.downgraded, stats.invalidated, stats.removed), (2, 1, 1), "{mode}");
        assert_eq!(stats.faults, 1, "{mode}");
    }
}

#[test]
fn a_store_to_a_block_kills_all_on_its_page() {
    for mode in synchronous_modes() {
        let guest = Guest::new(mode);
        let page = 3 * guest.page;
        let stale = guest.block(KEY, page, BOTH);
        guest.block(KEY + 1, page + 1024, BOTH);
        guest.store(page + 7, 1);
        assert_eq!((guest.lookup(KEY), flag(stale)), (None, StaleFlag::DEAD), "{mode}");
        assert_eq!(guest.lookup(KEY + 1), None, "{mode}: nobody knows how far the store goes");
    }
}

#[test]
fn without_a_source_every_byte_of_the_page_counts() {
    for mode in synchronous_modes() {
        let guest = Guest::new(mode);
        guest.block(KEY + 1, 0, BOTH);
        guest.ticket(KEY, 0, false).commit(BOTH, 0).unwrap();
        guest.store(guest.page - 1, 1);
        assert_eq!((guest.lookup(KEY), guest.lookup(KEY + 1)), (None, None), "{mode}");
    }
}

#[test]
fn a_block_on_a_self_checking_page_needs_a_self_checking_entry() {
    for mode in synchronous_modes().filter(names_the_byte) {
        let guest = Guest::new(mode);
        guest.block(KEY, 0, BOTH);
        guest.store(1024, 1);
        let ticket = guest.ticket(KEY + 1, 64, true);
        assert!(ticket.needs_check(), "{mode}");
        assert_eq!(ticket.commit(PLAIN, 0), Err(CommitError::NeedsCheck), "{mode}");
        let stale = guest.block(KEY + 1, 64, BOTH);
        assert_eq!((guest.lookup(KEY + 1), flag(stale)), (Some(CHECKED), StaleFlag::CHECKED), "{mode}");
        assert!(!guest.ticket(KEY, guest.page, true).needs_check(), "{mode}");
    }
}

#[test]
fn a_block_over_two_pages_is_self_checking_of_either_and_dies_of_either() {
    for mode in synchronous_modes().filter(names_the_byte) {
        for written in [0, 1] {
            let guest = Guest::new(mode);
            let start = 2 * guest.page - 4;
            let stale = guest.block(KEY, start, BOTH);
            guest.store((1 + written) * guest.page + 1024, 1);
            assert_eq!((guest.lookup(KEY), flag(stale)), (Some(CHECKED), StaleFlag::CHECKED), "{mode}");
            // The other page is still protected.
            let hit = if written == 0 { start + 7 } else { start };
            guest.store(hit, 1);
            assert_eq!((guest.lookup(KEY), flag(stale)), (None, StaleFlag::DEAD), "{mode}");
        }
    }
}

#[test]
fn a_block_is_used_again_by_its_self_checking_entry() {
    for mode in synchronous_modes().filter(names_the_byte) {
        let guest = Guest::new(mode);
        let stale = guest.block(KEY, 0, BOTH);
        guest.cache.remove(Key::new(KEY));
        guest.block(KEY + 1, 64, BOTH);
        guest.store(1024, 1);
        assert!(guest.ticket(KEY, 0, true).revive().unwrap().is_none(), "{mode}");
        assert_eq!((guest.lookup(KEY), flag(stale)), (Some(CHECKED), StaleFlag::CHECKED), "{mode}");

        // Not the next page: there the stores would look like a stream.
        let far = 5 * guest.page;
        guest.block(KEY + 2, far, Entry::plain(0x2000));
        guest.block(KEY + 3, far, BOTH);
        guest.store(far + 1024, 1);
        let ticket = guest.ticket(KEY + 2, far, true).revive().unwrap();
        assert!(ticket.is_some_and(|ticket| ticket.needs_check()), "{mode}: it has no self-checking entry");
    }
}

/// A store to the block's bytes through another view is not reported on a self-checking page. The
/// block's self-checking entry and the rule for stores cover it.
#[test]
fn a_block_with_shared_bytes_leaves_after_any_store() {
    let modes = synchronous_modes().filter(names_the_byte);
    for mode in modes.filter(|&mode| has_or_skips(mode, Facility::WpShmem)) {
        let guest = Guest::new(mode);
        let other = guest.memory.another_view().unwrap();
        let there = 0x100_0000;
        add_region(&guest.cache, there, &other, mode);
        for (start, memory) in [(0, &guest.memory), (there, &other)] {
            let shared = SharedMemory { backing: memory.backing_id().unwrap(), offset: 0 };
            guest.cache.tracker().declare_shared(GuestAddr(start), PAGES as u64 * guest.page, shared).unwrap();
        }
        let stale = guest.block(KEY, 0, BOTH);
        // A data write, through the other view: its lines are the same there.
        other.write(1024, &[1]).unwrap();
        assert_eq!((guest.lookup(KEY), flag(stale)), (Some(CHECKED), StaleFlag::CHECKED_SHARED), "{mode}");
        other.write(2048, &[1]).unwrap();
        assert_eq!(guest.lookup(KEY), Some(CHECKED), "{mode}");
        guest.store(7, 1);
        assert_eq!((guest.lookup(KEY), flag(stale)), (None, StaleFlag::DEAD), "{mode}: this view is protected still");
        let Guest { cache, memory, .. } = guest;
        drop((cache, memory, other));
    }
}

/// Makes a page self-checking that a harvest found written, after another thread has passed between
/// its two waits.
#[derive(Debug)]
struct ChecksLate(Barrier);

impl Policy for ChecksLate {
    fn on_begin(&self, _: &PageHistory) -> Decision {
        Decision::Protect
    }

    fn on_harvest(&self, _: &PageHistory) -> bool {
        self.0.wait();
        self.0.wait();
        true
    }

    fn has_cooled(&self, _: &PageHistory) -> bool {
        false
    }

    fn limits(&self) -> Limits {
        Limits::default().with_checks_on_data_write(true)
    }
}

/// Lets the policy go on, even after a panic.
struct GoesOn<'a>(&'a Barrier);

impl Drop for GoesOn<'_> {
    fn drop(&mut self) {
        self.0.wait();
    }
}

/// The page is protected between the harvest and the policy's answer. After the answer no
/// harvest asks about it, so a plain entry would stay for ever.
#[test]
fn a_block_that_comes_before_the_policy_s_answer_compares_itself() {
    if let Err(error) = Probe::of_this_process().check(Mode::Deferred) {
        assert!(std::env::var_os("CODEWARDEN_REQUIRE_ALL").is_none(), "{error}");
        println!("skipped: {error}");
        return;
    }
    let _alarm = alarm::Alarm::while_waiting_for("a policy that is asked by a sync");
    for (entry, left) in [(BOTH, Some(CHECKED)), (Entry::plain(PLAIN), None)] {
        let policy = Arc::new(ChecksLate(Barrier::new(2)));
        let guest = Guest::with_policy(Mode::Deferred, policy.clone());
        guest.block(KEY, 0, BOTH);
        guest.store(0, 1);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                policy.0.wait();
                let _goes_on = GoesOn(&policy.0);
                assert_eq!(guest.lookup(KEY), None, "the policy is asked when all is told");
                guest.block(KEY, 0, entry);
                assert_eq!(guest.lookup(KEY), Some(PLAIN));
            });
            guest.cache.tracker().sync().unwrap();
        });
        assert_eq!(guest.lookup(KEY), left);
        guest.store(0, 2);
        guest.cache.tracker().sync().unwrap();
        assert_eq!(guest.lookup(KEY), left);
    }
}
