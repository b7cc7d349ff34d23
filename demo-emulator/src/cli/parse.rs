//! Turns arguments into options. The parser refuses an option that another one makes meaningless,
//! and arguments that are left over.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

use codewarden::protection::Mode;

use super::options::{Cli, Command, Form, Log, Tier, Tracking};
use crate::translate::HAS_QUICK;

/// Exit status of a command line that cannot be parsed.
pub const USAGE_STATUS: u8 = 2;

/// A command line that cannot be parsed.
#[derive(Debug, PartialEq, Eq)]
pub struct UsageError(String);

impl fmt::Display for UsageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}\nTry 'demo-emulator --help'.", self.0)
    }
}

impl std::error::Error for UsageError {}

/// Parses `arguments`, which lack the emulator's own name.
pub fn parse(arguments: impl Iterator<Item = OsString>) -> Result<Command, UsageError> {
    let mut cli = Cli::default();
    let mut arguments = arguments.peekable();
    let mut given = Vec::new();
    while let Some(argument) = arguments.next_if(|argument| is_option(argument)) {
        if argument == "--" {
            break;
        }
        let bytes = argument.as_bytes();
        let bare = bytes.strip_prefix(b"--").or_else(|| bytes.strip_prefix(b"-")).unwrap_or(bytes);
        // A value may be any bytes; a name is text.
        let (name, joined) = match bare.iter().position(|byte| *byte == b'=') {
            Some(at) => (&bare[..at], Some(OsStr::from_bytes(&bare[at + 1..]))),
            None => (bare, None),
        };
        let (name, text) = (&*String::from_utf8_lossy(name), argument.to_string_lossy());
        if let Some(command) = alone(name, joined, &text)? {
            return match given.pop().map(OsString::from).or_else(|| arguments.next()) {
                None => Ok(command),
                Some(other) => Err(UsageError(format!("{text} stands alone: leave out {}", other.to_string_lossy()))),
            };
        }
        given.push(format!("-{name}"));
        if !takes_value(name) {
            flag(&mut cli, name, joined, &text)?;
            cli.inherited.push(argument.into_vec());
            continue;
        }
        let value = joined.map(OsString::from).or_else(|| arguments.next());
        let value = value.ok_or_else(|| UsageError(format!("{text} needs a value")))?;
        let inherits = valued(&mut cli, name, &value)?;
        if inherits {
            // A program may change its directory before it executes another.
            let value = match name {
                "D" | "L" => std::path::absolute(&value).map_or(value, PathBuf::into_os_string),
                _ => value,
            };
            cli.inherited.extend([format!("-{name}").into_bytes(), value.into_vec()]);
        }
    }
    check_together(&cli, &given)?;
    cli.program = arguments.next().map(PathBuf::from);
    cli.arguments = arguments.collect();
    Ok(Command::Run(Box::new(cli)))
}

/// The request of an option that allows no other.
fn alone(name: &str, value: Option<&OsStr>, text: &str) -> Result<Option<Command>, UsageError> {
    Ok(Some(match (name, value) {
        ("help" | "h", None) => Command::Help,
        ("version", None) => Command::Version,
        ("help" | "h" | "version", Some(_)) => return Err(UsageError(format!("{text}: takes no value"))),
        ("probe", value) => Command::Probe(form("probe", value)?),
        _ => return Ok(None),
    }))
}

/// Refuses options that another one makes meaningless.
fn check_together(cli: &Cli, given: &[String]) -> Result<(), UsageError> {
    let of_translations = ["-tier", "-tracking", "-code-limit", "-d"];
    if let (true, Some(option)) =
        (cli.interpret, given.iter().find(|option| of_translations.contains(&option.as_str())))
    {
        let option = if option.len() == 2 { option.clone() } else { format!("-{option}") };
        return Err(UsageError(format!("{option} is about translations, and --interpret makes none: leave out one")));
    }
    if cli.tier == Tier::Decoded && cli.log.out_asm {
        return Err(UsageError("-d out_asm is about host code, and --tier 0 makes none: leave out one".to_owned()));
    }
    Ok(())
}

/// A lone dash is a program's name, if an odd one.
fn is_option(argument: &OsStr) -> bool {
    argument.len() > 1 && argument.as_bytes()[0] == b'-'
}

fn takes_value(name: &str) -> bool {
    matches!(name, "tier" | "tracking" | "code-limit" | "d" | "D" | "L" | "E" | "U" | "0" | "s")
}

