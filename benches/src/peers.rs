//! The demo emulator compared with `qemu-riscv64`, on guests that change code and on guests that do
//! not.
//!
//! The guest's own clock measures each operation, over many of them. It also measures the guest's
//! loop without the change of code: there the guest does the same to data. The difference of the
//! two is the cost of the change, on each side. All four are taken in turn, A B C D, D C B A, and
//! the medians of the rounds are compared.
//!
//! The demo emulator interprets code for its first few runs; the peer translates it at once.
//! In a bulk rewrite each function is called once. So its cost is mostly interpreting here,
//! and mostly translating in the peer. A guest sees that whole difference; tracking is only a
//! part of it.

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Command;

use codewarden::protection::best_synchronous;
use guest_tests::{find_program, skip};

use crate::guest::{End, run_guest};
use crate::spread::Spread;

/// The peer: an emulator that is always coherent without announcements.
const PEER: &str = "qemu-riscv64";

/// An operation that changes code, on both emulators.
#[derive(Clone, Copy, Debug)]
pub struct Change {
    /// A description of one operation.
    pub what: &'static str,
    /// The guest's name and its arguments.
    pub guest: &'static str,
    flags: &'static [&'static str],
    /// The arguments that leave the change out of the loop; `None` if the loop takes next to
    /// no time and counts with the operation.
    empty: Option<&'static [&'static str]>,
    /// The guest's count of operations, or of rounds of them.
    operations: u32,
    /// The aim: so many times cheaper than the peer.
    pub wanted: f64,
}

const fn change(
    what: &'static str,
    guest: &'static str,
    flags: &'static [&'static str],
    empty: &'static [&'static str],
    operations: u32,
) -> Change {
    Change { what, guest, flags, empty: Some(empty), operations, wanted: 7.0 }
}

