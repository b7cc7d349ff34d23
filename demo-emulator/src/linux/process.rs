//! A guest process: the state that its threads share, its start and its end.

use std::fmt;
use std::ops::Range;
use std::os::fd::RawFd;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use codewarden::addr::HostAddr;

use super::log::LogFile;
use crate::hart::Hart;
use crate::memory::Window;
use crate::memory::window::{EXEC, READ, WRITE};

use super::address_space::{AddressSpace, PAGE_BYTES, Place, Source};
use super::errno::Errno;
use super::file_change::FileChangeId;
use super::host_exit::exit_process;
use super::machine::Machine;
use super::observer::MemoryObserver;
use super::own_memory::{OwnMemory, file_id};
use super::program::{self, LoadError};
use super::signal_actions::Actions;
use super::signal_frame::TRAMPOLINE;
use super::stack::{self, Arguments};
use super::vma::FileId;
use super::{host_fs, host_memory};

/// The options of a run.
#[derive(Debug, Default)]
pub struct Options {
    /// Absolute paths are looked up below this first.
    pub sysroot: Option<PathBuf>,
    /// Bytes of the first thread's stack.
    pub stack_bytes: u64,
    /// Whether system calls are printed.
    pub trace: bool,
    /// The trace's log.
    pub log: LogFile,
    /// An action before the process ends.
    pub at_exit: AtExit,
    /// The options that an execve of another guest program passes on.
    pub inherited: Vec<Vec<u8>>,
}

/// An action that runs once, before the process ends in order or by a signal that the emulator
/// sees.
#[derive(Default)]
pub struct AtExit {
    action: Option<Box<dyn Fn() + Send + Sync>>,
    is_done: AtomicBool,
}

impl AtExit {
    /// Runs `action` then.
    pub fn new(action: impl Fn() + Send + Sync + 'static) -> Self {
        Self { action: Some(Box::new(action)), is_done: AtomicBool::new(false) }
    }

    /// Returns whether this is the first call. Several threads may end the process at once.
    fn run(&self) -> bool {
        let is_first = !self.is_done.swap(true, Ordering::AcqRel);
        if let (Some(action), true) = (&self.action, is_first) {
            action();
        }
        is_first
    }
}

impl fmt::Debug for AtExit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AtExit")
    }
}

/// The state that the threads of a guest process share.
pub struct Process {
    /// Guest memory.
    pub window: Window,
    /// The options of the run.
    pub options: Options,
    /// Makes executors.
    pub machine: Arc<dyn Machine>,
    /// Hears of memory events.
    pub observer: Arc<dyn MemoryObserver>,
    /// The program's path on the host, for `/proc/self/exe`.
    pub executable: PathBuf,
    /// Its arguments, for `/proc/self/cmdline`.
    pub argv: Vec<Vec<u8>>,
    /// The return address of signal handlers.
    pub trampoline: u64,
    /// Threads that live.
    pub thread_count: AtomicUsize,
    /// Its descriptors of `/proc/self/mem`.
    pub own_memory: OwnMemory,
    /// The emulator's standard error, if it has one.
    standard_error: Option<FileId>,
    space: Mutex<AddressSpace>,
    actions: Mutex<Actions>,
}

/// The program to start.
#[derive(Debug)]
pub struct Start {
    /// Its path.
    pub path: PathBuf,
    /// `argv`, the program's name first.
    pub argv: Vec<Vec<u8>>,
    /// `envp`.
    pub envp: Vec<Vec<u8>>,
}

impl Process {
    /// Loads a program into the empty `window`; returns the process and its first hart.
    pub fn load(
        window: Window,
        machine: Arc<dyn Machine>,
        options: Options,
        start: Start,
    ) -> Result<(Arc<Self>, Box<Hart>), LoadError> {
        let sysroot = options.sysroot.as_deref();
        let path = program::in_sysroot(sysroot, &start.path);
        let (found, argv) = program::resolve(&path, start.argv, sysroot)?;
        let memory = |errno| LoadError::Memory(path.clone(), errno);
        let observer = machine.observer();
        let mut space = AddressSpace::new(window, observer.clone(), options.stack_bytes);
        let loaded = program::load(&found, &mut space, sysroot)?;
        space.set_brk_start(loaded.end);
        let arguments =
            Arguments { argv: &argv, envp: &start.envp, exec_path: found.path.as_os_str().as_encoded_bytes() };
        let no_stack = |errno| match errno {
            Errno::EEXIST => LoadError::NoStack(path.clone(), options.stack_bytes),
            errno => memory(errno),
        };
        let stack_pointer =
            stack::build(&window, &mut space, options.stack_bytes, &loaded, &arguments).map_err(no_stack)?;
        let trampoline = map_trampoline(&window, &mut space).map_err(memory)?;

        let mut hart = Box::new(Hart::new(loaded.start));
        hart.x[2] = stack_pointer;
        let executable = found.path.canonicalize().unwrap_or(found.path);
        let process = Self {
            window,
            options,
            machine,
            observer,
            executable,
            argv,
            trampoline,
            thread_count: AtomicUsize::new(1),
            own_memory: OwnMemory::default(),
            standard_error: standard_error(),
            space: Mutex::new(space),
            actions: Mutex::new(Actions::inherited()),
        };
        Ok((Arc::new(process), hart))
    }

