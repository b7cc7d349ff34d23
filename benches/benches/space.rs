//! The costs of reserved address space: `cargo bench -p codewarden-bench --bench space`, half a minute.

use codewarden_bench::space::{self, Extent};

fn main() {
    let mut arguments = std::env::args().skip(1).filter(|argument| argument != "--bench");
    let extent = match arguments.next().as_deref() {
        None => Extent::FULL,
        Some("--test") => Extent::QUICK,
        // A filter for the criterion benches, or an option of theirs.
        Some(_) => return,
    };
    println!("{}", space::measure(extent));
}
