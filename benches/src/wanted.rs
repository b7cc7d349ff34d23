//! The project's aims, and the measurements next to them.

use std::fmt::Write;

use codewarden::protection::Mode;

use crate::scattered::Scattered;
use crate::side::{Case, Who};
use crate::table::Measured;

/// The most that the library may add to its floor.
const MOST_ADDED_NS: f64 = 300.0;

/// One line for each aim: the aim, the measurement, whether it is met.
pub fn lines(rows: &[Measured], runs: &[(Mode, Who, Scattered)]) -> String {
    let row = |case: Case| rows.iter().find(|row| row.name == case.name());
    let mut text = String::new();
    let mut line = |holds: bool, what: String| {
        let _ = writeln!(text, "- {}: {what}", if holds { "holds" } else { "MISSED" });
    };
    let speeds =
        [(Case::Protect, Mode::Sigbus, 2.0), (Case::Fault, Mode::Sigbus, 1.2), (Case::Fault, Mode::Deferred, 5.0)];
    for (case, mode, least) in speeds {
        if let Some(ratio) = row(case).and_then(|row| row.against_mprotect(mode)) {
            let name = case.name();
            line(ratio >= least, format!("{name}, {mode}: {ratio:.2} times the speed of mprotect (wanted {least})"));
        }
    }
    for case in [Case::Commit, Case::Fault] {
        for outcome in row(case).iter().flat_map(|row| &row.outcomes) {
            let (added, name, mode) = (outcome.added(), case.name(), outcome.mode);
            let what = format!("{name}, {mode}: the library adds {added} ns (at most {MOST_ADDED_NS})");
            line(added.median_ns <= MOST_ADDED_NS, what);
        }
    }
    for (mode, who, run) in runs.iter().filter(|(mode, who, _)| *mode != Mode::None && *who == Who::Library) {
        let holds = match mode {
            Mode::Mprotect => run.errno == libc::ENOMEM,
            _ => run.errno == 0 && run.vmas == 1,
        };
        let (reached, vmas, name) = (run.reached, run.vmas, who.name());
        line(holds, format!("scattered pages, {mode}, {name}: {reached} protected in {vmas} VMAs"));
    }
    text
}
