//! The output for people: the demo, `--stats`, `--probe`, `-d`, and errors with their exit
//! statuses, through the real binary.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use codewarden::protection::Mode;
use demo_emulator::translate::HAS_QUICK;
use serde_json::Value;

fn emulator() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_demo-emulator"));
    command.env_remove("CODEWARDEN_HIDE");
    command
}

/// A folder of the test's own.
fn folder(name: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("output-{name}-{}", std::process::id()));
    fs::create_dir_all(&path).unwrap();
    path
}

fn guest() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../guest-tests/guests/demo.elf")
}

fn output(command: &mut Command) -> Output {
    command.output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Removes a folder; the folder of a failed test stays for inspection.
fn done(folder: &Path) {
    fs::remove_dir_all(folder).unwrap();
}

/// Fails unless `text` has all of `parts`, in this order.
fn assert_in_order(text: &str, parts: &[&str]) {
    let mut rest = text;
    for part in parts {
        let at = rest.find(part).unwrap_or_else(|| panic!("no {part:?}, or not in its place, in:\n{text}"));
        rest = &rest[at + part.len()..];
    }
}

const DEMO: &[&str] = &[
    "Tracking ",
    "step 1",
    "protect     page 0x",
    "translate   answer at ",
    "answer() = 41",
    "write       main+",
    " stored to answer (",
    "was 02900513, is 02a00513",
    "invalidate  answer",
    "protect     page 0x",
    "translate answer at ",
    "* 0x",
    "addi a0, zero, 0x29",
    "addi a0, zero, 0x2a",
    "  0x",
    "ret",
    "patched = 42",
    "step 2",
    "write       tally+0x8 ",
    " stored to tally_counter (",
    "data beside the code",
    "invalidate  ",
    "check       page 0x",
    "own page = 1000",
    "step 3",
    "cool        page 0x",
    "write       main+",
    " stored to formula (",
    "translate formula at ",
    "5 instructions",
    "slli a0, a0, 1",
    "mul a0, a0, t0",
    "three = 178",
    "step 4",
    "on hart 1",
    " stored to version (",
    "invalidate  ",
    "translate version at ",
    "on hart 1",
    "seen once = 60",
    "mprotect",
    "write faults",
    "mappings of the process",
    "ms from start to end",
];

#[test]
fn the_demo_reports_in_order_in_every_synchronous_mode_and_tier() {
    let folder = folder("demo");
    for tracking in ["auto", "mprotect"] {
        for tier in ["auto", "0", "1", "2"] {
            // The demo works from any directory.
            let options = ["--tracking", tracking, "--tier", tier];
            let run = output(emulator().args(options).current_dir(&folder));
            let (stdout, stderr) = (text(&run.stdout), text(&run.stderr));
            assert_eq!(run.status.code(), Some(0), "{tracking} {tier}: {stdout}{stderr}");
            assert_eq!(stderr, "");
            // "retranslate" ends in "translate", so the list fits every tier.
            assert_in_order(&stdout, DEMO);
            // A change is reported at the store or, if the page was written to often, at the next
            // entry.
            let reported_stores = stdout.matches(" stored to version (").count();
            let reported_entries = stdout.matches("compare     version (").count();
            // An immediate repetition is reported in one line.
            let step = stdout.rsplit("step 4").next().unwrap_or_default();
            let repeated = step.matches("again       the same store").count();
            assert!(reported_stores + reported_entries + repeated >= 3, "{stdout}");
            // Interpreters know the storing hart.
            let by_hart_0 = stdout.matches(" on hart 0 stored to version (").count();
            assert_eq!(by_hart_0, if ["1", "2"].contains(&tier) { 0 } else { reported_stores }, "{stdout}");
            assert!(!stdout.contains('\x1b'), "colours without a terminal");
            let long: Vec<_> = stdout.lines().filter(|line| line.chars().count() > 100).collect();
            assert!(long.is_empty(), "{long:?}");
        }
    }
    done(&folder);
}

#[test]
fn the_demo_reports_stale_code_too() {
    let run = output(emulator().args(["--tracking", "none"]));
    let stdout = text(&run.stdout);
    assert_eq!(run.status.code(), Some(10), "{stdout}");
    assert_in_order(&stdout, &["expect stale code", "translate   answer", "and should be 42: stale code"]);
    assert!(!stdout.contains("    write ") && !stdout.contains("    protect "), "{stdout}");
}

fn stats(options: &[&str]) -> Value {
    let run = output(emulator().args(["--stats=json"]).args(options).arg(guest()));
    assert_eq!(run.status.code(), Some(0), "{}", text(&run.stderr));
    serde_json::from_slice(&run.stderr).unwrap()
}

fn count(stats: &Value, name: &str) -> u64 {
    stats[name].as_u64().unwrap_or_else(|| panic!("no {name} in {stats}"))
}

#[test]
fn the_counters_of_a_run_make_sense() {
    for (tracking, tier) in [("auto", "auto"), ("mprotect", "0"), ("mprotect", "1"), ("mprotect", "2")] {
        let stats = stats(&["--tracking", tracking, "--tier", tier]);
        let count = |name| count(&stats, name);
        let mode = stats["mode"].as_str().unwrap();
        assert!(Mode::from_name(mode).is_some_and(Mode::is_synchronous), "{stats}");
        assert!(tracking == "auto" || mode == tracking, "{stats}");
        assert_eq!(stats["tier"], tier);
        assert!(!stats["why"].as_str().unwrap().is_empty(), "{stats}");
        // At least one in each of four steps.
        assert!(count("faults") >= 4 && count("self_checking") >= 1 && count("cooled") >= 1, "{stats}");
        assert!(count("protects") > count("faults") / 2, "{stats}");
        // One call protects neighbours.
        let protecting = stats["histograms"]["protect_pages"]["count"].as_u64().unwrap();
        assert!(count("protection_calls") >= protecting + count("faults"), "{stats}");
        let ended = count("invalidated") + count("removed");
        // `auto` interprets the first run of new code.
        let fewest = if tier == "auto" { 2 } else { 3 };
        assert!(ended >= count("retranslated") && count("retranslated") >= fewest, "{stats}");
        assert!(count("committed") > count("retranslated"), "{stats}");
        // No block of this guest runs often enough for a region in `auto`.
        let made = ["blocks_decoded", "blocks_compiled", "regions_compiled"].map(count);
        assert_eq!(
            made.map(|made| made > 0),
            [["0", "auto"].contains(&tier), ["1", if HAS_QUICK { "auto" } else { "1" }].contains(&tier), tier == "2"],
            "{stats}"
        );
        let made: u64 = made.iter().sum();
        // A revival may be refused as well.
        assert!(made >= count("committed") && made <= count("committed") + count("refused"), "{stats}");
        assert!(count("vmas") > 5 && count("run_time_us") > 0, "{stats}");
    }
}

#[test]
fn auto_compiles_hot_blocks_alone() {
    let hot = guest().with_file_name("workload-compute.elf");
    let run = output(emulator().arg("--stats=json").arg(hot));
    assert_eq!(run.status.code(), Some(0), "{}", text(&run.stderr));
    let stats: Value = serde_json::from_slice(&run.stderr).unwrap();
    let [decoded, compiled, regions] =
        ["blocks_decoded", "blocks_compiled", "regions_compiled"].map(|name| count(&stats, name));
    assert!(0 < compiled && compiled < decoded && (!HAS_QUICK || 0 < regions && regions < compiled), "{stats}");
    // The decoded block of a compiled one is removed.
    assert_eq!(count(&stats, "removed"), if HAS_QUICK { compiled } else { regions }, "{stats}");
}

#[test]
fn the_interpreter_has_no_counters_of_translations() {
    let stats = stats(&["--interpret"]);
    assert_eq!((&stats["tier"], &stats["mode"]), (&Value::from("interpreter"), &Value::Null));
    assert!(stats.get("faults").is_none() && count(&stats, "vmas") > 5, "{stats}");
}

#[test]
fn stats_for_people_name_their_units() {
    let folder = folder("stats");
    let log = folder.join("log");
    let run = output(emulator().args(["--stats", "--tracking", "mprotect", "-D"]).arg(&log).arg(guest()));
    assert_eq!((run.status.code(), text(&run.stderr)), (Some(0), String::new()));
    let text = fs::read_to_string(log).unwrap();
    let parts = [
        "tier auto, tracking mprotect: asked for",
        "Writes\n",
        "write faults\n",
        "(VMAs)",
        "ms from start",
        "from the handler's entry to its return ",
        " protected, ",
        "Pages written to most",
        "\n  0x13000 answer",
        "  by 0x11",
        " main+0x",
        ", the last to 0x13",
    ];
    assert_in_order(&text, &parts);
    done(&folder);
}

#[test]
fn guest_and_host_code_are_logged_as_it_is_translated() {
    let folder = folder("asm");
    let log = folder.join("log");
    let options = ["-d", "in_asm,out_asm", "--tier", "2", "--tracking", "mprotect", "-D"];
    let run = output(emulator().args(options).arg(&log).arg(guest()));
    assert_eq!((run.status.code(), text(&run.stderr)), (Some(0), String::new()));
    let text = fs::read_to_string(&log).unwrap();
    let before =
        ["IN: _start\n", "IN: answer\n", "addi a0, zero, 0x29", "ret", "OUT: [size=", "-- guest addr 0x", "push rbp"];
    assert_in_order(&text, &before);
    assert_in_order(&text, &["IN: answer\n", "0x29", "IN: answer\n", "addi a0, zero, 0x2a", "IN: formula\n"]);

    let run = output(emulator().args(["-d", "in_asm", "--tier", "0", "--tracking", "mprotect"]).arg(guest()));
    let text = self::text(&run.stderr);
    assert_in_order(&text, &["IN: answer  (tier 0)\n", "addi a0, zero, 0x29"]);
    assert!(!text.contains("OUT:"), "{text}");
    done(&folder);
}

#[test]
fn the_probe_names_present_and_hidden_facilities() {
    let run = output(emulator().arg("--probe"));
    assert_eq!(run.status.code(), Some(0));
    let all = text(&run.stdout);
    assert_in_order(&all, &["kernel    Linux ", "userfaultfd", "tracking modes", "mprotect  yes", "auto takes "]);
    let run = output(emulator().arg("--probe").env("CODEWARDEN_HIDE", "uffd"));
    let hidden = text(&run.stdout);
    let parts = ["uffd ", "hidden by CODEWARDEN_HIDE", "sigbus    no", "auto takes mprotect"];
    assert_in_order(&hidden, &parts);
    assert_in_order(&hidden, &["what to change", "for sigbus, thread, deferred: "]);
}

#[test]
fn the_probe_in_json_says_the_same() {
    for (hidden, mode, change) in
        [("sigbus", "thread", "for sigbus: "), ("wp", "mprotect", "for sigbus, thread, deferred: ")]
    {
        let run = output(emulator().arg("--probe=json").env("CODEWARDEN_HIDE", hidden));
        let line = text(&run.stdout);
        let found: Value = serde_json::from_str(&line).unwrap();
        assert_eq!(found["auto"]["mode"], mode, "{line}");
        assert_eq!(found["facilities"][hidden]["hidden"], true, "{line}");
        assert_eq!(found["modes"]["sigbus"]["available"], false, "{line}");
        let why = found["modes"]["sigbus"]["why_missing"].as_str().unwrap();
        assert!(why.contains("CODEWARDEN_HIDE; remove it"), "{line}");
        assert!(found["changes"][0].as_str().unwrap().starts_with(change), "{line}");
    }
}

/// The exit status and the message of a command line.
fn failure(command: &mut Command) -> (i32, String) {
    let run = output(command);
    assert_eq!(text(&run.stdout), "", "{}", text(&run.stderr));
    (run.status.code().unwrap(), text(&run.stderr))
}

#[test]
fn errors_give_advice_and_end_with_a_shells_statuses() {
    let folder = folder("errors");
    let broken = folder.join("broken");
    fs::write(&broken, b"\x7fELF\x02\x01\x01\0 and no more").unwrap();
    fs::set_permissions(&broken, fs::Permissions::from_mode(0o755)).unwrap();
    let other = std::env::current_exe().unwrap();
    let limited = format!("ulimit -v 1000000; exec {} {}", env!("CARGO_BIN_EXE_demo-emulator"), guest().display());
    let no_data = limited.replace("ulimit -v 1000000", "ulimit -d 60000");
    let sigbus = ["--tracking", "sigbus"];
    for (command, status, parts) in [
        (emulator().arg(folder.join("missing")), 127, &["missing: no such file"][..]),
        (emulator().arg(&broken), 126, &["broken: "]),
        (emulator().arg(other), 126, &["an ELF file for machine ", "not for RISC-V"]),
        (emulator().args(["--frobnicate", "x"]), 2, &["--frobnicate", "--help"]),
        (emulator().args(["--tracking", "hope", "x"]), 2, &["sigbus", "mprotect", "--help"]),
        (emulator().args(["-d", "everything", "x"]), 2, &["in_asm"]),
        (
            emulator().args(["-D", "/no/such/folder/log"]).arg(guest()),
            125,
            &["-D /no/such/folder/log: cannot be opened", "No such file"],
        ),
        (emulator().args(["-L", "/no/such/root"]).arg(guest()), 125, &["-L /no/such/root: ", "No such file"]),
        (emulator().arg("-L").arg(&broken).arg(guest()), 125, &["-L ", "broken: is not a directory"]),
        (emulator().args(["-U", "A=B"]).arg(guest()), 2, &["-U A=B", "name", "--help"]),
        (emulator().args(["--probe", "more"]), 2, &["--probe stands alone", "more", "--help"]),
        (emulator().args(["--interpret", "--tier", "0"]).arg(guest()), 2, &["--tier", "--interpret", "--help"]),
        (
            emulator().args(["--interpret"]).arg(guest()).env("CODEWARDEN_HIDE", "no_such_thing"),
            125,
            &["CODEWARDEN_HIDE", "nothing is called: no_such_thing", "wp_async"],
        ),
        (
            emulator().args(["--tier", "2"]).arg(guest()).env("CODEWARDEN_HIDE", "membarrier_sync_core"),
            125,
            &["--tier 1 and 2: ", "membarrier_sync_core is hidden by CODEWARDEN_HIDE", "--tier 0"],
        ),
        (
            emulator().arg(guest()).env("CODEWARDEN_HIDE", "uffd,membarrier"),
            125,
            &["--tracking auto", "sigbus", "thread", "mprotect", "CODEWARDEN_HIDE", "--interpret"],
        ),
        (
            emulator().args(sigbus).arg(guest()).env("CODEWARDEN_HIDE", "uffd"),
            125,
            &["sigbus cannot be had here", "CODEWARDEN_HIDE", "--probe"],
        ),
        (
            emulator().arg("--probe").env("CODEWARDEN_HIDE", "uffd,no_such_thing"),
            2,
            &["CODEWARDEN_HIDE", "nothing is called: no_such_thing", "wp_async"],
        ),
        (
            emulator().arg(guest()).env("CODEWARDEN_HIDE", "no_such_thing"),
            125,
            &["CODEWARDEN_HIDE", "nothing is called: no_such_thing", "wp_async"],
        ),
        (Command::new("sh").args(["-c", &limited]), 125, &["address space", "ulimit -v unlimited"]),
        // Its table does not fit.
        (Command::new("sh").args(["-c", &no_data]), 125, &["address space", "64 MiB", "ulimit -d unlimited"]),
    ] {
        let (code, said) = failure(command);
        assert_eq!(code, status, "{said}");
        assert!(said.starts_with("demo-emulator: "), "{said}");
        assert_in_order(&said, parts);
    }
    done(&folder);
}

/// Only compiled code needs the barrier, and `auto` does without compiled code.
#[test]
fn without_a_barrier_for_code_the_rest_works() {
    for options in [&["--tier", "0"][..], &["--tier", "auto"], &["--interpret"]] {
        let run = output(emulator().args(options).arg(guest()).env("CODEWARDEN_HIDE", "membarrier_sync_core"));
        assert_eq!((run.status.code(), text(&run.stderr)), (Some(0), String::new()), "{options:?}");
    }
    let run = output(emulator().args(["--stats=json"]).arg(guest()).env("CODEWARDEN_HIDE", "membarrier_sync_core"));
    let stats: Value = serde_json::from_slice(&run.stderr).unwrap();
    assert_eq!(stats["tier"], "0");
    assert!(stats["why"].as_str().unwrap().contains("membarrier_sync_core is hidden by CODEWARDEN_HIDE"), "{stats}");
    let probe = text(&output(emulator().arg("--probe").env("CODEWARDEN_HIDE", "membarrier_sync_core")).stdout);
    assert_in_order(&probe, &["--tier 0 ", "yes  decoded", "--tier ", "no   blocks are compiled", "for compiled code"]);
}

/// If the requested mode is hidden, the message names both, for every mode.
#[test]
fn a_hidden_mode_is_named() {
    for (mode, hidden) in [
        ("sigbus", "sigbus"),
        ("thread", "wp"),
        ("deferred", "pagemap_scan"),
        ("mprotect", "membarrier"),
        ("sigbus", "uffd"),
    ] {
        let (code, said) = failure(emulator().args(["--tracking", mode]).arg(guest()).env("CODEWARDEN_HIDE", hidden));
        assert_eq!(code, 125, "{said}");
        assert!(said.contains(&format!("{mode} cannot be had here")), "{said}");
        assert!(said.contains(&format!("{hidden} is hidden by CODEWARDEN_HIDE")), "{said}");
    }
}

#[test]
fn a_full_log_is_reported_once_and_changes_nothing() {
    let run = output(emulator().args(["-strace", "--stats", "-D", "/dev/full"]).arg(guest()));
    assert_eq!(run.status.code(), Some(0));
    let said = text(&run.stderr);
    assert_in_order(&said, &["demo-emulator: -D /dev/full: cannot be written", "No space left"]);
    assert_eq!(said.lines().count(), 1, "{said}");
}

/// The tracking modes that this process can have; prints a skip for the others.
fn modes() -> Vec<&'static str> {
    let probe: Value = serde_json::from_slice(&output(emulator().arg("--probe=json")).stdout).unwrap();
    let has = |mode: &&str| {
        let has = probe["modes"][mode]["available"] == true;
        if !has {
            assert!(std::env::var_os("CODEWARDEN_REQUIRE_ALL").is_none(), "no {mode}");
            eprintln!("SKIPPED: this process has no {mode}");
        }
        has
    };
    ["sigbus", "thread", "mprotect", "deferred"].into_iter().filter(has).collect()
}