const fn store_data(what: &'static str, flags: &'static [&'static str]) -> Change {
    Change { what, guest: "bench-data", flags, empty: None, operations: 100_000, wanted: 100.0 }
}

/// All of them.
pub const CHANGES: [Change; 10] = [
    change("one instruction patched and called, no flush", "bench-patch", &[], &["empty"], 50_000),
    change("the same, with `riscv_flush_icache`", "bench-patch-flush", &[], &["empty"], 50_000),
    change("the same, with FENCE.I", "bench-patch-flush", &["fence-i"], &["fence-i", "empty"], 50_000),
    change("a fresh function written and called 4 times", "bench-emit", &[], &["empty"], 20_000),
    change("a page of a bulk rewrite, one function called, memcpy", "bench-bulk", &[], &["empty"], 20),
    change("the same, pread", "bench-bulk", &["pread"], &["pread", "empty"], 20),
    change(
        "a page of a bulk rewrite, full of functions, all called, memcpy",
        "bench-bulk",
        &["dense"],
        &["dense", "empty"],
        4,
    ),
    change("the same, pread", "bench-bulk", &["dense", "pread"], &["dense", "pread", "empty"], 4),
    store_data("a store to data beside a hot loop", &[]),
    store_data("a store to data beside a hot function", &["calls"]),
];

/// A guest under the demo emulator, run in two ways that ought to cost the same.
#[derive(Clone, Copy, Debug)]
pub struct Pair {
    /// A description of the run.
    pub what: &'static str,
    guest: &'static str,
    operations: u32,
    /// Each with its name, the guest's arguments and the way to track writes.
    ways: [(&'static str, &'static [&'static str], &'static str); 2],
    /// How much longer the first may take.
    pub wanted: Wanted,
}

/// The aim of a [`Pair`].
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Wanted {
    /// The first takes at most this many times as long as the second.
    AtMost(f64),
    /// The ranges of the two overlap.
    WithinNoise,
}

const fn data(what: &'static str, beside: &'static [&'static str], apart: &'static [&'static str]) -> Pair {
    Pair {
        what,
        guest: "bench-data",
        operations: 20_000_000,
        ways: [("data beside the code", beside, "auto"), ("data on another page", apart, "auto")],
        wanted: Wanted::AtMost(1.1),
    }
}

const fn writes_no_code(what: &'static str, guest: &'static str, operations: u32) -> Pair {
    Pair {
        what,
        guest,
        operations,
        ways: [("tracked", &["time"], "auto"), ("not tracked", &["time"], "none")],
        wanted: Wanted::WithinNoise,
    }
}

/// All of them.
pub const PAIRS: [Pair; 4] = [
    data("a hot loop that counts in memory", &[], &["apart"]),
    data("a hot function that counts its calls", &["calls"], &["calls", "apart"]),
    writes_no_code("computing: sieve, matrix product, CRC-32", "workload-compute", 40),
    writes_no_code("calls and branches: recursion, an interpreter, Collatz", "workload-calls", 60),
];

/// The emulator, the rounds and the operations.
#[derive(Clone, Debug)]
pub struct Setup {
    /// The demo emulator.
    pub emulator: PathBuf,
    /// How often everything is taken.
    pub rounds: usize,
    /// The guests' numbers of operations are divided by this.
    pub share: u32,
}

impl Setup {
    fn ours(&self, tracking: &str) -> Command {
        let mut command = Command::new(&self.emulator);
        command.args(["--tracking", tracking]);
        command
    }
}

/// The cost of an operation on one side.
#[derive(Clone, Debug)]
pub struct Cost {
    /// The operation with the loop around it.
    pub whole: Spread,
    /// The operation alone.
    pub net: Spread,
}

impl Cost {
    fn new(whole: &[f64], empty: &[f64]) -> Self {
        Self { whole: Spread::of(whole), net: Spread::of_differences(whole, empty) }
    }

    /// The operation alone, or the spread of its samples if that is more: a cost below the
    /// noise counts as the noise.
    fn at_most_ns(&self) -> f64 {
        let noise_ns = (self.net.p90_ns - self.net.p10_ns) / 2.0;
        self.net.median_ns.max(noise_ns).max(0.001)
    }
}

/// A measured [`Change`].
#[derive(Clone, Debug)]
pub struct Compared {
    /// The measured change.
    pub change: Change,
    /// The demo emulator.
    pub ours: Cost,
    /// The peer, if this machine has it.
    pub peer: Option<Cost>,
}

impl Compared {
    /// How many times cheaper the demo emulator is.
    pub fn times_cheaper(&self) -> Option<f64> {
        Some(self.peer.as_ref()?.net.median_ns / self.ours.at_most_ns())
    }
}

/// A measured [`Pair`].
#[derive(Clone, Debug)]
pub struct Matched {
    /// The measured pair.
    pub pair: Pair,
    /// Nanoseconds in each way.
    pub ways: [Spread; 2],
    /// The first way over the second, round by round.
    pub ratio: Spread,
}

impl Matched {
    fn holds(&self) -> bool {
        match self.pair.wanted {
            Wanted::AtMost(most) => self.ratio.median_ns <= most,
            Wanted::WithinNoise => self.ways[0].p10_ns <= self.ways[1].p90_ns,
        }
    }
}

/// All measurements, and the machine.
#[derive(Clone, Debug)]
pub struct Outcome {
    versions: [String; 2],
    rounds: usize,
    /// In the order of [`CHANGES`].
    pub changes: Vec<Compared>,
    /// In the order of [`PAIRS`].
    pub pairs: Vec<Matched>,
}

/// Measures everything; without the peer, only the rows that do not need it.
///
/// # Panics
///
/// If a guest goes wrong, or if the peer is missing although `CODEWARDEN_REQUIRE_ALL=1`
/// demands it.
pub fn measure(setup: &Setup) -> Outcome {
    let peer = find_program(PEER);
    if peer.is_none() {
        skip("peers", &format!("no {PEER} (Debian: qemu-user); the demo emulator is measured alone"));
    }
    let changes = CHANGES.iter().map(|change| compare(setup, peer.as_deref(), change)).collect();
    let pairs = PAIRS.iter().map(|pair| matched(setup, pair)).collect();
    let mode = best_synchronous().map_or("no mode".to_owned(), |(mode, _)| mode.to_string());
    let versions = [
        format!("{}, `--tracking auto`, which takes {mode} here", version(&setup.emulator)),
        peer.as_deref().map_or_else(|| format!("SKIPPED: no {PEER} here"), version),
    ];
    Outcome { versions, rounds: setup.rounds, changes, pairs }
}

/// Rounds of a [`Pair`] for each of a [`Change`]: the differences are small.
const PAIR_ROUNDS: usize = 3;

/// Takes every side once a round, in turn, and every second round backwards.
fn by_turns<const N: usize>(rounds: usize, mut take: impl FnMut(usize) -> f64) -> [Vec<f64>; N] {
    let mut samples = [const { Vec::new() }; N];
    for round in 0..rounds {
        for turn in 0..N {
            let side = if round % 2 == 0 { turn } else { N - 1 - turn };
            samples[side].push(take(side));
        }
    }
    samples
}

fn compare(setup: &Setup, peer: Option<&Path>, change: &Change) -> Compared {
    eprintln!("{} {}", change.guest, change.flags.join(" "));
    let operations = (change.operations / setup.share).max(1);
    let [ours, ours_empty, peers, peers_empty] = by_turns(setup.rounds, |side| {
        let flags = if side % 2 == 0 { Some(change.flags) } else { change.empty };
        let emulator = if side / 2 == 0 { Some(setup.ours("auto")) } else { peer.map(Command::new) };
        match (emulator, flags) {
            (Some(emulator), Some(flags)) => time(emulator, change.guest, operations, flags),
            _ => 0.0,
        }
    });
    let peer = peer.map(|_| Cost::new(&peers, &peers_empty));
    Compared { change: *change, ours: Cost::new(&ours, &ours_empty), peer }
}

fn matched(setup: &Setup, pair: &Pair) -> Matched {
    eprintln!("{} {}: {} and {}", pair.guest, pair.ways[0].1.join(" "), pair.ways[0].0, pair.ways[1].0);
    let operations = (pair.operations / setup.share).max(1);
    let [one, other] = by_turns(PAIR_ROUNDS * setup.rounds, |side| {
        let (_, flags, tracking) = pair.ways[side];
        time(setup.ours(tracking), pair.guest, operations, flags)
    });
    let ratios: Vec<f64> = one.iter().zip(&other).map(|(one, other)| one / other).collect();
    Matched { pair: *pair, ways: [Spread::of(&one), Spread::of(&other)], ratio: Spread::of(&ratios) }
}

/// Nanoseconds of one operation; every guest checks the results of its code.
fn time(emulator: Command, guest: &str, operations: u32, flags: &[&str]) -> f64 {
    let program = emulator.get_program().to_owned();
    match run_guest(emulator, guest, operations, flags) {
        End::Right(ns) => ns,
        other => panic!("{guest} {flags:?} under {}: {other:?}", program.display()),
    }
}

fn version(program: &Path) -> String {
    let output = Command::new(program).arg("--version").output();
    let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    text.lines().next().unwrap_or("unknown version").to_owned()
}

impl fmt::Display for Outcome {
    /// As markdown.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [ours, peer] = &self.versions;
        writeln!(f, "- {ours}\n- {peer}\n- rounds by turns: {}; median (p10–p90)\n", self.rounds)?;
        writeln!(f, "| an operation | {PEER}, ns | alone | demo-emulator, ns | alone | times cheaper | wanted |")?;
        writeln!(f, "|---|---:|---:|---:|---:|---:|---:|")?;
        for row in &self.changes {
            let Change { what, wanted, .. } = row.change;
            let skipped = || "SKIPPED".to_owned();
            let (whole, net) = row
                .peer
                .as_ref()
                .map_or_else(|| (skipped(), skipped()), |peer| (peer.whole.to_string(), peer.net.to_string()));
            let times = row.times_cheaper().map_or_else(skipped, |times| format!("{times:.1}"));
            writeln!(f, "| {what} | {whole} | {net} | {} | {} | {times} | {wanted} |", row.ours.whole, row.ours.net)?;
        }
        writeln!(f, "\n| a guest | one way | ns | the other | ns | one ÷ other | wanted |")?;
        writeln!(f, "|---|---|---:|---|---:|---:|---:|")?;
        for row in &self.pairs {
            let Pair { what, ways, wanted, .. } = row.pair;
            let wanted = match wanted {
                Wanted::AtMost(most) => format!("at most {most}"),
                Wanted::WithinNoise => "within noise".to_owned(),
            };
            let Spread { p10_ns: low, median_ns: middle, p90_ns: high } = row.ratio;
            writeln!(
                f,
                "| {what} | {} | {} | {} | {} | {middle:.3} ({low:.3}–{high:.3}) | {wanted} |",
                ways[0].0, row.ways[0], ways[1].0, row.ways[1]
            )?;
        }
        Ok(())
    }
}

impl Outcome {
    /// One line for each row: the aim, and whether it is met.
    pub fn against_wanted(&self) -> String {
        let verdict = |holds: bool| if holds { "holds" } else { "MISSED" };
        let changes = self.changes.iter().map(|row| {
            let Change { what, guest, wanted, .. } = row.change;
            match row.times_cheaper() {
                Some(times) => {
                    let verdict = verdict(times >= wanted);
                    format!("- {verdict}: {guest}, {what}: {times:.1} times cheaper than {PEER} (wanted {wanted})\n")
                }
                None => format!("- SKIPPED: {guest}, {what}: no {PEER} here\n"),
            }
        });
        let pairs = self.pairs.iter().map(|row| {
            let (what, ratio) = (row.pair.what, row.ratio.median_ns);
            let [(one, ..), (other, ..)] = row.pair.ways;
            let wanted = match row.pair.wanted {
                Wanted::AtMost(most) => format!("at most {most}"),
                Wanted::WithinNoise => "within noise".to_owned(),
            };
            format!("- {}: {what}, {one} ÷ {other}: {ratio:.3} (wanted {wanted})\n", verdict(row.holds()))
        });
        changes.chain(pairs).collect()
    }
}
