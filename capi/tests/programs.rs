//! C programs on the library: the examples, and a C++ one, linked with the static and
//! with the shared library.

mod support;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use support::{compiler, package, run, scratch, told};

/// The libraries that the static library needs, as `rustc --print native-static-libs`
/// lists them.
const SYSTEM_LIBRARIES: [&str; 5] = ["-lgcc_s", "-lpthread", "-lm", "-ldl", "-lc"];

/// The folder with `libcodewarden.a` and `libcodewarden.so`.
///
/// cargo builds neither for the tests of their own package, so this calls cargo once
/// more, for the folder and the profile of this test. All their dependencies are built
/// there already. Nothing is downloaded.
fn library() -> &'static Path {
    static LIBRARY: OnceLock<PathBuf> = OnceLock::new();
    LIBRARY.get_or_init(|| {
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
        let library =
            files.filter_map(|file| file.as_str().map(PathBuf::from)).find(|file| file.ends_with("libcodewarden.a"));
        library.expect("cargo names the library").parent().expect("a folder").to_owned()
    })
}

enum Linked {
    Static,
    Shared,
}

/// Compiles `source`, a path in this package, for `test`; `None` if there is no such
/// compiler.
fn build(compiled_by: &str, standard: &str, source: &str, test: &str, linked: Linked) -> Option<Command> {
    let libraries = library();
    let program = scratch(test).join("program");
    let mut command = compiler(compiled_by)?;
    command.arg(standard).arg("-O1").arg("-g").arg(package().join(source)).arg("-o").arg(&program);
    match linked {
        Linked::Static => command.arg(libraries.join("libcodewarden.a")).args(SYSTEM_LIBRARIES),
        Linked::Shared => {
            let libraries = libraries.display();
            command.args([format!("-L{libraries}"), format!("-Wl,-rpath,{libraries}"), "-lcodewarden".into()])
        }
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
        let output = run(&mut build_c("examples/embed.c", test, linked));
        assert!(told(&output).contains("before the store: yes, after it: no"), "{}", told(&output));
    }
}

/// Its interpreter gives the right result: it exits with 1 if stale code ran. Without
/// tracking stale code does run, so that the program can fail.
#[cfg(target_arch = "x86_64")] // the code that it emits
#[test]
fn a_jit_runs_no_stale_code_in_any_mode() {
    let mut jit = build_c("examples/tiny_jit.c", "tiny-jit", Linked::Static);
    let text = told(&run(&mut jit));
    note_skips(&text);
    assert_eq!(text.lines().count(), 4, "{text}");

    let control = jit.arg("none").output().expect("it runs");
    assert_eq!(control.status.code(), Some(1), "{}", told(&control));
    assert!(told(&control).contains("STALE CODE RAN"), "{}", told(&control));
}

#[test]
fn what_the_examples_do_without_holds_in_every_mode() {
    let program = build_c("tests/c/calls.c", "calls", Linked::Shared);
    for mode in ["sigbus", "thread", "mprotect", "deferred"] {
        let text = told(&run(Command::new(program.get_program()).arg(mode)));
        note_skips(&text);
        assert!(text.contains("all holds") || text.contains("SKIPPED"), "{mode}: {text}");
    }
    let control = Command::new(program.get_program()).arg("none").output().expect("it runs");
    assert!(!control.status.success(), "without tracking nothing holds");
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

/// And no symbol that another library of the embedder could have too.
#[test]
fn the_shared_library_exports_what_the_header_declares() {
    let mut nm = Command::new("nm");
    let symbols = told(&run(nm.args(["-D", "--defined-only", "-j"]).arg(library().join("libcodewarden.so"))));
    let exported: BTreeSet<&str> = symbols.lines().map(str::trim).collect();
    let header = std::fs::read_to_string(package().join("include/codewarden.h")).expect("the header");
    let (declarations, _inline) = header.split_once("/* ---- Without a call").expect("the header's last section");
    let lines = declarations.lines().filter(|line| !line.trim_start().starts_with(['/', '*']));
    let calls = lines.filter_map(|line| line.split_once('(')).filter_map(|(call, _)| call.rsplit([' ', '*']).next());
    let declared: BTreeSet<&str> = calls.filter(|name| name.starts_with("cw_")).collect();
    assert_eq!(exported, declared);
    assert!(exported.len() > 50, "{exported:?}");
}