/// Runs a guest of the bundle under a limit of the shell.
fn limited(limit: &str, options: &str, name: &str) -> Output {
    let guest = guest().with_file_name(name);
    let line = format!("ulimit {limit}; exec {} {options} {}", env!("CARGO_BIN_EXE_demo-emulator"), guest.display());
    output(Command::new("sh").args(["-c", &line]).env_remove("CODEWARDEN_HIDE"))
}

/// A small program runs under these limits without an emulator.
#[test]
fn small_limits_leave_every_mode_as_it_is() {
    for limit in ["-n 16", "-n 10", "-n 8", "-f 32768", "-f 0", "-l 0"] {
        for mode in modes() {
            let run = limited(limit, &format!("--tracking {mode} --tier 2"), "demo.elf");
            assert_eq!(run.status.code(), Some(0), "{limit}, {mode}: {}", text(&run.stderr));
        }
    }
}

/// Under a low limit the emulator's own descriptors have low numbers. A guest that closes every
/// number closes none of them.
#[test]
fn low_descriptors_of_the_emulator_are_out_of_reach() {
    for mode in modes() {
        let run = limited("-n 32", &format!("--tracking {mode}"), "fork-descriptors.elf");
        assert_eq!(run.status.code(), Some(0), "{mode}: {}", text(&run.stderr));
    }
}
