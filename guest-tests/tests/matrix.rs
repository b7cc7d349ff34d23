//! Every guest in every tracking mode and tier, compared with the table. The interpreter keeps no
//! translation, so its output is right if its semantics are; the other ways must print the same.

use guest_tests::{BENCHES, EXIT_STALE, EXIT_WRONG, Emulator, Exit, Expected, GUESTS, Guest, Outcome, Tier, Way, skip};

use codewarden::protection::Mode;

fn emulator() -> Emulator {
    Emulator::demo(env!("CARGO_BIN_EXE_guest-emulator"))
}

/// The fault of a run; `None` if it is right.
fn judge(guest: &Guest, way: Way, outcome: &Outcome) -> Option<String> {
    let expected = match way {
        Way::Interpreter => Expected::Pass,
        Way::Cached(mode, _) => guest.expected(mode),
    };
    let stale = outcome.exit == Exit::Code(EXIT_STALE);
    let right = match expected {
        Expected::Pass => outcome.passes(guest),
        Expected::MayFail => outcome.passes(guest) || stale || outcome.exit == Exit::Code(EXIT_WRONG),
        Expected::MustFail => stale,
    };
    (!right).then(|| format!("{}: expected {expected:?}, got {outcome}", guest.title()))
}

/// Exit status of an emulator that cannot do as its options ask.
const REFUSED: Exit = Exit::Code(125);

/// Whether the emulator runs guests this way on this machine; if not, that is a skip.
fn can_run(test: &str, way: Way) -> bool {
    let outcome = emulator().run(&GUESTS[0], way).unwrap();
    let refused = outcome.exit == REFUSED;
    if refused {
        skip(test, outcome.stderr.trim());
    }
    !refused
}

/// `GUESTS_STEP=n` runs every n-th row of the table, for slow machines.
fn step() -> usize {
    std::env::var("GUESTS_STEP").map_or(1, |step| step.parse().expect("GUESTS_STEP is a number above 0"))
}

fn hold_to_the_table(test: &str, way: Way) {
    if !can_run(test, way) {
        return;
    }
    let emulator = emulator();
    let rows: Vec<_> = GUESTS.iter().step_by(step()).collect();
    let wrong: Vec<String> =
        rows.iter().filter_map(|guest| judge(guest, way, &emulator.run(guest, way).unwrap())).collect();
    assert!(wrong.is_empty(), "{} of {} rows under {way:?}:\n{}", wrong.len(), rows.len(), wrong.join("\n"));
}

macro_rules! ways {
    ($($name:ident: $way:expr;)*) => {
        $(
            #[test]
            fn $name() {
                hold_to_the_table(stringify!($name), $way);
            }
        )*
    };
}

ways! {
    interpreter: Way::Interpreter;
    sigbus_tier_0: Way::Cached(Mode::Sigbus, Tier::Zero);
    sigbus_tier_1: Way::Cached(Mode::Sigbus, Tier::One);
    sigbus_tier_2: Way::Cached(Mode::Sigbus, Tier::Two);
    sigbus_auto: Way::Cached(Mode::Sigbus, Tier::Auto);
    thread_tier_0: Way::Cached(Mode::Thread, Tier::Zero);
    thread_tier_1: Way::Cached(Mode::Thread, Tier::One);
    thread_tier_2: Way::Cached(Mode::Thread, Tier::Two);
    thread_auto: Way::Cached(Mode::Thread, Tier::Auto);
    mprotect_tier_0: Way::Cached(Mode::Mprotect, Tier::Zero);
    mprotect_tier_1: Way::Cached(Mode::Mprotect, Tier::One);
    mprotect_tier_2: Way::Cached(Mode::Mprotect, Tier::Two);
    mprotect_auto: Way::Cached(Mode::Mprotect, Tier::Auto);
    deferred_tier_0: Way::Cached(Mode::Deferred, Tier::Zero);
    deferred_tier_1: Way::Cached(Mode::Deferred, Tier::One);
    deferred_tier_2: Way::Cached(Mode::Deferred, Tier::Two);
    deferred_auto: Way::Cached(Mode::Deferred, Tier::Auto);
    none_tier_0: Way::Cached(Mode::None, Tier::Zero);
    none_tier_1: Way::Cached(Mode::None, Tier::One);
    none_tier_2: Way::Cached(Mode::None, Tier::Two);
    none_auto: Way::Cached(Mode::None, Tier::Auto);
}

/// The row of one guest alone: mutations of file changes name this test.
#[test]
fn code_that_changes_through_a_file() {
    let guest = GUESTS.iter().find(|guest| guest.name == "file-writes").unwrap();
    for mode in [Mode::None, Mode::Sigbus, Mode::Mprotect] {
        for way in [Tier::Zero, Tier::One, Tier::Two].map(|tier| Way::Cached(mode, tier)) {
            if can_run("code_that_changes_through_a_file", way) {
                assert_eq!(judge(guest, way, &emulator().run(guest, way).unwrap()), None);
            }
        }
    }
}

#[test]
fn the_guests_that_measure_run() {
    let measured = |way: Way, skips_unflushed: bool| {
        for (name, args) in BENCHES {
            if skips_unflushed && *name == "bench-patch" {
                continue;
            }
            let outcome = emulator().run_with_args(name, args, way).unwrap();
            assert_eq!(outcome.exit, Exit::Code(0), "{name} {args:?} under {way:?}: {outcome}");
        }
    };
    measured(Way::Interpreter, false);
    for mode in [Mode::Sigbus, Mode::Deferred] {
        let way = Way::Cached(mode, Tier::Auto);
        if can_run("the_guests_that_measure_run", way) {
            // Deferred tracking owes nothing to a patch without a flush.
            measured(way, mode == Mode::Deferred);
        }
    }
}
