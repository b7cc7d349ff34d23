//! Host signals on their way to the guest.
//!
//! The host mirrors the guest's dispositions and masks. So the host's kernel itself ignores, blocks
//! and queues signals, stops and kills the process, and picks the thread. A host handler exists
//! only for a signal that the guest handles. The handler notes the one signal in its thread's
//! [`Mailbox`]. The thread then continues with every signal blocked until the guest's frame is
//! built and the guest's mask is set again. So a mailbox of one place never overflows, and later
//! signals wait in the kernel with their order and their `siginfo`.
//!
//! SIGSEGV, SIGBUS and SIGILL stay the emulator's: its own fault handlers need them, so they are
//! neither mirrored nor ever blocked. If a process sends one, the signal reaches the end of the chain
//! of fault handlers, which is here. A separate bit in the mailbox notes it, without its `siginfo`.
//!
//! The handler finds its mailbox in a table by thread id, without thread-locals. If a signal
//! reaches a thread that is no hart, it is sent to the process again, and the thread blocks it.
//!
//! # Safety
//!
//! The handler makes plain system calls, and stores to atomics and to the mailbox's record. The
//! record is written only while `signal` is 0, and all signals are then blocked on this thread.
//! Only the same thread reads it, after it finds `signal` set. The kernel's `sigaction` structure
//! is passed to the raw system call because libc's wrapper refuses signals 32 and 33, which the
//! guest's libc needs.
#![allow(unsafe_code)]

use std::cell::UnsafeCell;
use std::sync::atomic::{AtomicPtr, AtomicU8, AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};

use codewarden::protection::AltStack;

use super::errno::Errno;
use super::safe_syscall;
use crate::host_context;

/// A set of signals, bit `n - 1` for signal `n`: the kernel's `sigset_t`.
pub type SigSet = u64;

/// Bytes of the kernel's `siginfo_t`, the same on RISC-V and the hosts.
pub const SIGINFO_BYTES: usize = 128;

/// The set of `signal` alone.
pub const fn set_of(signal: u32) -> SigSet {
    1 << (signal - 1)
}

/// Signals that the emulator needs for itself: the host never blocks them.
pub const NEVER_BLOCKED: SigSet = set_of(FAULTS[0]) | set_of(FAULTS[1]) | set_of(FAULTS[2]);

/// The signals of [`NEVER_BLOCKED`].
const FAULTS: [u32; 3] = [libc::SIGSEGV as u32, libc::SIGBUS as u32, libc::SIGILL as u32];

/// A signal and its `siginfo_t`.
#[derive(Clone, Copy, Debug)]
pub struct Signal {
    /// Its number.
    pub number: u32,
    /// The kernel's record of it.
    pub info: [u8; SIGINFO_BYTES],
}

const NUMBER_BITS: u32 = 0x7f;
/// The bit of a sent signal, by its place in [`FAULTS`].
const SENT: [u32; 3] = [1 << 8, 1 << 9, 1 << 10];

/// The handler's place for a thread's signal.
#[derive(Debug)]
pub struct Mailbox {
    /// The waiting signals. The low bits hold the number of the signal that `info` records; above
    /// them are the bits of [`SENT`]. A safe system call checks whether it is 0.
    signal: AtomicU32,
    info: UnsafeCell<[u8; SIGINFO_BYTES]>,
    /// The hart's `exit_request`.
    exit_request: AtomicPtr<AtomicU8>,
}

// SAFETY: only the owning thread and its handler use the record, and `signal` decides whose turn it
// is (module head).
unsafe impl Sync for Mailbox {}
// SAFETY: it holds no thread's own data.
unsafe impl Send for Mailbox {}

impl Mailbox {
    /// The word to check before a blocking system call.
    pub fn pending(&self) -> &AtomicU32 {
        &self.signal
    }

    /// Takes a waiting signal. From the arrival of a signal to the next [`set_mask`], all others
    /// are blocked, except those that are never blocked.
    pub fn take(&self) -> Option<Signal> {
        let waiting = self.signal.load(Ordering::Acquire);
        let number = waiting & NUMBER_BITS;
        if number != 0 {
            // SAFETY: the number is set, so the handler does not write the record.
            let info = unsafe { *self.info.get() };
            self.signal.fetch_and(!NUMBER_BITS, Ordering::AcqRel);
            return Some(Signal { number, info });
        }
        for (bit, number) in SENT.into_iter().zip(FAULTS) {
            if waiting & bit != 0 {
                self.signal.fetch_and(!bit, Ordering::AcqRel);
                return Some(Signal { number, info: sent_info(number, 0, 0, 0) });
            }
        }
        None
    }
}

