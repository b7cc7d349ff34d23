//! A thread of the library's own.
//!
//! The standard library takes locks of its own when one of its threads starts or ends, and
//! reads the environment under another lock. At a fork, a thread of the parent may hold one of
//! them. Then a thread that the child starts would hang before its first line, and every writer
//! that waits for it as well. So this is a thread of the C library, whose `fork` handles the
//! locks of `pthread_create`.
//!
//! # Safety
//!
//! A [`Thread`] has a reference to its body for the thread's own use. It gives the reference
//! up once the thread has ended, or in a fork's child, which has no such thread. If it is dropped
//! before, the thread gives the reference up at its end.
#![allow(unsafe_code)]

use core::ffi::{CStr, c_void};
use core::mem::{ManuallyDrop, MaybeUninit};
use core::ptr;
use core::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use core::time::Duration;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use rustix::io::Errno;

use crate::error::Error;
use crate::sys::process::ProcessNumber;

/// The code of a thread.
pub(crate) trait Body: Send + Sync + 'static {
    /// Its name, 15 bytes at most.
    const NAME: &'static CStr;

    /// All of its work. A panic ends the thread alone.
    fn run(&self);
}

/// Enough for a panic with a backtrace.
const STACK_BYTES: usize = 512 << 10;

/// A thread that runs. Dropped without [`Thread::join`], it runs on.
pub(crate) struct Thread<B: Body> {
    /// Taken by the end.
    id: Option<ThreadId>,
    /// The thread's own reference.
    own: ManuallyDrop<Arc<Own<B>>>,
    generation: ProcessNumber,
}

/// What a thread uses.
struct Own<B> {
    body: Arc<B>,
    /// Whether the thread has ended, or is left to itself: the second of the two gives it up.
    is_over: AtomicBool,
    /// The kernel's id of the thread; 0 until it runs.
    tid: AtomicI32,
}

/// A name for the calls of pthread. With musl it is a pointer.
#[derive(Debug)]
struct ThreadId(libc::pthread_t);

// SAFETY: only the calls of pthread use it, and any thread may make them.
unsafe impl Send for ThreadId {}
// SAFETY: as above.
unsafe impl Sync for ThreadId {}

impl<B: Body> Thread<B> {
    /// Starts a thread with the signal mask of the caller.
    pub(crate) fn start(body: &Arc<B>) -> Result<Self, Error> {
        let generation = ProcessNumber::current()?;
        let own = Arc::new(Own { body: body.clone(), is_over: AtomicBool::new(false), tid: AtomicI32::new(0) });
        let (mut id, mut attributes) = (MaybeUninit::uninit(), MaybeUninit::uninit());
        // SAFETY: both are locals that the calls write; `own` outlives the thread.
        let errno = unsafe {
            libc::pthread_attr_init(attributes.as_mut_ptr());
            libc::pthread_attr_setstacksize(attributes.as_mut_ptr(), STACK_BYTES);
            let argument = Arc::as_ptr(&own).cast_mut().cast();
            let errno = libc::pthread_create(id.as_mut_ptr(), attributes.as_ptr(), entry::<B>, argument);
            libc::pthread_attr_destroy(attributes.as_mut_ptr());
            errno
        };
        if errno != 0 {
            return Err(Error::system("pthread_create", 0, 0, Errno::from_raw_os_error(errno)));
        }
        // SAFETY: written by the call that succeeded.
        let id = Some(ThreadId(unsafe { id.assume_init() }));
        Ok(Self { id, own: ManuallyDrop::new(own), generation })
    }

    /// Returns when the thread has ended, by itself or killed by the kernel.
    pub(crate) fn join(mut self) {
        if let Some(ThreadId(id)) = self.id.take() {
            // SAFETY: a thread of this process that was neither joined nor detached; after the
            // join it no longer uses its reference, which it did not give up.
            unsafe {
                if self.own.ends_by_itself() {
                    libc::pthread_join(id, ptr::null_mut());
                } else {
                    libc::pthread_detach(id);
                }
                ManuallyDrop::drop(&mut self.own);
            }
        }
    }
}

