//! Mappings that change while other threads use them: each access meets the old
//! mapping or the new one, and a fault is the guest's only if the mappings forbid it.
//!
//! # Safety
//!
//! The kernel reads at addresses of the guest's window, which another thread may map anew
//! meanwhile; no reference is formed to them.
#![allow(unsafe_code)]

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, ExitStatus};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};

use demo_emulator::hart::Hart;
use demo_emulator::linux::NoTracking;
use demo_emulator::linux::address_space::{AccessKind, AddressSpace, Place, Source};
use demo_emulator::linux::errno::Errno;
use demo_emulator::linux::machine::{Executor, Exit, Interpreter, Machine};
use demo_emulator::linux::observer::MemoryObserver;
use demo_emulator::linux::process::{Options, Process, Start};
use demo_emulator::memory::window::{EXEC, READ, WRITE};
use demo_emulator::memory::{Fault, FaultKind, Window, host_fault};
use demo_emulator::riscv::trap::Trap;

const PAGE: u64 = 4096;
const RW: u8 = READ | WRITE;
const AT: u64 = 0x10_0000;
const ASIDE: u64 = 0x20_0000;
const PAGES: u64 = 4;
const LAST: u64 = AT + (PAGES - 1) * PAGE;
/// A word that a thread stores to all the time.
const SCRATCH: u64 = AT + PAGE + 8;
const ROUNDS: u64 = 400;

fn new_space() -> (Window, AddressSpace) {
    host_fault::install().unwrap();
    let window = Window::reserve().unwrap();
    (window, AddressSpace::new(window, Arc::new(NoTracking), 1 << 20))
}

/// A file with pages that all begin with `number`.
fn file(number: u64) -> File {
    let file = File::from(rustix::fs::memfd_create("test", rustix::fs::MemfdFlags::CLOEXEC).unwrap());
    file.set_len(PAGES * PAGE).unwrap();
    (0..PAGES).for_each(|page| file.write_all_at(&number.to_le_bytes(), page * PAGE).unwrap());
    file
}

/// The word that the kernel reads at a guest address.
fn kernel_reads(window: &Window, at: u64) -> u64 {
    let file = rustix::fs::memfd_create("read", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    // SAFETY: the kernel answers EFAULT for memory that it cannot read.
    let written = unsafe { libc::pwrite(file.as_raw_fd(), window.host(at).unwrap().cast(), 8, 0) };
    assert_eq!(written, 8, "{}", std::io::Error::last_os_error());
    let mut word = [0; 8];
    File::from(file).read_exact_at(&mut word, 0).unwrap();
    u64::from_le_bytes(word)
}

/// Ends the threads of a test, even if it fails.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, SeqCst);
    }
}

/// Each way to replace a mapping.
#[derive(Clone, Copy, Debug)]
enum Way {
    PrivateFile,
    SharedFile,
    MovedPrivate,
    MovedShared,
    ShownAgain,
}

fn replace(window: &Window, space: &mut AddressSpace, way: Way, number: u64) {
    let (file, len) = (file(number), PAGES * PAGE);
    let (fd, offset) = (file.as_raw_fd(), 0);
    let map = |space: &mut AddressSpace, at, source| {
        space.map(Place::Fixed(at), len, RW, source).unwrap();
    };
    match way {
        Way::PrivateFile => map(space, AT, Source::File { fd, offset }),
        Way::SharedFile => map(space, AT, Source::FileShared { fd, offset }),
        Way::MovedPrivate => {
            map(space, ASIDE, Source::Anonymous);
            (0..PAGES).for_each(|page| window.store_u64(ASIDE + page * PAGE, number).unwrap());
            space.remap(ASIDE, len, len, true, Some(AT)).unwrap();
        }
        Way::MovedShared => {
            map(space, ASIDE, Source::FileShared { fd, offset });
            space.remap(ASIDE, len, len, true, Some(AT)).unwrap();
        }
        Way::ShownAgain => {
            map(space, ASIDE, Source::FileShared { fd, offset });
            space.remap(ASIDE, 0, len, true, Some(AT)).unwrap();
        }
    }
}

#[test]
fn a_replacement_is_one_step_for_loads_stores_and_the_kernel() {
    for way in [Way::PrivateFile, Way::SharedFile, Way::MovedPrivate, Way::MovedShared, Way::ShownAgain] {
        let (window, mut space) = new_space();
        replace(&window, &mut space, way, 1);
        let (over, known) = (AtomicBool::new(false), AtomicU64::new(1));
        // A thread that saw the new contents of one page sees no older contents of another.
        let watch = |load: &dyn Fn(u64) -> u64| {
            let mut newest = 1;
            while !over.load(SeqCst) {
                for at in [AT, LAST] {
                    let number = load(at);
                    assert!(number >= newest && number <= known.load(SeqCst), "{way:?}: {number} after {newest}");
                    newest = number;
                }
            }
        };
        std::thread::scope(|scope| {
            scope.spawn(|| watch(&|at| window.load_u64(at).unwrap()));
            scope.spawn(|| watch(&|at| kernel_reads(&window, at)));
            scope.spawn(|| {
                while !over.load(SeqCst) {
                    window.store_u64(SCRATCH, 7).unwrap();
                }
            });
            let _over = Over(&over);
            for number in 2..ROUNDS {
                known.store(number, SeqCst);
                replace(&window, &mut space, way, number);
                assert_eq!(window.load_u64(AT), Ok(number), "{way:?}");
            }
        });
    }
}

