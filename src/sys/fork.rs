//! Tells whether this process is a fork's child.
//!
//! A child inherits the parent's userfaultfd, and an ioctl on it acts on the
//! *parent's* memory: an unregister or a drop in the child would end the
//! parent's tracking. So each object with such a descriptor remembers the [`Generation`] of the
//! process that made it. It touches the descriptor only while that generation is the current
//! one.
//!
//! The generation lives on a page with `MADV_WIPEONFORK`: the kernel hands it
//! to the child as zeroes, without a fork handler and without a system call.
//! The first object that the child makes writes a fresh number there, so inherited
//! objects stay foreign for ever.
//!
//! # Safety
//!
//! The page is mapped once, is never unmapped and is read as an atomic only.
#![allow(unsafe_code)]

use core::marker::PhantomData;
use core::ptr;
use core::sync::atomic::{AtomicPtr, AtomicU64, Ordering};
use rustix::mm::{Advice, MapFlags, ProtFlags};

use crate::addr::PageSize;
use crate::error::Error;
use crate::sys::fault::this_thread;
use crate::sys::statics;

static COOKIE: AtomicPtr<AtomicU64> = AtomicPtr::new(ptr::null_mut());
static NEXT: AtomicU64 = AtomicU64::new(1);

/// The process, in a line of forks, that made an object.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Generation(u64);

impl Generation {
    /// The generation of this process, for an object that is being made.
    pub(crate) fn of_this_process() -> Result<Self, Error> {
        // One thread at a time: a cookie is mapped once, and gets one number.
        statics::with(|_| {
            if COOKIE.load(Ordering::Acquire).is_null() {
                COOKIE.store(map_cookie()?, Ordering::Release);
            }
            // SAFETY: just seen to be set; it points to a page that is never unmapped.
            let cookie = unsafe { &*COOKIE.load(Ordering::Acquire) };
            if cookie.load(Ordering::Relaxed) == 0 {
                cookie.store(NEXT.fetch_add(1, Ordering::Relaxed), Ordering::Relaxed);
            }
            Ok(Self(cookie.load(Ordering::Relaxed)))
        })
    }

    /// Whether the object of this generation was made by this process, not by
    /// a parent of it. Async-signal-safe.
    #[inline]
    pub(crate) fn is_current(self) -> bool {
        // SAFETY: a generation exists only after the cookie was set, and the page is never unmapped.
        unsafe { (*COOKIE.load(Ordering::Acquire)).load(Ordering::Relaxed) == self.0 }
    }
}

/// The process that an object belongs to, if a child may take it over.
#[derive(Debug)]
pub(crate) struct Owner(AtomicU64);

impl Owner {
    /// This process, for an object that is being made.
    pub(crate) fn this_process() -> Result<Self, Error> {
        Ok(Self(AtomicU64::new(Generation::of_this_process()?.0)))
    }

    /// Whether it belongs to this process, not to a parent of it.
    pub(crate) fn is_current(&self) -> bool {
        Generation(self.0.load(Ordering::Relaxed)).is_current()
    }

    /// The number of its process within the line of forks; not 0.
    pub(crate) fn number(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    /// Makes it this process's own.
    pub(crate) fn take_over(&self) -> Result<(), Error> {
        self.0.store(Generation::of_this_process()?.0, Ordering::Relaxed);
        Ok(())
    }
}

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
    "this thread holds the fork guard: drop it first, or call after_fork_child in the child";

/// A part of each fork guard: the process that made the guard, and the static locks. Its
/// thread holds them meanwhile, so it stays on that thread.
#[derive(Debug)]
pub(crate) struct Fork {
    made_in: Result<Generation, Error>,
    _of_this_thread: PhantomData<*const ()>,
}

impl Fork {
    /// Calls `take_locks`, which waits for the locks of one instance.
    pub(crate) fn around<L>(take_locks: impl FnOnce() -> L) -> (L, Self) {
        let made_in = Generation::of_this_process();
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

fn map_cookie() -> Result<*mut AtomicU64, Error> {
    let len = PageSize::host().bytes();
    // SAFETY: a new mapping at an address of the kernel's choice replaces no other.
    let page = unsafe {
        rustix::mm::mmap_anonymous(ptr::null_mut(), len, ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE)
    }
    .map_err(|errno| Error::system("mmap", 0, len, errno))?;
    // SAFETY: it is our own fresh page, still empty.
    unsafe { rustix::mm::madvise(page, len, Advice::LinuxWipeOnFork) }
        .map_err(|errno| Error::system("madvise(MADV_WIPEONFORK)", page as usize, len, errno))?;
    Ok(page.cast())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::child::{Ended, in_child};

    #[test]
    fn a_child_knows_that_it_is_one() {
        let mine = Generation::of_this_process().unwrap();
        assert!(mine.is_current());
        let ended = in_child(|| mine.is_current().into());
        assert_eq!(ended, Ended::Returned(0), "the child took the parent's generation for its own");
        assert!(mine.is_current());
    }
}
