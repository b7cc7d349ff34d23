//! The options of a run.

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use codewarden::protection::Mode;

use crate::linux::stack::DEFAULT_STACK_BYTES;

/// Default memory for translations, in bytes.
pub(super) const DEFAULT_CODE_LIMIT_BYTES: usize = 256 << 20;

/// The request of the command line.
#[derive(Debug, PartialEq, Eq)]
pub enum Command {
    /// Run a program, or the demo if none is named.
    Run(Box<Cli>),
    /// `--help`.
    Help,
    /// `--version`.
    Version,
    /// `--probe`.
    Probe(Form),
}

/// `--tier`.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum Tier {
    /// The more often code runs, the higher its tier.
    #[default]
    Auto,
    /// Decoded blocks alone.
    Decoded,
    /// Every block compiled alone and quickly.
    Quick,
    /// Every block compiled with the hot ones around it.
    Region,
}

impl Tier {
    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Decoded => "0",
            Self::Quick => "1",
            Self::Region => "2",
        }
    }
}

/// `--tracking`.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum Tracking {
    /// The best synchronous mode that is available.
    #[default]
    Auto,
    /// That mode, or an error.
    Mode(Mode),
}

/// `--stats` and `--probe`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Form {
    /// For people.
    Text,
    /// For programs.
    Json,
}

/// `-d`.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Log {
    /// Guest instructions as they are translated.
    pub in_asm: bool,
    /// The host code made from them.
    pub out_asm: bool,
}

/// Options and program.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Cli {
    /// Run everything by the interpreter.
    pub interpret: bool,
    /// Which tier.
    pub tier: Tier,
    /// Which tracking mode.
    pub tracking: Tracking,
    /// Counters at exit.
    pub stats: Option<Form>,
    /// Print system calls.
    pub strace: bool,
    /// The logged items.
    pub log: Log,
    /// The log's file.
    pub log_file: Option<PathBuf>,
    /// The guest's root.
    pub sysroot: Option<PathBuf>,
    /// Changes to the environment in order: a variable and its value, or `None`
    /// to unset it.
    pub environment: Vec<(OsString, Option<OsString>)>,
    /// The program's `argv[0]`.
    pub argv0: Option<OsString>,
    /// The stack's size in bytes; 0 means the default.
    pub stack_bytes: u64,
    /// Memory for translations in bytes; 0 means the default.
    pub code_limit_bytes: usize,
    /// The program; `None` for the demo.
    pub program: Option<PathBuf>,
    /// Its arguments.
    pub arguments: Vec<OsString>,
    /// The options that an execve of another guest program repeats: all but
    /// those on the environment and on `argv[0]`.
    pub inherited: Vec<Vec<u8>>,
}

impl Cli {
    /// The stack's size in bytes.
    pub fn stack_bytes(&self) -> u64 {
        if self.stack_bytes == 0 { DEFAULT_STACK_BYTES } else { self.stack_bytes }
    }

    /// Memory for translations in bytes.
    pub fn code_limit_bytes(&self) -> usize {
        if self.code_limit_bytes == 0 { DEFAULT_CODE_LIMIT_BYTES } else { self.code_limit_bytes }
    }

    /// The guest's environment, from `inherited`.
    pub fn environment(&self, inherited: impl Iterator<Item = (OsString, OsString)>) -> Vec<Vec<u8>> {
        let mut variables: Vec<(OsString, OsString)> = inherited.collect();
        for (name, value) in &self.environment {
            variables.retain(|(other, _)| other != name);
            variables.extend(value.clone().map(|value| (name.clone(), value)));
        }
        let join = |(name, value): (OsString, OsString)| [name.as_bytes(), b"=", value.as_bytes()].concat();
        variables.into_iter().map(join).collect()
    }
}
