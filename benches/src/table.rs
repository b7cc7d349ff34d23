//! The report's tables, in markdown. Every table has every mode, the losing ones too.

use std::fmt::Write;

use codewarden::protection::Mode;

use crate::alternate::Outcome;
use crate::guest::{self, Workload};
use crate::scattered::Scattered;
use crate::side::Who;

/// A measured row.
#[derive(Clone, Debug)]
pub struct Measured {
    /// The row's name.
    pub name: String,
    /// The outcome in each mode.
    pub outcomes: Vec<Outcome>,
}

impl Measured {
    /// The outcome in `mode`.
    pub fn of(&self, mode: Mode) -> Option<&Outcome> {
        self.outcomes.iter().find(|outcome| outcome.mode == mode)
    }

    /// How many times faster the library is in `mode` than on mprotect.
    pub fn against_mprotect(&self, mode: Mode) -> Option<f64> {
        Some(self.of(Mode::Mprotect)?.library().median_ns / self.of(mode)?.library().median_ns)
    }

    /// The same against mprotect's floor: a baseline that costs nothing but its
    /// system calls.
    pub fn against_bare_mprotect(&self, mode: Mode) -> Option<f64> {
        Some(self.of(Mode::Mprotect)?.floor().median_ns / self.of(mode)?.library().median_ns)
    }

    fn markdown(&self, into: &mut String) {
        for outcome in &self.outcomes {
            let ratio = |ratio: Option<f64>| ratio.map_or("–".into(), |ratio| format!("{ratio:.2}"));
            let _ = writeln!(
                into,
                "| {} | {} | {} | {} | {} | {} | {} |",
                self.name,
                outcome.mode,
                outcome.library(),
                outcome.floor(),
                outcome.added(),
                ratio(self.against_mprotect(outcome.mode)),
                ratio(self.against_bare_mprotect(outcome.mode)),
            );
        }
    }
}

/// All rows.
pub fn rows(rows: &[Measured]) -> String {
    let mut table = String::from(
        "| what, per page | mode | library, ns | floor, ns | the library adds, ns | × mprotect | × bare mprotect |\n\
         |---|---|---:|---:|---:|---:|---:|\n",
    );
    rows.iter().for_each(|row| row.markdown(&mut table));
    table
}

/// The scattered pages.
pub fn scattered(runs: &[(Mode, Who, Scattered)]) -> String {
    let mut table = String::from(
        "| mode | side | pages protected | ended by | VMAs of the region | ns a page |\n|---|---|---:|---|---:|---:|\n",
    );
    for (mode, who, run) in runs {
        let end = match run.errno {
            0 => "–".into(),
            errno => std::io::Error::from_raw_os_error(errno).to_string(),
        };
        let (reached, vmas, ns) = (run.reached, run.vmas, run.mean_ns());
        let _ = writeln!(table, "| {mode} | {} | {reached} | {end} | {vmas} | {ns:.0} |", who.name());
    }
    table
}

/// Guests, by the time that each measured itself.
pub fn guests(outcomes: &[guest::Outcome]) -> String {
    let mut table =
        String::from("| guest | an operation | mode | ns an operation | × mprotect |\n|---|---|---|---:|---:|\n");
    for outcome in outcomes {
        let Workload { guest, what, .. } = outcome.workload;
        let baseline = outcomes.iter().find(|other| other.workload.guest == guest && other.mode == Mode::Mprotect);
        let ratio = match (baseline.map(|baseline| &baseline.end), &outcome.end) {
            (Some(Ok(baseline)), Ok(spread)) => format!("{:.2}", baseline.median_ns / spread.median_ns),
            _ => "–".into(),
        };
        let _ = writeln!(table, "| {guest} | {what} | {} | {outcome} | {ratio} |", outcome.mode);
    }
    table
}
