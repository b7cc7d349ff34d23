//! How a vfork's parent learns that its child has executed a program or has ended.
//!
//! The child holds a robust mutex in memory that both share. When the child executes a program
//! or ends in any way, the kernel releases the mutex and wakes the parent. A grandchild holds
//! nothing. No descriptor is needed: a process may have no number left.
//!
//! The child has a copy of its parent's memory, as after a fork. So the parent does not see the
//! child's stores, which it sees on Linux. If the two shared memory, they would share the emulator's
//! own state, too.
//!
//! # Safety
//!
//! The page is shared memory of its own. It stays mapped while the value lives, and in a child
//! until it executes a program. The mutex in it is made before the fork and never moves. No
//! process holds it when the parent unmaps it; the child never unmaps it.
#![allow(unsafe_code)]

use std::cell::UnsafeCell;
use std::mem::MaybeUninit;
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicU32, Ordering};

use super::errno::Errno;

/// How long the parent sleeps before it looks whether the child is there at all.
static PATIENCE: libc::timespec = libc::timespec { tv_sec: 0, tv_nsec: 10_000_000 };

/// In memory that both share.
struct Shared {
    mutex: UnsafeCell<libc::pthread_mutex_t>,
    /// Not 0 once the child has it. A futex.
    is_held: AtomicU32,
}

/// Made before a fork; then the parent waits with it for the child.
#[derive(Debug)]
pub(super) struct VforkWait(NonNull<Shared>);

impl VforkWait {
    pub(super) fn new() -> Result<Self, Errno> {
        let (protection, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED | libc::MAP_ANONYMOUS);
        // SAFETY: a new mapping at an address of the kernel's choice.
        let page = unsafe { libc::mmap(ptr::null_mut(), size_of::<Shared>(), protection, flags, -1, 0) };
        if page == libc::MAP_FAILED {
            return Err(Errno::last());
        }
        let shared = page.cast::<Shared>();
        let mut attributes = MaybeUninit::uninit();
        // SAFETY: the attributes are made before they are used; the page is large enough,
        // aligned, zero, and unknown to other code.
        unsafe {
            libc::pthread_mutexattr_init(attributes.as_mut_ptr());
            libc::pthread_mutexattr_setpshared(attributes.as_mut_ptr(), libc::PTHREAD_PROCESS_SHARED);
            libc::pthread_mutexattr_setrobust(attributes.as_mut_ptr(), libc::PTHREAD_MUTEX_ROBUST);
            libc::pthread_mutex_init((*shared).mutex.get(), attributes.as_ptr());
            libc::pthread_mutexattr_destroy(attributes.as_mut_ptr());
        }
        NonNull::new(shared).map(Self).ok_or(Errno(libc::ENOMEM))
    }

    fn shared(&self) -> &Shared {
        // SAFETY: the page is mapped for as long as this lives; an atomic and a cell.
        unsafe { self.0.as_ref() }
    }

    fn futex(&self, operation: i32, value: u32, timeout: *const libc::timespec) {
        let word = self.shared().is_held.as_ptr();
        // SAFETY: the word is mapped, and so is the timeout if there is one.
        unsafe { libc::syscall(libc::SYS_futex, word, operation, value, timeout, 0, 0) };
    }

    /// In the child, at once: from now on it is waited for.
    pub(super) fn hold_in_child(self) {
        let shared = self.shared();
        // SAFETY: the mutex is whole, and this thread does not have it.
        unsafe { libc::pthread_mutex_lock(shared.mutex.get()) };
        shared.is_held.store(1, Ordering::Release);
        self.futex(libc::FUTEX_WAKE, 1, ptr::null());
        // The kernel looks at the mutex when the child ends: the page stays.
        std::mem::forget(self);
    }

    /// In the parent: comes back when the child `pid` has executed or has ended.
    pub(super) fn wait(self, pid: i32) {
        let shared = self.shared();
        while shared.is_held.load(Ordering::Acquire) == 0 {
            self.futex(libc::FUTEX_WAIT, 0, &raw const PATIENCE);
            if is_gone(pid) {
                return;
            }
        }
        // SAFETY: the mutex is whole, and this thread does not have it; then it has.
        unsafe {
            if libc::pthread_mutex_lock(shared.mutex.get()) == libc::EOWNERDEAD {
                libc::pthread_mutex_consistent(shared.mutex.get());
            }
            libc::pthread_mutex_unlock(shared.mutex.get());
        }
    }
}

