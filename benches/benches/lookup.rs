//! Finding a block: in a vCPU's front and in the shared table, compared with a bare array and a
//! hash map.

use std::time::Duration;

use codewarden_bench::lookup::{Finder, Lookups, Sizes};

#[path = "shared/config.rs"]
mod config;

fn main() {
    let mut criterion = config::criterion();
    let is_check = std::env::args().any(|argument| argument == "--test");
    let sizes = if is_check { Sizes::QUICK } else { Sizes::FULL };
    for blocks in [sizes.small, sizes.large] {
        let mut lookups = Lookups::new(blocks);
        for finder in Finder::ALL {
            criterion.bench_function(&format!("{}, {blocks} blocks", finder.name()), |bencher| {
                bencher.iter_custom(|times| {
                    // A run is many lookups: a few runs stand for `times` of one.
                    let runs = times.clamp(1, 20);
                    let total_ns: f64 = (0..runs).map(|_| lookups.run(finder)).sum();
                    Duration::from_nanos((total_ns / runs as f64 * times as f64) as u64)
                });
            });
        }
    }
    criterion.final_summary();
}
