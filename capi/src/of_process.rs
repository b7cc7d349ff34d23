//! Whether a fork's child has replaced the process. A process number does not tell: a process and its child may
//! have the same one, in two namespaces or one after the other.
//!
//! # Safety
//!
//! The page is this object's own, and is read and written as bytes alone.
#![allow(unsafe_code)]

use engine::addr::PageSize;
use engine::error::Error;
use engine::guest_memory::GuestMemory;

use crate::status::{Failure, cw_status};

/// The process that made it. A page that the kernel empties in a child tells.
#[derive(Debug)]
pub(crate) struct OfProcess(GuestMemory);

impl OfProcess {
    pub(crate) fn this() -> Result<Self, Failure> {
        let page = GuestMemory::anonymous(PageSize::host().bytes())?;
        let (start, len_bytes) = (page.range().start().as_ptr(), page.len());
        // SAFETY: the page has no other user.
        if unsafe { libc::madvise(start.cast(), len_bytes, libc::MADV_WIPEONFORK) } != 0 {
            return Err(Failure::new(cw_status::CW_MODE_UNAVAILABLE, c"madvise(MADV_WIPEONFORK) needs Linux 4.14"));
        }
        let new = Self(page);
        new.take_over()?;
        Ok(new)
    }

    /// In a fork's child: it is this process's own from now on.
    pub(crate) fn take_over(&self) -> Result<(), Error> {
        self.0.write(0, &[1])
    }

    /// False in a child of the process that made it or took it over.
    pub(crate) fn is_current(&self) -> bool {
        let mut mark = [0];
        self.0.read(0, &mut mark).is_ok() && mark == [1]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs `body` in a child, and returns its result.
    fn in_child(body: impl FnOnce() -> i32) -> i32 {
        // SAFETY: the child runs `body` and ends. It waits for no thread.
        unsafe {
            let pid = libc::fork();
            if pid == 0 {
                libc::_exit(body());
            }
            let mut status = 0;
            assert_eq!(libc::waitpid(pid, &raw mut status, 0), pid);
            if libc::WIFEXITED(status) { libc::WEXITSTATUS(status) } else { 99 }
        }
    }

    #[test]
    fn a_child_is_another_process_until_it_takes_over() {
        let of = OfProcess::this().unwrap();
        let ended = in_child(|| {
            let was_current = of.is_current();
            let _ = of.take_over();
            if was_current || !of.is_current() { 1 } else { in_child(|| of.is_current().into()) }
        });
        assert_eq!((ended, of.is_current()), (0, true));
    }

    /// The first process of a namespace makes another namespace, with a first process too.
    #[test]
    fn a_child_of_the_same_number_is_another_process() {
        const REFUSED: i32 = 2;
        let into_namespace = |flags| {
            // SAFETY: changes the children of this process alone.
            unsafe { libc::unshare(flags | libc::CLONE_NEWPID) == 0 }
        };
        let ended = in_child(|| {
            if !into_namespace(0) && !into_namespace(libc::CLONE_NEWUSER) {
                return REFUSED;
            }
            in_child(|| {
                let Ok(of) = OfProcess::this() else { return 3 };
                let number = std::process::id();
                if !into_namespace(0) {
                    return REFUSED;
                }
                in_child(|| if std::process::id() == number { of.is_current().into() } else { 4 })
            })
        });
        if ended == REFUSED {
            let why = "this user may make no namespace of process numbers";
            assert!(std::env::var_os("CODEWARDEN_REQUIRE_ALL").is_none(), "{why}");
            println!("skipped: {why}");
        } else {
            assert_eq!(ended, 0);
        }
    }
}
