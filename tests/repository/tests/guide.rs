//! The tables of the guide are whole: every row has a cell for every mode, every cell states the
//! result and names its test, and every named test exists.
//!
//! A table of the guide has as its header a first column, then the modes. A
//! cell's facts are links, `[word][module::test]`: the test is a function of that
//! name in a file `module.rs` under `tests/`, and the link leads to the file's line in the
//! chapter's list of tests. The chapters on the protocol and on checks name models,
//! mutations and scripts, which must exist as well.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use codewarden::protection::Mode;
use repository_tests::{files_under, root, table};

const WORDS: [&str; 5] = ["handled", "announced", "refused", "ended", "missed"];

/// The guide's files, and the folders of `tests/` that they describe.
const FILES: [(&str, &str); 2] = [("ways.md", "ways"), ("failures.md", "failures")];

fn modes() -> [&'static str; 5] {
    ["sigbus", "thread", "mprotect", "deferred", "none"]
}

#[derive(Debug, PartialEq)]
struct Cell {
    row: String,
    mode: &'static str,
    /// Each word with the test that it names.
    facts: Vec<(String, String)>,
}

fn columns(line: &str) -> Vec<&str> {
    line.trim().trim_matches('|').split('|').map(str::trim).collect()
}

/// `[word][test]` for each such link.
fn facts(cell: &str) -> Vec<(String, String)> {
    let links = cell.split('[').collect::<Vec<_>>();
    let pair = |pair: &[&str]| {
        let word = pair[0].strip_suffix(']')?;
        let test = pair[1].split_once(']')?.0;
        Some((word.to_owned(), test.to_owned()))
    };
    links.windows(2).filter_map(pair).collect()
}

/// Every cell of every table of modes.
fn cells(text: &str) -> Vec<Cell> {
    let mut cells = Vec::new();
    let mut in_table = false;
    for line in text.lines() {
        let columns = columns(line);
        if !line.starts_with('|') {
            in_table = false;
        } else if columns.get(1..) == Some(modes().as_slice()) {
            in_table = true;
        } else if in_table && !line.starts_with("|---") {
            for (at, mode) in modes().into_iter().enumerate() {
                let facts = columns.get(at + 1).map(|cell| facts(cell)).unwrap_or_default();
                cells.push(Cell { row: columns[0].to_owned(), mode, facts });
            }
        }
    }
    cells
}

/// The tests that `text` defines links for, each with the link's target:
/// `[module::test]: #test-module "module::test"`.
fn defined(text: &str) -> BTreeMap<&str, &str> {
    text.lines().filter_map(|line| line.strip_prefix('[')?.split_once("]: ")).collect()
}

/// The files that the chapter lists, by the anchors that links lead to.
fn listed(text: &str) -> BTreeMap<&str, &str> {
    text.lines()
        .filter_map(|line| line.strip_prefix("| <a id=\"")?.split_once("\"></a>`"))
        .filter_map(|(anchor, rest)| Some((anchor, rest.split_once('`')?.0)))
        .collect()
}

/// Whether a file `module.rs` under `tests/` has a function `test`.
fn exists(name: &str, files: &[PathBuf]) -> bool {
    let (Some((module, _)), Some((_, test))) = (name.split_once("::"), name.rsplit_once("::")) else { return false };
    let has = |path: &&PathBuf| {
        path.file_stem().is_some_and(|stem| stem == module)
            && fs::read_to_string(path).is_ok_and(|code| code.contains(&format!("fn {test}(")))
    };
    files.iter().any(|path| has(&path))
}

fn faults_of(text: &str, exists: impl Fn(&str) -> bool) -> Vec<String> {
    let (defined, listed) = (defined(text), listed(text));
    let mut wrong = Vec::new();
    for (test, leads_to) in &defined {
        if !exists(test) {
            wrong.push(format!("there is no test {test}"));
        }
        let module = test.split("::").next().unwrap_or_default();
        if *leads_to != format!("#test-{module} \"{test}\"") {
            wrong.push(format!("the link of {test} leads to {leads_to}, not to #test-{module} \"{test}\""));
        }
        let file = listed.get(&*format!("test-{module}"));
        if !file.is_some_and(|file| file.ends_with(&format!("/{module}.rs"))) {
            wrong.push(format!("the list of tests has no line <a id=\"test-{module}\"></a> with a file {module}.rs"));
        }
    }
    for Cell { row, mode, facts } in cells(text) {
        if facts.is_empty() {
            wrong.push(format!("{row}, {mode}: nothing is said, or no test named"));
        }
        for (word, test) in facts {
            if !WORDS.contains(&word.as_str()) {
                wrong.push(format!("{row}, {mode}: {word:?} is none of {WORDS:?}"));
            }
            if word == "missed" && mode != "none" {
                wrong.push(format!("{row}, {mode}: a mode that tracks promises more than that"));
            }
            if !defined.contains_key(test.as_str()) {
                wrong.push(format!("{row}, {mode}: the link of {test} leads nowhere"));
            }
        }
    }
    wrong
}

