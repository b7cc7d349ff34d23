//! A short run of the load in every mode on the real kernel, and of the control
//! without tracking, which must find stale code. `examples/stress.rs` is the long
//! one.

#[path = "stress/load.rs"]
mod load;

use std::time::Duration;

use codewarden::protection::{Mode, Probe};
use load::Outcome;

const TIME: Duration = Duration::from_millis(400);

/// Runs the load until `has_seen` is true of an outcome: in a short time a busy machine may do nothing.
fn longer_and_longer(mode: Mode, has_seen: impl Fn(&Outcome) -> bool) -> bool {
    (0..6).any(|doubled| {
        let outcome = load::run(mode, "anonymous", TIME * (1 << doubled));
        println!("{outcome}");
        has_seen(&outcome)
    })
}

#[test]
fn no_stale_code_in_any_mode() {
    let probe = Probe::of_this_process();
    println!("{}", Outcome::HEAD);
    for mode in Mode::ALL.into_iter().filter(|&mode| mode != Mode::None) {
        if let Err(error) = probe.check(mode) {
            assert!(std::env::var_os("CODEWARDEN_REQUIRE_ALL").is_none(), "{error}");
            println!("skipped: {error}");
            continue;
        }
        let went_on = longer_and_longer(mode, |outcome| {
            assert_eq!((outcome.stale, outcome.freed_under_pin, outcome.wrong_in_child), (0, 0, 0), "{mode}");
            outcome.stores > 0 && outcome.hits > 0 && outcome.stats.invalidated > 0
        });
        assert!(went_on, "{mode}: nothing went on");
    }
}

#[test]
fn without_tracking_there_is_stale_code() {
    println!("{}", Outcome::HEAD);
    assert!(longer_and_longer(Mode::None, |outcome| outcome.stale > 0));
}
