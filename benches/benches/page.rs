//! Anonymous memory, one thread: a page protected, a block committed, a fault, the whole cycle.

mod shared;

fn main() {
    let mut criterion = shared::criterion();
    shared::run(&mut criterion, &codewarden_bench::rows::plain());
    criterion.final_summary();
}
