//! The end of the demo: two more runs of the same guest, without the report, compared in a table.
//! One uses the mode of the demo, the other mprotect.

use std::fmt::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::style::{Style, say};

/// The rows of the comparison: a counter, and its name for people.
const ROWS: [(&str, &str); 7] = [
    ("faults", "write faults"),
    ("protects", "pages protected"),
    ("protection_calls", "system calls to protect and un-protect"),
    ("vmas", "mappings of the process (VMAs)"),
    ("invalidated", "blocks invalidated"),
    ("retranslated", "blocks translated again"),
    ("interpreter_runs", "runs interpreted: page busy"),
];

/// Runs `program` in `mode` and on mprotect, both with `options`, and prints the table.
pub fn print(program: &Path, mode: &str, options: &[&str], style: Style) {
    let modes = if mode == "mprotect" { vec![mode] } else { vec![mode, "mprotect"] };
    let runs: Vec<_> = modes.into_iter().map(|mode| (mode, run(program, mode, options))).collect();
    say(&table(&runs, style));
}

/// The counters of one run, or why there are none.
fn run(program: &Path, mode: &str, options: &[&str]) -> Result<Value, String> {
    let output = Command::new("/proc/self/exe")
        .args(["--tracking", mode, "--stats=json"])
        .args(options)
        .arg(program)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .output()
        .map_err(|error| error.to_string())?;
    let text = String::from_utf8_lossy(&output.stderr);
    let last = text.lines().last().unwrap_or_default();
    serde_json::from_str(last).map_err(|_| format!("{}: {last}", output.status))
}

fn table(runs: &[(&str, Result<Value, String>)], style: Style) -> String {
    let title = "The same guest once more, without the report";
    let mut text = format!("\n{}\n  {:<42}", style.strong(title), "");
    // Writing to a string does not fail.
    let _ = runs.iter().try_for_each(|(mode, _)| write!(text, "{mode:>12}"));
    text.push('\n');
    for (name, label) in ROWS {
        let _ = write!(text, "  {label:<42}");
        let values = runs.iter().map(|(_, run)| run.as_ref().ok().and_then(|run| run[name].as_u64()));
        for value in values {
            let _ = write!(text, "{:>12}", value.map_or("-".to_owned(), |value| value.to_string()));
        }
        text.push('\n');
    }
    let _ = write!(text, "  {:<42}", "ms from start to end (one run: noisy)");
    for (_, run) in runs {
        let time_us = run.as_ref().ok().and_then(|run| run["run_time_us"].as_f64());
        let _ = write!(text, "{:>12}", time_us.map_or("-".to_owned(), |us| format!("{:.1}", us / 1e3)));
    }
    text.push('\n');
    for (mode, run) in runs {
        if let Err(why) = run {
            let _ = writeln!(text, "  {mode} did not run: {why}");
        }
    }
    text.push_str("  Figures to compare modes by come from the benches: cargo bench\n");
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_that_failed_leaves_dashes_and_says_why() {
        let good = serde_json::json!({"faults": 5, "run_time_us": 1500});
        let text = table(&[("sigbus", Ok(good)), ("mprotect", Err("no luck".to_owned()))], Style::of_stdout());
        let faults = text.lines().find(|line| line.contains("write faults")).unwrap();
        assert_eq!(faults.split_whitespace().collect::<Vec<_>>(), ["write", "faults", "5", "-"]);
        assert!(text.contains("1.5"), "{text}");
        assert!(text.contains("mprotect did not run: no luck"), "{text}");
        assert!(text.lines().all(|line| line.len() <= 100), "{text}");
    }
}
