//! Litmus tests of the promises of `src/guide/promises.md`: each comment names its promise.
//!
//! Guest memory holds words. A block is made from one word, and its entry contains the value of
//! that word, so a stale block shows.
//!
//! # Safety
//!
//! Stores go to words of the fixture's own memory, which outlives its cache;
//! stale flags are read while the block's payload lives.
#![allow(unsafe_code)]

#[path = "support/alarm.rs"]
mod alarm;
#[path = "support/facilities.rs"]
mod facilities;
#[path = "support/limit.rs"]
mod limit;
#[cfg(target_arch = "x86_64")]
#[path = "promises/look_ahead.rs"]
mod look_ahead;
#[path = "support/modes.rs"]
mod modes;
#[path = "support/region.rs"]
mod region;

use std::hint::spin_loop;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::thread::{scope, yield_now};

use codewarden::addr::GuestAddr;
use codewarden::guest_memory::GuestMemory;
use codewarden::policy::{Adaptive, Decision, Limits, PageHistory, Policy};
use codewarden::protection::{Facility, Mode, Probe};
use codewarden::tracker::{BeginError, RegionOptions, SharedMemory};
use codewarden::{CodeCache, CommitError, Entry, EntryStubs, FrontSlot, Key, MemoryLimit, StaleFlag};

use alarm::Alarm;
use facilities::has_or_skips;
use modes::tracking_modes;
use region::{GUEST, PAGES, page_bytes, region};

/// Rounds of a test that races threads.
const ROUNDS: u32 = 300;

struct Guest {
    cache: CodeCache<Counted>,
    memory: GuestMemory,
    mode: Mode,
    dropped: Arc<AtomicUsize>,
}