    /// The address space, for this thread alone.
    pub fn space(&self) -> MutexGuard<'_, AddressSpace> {
        self.space.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The signal actions, for this thread alone.
    pub fn actions(&self) -> MutexGuard<'_, Actions> {
        self.actions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Announces that the kernel writes `len_bytes` at the host address `start`,
    /// until the guard is dropped.
    pub fn kernel_write(&self, start: u64, len_bytes: u64) -> KernelWrite<'_> {
        let (start, len_bytes) = (HostAddr(start as usize), len_bytes as usize);
        self.observer.kernel_write_begin(start, len_bytes);
        KernelWrite { observer: &*self.observer, start, len_bytes }
    }

    /// Announces that a call changes `bytes` of the file with this `stat`, until the guard is
    /// dropped. Other kinds of file have no mapped bytes.
    pub fn file_change(&self, stat: &libc::stat, bytes: Range<u64>) -> Option<FileChange<'_>> {
        if stat.st_mode & libc::S_IFMT != libc::S_IFREG {
            return None;
        }
        let change = self.space().file_change_begin(file_id(stat), bytes);
        Some(FileChange { process: self, change: Some(change) })
    }

    /// The descriptors in use by the emulator itself, ascending.
    pub fn own_descriptors(&self) -> Vec<RawFd> {
        let mut own = self.observer.own_descriptors();
        own.extend(self.options.log.descriptor());
        own.sort_unstable();
        own
    }

    /// Writes a line of the trace.
    pub fn trace(&self, text: &str) {
        self.options.log.write(text);
    }

    /// Ends the process and all its threads.
    pub fn exit(&self, status: i32) -> ! {
        self.options.at_exit.run();
        exit_process(status)
    }

    /// Ends the process by `signal`, a fault of the guest's, and says `why` on standard error: behind
    /// the reports, and once. Says nothing if the guest has another file there: this would be a
    /// write to a file of the guest's.
    pub(super) fn die_of(&self, signal: u32, why: &dyn fmt::Display) -> ! {
        if self.options.at_exit.run() && self.standard_error.is_some() && self.standard_error == standard_error() {
            let _ = host_memory::write_stderr(format!("demo-emulator: {why}\n").as_bytes());
        }
        super::host_signals::die_by(signal)
    }

    /// Ends the process by `signal`, as the guest's own would.
    pub fn die_by(&self, signal: u32) -> ! {
        self.options.at_exit.run();
        super::host_signals::die_by(signal)
    }

    /// Counts one thread less; returns how many are left.
    pub fn thread_ended(&self) -> usize {
        self.thread_count.fetch_sub(1, Ordering::AcqRel) - 1
    }
}

/// The kernel writes guest memory while this lives.
#[must_use]
pub struct KernelWrite<'a> {
    observer: &'a dyn MemoryObserver,
    start: HostAddr,
    len_bytes: usize,
}

impl Drop for KernelWrite<'_> {
    fn drop(&mut self) {
        self.observer.kernel_write_end(self.start, self.len_bytes);
    }
}

/// The bytes of a file change while this lives.
#[must_use]
pub struct FileChange<'a> {
    process: &'a Process,
    /// Set until the guard is dropped.
    change: Option<FileChangeId>,
}

impl Drop for FileChange<'_> {
    fn drop(&mut self) {
        let mut space = self.process.space();
        self.change.take().into_iter().for_each(|change| space.file_change_end(change));
    }
}

/// The file behind descriptor 2.
fn standard_error() -> Option<FileId> {
    host_fs::stat_fd(libc::STDERR_FILENO).ok().map(|stat| file_id(&stat))
}

fn map_trampoline(window: &Window, space: &mut AddressSpace) -> Result<u64, Errno> {
    let page = space.map(Place::Hint(0), PAGE_BYTES, READ | WRITE, Source::Anonymous)?;
    super::user_memory::write_bytes(window, page, &TRAMPOLINE)?;
    space.protect(page, PAGE_BYTES, READ | EXEC)?;
    Ok(page)
}