fn flag(cli: &mut Cli, name: &str, value: Option<&OsStr>, text: &str) -> Result<(), UsageError> {
    match (name, value.map(OsStr::as_bytes)) {
        ("interpret", None) => cli.interpret = true,
        ("strace", None) => cli.strace = true,
        ("interpret" | "strace", Some(_)) => return Err(UsageError(format!("{text}: takes no value"))),
        ("stats", _) => cli.stats = Some(form("stats", value)?),
        _ => return Err(UsageError(format!("unknown option {text}"))),
    }
    Ok(())
}

/// The form after `--stats=` or `--probe=`, or without `=` the default.
fn form(option: &str, value: Option<&OsStr>) -> Result<Form, UsageError> {
    match value.map(OsStr::as_bytes) {
        None => Ok(Form::Text),
        Some(b"json") => Ok(Form::Json),
        Some(_) => Err(UsageError(format!("--{option}: the only form with a name is --{option}=json"))),
    }
}

/// Takes an option's value; returns whether an execve repeats it.
fn valued(cli: &mut Cli, name: &str, value: &OsStr) -> Result<bool, UsageError> {
    let text = value.to_string_lossy();
    match name {
        "tier" => {
            cli.tier = match &*text {
                "auto" => Tier::Auto,
                "0" => Tier::Decoded,
                "1" if HAS_QUICK => Tier::Quick,
                "1" => return Err(UsageError("--tier 1: there is none on this processor, only on x86-64".to_owned())),
                "2" => Tier::Region,
                _ => return Err(UsageError(format!("--tier {text}: must be auto, 0, 1 or 2"))),
            }
        }
        "tracking" => cli.tracking = tracking(&text)?,
        "d" => cli.log = log_items(&text)?,
        "D" => cli.log_file = Some(value.into()),
        "L" => cli.sysroot = Some(value.into()),
        // The bounds: a page, and a part of the window.
        "s" => cli.stack_bytes = size("-s", &text, [(64 << 10, "64K"), (64 << 30, "64G")])?,
        // The address space holds two views of it.
        "code-limit" => {
            let bytes = size("--code-limit", &text, [(128 << 10, "128K"), (4 << 30, "4G")])?;
            cli.code_limit_bytes = bytes as usize;
        }
        "0" => {
            cli.argv0 = Some(value.into());
            return Ok(false);
        }
        "U" => {
            if text.is_empty() || text.contains('=') {
                return Err(UsageError(format!("-U {text}: must be the name of a variable, which has no =")));
            }
            cli.environment.push((value.into(), None));
            return Ok(false);
        }
        _ => {
            let bytes = value.as_bytes();
            let split = bytes.iter().position(|byte| *byte == b'=');
            let split =
                split.filter(|at| *at > 0).ok_or_else(|| UsageError(format!("-E {text}: must be VAR=VALUE")))?;
            let (variable, value) = (OsStr::from_bytes(&bytes[..split]), OsStr::from_bytes(&bytes[split + 1..]));
            cli.environment.push((variable.into(), Some(value.into())));
            return Ok(false);
        }
    }
    Ok(true)
}

fn tracking(name: &str) -> Result<Tracking, UsageError> {
    if name == "auto" {
        return Ok(Tracking::Auto);
    }
    Mode::from_name(name).map(Tracking::Mode).ok_or_else(|| {
        let names: Vec<_> = Mode::ALL.iter().map(|mode| mode.name()).collect();
        UsageError(format!("--tracking {name}: must be auto, {}", names.join(", ")))
    })
}

fn log_items(items: &str) -> Result<Log, UsageError> {
    let mut log = Log::default();
    for item in items.split(',') {
        match item {
            "in_asm" => log.in_asm = true,
            "out_asm" => log.out_asm = true,
            _ => return Err(UsageError(format!("-d {item}: must be in_asm or out_asm"))),
        }
    }
    Ok(log)
}

/// A size in bytes within bounds, which have a name for people.
fn size(option: &str, text: &str, bounds: [(u64, &str); 2]) -> Result<u64, UsageError> {
    let (digits, shift) = match text.as_bytes().last() {
        Some(b'k' | b'K') => (&text[..text.len() - 1], 10),
        Some(b'm' | b'M') => (&text[..text.len() - 1], 20),
        Some(b'g' | b'G') => (&text[..text.len() - 1], 30),
        _ => (text, 0),
    };
    // A sign is no digit: parse would take a plus.
    let number = Some(digits).filter(|digits| digits.bytes().all(|byte| byte.is_ascii_digit()));
    let bytes = number.and_then(|digits| digits.parse::<u64>().ok()).and_then(|number| number.checked_mul(1 << shift));
    let [(least, least_name), (most, most_name)] = bounds;
    let bytes = bytes.filter(|bytes| (least..=most).contains(bytes));
    bytes.ok_or_else(|| UsageError(format!("{option} {text}: must be a size from {least_name} to {most_name}")))
}
