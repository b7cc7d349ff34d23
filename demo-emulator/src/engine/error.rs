//! The reasons why the engine cannot start.

use std::fmt;

use codewarden::error::Error;
use codewarden::protection::{Facility, Probe};

use crate::translate::{COMPILED_TIERS, TranslateError};

/// Why the engine cannot start.
#[derive(Debug)]
pub enum EngineError {
    /// codewarden's reason.
    Codewarden(Error),
    /// The translator's.
    Translate(TranslateError),
    /// No synchronous mode is available; the reason for each.
    NoMode(String),
    /// Only compiled code was asked for, and compiling is impossible.
    NoCompiler(Box<EngineError>),
}

impl fmt::Display for EngineError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Codewarden(error) => error.fmt(f),
            Self::Translate(error) => error.fmt(f),
            Self::NoMode(why) => write!(f, "--tracking auto: {why}"),
            Self::NoCompiler(error) => write!(f, "{COMPILED_TIERS}: {}", no_compiler(error)),
        }
    }
}

impl std::error::Error for EngineError {}

impl From<Error> for EngineError {
    fn from(error: Error) -> Self {
        Self::Codewarden(error)
    }
}

impl From<TranslateError> for EngineError {
    fn from(error: TranslateError) -> Self {
        Self::Translate(error)
    }
}

/// Says that code cannot be compiled, and why.
pub(super) fn no_compiler(error: &EngineError) -> String {
    let why = Probe::of_this_process().why_missing(Facility::MembarrierSyncCore);
    format!("no code can be compiled: {}", why.unwrap_or_else(|| error.to_string()))
}
