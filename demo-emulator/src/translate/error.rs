//! The reasons why a block could not be compiled.

use std::fmt;
use std::io;

use cranelift_module::ModuleError;

/// Why a block could not be compiled.
#[derive(Debug)]
pub enum TranslateError {
    /// Cranelift cannot generate code for this host.
    Host(String),
    /// The fault handler could not be installed.
    Signal(io::Error),
    /// The code buffer is full: drop blocks and try again.
    NoCodeMemory(io::Error),
    /// Other harts could not be made to see the code.
    Publish(codewarden::error::Error),
    /// Cranelift refused the block: a defect of the translator.
    Compile(String),
    /// An empty block.
    Empty,
}

impl fmt::Display for TranslateError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Host(why) => write!(f, "no code can be generated for this host: {why}"),
            Self::Signal(error) => write!(f, "cannot install the fault handler: {error}"),
            Self::NoCodeMemory(error) => write!(f, "no room for compiled code: {error}"),
            Self::Publish(error) => write!(f, "cannot publish compiled code: {error}"),
            Self::Compile(why) => write!(f, "the compiler refused a block: {why}"),
            Self::Empty => f.write_str("a block has one instruction at least"),
        }
    }
}

impl std::error::Error for TranslateError {}

impl From<ModuleError> for TranslateError {
    fn from(error: ModuleError) -> Self {
        match error {
            ModuleError::Allocation { err } => Self::NoCodeMemory(err),
            other => Self::Compile(format!("{other:?}")),
        }
    }
}
