//! The command line, in the style of QEMU's user mode: options, then the program, then the
//! program's own arguments. The parser refuses an option that another one makes meaningless, and
//! arguments that are left over.
//!
//! Long options may have one dash or two. Parsing opens no file and reads no
//! environment.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

use codewarden::protection::Mode;

use crate::linux::stack::DEFAULT_STACK_BYTES;

/// Exit status of a command line that cannot be parsed.
pub const USAGE_STATUS: u8 = 2;

/// Default memory for translations, in bytes.
const DEFAULT_CODE_LIMIT_BYTES: usize = 256 << 20;

/// The text of `--help`.
pub const HELP: &str = "\
Runs a RISC-V RV64GC Linux program. Without one, runs a guest of its own that
rewrites its code, and tells what becomes of the translations.

Usage: demo-emulator [OPTIONS] [PROGRAM [ARGUMENTS...]]

How the program is run:
  --interpret          fetch and decode every instruction, keep nothing
  --tier TIER          auto, 0 (decoded blocks) or translated (compiled blocks)
  --tracking MODE      auto, sigbus, thread, deferred, mprotect or none: how
                       writes to translated code are learned of
  --code-limit SIZE    memory for translations, 128K to 4G, else 256M; the oldest
                       are evicted; K, M and G may follow the number

What the program sees:
  -L DIR               look absolute paths up below DIR first
  -E VAR=VALUE         set an environment variable
  -U VAR               unset an environment variable
  -0 NAME              the program's argv[0]
  -s SIZE              stack of SIZE bytes, 64K to 64G, else 8M; K, M and G
                       may follow the number

What is told:
  -strace              print system calls
  -d ITEM[,ITEM...]    log in_asm (guest instructions as they are translated),
                       out_asm (the host code made from them)
  -D FILE              append what -strace, -d and --stats print to FILE
  --stats              counters, histograms and the pages written to most, at exit
  --stats=json         the same for programs

Each of these alone, with nothing else on the line:
  --probe              say what this kernel and these permissions allow, and
                       what to change to get more
  --probe=json         the same for programs
  --version            print the version
  --help               print this
";

/// The request of the command line.
#[derive(Debug, PartialEq, Eq)]
pub enum Command {
    /// Run a program, or the bundled guest if none is named.
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
    /// Cold code in tier 0, hot code compiled.
    #[default]
    Auto,
    /// Decoded blocks alone.
    Decoded,
    /// Everything compiled.
    Translated,
}

impl Tier {
    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Decoded => "0",
            Self::Translated => "translated",
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
    /// The program; `None` for the bundled guest.
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
                "translated" => Tier::Translated,
                _ => return Err(UsageError(format!("--tier {text}: must be auto, 0 or translated"))),
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

#[cfg(test)]
mod tests {
    use super::*;

    fn run(line: &str) -> Cli {
        match parse(line.split_whitespace().map(OsString::from)) {
            Ok(Command::Run(cli)) => *cli,
            other => panic!("{line}: {other:?}"),
        }
    }

    fn error(line: &str) -> String {
        parse(line.split_whitespace().map(OsString::from)).expect_err(line).to_string()
    }

    #[test]
    fn options_end_at_the_program() {
        let cli = run("--interpret -strace prog --stats -x");
        assert!(cli.interpret && cli.strace && cli.stats.is_none());
        assert_eq!(cli.program, Some("prog".into()));
        assert_eq!(cli.arguments, ["--stats", "-x"]);
        assert_eq!(run("-- -odd arg").program, Some("-odd".into()));
        assert_eq!(run("--interpret").program, None);
    }

    #[test]
    fn values_are_understood() {
        let cli = run("--tier translated --tracking=deferred -d in_asm,out_asm -s 16M -L /root --stats=json p");
        assert_eq!((cli.tier, cli.tracking), (Tier::Translated, Tracking::Mode(Mode::Deferred)));
        assert_eq!((cli.log, cli.stack_bytes()), (Log { in_asm: true, out_asm: true }, 16 << 20));
        assert_eq!((cli.sysroot, cli.stats), (Some("/root".into()), Some(Form::Json)));
        assert_eq!(run("--code-limit 1M p").code_limit_bytes(), 1 << 20);
        assert_eq!(run("p").code_limit_bytes(), DEFAULT_CODE_LIMIT_BYTES);
    }

