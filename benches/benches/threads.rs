//! With another thread running: protecting, faults, the cycle; and two threads that fault at once.

mod shared;

fn main() {
    let mut criterion = shared::criterion();
    shared::run(&mut criterion, &codewarden_bench::rows::threads());
    criterion.final_summary();
}
