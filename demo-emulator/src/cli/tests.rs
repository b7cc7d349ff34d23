use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use codewarden::protection::Mode;

use super::options::DEFAULT_CODE_LIMIT_BYTES;
use super::*;
use crate::linux::stack::DEFAULT_STACK_BYTES;

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
    let cli = run("--tier 2 --tracking=deferred -d in_asm,out_asm -s 16M -L /root --stats=json p");
    assert_eq!((cli.tier, cli.tracking), (Tier::Region, Tracking::Mode(Mode::Deferred)));
    assert_eq!((cli.log, cli.stack_bytes()), (Log { in_asm: true, out_asm: true }, 16 << 20));
    assert_eq!((cli.sysroot, cli.stats), (Some("/root".into()), Some(Form::Json)));
    assert_eq!(run("--code-limit 1M p").code_limit_bytes(), 1 << 20);
    assert_eq!(run("p").code_limit_bytes(), DEFAULT_CODE_LIMIT_BYTES);
}

#[test]
fn an_execve_repeats_the_emulators_options() {
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
fn the_help_has_each_option_and_each_range() {
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
