//! `--stats`: tables for people. Zero counts are left out.

use std::fmt::Write;

use codewarden::Histogram;

use super::{HotRow, Report, Tracked};
use crate::symbols::Symbols;

/// Counters in sections, with names for people.
const SECTIONS: [(&str, &[(&str, &str)]); 4] = [
    (
        "Writes",
        &[
            ("faults", "write faults"),
            ("faults_code", "  at code"),
            ("faults_data", "  at data"),
            ("faults_by_thread", "  resolved by the handler thread, the kernel's among them"),
            ("harvests", "harvests"),
            ("pages_scanned", "  pages that they asked about"),
            ("pages_harvested", "  pages that they found written"),
            ("pages_announced", "pages held for writes of the kernel and changes of mappings"),
            ("pages_kernel_written", "  for writes of the kernel"),
        ],
    ),
    (
        "Pages",
        &[
            ("protects", "pages protected"),
            ("opened_ahead", "pages opened ahead of a stream of writes"),
            ("protection_calls", "system calls that protected and un-protected"),
            ("self_checking", "pages that became self-checking"),
            ("cooled", "self-checking pages that cooled"),
            ("begins_busy", "translations put off because a page was busy"),
        ],
    ),
    (
        "Blocks",
        &[
            ("committed", "blocks made reachable"),
            ("retranslated", "  where one had been before (retranslations)"),
            ("revived", "dead blocks revived, their bytes being the same again"),
            ("refused", "commits refused because a write came between"),
            ("invalidated", "blocks invalidated"),
            ("downgraded", "blocks on a page whose data was written, which compare their bytes from then on"),
            ("removed", "blocks removed: compiled ones replaced them, or their bytes had changed"),
            ("evicted", "blocks evicted, there being too many"),
            ("discarded", "dead blocks that are not retained, or no longer"),
            ("freed", "blocks freed"),
        ],
    ),
    (
        "Tiers",
        &[
            ("blocks_decoded", "blocks decoded for tier 0"),
            ("blocks_compiled", "blocks compiled quickly"),
            ("regions_compiled", "regions compiled"),
            ("publications", "barriers that published compiled code"),
            ("first_runs", "first runs of code, interpreted"),
            ("interpreter_runs", "runs handed to the interpreter"),
        ],
    ),
];

/// A histogram's name for people.
fn title(name: &str) -> &str {
    match name {
        "fault_ns" => "a fault, from the handler's entry to its return",
        "fault_opened_pages" => "pages that a fault opened",
        "protect_pages" => "pages that a system call protected",
        "harvest_scanned_pages" => "pages that a harvest asked about",
        "harvest_found_pages" => "pages that a harvest found written",
        "sync_ns" => "a sync",
        other => other,
    }
}

impl Report {
    /// The report for people.
    pub fn text(&self) -> String {
        let mut text = format!("tier {}", self.tier);
        // Writing to a string does not fail.
        let _ = match &self.tracked {
            Some(tracked) => writeln!(text, ", tracking {}: {}", tracked.mode, tracked.why),
            None => writeln!(text, ", no translation"),
        };
        if let Some(tracked) = &self.tracked {
            tracked.write_counters(&mut text);
        }
        let _ = writeln!(text, "Process\n{:>12}  mappings of the process (VMAs)", self.vmas);
        let _ = writeln!(text, "{:>12.3}  ms from start to end", self.run_time.as_secs_f64() * 1e3);
        if let Some(tracked) = &self.tracked {
            tracked.write_histograms(&mut text);
            tracked.write_pages(&mut text);
        }
        text
    }
}

impl Tracked {
    fn write_counters(&self, text: &mut String) {
        let value = |name: &str| self.counters.iter().find(|(other, _)| *other == name).map_or(0, |(_, value)| *value);
        for (section, rows) in SECTIONS {
            write_section(text, section, rows.iter().map(|(name, label)| (*label, value(name))));
        }
        let is_listed = |name: &str| SECTIONS.iter().any(|(_, rows)| rows.iter().any(|(listed, _)| *listed == name));
        write_section(text, "More", self.counters.iter().filter(|(name, _)| !is_listed(name)).copied());
    }

