//! Reads the repository: its files, its tables, and the imports of its sources.

use std::fs;
use std::path::{Path, PathBuf};

pub mod imports;

/// The root of the repository.
pub fn root() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."))
}

/// The text of a file, by its path from the root.
///
/// # Panics
///
/// If it cannot be read.
pub fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// Adds every file below `dir` to `files`.
///
/// # Panics
///
/// If a folder cannot be read.
pub fn files_under(dir: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap_or_else(|error| panic!("{}: {error}", dir.display())) {
        let path = entry.expect("a directory entry").path();
        if path.is_dir() {
            files_under(&path, files);
        } else {
            files.push(path);
        }
    }
}

/// The rows of the first table behind `heading`, without its head.
pub fn table<'a>(text: &'a str, heading: &str) -> Vec<&'a str> {
    let after = text.split_once(heading).map_or("", |(_, after)| after);
    let lines = after.lines().skip_while(|line| !line.starts_with('|')).take_while(|line| line.starts_with('|'));
    lines.skip(2).collect()
}

/// The names in backticks in the first cell of each row of a table.
pub fn first_cells(rows: &[&str]) -> Vec<Vec<String>> {
    let names = |row: &&str| {
        let cell = row.split('|').nth(1).unwrap_or_default();
        cell.split('`').skip(1).step_by(2).map(str::to_owned).collect::<Vec<_>>()
    };
    rows.iter().map(names).filter(|names| !names.is_empty()).collect()
}