/// The `siginfo_t` of a signal that a process sent; `code` 0 is kill's.
pub fn sent_info(number: u32, code: i32, pid: u32, uid: u32) -> [u8; SIGINFO_BYTES] {
    let mut info = [0; SIGINFO_BYTES];
    for (offset, value) in [(0, number), (8, code as u32), (16, pid), (20, uid)] {
        info[offset..offset + 4].copy_from_slice(&value.to_le_bytes());
    }
    info
}

/// The most guest threads.
const TABLE_LEN: usize = 8192;

struct ThreadSlot {
    /// Thread id, 0 in a free slot. Only the owner writes it.
    tid: AtomicU32,
    mailbox: AtomicPtr<Mailbox>,
}

static TABLE: [ThreadSlot; TABLE_LEN] =
    [const { ThreadSlot { tid: AtomicU32::new(0), mailbox: AtomicPtr::new(core::ptr::null_mut()) } }; TABLE_LEN];

/// The kernel's id of the calling thread. Async-signal-safe.
pub fn thread_id() -> u32 {
    // SAFETY: gettid touches no memory.
    unsafe { libc::syscall(libc::SYS_gettid) as u32 }
}

fn slot_of(tid: u32) -> Option<&'static ThreadSlot> {
    TABLE.iter().cycle().skip(tid as usize % TABLE_LEN).take(TABLE_LEN).find(|e| e.tid.load(Ordering::Acquire) == tid)
}

/// The calling thread's place in the table, until it is dropped.
#[derive(Debug)]
pub struct Registration {
    mailbox: Arc<Mailbox>,
    tid: u32,
    /// A signal may come in the handler of a fault. The standard library's stack has no room for
    /// the frames of both.
    _stack: AltStack,
}

impl Registration {
    /// Enters the calling thread; signals must be blocked. `exit_request` must
    /// stay valid until the registration is dropped.
    pub fn new(exit_request: *const AtomicU8) -> Result<Self, Errno> {
        let mailbox = Arc::new(Mailbox {
            signal: AtomicU32::new(0),
            info: UnsafeCell::new([0; SIGINFO_BYTES]),
            exit_request: AtomicPtr::new(exit_request.cast_mut()),
        });
        let stack = AltStack::for_this_thread().map_err(|_| Errno::ENOMEM)?;
        let mut registration = Self { mailbox, tid: 0, _stack: stack };
        registration.enter()?;
        Ok(registration)
    }

    fn enter(&mut self) -> Result<(), Errno> {
        let tid = thread_id();
        for slot in TABLE.iter().cycle().skip(tid as usize % TABLE_LEN).take(TABLE_LEN) {
            // u32::MAX marks the slot as taken before its mailbox is set.
            if slot.tid.compare_exchange(0, u32::MAX, Ordering::AcqRel, Ordering::Relaxed).is_ok() {
                slot.mailbox.store(Arc::as_ptr(&self.mailbox).cast_mut(), Ordering::Release);
                slot.tid.store(tid, Ordering::Release);
                self.tid = tid;
                return Ok(());
            }
        }
        Err(Errno::EAGAIN)
    }

    /// In a fork's child: the parent's threads are gone and this one has a new
    /// id. Signals must be blocked.
    pub fn after_fork_child(&mut self) -> Result<(), Errno> {
        TABLE.iter().for_each(|slot| slot.tid.store(0, Ordering::Release));
        self.enter()
    }

    /// The calling thread's mailbox.
    pub fn mailbox(&self) -> &Arc<Mailbox> {
        &self.mailbox
    }

    /// The thread's id.
    pub fn tid(&self) -> u32 {
        self.tid
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        if let Some(slot) = slot_of(self.tid) {
            slot.tid.store(0, Ordering::Release);
        }
    }
}

/// The kernel's `struct sigaction` of x86-64 and aarch64.
#[repr(C)]
struct KernelSigaction {
    handler: usize,
    flags: u64,
    restorer: usize,
    mask: SigSet,
}

const SA_RESTORER: u64 = 0x0400_0000;
const SIGSET_BYTES: usize = size_of::<SigSet>();

