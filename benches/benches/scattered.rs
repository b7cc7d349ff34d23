//! Scattered pages: how many can be protected, in how many VMAs. This bench does not use
//! criterion: each run is a process of its own, and the result is the count that it reaches.

use codewarden_bench::open;
use codewarden_bench::scattered;
use codewarden_bench::side::Who;

fn main() {
    scattered::work_if_child();
    let is_check = std::env::args().any(|argument| argument == "--test");
    let pages = if is_check { 40_000 } else { 1_000_000 };
    println!("{:10} {:8} {:>10} {:>6} {:>7} {:>8}", "mode", "side", "pages", "errno", "VMAs", "ns/page");
    for mode in open::modes() {
        for who in Who::ALL {
            let outcome = scattered::run(who, mode, pages);
            let (reached, vmas, ns) = (outcome.reached, outcome.vmas, outcome.mean_ns());
            println!("{:10} {:8} {reached:>10} {:>6} {vmas:>7} {ns:>8.0}", mode.name(), who.name(), outcome.errno);
            scattered::check(mode, &outcome, pages);
        }
    }
}