impl Drop for VforkWait {
    fn drop(&mut self) {
        // SAFETY: no other code of this process refers to the page.
        unsafe { libc::munmap(self.0.as_ptr().cast(), size_of::<Shared>()) };
    }
}

/// Whether a child has ended, if it was waited for already, too. It stays to be waited
/// for.
fn is_gone(pid: i32) -> bool {
    let mut info = MaybeUninit::<libc::siginfo_t>::zeroed();
    let flags = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT | libc::__WALL;
    // SAFETY: the kernel fills the structure; all zeros are a valid value.
    unsafe { libc::waitid(libc::P_PID, pid as u32, info.as_mut_ptr(), flags) != 0 || info.assume_init().si_pid() != 0 }
}

#[cfg(test)]
mod tests {
    use std::io::{PipeReader, Write, pipe};
    use std::os::fd::AsRawFd;

    use super::*;

    /// The events of the read end: data, or that no write end is open.
    fn events(reader: &PipeReader) -> i16 {
        let mut fd = libc::pollfd { fd: reader.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: one descriptor, which is open.
        unsafe { libc::poll(&raw mut fd, 1, 0) };
        fd.revents
    }

    /// Forks; the child does `then`, which does not return.
    fn child_that(then: impl FnOnce()) -> i32 {
        let end = VforkWait::new().unwrap();
        // SAFETY: the child makes system calls alone.
        let pid = unsafe { libc::fork() };
        if pid == 0 {
            end.hold_in_child();
            then();
            exit(1);
        }
        end.wait(pid);
        pid
    }

    fn exit(status: i32) -> ! {
        // SAFETY: ends a child.
        unsafe { libc::_exit(status) }
    }

    fn sleep_ms(ms: u32) {
        // SAFETY: sleeps.
        unsafe { libc::usleep(1000 * ms) };
    }

    fn end(pid: i32) {
        // SAFETY: a child of this test's.
        unsafe {
            libc::kill(pid, libc::SIGKILL);
            libc::waitpid(pid, ptr::null_mut(), libc::__WALL);
        }
    }

    #[test]
    fn a_child_that_ends_is_waited_for() {
        for signal in [0, libc::SIGKILL] {
            let (reader, mut writer) = pipe().unwrap();
            let pid = child_that(|| {
                sleep_ms(30);
                writer.write_all(b"x").unwrap();
                // SAFETY: ends this child, or nothing for a signal of 0.
                unsafe { libc::kill(libc::getpid(), signal) };
                exit(0)
            });
            assert_eq!(events(&reader), libc::POLLIN);
            end(pid);
        }
    }

    #[test]
    fn a_child_that_executes_is_waited_for_no_longer() {
        let pid = child_that(|| {
            let (path, arguments) =
                (c"/bin/sh", [c"sh".as_ptr(), c"-c".as_ptr(), c"exec sleep 600".as_ptr(), ptr::null()]);
            // SAFETY: strings and an array that end as they must.
            unsafe { libc::execv(path.as_ptr(), arguments.as_ptr()) };
        });
        assert!(!is_gone(pid));
        end(pid);
    }

    #[test]
    fn a_grandchild_is_not_waited_for() {
        let (reader, writer) = pipe().unwrap();
        let pid = child_that(|| {
            // SAFETY: the child's own child ends by itself, if late.
            unsafe {
                if libc::fork() == 0 {
                    libc::alarm(20);
                    libc::pause();
                }
            }
            exit(0)
        });
        drop(writer);
        assert_eq!(events(&reader), 0, "it lives");
        end(pid);
    }

    #[test]
    fn a_child_that_never_held_it_is_not_waited_for() {
        let end_of_it = VforkWait::new().unwrap();
        // SAFETY: the child ends.
        let pid = unsafe { libc::fork() };
        if pid == 0 {
            exit(0);
        }
        end_of_it.wait(pid);
        end(pid);
    }
}