/// The payload of a block: counts when it is dropped.
struct Counted(Arc<AtomicUsize>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

/// The plain entry of a block that was made from `value`.
fn plain(value: u32) -> usize {
    0x10 | (value as usize) << 8
}

/// The self-checking one.
fn checked(value: u32) -> usize {
    plain(value) | 1
}

impl Guest {
    fn new(mode: Mode, policy: impl Policy) -> Self {
        Self::on(GuestMemory::anonymous(PAGES * page_bytes()).unwrap(), mode, policy)
    }

    fn on(memory: GuestMemory, mode: Mode, policy: impl Policy) -> Self {
        Self::in_region(region(GUEST, &memory, mode), memory, policy)
    }

    fn in_region(options: RegionOptions, memory: GuestMemory, policy: impl Policy) -> Self {
        let cache = CodeCache::with_policy(EntryStubs::NOT_CODE, Arc::new(policy)).unwrap();
        // SAFETY: fields are dropped in order: the cache before the memory.
        unsafe { cache.tracker().add_region(options) }.unwrap();
        Self { cache, memory, mode: options.mode, dropped: Arc::default() }
    }

    fn word(&self, offset: usize) -> &AtomicU32 {
        // SAFETY: an aligned word of the memory, which lives as long as the guest. All references
        // to it are atomics.
        unsafe { &*self.memory.range().start().as_ptr().add(offset).cast() }
    }

    fn store(&self, offset: usize, value: u32) {
        if cfg!(tsan) {
            // ThreadSanitizer makes an atomic store under a lock of its own: a fault in it
            // would never end.
            self.memory.write(offset, &value.to_le_bytes()).unwrap();
            return;
        }
        self.word(offset).store(value, Ordering::Release);
    }

    fn key(offset: usize) -> Key {
        Key::new(GUEST + offset as u64)
    }

    /// Makes a block of the word at `offset`; returns the value and the stale flag.
    fn translate(&self, offset: usize) -> Result<(u32, *const u8), CommitError> {
        let at = GuestAddr(GUEST + offset as u64);
        loop {
            let mut ticket = self.cache.begin(Self::key(offset));
            match ticket.claim(at) {
                Ok(_) => {}
                Err(BeginError::Busy(_)) => {
                    yield_now();
                    continue;
                }
                Err(error) => panic!("{error}"),
            }
            let value = self.word(offset).load(Ordering::Acquire);
            ticket.add_source(at, &value.to_le_bytes()).unwrap();
            let flag = ticket.stale_flag();
            let entry = Entry::with_check(plain(value), checked(value));
            return ticket.commit(entry, Counted(self.dropped.clone())).map(|()| (value, flag));
        }
    }

    fn lookup(&self, offset: usize) -> Option<usize> {
        self.cache.attach_vcpu().pin().lookup(Self::key(offset))
    }

    fn sync(&self) {
        self.cache.tracker().sync().unwrap();
    }

    /// Whether the kernel's writes need no announcement.
    fn kernel_writes_pass(&self) -> bool {
        match self.mode {
            Mode::Thread => Probe::of_this_process().has(Facility::KernelFaults),
            Mode::Deferred => true,
            _ => false,
        }
    }

    /// The kernel writes a 0 to the word at `offset`.
    fn read_zero(&self, offset: usize) {
        // SAFETY: four bytes of the guest's memory.
        let read = unsafe {
            let zero = libc::open(c"/dev/zero".as_ptr(), libc::O_RDONLY);
            let read = libc::read(zero, self.memory.range().start().as_ptr().add(offset).cast(), 4);
            libc::close(zero);
            read
        };
        assert_eq!(read, 4, "{}", self.mode);
    }
}

/// A guest that has its memory twice, both declared.
struct Shared {
    /// Dropped before the view: it tracks both.
    guest: Guest,
    view: GuestMemory,
}

impl Shared {
    fn new(mode: Mode, policy: impl Policy) -> Self {
        let guest = Guest::on(GuestMemory::memfd(PAGES * page_bytes()).unwrap(), mode, policy);
        let (first, len) = (GuestAddr(GUEST), guest.memory.len() as u64);
        let view = guest.memory.another_view().unwrap();
        let second = GuestAddr(GUEST + 2 * len);
        let tracker = guest.cache.tracker();
        // SAFETY: the view is dropped after the guest.
        unsafe { tracker.add_region(region(second.0, &view, mode)) }.unwrap();
        let memory = SharedMemory { backing: guest.memory.backing_id().unwrap(), offset: 0 };
        tracker.declare_shared(first, len, memory).unwrap();
        tracker.declare_shared(second, len, memory).unwrap();
        Self { guest, view }
    }
}

fn alarm() -> Alarm {
    Alarm::while_waiting_for("another thread's turn, or a page that is not busy")
}

fn synchronous(test: impl Fn(&Guest)) {
    let _alarm = alarm();
    for mode in tracking_modes().into_iter().filter(|mode| mode.is_synchronous()) {
        test(&Guest::new(mode, Adaptive::new()));
    }
}

fn deferred(test: impl Fn(&Guest)) {
    let _alarm = alarm();
    if tracking_modes().contains(&Mode::Deferred) {
        test(&Guest::new(Mode::Deferred, Adaptive::new()));
    }
}

fn every_mode(policy: impl Policy + Copy, test: impl Fn(&Guest)) {
    let _alarm = alarm();
    tracking_modes().into_iter().for_each(|mode| test(&Guest::new(mode, policy)));
}

/// S1.
#[test]
fn a_store_is_seen_by_its_own_thread() {
    synchronous(|guest| {
        for round in 1..ROUNDS {
            guest.translate(64).unwrap();
            guest.store(64, round);
            assert_eq!(guest.lookup(64), None, "{}", guest.mode);
        }
    });
}

/// S2, D1: the other thread runs `told` after it is told and before it looks.
fn a_store_is_found_by_another_thread(guest: &Guest, told: impl Fn() + Sync) {
    let (published, seen) = (AtomicU32::new(0), AtomicU32::new(0));
    scope(|threads| {
        let writer = threads.spawn(|| {
            for round in 1..ROUNDS {
                guest.store(64, round);
                published.store(round, Ordering::Release);
                while seen.load(Ordering::Acquire) != round {
                    // Translations come and go, in some rounds by the other thread alone.
                    if round % 2 == 0 {
                        let _ = guest.translate(64);
                    }
                    yield_now();
                }
            }
        });
        for round in 1..ROUNDS {
            while published.load(Ordering::Acquire) != round {
                let _ = guest.translate(64);
                yield_now();
            }
            told();
            let found = guest.lookup(64);
            assert!(found.is_none_or(|entry| entry == plain(round)), "{}: {found:x?} in {round:x}", guest.mode);
            seen.store(round, Ordering::Release);
        }
        // ThreadSanitizer learns of a join, and not of the end of a scope.
        writer.join().unwrap();
    });
}

/// S2.
#[test]
fn a_store_is_visible_after_its_report() {
    synchronous(|guest| a_store_is_found_by_another_thread(guest, || {}));
}

/// S3.
#[test]
fn a_block_that_stores_to_itself_is_reported() {
    synchronous(|guest| {
        let (_, flag) = guest.translate(64).unwrap();
        let mut vcpu = guest.cache.attach_vcpu();
        let _inside = vcpu.pin();
        // SAFETY: the pin keeps the payload, which keeps the flag.
        assert_eq!(unsafe { flag.read_volatile() }, StaleFlag::VALID);
        guest.store(64, 5);
        // SAFETY: as above.
        assert_eq!(unsafe { flag.read_volatile() }, StaleFlag::DEAD, "{}", guest.mode);
    });
}

/// S4.
#[test]
fn a_commit_never_brings_old_bytes() {
    every_mode(Adaptive::new(), |guest| {
        let at = GuestAddr(GUEST + 64);
        let mut ticket = guest.cache.begin(Guest::key(64));
        ticket.claim(at).unwrap();
        let value = guest.word(64).load(Ordering::Acquire);
        guest.store(64, value + 1);
        guest.sync();
        let committed = ticket.commit(plain(value), Counted(guest.dropped.clone()));
        assert_eq!(committed, Err(CommitError::Written), "{}", guest.mode);
        assert_eq!(guest.lookup(64), None, "{}", guest.mode);
    });
}

/// S5.
#[test]
fn two_stores_at_once_are_both_seen() {
    synchronous(|guest| {
        for round in 1..ROUNDS {
            for offset in [0, 2048] {
                while guest.translate(offset).is_err() {}
            }
            let start = std::sync::Barrier::new(2);
            scope(|threads| {
                for offset in [0, 2048] {
                    let start = &start;
                    threads.spawn(move || {
                        start.wait();
                        guest.store(offset, round);
                        assert_eq!(guest.lookup(offset), None, "{}", guest.mode);
                    });
                }
            });
        }
    });
}

/// S6, D4.
#[test]
fn an_announced_write_by_the_kernel() {
    for (policy, has_checks) in [(Adaptive::new(), false), (Adaptive::with_checks(), true)] {
        every_mode(policy, |guest| {
            // Without the byte's address the block may live on and compare itself.
            if has_checks && !has_or_skips(guest.mode, Facility::ExactAddress) {
                return;
            }
            guest.store(64, 7);
            guest.translate(64).unwrap();
            let tracker = guest.cache.tracker();
            let held = tracker.prepare_kernel_write(GuestAddr(GUEST + 64), 4).unwrap();
            if !guest.kernel_writes_pass() {
                assert_eq!(guest.lookup(64), None, "{}: while it lasts", guest.mode);
                let mut ticket = guest.cache.begin(Guest::key(64));
                let claimed = ticket.claim(GuestAddr(GUEST + 64)).is_ok();
                assert_eq!(claimed, has_checks, "{}: what may be made of the page", guest.mode);
                assert!(!claimed || ticket.needs_check(), "{}: it compares itself", guest.mode);
            }
            guest.read_zero(64);
            drop(held);
            guest.sync();
            assert_eq!(guest.lookup(64), None, "{}", guest.mode);
            assert_eq!(guest.translate(64).unwrap().0, 0, "{}", guest.mode);
        });
    }
    // Unannounced, in modes that allow it.
    every_mode(Adaptive::new(), |guest| {
        guest.store(64, 7);
        guest.translate(64).unwrap();
        if guest.kernel_writes_pass() {
            guest.read_zero(64);
            guest.sync();
            assert_eq!(guest.lookup(64), None, "{}", guest.mode);
        }
    });
}

/// D1.
#[test]
fn a_sync_sees_what_happened_before_it() {
    deferred(|guest| a_store_is_found_by_another_thread(guest, || guest.sync()));
}

/// D2.
#[test]
fn two_syncs_at_once() {
    deferred(|guest| {
        for round in 1..ROUNDS {
            while guest.translate(64).is_err() {}
            let start = std::sync::Barrier::new(2);
            guest.store(64, round);
            scope(|threads| {
                for _ in 0..2 {
                    threads.spawn(|| {
                        start.wait();
                        guest.sync();
                        assert_eq!(guest.lookup(64), None);
                    });
                }
            });
        }
    });
}

/// D3. Stores go on as long as syncs do. No translation hides a lost store: a block stays until
/// a sync ends it, and each store is the last one for two syncs.
#[test]
fn no_write_is_lost_between_two_syncs() {
    deferred(|guest| {
        let (published, syncs, over) = (AtomicU32::new(0), AtomicU32::new(0), AtomicBool::new(false));
        scope(|threads| {
            threads.spawn(|| {
                let _over = OverAtDrop(&over);
                for round in 1.. {
                    let seen = syncs.load(Ordering::Acquire);
                    // From at once to longer than a sync takes.
                    (0..u32::wrapping_mul(round, 2_654_435_761) >> 21).for_each(|_| spin_loop());
                    guest.store(64, round);
                    published.store(round, Ordering::Release);
                    while syncs.load(Ordering::Acquire) < seen + 3 {
                        if over.load(Ordering::Acquire) {
                            return;
                        }
                        yield_now();
                    }
                }
            });
            let _over = OverAtDrop(&over);
            while syncs.load(Ordering::Relaxed) < 60 * ROUNDS || published.load(Ordering::Relaxed) < 3 * ROUNDS {
                if guest.lookup(64).is_none() {
                    let _ = guest.translate(64);
                }
                let before = published.load(Ordering::Acquire);
                guest.sync();
                let found = guest.lookup(64);
                assert!(found.is_none_or(|entry| entry >= plain(before)), "{found:x?}, {before:x} was announced");
                syncs.fetch_add(1, Ordering::Release);
            }
        });
    });
}

/// Ends the other thread's loop, even after a panic.
struct OverAtDrop<'a>(&'a AtomicBool);

