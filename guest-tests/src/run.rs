//! Runs one guest in an emulator's process, with a time limit.

use std::ffi::OsString;
use std::fmt;
use std::io::{self, Read};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use codewarden::protection::Mode;

use crate::bundle::guests_dir;
use crate::table::Guest;

/// The time limit of a guest. Guests give up waiting for each other earlier.
const TIMEOUT: Duration = Duration::from_secs(100);

/// Which translator of the demo emulator is forced.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Tier {
    /// Decoded blocks only.
    Zero,
    /// Quickly compiled blocks only.
    One,
    /// Compiled regions only.
    Two,
    /// The emulator's choice: the more often code runs, the higher its tier.
    Auto,
}

/// How the demo emulator runs a guest.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Way {
    /// Every instruction fetched and decoded from memory.
    Interpreter,
    /// Through the code cache.
    Cached(Mode, Tier),
}

impl Way {
    fn options(self) -> Vec<&'static str> {
        match self {
            Way::Interpreter => vec!["--interpret"],
            Way::Cached(mode, tier) => {
                let tier = match tier {
                    Tier::Zero => "0",
                    Tier::One => "1",
                    Tier::Two => "2",
                    Tier::Auto => "auto",
                };
                vec!["--tracking", mode.name(), "--tier", tier]
            }
        }
    }
}

/// How a process ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Exit {
    /// With this code.
    Code(i32),
    /// By this signal.
    Signal(i32),
    /// It did not end: it was killed when its time was over.
    TimedOut,
}

/// The result of a run.
#[derive(Debug)]
pub struct Outcome {
    /// How it ended.
    pub exit: Exit,
    /// All that it wrote to stdout.
    pub stdout: String,
    /// All that it wrote to stderr.
    pub stderr: String,
    /// For a run that hung: the position of each of its threads.
    pub threads: String,
}

impl Outcome {
    /// Whether it is the result that the table's row asks of a run that passes.
    pub fn passes(&self, guest: &Guest) -> bool {
        self.exit == Exit::Code(0) && self.stdout.lines().last() == Some(&guest.last_line())
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}, stdout {:?}, stderr {:?}", self.exit, self.stdout, self.stderr)?;
        if !self.threads.is_empty() {
            write!(f, ", threads when it was killed:\n{}", self.threads)?;
        }
        Ok(())
    }
}

/// A program that runs guests.
#[derive(Clone, Debug)]
pub struct Emulator {
    program: PathBuf,
    takes_ways: bool,
}

impl Emulator {
    /// The demo emulator at `program`.
    pub fn demo(program: impl Into<PathBuf>) -> Self {
        Self { program: program.into(), takes_ways: true }
    }

    /// Another emulator, which gets the guest and its arguments alone.
    pub fn peer(program: impl Into<PathBuf>) -> Self {
        Self { program: program.into(), takes_ways: false }
    }

    /// Runs a row of the table and waits for its end. Kills it if its time is over.
    pub fn run(&self, guest: &Guest, way: Way) -> io::Result<Outcome> {
        self.run_with_args(guest.name, guest.args, way)
    }

    /// Runs the guest of that name with other arguments.
    pub fn run_with_args(&self, guest: &str, arguments: &[&str], way: Way) -> io::Result<Outcome> {
        let mut args: Vec<OsString> = Vec::new();
        if self.takes_ways {
            args.extend(way.options().into_iter().map(Into::into));
        }
        args.push(guests_dir().join(format!("{guest}.elf")).into());
        args.extend(arguments.iter().map(Into::into));
        let mut command = Command::new(&self.program);
        command.args(args);
        run_command(command)
    }
}

fn run_command(mut command: Command) -> io::Result<Outcome> {
    // A group of its own, so that a guest that forked is killed as a whole.
    let mut child =
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0).spawn()?;
    let stdout = read_in_background(child.stdout.take());
    let stderr = read_in_background(child.stderr.take());
    let (exit, threads) = wait(&mut child)?;
    let text =
        |reader: thread::JoinHandle<Vec<u8>>| String::from_utf8_lossy(&reader.join().unwrap_or_default()).into_owned();
    Ok(Outcome { exit, stdout: text(stdout), stderr: text(stderr), threads })
}

fn read_in_background(pipe: Option<impl Read + Send + 'static>) -> thread::JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut pipe) = pipe {
            // Bytes that were read before an error are still worth showing.
            let _ = pipe.read_to_end(&mut bytes);
        }
        bytes
    })
}

fn wait(child: &mut Child) -> io::Result<(Exit, String)> {
    let deadline = Instant::now() + TIMEOUT;
    let mut pause = Duration::from_millis(1);
    loop {
        if let Some(status) = child.try_wait()? {
            let exit = match (status.code(), status.signal()) {
                (Some(code), _) => Exit::Code(code),
                (None, signal) => Exit::Signal(signal.unwrap_or_default()),
            };
            return Ok((exit, String::new()));
        }
        if Instant::now() > deadline {
            let threads = describe_threads(child.id());
            if let Some(group) = rustix::process::Pid::from_raw(child.id() as i32) {
                rustix::process::kill_process_group(group, rustix::process::Signal::KILL)?;
            }
            child.wait()?;
            return Ok((Exit::TimedOut, threads));
        }
        thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(20));
    }
}

/// State, wait channel and system call of each thread, as the kernel tells
/// them: enough to say whether a hang spins, sleeps in a futex or in a fault.
fn describe_threads(pid: u32) -> String {
    let mut text = String::new();
    let Ok(tasks) = std::fs::read_dir(format!("/proc/{pid}/task")) else { return text };
    for task in tasks.flatten() {
        let read = |name: &str| std::fs::read_to_string(task.path().join(name)).unwrap_or_default().trim().to_owned();
        let status = read("status");
        let state = status.lines().find(|line| line.starts_with("State:")).unwrap_or("State: ?");
        text += &format!(
            "  {} {state}, waits in {}, system call {}\n",
            task.file_name().to_string_lossy(),
            read("wchan"),
            read("syscall"),
        );
    }
    text
}
