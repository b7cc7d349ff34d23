//! `--stats=json`: one line with one object.
//!
//! | name | what it is |
//! |---|---|
//! | `pid` | the process: a fork's child writes a line of its own |
//! | `tier`, `mode`, `why` | how code was run, how writes were learned of and why so; `mode` is null for the oracle |
//! | `vmas` | mappings of the process, as the kernel counts them |
//! | `run_time_us` | microseconds from the guest's first instruction to its end |
//! | the names of [`codewarden::Stats`] and [`EngineStats`](crate::engine::EngineStats) | counts |
//! | `histograms` | the names of [`codewarden::Histograms`], which end in their units; each has `count`, `sum`, `mean`, `max`, the estimates `p50`, `p90` and `p99`, and `buckets`: objects with `from`, `to` (inclusive) and `count` |
//! | `pages_by_state` | pages that a translator ever looked at: `open`, `protected`, `checked` |
//! | `hottest_pages` | the pages that were written to most while something was made from them, the hottest first |
//!
//! A page has `page` (its first address), `symbol`, `is_checked`, the counts of
//! writes by kind `code_hits`, `beside_hits`, `harvested` and `kernel_hits`,
//! `relapses`, `last_byte`, `last_byte_symbol` and `writers`: guest stores, the most
//! frequent first, each with `pc`, `pc_symbol`, `writes`, `last_byte` and
//! `last_byte_symbol`. `other_writes` were told without their store, or by stores
//! that are not among those. Addresses are numbers and the guest's; what is not
//! known is null. Without an engine the rows from the counts on are left out.

use codewarden::Histogram;
use serde_json::{Map, Value, json};

use super::{HotRow, Report, Tracked, Writer};
use crate::symbols::Symbols;

impl Report {
    /// For programs: one line.
    pub fn json(&self) -> String {
        let mut object = Map::new();
        object.insert("pid".into(), json!(std::process::id()));
        object.insert("tier".into(), json!(self.tier));
        object.insert("mode".into(), json!(self.tracked.as_ref().map(|tracked| tracked.mode)));
        object.insert("why".into(), json!(self.tracked.as_ref().map(|tracked| &tracked.why)));
        object.insert("vmas".into(), json!(self.vmas));
        object.insert("run_time_us".into(), json!(self.run_time.as_micros() as u64));
        if let Some(tracked) = &self.tracked {
            tracked.enter(&mut object);
        }
        format!("{}\n", Value::Object(object))
    }
}

impl Tracked {
    fn enter(&self, object: &mut Map<String, Value>) {
        object.extend(self.counters.iter().map(|(name, value)| ((*name).to_owned(), json!(value))));
        let histograms: Map<_, _> =
            self.histograms.iter().map(|(name, values)| ((*name).to_owned(), histogram(values))).collect();
        object.insert("histograms".into(), Value::Object(histograms));
        let pages = json!({
            "open": self.pages.open,
            "protected": self.pages.protected,
            "checked": self.pages.checked,
        });
        object.insert("pages_by_state".into(), pages);
        let hottest: Vec<_> = self.hottest.iter().map(|row| hot_page(row, &self.symbols)).collect();
        object.insert("hottest_pages".into(), Value::Array(hottest));
    }
}

fn histogram(values: &Histogram) -> Value {
    let bucket = |(values, count): (std::ops::RangeInclusive<u64>, u64)| json!({ "from": values.start(), "to": values.end(), "count": count });
    json!({
        "count": values.count(),
        "sum": values.sum(),
        "mean": values.mean(),
        "max": values.max(),
        "p50": values.percentile(50.0),
        "p90": values.percentile(90.0),
        "p99": values.percentile(99.0),
        "buckets": values.buckets().map(bucket).collect::<Vec<_>>(),
    })
}

fn hot_page(HotRow { page, writers }: &HotRow, symbols: &Symbols) -> Value {
    let name = |address: u64| symbols.name(address);
    let writer = |writer: &Writer| {
        json!({
            "pc": writer.pc,
            "pc_symbol": name(writer.pc),
            "writes": writer.writes,
            "last_byte": writer.last_byte,
            "last_byte_symbol": name(writer.last_byte),
        })
    };
    json!({
        "page": page.page.0,
        "symbol": name(page.page.0),
        "is_checked": page.is_checked,
        "code_hits": page.code_hits,
        "beside_hits": page.beside_hits,
        "harvested": page.harvested,
        "kernel_hits": page.kernel_hits,
        "relapses": page.relapses,
        "last_byte": page.last_byte.map(|byte| byte.0),
        "last_byte_symbol": page.last_byte.and_then(|byte| name(byte.0)),
        "writers": writers.known.iter().map(writer).collect::<Vec<_>>(),
        "other_writes": writers.other_writes,
    })
}