impl Drop for OverAtDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

/// Makes a page self-checking after a write to it, or from the start, and cools it when asked.
#[derive(Clone, Copy, Debug)]
struct Checks {
    on_begin: Decision,
}

const CHECKED_ONCE_WRITTEN: Checks = Checks { on_begin: Decision::Protect };
const ALWAYS_CHECKED: Checks = Checks { on_begin: Decision::SelfCheck };

impl Policy for Checks {
    fn on_begin(&self, _: &PageHistory) -> Decision {
        self.on_begin
    }

    fn on_harvest(&self, _: &PageHistory) -> bool {
        true
    }

    fn has_cooled(&self, _: &PageHistory) -> bool {
        true
    }

    fn limits(&self) -> Limits {
        Adaptive::with_checks().limits()
    }
}

/// C1, C3: `write` stores to data beside the block at 64. A harvest does not tell which byte was
/// written, so it ends the block; the next block compares itself.
fn becomes_checked(guest: &Guest, write: impl Fn(), expected_flag: u8) {
    guest.store(64, 7);
    let (_, mut flag) = guest.translate(64).unwrap();
    let mut vcpu = guest.cache.attach_vcpu();
    let mut inside = vcpu.pin();
    assert_eq!(inside.lookup(Guest::key(64)), Some(plain(7)));
    write();
    if guest.mode == Mode::Deferred {
        guest.sync();
        let found = inside.lookup(Guest::key(64));
        assert!(found.is_none_or(|entry| entry == checked(7)), "{}: {found:x?}", guest.mode);
        (_, flag) = guest.translate(64).unwrap();
    }
    assert_eq!(inside.lookup(Guest::key(64)), Some(checked(7)), "{}", guest.mode);
    // SAFETY: the pin keeps the payload, which keeps the flag.
    assert_eq!(unsafe { flag.read_volatile() }, expected_flag, "{}", guest.mode);
}

