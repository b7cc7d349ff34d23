//! C programs on the library: the examples, and a C++ one, linked with the static and
//! with the shared library.

mod support;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use support::{compiler, package, run, scratch, told};

/// What `rustc --print native-static-libs` says that the static library needs.
const SYSTEM_LIBRARIES: [&str; 5] = ["-lgcc_s", "-lpthread", "-lm", "-ldl", "-lc"];

/// The folder with `libcodewarden.a` and `libcodewarden.so`.
///
/// cargo builds neither for the tests of their own package, so cargo is asked once more:
/// into the folder and with the profile that this test was built with, where all that
/// they need is built already. Nothing is downloaded.
fn library() -> &'static Path {
    static LIBRARY: OnceLock<PathBuf> = OnceLock::new();
    LIBRARY.get_or_init(|| {
        // target/PROFILE/deps/TEST, with the name of the target before PROFILE where one
        // was asked for.
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

/// Compiles `source` with `with`; `None` where there is no such compiler.
fn build(with: &str, standard: &str, source: &Path, into: &Path, linked: Linked) -> Option<PathBuf> {
    let libraries = library();
    let name = source.file_stem().expect("a source's name");
    let program = into.join(name);
    let mut command = compiler(with)?;
    command.arg(standard).arg("-O1").arg("-g").arg(source).arg("-o").arg(&program);
    match linked {
        Linked::Static => command.arg(libraries.join("libcodewarden.a")).args(SYSTEM_LIBRARIES),
        Linked::Shared => {
            let libraries = libraries.display();
            command.args([format!("-L{libraries}"), format!("-Wl,-rpath,{libraries}"), "-lcodewarden".into()])
        }
    };
    run(&mut command);
    Some(program)
}

fn example(name: &str, test: &str, linked: Linked) -> Command {
    let source = package().join("examples").join(name);
    Command::new(build("gcc", "-std=c11", &source, &scratch(test), linked).expect("gcc"))
}

#[test]
fn the_first_embedding_runs() {
    for (test, linked) in [("embed-static", Linked::Static), ("embed-shared", Linked::Shared)] {
        let output = run(&mut example("embed.c", test, linked));
        assert!(told(&output).contains("before the store: yes, after it: no"), "{}", told(&output));
    }
}

/// Its interpreter is the oracle: it exits with 1 where stale code ran. Without tracking
/// stale code does run, so that the program can fail.
#[test]
fn a_jit_runs_no_stale_code_in_any_mode() {
    let mut jit = example("tiny_jit.c", "tiny-jit", Linked::Static);
    let output = run(&mut jit);
    let text = told(&output);
    let skips: Vec<&str> = text.lines().filter(|line| line.starts_with("SKIPPED")).collect();
    eprint!("{}", skips.iter().map(|line| format!("{line}\n")).collect::<String>());
    assert!(skips.is_empty() || std::env::var_os("CODEWARDEN_REQUIRE_ALL").is_none(), "{text}");
    assert_eq!(text.lines().count(), 4, "{text}");

    let control = jit.arg("none").output().expect("it runs");
    assert_eq!(control.status.code(), Some(1), "{}", told(&control));
    assert!(told(&control).contains("STALE CODE RAN"), "{}", told(&control));
}
