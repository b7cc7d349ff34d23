//! The process's SIGBUS and SIGSEGV handler, and the handlers before it.
//!
//! It is installed once for the process and never removed, because another handler may have stored
//! ours as its own previous one. A fault that is not ours goes to the previous action, as if ours
//! did not exist:
//!
//! - A previous handler is called with its own mask, in the style that it was installed with;
//!   it returns to the interrupted code.
//! - The default action, and an ignored signal that the kernel forces, are put back and the
//!   instruction is run again: a true crash crashes, with its own signal and core.
//! - The standard library's handler comes under the first case: its stack overflow message
//!   appears.
//!
//! A handler that is installed after ours takes the signal from us. We cannot prevent that,
//! only notice it: [`handler_is_ours`].
//!
//! # Safety
//!
//! Handlers run on any thread that faulted. All state is in atomics, written before the handler
//! is installed.
#![allow(unsafe_code)]

use core::ffi::{c_int, c_void};
use core::mem::MaybeUninit;
use core::ptr;
use core::sync::atomic::{AtomicI32, AtomicU64, AtomicUsize, Ordering::SeqCst};
use rustix::io::Errno;

use crate::error::Error;
use crate::sys::fault::handle_fault;
use crate::sys::ranges::Handled;
use crate::sys::statics;

/// Upper limit of the stack that a fault handler of the library takes, even in a debug build. The
/// kernel's own frame comes in addition (`AT_MINSIGSTKSZ` of `getauxval`), and so do the frames of
/// your own handler and observer. An alternate signal stack of a thread that stores to guest memory
/// needs room for all of them. The standard library gives its threads one of 8,192 bytes, or of
/// `AT_MINSIGSTKSZ` if that is more. If `AT_MINSIGSTKSZ` is more than 3,840, or if you have an
/// observer or a handler of your own, that has no room, and an
/// [`AltStack`](crate::protection::AltStack) is needed.
pub const HANDLER_STACK_BYTES: usize = 4352;

/// The signals that write protection can give.
const SIGNALS: [c_int; 2] = [libc::SIGBUS, libc::SIGSEGV];

/// The action that a signal had before ours. Linux uses only the first 64 bits of a signal set.
struct Previous {
    handler: AtomicUsize,
    flags: AtomicI32,
    mask: AtomicU64,
}

impl Previous {
    const fn new() -> Self {
        Self { handler: AtomicUsize::new(libc::SIG_DFL), flags: AtomicI32::new(0), mask: AtomicU64::new(0) }
    }
}

static PREVIOUS: [Previous; 2] = [Previous::new(), Previous::new()];

fn previous(signo: c_int) -> &'static Previous {
    &PREVIOUS[usize::from(signo != libc::SIGBUS)]
}

/// Installs the handler for both signals, once for the process.
pub(crate) fn install() -> Result<(), Error> {
    statics::with(|all| {
        if *all.handlers_installed {
            return Ok(());
        }
        for signo in SIGNALS {
            let old = action_of(signo)?;
            let slot = previous(signo);
            slot.handler.store(old.sa_sigaction, SeqCst);
            slot.flags.store(old.sa_flags, SeqCst);
            slot.mask.store(first_word(&old.sa_mask), SeqCst);
            set_action(signo, &our_action())?;
        }
        *all.handlers_installed = true;
        Ok(())
    })
}

/// Whether the kernel calls the library's handler for `signo` (SIGBUS or SIGSEGV). False before
/// it was installed, and false if another handler was installed after it: then write faults
/// reach the library only if that one hands them on.
pub fn handler_is_ours(signo: c_int) -> bool {
    action_of(signo).is_ok_and(|action| action.sa_sigaction == on_signal as *const () as usize)
}