/// C1, C3.
#[test]
fn a_block_compares_itself_after_a_data_write() {
    every_mode(CHECKED_ONCE_WRITTEN, |guest| {
        becomes_checked(guest, || guest.store(2048, 1), StaleFlag::CHECKED);
    });
}

/// C3, for bytes with several addresses: by a store through either.
#[test]
fn a_block_compares_itself_after_a_data_write_to_shared_memory() {
    for mode in tracking_modes().into_iter().filter(|&mode| has_or_skips(mode, Facility::WpShmem)) {
        for through_the_view in [false, true] {
            let Shared { guest, view } = &Shared::new(mode, CHECKED_ONCE_WRITTEN);
            let write = || match through_the_view {
                true => view.write(2048, &[1]).unwrap(),
                false => guest.store(2048, 1),
            };
            becomes_checked(guest, write, StaleFlag::CHECKED_SHARED);
        }
    }
}

/// C2.
#[test]
fn a_self_checking_block_sees_unannounced_writes() {
    every_mode(ALWAYS_CHECKED, |guest| {
        guest.store(64, 7);
        guest.translate(64).unwrap();
        guest.store(64, 8);
        assert_eq!(guest.lookup(64), Some(checked(7)), "{}: nobody is told", guest.mode);
        // The comparison of the self-checking entry.
        assert_ne!(guest.word(64).load(Ordering::Acquire), 7);
        guest.cache.remove(Guest::key(64));
        assert_eq!(guest.lookup(64), None, "{}", guest.mode);
        assert_eq!(guest.translate(64).unwrap().0, 8);
    });
}

