//! The scripts of `.ci/` name modules and test files that exist. A name that matches no test runs
//! nothing, and `cargo` does not complain.

use std::path::Path;
use std::process::Command;

use repository_tests::{files_under, read, root};

/// The words of the array `name` of a script, as bash expands them.
fn words(script: &str, name: &str) -> Vec<String> {
    let text = read(script);
    let arrays: Vec<&str> = text
        .match_indices(&format!("\n{name}"))
        .map(|(at, _)| &text[at + 1..])
        .filter(|rest| rest[name.len()..].trim_start_matches('+').starts_with("=("))
        .filter_map(|rest| rest.find(')').map(|end| &rest[..=end]))
        .collect();
    assert!(!arrays.is_empty(), "{script} has no array `{name}`");
    let code = format!("{}\nprintf '%s\\n' \"${{{name}[@]}}\"", arrays.join("\n"));
    let output = Command::new("bash").args(["-c", &code]).output().expect("bash");
    assert!(output.status.success(), "{script}: {code}");
    String::from_utf8(output.stdout).expect("text").lines().map(str::to_owned).collect()
}

/// The path of each module of the library, with `::` at its end, and its text.
fn modules() -> Vec<(String, String)> {
    let src = root().join("src");
    let mut files = Vec::new();
    files_under(&src, &mut files);
    files.retain(|file| file.extension().is_some_and(|end| end == "rs"));
    let path = |file: &Path| {
        let relative = file.strip_prefix(&src).expect("a file of src").with_extension("");
        let parts = relative.iter().map(|part| part.to_string_lossy()).filter(|part| part != "mod");
        parts.map(|part| format!("{part}::")).collect::<String>()
    };
    files.iter().map(|file| (path(file), read(&file.display().to_string()))).collect()
}

/// The filters of unit tests that match neither a module with tests nor a test.
fn dead(filters: &[String]) -> Vec<&String> {
    let modules = modules();
    let tests = |text: &str| text.contains("#[test]");
    let matches = |filter: &&String| {
        let is_test = |text: &str| text.contains(&format!("fn {filter}("));
        modules.iter().any(|(path, text)| tests(text) && (path.contains(filter.as_str()) || is_test(text)))
    };
    filters.iter().filter(|filter| !matches(filter)).collect()
}

#[test]
fn miri_runs_tests_that_exist() {
    let none: [&String; 0] = [];
    assert_eq!(dead(&words(".ci/miri", "all")), none);
    // The other runs name their tests behind the flags of Miri.
    let text = read(".ci/miri");
    let runs = text.lines().filter_map(|line| line.strip_prefix("miri \"-")?.split_once("\" "));
    let filters: Vec<String> = runs.flat_map(|(_, names)| names.split_whitespace()).map(str::to_owned).collect();
    assert!(filters.len() > 2, "{filters:?}");
    assert_eq!(dead(&filters), none);
}

#[test]
fn aarch64_runs_and_leaves_out_tests_that_exist() {
    let none: [&String; 0] = [];
    assert_eq!(dead(&words(".ci/aarch64", "left_out")), none);
    for name in words(".ci/aarch64", "integration") {
        assert!(root().join(format!("tests/{name}.rs")).exists(), ".ci/aarch64: there is no tests/{name}.rs");
    }
}
