//! A guard over a fork. It knows its thread and its process, and holds the static locks.

use core::marker::PhantomData;
use core::sync::atomic::{AtomicU64, Ordering};

use crate::error::Error;
use crate::sys::errno::this_thread;
use crate::sys::process::ProcessNumber;
use crate::sys::statics;

/// The thread that holds the fork guard of an instance. It has the instance's locks, so
/// in a call that takes them it would wait for itself.
#[derive(Debug, Default)]
pub(crate) struct Keeper(AtomicU64);

impl Keeper {
    /// The calling thread has the locks until the result is dropped.
    pub(crate) fn begin(&self) -> Keeping<'_> {
        self.0.store(this_thread(), Ordering::Relaxed);
        Keeping(self)
    }

    /// Whether it is the calling thread. No other thread writes this thread's number, so
    /// no ordering is needed.
    #[inline]
    pub(crate) fn is_this_thread(&self) -> bool {
        let keeper = self.0.load(Ordering::Relaxed);
        keeper != 0 && keeper == this_thread()
    }

    /// Returns an error if the calling thread would wait for itself for ever.
    pub(crate) fn check(&self) -> Result<(), Error> {
        if self.is_this_thread() { Err(Error::BadArgument(UNDER_GUARD)) } else { Ok(()) }
    }

    /// Panics if the calling thread would wait for itself for ever: for calls that can return
    /// no error, before they take a lock or change anything.
    #[inline]
    #[track_caller]
    pub(crate) fn assert(&self) {
        assert!(!self.is_this_thread(), "{UNDER_GUARD}");
    }
}

/// See [`Keeper::begin`]. Drop it before the locks: their next holder may begin at once.
#[derive(Debug)]
pub(crate) struct Keeping<'a>(&'a Keeper);

impl Drop for Keeping<'_> {
    fn drop(&mut self) {
        self.0.0.store(0, Ordering::Relaxed);
    }
}

/// The error for a thread that would wait for itself.
pub(crate) const UNDER_GUARD: &str =
    "this thread holds the fork guard: give it back first, in the child by after_fork_child";

/// A part of each fork guard: the process that made the guard, and the static locks. Its
/// thread holds them meanwhile, so it stays on that thread.
#[derive(Debug)]
pub(crate) struct Fork {
    made_in: Result<ProcessNumber, Error>,
    _of_this_thread: PhantomData<*const ()>,
}

impl Fork {
    /// Calls `take_locks`, which waits for the locks of one instance.
    pub(crate) fn around<L>(take_locks: impl FnOnce() -> L) -> (L, Self) {
        let made_in = ProcessNumber::current();
        let locks = statics::hold_behind(take_locks);
        (locks, Self { made_in, _of_this_thread: PhantomData })
    }

    /// An error unless this process is a child of the one that made the guard.
    pub(crate) fn check_child(&self) -> Result<(), Error> {
        match &self.made_in {
            Ok(made_in) if !made_in.is_current() => Ok(()),
            Ok(_) => Err(Error::NotInForkChild),
            // Without the page a child cannot be recognised.
            Err(error) => Err(error.clone()),
        }
    }
}

impl Drop for Fork {
    fn drop(&mut self) {
        statics::let_go();
    }
}