#[test]
fn a_mapping_that_comes_and_goes_is_whole_or_absent() {
    let (window, mut space) = new_space();
    let (file, over) = (file(7), AtomicBool::new(false));
    let source = Source::File { fd: file.as_raw_fd(), offset: 0 };
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(SeqCst) {
                for at in [AT, LAST] {
                    assert!(matches!(window.load_u64(at), Ok(7) | Err(_)), "neither the file nor nothing");
                }
            }
        });
        let _over = Over(&over);
        for _ in 0..ROUNDS {
            space.map(Place::Fixed(AT), PAGES * PAGE, READ, source).unwrap();
            assert_eq!(window.load_u64(LAST), Ok(7));
            space.unmap(AT, PAGES * PAGE).unwrap();
        }
    });
    assert!(window.load_u64(AT).is_err());
}

#[test]
fn a_failed_replacement_leaves_the_old_mapping() {
    let (window, mut space) = new_space();
    replace(&window, &mut space, Way::PrivateFile, 5);
    let folder = File::open("/").unwrap();
    // No file, and a folder, which is open for reading only.
    for (fd, private, shared) in
        [(99_999, Errno::EBADF, Errno::EBADF), (folder.as_raw_fd(), Errno::ENODEV, Errno::EACCES)]
    {
        for (source, errno) in
            [(Source::File { fd, offset: 0 }, private), (Source::FileShared { fd, offset: 0 }, shared)]
        {
            assert_eq!(space.map(Place::Fixed(AT), PAGES * PAGE, RW | EXEC, source), Err(errno), "{source:?}");
        }
    }
    assert_eq!((window.load_u64(AT), window.load_u64(LAST)), (Ok(5), Ok(5)));
    assert_eq!(window.permissions(AT), RW);
    assert!(space.permits(LAST, AccessKind::Store) && !space.permits(AT, AccessKind::Fetch));
}

#[test]
fn the_mappings_decide_about_an_access() {
    let (_, mut space) = new_space();
    let permits = |space: &AddressSpace, at| {
        [AccessKind::Load, AccessKind::Store, AccessKind::Fetch].map(|t| space.permits(at, t))
    };
    assert_eq!(permits(&space, AT), [false; 3]);
    for (prot, expected) in [
        (0, [false, false, false]),
        (READ, [true, false, false]),
        (RW, [true, true, false]),
        (READ | EXEC, [true, false, true]),
    ] {
        let before = space.changes();
        space.map(Place::Fixed(AT), PAGE, prot, Source::Anonymous).unwrap();
        assert_eq!((permits(&space, AT), permits(&space, AT + PAGE)), (expected, [false; 3]));
        assert_ne!(space.changes(), before);
    }
    let before = space.changes();
    space.protect(AT, PAGE, READ).unwrap();
    assert_ne!(space.changes(), before);
}

/// The interpreter, but its first stores, to the stack, are refused although the mappings permit
/// them.
struct Refusing {
    interpreter: Interpreter,
    refusals: u64,
}

struct RefusingExecutor {
    interpreter: Box<dyn Executor>,
    refusals: u64,
}

impl Machine for Refusing {
    fn executor(&self) -> Result<Box<dyn Executor>, Errno> {
        Ok(Box::new(RefusingExecutor { interpreter: self.interpreter.executor()?, refusals: self.refusals }))
    }

    fn observer(&self) -> Arc<dyn MemoryObserver> {
        self.interpreter.observer()
    }
}

impl Executor for RefusingExecutor {
    fn run(&mut self, hart: &mut Hart) -> Exit {
        if self.refusals == 0 {
            return self.interpreter.run(hart);
        }
        self.refusals -= 1;
        Exit::Trap(Trap::StoreFault(Fault { addr: hart.x[2], kind: FaultKind::Segv }))
    }
}

/// The exit status of a guest whose first store is refused so many times, in its own process.
fn run_refusing(refusals: u64) -> ExitStatus {
    let arguments = ["--exact", "a_permitted_access_that_is_refused_runs_again_once", "--nocapture"];
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(arguments).env("REFUSALS", refusals.to_string()).output().unwrap().status
}

fn in_child(refusals: u64) -> ! {
    host_fault::install().unwrap();
    let window = Window::reserve().unwrap();
    let machine = Refusing { interpreter: Interpreter::new(window), refusals };
    let options = Options { stack_bytes: 1 << 20, ..Options::default() };
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../guest-tests/guests/recursion.elf");
    let start = Start { argv: vec![b"recursion".to_vec()], envp: Vec::new(), path };
    let (process, hart) = Process::load(window, Arc::new(machine), options, start).unwrap();
    match process.run(hart) {
        Ok(never) => match never {},
        Err(errno) => panic!("{errno:?}"),
    }
}

#[test]
fn a_permitted_access_that_is_refused_runs_again_once() {
    if let Ok(refusals) = std::env::var("REFUSALS") {
        in_child(refusals.parse().unwrap());
    }
    assert_eq!(run_refusing(0).code(), Some(0));
    assert_eq!(run_refusing(1).code(), Some(0), "somebody was changing the mapping");
    // No mapping changed in between, so the host itself forbids the store.
    assert_eq!(run_refusing(2).signal(), Some(libc::SIGSEGV));
}
