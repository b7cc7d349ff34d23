//! The committed binaries and the sources that they were made from.
//!
//! `MANIFEST` is written by `build-guests`: a comment with the compiler's
//! version, then `sha256sum` lines over the header, the sources and the
//! binaries. A source that changed without its binary no longer matches.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

/// The folder of the sources and binaries.
pub fn guests_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("guests")
}

/// The contents of `MANIFEST`.
#[derive(Debug)]
pub struct Bundle {
    /// The compiler that made the binaries, as it names itself.
    pub compiler: String,
    /// File name and SHA-256 in hexadecimal digits.
    pub files: Vec<(String, String)>,
}

impl Bundle {
    /// Reads `MANIFEST` of `dir`.
    pub fn read(dir: &Path) -> io::Result<Self> {
        let text = fs::read_to_string(dir.join("MANIFEST"))?;
        let compiler = text.lines().find_map(|line| line.split_once("with: ")).map_or("", |(_, version)| version);
        let files = text
            .lines()
            .filter(|line| !line.starts_with('#'))
            .filter_map(|line| line.split_once("  "))
            .map(|(hash, name)| (name.to_owned(), hash.to_owned()))
            .collect();
        Ok(Self { compiler: compiler.to_owned(), files })
    }

    /// The names of all guests: the binaries without their suffix.
    pub fn guests(&self) -> Vec<&str> {
        self.files.iter().filter_map(|(name, _)| name.strip_suffix(".elf")).collect()
    }
}

/// Compares the files of `dir` with its manifest. Names each difference: changed, missing, or
/// not in the manifest.
pub fn manifest_mismatches(dir: &Path) -> io::Result<Vec<String>> {
    let bundle = Bundle::read(dir)?;
    let mut wrong = Vec::new();
    for (name, want) in &bundle.files {
        match fs::read(dir.join(name)) {
            Ok(bytes) if sha256_hex(&bytes) == *want => {}
            Ok(_) => wrong.push(format!("{name}: changed since build-guests ran")),
            Err(error) => wrong.push(format!("{name}: {error}")),
        }
    }
    for entry in fs::read_dir(dir)? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if name != "MANIFEST" && !bundle.files.iter().any(|(listed, _)| *listed == name) {
            wrong.push(format!("{name}: not in the manifest"));
        }
    }
    Ok(wrong)
}

fn sha256_hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}
