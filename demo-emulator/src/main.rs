//! The command line's entry: from arguments to a running guest, or to an error
//! with the exit status that a shell expects.

use std::ffi::OsString;
use std::fmt::Display;
use std::fs::File;
use std::os::unix::ffi::OsStringExt;
use std::process::ExitCode;
use std::sync::Arc;

use demo_emulator::cli::{self, Cli, Command};
use demo_emulator::engine::Engine;
use demo_emulator::linux::process::raise_descriptor;
use demo_emulator::linux::{Machine, Options, Oracle, Process, Start, host_signals};
use demo_emulator::memory::{Window, host_fault};

/// Exit status of an emulator that cannot do its work, as `env` and others have it.
const FAILURE_STATUS: u8 = 125;

fn main() -> ExitCode {
    let command = match cli::parse(std::env::args_os().skip(1)) {
        Ok(command) => command,
        Err(error) => return fail(cli::USAGE_STATUS, &error),
    };
    match command {
        Command::Help => print!("{}", cli::HELP),
        Command::Version => println!("demo-emulator {}", env!("CARGO_PKG_VERSION")),
        Command::Probe => return fail(FAILURE_STATUS, &"--probe: this version has no probe"),
        Command::Run(cli) => {
            let (status, error) = run(*cli);
            return fail(status, &error);
        }
    }
    ExitCode::SUCCESS
}

fn fail(status: u8, error: &dyn Display) -> ExitCode {
    eprintln!("demo-emulator: {error}");
    ExitCode::from(status)
}

/// Runs the guest, which ends the process; comes back with an error alone.
fn run(mut cli: Cli) -> (u8, String) {
    let failure = |what: &str, error: &dyn Display| (FAILURE_STATUS, format!("{what}: {error}"));
    let Some(path) = cli.program.take() else {
        return (cli::USAGE_STATUS, "name a program to run; try --help".to_owned());
    };
    let window = match Window::reserve() {
        Ok(window) => window,
        Err(error) => return failure("no address space for the guest (is a limit set with ulimit -v?)", &error),
    };
    // In this order: the fault handler hands on what it does not know.
    if let Err(error) = host_signals::catch_sent_faults() {
        return failure("the signal handler cannot be installed", &error);
    }
    if let Err(error) = host_fault::install() {
        return failure("the fault handler cannot be installed", &error);
    }
    let machine = match machine(&cli, window) {
        Ok(machine) => machine,
        Err(error) => return (FAILURE_STATUS, error),
    };
    let log = match cli.log_file.as_ref().map(|path| File::options().create(true).append(true).open(path)).transpose() {
        Ok(log) => log,
        Err(error) => return failure("-D: the log cannot be opened", &error),
    };
    let argv0 = cli.argv0.take().unwrap_or_else(|| path.clone().into_os_string());
    let arguments = std::mem::take(&mut cli.arguments);
    let start = Start {
        argv: std::iter::once(argv0).chain(arguments).map(OsString::into_vec).collect(),
        envp: cli.environment(std::env::vars_os()),
        path,
    };
    let options = Options {
        stack_bytes: cli.stack_bytes(),
        sysroot: cli.sysroot,
        trace: cli.strace,
        log: log.map(|file| raise_descriptor(file.into()).into()),
        inherited: cli.inherited,
    };
    if let Err(error) = host_signals::restore_sigpipe() {
        return failure("SIGPIPE cannot be given its default", &error);
    }
    match Process::load(window, machine, options, start) {
        Ok((process, hart)) => match process.run(hart) {
            Ok(never) => match never {},
            Err(error) => failure("the first hart cannot be started", &error),
        },
        Err(error) => (error.exit_status() as u8, error.to_string()),
    }
}

/// What runs the instructions.
fn machine(cli: &Cli, window: Window) -> Result<Arc<dyn Machine>, String> {
    if cli.interpret {
        return Ok(Arc::new(Oracle::new(window)));
    }
    let engine = Engine::new(window, cli.tracking, cli.tier).map_err(|error| error.to_string())?;
    Ok(Arc::new(engine))
}
