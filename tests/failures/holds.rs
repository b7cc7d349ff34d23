//! More holds of one page than its word can count.

use codewarden::addr::GuestAddr;
use codewarden::protection::Mode;
use codewarden::tracker::{BeginError, Held};

use crate::scenario::{End, TRACKING, byte_of, fixture, scenario};

/// The word's count ends at 8,191.
const HOLDS: usize = 9_000;

const MODES: [Mode; 5] = [TRACKING[0], TRACKING[1], TRACKING[2], TRACKING[3], Mode::None];

/// Holds a page that was translated from before, and one that gets its descriptor during the
/// hold. Each is busy while a hold is left, and not after.
#[test]
fn of_one_page() {
    scenario("holds::of_one_page", &MODES, End::Well, |mode| {
        for is_known in [true, false] {
            let guest = fixture(mode);
            if is_known {
                guest.block(1);
            }
            let hold = || guest.cache.tracker().prepare_unseen_write(GuestAddr(byte_of(1)), 1).unwrap();
            let mut held: Vec<Held> = (0..HOLDS).map(|_| hold()).collect();
            let begin = || guest.cache.tracker().begin(GuestAddr(byte_of(1))).map(drop);
            assert!(matches!(begin(), Err(BeginError::Busy(_))));
            held.extend((0..HOLDS).map(|_| hold()));
            while held.len() > 1 {
                drop(held.swap_remove(held.len() / 2));
            }
            assert!(matches!(begin(), Err(BeginError::Busy(_))), "{mode}: one is left");
            drop(held);
            // Not at once, if the policy finds the page hot after so many writes.
            assert_eq!(guest.begin_error(1), None, "{mode}: none is left");
            guest.store_to(1);
            guest.expect_dead(1);
        }
    });
}
