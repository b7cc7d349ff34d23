//! The cases of the suite. Each gets fresh memory that was never touched.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};

use super::super::contract::{Access, KernelWrites, Opening};
use super::rig::{PAGES, Rig, gettid};
use crate::addr::PageSize;
use crate::error::Error;
use crate::mode::Mode;
use crate::page_table::Permit;
use crate::sys::probe::Facility;

pub(super) fn a_store_to_a_protected_page_is_learned_of(rig: &Rig) {
    rig.store(1, 8, 1);
    rig.rearm();
    assert_eq!(rig.load(1, 8), 1, "a read of a protected page");
    assert_eq!(rig.learned(), [], "reads are not writes");
    rig.store(1, 8, 2);
    assert_eq!(rig.load(1, 8), 2);
    assert_eq!(rig.learned(), [1]);
}

pub(super) fn exactly_the_written_pages_are_learned_of(rig: &Rig) {
    for page in 0..PAGES {
        rig.store(page, 0, 1);
    }
    rig.rearm();
    for page in [1, 4, 5, 15] {
        rig.store(page, 100, 2);
    }
    assert_eq!(rig.learned(), [1, 4, 5, 15]);
    rig.arm(0, PAGES);
    assert_eq!(rig.learned(), []);
    rig.store(4, 0, 3);
    rig.store(4, 1, 3);
    assert_eq!(rig.learned(), [4]);
}

pub(super) fn pages_that_were_never_touched_are_tracked(rig: &Rig) {
    rig.arm(2, 3);
    rig.sink.faults.store(0, SeqCst);
    rig.store(3, 0, 7);
    assert!(rig.learned().contains(&3));
    assert_eq!(rig.load(3, 0), 7);
    assert_eq!(rig.load(2, 0), 0);
}

pub(super) fn a_store_over_two_pages_is_learned_of_on_both(rig: &Rig) {
    rig.store(6, 0, 1);
    rig.rearm();
    rig.store_over_boundary(6, 0x0123_4567_89ab_cdef);
    assert_eq!(rig.load_u64(crate::addr::HostAddr(rig.at(7, 0).0 - 4)), 0x0123_4567_89ab_cdef);
    assert_eq!(rig.learned(), [6, 7]);
}

pub(super) fn several_writers_on_one_page_all_go_on(rig: &Rig) {
    const WRITERS: usize = 6;
    for round in 1..20 {
        rig.rearm();
        std::thread::scope(|scope| {
            for writer in 0..WRITERS {
                scope.spawn(move || rig.store(3, writer * 64, round));
            }
        });
        assert_eq!(rig.learned(), [3]);
        assert!((0..WRITERS).all(|writer| rig.load(3, writer * 64) == round));
    }
}

/// Ends the writers of a case even if it fails: else its panic would wait for them.
struct StopOnDrop<'a>(&'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, SeqCst);
    }
}

pub(super) fn protecting_is_a_hard_barrier(rig: &Rig) {
    let stop = AtomicBool::new(false);
    let missed = std::thread::scope(|scope| {
        let _stop = StopOnDrop(&stop);
        scope.spawn(|| {
            let mut value = 0_u8;
            while !stop.load(SeqCst) {
                value = value.wrapping_add(1);
                rig.store(5, 0, value);
                if value.is_multiple_of(16) {
                    std::thread::yield_now(); // more writers than processors: give way to the barrier
                }
            }
        });
        let mut missed = false;
        let mut rounds = 0;
        while rounds < 150 && !missed {
            rounds += 1;
            let faults = rig.sink.faults.load(SeqCst);
            rig.settle();
            rig.arm_beside_writers(5, 1);
            let before = rig.load(5, 0);
            while rig.load(5, 0) == before {
                std::thread::yield_now();
            }
            missed |= rig.sink.faults.load(SeqCst) == faults && !rig.learned().contains(&5);
        }
        missed
    });
    assert!(!missed, "a store after the barrier was not learned of");
}

