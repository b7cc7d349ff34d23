//! How criterion measures here.

use std::time::Duration;

use criterion::Criterion;

/// Short enough that all of `cargo bench` is a few minutes.
pub(crate) fn criterion() -> Criterion {
    Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_millis(800))
        .configure_from_args()
}