    fn write_histograms(&self, text: &mut String) {
        let filled = self.histograms.iter().filter(|(_, values)| values.count() > 0);
        let rows: Vec<String> = filled.map(|(name, values)| histogram_row(name, values)).collect();
        if !rows.is_empty() {
            let columns = ["count", "p50", "p90", "p99", "max"].map(|column| format!("{column:>9}")).concat();
            let _ = writeln!(text, "{:<49}{columns}\n{}", "How much at a time (about)", rows.concat().trim_end());
        }
    }

    fn write_pages(&self, text: &mut String) {
        let pages = &self.pages;
        let _ = writeln!(
            text,
            "Pages that were translated from, now: {} open, {} protected, {} self-checking",
            pages.open, pages.protected, pages.self_checking
        );
        if !self.hottest.is_empty() {
            let _ = writeln!(
                text,
                "{:<45}{:>9}{:>9}{:>10}{:>9}",
                "Pages written to most", "at code", "at data", "harvested", "kernel"
            );
        }
        self.hottest.iter().for_each(|row| write_hot_page(text, row, &self.symbols));
    }
}

fn write_section<'a>(text: &mut String, title: &str, rows: impl Iterator<Item = (&'a str, u64)>) {
    let rows: Vec<_> = rows.filter(|(_, value)| *value > 0).collect();
    if !rows.is_empty() {
        let _ = writeln!(text, "{title}");
    }
    for (label, value) in rows {
        let _ = writeln!(text, "{value:>12}  {label}");
    }
}

fn histogram_row(name: &str, values: &Histogram) -> String {
    let shown = |value: u64| if name.ends_with("_ns") { duration(value) } else { value.to_string() };
    let columns = [50.0, 90.0, 99.0].map(|percent| shown(values.percentile(percent)));
    let [p50, p90, p99] = columns;
    let title = title(name);
    format!("  {title:<47}{:>9}{p50:>9}{p90:>9}{p99:>9}{:>9}\n", values.count(), shown(values.max()))
}

/// A time in the unit that suits it.
fn duration(ns: u64) -> String {
    match ns {
        0..1_000 => format!("{ns} ns"),
        1_000..1_000_000 => format!("{:.1} us", ns as f64 / 1e3),
        _ => format!("{:.1} ms", ns as f64 / 1e6),
    }
}

fn write_hot_page(text: &mut String, HotRow { page, writers }: &HotRow, symbols: &Symbols) {
    let checked = if page.is_self_checking { ", self-checking" } else { "" };
    let title = format!("  {}{checked}", place(page.page.0, symbols));
    let hits = [page.code_hits, page.data_hits];
    let _ = writeln!(text, "{title:<45}{:>9}{:>9}{:>10}{:>9}", hits[0], hits[1], page.harvested, page.kernel_hits);
    for writer in &writers.known {
        let (pc, byte) = (place(writer.pc, symbols), place(writer.last_byte, symbols));
        let _ = writeln!(text, "{:>12}  by {pc}, the last to {byte}", writer.writes);
    }
    if writers.other_writes > 0 {
        let _ = writeln!(text, "{:>12}  by other stores", writers.other_writes);
    }
}

/// An address, and its name if it has one.
fn place(address: u64, symbols: &Symbols) -> String {
    match symbols.name(address) {
        Some(name) => format!("{address:#x} {name}"),
        None => format!("{address:#x}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_the_unit_that_suits_them() {
        let shown = [0, 999, 1_000, 999_949, 1_000_000, 12_345_678_901].map(duration);
        assert_eq!(shown, ["0 ns", "999 ns", "1.0 us", "999.9 us", "1.0 ms", "12345.7 ms"]);
    }

    #[test]
    fn a_counter_without_a_label_is_shown_by_its_name() {
        let mut text = String::new();
        let tracked = Tracked {
            mode: "sigbus",
            why: String::new(),
            counters: vec![("faults", 3), ("refused", 0), ("new_counter", 7)],
            histograms: Vec::new(),
            pages: Default::default(),
            hottest: Vec::new(),
            symbols: Symbols::default(),
        };
        tracked.write_counters(&mut text);
        assert_eq!(text, "Writes\n           3  write faults\nMore\n           7  new_counter\n");
    }
}
