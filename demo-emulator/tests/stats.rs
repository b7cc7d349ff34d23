//! `--stats=json` of guests that patch, that write data on their pages of code, and that let the
//! kernel write. Each count agrees with the others, and the heat map names the writers. No time is
//! asserted.

use std::path::Path;
use std::process::Command;

use codewarden::protection::{Mode, Probe};
use serde_json::Value;

/// The most pages of a report.
const HOT_PAGES: usize = 10;
/// The journal's size in writes: fewer writes are all retained.
const JOURNAL_WRITES: u64 = 256;

struct Run(Value);

impl Run {
    fn new(guest: &str, mode: Mode, tier: &str) -> Self {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../guest-tests/guests").join(format!("{guest}.elf"));
        let mut command = Command::new(env!("CARGO_BIN_EXE_demo-emulator"));
        command.env_remove("CODEWARDEN_HIDE").args(["--stats=json", "--tracking", mode.name(), "--tier", tier]);
        let output = command.arg(path).output().unwrap();
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(0), "{guest} {mode} {tier}: {text}");
        // A fork's child writes its own line, before the parent ends.
        let runs: Vec<_> = text.lines().map(|line| Self(serde_json::from_str(line).unwrap())).collect();
        runs.into_iter().next_back().unwrap_or_else(|| panic!("{guest}: nothing is printed"))
    }

    fn count(&self, name: &str) -> u64 {
        self.0[name].as_u64().unwrap_or_else(|| panic!("no {name} in {}", self.0))
    }

    fn histogram(&self, name: &str, field: &str) -> u64 {
        self.0["histograms"][name][field].as_u64().unwrap_or_else(|| panic!("no {name}.{field} in {}", self.0))
    }

    fn hottest(&self) -> &[Value] {
        self.0["hottest_pages"].as_array().unwrap()
    }

    fn sum_of_hottest(&self, kind: &str) -> u64 {
        self.hottest().iter().map(|page| page[kind].as_u64().unwrap()).sum()
    }

    fn check(&self) {
        let Self(stats) = self;
        let faults = self.count("faults");
        assert_eq!(faults, self.count("faults_code") + self.count("faults_data"), "{stats}");
        let by_thread = stats["mode"] == "thread";
        assert_eq!(self.count("faults_by_thread"), if by_thread { faults } else { 0 }, "{stats}");
        // About one in 16 is timed, the first among them. The handler thread may be inside the last
        // fault when the guest ends.
        let timed = self.histogram("fault_ns", "count");
        assert!(timed <= faults && (timed > 0 || faults <= u64::from(by_thread)), "{stats}");
        if !by_thread {
            assert_eq!(faults, self.histogram("fault_opened_pages", "count"), "{stats}");
            assert_eq!(faults + self.count("opened_ahead"), self.histogram("fault_opened_pages", "sum"), "{stats}");
        }
        for name in ["harvest_scanned_pages", "harvest_found_pages"] {
            assert_eq!(self.count("harvests"), self.histogram(name, "count"), "{stats}");
        }
        assert_eq!(self.count("pages_scanned"), self.histogram("harvest_scanned_pages", "sum"), "{stats}");
        assert_eq!(self.count("pages_harvested"), self.histogram("harvest_found_pages", "sum"), "{stats}");
        assert!(self.count("protects") <= self.histogram("protect_pages", "sum"), "{stats}");
        let made: u64 =
            ["blocks_decoded", "blocks_compiled", "regions_compiled"].map(|name| self.count(name)).iter().sum();
        assert!(self.count("committed") <= made && self.count("freed") <= made, "{stats}");
        assert!(self.count("pages_kernel_written") <= self.count("pages_announced"), "{stats}");
        self.check_histograms();
        self.check_pages();
    }

    fn check_histograms(&self) {
        for (name, histogram) in self.0["histograms"].as_object().unwrap() {
            assert!(name.ends_with("_ns") || name.ends_with("_pages"), "{name} has no unit");
            let field = |field: &str| self.histogram(name, field);
            let buckets = histogram["buckets"].as_array().unwrap();
            let number = |bucket: &Value, field: &str| bucket[field].as_u64().unwrap();
            assert_eq!(buckets.iter().map(|bucket| number(bucket, "count")).sum::<u64>(), field("count"), "{name}");
            assert!(buckets.windows(2).all(|pair| number(&pair[0], "to") < number(&pair[1], "from")), "{histogram}");
            assert!(field("p50") <= field("p90") && field("p90") <= field("p99"), "{histogram}");
            assert!(field("p99") <= field("max") && field("max") <= field("sum"), "{histogram}");
        }
    }

    fn check_pages(&self) {
        let Self(stats) = self;
        let states = stats["pages_by_state"].as_object().unwrap();
        let pages: u64 = states.values().map(|count| count.as_u64().unwrap()).sum();
        assert!(pages >= self.hottest().len() as u64 && pages > 0, "{stats}");
        assert!(self.hottest().len() < HOT_PAGES, "all of a small guest's pages are listed: {stats}");
        assert_eq!(self.sum_of_hottest("code_hits"), self.count("faults_code"), "{stats}");
        assert_eq!(self.sum_of_hottest("data_hits"), self.count("faults_data"), "{stats}");
        assert_eq!(self.sum_of_hottest("harvested"), self.count("pages_harvested"), "{stats}");
        assert_eq!(self.sum_of_hottest("kernel_hits"), self.count("pages_kernel_written"), "{stats}");
        self.check_writers();
    }

    fn check_writers(&self) {
        for page in self.hottest() {
            let writers = page["writers"].as_array().unwrap();
            let known: u64 = writers.iter().map(|writer| writer["writes"].as_u64().unwrap()).sum();
            let told_of = known + page["other_writes"].as_u64().unwrap();
            let hits = page["code_hits"].as_u64().unwrap() + page["data_hits"].as_u64().unwrap();
            assert!(told_of <= hits, "{page}");
            assert!(told_of == hits || self.count("faults") > JOURNAL_WRITES, "{page} of {}", self.0);
        }
    }

    /// The store that wrote to the byte of this symbol, by the store's symbol.
    fn writer_of(&self, byte_symbol: &str) -> Option<&str> {
        let writers = self.hottest().iter().flat_map(|page| page["writers"].as_array().unwrap());
        writers
            .filter(|writer| writer["last_byte_symbol"] == byte_symbol)
            .find_map(|writer| writer["pc_symbol"].as_str())
    }
}

