//! The handler thread of thread mode is killed.
//!
//! Its signals are blocked and it runs no foreign code, so only the kernel can kill it alone:
//! here by a seccomp filter.

use codewarden::protection::Mode;

use crate::scenario::{End, fixture, scenario};
use crate::seccomp::{Call, KILL_THREAD, refuse};

/// The thread sleeps in one of them between two faults.
const POLL: &[Call] = &[
    Call { number: libc::SYS_ppoll, command: None },
    #[cfg(target_arch = "x86_64")]
    Call { number: libc::SYS_poll, command: None },
];

fn threads() -> usize {
    std::fs::read_dir("/proc/self/task").map_or(0, Iterator::count)
}

#[test]
fn no_other_mode_has_one() {
    scenario("handler_thread::no_other_mode_has_one", &Mode::ALL, End::Well, |mode| {
        let before = threads();
        let guest = fixture(mode);
        assert_eq!(threads() - before, usize::from(mode == Mode::Thread));
        guest.expect_tracked(1);
    });
}

/// A store then falls asleep for ever. The embedder's timer, `maintain`, detects it, kills the
/// blocks and wakes the store.
#[test]
fn killed_while_writers_sleep() {
    scenario("handler_thread::killed_while_writers_sleep", &[Mode::Thread], End::Well, |mode| {
        let guest = fixture(mode);
        (1..4).for_each(|page| guest.block(page));
        // It is killed now, or after its answer to the first store.
        refuse(POLL, KILL_THREAD);
        std::thread::scope(|scope| {
            let writer = scope.spawn(|| [1, 2].map(|page| guest.store_to(page)));
            while !writer.is_finished() {
                guest.cache.tracker().maintain();
                std::thread::yield_now();
            }
        });
        (1..4).for_each(|page| guest.expect_dead(page));
        guest.expect_lost();
        guest.store_to(3);
        // The end of the mechanism does not wait for the dead thread.
    });
}