/// Whether this thread has `signo` blocked. The kernel kills the process at a
/// store to protected memory by a thread that blocks the mode's signal.
pub fn is_blocked_here(signo: c_int) -> bool {
    let mut now = MaybeUninit::<libc::sigset_t>::zeroed();
    // SAFETY: with no new set this only writes the present one; a zeroed set is a valid one.
    unsafe {
        libc::pthread_sigmask(libc::SIG_BLOCK, ptr::null(), now.as_mut_ptr());
        libc::sigismember(now.as_ptr(), signo) == 1
    }
}

/// Runs `body` with every signal blocked in this thread, so that a thread that
/// it starts takes none of the program's signals.
pub(crate) fn with_all_blocked<R>(body: impl FnOnce() -> R) -> R {
    let (mut all, mut before) = (MaybeUninit::<libc::sigset_t>::zeroed(), MaybeUninit::<libc::sigset_t>::zeroed());
    // SAFETY: both are locals of this function; the second was written by the first call.
    unsafe {
        libc::sigfillset(all.as_mut_ptr());
        libc::pthread_sigmask(libc::SIG_SETMASK, all.as_ptr(), before.as_mut_ptr());
    }
    let result = body();
    // SAFETY: as above.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, before.as_ptr(), ptr::null_mut()) };
    result
}

/// Runs `body` with `signo` blocked in this thread. Takes back a signal that the kernel sent to
/// this thread during `body`: for a call whose result says the same as the signal.
pub(crate) fn without<R>(signo: c_int, body: impl FnOnce() -> R) -> R {
    let [mut only, mut before, mut pending] = [MaybeUninit::<libc::sigset_t>::zeroed(); 3];
    // SAFETY: all are locals of this function; zeroed sets are valid ones.
    let was_pending = unsafe {
        libc::sigemptyset(only.as_mut_ptr());
        libc::sigaddset(only.as_mut_ptr(), signo);
        libc::pthread_sigmask(libc::SIG_BLOCK, only.as_ptr(), before.as_mut_ptr());
        libc::sigpending(pending.as_mut_ptr());
        libc::sigismember(pending.as_ptr(), signo) == 1
    };
    let result = body();
    // SAFETY: as above; a timeout of zero does not wait.
    unsafe {
        if !was_pending {
            let now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
            libc::sigtimedwait(only.as_ptr(), ptr::null_mut(), &now);
        }
        libc::pthread_sigmask(libc::SIG_SETMASK, before.as_ptr(), ptr::null_mut());
    }
    result
}

/// Whether this process has a thread of that kernel id. Only the answer "no" is certain: by now
/// the id may be another thread's.
pub(crate) fn thread_exists(tid: c_int) -> bool {
    // SAFETY: signal 0 is not delivered; the call only asks whether it could be.
    let asked = unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), tid, 0) };
    asked == 0 || Errno::from_io_error(&std::io::Error::last_os_error()) != Some(Errno::SRCH)
}

fn our_action() -> libc::sigaction {
    // SAFETY: all zeroes is a valid sigaction: the default action.
    let mut action: libc::sigaction = unsafe { MaybeUninit::zeroed().assume_init() };
    action.sa_sigaction = on_signal as *const () as usize;
    action.sa_flags = libc::SA_SIGINFO // the address and the registers
        | libc::SA_ONSTACK // the guest may own the stack pointer, or the stack overflowed
        | libc::SA_NODEFER // a handler that is called from ours may fault again, and may never return
        | libc::SA_RESTART; // has no effect on faults; a signal that was sent interrupts no call
    // Other signals wait for these few microseconds. A handler that left ours by a jump would
    // leave our counters raised.
    // SAFETY: works on the set of the local above.
    unsafe {
        libc::sigfillset(&mut action.sa_mask);
        for signo in [libc::SIGBUS, libc::SIGSEGV, libc::SIGILL, libc::SIGFPE, libc::SIGTRAP, libc::SIGABRT] {
            libc::sigdelset(&mut action.sa_mask, signo);
        }
    }
    action
}

/// The handler that the kernel calls.
unsafe extern "C" fn on_signal(signo: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    // SAFETY: the arguments are the kernel's.
    unsafe {
        if handle_fault(signo, info, context) == Handled::NotOurs {
            hand_on(signo, info, context);
        }
    }
}

