//! C and C++ programs on the library: the examples, linked with the static and with the shared
//! library, and programs that check calls and answers.

mod support;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use support::{compiler, package, run, scratch, told};

/// The libraries that the static library needs, as `rustc --print native-static-libs`
/// lists them.
const SYSTEM_LIBRARIES: [&str; 5] = ["-lgcc_s", "-lpthread", "-lm", "-ldl", "-lc"];

/// `libcodewarden.a`.
///
/// cargo does not build it for the tests of its own package, so this calls cargo once
/// more, for the folder and the profile of this test. All its dependencies are built
/// there already. Nothing is downloaded.
fn archive() -> &'static Path {
    static ARCHIVE: OnceLock<PathBuf> = OnceLock::new();
    ARCHIVE.get_or_init(|| {
        // target/PROFILE/deps/TEST; before PROFILE the name of the target, if one was
        // asked for.
        let test = std::env::current_exe().expect("this test");
        let profile = test.ancestors().nth(2).expect("a folder of a profile");
        let name = profile.file_name().and_then(|name| name.to_str()).expect("a profile");
        let mut cargo = Command::new(env!("CARGO"));
        cargo.args(["build", "--offline", "--locked", "--package", "codewarden-capi", "--lib"]);
        cargo.args(["--message-format", "json", "--profile", if name == "debug" { "dev" } else { name }]);
        cargo.arg("--target-dir").arg(profile.parent().expect("a target folder"));
        let output = run(cargo.current_dir(package()));
        let text = String::from_utf8(output.stdout).expect("JSON");
        let messages = text.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).expect("a message"));
        let files = messages.filter_map(|message| message["filenames"].as_array().cloned()).flatten();
        let mut files = files.filter_map(|file| file.as_str().map(PathBuf::from));
        files.find(|file| file.ends_with("libcodewarden.a")).expect("cargo names the library")
    })
}

/// `libcodewarden.so`, linked from the archive as the Makefile does. It has no soname, so that
/// programs find it by the path with which they are linked, whatever else a search would find.
fn shared() -> &'static Path {
    static SHARED: OnceLock<PathBuf> = OnceLock::new();
    SHARED.get_or_init(|| {
        let library = scratch("shared").join("libcodewarden.so");
        let mut link = Command::new("gcc");
        link.args(["-shared", "-Wl,--gc-sections", "-Wl,-z,defs"]);
        link.arg(format!("-Wl,--version-script={}", package().join("symbols.map").display()));
        link.arg("-Wl,--whole-archive").arg(archive()).arg("-Wl,--no-whole-archive").args(SYSTEM_LIBRARIES);
        run(link.arg("-o").arg(&library));
        library
    })
}

enum Linked {
    Static,
    Shared,
}

/// Compiles `source`, a path in this package, for `test`; `None` if there is no such
/// compiler.
fn build(compiled_by: &str, standard: &str, source: &str, test: &str, linked: Linked) -> Option<Command> {
    let program = scratch(test).join("program");
    let mut command = compiler(compiled_by)?;
    command.arg(standard).arg("-O1").arg("-g").arg(package().join(source)).arg("-o").arg(&program);
    match linked {
        Linked::Static => command.arg(archive()).args(SYSTEM_LIBRARIES),
        Linked::Shared => command.arg(shared()),
    };
    run(&mut command);
    Some(Command::new(program))
}

fn build_c(source: &str, test: &str, linked: Linked) -> Command {
    build("gcc", "-std=c11", source, test, linked).expect("gcc")
}

/// Prints the modes that a program could not use here, and fails if all are demanded.
fn note_skips(text: &str) {
    for skip in text.lines().filter(|line| line.starts_with("SKIPPED")) {
        eprintln!("{skip}");
        assert!(std::env::var_os("CODEWARDEN_REQUIRE_ALL").is_none(), "{skip}");
    }
}

#[test]
fn the_first_embedding_runs() {
    for (test, linked) in [("embed-static", Linked::Static), ("embed-shared", Linked::Shared)] {
        let mut embed = build_c("examples/embed.c", test, linked);
        let output = run(&mut embed);
        assert!(told(&output).contains("before the store: yes, after it: no"), "{}", told(&output));
        let control = embed.arg("none").output().expect("it runs");
        assert_eq!(control.status.code(), Some(1), "{}", told(&control));
    }
}

/// Runs `program` in every mode. Without tracking it must fail, or it tests nothing.
fn runs_in_every_mode(program: &Command) {
    let in_mode = |mode: &str| {
        let mut run = Command::new(program.get_program());
        run.arg(mode);
        run
    };
    for mode in ["sigbus", "thread", "mprotect", "deferred"] {
        note_skips(&told(&run(&mut in_mode(mode))));
    }
    let control = in_mode("none").output().expect("it runs");
    assert_eq!(control.status.code(), Some(1), "without tracking: {}", told(&control));
}

