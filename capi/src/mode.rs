//! Modes: how the library learns of writes to a region.
//!
//! Take cw_best_synchronous(), or the deferred mode if the guest announces its code
//! changes (RISC-V FENCE.I, Arm IC IVAU). The environment variable CODEWARDEN_HIDE
//! hides kernel features, to try the library without them.
//!
//! # Safety
//!
//! A C enum is read as a number: C may pass any.
#![allow(unsafe_code)]

use std::cell::RefCell;
use std::ffi::{CStr, CString, c_char, c_uint};
use std::mem::{MaybeUninit, transmute};
use std::ptr;

use engine::protection::{Access, Mode, Probe, best_synchronous};

use crate::handle::out;
use crate::status::{Failure, c_string, cw_status, guarded};

/// How the library learns of writes to a region.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum cw_mode {
    /// userfaultfd; the fault is handled by SIGBUS in the storing thread. Synchronous:
    /// once the store has retired, every block on the bytes is unreachable.
    CW_MODE_SIGBUS = 0,
    /// userfaultfd; a thread of the library handles the fault. The library learns of
    /// the kernel's own writes if the permissions allow. Synchronous.
    CW_MODE_THREAD = 1,
    /// mprotect and SIGSEGV, for kernels without userfaultfd. Synchronous.
    CW_MODE_MPROTECT = 2,
    /// userfaultfd without faults: cw_tracker_sync() finds the writes. When that has
    /// returned, every block on bytes that were written before is unreachable.
    CW_MODE_DEFERRED = 3,
    /// No tracking at all. It promises nothing: a baseline to measure the cost of the
    /// others.
    CW_MODE_NONE = 4,
}

/// The guest's own rights to memory, as its mprotect sets them. The right to run it does not
/// count: memory that may be run but not read is CW_ACCESS_READ.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum cw_access {
    /// Nothing.
    CW_ACCESS_NONE = 0,
    /// Read.
    CW_ACCESS_READ = 1,
    /// Read and write.
    CW_ACCESS_READ_WRITE = 2,
}

/// The number of an enum that C passed; it may be any number.
macro_rules! number {
    ($raw:expr, $of:ty) => {{
        let raw: MaybeUninit<$of> = $raw;
        // SAFETY: C passed a number, and an enum of this representation is one.
        unsafe { transmute::<MaybeUninit<$of>, c_uint>(raw) }
    }};
}
pub(crate) use number;

impl cw_mode {
    const ALL: [(Self, Mode, &'static CStr); 5] = [
        (Self::CW_MODE_SIGBUS, Mode::Sigbus, c"sigbus"),
        (Self::CW_MODE_THREAD, Mode::Thread, c"thread"),
        (Self::CW_MODE_MPROTECT, Mode::Mprotect, c"mprotect"),
        (Self::CW_MODE_DEFERRED, Mode::Deferred, c"deferred"),
        (Self::CW_MODE_NONE, Mode::None, c"none"),
    ];

    fn find(raw: MaybeUninit<Self>) -> Option<(Mode, &'static CStr)> {
        let raw = number!(raw, cw_mode);
        Self::ALL.into_iter().find(|(mode, ..)| *mode as c_uint == raw).map(|(_, mode, name)| (mode, name))
    }

    pub(crate) fn read(raw: MaybeUninit<Self>) -> Result<Mode, Failure> {
        Self::find(raw).map(|(mode, _)| mode).ok_or(Failure::bad_argument(c"no cw_mode has this number"))
    }

    pub(crate) fn of(mode: Mode) -> Self {
        // A mode that this interface does not know promises nothing to it.
        Self::ALL.into_iter().find(|&(_, of, _)| of == mode).map_or(Self::CW_MODE_NONE, |(found, ..)| found)
    }
}

impl cw_access {
    pub(crate) fn read(raw: MaybeUninit<Self>) -> Result<Access, Failure> {
        match number!(raw, cw_access) {
            0 => Ok(Access::None),
            1 => Ok(Access::Read),
            2 => Ok(Access::ReadWrite),
            _ => Err(Failure::bad_argument(c"no cw_access has this number")),
        }
    }
}

thread_local! {
    static WHY: RefCell<Option<CString>> = const { RefCell::new(None) };
}

/// The best synchronous mode of this kernel and these permissions: sigbus, thread or
/// mprotect, in this order. CW_MODE_UNAVAILABLE if none is available (each needs
/// membarrier, which a seccomp filter may refuse). Then the message says how to change
/// that, and neither mode nor why is written.
///
/// mode: receives the mode.
/// why: if it is not NULL, receives the reason in UTF-8, and the change that would give
/// a better mode. Owned by the library, valid until this thread calls this again.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cw_best_synchronous(mode: *mut cw_mode, why: *mut *const c_char) -> cw_status {
    guarded(|| {
        // SAFETY: the header's rules.
        let mode = unsafe { out(mode) }?;
        let (best, reason) = best_synchronous()?;
        mode.write(cw_mode::of(best));
        let reason = c_string(&reason);
        // SAFETY: the header's rules.
        if let Ok(why) = unsafe { out(why) } {
            let kept = WHY.try_with(|kept| kept.borrow_mut().insert(reason).as_ptr());
            why.write(kept.unwrap_or(c"".as_ptr()));
        }
        Ok(())
    })
}

/// Whether a mode is available here: CW_OK, or CW_MODE_UNAVAILABLE with a message that
/// names the missing feature or permission and the change that provides it.
#[unsafe(no_mangle)]
pub extern "C" fn cw_mode_check(mode: MaybeUninit<cw_mode>) -> cw_status {
    guarded(|| Ok(Probe::of_this_process().check(cw_mode::read(mode)?)?))
}

/// The mode's name: "sigbus", "thread", "mprotect", "deferred" or "none". Static; NULL
/// for a number that is no mode.
#[unsafe(no_mangle)]
pub extern "C" fn cw_mode_name(mode: MaybeUninit<cw_mode>) -> *const c_char {
    cw_mode::find(mode).map_or(ptr::null(), |(_, name)| name.as_ptr())
}

/// The mode of that name. CW_BAD_ARGUMENT for a name that no mode has: mode is as before.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cw_mode_from_name(name: *const c_char, mode: *mut cw_mode) -> cw_status {
    guarded(|| {
        // SAFETY: the header's rules.
        let mode = unsafe { out(mode) }?;
        if name.is_null() {
            return Err(Failure::bad_argument(c"the name of a mode must not be NULL"));
        }
        // SAFETY: a C string.
        let name = unsafe { CStr::from_ptr(name) };
        let found = cw_mode::ALL.into_iter().find(|(.., known)| *known == name);
        let (found, ..) = found.ok_or(Failure::bad_argument(
            c"no mode has this name: sigbus, thread, mprotect, deferred and none are there",
        ))?;
        mode.write(found);
        Ok(())
    })
}