pub(super) fn instances_learn_of_their_own_pages(rig: &Rig) {
    let other = rig.twin();
    for rig in [rig, &other] {
        rig.rearm();
    }
    rig.store(1, 0, 1);
    other.store(2, 0, 1);
    assert_eq!(rig.learned(), [1]);
    assert_eq!(other.learned(), [2]);
    drop(other);
    rig.arm(0, PAGES);
    rig.store(3, 0, 1);
    assert_eq!(rig.learned(), [3]);
}

pub(super) fn sinks_of_one_mechanism_learn_of_their_own_pages(rig: &Rig) {
    let other = rig.beside();
    for rig in [rig, &other] {
        rig.rearm();
    }
    rig.store(1, 0, 1);
    other.store(2, 0, 1);
    assert_eq!(rig.learned(), [1]);
    assert_eq!(other.learned(), [2]);
    other.arm(0, PAGES);
    rig.arm(0, PAGES);
    drop(other);
    rig.store(3, 0, 1);
    assert_eq!(rig.learned(), [3]);
}

pub(super) fn a_range_of_another_sink_is_refused(rig: &Rig) {
    let other = rig.beside();
    let taken =
        rig.protection.attach(rig.pages(15, 1), &other.as_sink(), Access::ReadWrite, Permit::for_test()).unwrap_err();
    assert!(matches!(taken, Error::AlreadyTracked { .. }), "{taken}");
    rig.rearm();
    rig.store(15, 0, 1);
    assert_eq!((rig.learned(), other.sink.faults.load(SeqCst)), (vec![15], 0));
}

/// Either the other range is as it was, or its sink heard of the loss while its pages were protected.
pub(super) fn who_gives_one_range_up_tells_the_others(rig: &Rig) {
    let other = rig.beside();
    for rig in [rig, &other] {
        rig.rearm();
    }
    let faults = rig.sink.faults.load(SeqCst);
    rig.protection.abandon(rig.range(), Opening::for_test()).unwrap();
    rig.store(1, 0, 1);
    assert_eq!(rig.sink.faults.load(SeqCst), faults, "its pages are open");
    if other.sink.lost.load(SeqCst) {
        assert!(other.sink.is_told_in_time.load(SeqCst));
        other.store(2, 0, 1);
        assert!(other.protection.check().is_err(), "not for new ranges");
    } else {
        other.store(2, 0, 1);
        assert_eq!(other.learned(), [2]);
    }
    // Its caller knows.
    rig.sink.lost.store(true, SeqCst);
}

pub(super) fn an_open_page_is_silent(rig: &Rig) {
    rig.rearm();
    rig.protection.unprotect(rig.pages(4, 2), Opening::for_test()).unwrap();
    let faults = rig.sink.faults.load(SeqCst);
    rig.store(4, 0, 1);
    assert_eq!(rig.sink.faults.load(SeqCst), faults);
    rig.store(6, 0, 1);
    let expected: &[usize] = if rig.mode() == Mode::Deferred { &[4, 5, 6] } else { &[6] };
    assert_eq!(rig.learned(), expected);
}

pub(super) fn the_guests_own_access_changes_lose_nothing(rig: &Rig) {
    let is_model = matches!(rig.backend, super::rig::Backend::Model(_));
    let writable = |page| region::query(rig.at(page, 0).as_ptr()).unwrap().is_writable();
    rig.store(2, 0, 1);
    rig.rearm();
    for access in [Access::Read, Access::None] {
        rig.protection.set_access(rig.pages(2, 1), access).unwrap();
        assert!(is_model || !writable(2));
        rig.protection.set_access(rig.pages(2, 1), Access::ReadWrite).unwrap();
    }
    rig.store(2, 0, 2);
    assert_eq!(rig.learned(), [2], "protection survives the guest's mprotect");

    rig.arm(0, PAGES);
    rig.protection.set_access(rig.pages(3, 2), Access::Read).unwrap();
    rig.protection.unprotect(rig.pages(2, 4), Opening::for_test()).unwrap();
    assert!(is_model || !writable(3) && !writable(4), "un-protecting gives the guest no more than it has");
    assert!(is_model || writable(2) && writable(5));
    rig.protection.set_access(rig.pages(3, 2), Access::ReadWrite).unwrap();
    assert!(is_model || writable(3));
    rig.store(3, 0, 1);
}

