//! The entry of the program. It runs the guest that the arguments name, or prints an error and
//! exits with the status that a shell expects.

use std::ffi::OsString;
use std::fmt::Display;
use std::io::{self, Write};
use std::os::unix::ffi::OsStringExt;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

use codewarden::error::Error;
use codewarden::protection::Probe;
use demo_emulator::asm_log::AsmLog;
use demo_emulator::cli::{self, Cli, Command, Form, Tier};
use demo_emulator::demo::comparison;
use demo_emulator::demo::guest::DemoGuest;
use demo_emulator::demo::report::DemoReport;
use demo_emulator::engine::{Engine, EngineError, Listener};
use demo_emulator::linux::log::LogFile;
use demo_emulator::linux::{AtExit, Interpreter, Machine, Options, Process, Start, host_signals};
use demo_emulator::memory::{Window, host_fault, limits};
use demo_emulator::probe;
use demo_emulator::stats::{Report, Writers};
use demo_emulator::style::Style;
use demo_emulator::symbols::Symbols;

/// Exit status of an emulator that cannot do its work, as `env` and others have it.
const FAILURE_STATUS: u8 = 125;

/// Data that a run needs, besides the guest's stack and the tables whose sizes the options set.
const DATA_BYTES: usize = 4 << 20;

/// An exit status and the message.
type Failure = (u8, String);

fn main() -> ExitCode {
    let command = match cli::parse(std::env::args_os().skip(1)) {
        Ok(command) => command,
        Err(error) => return fail(cli::USAGE_STATUS, &error),
    };
    let text = match command {
        Command::Help => cli::HELP.to_owned(),
        Command::Version => format!("demo-emulator {}\n", env!("CARGO_PKG_VERSION")),
        Command::Probe(form) => {
            let found = Probe::of_this_process();
            if let Some(mistake) = found.mistake() {
                return fail(cli::USAGE_STATUS, &mistake);
            }
            match form {
                Form::Text => probe::text(&found),
                Form::Json => probe::json(&found),
            }
        }
        Command::Run(cli) => {
            let (status, error) = run(*cli);
            return fail(status, &error);
        }
    };
    // Unlike `print!`, this does not panic if nobody reads the output.
    match io::stdout().write_all(text.as_bytes()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::from(FAILURE_STATUS),
    }
}

fn fail(status: u8, error: &dyn Display) -> ExitCode {
    // If standard error fails too, nothing is left to do.
    let _ = writeln!(io::stderr(), "demo-emulator: {error}");
    ExitCode::from(status)
}

/// Runs the guest, which ends the process. Returns only on an error.
fn run(cli: Cli) -> Failure {
    match start(cli) {
        Ok(never) => match never {},
        Err(failure) => failure,
    }
}

fn start(mut cli: Cli) -> Result<std::convert::Infallible, Failure> {
    check_sysroot(cli.sysroot.as_deref())?;
    check_mask()?;
    let (path, demo) = match cli.program.take() {
        Some(path) => (path, None),
        None => {
            let guest = DemoGuest::new().map_err(failed("the demo's guest cannot be put into memory"))?;
            (guest.path(), Some(guest))
        }
    };
    Window::check_host_page().map_err(failed("the guest cannot run on this kernel"))?;
    let window = Window::reserve().map_err(failed(
        "there is no address space for the guest: it needs 256 GiB of addresses, not of memory, and 64 MiB of \
         data for a table; raise the limits with ulimit -v unlimited and ulimit -d unlimited",
    ))?;
    check_limits(&cli)?;
    // In this order: the fault handler passes on the faults that it does not recognise.
    host_signals::catch_sent_faults().map_err(failed("the signal handler cannot be installed"))?;
    host_fault::install().map_err(failed("the fault handler cannot be installed"))?;
    let log_name = cli.log_file.as_deref().unwrap_or(Path::new("")).display().to_string();
    let log = LogFile::open(cli.log_file.as_deref()).map_err(failed(&format!("-D {log_name}: cannot be opened")))?;
    let writers = Arc::new(Writers::default());
    let (machine, engine) = machine(&cli, window, &path, demo.is_some(), &log, &writers)?;
    let at_exit = at_exit(&cli, engine, &path, demo, &log, writers);
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
        log,
        at_exit,
        inherited: cli.inherited,
    };
    host_signals::restore_sigpipe().map_err(failed("SIGPIPE cannot be given its default"))?;
    let (process, hart) = Process::load(window, machine, options, start)
        .map_err(|error| (error.exit_status() as u8, error.to_string()))?;
    process.run(hart).map_err(failed("the first hart cannot be started"))
}

