//! The answers of calls, and their reasons.
//!
//! Every call that can fail returns a cw_status. After a failure, cw_last_error_message()
//! of the same thread names the reason and the remedy.
//!
//! # Safety
//!
//! Pointers that leave this module lead to strings that the thread keeps.
#![allow(unsafe_code)]

use std::any::Any;
use std::borrow::Cow;
use std::cell::RefCell;
use std::ffi::{CStr, CString, c_char, c_int};
use std::panic::{AssertUnwindSafe, catch_unwind};

use engine::error::Error;
use engine::tracker::BeginError;
use engine::{Busy, CommitError};

/// The result of a call. New codes may be added: treat an unknown code as an error.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum cw_status {
    /// Done.
    CW_OK = 0,
    /// Not now: the page is being written to. Interpret the instruction and come back.
    CW_BUSY = 1,
    /// A write came to the bytes while they were translated. Begin again.
    CW_WRITTEN = 2,
    /// A page of the block stays writable: the block needs a self-checking entry. (Or interpret.)
    CW_NEEDS_CHECK = 3,
    /// The object has parts that are still alive, or is in use. Nothing was done.
    CW_IN_USE = 4,
    /// An unusable argument, NULL for instance, or an object in the wrong state for the
    /// call.
    CW_BAD_ARGUMENT = 5,
    /// A range that wraps, is not aligned, is not mapped or is in no tracked region.
    CW_BAD_RANGE = 6,
    /// The system refused a call: see cw_last_errno().
    CW_SYSTEM = 7,
    /// The mode, or a kernel feature that the call needs, is not available here; the
    /// message names the change that provides it.
    CW_MODE_UNAVAILABLE = 8,
    /// Another tracker has a part of the range already.
    CW_ALREADY_TRACKED = 9,
    /// No room: a code buffer is full (evict blocks and try again), or a table.
    CW_FULL = 10,
    /// Memory is short.
    CW_NO_MEMORY = 11,
    /// This process is a fork's child and cw_after_fork_child() was not called.
    CW_IN_FORK_CHILD = 12,
    /// The kernel no longer tracks the region: its descriptor was closed or its handler
    /// died. Every translation of it is unreachable.
    CW_TRACKING_LOST = 13,
    /// A mistake in the library. Its promises no longer hold.
    CW_INTERNAL = 14,
    /// Nothing is mapped at the page, or a mapping that the region's mode cannot track.
    /// Interpret, or translate for one run, until another mapping comes.
    CW_UNTRACKABLE = 15,
}

/// The failure of a call, as C is told of it.
#[derive(Debug)]
pub(crate) struct Failure {
    status: cw_status,
    message: Cow<'static, CStr>,
    errno: c_int,
}

impl Failure {
    /// Allocates nothing.
    pub(crate) const fn new(status: cw_status, message: &'static CStr) -> Self {
        Self { status, message: Cow::Borrowed(message), errno: 0 }
    }

    pub(crate) const fn bad_argument(message: &'static CStr) -> Self {
        Self::new(cw_status::CW_BAD_ARGUMENT, message)
    }

    pub(crate) fn told(status: cw_status, message: &str) -> Self {
        Self { status, message: Cow::Owned(c_string(message)), errno: 0 }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let (status, errno) = match error {
            Error::BadRange { .. } | Error::NotTracked { .. } | Error::NotMapped { .. } => (cw_status::CW_BAD_RANGE, 0),
            Error::BadArgument(_) => (cw_status::CW_BAD_ARGUMENT, 0),
            Error::System { errno, .. } => (cw_status::CW_SYSTEM, errno),
            Error::ModeUnavailable { .. } | Error::Unavailable { .. } => (cw_status::CW_MODE_UNAVAILABLE, 0),
            Error::AlreadyTracked { .. } => (cw_status::CW_ALREADY_TRACKED, 0),
            Error::Full { .. } => (cw_status::CW_FULL, 0),
            Error::NoMemory { .. } => (cw_status::CW_NO_MEMORY, 0),
            Error::InForkChild => (cw_status::CW_IN_FORK_CHILD, 0),
            Error::NotInForkChild => (cw_status::CW_BAD_ARGUMENT, 0),
            Error::TrackingLost => (cw_status::CW_TRACKING_LOST, 0),
            // An error that this interface does not know yet is an error all the same.
            _ => (cw_status::CW_INTERNAL, 0),
        };
        Self { errno, ..Self::told(status, &error.to_string()) }
    }
}

