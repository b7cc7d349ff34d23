//! A short run of the load in every mode on the real kernel, and of the control
//! without tracking, which must find stale code. `examples/stress.rs` is the long
//! one.

#[path = "stress/load.rs"]
mod load;

use std::time::Duration;

use codewarden::protection::{Mode, Probe};
use load::Outcome;

const TIME: Duration = Duration::from_millis(400);

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
        let outcome = load::run(mode, "anonymous", TIME);
        println!("{outcome}");
        assert_eq!((outcome.stale, outcome.freed_under_pin, outcome.wrong_in_child), (0, 0, 0), "{mode}");
        assert!(outcome.stores > 0 && outcome.hits > 0 && outcome.stats.invalidated > 0, "{mode}: nothing went on");
    }
}

#[test]
fn without_tracking_there_is_stale_code() {
    let outcome = load::run(Mode::None, "anonymous", TIME);
    println!("{}\n{outcome}", Outcome::HEAD);
    assert!(outcome.stale > 0);
}
