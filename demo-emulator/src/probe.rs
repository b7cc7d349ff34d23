//! `--probe`: the modes and facilities that this kernel and these permissions allow, the mode that
//! `auto` takes and why, and the changes that allow a better one.

use std::fmt::Write;
use std::fs;

use codewarden::error::Error;
use codewarden::protection::{Facility, Mode, Probe};
use serde_json::{Map, Value, json};

use crate::style::wrapped;
use crate::translate::COMPILED_TIERS;

/// The report for people.
pub fn text(probe: &Probe) -> String {
    let mut text = String::new();
    // Writing to a string does not fail.
    let _ = describe(probe, &mut text);
    text
}

fn describe(probe: &Probe, text: &mut String) -> std::fmt::Result {
    writeln!(text, "kernel    Linux {}, user {}", probe.kernel, user())?;
    for (name, path) in SETTINGS {
        let value = setting(path).unwrap_or_else(|| "not there".to_owned());
        writeln!(text, "          {name} = {value}")?;
    }
    writeln!(text, "\nfacilities of the kernel, as this process has them")?;
    for (facility, name, since) in Facility::NAMES {
        let state = match (probe.has(facility), probe.is_hidden(facility)) {
            (true, _) => "yes",
            (_, true) => "hidden by CODEWARDEN_HIDE",
            _ => "no",
        };
        writeln!(text, "  {name:<22}{state:<27}since Linux {since}")?;
    }
    writeln!(text, "\nways to run guest code")?;
    for (name, about, needs) in WAYS {
        let state = if needs.is_none_or(|facility| probe.has(facility)) { "yes" } else { "no" };
        let option = if name == "compiled" { COMPILED_TIERS } else { name };
        writeln!(text, "  {option:<16}{state:<5}{about}")?;
    }
    writeln!(text, "\ntracking modes")?;
    for mode in Mode::ALL {
        let state = if probe.check(mode).is_ok() { "yes" } else { "no" };
        writeln!(text, "  {:<10}{state:<5}{}", mode.name(), about(probe, mode))?;
    }
    let auto = match probe.best_synchronous() {
        Ok((mode, why)) if probe.check(Mode::Sigbus).is_ok() => format!("auto takes {mode}: {why}"),
        // The reason is below.
        Ok((mode, _)) => format!("auto takes {mode}: the best synchronous mode that this process can have"),
        Err(error) => error.to_string(),
    };
    write!(text, "\n{}", wrapped(&auto))?;
    let changes: Vec<String> = changes(probe).collect();
    if !changes.is_empty() {
        writeln!(text, "\nwhat to change")?;
    }
    changes.iter().for_each(|change| text.push_str(&wrapped(change)));
    Ok(())
}

/// The report for programs: one line.
pub fn json(probe: &Probe) -> String {
    let object = |pairs: Vec<(&str, Value)>| {
        pairs.into_iter().map(|(name, value)| (name.to_owned(), value)).collect::<Map<String, Value>>()
    };
    let facility = |(facility, name, since)| {
        let (has, hidden) = (probe.has(facility), probe.is_hidden(facility));
        (name, json!({ "has": has, "hidden": hidden, "since": since, "why_missing": probe.why_missing(facility) }))
    };
    let mode = |mode: Mode| {
        let why = why_not(probe, mode);
        (mode.name(), json!({ "available": why.is_none(), "synchronous": mode.is_synchronous(), "why_missing": why }))
    };
    let way = |(name, _, needs): (&'static str, _, Option<Facility>)| {
        let why = needs.and_then(|facility| probe.why_missing(facility));
        (name, json!({ "available": why.is_none(), "why_missing": why }))
    };
    let (auto, why) = match probe.best_synchronous() {
        Ok((mode, why)) => (Some(mode.name()), why),
        Err(error) => (None, error.to_string()),
    };
    let report = object(vec![
        ("kernel", json!(probe.kernel)),
        ("user", json!(user())),
        ("settings", json!(object(SETTINGS.iter().map(|(name, path)| (*name, json!(setting(path)))).collect()))),
        ("facilities", json!(object(Facility::NAMES.into_iter().map(facility).collect()))),
        ("ways", json!(object(WAYS.into_iter().map(way).collect()))),
        ("modes", json!(object(Mode::ALL.into_iter().map(mode).collect()))),
        ("auto", json!({ "mode": auto, "why": why })),
        ("changes", json!(changes(probe).collect::<Vec<_>>())),
    ]);
    format!("{}\n", Value::Object(report))
}

