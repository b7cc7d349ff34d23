//! Finding a block: in a vCPU's front and in the shared table, beside a bare
//! array and a hash map.

use std::time::Duration;

use codewarden_bench::lookup::{Finder, Lookups};

#[path = "shared/config.rs"]
mod config;

fn main() {
    let mut criterion = config::criterion();
    let mut lookups = Lookups::new();
    for finder in Finder::ALL {
        criterion.bench_function(finder.name(), |bencher| {
            bencher.iter_custom(|times| {
                // A run is many lookups: a few runs stand for `times` of one.
                let runs = times.clamp(1, 20);
                let total_ns: f64 = (0..runs).map(|_| lookups.run(finder)).sum();
                Duration::from_nanos((total_ns / runs as f64 * times as f64) as u64)
            });
        });
    }
    criterion.final_summary();
}