/// C4.
#[test]
fn a_cooled_page_starts_anew() {
    every_mode(CHECKED_ONCE_WRITTEN, |guest| {
        guest.translate(64).unwrap();
        guest.store(2048, 1);
        guest.sync();
        if guest.lookup(64).is_none() {
            // A harvest does not tell which byte was written.
            guest.translate(64).unwrap();
        }
        assert_eq!(guest.lookup(64), Some(checked(0)), "{}", guest.mode);
        while guest.cache.stats().cooled == 0 {
            // In thread mode the un-protect may not be over.
            guest.cache.tracker().maintain();
            yield_now();
        }
        assert_eq!(guest.lookup(64), None, "{}", guest.mode);
        guest.translate(64).unwrap();
        assert_eq!(guest.lookup(64), Some(plain(0)), "{}", guest.mode);
        guest.store(64, 1);
        guest.sync();
        let found = guest.lookup(64);
        assert!(found.is_none_or(|entry| entry == checked(0)), "{}: {found:x?}", guest.mode);
    });
}

/// E1.
#[test]
fn a_store_through_another_view() {
    for mode in tracking_modes().into_iter().filter(|&mode| has_or_skips(mode, Facility::WpShmem)) {
        let Shared { guest, view } = &Shared::new(mode, Adaptive::new());
        guest.translate(64).unwrap();
        view.write(64, &[9]).unwrap();
        guest.sync();
        assert_eq!(guest.lookup(64), None, "{mode}");
    }
}

/// E5: as emitted code does it, by a link, by the front and by a cell that was remembered for a
/// return.
#[test]
fn a_kill_reaches_links_fronts_and_predictions() {
    synchronous(|guest| {
        guest.translate(64).unwrap();
        let key = Guest::key(64);
        let link = guest.cache.link(key).unwrap();
        let mut vcpu = guest.cache.attach_vcpu();
        let mut pin = vcpu.pin();
        let entry = pin.lookup(key).expect("a block");
        // SAFETY: an index of the front, which is ours while no emitted code runs.
        let FrontSlot { key: found, cell: predicted } = unsafe { *pin.front().add(key.front_index()) };
        assert_eq!(found, key.raw());
        // SAFETY: the cells of the front live under the pin.
        let through = || [link.cell().load(), unsafe { &*predicted }.load()];
        assert_eq!(through(), [entry; 2], "{}", guest.mode);
        guest.store(64, 9);
        assert_eq!(through(), [EntryStubs::NOT_CODE.dead; 2], "{}", guest.mode);
        assert_eq!(pin.lookup(key), None, "{}", guest.mode);
    });
}

