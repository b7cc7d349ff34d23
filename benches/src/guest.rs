//! Guests from end to end: the demo emulator, each mode, each guest a process.
//!
//! A guest measures the time of its operations itself, so start-up is not included. It also
//! checks the results of its code.

use std::fmt;
use std::path::Path;
use std::process::{Command, Stdio};

use codewarden::protection::Mode;
use guest_tests::{EXIT_STALE, guests_dir};

use crate::spread::Spread;

/// A guest and its arguments.
#[derive(Clone, Copy, Debug)]
pub struct Workload {
    /// Its file's name, without the suffix.
    pub guest: &'static str,
    /// How often it does its operation.
    pub operations: u32,
    /// Its second argument, if it takes one.
    pub flag: Option<&'static str>,
    /// A description of one operation.
    pub what: &'static str,
    /// Whether it patches without an announcement, which deferred mode does not promise.
    pub silent: bool,
}

/// All of them.
pub const WORKLOADS: [Workload; 6] = [
    Workload {
        guest: "bench-patch",
        operations: 50_000,
        flag: None,
        what: "one instruction patched and called, no flush",
        silent: true,
    },
    Workload {
        guest: "bench-patch-flush",
        operations: 50_000,
        flag: None,
        what: "one instruction patched, flushed and called",
        silent: false,
    },
    Workload {
        guest: "bench-emit",
        operations: 5_000,
        flag: None,
        what: "a fresh function written and called 4 times",
        silent: false,
    },
    Workload {
        guest: "bench-bulk",
        operations: 10,
        flag: None,
        what: "a page of a bulk rewrite by memcpy",
        silent: false,
    },
    Workload {
        guest: "workload-jit",
        operations: 10,
        flag: Some("time"),
        what: "a round of a small JIT: 128 functions emitted, run, 16 patched",
        silent: false,
    },
    Workload {
        guest: "workload-compute",
        operations: 20,
        flag: Some("time"),
        what: "a round of computing; no code is written",
        silent: false,
    },
];

/// How one run ended.
#[derive(Clone, Debug, PartialEq)]
pub enum End {
    /// Right, at this many nanoseconds for one operation.
    Right(f64),
    /// Overwritten code ran: this mode does not track that.
    Stale,
    /// The guest failed; its output.
    Failed(String),
}

/// The outcome of a guest in one mode.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The guest.
    pub workload: Workload,
    /// The mode.
    pub mode: Mode,
    /// Nanoseconds for one operation, or the reason that there are none.
    pub end: Result<Spread, End>,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.end {
            Ok(spread) => spread.fmt(f),
            Err(End::Stale) => f.write_str("stale code ran"),
            Err(End::Failed(why)) => f.write_str(why),
            Err(End::Right(_)) => Ok(()),
        }
    }
}

/// Runs a workload once. `share` divides its operations.
pub fn run(emulator: &Path, mode: Mode, workload: &Workload, share: u32) -> End {
    let mut command = Command::new(emulator);
    command.args(["--tracking", mode.name()]);
    run_guest(command, workload.guest, (workload.operations / share).max(1), workload.flag.as_slice())
}

/// Runs a guest once under `emulator`, which has its own options already.
pub fn run_guest(mut emulator: Command, guest: &str, operations: u32, flags: &[&str]) -> End {
    emulator.arg(guests_dir().join(format!("{guest}.elf"))).arg(operations.to_string()).args(flags);
    let output = match emulator.stdin(Stdio::null()).output() {
        Ok(output) => output,
        Err(error) => return End::Failed(format!("the emulator does not start: {error}")),
    };
    match output.status.code() {
        Some(0) => {
            let text = String::from_utf8_lossy(&output.stdout);
            let each = text.split_whitespace().collect::<Vec<_>>();
            let at = each.windows(3).position(|words| words[1] == "ns" && words[2] == "each");
            let ns = at.and_then(|at| each[at].parse().ok());
            ns.map_or_else(|| End::Failed(format!("no time in what it printed: {text}")), End::Right)
        }
        Some(EXIT_STALE) => End::Stale,
        _ => End::Failed(format!("{}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim())),
    }
}

/// All workloads in all modes by turns.
///
/// # Panics
///
/// If a guest goes wrong in a mode that promises it.
pub fn measure(emulator: &Path, modes: &[Mode], rounds: usize, share: u32) -> Vec<Outcome> {
    let mut outcomes = Vec::new();
    for workload in WORKLOADS {
        let mut ends: Vec<(Mode, Vec<End>)> = modes.iter().map(|&mode| (mode, Vec::new())).collect();
        for _ in 0..rounds {
            for (mode, ends) in &mut ends {
                ends.push(run(emulator, *mode, &workload, share));
            }
        }
        for (mode, ends) in ends {
            outcomes.push(Outcome { workload, mode, end: spread(&workload, mode, ends) });
        }
    }
    outcomes
}

fn spread(workload: &Workload, mode: Mode, ends: Vec<End>) -> Result<Spread, End> {
    let mut samples = Vec::new();
    for end in ends {
        match end {
            End::Right(ns) => samples.push(ns),
            other => {
                let promised = mode != Mode::None && !(mode == Mode::Deferred && workload.silent);
                assert!(!promised && other == End::Stale, "{}, {mode}: {other:?}", workload.guest);
                return Err(other);
            }
        }
    }
    Ok(Spread::of(&samples))
}