/// Does the same as would happen without our handler.
///
/// # Safety
///
/// The arguments are those of the handler that runs now.
// Never inlined: a fault of ours would pay for its stack.
#[inline(never)]
unsafe fn hand_on(signo: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    let slot = previous(signo);
    let flags = slot.flags.load(SeqCst);
    let handler = match flags & libc::SA_RESETHAND {
        0 => slot.handler.load(SeqCst),
        _ => slot.handler.swap(libc::SIG_DFL, SeqCst),
    };
    // SAFETY: the caller's obligation.
    let was_sent = unsafe { (*info).si_code } <= 0;
    match handler {
        libc::SIG_IGN if was_sent => {}
        libc::SIG_DFL | libc::SIG_IGN => {
            // The kernel forces a fault through even if it is ignored. SAFETY: all zeroes is the
            // default action; the instruction runs again after our return.
            let default: libc::sigaction = unsafe { MaybeUninit::zeroed().assume_init() };
            let reset = set_action(signo, &default);
            if was_sent || reset.is_err() {
                // No fault will come again: send the signal to this thread once more,
                // unchanged.
                // SAFETY: plain system calls; the siginfo is the kernel's own.
                unsafe {
                    libc::syscall(libc::SYS_rt_tgsigqueueinfo, libc::getpid(), libc::gettid(), signo, info);
                }
            }
        }
        // SAFETY: the previous owner installed this address as a handler of this style.
        _ => unsafe {
            enter_mask_of_previous(signo, slot, flags, context);
            if flags & libc::SA_SIGINFO != 0 {
                let handler: extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void) = core::mem::transmute(handler);
                handler(signo, info, context);
            } else {
                let handler: extern "C" fn(c_int) = core::mem::transmute(handler);
                handler(signo);
            }
        },
    }
}

/// Sets the signal mask that the previous handler would run with. The kernel
/// puts the interrupted one back when ours returns.
///
/// # Safety
///
/// `context` is the interrupted context of this thread.
unsafe fn enter_mask_of_previous(signo: c_int, slot: &Previous, flags: c_int, context: *mut c_void) {
    // SAFETY: the caller's obligation; the set in it is the interrupted mask, of which the kernel
    // writes the first word only.
    unsafe {
        let interrupted = &raw const (*context.cast::<libc::ucontext_t>()).uc_sigmask;
        let own = if flags & libc::SA_NODEFER == 0 { 1_u64 << (signo - 1) } else { 0 };
        let word = interrupted.cast::<u64>().read() | slot.mask.load(SeqCst) | own;
        let mut mask = MaybeUninit::<libc::sigset_t>::zeroed();
        mask.as_mut_ptr().cast::<u64>().write(word);
        libc::pthread_sigmask(libc::SIG_SETMASK, mask.as_ptr(), ptr::null_mut());
    }
}

fn first_word(set: &libc::sigset_t) -> u64 {
    // SAFETY: a sigset_t has 64 bits at least, and every bit pattern is a number.
    unsafe { (&raw const *set).cast::<u64>().read() }
}

fn action_of(signo: c_int) -> Result<libc::sigaction, Error> {
    let mut action = MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: only reads the present action, into a local; zeroed is a valid value of it.
    unsafe {
        match libc::sigaction(signo, ptr::null(), action.as_mut_ptr()) {
            0 => Ok(action.assume_init()),
            _ => Err(last_error()),
        }
    }
}

fn set_action(signo: c_int, action: &libc::sigaction) -> Result<(), Error> {
    // SAFETY: the action is a valid one; the callers decide who may install it.
    match unsafe { libc::sigaction(signo, action, ptr::null_mut()) } {
        0 => Ok(()),
        _ => Err(last_error()),
    }
}

fn last_error() -> Error {
    let errno = std::io::Error::last_os_error().raw_os_error().unwrap_or(0);
    Error::system("sigaction", 0, 0, Errno::from_raw_os_error(errno))
}