    #[test]
    fn an_execve_repeats_what_concerns_the_emulator() {
        let cli = run("--tier 0 -E A=1 -U B -0 zero --tracking=none -strace p");
        let repeated: Vec<&[u8]> = vec![b"-tier", b"0", b"-tracking", b"none", b"-strace"];
        assert_eq!(cli.inherited, repeated);
    }

    #[test]
    fn the_environment_is_changed_in_order() {
        let cli = run("-E A=2 -U B -E C=x=y p");
        let inherited = [("A", "1"), ("B", "1"), ("D", "1")].map(|(n, v)| (OsString::from(n), OsString::from(v)));
        let expected: Vec<&[u8]> = vec![b"D=1", b"A=2", b"C=x=y"];
        assert_eq!(cli.environment(inherited.into_iter()), expected);
    }

    #[test]
    fn mistakes_are_named() {
        for line in [
            "--tier 7 p",
            "--tracking magic p",
            "-d op p",
            "-s 1 p",
            "-s 8X p",
            "--code-limit 1K p",
            "--code-limit 5G p",
            "-s 65G p",
            "-s +1M p",
            "-s 99999999999999999999 p",
            "-E novalue p",
            "-E =v p",
            "-U A=B p",
            "--interpret=sigbus p",
            "-strace=1 p",
            "--help=x",
        ] {
            let said = line.split(' ').take(2).filter(|word| *word != "p").last().unwrap_or_default();
            assert!(error(line).contains(said), "{line}: {}", error(line));
        }
        assert!(error("-s 1 p").contains("from 64K to 64G"));
        assert!(error("--code-limit 1 p").contains("from 128K to 4G"));
        assert!(parse(["-U", "", "p"].into_iter().map(OsString::from)).is_err());
        assert!(error("--wat p").contains("--wat"));
        assert!(error("-L").contains("needs a value"));
        assert!(error("--stats=xml p").contains("--stats=json"));
        assert!(error("--probe=xml").contains("--probe=json"));
    }

    #[test]
    fn an_option_that_would_say_nothing_is_refused() {
        for line in ["--interpret --tier 0 p", "--tracking=none --interpret p", "--interpret -d in_asm p"] {
            assert!(error(line).contains("--interpret makes none"), "{line}: {}", error(line));
        }
        assert!(error("--code-limit 1M --interpret").contains("--code-limit"));
        assert!(error("--tier 0 -d out_asm p").contains("--tier 0 makes none"));
        for alone in ["--help", "-h", "--version", "--probe", "--probe=json"] {
            for line in [format!("{alone} left"), format!("--tier 0 {alone}"), format!("{alone} --help")] {
                let error = error(&line);
                assert!(error.contains("stands alone") && error.contains(alone), "{line}: {error}");
            }
        }
        // After the program, options are its own.
        assert_eq!(run("p --help").arguments, ["--help"]);
    }

    #[test]
    fn a_value_may_be_any_bytes() {
        let odd = [b"-L=/\xff=x".to_vec(), b"-E=A=\xfe".to_vec(), b"p".to_vec()].map(OsString::from_vec);
        let Ok(Command::Run(cli)) = parse(odd.into_iter()) else { panic!("not understood") };
        assert_eq!(cli.sysroot.unwrap().as_os_str().as_bytes(), b"/\xff=x");
        assert_eq!(cli.environment[0].1.as_deref().unwrap().as_bytes(), b"\xfe");
    }

    #[test]
    fn the_help_tells_each_option_and_each_range() {
        for option in ["-D", "-E", "-L", "-U", "-0", "-s", "-d", "-strace", "--tier", "--tracking", "--interpret"] {
            assert!(HELP.contains(&format!("\n  {option} ")), "{option}");
        }
        for part in ["128K to 4G", "64K to 64G", "--stats=json", "--probe=json", "--version", "--code-limit"] {
            assert!(HELP.contains(part), "{part}");
        }
        assert_eq!((DEFAULT_CODE_LIMIT_BYTES, DEFAULT_STACK_BYTES), (256 << 20, 8 << 20));
        assert!(HELP.lines().all(|line| line.len() <= 100));
    }

    #[test]
    fn the_probe_has_two_forms() {
        for (line, form) in [("--probe", Form::Text), ("-probe=json", Form::Json)] {
            assert_eq!(parse([OsString::from(line)].into_iter()), Ok(Command::Probe(form)));
        }
    }
}
