//! # Safety
//! Each table is used with its own [`Writing`], in a box.

use core::sync::atomic::Ordering::SeqCst;
use core::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, Mutex};

use super::*;
use crate::addr::PageSize;
use crate::sync::interruptible::{interrupt_at, was_interrupted};

const PROCESS: u64 = 1;

/// A table with the lock of its writers.
struct Owned<T> {
    table: Box<RangeTable<T>>,
    writing: Mutex<Writing>,
}

impl<T> Owned<T> {
    fn new() -> Self {
        Self { table: Box::new(RangeTable::new()), writing: Mutex::new(Writing::new()) }
    }

    fn insert_in(&self, process: u64, range: HostRange, value: T) -> Result<SlotId, Overlap> {
        // SAFETY: see the module's head.
        unsafe { self.table.insert(&mut self.writing.lock().unwrap(), range, value, process) }
    }

    fn insert(&self, range: HostRange, value: T) -> Result<SlotId, Overlap> {
        self.insert_in(PROCESS, range, value)
    }

    fn remove_in(&self, in_fork_child: bool, id: SlotId) {
        let slot = self.table.take_out(id, in_fork_child);
        self.writing.lock().unwrap().give_back(slot);
    }

    fn remove(&self, id: SlotId) {
        self.remove_in(false, id);
    }
}

impl<T: Copy> Owned<T> {
    fn at(&self, page: usize) -> Lookup<T> {
        self.table.with(HostAddr((page << 12) + 0xfff), |value| *value)
    }
}

fn pages(first: usize, count: usize) -> HostRange {
    HostRange::new(HostAddr(first << 12), count << 12, PageSize::from_shift(12)).unwrap()
}

#[test]
fn finds_live_ranges_only() {
    let owned = Owned::new();
    assert_eq!(owned.at(1), Lookup::Missing);
    let first = owned.insert(pages(1, 2), 7).unwrap();
    assert_eq!(owned.insert(pages(2, 2), 8), Err(Overlap));
    let _second = owned.insert(pages(3, 1), 8).unwrap();
    assert_eq!([0, 1, 2, 3, 4].map(|page| owned.at(page)), {
        use Lookup::{Found, Missing};
        [Missing, Found(7), Found(7), Found(8), Missing]
    });
    owned.remove(first);
    assert_eq!((owned.at(2), owned.at(3)), (Lookup::Again, Lookup::Found(8)));
}

#[test]
fn a_retired_range_is_forgotten_in_the_end() {
    let owned = Owned::new();
    let id = owned.insert(pages(1, 1), 0).unwrap();
    owned.remove(id);
    for _ in 0..RETIRED_TURNS {
        assert_eq!(owned.at(1), Lookup::Again);
    }
    assert_eq!(owned.at(1), Lookup::Missing);
}

/// A late fault may hit either side of the new range.
#[test]
fn a_retired_range_is_remembered_around_a_new_one() {
    let owned = Owned::new();
    let old = owned.insert(pages(0, 9), 1).unwrap();
    owned.remove(old);
    let new = owned.insert(pages(4, 2), 2).unwrap();
    assert_eq!([3, 4, 5, 6].map(|page| owned.at(page)), {
        use Lookup::{Again, Found};
        [Again, Found(2), Found(2), Again]
    });
    owned.remove(new);
    assert!((0..9).all(|page| owned.at(page) == Lookup::Again));
}

/// However many ranges come and go, slots are used again.
#[test]
fn slots_are_used_again() {
    let owned = Owned::new();
    for round in 0..100 {
        let id = owned.insert(pages(1 + round, 1), round).unwrap();
        owned.remove(id);
        let remembered = (0..round).filter(|&page| owned.at(1 + page) == Lookup::Again).count();
        assert!(remembered >= round.min(RETIRED_KEPT), "{round}: {remembered}");
    }
    let writing = owned.writing.lock().unwrap();
    assert_eq!((writing.used, writing.retired.len()), (RETIRED_KEPT + 1, RETIRED_KEPT + 1));
    assert!(writing.rooms.iter().all(|&room| room <= 4 * RETIRED_KEPT), "{:?}", writing.rooms);
}

/// A fork's child: its parent's other threads were about to look at a range that was retired.
#[test]
fn a_child_does_not_wait_for_its_parents_threads() {
    let owned = Owned::new();
    for page in 0..4 {
        let id = owned.insert(pages(page, 1), page).unwrap();
        let slot = owned.table.slot(id.0);
        owned.remove(id);
        slot.users.fetch_add(1, SeqCst);
    }
    let inherited = owned.insert(pages(9, 1), 9).unwrap();
    core::mem::forget(owned.table.slot(inherited.0).enter());
    owned.remove_in(true, inherited);
    for page in 0..2 * RETIRED_KEPT {
        let id = owned.insert_in(PROCESS + 1, pages(page, 1), page).unwrap();
        assert_eq!(owned.table.slot(id.0).users.load(SeqCst), 0, "a reader of the parent's");
        owned.remove(id);
    }
}