impl<B> Own<B> {
    /// Whether a join returns. musl's waits for a word that the thread's last code writes, so it
    /// never returns if the kernel killed the thread. There this returns when the thread has ended
    /// in either way.
    fn ends_by_itself(&self) -> bool {
        if cfg!(not(target_env = "musl")) {
            return true;
        }
        let is_gone = || match self.tid.load(Ordering::Acquire) {
            0 => false,
            tid => !is_there(tid),
        };
        while !self.is_over.load(Ordering::Acquire) {
            // Asked in this order: it may end by itself between the two questions.
            if is_gone() && !self.is_over.load(Ordering::Acquire) {
                return false;
            }
            std::thread::sleep(LOOK_EVERY);
        }
        true
    }
}

/// The time between two looks whether a thread has ended.
const LOOK_EVERY: Duration = Duration::from_millis(1);

/// Whether this process has the thread.
fn is_there(tid: i32) -> bool {
    // SAFETY: sends no signal.
    unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), tid, 0) == 0 }
}

impl<B: Body> Drop for Thread<B> {
    fn drop(&mut self) {
        let Some(ThreadId(id)) = self.id.take() else { return };
        let is_gone = if self.generation.is_current() {
            // SAFETY: neither joined nor detached before.
            unsafe { libc::pthread_detach(id) };
            self.own.is_over.swap(true, Ordering::AcqRel)
        } else {
            true
        };
        if is_gone {
            // SAFETY: dropped once, here. The thread has ended, or this process has no such thread.
            unsafe { ManuallyDrop::drop(&mut self.own) };
        }
    }
}

impl<B: Body> core::fmt::Debug for Thread<B> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Thread").field("id", &self.id).finish_non_exhaustive()
    }
}

extern "C" fn entry<B: Body>(own: *mut c_void) -> *mut c_void {
    // SAFETY: names the calling thread; the name is a string of the program.
    unsafe { libc::prctl(libc::PR_SET_NAME, B::NAME.as_ptr()) };
    let own: *const Own<B> = own.cast();
    // SAFETY: `Thread` keeps it until this thread says that it is over.
    let Own { body, is_over, tid } = unsafe { &*own };
    tid.store(this_tid(), Ordering::Release);
    // The panic was printed.
    let _ = catch_unwind(AssertUnwindSafe(|| body.run()));
    if is_over.swap(true, Ordering::AcqRel) {
        // SAFETY: made by `Arc::as_ptr` of the reference that `Thread` left to this thread.
        drop(unsafe { Arc::from_raw(own) });
    }
    ptr::null_mut()
}

/// The kernel's id of the calling thread.
pub(crate) fn this_tid() -> i32 {
    rustix::thread::gettid().as_raw_nonzero().get()
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

    use super::*;
    use crate::sys::child::{Ended, in_child};

    #[derive(Default)]
    struct Count {
        runs: AtomicUsize,
        panics: bool,
    }

    impl Body for Count {
        const NAME: &'static CStr = c"count";

        fn run(&self) {
            self.runs.fetch_add(1, SeqCst);
            assert!(!self.panics, "on purpose");
        }
    }

    /// Fails if that does not come in a minute.
    fn wait_until(what: &str, came: impl Fn() -> bool) {
        let begun = std::time::Instant::now();
        while !came() {
            assert!(begun.elapsed().as_secs() < 60, "{what} does not come");
            std::thread::yield_now();
        }
    }

    #[test]
    fn a_thread_runs_once_and_gives_its_body_back() {
        for panics in [false, true] {
            let count = Arc::new(Count { panics, ..Count::default() });
            Thread::start(&count).unwrap().join();
            assert_eq!((count.runs.load(SeqCst), Arc::strong_count(&count)), (1, 1));
        }
    }

    /// The thread does not exist in the child, so the handle gives its reference up there.
    #[test]
    fn a_forks_child_gives_the_body_up() {
        let count = Arc::new(Count::default());
        let thread = Thread::start(&count).unwrap();
        let mut thread = Some(thread);
        let left = in_child(|| {
            drop(thread.take());
            Arc::strong_count(&count) as u8
        });
        assert_eq!((left, Arc::strong_count(&count)), (Ended::Returned(1), 2));
        thread.unwrap().join();
    }

    /// In either order.
    #[test]
    fn a_thread_without_a_join_gives_its_body_up_when_it_ends() {
        for ends_first in [false, true] {
            let count = Arc::new(Count::default());
            let thread = Thread::start(&count).unwrap();
            wait_until("the end", || !ends_first || thread.own.is_over.load(SeqCst));
            drop(thread);
            wait_until("the body", || Arc::strong_count(&count) == 1);
            assert_eq!(count.runs.load(SeqCst), 1);
        }
    }
}