pub(super) fn a_range_has_one_owner(rig: &Rig) {
    let other = rig.twin();
    let taken =
        other.protection.attach(rig.pages(15, 1), &other.as_sink(), Access::ReadWrite, Permit::for_test()).unwrap_err();
    assert!(matches!(taken, Error::AlreadyTracked { .. }), "{taken}");
    rig.rearm();
    rig.store(15, 0, 1);
    assert_eq!(rig.learned(), [15]);
}

pub(super) fn a_replaced_mapping_is_attached_again(rig: &Rig) {
    rig.store(3, 0, 9);
    rig.rearm();
    rig.replace(3);
    if rig.mode() == Mode::Deferred {
        let lost = rig.protection.harvest(rig.range(), &mut |_| ()).unwrap_err();
        assert_eq!(lost, Error::TrackingLost);
    } else if rig.mode() != Mode::Mprotect {
        let lost = rig.protection.protect(rig.pages(3, 1)).unwrap_err();
        assert!(matches!(lost, Error::System { errno: libc::ENOENT, .. }), "{lost}");
    }
    rig.protection.attach(rig.pages(3, 1), &rig.as_sink(), Access::ReadWrite, Permit::for_test()).unwrap();
    rig.store(3, 0, 1);
    rig.rearm();
    rig.store(3, 0, 2);
    rig.store(4, 0, 2);
    assert_eq!(rig.learned(), [3, 4]);
}

pub(super) fn a_piece_that_is_unmapped_is_nothing_to_protect(rig: &Rig) {
    rig.rearm();
    rig.unmap(7);
    rig.unmap(15);
    rig.arm(0, PAGES);
    rig.store(6, 0, 1);
    rig.store(8, 0, 1);
    assert_eq!(rig.learned(), [6, 8]);
    rig.protection.unprotect(rig.range(), Opening::for_test()).unwrap();
    rig.store(14, 0, 1);
}

/// If a guest's page has several pages of the kernel, a part of it may be another mapping, or gone.
pub(super) fn a_page_of_several_mappings_is_one_page(rig: &Rig) {
    let part = PageSize::host().bytes();
    if rig.page.bytes() == part || rig.mode() == Mode::Mprotect {
        return; // mprotect mode has the guest's access to the whole page
    }
    rig.split(2, part);
    rig.unmap_bytes(5, part);
    for value in 1..3 {
        rig.rearm();
        for page in [2, 5] {
            rig.store(page, 2 * part, value);
            assert_eq!(rig.load(page, 2 * part), value);
        }
        assert_eq!(rig.learned(), [2, 5]);
    }
}

pub(super) fn a_partial_detach_leaves_the_rest(rig: &Rig) {
    rig.rearm();
    rig.protection.detach(rig.pages(0, 4), Permit::for_test()).unwrap();
    let faults = rig.sink.faults.load(SeqCst);
    rig.store(3, 0, 1);
    assert_eq!(rig.sink.faults.load(SeqCst), faults, "a detached page is not tracked");
    rig.store(4, 0, 1);
    if rig.mode() != Mode::Deferred {
        assert_eq!(rig.learned(), [4]);
    }
}

/// Stores that are under way when their range is given up go on: they neither hang nor
/// kill the process.
pub(super) fn writers_go_on_through_attach_and_detach(rig: &Rig) {
    const WRITERS: usize = 3;
    let stop = AtomicBool::new(false);
    let turns = [const { AtomicUsize::new(0) }; WRITERS];
    std::thread::scope(|scope| {
        let _stop = StopOnDrop(&stop);
        for writer in 0..WRITERS {
            let (turns, stop) = (&turns, &stop);
            scope.spawn(move || {
                while !stop.load(SeqCst) {
                    for page in 0..PAGES {
                        rig.store(page, writer, 1);
                    }
                    turns[writer].fetch_add(1, SeqCst);
                }
            });
        }
        for _ in 0..200 {
            rig.arm_beside_writers(0, PAGES);
            rig.protection.detach(rig.range(), Permit::for_test()).unwrap();
            rig.protection.attach(rig.range(), &rig.as_sink(), Access::ReadWrite, Permit::for_test()).unwrap();
        }
        let seen: Vec<_> = turns.iter().map(|turn| turn.load(SeqCst)).collect();
        while turns.iter().zip(&seen).any(|(turn, seen)| turn.load(SeqCst) < seen + 2) {
            std::thread::yield_now();
        }
    });
}

