//! `--stats`: the report at the guest's end. [`text`](Report::text) is for people,
//! [`json`](Report::json) for programs: one line with one object.
//!
//! | name | meaning |
//! |---|---|
//! | `pid` | the process: a fork's child writes its own line; its counts continue the parent's, and its pages begin anew |
//! | `tier`, `mode`, `why` | how guest code ran, the tracking mode, and the reason for that mode; `mode` is null for the interpreter |
//! | `vmas` | mappings of the process, as the kernel counts them |
//! | `run_time_us` | microseconds from the guest's first instruction to its end |
//! | the names of [`codewarden::Stats`] and [`EngineStats`](crate::engine::EngineStats) | counts |
//! | `histograms` | the names of [`codewarden::Histograms`], which end in their units; each has `count`, `sum`, `mean`, `max`, the estimates `p50`, `p90` and `p99`, and `buckets`: objects with `from`, `to` (inclusive) and `count` |
//! | `pages_by_state` | pages that a translator ever looked at: `open`, `protected`, `self_checking` |
//! | `hottest_pages` | the pages that were written to most while translations of them existed, the hottest first |
//!
//! A page has `page` (its first address), `symbol`, `is_self_checking`, the counts of writes by
//! kind `code_hits`, `data_hits`, `harvested` and `kernel_hits`, `relapses`, `last_byte`,
//! `last_byte_symbol` and `writers`. The writers are guest stores, the most frequent first, each
//! with `pc`, `pc_symbol`, `writes`, `last_byte` and `last_byte_symbol`. `other_writes` came from
//! unknown stores, or from stores that are not in the list. Addresses are the guest's, as numbers;
//! unknown values are null. Without an engine the rows from the counts on are left out.

mod json;
mod text;
mod writers;

use std::fs;
use std::time::{Duration, Instant};

use codewarden::Histogram;
use codewarden::tracker::{HotPage, PagesByState};

use crate::engine::Engine;
use crate::symbols::Symbols;
pub use writers::{PageWriters, Writer, Writers};

/// How many pages are reported one by one.
const HOT_PAGES: usize = 10;
/// How many stores are reported for each page.
const HOT_WRITERS: usize = 4;

/// The facts of a run.
#[derive(Clone, Debug)]
pub struct Report {
    /// How guest code was run.
    tier: &'static str,
    /// The facts about tracking; none for the interpreter.
    tracked: Option<Tracked>,
    /// Mappings of the process, as the kernel counts them.
    vmas: usize,
    /// From the guest's first instruction to its end.
    run_time: Duration,
}

/// The further facts of a run with an engine.
#[derive(Clone, Debug)]
struct Tracked {
    /// The tracking mode, and the reason for it.
    mode: &'static str,
    why: String,
    /// Counters with their names, the library's first.
    counters: Vec<(&'static str, u64)>,
    histograms: Vec<(&'static str, Histogram)>,
    pages: PagesByState,
    hottest: Vec<HotRow>,
    symbols: Symbols,
}

/// A page with many writes, and its writers.
#[derive(Clone, Debug)]
struct HotRow {
    page: HotPage,
    writers: PageWriters,
}

impl Report {
    /// The report of a run that began at `start`, with the guest's `symbols`; without an engine, of
    /// an interpreter's run. `writers` listened to the engine.
    pub fn new(engine: Option<&Engine>, writers: &Writers, symbols: &Symbols, start: Instant) -> Self {
        let run_time = start.elapsed();
        let vmas = fs::read("/proc/self/maps").map_or(0, |maps| maps.iter().filter(|byte| **byte == b'\n').count());
        let tier = engine.map_or("interpreter", |engine| engine.tier().name());
        let tracked = engine.map(|engine| Tracked::new(engine, writers, symbols));
        Self { tier, tracked, vmas, run_time }
    }
}

impl Tracked {
    fn new(engine: &Engine, writers: &Writers, symbols: &Symbols) -> Self {
        engine.finish();
        let (mode, why) = engine.mode();
        let (cache, tracker) = (engine.cache(), engine.cache().tracker());
        let hottest = tracker.hottest_pages(HOT_PAGES).into_iter();
        Self {
            mode: mode.name(),
            why: why.to_owned(),
            counters: cache.stats().entries().chain(engine.stats().entries()).collect(),
            histograms: cache.histograms().entries().collect(),
            pages: tracker.pages_by_state(),
            hottest: hottest.map(|page| HotRow { page, writers: writers.of_page(page.page.0, HOT_WRITERS) }).collect(),
            symbols: symbols.clone(),
        }
    }
}
