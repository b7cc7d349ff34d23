//! Lookups and their floors, the costs of one block among many and among few, and a commit that
//! replaces a block beside a first one, taken in turn: `cargo bench -p codewarden-bench --bench
//! many`, a minute. The report has the same rows.

use codewarden_bench::lookup::Sizes;
use codewarden_bench::{blocks, lookup, pair, replaced};

fn main() {
    let mut arguments = std::env::args().skip(1).filter(|argument| argument != "--bench");
    let (rounds, sizes) = match arguments.next().as_deref() {
        None => (30, Sizes::FULL),
        Some("--test") => (2, Sizes::QUICK),
        // A filter for the criterion benches, or an option of theirs.
        Some(_) => return,
    };
    let mut pairs = lookup::measure(rounds, sizes);
    pairs.extend(blocks::measure(rounds, sizes));
    pairs.push(replaced::measure(10 * rounds));
    println!("{}\n{}", pair::markdown(&pairs), pair::against_wanted(&pairs));
}
