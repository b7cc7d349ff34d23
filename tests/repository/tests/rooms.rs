//! The files of the repository keep their order.
//!
//! - A room uses only rooms of rows above its own, in the tables of `ARCHITECTURE.md`.
//! - Inside a room with a table of files in the head of its `mod.rs`, a file uses only files of
//!   rows above its own.
//! - No file is in a circle of imports.
//! - Only the room `sys` makes system calls.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use repository_tests::imports::{Imports, Module};
use repository_tests::{files_under, first_cells, read, root, table};

const SOURCES: [&str; 5] = ["src", "demo-emulator/src", "capi/src", "benches/src", "guest-tests/src"];

/// These rooms are too large to be read without the order of their files.
const LARGE_ROOMS: [&str; 4] = ["src/tracker", "src/code_cache", "src/sys", "demo-emulator/src/linux"];

/// Each use among the children of `parent` that breaks the order of `rows`, and each child that
/// has no place in it.
fn violations(imports: &Imports, parent: &[String], rows: &[Vec<String>]) -> Vec<String> {
    let row_of = |name: &str| rows.iter().position(|row| row.iter().any(|other| other == name));
    let child_of = |module: &Module| module.strip_prefix(parent).and_then(|rest| rest.first()).cloned();
    let mut wrong = Vec::new();
    let mut seen = BTreeSet::new();
    for (module, imported) in &imports.of {
        let Some(child) = child_of(module) else { continue };
        let place = module.join("/");
        let Some(row) = row_of(&child) else {
            wrong.push(format!("{place}: `{child}` is in no row"));
            continue;
        };
        seen.insert(child.clone());
        for (other, paths) in imported {
            let Some(used) = child_of(other).filter(|used| *used != child) else { continue };
            if row_of(&used).is_none_or(|used| used >= row) {
                wrong.push(format!("{place}: uses `{used}`, which is not above it: {paths:?}"));
            }
        }
    }
    wrong
}

/// The children that the table has and the source lacks. A child for tests alone has no imports.
fn missing(parent: &Path, rows: &[Vec<String>]) -> Vec<String> {
    let exists = |name: &&String| parent.join(format!("{name}.rs")).exists() || parent.join(name.as_str()).is_dir();
    let missing = rows.iter().flatten().filter(|name| !exists(name));
    missing.map(|name| format!("{}: there is no `{name}`", parent.display())).collect()
}

#[test]
fn rooms_use_the_rooms_above_them() {
    let architecture = read("ARCHITECTURE.md");
    for (src, heading) in
        [("src", "\n## Rooms of the library\n"), ("demo-emulator/src", "\n## Rooms of the demo emulator\n")]
    {
        let rows = first_cells(&table(&architecture, heading));
        assert!(rows.len() > 3, "the table under {heading:?} has {} rows", rows.len());
        let mut wrong = violations(&Imports::of(&root().join(src)), &[], &rows);
        wrong.extend(missing(&root().join(src), &rows));
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    }
}

#[test]
fn files_use_the_files_above_them() {
    let (mut rooms, mut wrong) = (BTreeSet::new(), Vec::new());
    for src in SOURCES {
        let imports = Imports::of(&root().join(src));
        let mut files = Vec::new();
        files_under(&root().join(src), &mut files);
        for file in files.iter().filter(|file| file.file_name().is_some_and(|name| name == "mod.rs")) {
            let folder = file.parent().expect("a folder");
            let name = folder.strip_prefix(root()).expect("a folder of the repository").display().to_string();
            let head: Vec<String> = read(&format!("{name}/mod.rs"))
                .lines()
                .filter_map(|line| line.strip_prefix("//!").map(|text| text.trim_start().to_owned()))
                .collect();
            let head = head.join("\n");
            let Some(at) = head.find("| file | contents |") else { continue };
            let rows = first_cells(&table(&head[at..], ""));
            let inside = folder.strip_prefix(root().join(src)).expect("a folder of the sources");
            let parent: Module =
                inside.components().map(|part| part.as_os_str().to_string_lossy().into_owned()).collect();
            wrong.extend(violations(&imports, &parent, &rows));
            wrong.extend(missing(folder, &rows));
            rooms.insert(name);
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let untold: Vec<_> = LARGE_ROOMS.into_iter().filter(|room| !rooms.contains(*room)).collect();
    assert!(untold.is_empty(), "without a table of files: {untold:?}");
}

#[test]
fn no_file_is_in_a_circle() {
    for src in SOURCES {
        let imports = Imports::of(&root().join(src));
        assert!(imports.of.len() > 3, "{src}");
        let circles = imports.circles();
        assert!(circles.is_empty(), "{src}:\n{}", circles.join("\n"));
    }
}

/// Types, numbers of errors and signals, and the page size from the process's start are no calls.
fn is_system_call(path: &str) -> bool {
    let parts: Vec<&str> = path.split("::").collect();
    match parts[..] {
        ["rustix", "io", "Errno", ..] | ["rustix", "param", ..] => false,
        ["rustix" | "linux_raw_sys", ..] => true,
        ["libc", name, ..] => name.starts_with(char::is_lowercase) && !name.ends_with("_t"),
        _ => false,
    }
}

#[test]
fn only_one_room_makes_system_calls() {
    let imports = Imports::of(&root().join("src"));
    let mut wrong = Vec::new();
    let mut seen = 0;
    for (module, outside) in &imports.outside {
        let calls = outside.iter().filter(|path| is_system_call(path)).count();
        match module.first().map(String::as_str) {
            Some("sys") => seen += calls,
            _ if calls > 0 => wrong.push(format!("{}: {outside:?}", module.join("/"))),
            _ => {}
        }
    }
    assert!(seen > 20, "{seen}");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn what_is_out_of_order_is_found() {
    let module = |path: &str| path.split('/').map(str::to_owned).collect::<Module>();
    let uses = |from: &str, to: &str| (module(from), BTreeMap::from([(module(to), BTreeSet::from(["x".to_owned()]))]));
    let rows = [vec!["a".to_owned()], vec!["b".to_owned(), "c".to_owned()]];
    let violations = |of: [(Module, BTreeMap<Module, BTreeSet<String>>); 2]| {
        let imports = Imports { of: of.into(), outside: BTreeMap::new() };
        (violations(&imports, &[], &rows).len(), imports.circles().len())
    };
    assert_eq!(violations([uses("b", "a"), uses("c/d", "a")]), (0, 0));
    assert_eq!(violations([uses("a", "b"), uses("b", "a")]), (1, 2));
    assert_eq!(violations([uses("b", "c"), uses("d", "a")]), (2, 0));
    assert!(is_system_call("libc::close") && is_system_call("rustix::mm::mmap"));
    assert!(!is_system_call("libc::siginfo_t") && !is_system_call("libc::EPERM") && !is_system_call("std::fs"));
}
