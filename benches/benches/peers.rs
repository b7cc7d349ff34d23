//! The demo emulator and `qemu-riscv64`, as markdown on stdout: `cargo bench -p codewarden-bench
//! --bench peers`, optionally with `-- --rounds N`. With `--test` everything runs once, with few
//! operations. This bench does not use criterion, because the guests take the time.

use std::process::ExitCode;

use codewarden_bench::machine::Machine;
use codewarden_bench::peers::{self, Setup};

fn main() -> ExitCode {
    let mut setup = Setup { emulator: env!("CARGO_BIN_EXE_bench-emulator").into(), rounds: 7, share: 1 };
    let mut arguments = std::env::args().skip(1).filter(|argument| argument != "--bench");
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--test" => (setup.rounds, setup.share) = (1, 50),
            "--rounds" => match arguments.next().and_then(|value| value.parse().ok()) {
                Some(rounds) if rounds > 0 => setup.rounds = rounds,
                _ => {
                    eprintln!("peers: --rounds takes a number, 1 at least");
                    return ExitCode::FAILURE;
                }
            },
            // A filter for the criterion benches, or an option of theirs.
            _ => return ExitCode::SUCCESS,
        }
    }
    let outcome = peers::measure(&setup);
    println!("# Beside a peer\n\n{}{outcome}\n{}", Machine::here().markdown(), outcome.against_wanted());
    ExitCode::SUCCESS
}