/// The available modes for which `wanted` is true.
fn modes(wanted: impl Fn(Mode) -> bool) -> impl Iterator<Item = Mode> {
    let probe = Probe::of_this_process();
    let modes = Mode::ALL.into_iter().filter(move |&mode| mode != Mode::None && wanted(mode));
    modes.filter(move |&mode| match probe.check(mode) {
        Ok(()) => true,
        Err(error) => {
            assert!(std::env::var_os("CODEWARDEN_REQUIRE_ALL").is_none(), "{error}");
            println!("skipped: {error}");
            false
        }
    })
}

/// Without tracking too, code on a page that the kernel writes to is compiled with a check, and
/// so once: without the check each commit would be refused.
#[test]
fn code_on_a_held_page_is_compiled_once() {
    for (tier, compiled) in [("1", "blocks_compiled"), ("2", "regions_compiled")] {
        let run = Run::new("file-writes", Mode::None, tier);
        assert!(run.count(compiled) < 2 * run.count("committed"), "{}", run.0);
    }
}

#[test]
fn a_guest_that_patches_is_listed_with_the_writer() {
    for mode in modes(Mode::is_synchronous) {
        for tier in ["0", "1", "2", "auto"] {
            let run = Run::new("demo", mode, tier);
            run.check();
            // Later steps may find the page self-checking: it is written to again and again.
            assert!(run.count("faults_code") >= 2, "{}", run.0);
            // A handler thread gets no pc, and compiled code reports no store.
            if mode == Mode::Thread && tier != "0" {
                continue;
            }
            for (byte, function) in [("answer", "main+"), ("tally_counter", "tally+")] {
                let writer = run.writer_of(byte).unwrap_or_else(|| panic!("{mode} {tier}: no {byte} in {}", run.0));
                assert!(writer.starts_with(function), "{mode} {tier}: {byte} by {writer}");
            }
        }
    }
}

#[test]
fn a_guest_that_writes_data_near_its_code_is_counted() {
    for mode in modes(|_| true) {
        let run = Run::new("data-beside-code", mode, "auto");
        run.check();
        // Without announcements a harvest may or may not come between.
        assert_eq!(run.count("faults") > 0, mode.is_synchronous(), "{}", run.0);
    }
}

#[test]
fn each_process_of_a_guest_that_forks_is_counted() {
    for mode in modes(Mode::is_synchronous) {
        let run = Run::new("fork-patches", mode, "auto");
        run.check();
        assert!(run.count("faults") > 0, "{}", run.0);
    }
}

#[test]
fn a_guest_that_has_the_kernel_write_its_code_is_counted() {
    for mode in modes(|_| true) {
        let run = Run::new("read-into-code", mode, "auto");
        run.check();
        let is_announced = matches!(mode, Mode::Sigbus | Mode::Mprotect);
        assert_eq!(run.count("pages_kernel_written") > 0, is_announced, "{}", run.0);
        assert_eq!(run.count("pages_harvested") > 0, mode == Mode::Deferred, "{}", run.0);
    }
}