fn user() -> u32 {
    rustix::process::geteuid().as_raw()
}

/// The settings that limit userfaultfd's users and the baseline's mappings.
const SETTINGS: [(&str, &str); 2] = [
    ("vm.unprivileged_userfaultfd", "/proc/sys/vm/unprivileged_userfaultfd"),
    ("vm.max_map_count", "/proc/sys/vm/max_map_count"),
];

fn setting(path: &str) -> Option<String> {
    fs::read_to_string(path).ok().map(|value| value.trim().to_owned())
}

fn about(probe: &Probe, mode: Mode) -> &'static str {
    match mode {
        Mode::Sigbus => "synchronous: a fault in the storing thread, by userfaultfd",
        Mode::Thread if probe.has(Facility::KernelFaults) => {
            "synchronous: a thread answers the fault, by userfaultfd; sees kernel writes"
        }
        Mode::Thread => "synchronous: a thread answers the fault, by userfaultfd",
        Mode::Mprotect => "synchronous: mprotect and SIGSEGV; the baseline, it splits mappings",
        Mode::Deferred => "writes are found when the guest flushes its instruction cache",
        _ => "nothing is tracked: stale code runs",
    }
}

/// The ways to run guest code, and the facility that each needs.
const WAYS: [(&str, &str, Option<Facility>); 3] = [
    ("--interpret", "every instruction is fetched and decoded", None),
    ("--tier 0", "decoded blocks are kept", None),
    (
        "compiled",
        "blocks are compiled; auto keeps to decoded ones if they cannot be",
        Some(Facility::MembarrierSyncCore),
    ),
];

/// The reason why `mode` is unavailable, and the change that makes it available.
fn why_not(probe: &Probe, mode: Mode) -> Option<String> {
    match probe.check(mode) {
        Ok(()) => None,
        Err(Error::ModeUnavailable { why, .. }) => Some(why),
        Err(error) => Some(error.to_string()),
    }
}

/// The use of each facility that no mode needs.
const BETTER: [(Facility, &str); 6] = [
    (Facility::WpUnpopulated, "cheaper protection (now each page is populated first)"),
    (Facility::KernelFaults, "kernel writes in mode thread"),
    (Facility::ExactAddress, "the exact byte of a write, in mode thread"),
    (Facility::ThreadId, "the id of the writing thread, in mode thread"),
    (Facility::WpShmem, "memfd and shared memory in modes sigbus and thread"),
    (Facility::MembarrierSyncCore, "compiled code"),
];

