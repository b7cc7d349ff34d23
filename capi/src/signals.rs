//! Signals, if the handlers are yours.
//!
//! In modes sigbus and mprotect the library handles write faults by SIGBUS and SIGSEGV.
//! Its handler passes faults that are not its own to the handler that was there before.
//! With embedder_owns_signals it installs none, and your handlers call
//! cw_handle_fault() first. Install them with SA_SIGINFO, and with SA_ONSTACK if the
//! guest may own the stack pointer.
//!
//! # Safety
//!
//! The pointers of a signal handler are those that the kernel gave to it.
#![allow(unsafe_code)]

use std::ffi::{c_int, c_void};
use std::thread::{self, ThreadId};

use engine::protection::{AltStack, Handled, handle_fault, handler_is_ours, is_blocked_here};

use crate::handle::{borrow, out_handle, take_back};
use crate::status::{Failure, cw_status, guarded};

/// Decides about one SIGBUS or SIGSEGV. True: it was a store to a protected page, which
/// can be tried again; return from the handler. False: go on as without this library.
///
/// The arguments are those that the kernel gave to the handler (siginfo_t *, ucontext_t
/// *). Async-signal-safe: it takes no lock, allocates nothing, uses no thread-local,
/// keeps errno. No other function here may be called in a signal handler.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cw_handle_fault(signo: c_int, info: *mut c_void, context: *mut c_void) -> bool {
    if info.is_null() || context.is_null() {
        return false;
    }
    // SAFETY: this function asks the same of its caller.
    unsafe { handle_fault(signo, info.cast(), context) == Handled::Retry }
}

/// Whether the kernel calls the library's handler for signo (SIGBUS or SIGSEGV). False
/// before the first region in such a mode, and if another handler was installed after
/// it: then write faults reach the library only if that handler passes them on.
#[unsafe(no_mangle)]
pub extern "C" fn cw_handler_is_ours(signo: c_int) -> bool {
    handler_is_ours(signo)
}

/// Whether this thread has signo blocked: at a store to a protected page the kernel
/// would end the process.
#[unsafe(no_mangle)]
pub extern "C" fn cw_is_blocked_here(signo: c_int) -> bool {
    is_blocked_here(signo)
}

/// An alternate signal stack of one thread.
pub struct cw_alt_stack {
    _stack: AltStack,
    thread: ThreadId,
}

/// Gives this thread an alternate signal stack with a guard page below it, for guests
/// that own the stack pointer or have their stack in tracked memory.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cw_alt_stack_new(stack: *mut *mut cw_alt_stack) -> cw_status {
    guarded(|| {
        // SAFETY: the header's rules.
        let new = unsafe { out_handle(stack) }?;
        new.give(cw_alt_stack { _stack: AltStack::for_this_thread()?, thread: thread::current().id() });
        Ok(())
    })
}

/// Frees this stack. The thread gets its previous one back, or keeps a later one:
/// stacks may be freed in any order. Does nothing for NULL.
///
/// CW_BAD_ARGUMENT, and nothing is done, in any thread but the one that made it. The
/// kernel keeps the address of the stack for that thread, so that thread must free it
/// before it ends.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cw_alt_stack_free(stack: *mut cw_alt_stack) -> cw_status {
    guarded(|| {
        // SAFETY: the header's rules.
        if unsafe { borrow(stack) }.is_ok_and(|stack| stack.thread != thread::current().id()) {
            return Err(Failure::bad_argument(c"an alternate signal stack is freed by the thread that made it"));
        }
        // SAFETY: the header's rules.
        drop(unsafe { take_back(stack) });
        Ok(())
    })
}
