//! The committed binaries are built from their sources, and the table has a row for every
//! one of them.

use std::fs;
use std::path::Path;
use std::process::Command;

use guest_tests::{BENCHES, Bundle, GUESTS, find_program, guests_dir, manifest_mismatches, note, skip};

#[test]
fn sources_and_binaries_belong_together() {
    assert_eq!(manifest_mismatches(&guests_dir()).unwrap(), Vec::<String>::new(), "run guest-tests/build-guests");
}

#[test]
fn a_changed_source_is_noticed() {
    let copy = Path::new(env!("CARGO_TARGET_TMPDIR")).join("changed-source");
    fs::create_dir_all(&copy).unwrap();
    for entry in fs::read_dir(guests_dir()).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, copy.join(path.file_name().unwrap())).unwrap();
    }
    let source = copy.join("recursion.c");
    let text = fs::read_to_string(&source).unwrap();
    fs::write(&source, text.replace("fib(18)", "fib(19)")).unwrap();
    fs::remove_file(copy.join("demo.elf")).unwrap();
    fs::write(copy.join("stray.c"), "").unwrap();

    let mismatches = manifest_mismatches(&copy).unwrap();
    fs::remove_dir_all(&copy).unwrap();
    let named = |name: &str| mismatches.iter().any(|line| line.starts_with(name));
    assert!(mismatches.len() == 3 && named("recursion.c") && named("demo.elf") && named("stray.c"), "{mismatches:?}");
}

#[test]
fn every_source_has_a_binary_and_a_row() {
    let bundle = Bundle::read(&guests_dir()).unwrap();
    for (name, _) in &bundle.files {
        let Some(guest) = name.strip_suffix(".c") else { continue };
        assert!(bundle.guests().contains(&guest), "{name} has no binary");
        let listed = GUESTS.iter().any(|row| row.name == guest) || BENCHES.iter().any(|(bench, _)| *bench == guest);
        assert!(listed, "{name} has no row in the table");
    }
    for row in GUESTS {
        assert!(bundle.guests().contains(&row.name), "{} is in the table alone", row.name);
    }
}

#[test]
fn a_rebuild_gives_the_same_bytes() {
    const TEST: &str = "a_rebuild_gives_the_same_bytes";
    let Some(compiler) = find_program("riscv64-linux-gnu-gcc") else {
        return skip(TEST, "no riscv64-linux-gnu-gcc (Debian: gcc-riscv64-linux-gnu)");
    };
    let out = Path::new(env!("CARGO_TARGET_TMPDIR")).join("rebuilt-guests");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("build-guests");
    assert!(Command::new(script).arg(&out).status().unwrap().success());

    // Another compiler must build them too, but its bytes differ.
    let bundle = Bundle::read(&guests_dir()).unwrap();
    let version = Command::new(compiler).arg("--version").output().unwrap();
    if String::from_utf8_lossy(&version.stdout).lines().next() != Some(&bundle.compiler) {
        return note(TEST, &format!("built, not compared: the committed binaries are of {}", bundle.compiler));
    }
    for guest in bundle.guests() {
        let name = format!("{guest}.elf");
        let same = fs::read(out.join(&name)).unwrap() == fs::read(guests_dir().join(&name)).unwrap();
        assert!(same, "{name} differs after a rebuild");
    }
}
