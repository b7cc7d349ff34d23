//! Threads at once: `cargo bench -p codewarden-bench --bench scale`, two minutes. The report has the
//! same table.

use codewarden_bench::open;
use codewarden_bench::scale::{self, Extent};

fn main() {
    let mut arguments = std::env::args().skip(1).filter(|argument| argument != "--bench");
    let extent = match arguments.next().as_deref() {
        None => Extent::FULL,
        Some("--test") => Extent::QUICK,
        // A filter for the criterion benches, or an option of theirs.
        Some(_) => return,
    };
    let scale = scale::measure(&open::modes(), extent);
    println!("{}\n{}", scale.markdown(), scale.against_wanted());
}