/// Checks now: a later shortage would end the process without a helpful message.
fn check_limits(cli: &Cli) -> Result<(), Failure> {
    let compiles = !cli.interpret && cli.tier != Tier::Decoded;
    let len_bytes = DATA_BYTES + cli.stack_bytes() as usize + if compiles { cli.code_limit_bytes() / 8 } else { 0 };
    limits::check_data(len_bytes).map_err(failed(&format!(
        "there is no memory for {} MiB of data, the guest's stack among them: raise the limit with ulimit -d unlimited",
        len_bytes >> 20
    )))?;
    let advice = "the first hart needs more stack to compile: raise the limit with ulimit -s 1024, or --interpret";
    if compiles { limits::grow_stack().map_err(failed(advice)) } else { Ok(()) }
}

fn check_sysroot(sysroot: Option<&Path>) -> Result<(), Failure> {
    let Some(path) = sysroot else { return Ok(()) };
    let about = path.metadata().map_err(failed(&format!("-L {}: cannot be used", path.display())))?;
    if about.is_dir() { Ok(()) } else { Err((FAILURE_STATUS, format!("-L {}: is not a directory", path.display()))) }
}

/// Each name in CODEWARDEN_HIDE must exist, even if the program does not need it.
fn check_mask() -> Result<(), Failure> {
    let mistake = std::env::var_os("CODEWARDEN_HIDE").and_then(|_| Probe::of_this_process().mistake());
    mistake.map_or(Ok(()), |mistake| Err((FAILURE_STATUS, mistake)))
}

/// Prefixes an error with a description of the failed action.
fn failed<E: Display>(what: &str) -> impl Fn(E) -> Failure {
    move |error| (FAILURE_STATUS, format!("{what} ({error})"))
}

/// The machine that runs the instructions; it is also the engine, unless it is the interpreter.
type Runner = (Arc<dyn Machine>, Option<Arc<Engine>>);

fn machine(
    cli: &Cli,
    window: Window,
    program: &Path,
    is_demo: bool,
    log: &LogFile,
    writers: &Arc<Writers>,
) -> Result<Runner, Failure> {
    if cli.interpret {
        return Ok((Arc::new(Interpreter::new(window)), None));
    }
    let mut engine = Engine::new(window, cli.tracking, cli.tier, cli.code_limit_bytes()).map_err(cannot_start)?;
    let mut listeners: Vec<Box<dyn Listener>> = Vec::new();
    if cli.log.in_asm || cli.log.out_asm {
        listeners.push(Box::new(AsmLog::new(cli.log, log.clone(), symbols_of(program))));
    }
    if cli.stats.is_some() {
        listeners.push(Box::new(writers.clone()));
    }
    if is_demo {
        let (mode, why) = engine.mode();
        let report = DemoReport::new(DemoGuest::symbols(), window, mode, Style::of_stdout());
        report.open(why);
        listeners.push(Box::new(report));
    }
    if !listeners.is_empty() {
        engine.listen(listeners);
    }
    let engine = Arc::new(engine);
    Ok((engine.clone(), Some(engine)))
}

fn symbols_of(program: &Path) -> Symbols {
    // A file that cannot be read soon fails with its own error.
    std::fs::read(program).map(|elf| Symbols::of_elf(&elf)).unwrap_or_default()
}

fn cannot_start(error: EngineError) -> Failure {
    let advice = match &error {
        EngineError::Codewarden(Error::ModeUnavailable { .. }) => "demo-emulator --probe says what can be had here",
        EngineError::NoMode(_) => "--interpret needs no tracking; demo-emulator --probe says what can be had here",
        EngineError::NoCompiler(_) => "--tier 0 runs without compiled code",
        EngineError::Codewarden(Error::System { errno: libc::ENOMEM, .. }) => {
            "there is no memory for translated code: raise the limit with ulimit -v unlimited"
        }
        _ => "--interpret runs without a translator",
    };
    (FAILURE_STATUS, format!("{error}\n{advice}"))
}

/// Prints the reports when the guest has ended.
fn at_exit(
    cli: &Cli,
    engine: Option<Arc<Engine>>,
    program: &Path,
    demo: Option<DemoGuest>,
    log: &LogFile,
    writers: Arc<Writers>,
) -> AtExit {
    let stats = cli.stats;
    // Read now: a guest may change its directory.
    let symbols = if stats.is_some() { symbols_of(program) } else { Symbols::default() };
    let (log, start) = (log.clone(), Instant::now());
    AtExit::new(move || {
        // Before the comparison runs other processes.
        let report = stats.map(|stats| (stats, Report::new(engine.as_deref(), &writers, &symbols, start)));
        if let (Some(engine), Some(guest)) = (&engine, &demo) {
            let tier = engine.tier().name();
            comparison::print(&guest.path(), engine.mode().0.name(), &["--tier", tier], Style::of_stdout());
        }
        match report {
            Some((Form::Text, report)) => log.write(&report.text()),
            Some((Form::Json, report)) => log.write(&report.json()),
            None => {}
        }
    })
}