/// They know the right result: they exit with 1 if stale code ran.
#[cfg(target_arch = "x86_64")] // the code that it emits
#[test]
fn a_jit_runs_no_stale_code_in_any_mode() {
    for (test, linked) in [("tiny-jit-static", Linked::Static), ("tiny-jit-shared", Linked::Shared)] {
        runs_in_every_mode(&build_c("examples/tiny_jit.c", test, linked));
    }
    runs_in_every_mode(&build_c("tests/c/jit.c", "jit", Linked::Static));
}

#[test]
fn a_cache_of_ones_own_runs_no_stale_code_in_any_mode() {
    for (test, linked) in [("tracker-static", Linked::Static), ("tracker-shared", Linked::Shared)] {
        runs_in_every_mode(&build_c("examples/tracker.c", test, linked));
    }
    for (test, linked) in [("own-cache-static", Linked::Static), ("own-cache-shared", Linked::Shared)] {
        let program = build("g++", "-std=c++17", "examples/own_cache.cpp", test, linked);
        program.iter().for_each(runs_in_every_mode);
    }
}

#[test]
fn what_the_examples_do_without_holds_in_every_mode() {
    runs_in_every_mode(&build_c("tests/c/calls.c", "calls", Linked::Shared));
}

#[test]
fn what_the_header_says_of_trackers_holds_in_every_mode() {
    runs_in_every_mode(&build_c("tests/c/told.c", "told", Linked::Shared));
}

#[test]
fn claims_without_a_lock_hold_under_threads_in_every_mode() {
    runs_in_every_mode(&build_c("tests/c/threads.c", "threads", Linked::Static));
}

/// Beside a model of the guest's mappings.
#[test]
fn random_calls_leave_no_stale_claim_in_any_mode() {
    runs_in_every_mode(&build_c("tests/c/random.c", "random", Linked::Static));
}

#[test]
fn what_the_header_says_of_mistakes_is_so() {
    let mut program = build_c("tests/c/answers.c", "answers", Linked::Static);
    let text = told(&run(&mut program));
    note_skips(&text);
    assert!(text.contains("all holds") || text.contains("SKIPPED"), "{text}");
    run(program.arg("nothing").env("CODEWARDEN_HIDE", "membarrier"));
}

#[test]
fn a_program_in_cpp_runs() {
    if let Some(mut program) = build("g++", "-std=c++17", "tests/c/handles.cpp", "cpp", Linked::Static) {
        run(&mut program);
    }
}

/// The functions that the header declares.
fn declared() -> BTreeSet<String> {
    let header = std::fs::read_to_string(package().join("include/codewarden.h")).expect("the header");
    let (declarations, _inline) = header.split_once("/* ---- Without a call").expect("the header's last section");
    let lines = declarations.lines().filter(|line| !line.trim_start().starts_with(['/', '*', '#']));
    let calls = lines.filter_map(|line| line.split_once('(')).filter_map(|(call, _)| call.rsplit([' ', '*']).next());
    calls.filter(|name| name.starts_with("cw_")).map(str::to_owned).collect()
}

/// The list of exported symbols with their version, which is the linker's too.
fn listed() -> (String, BTreeSet<String>) {
    let map = std::fs::read_to_string(package().join("symbols.map")).expect("the list of symbols");
    let version = map.lines().find_map(|line| line.strip_suffix(" {")).expect("a version").to_owned();
    let names = map.lines().filter_map(|line| line.trim().strip_suffix(';'));
    (version, names.filter(|name| name.starts_with("cw_")).map(str::to_owned).collect())
}

/// A symbol that is taken away breaks programs; one that is not listed is not exported.
#[test]
fn the_header_declares_the_listed_symbols() {
    let (declared, (_, listed)) = (declared(), listed());
    let difference: Vec<_> = declared.symmetric_difference(&listed).collect();
    assert!(difference.is_empty(), "include/codewarden.h and symbols.map differ in {difference:?}");
    assert!(listed.len() > 50, "{listed:?}");
}

/// And no symbol that another library of the embedder could have too.
#[test]
fn the_shared_library_exports_the_listed_symbols() {
    let mut nm = Command::new("nm");
    let symbols = told(&run(nm.args(["-D", "--defined-only"]).arg(shared())));
    let functions = symbols.lines().filter(|line| !line.contains(" A "));
    let exported: BTreeSet<String> =
        functions.filter_map(|line| line.split(' ').next_back().map(str::to_owned)).collect();
    let (version, listed) = listed();
    assert_eq!(exported, listed.iter().map(|name| format!("{name}@@{version}")).collect());
}

/// The soname and the version of the symbols have the part of the version that an
/// incompatible change moves.
#[test]
fn symbols_have_the_version_of_the_package() {
    let (major, minor) = (env!("CARGO_PKG_VERSION_MAJOR"), env!("CARGO_PKG_VERSION_MINOR"));
    let compatible = if major == "0" { format!("0.{minor}") } else { major.to_owned() };
    assert_eq!(listed().0, format!("CODEWARDEN_{compatible}"));
}
