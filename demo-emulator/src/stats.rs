//! `--stats`: what went on, at the guest's end.

use std::fmt::Write;
use std::fs;
use std::time::{Duration, Instant};

use serde_json::{Map, Value, json};

use crate::engine::Engine;

/// What is told of a run.
#[derive(Clone, Debug)]
pub struct Report {
    /// How guest code was run.
    pub tier: &'static str,
    /// How writes were learned of, and why so.
    pub mode: Option<(&'static str, String)>,
    /// Counters with their names, the library's first.
    pub counters: Vec<(&'static str, u64)>,
    /// Mappings of the process, as the kernel counts them.
    pub vmas: usize,
    /// From the guest's first instruction to its end.
    pub run_time: Duration,
}

impl Report {
    /// Of a run that began at `start`; without an engine, of the oracle's.
    pub fn new(engine: Option<&Engine>, start: Instant) -> Self {
        let vmas = fs::read("/proc/self/maps").map_or(0, |maps| maps.iter().filter(|byte| **byte == b'\n').count());
        let run_time = start.elapsed();
        let Some(engine) = engine else {
            return Self { tier: "oracle", mode: None, counters: Vec::new(), vmas, run_time };
        };
        let (mode, why) = engine.mode();
        let counters = engine.cache().stats().entries().chain(engine.stats().entries()).collect();
        Self { tier: engine.tier().name(), mode: Some((mode.name(), why.to_owned())), counters, vmas, run_time }
    }

    /// For people.
    pub fn text(&self) -> String {
        let mut text = format!("tier {}", self.tier);
        // Writing to a string does not fail.
        let _ = match &self.mode {
            Some((mode, why)) => writeln!(text, ", tracking {mode}: {why}"),
            None => writeln!(text, ", no translation"),
        };
        for (name, value) in &self.counters {
            let _ = writeln!(text, "{value:>12}  {}", label(name));
        }
        let _ = writeln!(text, "{:>12}  mappings of the process (VMAs)", self.vmas);
        let _ = writeln!(text, "{:>12.3}  ms from start to end", self.run_time.as_secs_f64() * 1e3);
        text
    }

    /// For programs: one line.
    pub fn json(&self) -> String {
        let mut object = Map::new();
        object.insert("pid".into(), json!(std::process::id()));
        object.insert("tier".into(), json!(self.tier));
        object.insert("mode".into(), json!(self.mode.as_ref().map(|(mode, _)| mode)));
        object.insert("why".into(), json!(self.mode.as_ref().map(|(_, why)| why)));
        object.extend(self.counters.iter().map(|(name, value)| ((*name).to_owned(), json!(value))));
        object.insert("vmas".into(), json!(self.vmas));
        object.insert("run_time_us".into(), json!(self.run_time.as_micros() as u64));
        format!("{}\n", Value::Object(object))
    }
}

/// What a counter counts, for people; its name where there is nothing to add.
fn label(name: &str) -> &str {
    match name {
        "faults" => "write faults",
        "pages_harvested" => "pages found written by harvests",
        "pages_announced" => "pages held for writes of the kernel and changes of mappings",
        "protects" => "pages protected",
        "protection_calls" => "system calls that protected and un-protected",
        "begins_busy" => "translations put off because a page was busy",
        "committed" => "blocks made reachable",
        "retranslated" => "blocks made reachable again (retranslations)",
        "refused" => "commits refused because a write came between",
        "invalidated" => "blocks invalidated",
        "freed" => "blocks freed",
        "blocks_decoded" => "blocks decoded for tier 0",
        "blocks_compiled" => "blocks compiled",
        "first_runs" => "first runs of code, interpreted",
        "oracle_runs" => "runs handed to the oracle",
        other => other,
    }
}
