//! A whole embedder: a JIT for a guest of seven instructions, with x86-64 code that it
//! emits itself, in every mode that is available here.
//!
//! ```text
//! cargo run --example tiny_jit
//! ```
//!
//! `guest.rs` has the guest and its x86-64 code. `machine.rs` has every call that an embedder
//! makes to the library, so read that one. The program here uses all of it: a block that
//! writes its own next instruction, a loop that another vCPU ends, code that the kernel writes,
//! more code than the limit allows, and a new mapping.

#[cfg(target_arch = "x86_64")]
#[path = "run.rs"]
mod tiny_jit;

#[cfg(target_arch = "x86_64")]
fn main() -> std::process::ExitCode {
    use codewarden::protection::{Mode, Probe};
    use tiny_jit::{Results, run};

    let probe = Probe::of_this_process();
    let mut failed = false;
    for mode in Mode::ALL.into_iter().filter(|&mode| mode != Mode::None) {
        if let Err(error) = probe.check(mode) {
            println!("{mode}: skipped: {error}");
            continue;
        }
        match run(mode) {
            Ok(run) if run.results == Results::RIGHT => println!("{mode}: right; {run}"),
            Ok(run) => {
                println!("{mode}: WRONG: {:?}, not {:?}", run.results, Results::RIGHT);
                failed = true;
            }
            Err(error) => {
                println!("{mode}: {error}");
                failed = true;
            }
        }
    }
    if failed { std::process::ExitCode::FAILURE } else { std::process::ExitCode::SUCCESS }
}

#[cfg(not(target_arch = "x86_64"))]
fn main() {
    println!("this example emits x86-64 code: there is none to run here");
}
