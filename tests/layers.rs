//! The tables of `ARCHITECTURE.md` hold: each room uses only rooms of rows
//! above its own.
//!
//! A table row starts with the names of its rooms in backticks. A use is any `crate::room`
//! outside comments. A room that no table has is a failure, and so is a table's room that the
//! source lacks.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Rooms by row, from the table under `heading`.
fn rows(architecture: &str, heading: &str) -> Vec<Vec<String>> {
    let (_, section) = architecture.split_once(heading).unwrap_or_else(|| panic!("no heading {heading:?}"));
    let table = section.lines().skip_while(|line| !line.starts_with('|')).take_while(|line| line.starts_with('|'));
    let names = |line: &str| {
        let cell = line.split('|').nth(1).unwrap_or_default();
        cell.split('`').skip(1).step_by(2).map(str::to_owned).collect::<Vec<_>>()
    };
    table.map(names).filter(|names| !names.is_empty()).collect()
}

fn sources(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).expect("a readable source directory") {
        let path = entry.expect("a directory entry").path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// The rooms that `code` names by `crate::`, comments left out.
fn used_rooms(code: &str) -> BTreeSet<String> {
    let lines = code.lines().map(|line| line.split("//").next().unwrap_or_default());
    let uses = lines.flat_map(|line| line.split("crate::").skip(1));
    uses.map(|rest| rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()).collect()
}

/// Each use that breaks the order, and each room that has no place in it.
fn violations(src: &Path, rows: &[Vec<String>]) -> Vec<String> {
    let row_of = |room: &str| rows.iter().position(|row| row.iter().any(|name| name == room));
    let mut wrong = Vec::new();
    let mut seen = BTreeSet::new();
    let mut files = Vec::new();
    sources(src, &mut files);
    for file in files {
        let relative = file.strip_prefix(src).expect("a file of the directory");
        let first = relative.components().next().expect("a file name").as_os_str().to_string_lossy();
        let room = first.trim_end_matches(".rs");
        if room == "lib" || room == "main" {
            continue;
        }
        let Some(row) = row_of(room) else {
            wrong.push(format!("{}: the room `{room}` is in no row", relative.display()));
            continue;
        };
        seen.insert(room.to_owned());
        for used in used_rooms(&fs::read_to_string(&file).expect("a readable source file")) {
            match row_of(&used) {
                Some(below) if below < row || used == room => {}
                Some(_) => wrong.push(format!("{}: uses `{used}`, which is not above it", relative.display())),
                None => wrong.push(format!("{}: uses `crate::{used}`, which is no room", relative.display())),
            }
        }
    }
    let missing = rows.iter().flatten().filter(|room| !seen.contains(*room));
    wrong.extend(missing.map(|room| format!("the room `{room}` is in the table and not in the source")));
    wrong
}

fn check(src: &str, heading: &str) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let architecture = fs::read_to_string(root.join("ARCHITECTURE.md")).expect("ARCHITECTURE.md");
    let rows = rows(&architecture, heading);
    assert!(rows.len() > 3, "the table under {heading:?} has {} rows", rows.len());
    let wrong = violations(&root.join(src), &rows);
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_library_keeps_its_order() {
    check("src", "\n## Rooms of the library\n");
}

#[test]
fn the_emulator_keeps_its_order() {
    check("demo-emulator/src", "\n## Rooms of the demo emulator\n");
}

#[test]
fn uses_are_found_and_comments_are_not() {
    let code = "use crate::addr::{A, B};\n// crate::tracker\nfn f() -> crate::error::Error { crate::sys::x() } // crate::epoch\n";
    assert_eq!(used_rooms(code), ["addr", "error", "sys"].map(str::to_owned).into());
}