#[test]
fn every_cell_names_a_test_that_exists() {
    let root = root();
    let mut files = Vec::new();
    files_under(&root.join("tests"), &mut files);
    for (name, _) in FILES {
        let text = fs::read_to_string(root.join("src/guide").join(name)).expect("a file of the guide");
        assert!(cells(&text).len() >= 50, "{name}: its tables were not found");
        let wrong = faults_of(&text, |test| exists(test, &files));
        assert!(wrong.is_empty(), "{name}:\n{}", wrong.join("\n"));
        let absent: Vec<_> = listed(&text).into_values().filter(|file| !root.join(file).exists()).collect();
        assert!(absent.is_empty(), "{name} lists files that do not exist: {absent:?}");
    }
}

/// Every test of a folder must be named in the chapter.
#[test]
fn every_test_is_in_the_guide() {
    for (name, folder) in FILES {
        every_test_is_in(name, folder);
    }
}

fn every_test_is_in(name: &str, folder: &str) {
    let root = root();
    let guide = fs::read_to_string(root.join("src/guide").join(name)).expect("a file of the guide");
    let mut files = Vec::new();
    files_under(&root.join("tests").join(folder), &mut files);
    for path in files {
        let code = fs::read_to_string(&path).expect("a readable file");
        let module = path.file_stem().expect("a name").to_string_lossy();
        for after in code.split("#[test]").skip(1) {
            let test = after.split_once("fn ").and_then(|(_, rest)| rest.split_once('(')).expect("a function").0;
            assert!(guide.contains(&format!("[{module}::{test}]")), "{module}::{test} is not in the guide");
        }
    }
}

#[test]
fn the_modes_are_all_there() {
    let mut named = modes().to_vec();
    let mut all: Vec<_> = Mode::ALL.into_iter().map(Mode::name).collect();
    named.sort_unstable();
    all.sort_unstable();
    assert_eq!(named, all);
}

#[test]
fn what_is_wrong_is_found() {
    let head = "| way | sigbus | thread | mprotect | deferred | none |\n|---|---|---|---|---|---|\n";
    let list = "| <a id=\"test-m\"></a>`tests/m.rs` | a command |\n";
    let row = |cells: &str| format!("{head}| a | {cells} |\n\n{list}\n[m::t]: #test-m \"m::t\"\n");
    let good = row(&["[handled][m::t]"; 5].join(" | "));
    assert_eq!(faults_of(&good, |test| test == "m::t"), [""; 0]);
    assert_eq!(faults_of(&good, |_| false).len(), 1);
    assert_eq!(faults_of(&good.replace(": #test-m", ": https://example.org/m.rs"), |_| true).len(), 1, "leads away");
    assert_eq!(faults_of(&good.replace(list, ""), |_| true).len(), 1, "leads nowhere in the chapter");
    let count = |cells: &str| faults_of(&row(cells), |_| true).len();
    assert_eq!(count(&["[handled][m::t]"; 4].join(" | ")), 1, "a cell is missing");
    assert_eq!(count(&["EFAULT; [announced][m::t], [refused][m::t]"; 5].join(" | ")), 0);
    assert_eq!(count(&["[done][m::t]"; 5].join(" | ")), 5, "another word");
    assert_eq!(count(&["[handled][m::u]"; 5].join(" | ")), 5, "a link without a definition");
    assert_eq!(count(&["[missed][m::t]"; 5].join(" | ")), 4, "for none alone");
    assert_eq!(count(&["handled"; 5].join(" | ")), 5, "no test");
    assert_eq!(cells(&good).len(), 5);
}

/// The doc comment of the test `name` in `source`, which has it.
fn told_of(source: &str, name: &str) -> Option<String> {
    let (before, _) = source.split_once(&format!("#[test]\nfn {name}()"))?;
    let above = before.lines().rev().take_while(|line| line.starts_with("///") || line.starts_with("#["));
    Some(above.collect::<Vec<_>>().join(" "))
}

