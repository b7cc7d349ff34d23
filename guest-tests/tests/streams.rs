//! Random programs that write themselves, every way against the interpreter. The fuzz target
//! `streams` does the same with inputs that it finds; a longer run by hand:
//!
//! ```text
//! STREAMS=100000 cargo test --release -p guest-tests --test streams -- --nocapture
//! ```
//!
//! `STREAMS_SEED` begins with another program: the number that a failure prints.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use demo_emulator::riscv::random::Random;
use guest_tests::streams::Comparison;
use guest_tests::{note, skip};

/// Programs of the bounded run.
const PROGRAMS: u64 = 30;

/// The most bytes of an input.
const MAX_INPUT_BYTES: u64 = 800;

/// A guest that often runs bytes that it overwrote may run for ever if they are stale. No
/// right program takes this long on the slowest machine.
const HANG: Duration = Duration::from_secs(180);

/// The program that runs.
static SEED: AtomicU64 = AtomicU64::new(0);

/// Ends the process if one program does not end, and names the program.
fn watch_for_a_hang() {
    std::thread::spawn(|| {
        loop {
            let seed = SEED.load(Relaxed);
            std::thread::sleep(HANG);
            if SEED.load(Relaxed) == seed {
                note("streams", &format!("seed {seed} runs on where the interpreter stopped"));
                std::process::abort();
            }
        }
    });
}

fn from_environment(name: &str, otherwise: u64) -> u64 {
    std::env::var(name).map_or(otherwise, |value| value.parse().unwrap_or_else(|_| panic!("{name}: {value}?")))
}

#[test]
fn programs_that_write_themselves_run_alike_in_every_way() {
    let mut comparison = Comparison::new();
    comparison.missing().iter().for_each(|missing| skip("streams", missing));
    watch_for_a_hang();
    let (mut compared, mut written, mut unannounced) = (0, 0, 0);
    let first = from_environment("STREAMS_SEED", 0);
    for seed in first..first + from_environment("STREAMS", PROGRAMS) {
        SEED.store(seed, Relaxed);
        let mut random = Random::new(seed);
        let len_bytes = 8 + random.below(MAX_INPUT_BYTES);
        let input: Vec<u8> = (0..len_bytes).map(|_| random.below(256) as u8).collect();
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| comparison.check(&input)));
        let outcome = outcome.unwrap_or_else(|_| panic!("seed {seed}: {input:?}"));
        compared += outcome.compared;
        written += outcome.written;
        unannounced += outcome.unannounced;
    }
    println!("{compared} comparisons; {written} starts ran what they wrote, {unannounced} without announcing it");
    assert!(compared > 0 && written > unannounced && unannounced > 0);
}
