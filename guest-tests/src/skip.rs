//! Visible skips: a test that cannot run here says so and is counted. If everything is
//! demanded, it fails.

use std::io::Write;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

static SKIPPED: AtomicU32 = AtomicU32::new(0);

/// Reports that a test does not run here.
///
/// # Panics
///
/// If `CODEWARDEN_REQUIRE_ALL=1` demands that nothing is skipped.
pub fn skip(test: &str, reason: &str) {
    let count = SKIPPED.fetch_add(1, Ordering::Relaxed) + 1;
    if std::env::var("CODEWARDEN_REQUIRE_ALL").is_ok_and(|v| v == "1") {
        panic!("{test}: skipped although CODEWARDEN_REQUIRE_ALL=1: {reason}");
    }
    note(test, &format!("SKIPPED ({count} in this binary): {reason}"));
}

/// Prints a text about a test even if the test passes.
pub fn note(test: &str, text: &str) {
    // Not eprintln: the test harness would swallow it. A lost line does no harm.
    let _ = writeln!(std::io::stderr(), "{test}: {text}");
}

/// The path of a program, if the system has it.
pub fn find_program(name: &str) -> Option<PathBuf> {
    std::env::split_paths(&std::env::var_os("PATH")?).map(|dir| dir.join(name)).find(|path| path.is_file())
}
