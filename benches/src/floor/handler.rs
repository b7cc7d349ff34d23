//! The smallest signal handler, and the smallest handler thread.
//!
//! The library never removes its own handler. So the floor's handler replaces it for one
//! batch and then restores it.
//!
//! # Safety
//!
//! The handler reaches the floor through one pointer, which is set before the
//! action and cleared after it; one floor runs at a time.
#![allow(unsafe_code)]

use std::ffi::{c_int, c_void};
use std::mem::MaybeUninit;
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicPtr, Ordering};
use std::thread::JoinHandle;

use codewarden::protection::Mode;

use super::calls::StopSignal;
use super::tracked::Tracked;

static CURRENT: AtomicPtr<Tracked> = AtomicPtr::new(ptr::null_mut());

/// The floor's handler is in place until this is dropped.
pub(super) struct Installed {
    signo: c_int,
    before: libc::sigaction,
    _tracked: Arc<Tracked>,
}

/// Installs the handler of `tracked`'s mode, if the mode has one.
pub(super) fn install(tracked: &Arc<Tracked>) -> Option<Installed> {
    let signo = match tracked.mode {
        Mode::Sigbus => libc::SIGBUS,
        Mode::Mprotect => libc::SIGSEGV,
        _ => return None,
    };
    let old = CURRENT.swap(Arc::as_ptr(tracked).cast_mut(), Ordering::SeqCst);
    assert!(old.is_null(), "one floor runs at a time");
    let mut before = MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: a zeroed action with a handler of the style that its flags say.
    let before = unsafe {
        let mut action: libc::sigaction = MaybeUninit::zeroed().assume_init();
        action.sa_sigaction = on_signal as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        assert_eq!(libc::sigaction(signo, &action, before.as_mut_ptr()), 0, "sigaction");
        before.assume_init()
    };
    Some(Installed { signo, before, _tracked: tracked.clone() })
}

impl Drop for Installed {
    fn drop(&mut self) {
        // SAFETY: the action is the one that sigaction gave.
        unsafe { libc::sigaction(self.signo, &self.before, ptr::null_mut()) };
        CURRENT.store(ptr::null_mut(), Ordering::SeqCst);
    }
}

unsafe extern "C" fn on_signal(_: c_int, info: *mut libc::siginfo_t, _: *mut c_void) {
    // SAFETY: the kernel's siginfo; the guard keeps `CURRENT` as long as the handler is installed.
    let resolved = unsafe {
        let address = (*info).si_addr() as usize;
        CURRENT.load(Ordering::SeqCst).as_ref().is_some_and(|tracked| tracked.resolve(address))
    };
    if !resolved {
        // A true crash: returning would fault for ever.
        // SAFETY: ends the process.
        unsafe { libc::abort() };
    }
}

/// A thread that resolves the faults of `tracked`.
pub(super) fn start_thread(tracked: Arc<Tracked>) -> (StopSignal, JoinHandle<()>) {
    let stop = StopSignal::new();
    let seen = stop.clone();
    let thread = std::thread::spawn(move || {
        while let Some(address) = tracked.calls.wait_for_fault(&seen) {
            tracked.resolve(address);
        }
    });
    (stop, thread)
}
