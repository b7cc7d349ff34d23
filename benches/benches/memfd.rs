//! The same as `page`, on a memfd.

mod shared;

fn main() {
    let mut criterion = shared::criterion();
    shared::run(&mut criterion, &codewarden_bench::rows::memfd());
    criterion.final_summary();
}
