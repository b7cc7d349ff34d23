//! The command line, in the style of QEMU's user mode: options, then the program, then the
//! program's own arguments.
//!
//! Long options may have one dash or two. Parsing opens no file and reads no environment.

mod help;
mod options;
mod parse;
#[cfg(test)]
mod tests;

pub use help::HELP;
pub use options::{Cli, Command, Form, Log, Tier, Tracking};
pub use parse::{USAGE_STATUS, UsageError, parse};
