//! The example of a whole embedder computes the right results in every mode. In mode `none` it
//! does not, because it runs overwritten code.
#![cfg(target_arch = "x86_64")]

#[path = "../examples/tiny_jit/run.rs"]
mod tiny_jit;

use codewarden::protection::{Mode, Probe};
use tiny_jit::{Results, run};

#[test]
fn it_runs_in_every_mode() {
    let probe = Probe::of_this_process();
    let mut checked = 0;
    for mode in Mode::ALL.into_iter().filter(|&mode| mode != Mode::None) {
        if let Err(error) = probe.check(mode) {
            assert!(std::env::var_os("CODEWARDEN_REQUIRE_ALL").is_none(), "{error}");
            println!("skipped: {error}");
            continue;
        }
        let run = run(mode).unwrap_or_else(|error| panic!("{mode}: {error}"));
        println!("{mode}: {run}");
        assert_eq!(run.results, Results::RIGHT, "{mode}");
        let stats = run.stats;
        assert!(stats.invalidated > 0 && stats.evicted > 0 && stats.freed > 0, "{mode}: {stats:?}");
        checked += stats.self_checking;
    }
    // Timing decides in which mode.
    assert!(checked > 0, "no page was ever self-checking");
}

#[test]
fn without_tracking_it_runs_what_was_written_over() {
    let run = run(Mode::None).expect("nothing can be refused");
    assert_ne!(run.results.patched, Results::RIGHT.patched);
}