/// For each mode and then each facility that is unavailable, the change that makes it available.
fn changes(probe: &Probe) -> impl Iterator<Item = String> {
    let modes = Mode::ALL.into_iter().filter_map(|mode| Some((mode.name(), why_not(probe, mode)?)));
    // An improvement of these modes is of no use without one of them.
    let has_userfaultfd = [Mode::Sigbus, Mode::Thread].into_iter().any(|mode| probe.check(mode).is_ok());
    let better = BETTER.into_iter().filter_map(move |(facility, purpose)| {
        let needs_it = has_userfaultfd || facility == Facility::MembarrierSyncCore;
        Some((purpose, probe.why_missing(facility).filter(|_| needs_it)?))
    });
    // The report begins with this kernel's version.
    let briefly = |why: String| {
        let is_it = |facility: &Facility| probe.why_missing(*facility).is_some_and(|known| known == why);
        let missing = Facility::NAMES.into_iter().map(|(facility, ..)| facility).find(is_it);
        let since = missing.and_then(|facility| probe.newer_kernel(facility));
        since.map_or(why, |since| format!("Linux {since} or newer"))
    };
    // One sentence for each reason.
    let mut sentences: Vec<(String, String)> = Vec::new();
    for (purpose, why) in modes.chain(better).map(|(purpose, why)| (purpose, briefly(why))) {
        match sentences.iter_mut().find(|(_, known)| *known == why) {
            Some((all, _)) => *all = format!("{all}, {purpose}"),
            None => sentences.push((purpose.to_owned(), why)),
        }
    }
    sentences.into_iter().map(|(purposes, why)| format!("for {purposes}: {why}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hidden_facility_is_named_with_its_cost_and_its_remedy() {
        let probe = Probe::with_hidden("sigbus,kernel_faults");
        let text = text(&probe);
        assert!(text.contains("sigbus                hidden by CODEWARDEN_HIDE"), "{text}");
        assert!(text.lines().all(|line| line.len() <= 100), "{text}");
        assert!(text.contains("for sigbus: sigbus is hidden by CODEWARDEN_HIDE; remove it from the list"), "{text}");
        assert!(text.contains("for kernel writes in mode thread: kernel_faults is hidden"), "{text}");
        assert!(!text.contains("auto takes sigbus") && !text.contains("sees kernel writes"), "{text}");
    }

    #[test]
    fn without_a_mode_no_improvement_of_it_is_named() {
        let text = text(&Probe::with_hidden("wp,wp_unpopulated,exact_address"));
        assert!(text.contains("for sigbus, thread, deferred: wp is hidden"), "{text}");
        assert!(!text.contains("cheaper protection") && !text.contains("the exact byte of a write"), "{text}");
    }

    #[test]
    fn every_facility_and_mode_has_a_line() {
        let text = text(&Probe::with_hidden(""));
        for (_, name, _) in Facility::NAMES {
            assert!(text.contains(&format!("\n  {name} ")), "{name}: {text}");
        }
        for mode in Mode::ALL {
            assert!(text.contains(&format!("\n  {:<10}", mode.name())), "{mode}: {text}");
        }
        assert!(text.contains("auto takes "), "{text}");
    }

    #[test]
    fn without_compiled_code_the_other_ways_are_available() {
        let line = |hidden| {
            let text = text(&Probe::with_hidden(hidden));
            let at = text.find("ways to run guest code").unwrap();
            text[at..]
                .lines()
                .skip(1)
                .take(3)
                .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
                .collect::<Vec<_>>()
        };
        let has = |line: &str| {
            if line.contains(" yes ") {
                true
            } else {
                assert!(line.contains(" no "));
                false
            }
        };
        let without = line("membarrier_sync_core");
        assert_eq!(without.iter().map(|line| has(line)).collect::<Vec<_>>(), [true, true, false], "{without:?}");
        assert!(line("").iter().all(|line| has(line)));
        let parsed: Value = serde_json::from_str(&json(&Probe::with_hidden("membarrier_sync_core"))).unwrap();
        assert_eq!(parsed["ways"]["compiled"]["available"], false);
        assert_eq!(parsed["ways"]["--tier 0"]["available"], true);
        let why = parsed["ways"]["compiled"]["why_missing"].as_str().unwrap();
        assert!(why.contains("membarrier_sync_core is hidden by CODEWARDEN_HIDE"), "{why}");
    }

    /// Both forms report the same gaps.
    #[test]
    fn both_forms_agree() {
        for (_, hidden, _) in Facility::NAMES {
            let probe = Probe::with_hidden(hidden);
            let (text, line) = (text(&probe), json(&probe));
            let parsed: Value = serde_json::from_str(&line).unwrap();
            assert_eq!(line.lines().count(), 1);
            assert_eq!(parsed["facilities"][hidden]["hidden"], true, "{line}");
            let (auto, why) = (&parsed["auto"]["mode"], parsed["auto"]["why"].as_str().unwrap());
            let says = auto.as_str().map_or(why.to_owned(), |mode| format!("auto takes {mode}: "));
            let words = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
            assert!(words(&text).contains(&words(&says)), "{text}");
            assert_eq!(auto.is_null(), probe.best_synchronous().is_err(), "{line}");
            for mode in Mode::ALL {
                let has = parsed["modes"][mode.name()]["available"].as_bool().unwrap();
                assert_eq!(has, probe.check(mode).is_ok(), "{mode} without {hidden}");
                let is_told = text.lines().any(|line| {
                    line.strip_prefix("for ")
                        .and_then(|line| line.split_once(':'))
                        .is_some_and(|(modes, _)| modes.split(", ").any(|told| told == mode.name()))
                });
                assert_eq!(is_told, !has, "{text}");
            }
        }
    }
}