#[cfg(target_arch = "x86_64")]
core::arch::global_asm!(
    ".pushsection .text.demo_sigreturn,\"ax\",@progbits",
    ".globl demo_sigreturn",
    "demo_sigreturn:",
    "mov eax, 15",
    "syscall",
    ".popsection",
);

#[cfg(target_arch = "aarch64")]
core::arch::global_asm!(
    ".pushsection .text.demo_sigreturn,\"ax\",@progbits",
    ".balign 4",
    ".globl demo_sigreturn",
    "demo_sigreturn:",
    "mov x8, #139",
    "svc #0",
    ".popsection",
);

unsafe extern "C" {
    fn demo_sigreturn();
}

extern "C" fn on_signal(number: i32, info: *const [u8; SIGINFO_BYTES], context: *mut libc::ucontext_t) {
    // SAFETY: the kernel passes a valid siginfo and context, ours until return.
    let (info, context) = unsafe { (&*info, &mut *context) };
    let mask = (&raw mut context.uc_sigmask).cast::<SigSet>();
    let Some(slot) = slot_of(thread_id()) else {
        // SAFETY: as above: the kernel's set is the first word of libc's.
        unsafe {
            *mask |= set_of(number as u32);
            libc::syscall(libc::SYS_kill, libc::getpid(), number);
        }
        return;
    };
    // SAFETY: a slot with this thread's id holds this thread's live mailbox, and all signals are
    // blocked since the last one was noted (module head).
    unsafe {
        let mailbox = &*slot.mailbox.load(Ordering::Acquire);
        *mailbox.info.get() = *info;
        notify(mailbox, number as u32, context);
        *mask = !NEVER_BLOCKED;
    }
}

/// Makes the thread notice `waiting` as soon as possible.
///
/// # Safety
///
/// The mailbox is the calling thread's, with its hart alive.
unsafe fn notify(mailbox: &Mailbox, waiting: u32, context: &mut libc::ucontext_t) {
    mailbox.signal.fetch_or(waiting, Ordering::AcqRel);
    // SAFETY: the caller's promise.
    unsafe { (*mailbox.exit_request.load(Ordering::Acquire)).store(1, Ordering::Release) };
    if let Some(restart) = safe_syscall::redirect(host_context::pc(context) as u64) {
        host_context::set_pc(context, restart as usize);
    }
}

/// The actions of [`FAULTS`] before [`catch_sent_faults`].
static PREVIOUS: [OnceLock<libc::sigaction>; 3] = [const { OnceLock::new() }; 3];

/// Puts this module at the end of the chain of fault handlers, for signals that were sent and are
/// no faults. Call it before those handlers are installed.
pub fn catch_sent_faults() -> Result<(), Errno> {
    for (signal, previous) in FAULTS.into_iter().zip(&PREVIOUS) {
        let signal = signal as i32;
        // SAFETY: zeroed is a valid action; the previous one is kept before the
        // handler that reads it is installed.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            if libc::sigaction(signal, core::ptr::null(), &raw mut action) != 0 {
                return Err(Errno::last());
            }
            previous.get_or_init(|| action);
            action.sa_sigaction = on_sent_fault as *const () as usize;
            action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
            if libc::sigaction(signal, &raw const action, core::ptr::null_mut()) != 0 {
                return Err(Errno::last());
            }
        }
    }
    Ok(())
}

extern "C" fn on_sent_fault(number: i32, info: *mut libc::siginfo_t, context: *mut libc::ucontext_t) {
    // SAFETY: the kernel's arguments, passed on by the handlers before this one.
    unsafe {
        let place = FAULTS.iter().position(|&fault| fault == number as u32);
        if (*info).si_code <= 0
            && let (Some(slot), Some(place)) = (slot_of(thread_id()), place)
        {
            return notify(&*slot.mailbox.load(Ordering::Acquire), SENT[place], &mut *context);
        }
        match place.and_then(|place| PREVIOUS[place].get()) {
            Some(action) if action.sa_sigaction > libc::SIG_IGN && action.sa_flags & libc::SA_SIGINFO != 0 => {
                let handler: extern "C" fn(i32, *mut libc::siginfo_t, *mut libc::ucontext_t) =
                    std::mem::transmute(action.sa_sigaction);
                handler(number, info, context);
            }
            // The faulting instruction runs again and kills the process.
            _ => {
                libc::signal(number, libc::SIG_DFL);
            }
        }
    }
}

