//! A guest writes and calls new code for ever, with little memory for translations. It goes on with
//! compiled code, and the blocks that it uses all the time are made again.

use std::path::Path;
use std::process::Command;

use codewarden::protection::{Mode, Probe};
use serde_json::Value;

/// Functions that the guest writes, each of them called.
const FUNCTIONS: u64 = 3000;

fn run(mode: Mode, tier: &str, limit: &str) -> Value {
    let guest = Path::new(env!("CARGO_MANIFEST_DIR")).join("../guest-tests/guests/bench-emit.elf");
    let mut command = Command::new(env!("CARGO_BIN_EXE_demo-emulator"));
    command.env_remove("CODEWARDEN_HIDE");
    command.args(["--stats=json", "--tracking", mode.name(), "--tier", tier, "--code-limit", limit]);
    let output = command.arg(guest).arg(FUNCTIONS.to_string()).output().unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(0), "{mode} {tier}: {text}");
    serde_json::from_str(&text).unwrap()
}

#[test]
fn code_is_evicted_and_comes_back() {
    let probe = Probe::of_this_process();
    for mode in [Mode::Sigbus, Mode::Deferred, Mode::Mprotect] {
        if let Err(error) = probe.check(mode) {
            assert!(std::env::var_os("CODEWARDEN_REQUIRE_ALL").is_none(), "{error}");
            println!("skipped: {error}");
            continue;
        }
        for tier in ["2", "1", "0"] {
            let stats = run(mode, tier, "128K");
            let count = |name: &str| stats[name].as_u64().unwrap_or_else(|| panic!("no {name} in {stats}"));
            println!("{mode} {tier}: {stats}");
            assert!(count("evicted") > 0 && count("discarded") > 0, "{mode} {tier}: {stats}");
            assert!(count("revived") > 0, "what is in use comes back: {mode} {tier}: {stats}");
            // If memory were short, the interpreter would run the blocks that did not fit.
            assert!(count("interpreter_runs") < FUNCTIONS / 20, "{mode} {tier}: {stats}");
        }
    }
}

#[test]
fn code_that_has_room_is_not_evicted() {
    let stats = run(Mode::Mprotect, "1", "64M");
    assert_eq!(stats["evicted"], 0, "{stats}");
}
