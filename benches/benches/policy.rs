//! Programs that write code, under a policy and under the plain baseline; and `sync` compared with
//! the bare ioctl. This bench does not use criterion: a run is a whole program, and the result is
//! the difference of two runs. `-- TEXT` selects the rows with TEXT in their name. With `--test`
//! every run is small and takes place once.

use codewarden_bench::{open, policy};

struct Options {
    is_check: bool,
    text: String,
}

impl Options {
    /// Reads the arguments; `None` if they ask for other benches.
    fn parse(arguments: impl Iterator<Item = String>) -> Option<Self> {
        let mut options = Self { is_check: false, text: String::new() };
        for argument in arguments.filter(|argument| argument != "--bench") {
            match argument.as_str() {
                "--test" => options.is_check = true,
                _ if argument.starts_with('-') => return None,
                _ => options.text = argument,
            }
        }
        Some(options)
    }
}

fn main() {
    let Some(Options { is_check, text }) = Options::parse(std::env::args().skip(1)) else { return };
    let report = policy::measure(&open::modes(), &text, is_check);
    println!("{report}\n{}", report.against_wanted());
}
