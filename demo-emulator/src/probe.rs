//! `--probe`: what this kernel and these permissions allow, which mode `auto`
//! takes and why, and what to change to get a better one.

use std::fmt::Write;
use std::fs;

use codewarden::error::Error;
use codewarden::protection::{Facility, Mode, Probe};

use crate::style::wrapped;

/// What a person is told.
pub fn report(probe: &Probe) -> String {
    let mut text = String::new();
    // Writing to a string does not fail.
    let _ = describe(probe, &mut text);
    text
}

fn describe(probe: &Probe, text: &mut String) -> std::fmt::Result {
    writeln!(text, "kernel    Linux {}, user {}", probe.kernel, rustix::process::geteuid().as_raw())?;
    for (name, path) in SETTINGS {
        let value = fs::read_to_string(path).map_or("not there".to_owned(), |value| value.trim().to_owned());
        writeln!(text, "          {name} = {value}")?;
    }
    writeln!(text, "\nwhat userfaultfd and its neighbours offer to this process")?;
    for (facility, name, since) in Facility::NAMES {
        let state = match (probe.has(facility), probe.is_hidden(facility)) {
            (true, _) => "yes".to_owned(),
            (_, true) => "hidden by CODEWARDEN_HIDE".to_owned(),
            _ if !probe.has(Facility::Uffd) && is_of_userfaultfd(facility) => {
                "no, for there is no userfaultfd".to_owned()
            }
            _ => format!("no (Linux {since} or newer has it)"),
        };
        writeln!(text, "  {name:<22}{state}")?;
    }
    if !probe.unknown_names.is_empty() {
        let names: Vec<_> = Facility::NAMES.iter().map(|(_, name, _)| *name).collect();
        let unknown = probe.unknown_names.join(", ");
        writeln!(text, "\nCODEWARDEN_HIDE names what nothing is called: {unknown}")?;
        text.push_str(&wrapped(&format!("Known names: {}", names.join(", "))));
    }
    writeln!(text, "\ntracking modes")?;
    for mode in Mode::ALL {
        let state = if probe.check(mode).is_ok() { "yes" } else { "no" };
        writeln!(text, "  {:<10}{state:<5}{}", mode.name(), about(mode))?;
    }
    let (mode, why) = probe.best_synchronous();
    write!(text, "\n{}", wrapped(&format!("auto takes {mode}: {why}")))?;
    let missing: Vec<_> = Mode::ALL.into_iter().filter_map(|mode| Some((mode, advice(probe, mode)?))).collect();
    if !missing.is_empty() {
        writeln!(text, "\nwhat to change")?;
    }
    for (mode, advice) in missing {
        text.push_str(&wrapped(&format!("for {mode}: {advice}")));
    }
    Ok(())
}

/// Whether it is known only where a userfaultfd can be opened.
fn is_of_userfaultfd(facility: Facility) -> bool {
    !matches!(facility, Facility::PagemapScan | Facility::MembarrierSyncCore)
}

/// What decides who may open a userfaultfd, and how far the baseline goes.
const SETTINGS: [(&str, &str); 2] = [
    ("vm.unprivileged_userfaultfd", "/proc/sys/vm/unprivileged_userfaultfd"),
    ("vm.max_map_count", "/proc/sys/vm/max_map_count"),
];

fn about(mode: Mode) -> &'static str {
    match mode {
        Mode::Sigbus => "synchronous: a fault in the storing thread, by userfaultfd",
        Mode::Thread => "synchronous: a thread answers the fault, by userfaultfd; sees kernel writes",
        Mode::Mprotect => "synchronous: mprotect and SIGSEGV; the baseline, it splits mappings",
        Mode::Deferred => "writes are found when the guest flushes its instruction cache",
        _ => "nothing is tracked: stale code runs",
    }
}

/// What keeps `mode` away, and the change that helps.
fn advice(probe: &Probe, mode: Mode) -> Option<String> {
    match probe.check(mode) {
        Ok(()) => None,
        Err(Error::ModeUnavailable { why, .. }) => Some(why),
        Err(error) => Some(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hidden_facility_is_said_with_what_it_costs_and_how_to_get_it_back() {
        let text = report(&Probe::with_hidden("sigbus,bogus"));
        assert!(text.contains("sigbus                hidden by CODEWARDEN_HIDE"), "{text}");
        assert!(text.contains("names what nothing is called: bogus"), "{text}");
        assert!(text.lines().all(|line| line.len() <= 100), "{text}");
        assert!(text.contains("for sigbus: sigbus is hidden by CODEWARDEN_HIDE; remove it from the list"), "{text}");
        assert!(!text.contains("auto takes sigbus"), "{text}");
    }

    #[test]
    fn every_facility_and_mode_has_a_line() {
        let text = report(&Probe::with_hidden(""));
        for (_, name, _) in Facility::NAMES {
            assert!(text.contains(&format!("\n  {name} ")), "{name}: {text}");
        }
        for mode in Mode::ALL {
            assert!(text.contains(&format!("\n  {:<10}", mode.name())), "{mode}: {text}");
        }
        assert!(text.contains("auto takes "), "{text}");
    }
}
