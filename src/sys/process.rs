//! Tells the process that made an object from its children by `fork`.
//!
//! A child inherits the parent's userfaultfd, and an ioctl on it acts on the
//! *parent's* memory: an unregister or a drop in the child would end the
//! parent's tracking. So each object with such a descriptor remembers the [`ProcessNumber`] of the
//! process that made it. It touches the descriptor only while it runs in that process.
//!
//! The number of the process lives on a page with `MADV_WIPEONFORK`: the kernel hands it
//! to the child as zeroes, without a fork handler and without a system call.
//! The first object that the child makes writes a fresh number there, so inherited
//! objects stay foreign for ever.
//!
//! # Safety
//!
//! The page is mapped once, is never unmapped and is read as an atomic only.
#![allow(unsafe_code)]

use core::ptr;
use core::sync::atomic::{AtomicPtr, AtomicU64, Ordering};
use rustix::io::Errno;
use rustix::mm::{Advice, MapFlags, ProtFlags};

use crate::addr::PageSize;
use crate::error::Error;
use crate::sys::statics;

static COOKIE: AtomicPtr<AtomicU64> = AtomicPtr::new(ptr::null_mut());
static NEXT: AtomicU64 = AtomicU64::new(1);

/// The process, in a line of forks, that made an object.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct ProcessNumber(u64);

impl ProcessNumber {
    /// The number of this process, for an object that is being made.
    pub(crate) fn current() -> Result<Self, Error> {
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

    /// As a number; not 0.
    pub(crate) fn number(self) -> u64 {
        self.0
    }

    /// Whether an object with this number was made by this process, not by
    /// a parent of it. Async-signal-safe.
    #[inline]
    pub(crate) fn is_current(self) -> bool {
        // SAFETY: a number exists only after the cookie was set, and the page is never unmapped.
        unsafe { (*COOKIE.load(Ordering::Acquire)).load(Ordering::Relaxed) == self.0 }
    }
}

/// The process that an object belongs to, if a child may take it over.
#[derive(Debug)]
pub(crate) struct Owner(AtomicU64);

impl Owner {
    /// This process, for an object that is being made.
    pub(crate) fn this_process() -> Result<Self, Error> {
        Ok(Self(AtomicU64::new(ProcessNumber::current()?.0)))
    }

    /// Whether it belongs to this process, not to a parent of it.
    pub(crate) fn is_current(&self) -> bool {
        ProcessNumber(self.0.load(Ordering::Relaxed)).is_current()
    }

    /// The number of its process within the line of forks; not 0.
    pub(crate) fn number(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    /// Makes it this process's own.
    pub(crate) fn take_over(&self) -> Result<(), Error> {
        self.0.store(ProcessNumber::current()?.0, Ordering::Relaxed);
        Ok(())
    }
}

fn map_cookie() -> Result<*mut AtomicU64, Error> {
    let len = PageSize::host().bytes();
    // SAFETY: a new mapping at an address of the kernel's choice replaces no other.
    let page = unsafe {
        rustix::mm::mmap_anonymous(ptr::null_mut(), len, ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE)
    }
    .map_err(|errno| match errno {
        Errno::NOMEM => Error::NoMemory { what: "the page by which a fork's child is known", len_bytes: len },
        errno => Error::system("mmap", 0, len, errno),
    })?;
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
        let mine = ProcessNumber::current().unwrap();
        assert!(mine.is_current());
        let ended = in_child(|| mine.is_current().into());
        assert_eq!(ended, Ended::Returned(0), "the child took the parent's number for its own");
        assert!(mine.is_current());
    }
}