/// E2.
#[test]
fn what_runs_is_not_freed() {
    every_mode(Adaptive::new(), |guest| {
        guest.cache.set_limit(MemoryLimit { retained_bytes: 0, ..MemoryLimit::default() });
        guest.translate(64).unwrap();
        let mut vcpu = guest.cache.attach_vcpu();
        let inside = vcpu.pin();
        guest.store(64, 1);
        guest.sync();
        assert_eq!(guest.lookup(64), None, "{}", guest.mode);
        (0..10).for_each(|_| guest.cache.collect());
        assert_eq!(guest.dropped.load(Ordering::SeqCst), 0, "{}: a vCPU may be inside", guest.mode);
        drop(inside);
        (0..10).for_each(|_| guest.cache.collect());
        assert_eq!(guest.dropped.load(Ordering::SeqCst), 1, "{}", guest.mode);
    });
}

/// N5: a vCPU is inside a block while another thread stores to the block's bytes. The store
/// retires and is learned of. Nothing asks the vCPU to leave; only its stale flag tells it.
#[test]
fn a_vcpu_inside_a_block_is_not_stopped() {
    every_mode(Adaptive::new(), |guest| {
        let (_, flag) = guest.translate(64).unwrap();
        let asked = Arc::new(AtomicBool::new(false));
        let ask = asked.clone();
        let mut vcpu = guest.cache.attach_vcpu_with(move || ask.store(true, Ordering::SeqCst));
        let mut inside = vcpu.pin();
        assert_eq!(inside.lookup(Guest::key(64)), Some(plain(0)), "{}", guest.mode);
        scope(|threads| {
            let other = threads.spawn(|| {
                guest.store(64, 1);
                guest.sync();
                guest.lookup(64)
            });
            assert_eq!(other.join().unwrap(), None, "{}", guest.mode);
        });
        assert!(!asked.load(Ordering::SeqCst), "{}: it may stay to the block's end", guest.mode);
        assert_eq!(guest.dropped.load(Ordering::SeqCst), 0, "{}: what it runs is there", guest.mode);
        // SAFETY: the pin keeps the payload, which keeps the flag.
        assert_eq!(unsafe { flag.read_volatile() }, StaleFlag::DEAD, "{}", guest.mode);
        assert_eq!(inside.lookup(Guest::key(64)), None, "{}", guest.mode);
    });
}

/// N1.
#[test]
fn mode_none_promises_nothing() {
    let guest = Guest::new(Mode::None, Adaptive::new());
    guest.translate(64).unwrap();
    guest.store(64, 1);
    guest.sync();
    assert_eq!(guest.lookup(64), Some(plain(0)));
}

/// N2.
#[test]
fn before_a_sync_the_old_block_runs() {
    deferred(|guest| {
        guest.translate(64).unwrap();
        guest.store(64, 1);
        assert_eq!(guest.lookup(64), Some(plain(0)));
    });
}

/// N3.
#[test]
fn an_undeclared_view_is_not_tracked() {
    for mode in tracking_modes().into_iter().filter(|&mode| has_or_skips(mode, Facility::WpShmem)) {
        let guest = Guest::on(GuestMemory::memfd(PAGES * page_bytes()).unwrap(), mode, Adaptive::new());
        let view = guest.memory.another_view().unwrap();
        guest.translate(64).unwrap();
        view.write(64, &[9]).unwrap();
        guest.sync();
        assert_eq!(guest.lookup(64), Some(plain(0)), "{mode}");
        // So a store there must be announced.
        guest.cache.tracker().invalidate(GuestAddr(GUEST + 64), 4).unwrap();
        assert_eq!(guest.lookup(64), None, "{mode}");
    }
}
