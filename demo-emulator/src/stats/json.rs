//! `--stats=json`: one line with one object; the parent module lists its fields.

use codewarden::Histogram;
use serde_json::{Map, Value, json};

use super::{HotRow, Report, Tracked, Writer};
use crate::symbols::Symbols;

impl Report {
    /// The report for programs: one line.
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
            "self_checking": self.pages.self_checking,
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
        "is_self_checking": page.is_self_checking,
        "code_hits": page.code_hits,
        "data_hits": page.data_hits,
        "harvested": page.harvested,
        "kernel_hits": page.kernel_hits,
        "relapses": page.relapses,
        "last_byte": page.last_byte.map(|byte| byte.0),
        "last_byte_symbol": page.last_byte.and_then(|byte| name(byte.0)),
        "writers": writers.known.iter().map(writer).collect::<Vec<_>>(),
        "other_writes": writers.other_writes,
    })
}