/// A range that a child has taken over waits for its own readers alone.
#[test]
fn a_child_takes_a_range_over() {
    let owned = Owned::new();
    let inherited = owned.insert(pages(9, 1), 9).unwrap();
    core::mem::forget(owned.table.slot(inherited.0).enter());
    owned.table.take_over(&inherited);
    assert_eq!(owned.table.slot(inherited.0).users.load(SeqCst), 0, "a reader of the parent's");
    owned.remove_in(false, inherited);
}

/// Against a list, over growth of slots and of the index.
#[test]
fn agrees_with_a_list() {
    const PAGES: u64 = 400;
    let mut seed = 7u64;
    let mut next = |below: u64| {
        seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        ((seed >> 33) % below) as usize
    };
    let owned = Owned::new();
    let mut list: Vec<(HostRange, usize, SlotId)> = Vec::new();
    for step in 0..if cfg!(miri) { 200 } else { 4_000 } {
        let range = pages(next(PAGES), 1 + next(4));
        let overlaps = list.iter().any(|(known, ..)| known.intersection(range).is_some());
        match owned.insert(range, step) {
            Ok(id) => {
                assert!(!overlaps);
                list.push((range, step, id));
            }
            Err(Overlap) => assert!(overlaps),
        }
        if next(3) == 0 && !list.is_empty() {
            let at = next(list.len() as u64);
            owned.remove(list.swap_remove(at).2);
        }
        let page = next(PAGES + 8);
        let holder = list.iter().find(|(range, ..)| range.contains(HostAddr(page << 12)));
        match (owned.at(page), holder) {
            (Lookup::Found(value), Some((_, expected, _))) => assert_eq!(value, *expected),
            (Lookup::Again | Lookup::Missing, None) => {}
            (found, _) => panic!("page {page} at step {step}: {found:?}"),
        }
        let mut sum = 0;
        owned.table.for_each(|value| sum += value);
        assert_eq!(sum, list.iter().map(|(_, value, _)| value).sum::<usize>());
    }
}

/// A signal interrupts a writer at each of its steps, and its handler looks ranges up on the same
/// thread.
#[test]
fn a_handler_at_each_step_of_a_writer_finds_what_is_there() {
    for step in 0.. {
        let owned = Arc::new(Owned::new());
        let mut ids: Vec<_> = (0..FIRST + 2).map(|at| owned.insert(pages(2 * at, 1), at).unwrap()).collect();
        let gone = ids.remove(3);
        owned.remove(gone);
        let seen = owned.clone();
        interrupt_at(step, move || {
            for at in (0..FIRST + 2).filter(|&at| at != 3) {
                assert_eq!(seen.at(2 * at), Lookup::Found(at), "step {step}");
            }
            assert_eq!(seen.at(6), Lookup::Again, "step {step}");
            assert_eq!(seen.at(1), Lookup::Missing, "step {step}");
            assert!(matches!(seen.at(5), Lookup::Found(77) | Lookup::Again | Lookup::Missing), "step {step}");
        });
        let id = owned.insert(pages(5, 1), 77).unwrap();
        owned.remove(id);
        if !was_interrupted() {
            return assert!(step > 50, "{step} steps");
        }
    }
}

/// A value that knows when it was dropped under a reader.
struct Canary(Arc<AtomicU64>);
impl Drop for Canary {
    fn drop(&mut self) {
        self.0.store(0, SeqCst);
    }
}

#[test]
fn a_remover_waits_for_the_readers() {
    let owned = Owned::<Canary>::new();
    let stop = AtomicBool::new(false);
    let (reads, late) = (AtomicU64::new(0), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !stop.load(SeqCst) {
                    owned.table.with(HostAddr(0x1000), |canary| {
                        let alive = canary.0.clone();
                        std::thread::yield_now();
                        reads.fetch_add(1, SeqCst);
                        late.fetch_add(u64::from(alive.load(SeqCst) == 0), SeqCst);
                    });
                }
            });
        }
        let mut rounds = 0;
        while rounds < 200 || reads.load(SeqCst) < 200 {
            let id = owned.insert(pages(1, 1), Canary(Arc::new(AtomicU64::new(1)))).unwrap();
            std::thread::yield_now();
            owned.remove(id);
            rounds += 1;
        }
        stop.store(true, SeqCst);
    });
    assert_eq!(late.load(SeqCst), 0);
}

/// The reader of another range may wait for a lock that the remover has. Here it is the remover.
#[test]
fn a_remover_waits_for_readers_of_its_own_range_alone() {
    let owned = Owned::new();
    let (first, second) = (owned.insert(pages(1, 1), 1).unwrap(), owned.insert(pages(2, 1), 2).unwrap());
    let removed = owned.table.with(HostAddr(0x1000), |_| owned.remove(second));
    assert_eq!((removed, owned.at(2)), (Lookup::Found(()), Lookup::Again));
    let mut each = Some(owned.insert(pages(3, 1), 3).unwrap());
    owned.table.for_each(|&value| {
        if value == 1
            && let Some(id) = each.take()
        {
            owned.remove(id);
        }
    });
    owned.remove(first);
}