impl From<BeginError> for Failure {
    fn from(error: BeginError) -> Self {
        match error {
            BeginError::Failed(error) => error.into(),
            BeginError::Untrackable => Self::new(
                cw_status::CW_UNTRACKABLE,
                c"nothing is mapped there or at a declared view of its bytes, or a mapping that cannot be tracked: interpret until another one comes",
            ),
            BeginError::Busy(busy) => Self::new(cw_status::CW_BUSY, sentence(busy)),
        }
    }
}

/// The engine's sentence for C. It is an answer of every day, so it allocates nothing.
const fn sentence(busy: Busy) -> &'static CStr {
    match busy {
        Busy::Unprotecting => c"a write to the page is going on or announced: interpret, and begin again later",
        Busy::Protecting => c"another translator is about to protect the page: begin again",
        Busy::Written => c"a write came while the page was being protected: begin again",
        Busy::Hot => c"the same store keeps hitting the page: interpret for a while, and begin again later",
        // A reason that this interface does not know yet has the same remedy.
        _ => c"the page cannot be protected now: interpret, and begin again later",
    }
}

impl From<CommitError> for Failure {
    fn from(error: CommitError) -> Self {
        match error {
            CommitError::Written => Self::new(
                cw_status::CW_WRITTEN,
                c"a write came to the block's bytes while it was translated: begin again",
            ),
            CommitError::NeedsCheck => Self::new(
                cw_status::CW_NEEDS_CHECK,
                c"a page of the block stays writable: commit with a self-checking entry, or interpret",
            ),
            error => Self::told(cw_status::CW_BAD_ARGUMENT, &error.to_string()),
        }
    }
}

/// `text` without NUL bytes, which would end it in C.
pub(crate) fn c_string(text: &str) -> CString {
    let bytes: Vec<u8> = text.bytes().filter(|&byte| byte != 0).collect();
    CString::new(bytes).unwrap_or_default()
}

thread_local! {
    static LAST: RefCell<Option<Failure>> = const { RefCell::new(None) };
}

/// Keeps `failure` for later questions of this thread, and returns its code.
pub(crate) fn fail(failure: Failure) -> cw_status {
    let status = failure.status;
    // At a thread's end no question can follow.
    let _ = LAST.try_with(|last| last.replace(Some(failure)));
    status
}

/// Runs `call`. No panic goes past here: C has no frame that could take one.
pub(crate) fn guarded(call: impl FnOnce() -> Result<(), Failure>) -> cw_status {
    match catch_unwind(AssertUnwindSafe(call)) {
        Ok(Ok(())) => cw_status::CW_OK,
        Ok(Err(failure)) => fail(failure),
        Err(panic) => fail(Failure::told(cw_status::CW_INTERNAL, &mistake(&*panic))),
    }
}

fn mistake(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied().or(panic.downcast_ref::<String>().map(String::as_str));
    format!("a mistake in codewarden, please report it: {}", text.unwrap_or("it says nothing of itself"))
}

/// The reason and the remedy for the last failed call of this thread, in UTF-8; "" if none
/// has failed. Owned by the library, and valid until the next call of this thread that
/// fails.
#[unsafe(no_mangle)]
pub extern "C" fn cw_last_error_message() -> *const c_char {
    let message = LAST.try_with(|last| last.borrow().as_ref().map(|failure| failure.message.as_ptr()));
    message.ok().flatten().unwrap_or(c"".as_ptr())
}

/// The errno of the last failed call of this thread if that returned CW_SYSTEM,
/// otherwise 0.
#[unsafe(no_mangle)]
pub extern "C" fn cw_last_errno() -> c_int {
    LAST.try_with(|last| last.borrow().as_ref().map_or(0, |failure| failure.errno)).unwrap_or(0)
}

/// The library's version, "0.1.0" for instance. Static.
#[unsafe(no_mangle)]
pub extern "C" fn cw_version() -> *const c_char {
    const VERSION: &CStr = match CStr::from_bytes_with_nul(concat!(env!("CARGO_PKG_VERSION"), "\0").as_bytes()) {
        Ok(version) => version,
        Err(_) => panic!("a version has no NUL"),
    };
    VERSION.as_ptr()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn c_and_rust_are_told_the_same() {
        for busy in [Busy::Unprotecting, Busy::Protecting, Busy::Written, Busy::Hot] {
            assert_eq!(sentence(busy).to_str(), Ok(busy.to_string().as_str()));
        }
    }
}
