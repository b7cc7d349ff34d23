//! The stress load in every mode that is available here, over anonymous memory and
//! memfd, and the control without tracking:
//!
//! ```text
//! cargo run --release --example stress -- --seconds 10
//! ```
//!
//! Prints a table. Exits with 1 if a mode ran stale or freed code, or if the control did not.

#[path = "../tests/stress/load.rs"]
mod load;

use std::process::ExitCode;
use std::time::Duration;

use codewarden::protection::{Facility, Mode, Probe};
use load::Outcome;

fn main() -> ExitCode {
    let seconds = match std::env::args().skip(1).collect::<Vec<_>>().as_slice() {
        [] => 10.0,
        [option, seconds] if option == "--seconds" => match seconds.parse::<f64>() {
            Ok(seconds) if seconds > 0.0 => seconds,
            _ => return usage(),
        },
        _ => return usage(),
    };
    let probe = Probe::of_this_process();
    let (can, cannot): (Vec<Mode>, Vec<Mode>) = Mode::ALL.into_iter().partition(|&mode| probe.check(mode).is_ok());
    // Before Linux 5.19.
    let no_memfd =
        |mode: Mode| matches!(mode, Mode::Sigbus | Mode::Thread) && probe.why_missing(Facility::WpShmem).is_some();
    let runs = can.into_iter().flat_map(|mode| [(mode, "anonymous"), (mode, "memfd")]);
    let (cannot_memfd, runs): (Vec<_>, Vec<_>) = runs.partition(|&(mode, memory)| memory == "memfd" && no_memfd(mode));
    let time = Duration::from_secs_f64(seconds / runs.len() as f64);
    println!("{}", Outcome::HEAD);
    let mut failed = false;
    for (mode, memory) in runs {
        let outcome = load::run(mode, memory, time);
        println!("{outcome}");
        if mode == Mode::None {
            if outcome.stale == 0 {
                println!("the control found nothing stale: this run proves nothing");
                failed = true;
            }
        } else if outcome.stale + outcome.freed_under_pin + outcome.wrong_in_child > 0 {
            let Outcome { stale, freed_under_pin, wrong_in_child, .. } = outcome;
            println!("{mode}: {stale} stale, {freed_under_pin} freed under a pin, {wrong_in_child} children wrong");
            failed = true;
        }
    }
    for (mode, memory) in cannot_memfd {
        println!("skipped: {mode} cannot be had here with {memory}");
        failed |= std::env::var_os("CODEWARDEN_REQUIRE_ALL").is_some();
    }
    for mode in cannot {
        println!("skipped: {mode} cannot be had here");
        failed |= std::env::var_os("CODEWARDEN_REQUIRE_ALL").is_some();
    }
    if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

fn usage() -> ExitCode {
    eprintln!("usage: stress [--seconds N]");
    ExitCode::from(2)
}
