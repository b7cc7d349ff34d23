//! A C compiler, the library as C links it, and functions to run both.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// The folder of this package.
pub(crate) fn package() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// An empty folder for a test's files.
pub(crate) fn scratch(test: &str) -> PathBuf {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(test);
    let _ = std::fs::remove_dir_all(&dir);
    std::fs::create_dir_all(&dir).expect("a folder in the target folder");
    dir
}

/// gcc or g++ with the header's folder and every warning an error. A C compiler is
/// present wherever Rust links. Without a C++ compiler, that part is skipped, and the
/// skip is printed.
pub(crate) fn compiler(name: &str) -> Option<Command> {
    if Command::new(name).arg("--version").output().is_err() {
        assert!(name != "gcc", "no gcc: it is needed to link Rust programs too");
        assert!(std::env::var_os("CODEWARDEN_REQUIRE_ALL").is_none(), "no {name}, and nothing may be skipped");
        eprintln!("SKIPPED: this machine has no {name}");
        return None;
    }
    let mut command = Command::new(name);
    command.args(["-Wall", "-Wextra", "-Werror", "-pedantic"]).arg("-I").arg(package().join("include"));
    Some(command)
}

/// Runs a command that must succeed.
pub(crate) fn run(command: &mut Command) -> Output {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}\n{}", output.status, told(&output));
    output
}

/// The output of a program.
pub(crate) fn told(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}
