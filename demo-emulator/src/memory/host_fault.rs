//! The emulator's handler of SIGSEGV, SIGBUS and SIGILL.
//!
//! It recognises two kinds of fault. One is in the routines of [`access`] and resumes at their
//! landing pad. The other is in compiled code, and the translator claims it by a hook. All others
//! go to the handler that was installed before, so that a true crash still crashes.
//!
//! codewarden's handler is installed after this one and chains to it: a fault that arrives here is
//! no write to a protected page.
//!
//! # Safety
//!
//! The handler runs on the signal path: it takes no lock, allocates nothing and preserves errno.
//! The previous actions are written before the handler is installed and never again, so it reads
//! them without a lock. The context from the kernel is valid until the handler returns.
#![allow(unsafe_code)]

use std::cell::UnsafeCell;
use std::io;
use std::mem::{self, MaybeUninit};
use std::ptr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicPtr, Ordering};

use libc::{c_int, c_void, sigaction, siginfo_t, ucontext_t};

use super::access;
use crate::host_context;

/// Claims a fault in compiled code. It may change the context to resume elsewhere, and returns
/// whether the fault was its own. It runs on the signal path: no lock, no allocation, errno
/// preserved.
pub type FaultHook = unsafe extern "C" fn(signal: c_int, info: *const siginfo_t, context: *mut ucontext_t) -> bool;

static HOOK: AtomicPtr<c_void> = AtomicPtr::new(ptr::null_mut());

/// Makes the handler ask `hook` about every fault outside the access routines.
pub fn set_fault_hook(hook: FaultHook) {
    HOOK.store(hook as *mut c_void, Ordering::Release);
}

/// The previous action of one signal.
struct Previous(UnsafeCell<MaybeUninit<sigaction>>);

// SAFETY: written once under the lock of `install`, before the handler that
// reads it is installed.
unsafe impl Sync for Previous {}

static PREVIOUS_SEGV: Previous = Previous(UnsafeCell::new(MaybeUninit::zeroed()));
static PREVIOUS_BUS: Previous = Previous(UnsafeCell::new(MaybeUninit::zeroed()));
/// Compiled code runs an illegal host instruction to refuse an instruction.
static PREVIOUS_ILL: Previous = Previous(UnsafeCell::new(MaybeUninit::zeroed()));

/// Installs the handler, once in a process; later calls do nothing.
pub fn install() -> io::Result<()> {
    static INSTALLED: Mutex<bool> = Mutex::new(false);
    let mut installed = INSTALLED.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    if !*installed {
        install_one(libc::SIGSEGV, &PREVIOUS_SEGV)?;
        install_one(libc::SIGBUS, &PREVIOUS_BUS)?;
        install_one(libc::SIGILL, &PREVIOUS_ILL)?;
        *installed = true;
    }
    Ok(())
}

fn install_one(signal: c_int, previous: &Previous) -> io::Result<()> {
    // SAFETY: a zeroed sigaction is a valid one, with an empty mask. `previous`
    // is not yet read: the handler of this signal is installed below.
    unsafe {
        if sigaction(signal, ptr::null(), (*previous.0.get()).as_mut_ptr()) != 0 {
            return Err(io::Error::last_os_error());
        }
        let mut action: sigaction = mem::zeroed();
        action.sa_sigaction = on_fault as *const () as usize;
        // ONSTACK: the fault may be an overflow of the guest's or the thread's own stack.
        // NODEFER: the hooks may end in code that faults again.
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_NODEFER;
        if sigaction(signal, &action, ptr::null_mut()) != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

unsafe extern "C" fn on_fault(signal: c_int, info: *mut siginfo_t, context: *mut c_void) {
    let context = context.cast::<ucontext_t>();
    // SAFETY: the kernel's own arguments, valid until this function returns; the hook's type
    // promises the hook's conditions.
    unsafe {
        // Codes of 0 and below come from kill, not from the processor.
        if (*info).si_code > 0 && (resume_access(signal, info, context) || ask_hook(signal, info, context)) {
            return;
        }
        chain(signal, info, context);
    }
}

/// Sends a fault in an access routine to the landing pad, which returns
/// (signal, address) to the routine's caller.
///
/// # Safety
///
/// `info` and `context` are those of a signal being handled.
unsafe fn resume_access(signal: c_int, info: *const siginfo_t, context: *mut ucontext_t) -> bool {
    // SAFETY: the caller's promise.
    let (context, addr) = unsafe { (&mut *context, (*info).si_addr()) };
    let Some(landing_pad) = access::landing_pad(host_context::pc(context)) else {
        return false;
    };
    host_context::set_results(context, [signal as u64, addr as u64]);
    host_context::set_pc(context, landing_pad);
    true
}

/// # Safety
///
/// `info` and `context` are those of a signal being handled.
unsafe fn ask_hook(signal: c_int, info: *const siginfo_t, context: *mut ucontext_t) -> bool {
    let hook = HOOK.load(Ordering::Acquire);
    if hook.is_null() {
        return false;
    }
    // SAFETY: only `set_fault_hook` stores here, and it stores a `FaultHook`.
    let hook = unsafe { mem::transmute::<*mut c_void, FaultHook>(hook) };
    // SAFETY: the caller's promise.
    unsafe { hook(signal, info, context) }
}

/// Performs the previous action.
///
/// # Safety
///
/// `info` and `context` are those of a signal being handled.
unsafe fn chain(signal: c_int, info: *mut siginfo_t, context: *mut ucontext_t) {
    let previous = match signal {
        libc::SIGSEGV => &PREVIOUS_SEGV,
        libc::SIGBUS => &PREVIOUS_BUS,
        _ => &PREVIOUS_ILL,
    };
    // SAFETY: written before this handler was installed; a handler's address has the type that its
    // flags say.
    unsafe {
        let previous = &*(*previous.0.get()).as_ptr();
        let handler = previous.sa_sigaction;
        if handler == libc::SIG_DFL || handler == libc::SIG_IGN {
            let sent = (*info).si_code <= 0;
            if sent && handler == libc::SIG_IGN {
                return;
            }
            // The faulting instruction runs again and kills the process; a signal that was sent is
            // sent again.
            let default: sigaction = mem::zeroed();
            sigaction(signal, &default, ptr::null_mut());
            if sent {
                libc::raise(signal);
            }
        } else if previous.sa_flags & libc::SA_SIGINFO != 0 {
            let handler: extern "C" fn(c_int, *mut siginfo_t, *mut ucontext_t) = mem::transmute(handler);
            handler(signal, info, context);
        } else {
            let handler: extern "C" fn(c_int) = mem::transmute(handler);
            handler(signal);
        }
    }
}
