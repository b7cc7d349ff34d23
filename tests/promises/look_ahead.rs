//! S7 and N6: a core that runs a look at a translation ahead of its own store.
//!
//! # Safety
//!
//! As in the parent.
#![allow(unsafe_code)]

use codewarden::policy::Plain;
use codewarden::{EntryCell, Link};

use super::*;

/// A store whose address comes late, then a load through a link: the core runs the load first.
fn store_and_look_ahead(guest: &Guest, offset: usize, link: &Link) -> usize {
    let cell: *const EntryCell = link.cell();
    let found: usize;
    // SAFETY: the store goes to a byte of the fixture's memory, the load to a cell that
    // the link keeps.
    unsafe {
        std::arch::asm!(
            "cvtsi2sd {late}, {to}",
            ".rept 300",
            "sqrtsd {late}, {late}",
            ".endr",
            "movq {at}, {late}",
            "and {at}, 0",
            "add {at}, {to}",
            "mov byte ptr [{at}], 7",
            "mov {found}, qword ptr [{cell}]",
            to = in(reg) guest.memory.range().start().as_ptr().add(offset),
            cell = in(reg) cell,
            late = out(xmm_reg) _,
            at = out(reg) _,
            found = out(reg) found,
        );
    }
    found
}

/// One thread looks through a link behind its store, while another thread's store opens the page.
/// Each round's look must find nothing. LOOK_AHEAD_ROUNDS sets the number of rounds.
fn race(guest: &Guest, look: impl Fn(&Link) -> usize + Sync) {
    // Longer runs are started by hand.
    let _alarm = std::env::var_os("LOOK_AHEAD_ROUNDS").is_none().then(alarm);
    let rounds: u32 = std::env::var("LOOK_AHEAD_ROUNDS").map_or(3000, |rounds| rounds.parse().expect("a number"));
    let (look, link) = (&look, &guest.cache.link(Guest::key(64)).unwrap());
    let mut vcpu = guest.cache.attach_vcpu();
    let (begun, ended) = (&AtomicU32::new(0), &AtomicU32::new(0));
    let wait_for = |counter: &AtomicU32, round| {
        for spins in 0.. {
            if counter.load(Ordering::Acquire) >= round {
                break;
            }
            if spins > 2000 { yield_now() } else { spin_loop() }
        }
    };
    scope(|threads| {
        threads.spawn(move || {
            for round in 1..=rounds {
                // Pinned long before the store, or just before.
                let early = round % 2 == 0;
                if !early {
                    wait_for(begun, round);
                }
                let pin = vcpu.pin();
                if early {
                    wait_for(begun, round);
                }
                let found = look(link);
                drop(pin);
                assert_eq!(found, EntryStubs::NOT_CODE.dead, "{}, round {round}", guest.mode);
                ended.store(round, Ordering::Release);
            }
        });
        for round in 1..=rounds {
            while guest.translate(64).is_err() {}
            begun.store(round, Ordering::Release);
            // From at once to longer than the other thread takes.
            (0..round.wrapping_mul(2_654_435_761) >> 23).for_each(|_| spin_loop());
            guest.store(64, round);
            wait_for(ended, round);
        }
    });
}

fn synchronous_modes() -> impl Iterator<Item = Mode> {
    tracking_modes().into_iter().filter(|mode| mode.is_synchronous())
}

/// S7, on the present machine. Without the barrier before a page is opened about one round in
/// 100,000 fails, so a run as short as this one hardly detects it. The models that the promise
/// names always fail then.
#[test]
fn a_core_that_looks_ahead_of_its_store_finds_nothing() {
    for mode in synchronous_modes() {
        let guest = Guest::new(mode, Plain);
        race(&guest, |link| store_and_look_ahead(&guest, 64, link));
    }
}

/// N6: a region with explicit fetch has no barrier, and the vCPU fetches before it looks.
#[test]
fn a_core_that_fetches_after_its_store_finds_nothing() {
    for mode in synchronous_modes() {
        let memory = GuestMemory::anonymous(PAGES * page_bytes()).unwrap();
        let options = RegionOptions::new(GuestAddr(GUEST), memory.range(), mode).with_explicit_fetch(true);
        let guest = Guest::in_region(options, memory, Plain);
        race(&guest, |link| {
            store_and_look_ahead(&guest, 64, link);
            guest.cache.tracker().sync().unwrap();
            link.cell().load()
        });
    }
}
