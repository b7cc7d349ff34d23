//! Runs rows under criterion: each mode, the library and its floor.

mod config;

use std::time::Duration;

use codewarden_bench::ground::PAGES;
use codewarden_bench::open;
use codewarden_bench::rows::Row;
use codewarden_bench::side::Who;
pub(crate) use config::criterion;
use criterion::{BenchmarkId, Criterion};

/// One benchmark for each mode and side of each row.
pub(crate) fn run(criterion: &mut Criterion, rows: &[Row]) {
    let modes = open::modes();
    for row in rows {
        let mut group = criterion.benchmark_group(row.name());
        for &mode in modes.iter().filter(|&&mode| row.exists_in(mode)) {
            for who in Who::ALL {
                let mut open = None;
                group.bench_function(BenchmarkId::new(mode.name(), who.name()), |bencher| {
                    let side = open.get_or_insert_with(|| open::open_side(who, mode, row.setting));
                    bencher.iter_custom(|pages| {
                        let batches = pages.div_ceil(PAGES as u64);
                        let total: Duration = (0..batches).map(|_| side.run(row.case)).sum();
                        total.mul_f64(pages as f64 / (batches * PAGES as u64) as f64)
                    });
                });
            }
        }
        group.finish();
    }
}
