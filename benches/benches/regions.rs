//! A region added, claimed from, stored to and removed, beside many others of the same tracker:
//! `cargo bench -p codewarden-bench --bench regions`, 20 seconds.

use codewarden_bench::regions;

fn main() {
    let mut arguments = std::env::args().skip(1).filter(|argument| argument != "--bench");
    let (rounds, counts): (_, &[usize]) = match arguments.next().as_deref() {
        None => (400, &[1, 1_000, 10_000]),
        Some("--test") => (2, &[1, 100]),
        // A number of regions.
        Some(count) if count.parse::<usize>().is_ok() => (400, &[count.parse().unwrap_or(1)]),
        // A filter for the criterion benches, or an option of theirs.
        Some(_) => return,
    };
    println!("{}", regions::markdown(&regions::measure(rounds, counts)));
}
