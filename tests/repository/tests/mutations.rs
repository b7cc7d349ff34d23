//! The mutations of `mutations/` are whole: each says in its header which step it breaks, names
//! a test that exists, and still applies. `mutations/run` checks that the test dies of it.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use repository_tests::{files_under, root};

/// The patches by name.
fn patches() -> BTreeMap<String, String> {
    let folder = fs::read_dir(root().join("mutations")).expect("the mutations");
    let files = folder.map(|entry| entry.expect("a directory entry").path());
    let patches = files.filter(|path| path.extension().is_some_and(|end| end == "patch"));
    let name = |path: &PathBuf| path.file_stem().expect("a name").to_string_lossy().into_owned();
    patches.map(|path| (name(&path), fs::read_to_string(&path).expect("a patch"))).collect()
}

/// The header's field `word`.
fn field<'a>(patch: &'a str, word: &str) -> Option<&'a str> {
    let header = patch.split("\n--- ").next()?;
    header.lines().find_map(|line| line.strip_prefix(word)?.strip_prefix(": "))
}

/// The text of a module of the package in `folder`.
fn module(folder: &str, parts: &[&str]) -> Option<String> {
    let path = root().join(folder).join("src").join(parts.iter().collect::<PathBuf>());
    let code =
        fs::read_to_string(path.with_extension("rs")).or_else(|_| fs::read_to_string(path.join("mod.rs"))).ok()?;
    Some(code)
}

fn has_test(code: &str, name: &str) -> bool {
    code.split("#[test]").skip(1).any(|after| after.trim_start().starts_with(&format!("fn {name}(")))
}

/// The text of the first of `paths` below `folder` that exists.
fn text_of(folder: &str, paths: &[String]) -> Option<String> {
    paths.iter().find_map(|path| fs::read_to_string(root().join(folder).join(path)).ok())
}

/// Whether there is a test of that name, as `mutations/run` would run it.
fn exists(killer: &str) -> bool {
    let words: Vec<&str> = killer.split(' ').collect();
    let (folder, words) = match words[..] {
        ["-p", "codewarden-capi", "--lib" | "--test", ..] => ("capi", &words[2..]),
        ["-p", package, "--lib" | "--test", ..] => (package, &words[2..]),
        _ => ("", &words[..]),
    };
    let text_of = |paths: &[String]| text_of(folder, paths);
    match *words {
        ["loom" | "--lib" | "miri", path] => {
            let parts: Vec<&str> = path.split("::").collect();
            let Some((name, parts)) = parts.split_last() else { return false };
            // `tests` is a file, or a module in the file of its parent.
            let parent = parts.strip_suffix(&["tests"]).unwrap_or(parts);
            [parts, parent].into_iter().filter_map(|parts| module(folder, parts)).any(|code| has_test(&code, name))
        }
        ["--test", file] => text_of(&[format!("tests/{file}.rs"), format!("tests/{file}/main.rs")]).is_some(),
        ["--test", file, path] => {
            let (files, name) = match path.split_once("::") {
                Some((module, name)) => (vec![format!("tests/{file}/{module}.rs")], name),
                None => (vec![format!("tests/{file}.rs"), format!("tests/{file}/main.rs")], path),
            };
            text_of(&files).is_some_and(|code| has_test(&code, name))
        }
        _ => false,
    }
}

/// Each hunk's lines before the change.
fn hunks(patch: &str) -> Vec<String> {
    let old = |hunk: &str| {
        let lines = hunk.lines().skip(1).filter(|line| !line.starts_with('+'));
        lines.map(|line| format!("{}\n", line.get(1..).unwrap_or_default())).collect()
    };
    patch.split("\n@@ ").skip(1).map(old).collect()
}

fn faults_of(name: &str, patch: &str) -> Vec<String> {
    let mut wrong = Vec::new();
    if field(patch, "Breaks").is_none_or(str::is_empty) {
        wrong.push(format!("{name} does not say what it breaks"));
    }
    match field(patch, "Kills") {
        Some(killer) if exists(killer) => {}
        killer => wrong.push(format!("{name} names no test that exists: {killer:?}")),
    }
    let folders = ["src/", "capi/src/", "demo-emulator/src/"];
    let is_source = |file: &&str| folders.iter().any(|folder| file.starts_with(folder));
    let mut files = patch.split("\n--- a/").skip(1).peekable();
    if files.peek().is_none() {
        wrong.push(format!("{name} changes no file"));
    }
    for changes in files {
        let file = changes.lines().next().filter(is_source);
        match file.and_then(|file| fs::read_to_string(root().join(file)).ok()) {
            Some(code) => {
                if hunks(changes).is_empty() || !hunks(changes).iter().all(|hunk| code.contains(hunk)) {
                    wrong.push(format!("{name} does not apply any more"));
                }
            }
            None => wrong.push(format!("{name} changes a file that is in no src/ folder")),
        }
    }
    wrong
}