/// The host's reaction to a signal.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Disposition {
    /// The kernel's default action.
    Default,
    /// The kernel ignores it.
    Ignore,
    /// It goes to the guest; with the guest's SA_RESTART and SA_NOCLD* flags.
    Forward(u64),
}

/// Sets the host's reaction to `signal`.
pub fn set_disposition(signal: u32, disposition: Disposition) -> Result<(), Errno> {
    let forwarded = (libc::SA_RESTART | libc::SA_NOCLDSTOP | libc::SA_NOCLDWAIT) as u64;
    let own = (libc::SA_SIGINFO | libc::SA_ONSTACK) as u64 | SA_RESTORER;
    let (handler, flags) = match disposition {
        Disposition::Default => (libc::SIG_DFL, 0),
        Disposition::Ignore => (libc::SIG_IGN, 0),
        Disposition::Forward(flags) => (on_signal as *const () as usize, own | flags & forwarded),
    };
    let restorer = demo_sigreturn as *const () as usize;
    let action = KernelSigaction { handler, flags, restorer, mask: !NEVER_BLOCKED };
    let none = core::ptr::null_mut::<KernelSigaction>();
    // SAFETY: the structure is the kernel's, and the handler async-signal-safe.
    let result = unsafe { libc::syscall(libc::SYS_rt_sigaction, signal, &raw const action, none, SIGSET_BYTES) };
    if result == 0 { Ok(()) } else { Err(Errno::last()) }
}

/// Whether the host ignores `signal`.
pub fn is_ignored(signal: u32) -> bool {
    let mut action = KernelSigaction { handler: 0, flags: 0, restorer: 0, mask: 0 };
    let none = core::ptr::null::<KernelSigaction>();
    // SAFETY: the kernel fills the structure in.
    let result = unsafe { libc::syscall(libc::SYS_rt_sigaction, signal, none, &raw mut action, SIGSET_BYTES) };
    result == 0 && action.handler == libc::SIG_IGN
}

/// Sets the calling thread's mask to `mask` without the signals that are never blocked, and returns
/// the old mask.
pub fn set_mask(mask: SigSet) -> SigSet {
    let (new, mut old) = (mask & !NEVER_BLOCKED, 0u64);
    // SAFETY: two sets of the size that is passed.
    unsafe {
        libc::syscall(libc::SYS_rt_sigprocmask, libc::SIG_SETMASK, &raw const new, &raw mut old, SIGSET_BYTES);
    }
    old
}

/// Ends the process by `signal`, so that the parent sees the guest's signal.
pub fn die_by(signal: u32) -> ! {
    set_mask(SigSet::MAX);
    let dump_nothing = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: plain system calls. A dump of the reserved window would be useless.
    unsafe { libc::setrlimit(libc::RLIMIT_CORE, &raw const dump_nothing) };
    let _ = set_disposition(signal, Disposition::Default);
    // SAFETY: as above; the signal is delivered when it is unblocked.
    unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), thread_id(), signal) };
    set_mask(0);
    // Reached if the signal's default does not kill; SIGKILL's does.
    loop {
        // SAFETY: as above.
        unsafe { libc::kill(libc::getpid(), libc::SIGKILL) };
    }
}

/// SIGPIPE's disposition before Rust's runtime ignored it: the guest inherits that.
static SIGPIPE_WAS_IGNORED: AtomicU8 = AtomicU8::new(0);

extern "C" fn note_sigpipe() {
    SIGPIPE_WAS_IGNORED.store(is_ignored(libc::SIGPIPE as u32).into(), Ordering::Relaxed);
}

#[used]
// SAFETY: the loader calls functions listed there before main; this one makes one
// system call and needs nothing that is set up later.
#[unsafe(link_section = ".init_array")]
static NOTE_SIGPIPE: extern "C" fn() = note_sigpipe;

/// Restores SIGPIPE's disposition at this program's start.
pub fn restore_sigpipe() -> Result<(), Errno> {
    if SIGPIPE_WAS_IGNORED.load(Ordering::Relaxed) != 0 {
        return Ok(());
    }
    set_disposition(libc::SIGPIPE as u32, Disposition::Default)
}

/// Stops the process as SIGSTOP does; comes back when it is continued.
pub fn stop_process() {
    // SAFETY: a plain system call.
    unsafe { libc::kill(libc::getpid(), libc::SIGSTOP) };
}