/// The faults of the row of promise `number`, which ends with `shown`.
fn faults_of_promise(
    number: &str,
    shown: &str,
    sources: &[String],
    models: &BTreeSet<(String, String)>,
) -> Vec<String> {
    let names: Vec<_> = named(shown).into_iter().filter(|name| !name.contains('/')).collect();
    let points_to_a_table = shown.starts_with("see [`");
    let mut wrong = Vec::new();
    if names.is_empty() || points_to_a_table {
        return if points_to_a_table { wrong } else { vec![format!("{number} names no test")] };
    }
    let mut tests = 0;
    for name in names {
        if let Some((file, model)) = name.split_once("::") {
            if !models.contains(&(file.to_owned(), model.to_owned())) {
                wrong.push(format!("{number}: there is no model {name}"));
            }
            continue;
        }
        tests += 1;
        match sources.iter().find_map(|source| told_of(source, name)) {
            None => wrong.push(format!("{number}: there is no test {name}")),
            Some(told) if told.split([' ', ',', '.', ':', ';']).any(|word| word == number) => {}
            Some(_) => wrong.push(format!("{name} does not say that it shows {number}")),
        }
    }
    if tests == 0 {
        wrong.push(format!("{number} names no test on a real kernel"));
    }
    wrong
}

/// Each promise's row ends with tests whose comments name it, or points to a table of them.
#[test]
fn every_promise_has_its_test() {
    let root = root();
    let text = fs::read_to_string(root.join("src/guide/promises.md")).expect("the promises");
    let mut files = Vec::new();
    files_under(&root.join("tests"), &mut files);
    let sources: Vec<String> = files.iter().filter_map(|path| fs::read_to_string(path).ok()).collect();
    let models = models(root);
    let (mut promises, mut wrong) = (0, Vec::new());
    for line in text.lines().filter(|line| line.starts_with('|')) {
        let columns = columns(line);
        let numbered = columns[0].len() == 2 && columns[0].ends_with(|last: char| last.is_ascii_digit());
        if numbered {
            promises += 1;
            wrong.extend(faults_of_promise(columns[0], columns[columns.len() - 1], &sources, &models));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(promises >= 21, "{promises}");
}

#[test]
fn what_is_wrong_with_a_promise_is_found() {
    let sources = ["/// S1, D2: more.\n#[cfg(unix)]\n#[test]\nfn a()\n/// S12.\n#[test]\nfn b()\n".to_owned()];
    let models = BTreeSet::from([("loom_x".to_owned(), "m".to_owned())]);
    let count = |number, shown| faults_of_promise(number, shown, &sources, &models).len();
    for right in ["`a`", "`a`, `loom_x::m`", "`a` of `tests/a.rs`", "see [`ways`](crate::guide::ways)"] {
        assert_eq!(count("S1", right), 0, "{right}");
    }
    assert_eq!(count("D2", "`a`"), 0);
    for wrong in ["", "see there", "`loom_x::m`", "`b`", "`c`", "`a`, `loom_x::n`"] {
        assert_eq!(count("S1", wrong), 1, "{wrong}");
    }
}

/// The text between two backticks in `text`.
fn named(text: &str) -> BTreeSet<&str> {
    text.lines().flat_map(|line| line.split('`').skip(1).step_by(2)).collect()
}

/// The tests of the models of the protocol: `(file, test)`.
fn models(root: &Path) -> BTreeSet<(String, String)> {
    let mut files = Vec::new();
    files_under(&root.join("src/models"), &mut files);
    let mut models = BTreeSet::new();
    for path in files {
        let code = fs::read_to_string(&path).expect("a readable file");
        let file = path.file_stem().expect("a name").to_string_lossy().into_owned();
        if !file.starts_with("loom_") && file != "injected" {
            continue;
        }
        for after in code.split("#[test]\n").skip(1) {
            let test = after.split_once("fn ").and_then(|(_, rest)| rest.split_once('(')).expect("a function").0;
            models.insert((file.clone(), test.to_owned()));
        }
    }
    models
}

/// In the protocol's chapter: models and mutations.
#[test]
fn every_ordering_names_a_model_that_exists_and_every_model_is_named() {
    let root = root();
    let text = fs::read_to_string(root.join("src/guide/protocol.md")).expect("the protocol");
    let models = models(root);
    assert!(models.len() > 50, "{models:?}");
    let (named, mut mutations) = (named(&text), 0);
    for name in &named {
        if let Some(mutation) = name.strip_prefix("mutations/").filter(|&mutation| mutation != "NAME") {
            mutations += 1;
            assert!(root.join(format!("mutations/{mutation}.patch")).exists(), "there is no {name}");
        } else if let Some((file, test)) = name.split_once("::").filter(|(file, _)| !file.contains('(')) {
            assert!(models.contains(&(file.to_owned(), test.to_owned())), "there is no model {name}");
        }
    }
    assert!(mutations >= 12, "{mutations}");
    for (file, test) in models {
        assert!(named.contains(&*format!("{file}::{test}")), "{file}::{test} is not in the guide");
    }
}

/// Each ordering has a model that fails without it and a mutation that removes it.
#[test]
fn every_ordering_names_a_model_and_a_mutation() {
    let root = root();
    let text = fs::read_to_string(root.join("src/guide/protocol.md")).expect("the protocol");
    let rows = table(&text, "\n# The orderings\n");
    assert!(rows.len() >= 17, "{rows:?}");
    for row in rows {
        let columns = columns(row);
        let shown = columns[columns.len() - 1];
        let (mutations, models): (Vec<_>, Vec<_>) =
            named(shown).into_iter().partition(|name| name.starts_with("mutations/"));
        assert!(!mutations.is_empty(), "no mutation takes this out: {}", columns[0]);
        assert!(models.iter().any(|name| name.contains("::")), "no model fails without this: {}", columns[0]);
    }
}

/// Each rule that a model can leave out is left out by one, unless the mutations' README says why
/// no test can miss it. The protocol's chapter has each fence by name.
#[test]
fn every_rule_is_left_out_by_a_model() {
    let root = root();
    let sync = fs::read_to_string(root.join("src/sync/rule.rs")).expect("the rules");
    let (_, rules) = sync.split_once("pub(crate) enum Rule {").expect("the rules");
    let (rules, _) = rules.split_once("\n}").expect("their end");
    let rules: Vec<_> = rules.lines().map(str::trim).filter_map(|line| line.strip_suffix(',')).collect();
    assert!(rules.len() >= 16, "{rules:?}");
    let mut files = Vec::new();
    files_under(&root.join("src/models"), &mut files);
    let models: String = files.iter().filter_map(|path| fs::read_to_string(path).ok()).collect();
    let readme = fs::read_to_string(root.join("mutations/README.md")).expect("the mutations' README");
    let is_missed =
        |rule: &&&str| !table(&readme, "\n## Fences that no test misses\n").join("").contains(&format!("`{rule}`"));
    let is_never_left_out = |rule: &&&str| !models.contains(&format!("fails_without(Rule::{rule},"));
    let never: Vec<_> = rules.iter().filter(is_missed).filter(is_never_left_out).collect();
    let protocol = fs::read_to_string(root.join("src/guide/protocol.md")).expect("the protocol");
    let fences = rules.iter().filter(|rule| rule.starts_with("FenceBe"));
    let unnamed: Vec<_> = fences.filter(|rule| !protocol.contains(&format!("`{rule}`"))).collect();
    assert!(unnamed.is_empty(), "the chapter on the protocol does not name these: {unnamed:?}");
    assert!(never.is_empty(), "no model leaves these out: {never:?}");
}

/// In the chapter on checks: scripts, examples and benches.
#[test]
fn every_command_names_a_file_that_exists() {
    let root = root();
    let text = fs::read_to_string(root.join("src/guide/checks.md")).expect("the checks");
    let mut files = 0;
    for command in named(&text) {
        let words: Vec<_> = command.split_whitespace().skip_while(|word| word.contains('=')).collect();
        let paths: Vec<String> = match words.as_slice() {
            [".ci/run", stages @ ..] => {
                [".ci/run".to_owned()].into_iter().chain(stages.iter().map(|stage| format!(".ci/{stage}"))).collect()
            }
            [script, ..] if script.contains('/') => vec![(*script).to_owned()],
            words => words
                .windows(2)
                .filter(|pair| pair[0] == "--example")
                .map(|pair| format!("examples/{}", pair[1]))
                .collect(),
        };
        for path in paths {
            files += 1;
            assert!(
                root.join(&path).exists() || root.join(format!("{path}.rs")).exists(),
                "{command}: there is no {path}"
            );
        }
    }
    assert!(files >= 8, "{files}");
}