pub(super) fn kernel_writes_do_what_the_mechanism_says(rig: &Rig) {
    rig.store(2, 0, 1);
    rig.rearm();
    match rig.protection.kernel_writes() {
        KernelWrites::Tracked => {
            assert_eq!(rig.kernel_store(2, 5), Ok(1));
            assert_eq!((rig.load(2, 0), rig.learned()), (5, vec![2]));
        }
        KernelWrites::Refused => {
            assert_eq!(rig.kernel_store(2, 5), Err(rustix::io::Errno::FAULT));
            assert_eq!((rig.load(2, 0), rig.learned()), (1, vec![]));
            rig.protection.unprotect(rig.pages(2, 1), Opening::for_test()).unwrap();
            assert_eq!(rig.kernel_store(2, 5), Ok(1));
        }
        KernelWrites::WaitForTheLock | KernelWrites::Missed => unreachable!("a mechanism that tracks, without a lock"),
    }
}

pub(super) fn a_store_is_reported_before_it_retires(rig: &Rig) {
    for value in 1..50 {
        rig.store(2, 0, value - 1);
        rig.arm(0, PAGES);
        rig.store(2, 0, value);
        assert_eq!(rig.sink.last_byte.load(SeqCst), u64::from(value - 1));
        assert_eq!(rig.sink.faults.load(SeqCst), u64::from(value));
    }
}

pub(super) fn the_sink_gets_the_thread_and_the_address(rig: &Rig) {
    let is_model = matches!(rig.backend, super::rig::Backend::Model(_));
    let in_faulting_thread = !is_model && matches!(rig.mode(), Mode::Sigbus | Mode::Mprotect);
    rig.store(2, 77, 1);
    rig.arm(0, PAGES);
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            rig.store(2, 77, 2);
            gettid()
        });
        let tid = writer.join().unwrap();
        assert_eq!(rig.sink.last_tid.load(SeqCst), if in_faulting_thread { 0 } else { tid });
    });
    // A message before Linux 5.18 names the page alone.
    let is_exact = is_model || in_faulting_thread || rig.backend.probe().has(Facility::ExactAddress);
    let address = rig.at(2, 77).0;
    let told = if is_exact { address } else { PageSize::host().floor(address) };
    assert_eq!(rig.sink.last_addr.load(SeqCst), told);
    let has_pc = rig.sink.last_pc.load(SeqCst) != 0;
    assert_eq!(has_pc, in_faulting_thread);
}

/// The handler thread opens no page by itself. A page that its sink does not open stays
/// protected until the sink has heard that all is lost.
pub(super) fn a_sink_that_opens_nothing_gets_the_loss_first(rig: &Rig) {
    rig.arm(0, PAGES);
    rig.sink.refuses.store(true, SeqCst);
    rig.store(1, 0, 1);
    assert_eq!(rig.load(1, 0), 1);
    assert!(rig.sink.faults.load(SeqCst) > 0 && rig.sink.lost.load(SeqCst));
    assert_eq!(rig.protection.protect(rig.pages(1, 1)), Err(Error::TrackingLost));
}

pub(super) fn a_fresh_range_counts_as_written(rig: &Rig) {
    assert_eq!(rig.learned().len(), PAGES);
    assert_eq!(rig.learned(), []);
}

pub(super) fn a_deferred_protect_is_refused(rig: &Rig) {
    rig.arm(0, PAGES);
    rig.store(1, 0, 1);
    assert!(matches!(rig.protection.protect(rig.range()), Err(Error::BadArgument(_))));
    assert!(rig.learned().contains(&1), "the write is not hidden");
}
