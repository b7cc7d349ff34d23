//! Faults that are not the library's, and their effect on the process.
//!
//! Signal state belongs to the process, so each scenario is a process of its own: this binary
//! starts itself with the scenario's name. Each child first tracks a region. It shows that a
//! store to a protected page of it goes through, so the library's handler is installed and
//! works.
//!
//! # Safety
//!
//! Children crash on purpose; they touch only their own memory.
#![allow(unsafe_code)]

#[path = "support/facilities.rs"]
mod facilities;
#[path = "support/limit.rs"]
mod limit;

use core::ffi::{c_int, c_void};
use core::mem::MaybeUninit;
use core::ptr;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitCode, Output};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use codewarden::addr::{GuestAddr, PageSize};
use codewarden::guest_memory::GuestMemory;
use codewarden::protection::{
    Access, AltStack, Facility, Handled, Mode, Probe, handle_fault, handler_is_ours, is_blocked_here,
};
use codewarden::tracker::{PageObserver, PageWrite, RegionOptions, Tracker};

use facilities::has_or_skips;

/// How a child must end.
enum End {
    Exit(i32),
    Signal(c_int),
    /// By SIGABRT, with this on its standard error.
    Abort(&'static str),
}

struct Scenario {
    name: &'static str,
    run: fn(),
    end: End,
}

const SCENARIOS: &[Scenario] = &[
    Scenario { name: "a store to nowhere", run: store_to_nowhere, end: End::Signal(libc::SIGSEGV) },
    Scenario { name: "a read of nowhere", run: read_of_nowhere, end: End::Signal(libc::SIGSEGV) },
    Scenario { name: "a store past the end of a file", run: store_past_the_end, end: End::Signal(libc::SIGBUS) },
    Scenario {
        name: "a store past the end of a tracked memfd",
        run: tracked_store_past_the_end,
        end: End::Signal(libc::SIGBUS),
    },
    Scenario { name: "a store to a guest's read-only page", run: store_to_read_only, end: End::Signal(libc::SIGSEGV) },
    Scenario { name: "a store to read-only under mprotect", run: mprotect_read_only, end: End::Signal(libc::SIGSEGV) },
    Scenario { name: "a signal that was sent", run: sent_signal, end: End::Signal(libc::SIGSEGV) },
    Scenario { name: "a sent signal that was ignored", run: sent_and_ignored, end: End::Exit(0) },
    Scenario {
        name: "a stack overflow",
        run: stack_overflow,
        // With musl the standard library does not know the guard of the first thread's stack.
        end: if cfg!(target_env = "musl") {
            End::Signal(libc::SIGSEGV)
        } else {
            End::Abort("has overflowed its stack")
        },
    },
    Scenario {
        name: "a stack overflow in a thread",
        run: stack_overflow_in_thread,
        end: End::Abort("has overflowed its stack"),
    },
    Scenario { name: "the handler before ours", run: handler_before, end: End::Exit(41) },
    Scenario { name: "an old-style handler before ours", run: old_style_handler_before, end: End::Exit(42) },
    Scenario { name: "a one-shot handler before ours", run: one_shot_handler_before, end: End::Signal(libc::SIGSEGV) },
    Scenario { name: "a read of a tracked page", run: read_of_tracked_page, end: End::Exit(43) },
    Scenario { name: "a handler after ours", run: handler_after, end: End::Exit(0) },
    Scenario { name: "the embedder owns the signals", run: embedder_owns_signals, end: End::Exit(0) },
    Scenario { name: "a fault with a guest stack pointer", run: alternate_stack, end: End::Exit(0) },
];

fn main() -> ExitCode {
    let argument = std::env::args().nth(1).unwrap_or_default();
    if let Some(scenario) = SCENARIOS.iter().find(|scenario| scenario.name == argument) {
        // A fault that comes back for ever is a failure, not a hang.
        // SAFETY: sets a timer.
        unsafe { libc::alarm(limit::limit_s(60)) };
        (scenario.run)();
        return ExitCode::SUCCESS;
    }
    if let Err(error) = Probe::of_this_process().check(Mode::Sigbus) {
        assert!(std::env::var_os("CODEWARDEN_REQUIRE_ALL").is_none(), "{error}");
        println!("{} scenarios skipped: {error}", SCENARIOS.len());
        return ExitCode::SUCCESS;
    }
    let chosen = SCENARIOS.iter().filter(|scenario| argument.starts_with('-') || scenario.name.contains(&argument));
    let chosen = chosen
        .filter(|scenario| !scenario.name.ends_with("tracked memfd") || has_or_skips(Mode::Sigbus, Facility::WpShmem));
    let failures = chosen.filter(|scenario| !passes(scenario)).count();
    if failures == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn passes(scenario: &Scenario) -> bool {
    let own_path = std::env::current_exe().expect("the path of this test");
    let output = Command::new(own_path).arg(scenario.name).env("RUST_BACKTRACE", "0").output().expect("a child");
    let passed = ended_as(&scenario.end, &output);
    println!("scenario {} ... {}", scenario.name, if passed { "ok" } else { "FAILED" });
    if !passed {
        println!("{:?}\n{}", output.status, String::from_utf8_lossy(&output.stderr));
    }
    passed
}

fn ended_as(end: &End, output: &Output) -> bool {
    match end {
        End::Exit(code) => output.status.code() == Some(*code),
        End::Signal(signo) => output.status.signal() == Some(*signo),
        End::Abort(message) => {
            output.status.signal() == Some(libc::SIGABRT) && String::from_utf8_lossy(&output.stderr).contains(message)
        }
    }
}

/// Counts its calls.
#[derive(Default)]
struct Counter(AtomicUsize);

// SAFETY: two atomic additions.
unsafe impl PageObserver for Counter {
    type Data = ();

    fn written(&self, (): &(), _: &PageWrite) {
        self.0.fetch_add(1, SeqCst);
        TOLD.fetch_add(1, SeqCst);
    }
}

const GUEST: GuestAddr = GuestAddr(0x10_0000);

struct Tracked {
    tracker: Tracker<()>,
    counter: Arc<Counter>,
    /// Dropped after the tracker.
    memory: GuestMemory,
}

impl Tracked {
    fn over(memory: GuestMemory, mode: Mode, embedder_owns_signals: bool) -> Self {
        let counter = Arc::new(Counter::default());
        let tracker = Tracker::new(counter.clone());
        let options = RegionOptions::new(GUEST, memory.range(), mode).with_embedder_signals(embedder_owns_signals);
        // SAFETY: the memory outlives the tracker.
        unsafe { tracker.add_region(options) }.unwrap();
        Self { tracker, counter, memory }
    }

    /// Tracks four pages of anonymous memory and sees one store.
    fn at_work(mode: Mode) -> Self {
        let tracked = Self::over(GuestMemory::anonymous(4 * PageSize::host().bytes()).unwrap(), mode, false);
        tracked.protect(0);
        tracked.memory.write(8, &[1]).unwrap();
        assert_eq!(tracked.learned(), 1);
        tracked
    }

    fn protect(&self, page: u64) {
        drop(self.tracker.begin(GuestAddr(GUEST.0 + page * PageSize::host().bytes() as u64)).unwrap());
    }

    fn learned(&self) -> usize {
        self.counter.0.load(SeqCst)
    }
}

fn store_to_nowhere() {
    let _tracked = Tracked::at_work(Mode::Sigbus);
    // SAFETY: crashes, as it is meant to.
    unsafe { ptr::without_provenance_mut::<u8>(16).write_volatile(1) };
}

fn read_of_nowhere() {
    let _tracked = Tracked::at_work(Mode::Mprotect);
    // SAFETY: crashes, as it is meant to.
    unsafe { ptr::without_provenance::<u8>(16).read_volatile() };
}

fn store_past_the_end() {
    let _tracked = Tracked::at_work(Mode::Sigbus);
    let memory = GuestMemory::memfd(8192).unwrap();
    rustix::fs::ftruncate(memory.file().unwrap(), 0).unwrap();
    let _ = memory.write(4096, &[1]);
}

fn tracked_store_past_the_end() {
    let tracked = Tracked::over(GuestMemory::memfd(8192).unwrap(), Mode::Sigbus, false);
    tracked.protect(1);
    rustix::fs::ftruncate(tracked.memory.file().unwrap(), 0).unwrap();
    let _ = tracked.memory.write(4096, &[1]);
}

fn store_to_read_only() {
    let tracked = Tracked::at_work(Mode::Sigbus);
    make_read_only(&tracked);
    let _ = tracked.memory.write(0, &[1]);
}

fn mprotect_read_only() {
    let tracked = Tracked::at_work(Mode::Mprotect);
    make_read_only(&tracked);
    let _ = tracked.memory.write(0, &[1]);
}

fn make_read_only(tracked: &Tracked) {
    let len = PageSize::host().bytes() as u64;
    tracked.protect(0);
    tracked.tracker.set_access(GUEST, len, Access::Read).unwrap();
}

fn sent_signal() {
    // The standard library's handler lets a sent signal pass once.
    // SAFETY: no handler is involved.
    unsafe { libc::signal(libc::SIGSEGV, libc::SIG_DFL) };
    let _tracked = Tracked::at_work(Mode::Sigbus);
    // SAFETY: a signal to this process itself.
    unsafe { libc::raise(libc::SIGSEGV) };
}

fn sent_and_ignored() {
    // SAFETY: no handler is involved.
    unsafe { libc::signal(libc::SIGBUS, libc::SIG_IGN) };
    let _tracked = Tracked::at_work(Mode::Sigbus);
    // SAFETY: a signal to this process itself.
    unsafe { libc::raise(libc::SIGBUS) };
}

#[allow(unconditional_recursion)]
fn overflow(depth: u64) -> u64 {
    let room = [depth; 512];
    std::hint::black_box(&room);
    overflow(depth + 1) + room[(depth % 512) as usize]
}

fn stack_overflow() {
    let _tracked = Tracked::at_work(Mode::Sigbus);
    std::hint::black_box(overflow(0));
}

fn stack_overflow_in_thread() {
    let _tracked = Tracked::at_work(Mode::Mprotect);
    let _ = std::thread::spawn(|| std::hint::black_box(overflow(0))).join();
}

fn install(signo: c_int, handler: usize, flags: c_int, also_blocks: c_int) {
    let mut action = MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: a zeroed action is a valid one; the handlers are the functions below.
    unsafe {
        let action = action.assume_init_mut();
        action.sa_sigaction = handler;
        action.sa_flags = flags;
        if also_blocks != 0 {
            libc::sigaddset(&mut action.sa_mask, also_blocks);
        }
        assert_eq!(libc::sigaction(signo, action, ptr::null_mut()), 0);
    }
}

extern "C" fn exit_if_all_is_as_installed(signo: c_int, info: *mut libc::siginfo_t, _: *mut c_void) {
    // SAFETY: the arguments are the kernel's, handed on.
    let address = unsafe { (*info).si_addr() } as usize;
    let own_mask = is_blocked_here(libc::SIGUSR1) && is_blocked_here(signo) && !is_blocked_here(libc::SIGUSR2);
    let right = signo == libc::SIGSEGV && address == 16 && own_mask;
    // SAFETY: leaves from a handler.
    unsafe { libc::_exit(if right { 41 } else { 1 }) };
}

fn handler_before() {
    let handler = exit_if_all_is_as_installed as *const () as usize;
    install(libc::SIGSEGV, handler, libc::SA_SIGINFO | libc::SA_ONSTACK, libc::SIGUSR1);
    store_to_nowhere();
}

extern "C" fn exit_old_style(signo: c_int) {
    // SAFETY: leaves from a handler.
    unsafe { libc::_exit(if signo == libc::SIGSEGV { 42 } else { 1 }) };
}

fn old_style_handler_before() {
    install(libc::SIGSEGV, exit_old_style as *const () as usize, libc::SA_ONSTACK, 0);
    store_to_nowhere();
}

/// The calls of every observer of this process.
static TOLD: AtomicUsize = AtomicUsize::new(0);

extern "C" fn exit_if_nobody_was_told(_: c_int) {
    // SAFETY: leaves from a handler.
    unsafe { libc::_exit(if TOLD.load(SeqCst) == 1 { 43 } else { 1 }) };
}

/// A page is protected and the guest may not read it: a read of it is the guest's fault and
/// kills no block.
fn read_of_tracked_page() {
    install(libc::SIGSEGV, exit_if_nobody_was_told as *const () as usize, libc::SA_ONSTACK, 0);
    let tracked = Tracked::at_work(Mode::Mprotect);
    tracked.protect(1);
    let len = PageSize::host().bytes();
    tracked.tracker.set_access(GuestAddr(GUEST.0 + len as u64), len as u64, Access::None).unwrap();
    let _ = tracked.memory.read(len, &mut [0]);
}

extern "C" fn does_nothing(_: c_int) {}

fn one_shot_handler_before() {
    install(libc::SIGSEGV, does_nothing as *const () as usize, libc::SA_ONSTACK | libc::SA_RESETHAND, 0);
    store_to_nowhere();
}

fn handler_after() {
    assert!(!handler_is_ours(libc::SIGBUS));
    let _tracked = Tracked::at_work(Mode::Sigbus);
    assert!(handler_is_ours(libc::SIGBUS) && handler_is_ours(libc::SIGSEGV));
    install(libc::SIGBUS, does_nothing as *const () as usize, 0, 0);
    assert!(!handler_is_ours(libc::SIGBUS) && handler_is_ours(libc::SIGSEGV));
}

extern "C" fn embedders_handler(signo: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    // SAFETY: the arguments are the kernel's.
    unsafe {
        *libc::__errno_location() = 1234;
        if handle_fault(signo, info, context) == Handled::NotOurs {
            libc::_exit(2);
        }
        if *libc::__errno_location() != 1234 {
            libc::_exit(3);
        }
    }
}

fn embedder_owns_signals() {
    let handler = embedders_handler as *const () as usize;
    install(libc::SIGBUS, handler, libc::SA_SIGINFO | libc::SA_ONSTACK, 0);
    let memory = GuestMemory::anonymous(4096).unwrap();
    let tracked = Tracked::over(memory, Mode::Sigbus, true);
    assert!(!handler_is_ours(libc::SIGBUS) && !handler_is_ours(libc::SIGSEGV));
    tracked.protect(0);
    tracked.memory.write(8, &[1]).unwrap();
    assert_eq!(tracked.learned(), 1);
}

/// A guest may own the stack pointer, so the handler must not run on it. Here it points into a
/// page that cannot be written to.
#[cfg(target_arch = "x86_64")]
fn alternate_stack() {
    let tracked = Tracked::at_work(Mode::Sigbus);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let _stack = AltStack::for_this_thread().unwrap();
            tracked.protect(0);
            let target = tracked.memory.range().start().as_ptr();
            // SAFETY: stores one byte to the guest's memory with a stack pointer that no handler can
            // run on, and puts the old one back; nothing is pushed in between.
            unsafe {
                core::arch::asm!(
                    "mov {saved}, rsp",
                    "mov rsp, 4096",
                    "mov byte ptr [{target}], 9",
                    "mov rsp, {saved}",
                    saved = out(reg) _,
                    target = in(reg) target,
                );
            }
        });
    });
    assert_eq!(tracked.learned(), 2);
}

#[cfg(not(target_arch = "x86_64"))]
fn alternate_stack() {
    let _stack = AltStack::for_this_thread().unwrap();
}
