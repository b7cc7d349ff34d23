//! Runs rows under criterion: each mode, the library and its floor.

use std::time::Duration;

use codewarden_bench::ground::PAGES;
use codewarden_bench::rows::Row;
use codewarden_bench::side::{self, Who};
use criterion::{BenchmarkId, Criterion};

/// Short enough that all of `cargo bench` is a few minutes.
pub(crate) fn criterion() -> Criterion {
    Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_millis(800))
        .configure_from_args()
}

/// One benchmark for each mode and side of each row.
pub(crate) fn run(criterion: &mut Criterion, rows: &[Row]) {
    let modes = side::modes();
    for row in rows {
        let mut group = criterion.benchmark_group(row.name());
        for &mode in modes.iter().filter(|&&mode| row.exists_in(mode)) {
            for who in Who::ALL {
                let mut open = None;
                group.bench_function(BenchmarkId::new(mode.name(), who.name()), |bencher| {
                    let side = open.get_or_insert_with(|| side::open(who, mode, row.setting));
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