#[test]
fn every_mutation_names_a_test_and_applies() {
    let patches = patches();
    assert!(patches.len() >= 25, "{}", patches.len());
    let wrong: Vec<String> = patches.iter().flat_map(|(name, patch)| faults_of(name, patch)).collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

fn is_fence(line: &str) -> bool {
    line.starts_with("fence(Rule::") || line.starts_with("fence_behind_rmw(Rule::")
}

/// The fences of the protocol in `code`: the function and the line of each.
fn fences(code: &str) -> Vec<(&str, usize)> {
    let lines: Vec<&str> = code.lines().collect();
    let of = |at: usize| {
        let before = lines[..at].iter().rev().find_map(|line| line.split_once("fn "));
        before.and_then(|(_, name)| name.split(['(', '<']).next()).unwrap_or_default()
    };
    (0..lines.len()).filter(|&at| is_fence(lines[at].trim())).map(|at| (of(at), at)).collect()
}

/// Whether `patch` takes a fence out of `code`, and line `at` lies in its hunk.
fn takes_in(patch: &str, code: &str, at: usize) -> bool {
    hunks(patch).iter().any(|hunk| {
        let Some((before, _)) = code.split_once(hunk.as_str()) else { return false };
        let first = before.lines().count();
        let removed = patch.lines().any(|line| line.strip_prefix('-').is_some_and(|line| is_fence(line.trim())));
        removed && (first..first + hunk.lines().count()).contains(&at)
    })
}

/// A test misses each fence, or the README tells why it stays.
#[test]
fn every_fence_is_taken_out_or_explained() {
    let told = fs::read_to_string(root().join("mutations/README.md")).expect("the README");
    let patches = patches();
    let (mut seen, mut wrong) = (0, Vec::new());
    let mut files = Vec::new();
    files_under(&root().join("src"), &mut files);
    for path in files {
        let file = path.strip_prefix(root()).expect("a file of the repository").display().to_string();
        let code = fs::read_to_string(&path).expect("a source file");
        for (function, at) in fences(&code) {
            seen += 1;
            let of_file = patches.values().filter(|patch| patch.contains(&format!("\n--- a/{file}\n")));
            let is_told = told.contains(&format!("of `{function}` in `{file}` |"));
            if !is_told && !of_file.clone().any(|patch| takes_in(patch, &code, at)) {
                wrong.push(format!(
                    "no patch takes out the fence of `{function}` in {file}: add one, or a row to mutations/README.md"
                ));
            }
        }
    }
    assert!(seen >= 10, "{seen}");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn a_fence_that_no_patch_takes_out_is_found() {
    let code = "fn a() {\n    x();\n    fence(Rule::A);\n}\nfn b() {\n    fence(Rule::A);\n}\n";
    assert_eq!(fences(code), [("a", 2), ("b", 5)]);
    let patch = "\n--- a/f\n+++ b/f\n@@ -2,2 +2,1 @@\n     x();\n-    fence(Rule::A);\n";
    assert!(takes_in(patch, code, 2) && !takes_in(patch, code, 5));
    assert!(!takes_in(&patch.replace("-    fence", "     fence"), code, 2), "nothing is taken out");
}

#[test]
fn what_is_wrong_is_found() {
    let patches = patches();
    let (name, good) = patches.first_key_value().expect("a mutation");
    assert_eq!(faults_of(name, good), [""; 0]);
    let count = |patch: String| faults_of(name, &patch).len();
    let killer = field(good, "Kills").expect("a test");
    assert_eq!(count(good.replace(killer, "--test promises there_is_no_such_test")), 1);
    assert_eq!(count(good.replace(killer, "-p demo-emulator --test promises there_is_no_such_test")), 1);
    assert_eq!(count(good.replace("Kills: ", "Dies: ")), 1);
    assert_eq!(count(good.replace("Breaks: ", "")), 1);
    assert_eq!(count(good.replace("\n-", "\n-another line")), 1);
    assert_eq!(count(good.replace("--- a/src/", "--- a/tests/")), 1);
}
