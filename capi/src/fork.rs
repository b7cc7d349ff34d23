//! Fork.
//!
//! A userfaultfd that a child inherits acts on its parent, so announce each fork:
//!
//! ```c
//! cw_tracker_before_fork(tracker, &buffer, 1, &guard);  // not from code of the buffer
//! if ((pid = fork()) == 0)
//!     cw_after_fork_child(guard);                       // before anything else
//! else
//!     cw_after_fork_parent(guard);                      // also if fork failed
//! ```
//!
//! For a cache it is the cache's tracker. One thread makes all these calls. If you have a lock
//! around the calls for a tracker, hold it from the first to the last: told() runs in the child.
//! Between the two no other thread gets into the tracker, its cache or the buffers; faults are
//! handled. The forking thread holds their locks. If a call by it would wait for itself, it
//! answers CW_BAD_ARGUMENT, and the guard stays as it was. The thread may look blocks up, ask for statistics, and free its tickets,
//! links, vCPUs, holds and allocations.
//!
//! The child of a tracker of yours keeps its blocks: its memory has the bytes that the parent's had, and
//! cw_after_fork_child() protects the same pages again. So told() is called, with CW_TOLD_LOST, for
//! these pages alone: another thread was writing it or held it; it shows shared memory that you
//! declared, which the parent may have written since; it cannot be tracked here (no descriptor is
//! left, for instance); its region is in mode deferred. For that, nothing in the child stores to guest memory
//! between fork and cw_after_fork_child(), unless you hold the page (cw_tracker_prepare_kernel_write()):
//! store a thread id for the guest after it. If the fork itself has changed memory
//! (MADV_WIPEONFORK, MADV_DONTFORK), call cw_tracker_unmap() for it after that, and cw_tracker_map()
//! if it is still there. A child that shares the descriptors of its parent (clone with CLONE_FILES) must not
//! call it: it would close those of the parent.
//!
//! In a child without a guard no call touches anything of the parent's, not even a
//! _free. A call that needs a userfaultfd or a code buffer answers CW_IN_FORK_CHILD
//! there, and then CW_TRACKING_LOST. cw_tracker_free() takes your lock there too. Another thread of the parent
//! may have had it, also the library's, and is missing: make your lock anew before.
//!
//! # Safety
//!
//! A guard borrows the tracker, which is not freed before it, and the buffers, which lie in a box
//! next to it. The guard is dropped first.
#![allow(unsafe_code)]

use std::ptr::NonNull;
use std::sync::MutexGuard;
use std::thread::{self, ThreadId};

use engine::CacheForkGuard;
use engine::code_buffer::{self, CodeBuffer};
use engine::error::Error;
use engine::tracker::TrackerForkGuard;
use libc::size_t;

use crate::code_buffer::cw_code_buffer;
use crate::code_page::{CodePage, Codes, SharedCodes};
use crate::handle::{borrow, out_handle, take_back};
use crate::payload::Owned;
use crate::status::{Failure, cw_status, guarded};
use crate::tracker::{Child, Of, UNDER_GUARD, cw_tracker};

/// The calling thread. A look at it writes nothing that a child would have to copy.
fn this_thread() -> ThreadId {
    thread_local! {
        static THIS: ThreadId = thread::current().id();
    }
    THIS.with(|this| *this)
}

/// A tracker, its cache and the code buffers that stand still during a fork.
pub struct cw_fork_guard {
    // Dropped in this order: allocations that are freed with the child's blocks lie in
    // the buffers.
    buffers: Vec<code_buffer::BufferForkGuard<'static>>,
    tracker: Standing,
    lasting: Lasting,
    thread: ThreadId,
}

impl cw_fork_guard {
    /// The thread that took the locks gives them up.
    fn check_thread(&self) -> Result<(), Failure> {
        if self.thread == this_thread() {
            return Ok(());
        }
        Err(Failure::bad_argument(c"the guard of a fork is given back by the thread that made it"))
    }
}

/// A tracker that stands still, with its cache if it has one.
enum Standing {
    Cache(CacheForkGuard<'static, Owned>),
    Embedder(TrackerForkGuard<'static, CodePage>, &'static Codes, MutexGuard<'static, SharedCodes>),
}

impl Standing {
    fn after_fork_child(self) -> Result<(), Error> {
        match self {
            Self::Cache(cache) => cache.after_fork_child(),
            Self::Embedder(tracker, codes, _lists) => {
                let begun = codes.begin_in_child();
                begun.and(tracker.after_fork_child())
            }
        }
    }
}

/// The objects that the guards borrow.
struct Lasting {
    /// Owned.
    buffers: NonNull<Vec<CodeBuffer>>,
    /// The tracker, and its cache, are freed after this.
    _child: Child,
}

impl Drop for Lasting {
    fn drop(&mut self) {
        // SAFETY: from a box, and the guards are gone.
        drop(unsafe { Box::from_raw(self.buffers.as_ptr()) });
    }
}

/// Call it before fork: it waits until no other thread is inside the tracker, its cache or the
/// buffers. Until the guard is given back no other thread adds or removes a region or a
/// code buffer of any other. If several threads each take the guards of several trackers, all take them in
/// the same order.
///
/// buffers: every code buffer that contains blocks of the cache, buffer_count of them,
/// each once; NULL if there is none. They are shared mappings: otherwise a child's code
/// would land in its parent's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cw_tracker_before_fork(
    tracker: *const cw_tracker,
    buffers: *const *mut cw_code_buffer,
    buffer_count: size_t,
    guard: *mut *mut cw_fork_guard,
) -> cw_status {
    guarded(|| {
        // SAFETY: the header's rules.
        let (new, of) = unsafe { (out_handle(guard)?, borrow(tracker)?) };
        if buffers.is_null() && buffer_count != 0 {
            return Err(Failure::bad_argument(c"buffers is NULL and buffer_count is not 0"));
        }
        of.moving()?;
        let mut clones = Vec::new();
        for at in 0..buffer_count {
            // SAFETY: C's array has buffer_count elements.
            let buffer = unsafe { *buffers.add(at) };
            // If a buffer is there twice, its lock is taken twice: that would wait for
            // ever.
            // SAFETY: as above.
            if (0..at).any(|before| unsafe { *buffers.add(before) } == buffer) {
                return Err(Failure::bad_argument(c"a code buffer is among the buffers twice"));
            }
            // SAFETY: the header's rules.
            let buffer = unsafe { borrow(buffer) }?.0.clone();
            if buffer.stands_still_here() {
                return Err(UNDER_GUARD);
            }
            clones.push(buffer);
        }
        let clones = NonNull::from(Box::leak(Box::new(clones)));
        let lasting = Lasting { buffers: clones, _child: of.child() };
        // SAFETY: it outlives the guards: fields are dropped, and taken apart, in their
        // order.
        let buffers: &'static Vec<CodeBuffer> = unsafe { clones.as_ref() };
        // SAFETY: as above: it is not freed before its children.
        let of: &'static cw_tracker = unsafe { NonNull::from(of).as_ref() };
        // Before the fork: a thread's first call may take a lock of the standard
        // library.
        let thread = this_thread();
        let tracker = match of.of() {
            Of::Cache(cache) => Standing::Cache(cache.before_fork()),
            Of::Embedder(codes) => Standing::Embedder(codes.tracker().before_fork(), codes, codes.shared()),
        };
        let buffers = buffers.iter().map(CodeBuffer::before_fork).collect();
        new.give(cw_fork_guard { buffers, tracker, lasting, thread });
        Ok(())
    })
}

/// In the parent: everything goes on as before. Frees the guard. Does nothing for NULL.
///
/// CW_BAD_ARGUMENT, and nothing is done, in any thread but the one that made it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cw_after_fork_parent(guard: *mut cw_fork_guard) -> cw_status {
    guarded(|| {
        // SAFETY: the header's rules; NULL is allowed.
        if let Ok(guard) = unsafe { borrow(guard) } {
            guard.check_thread()?;
        }
        // SAFETY: the header's rules.
        drop(unsafe { take_back(guard) });
        Ok(())
    })
}

/// In the child: its own memory is tracked from now on. Every block of a cache is dead. A tracker of
/// yours tells CW_TOLD_LOST of the pages whose blocks it cannot keep; the other blocks, and claims, go on.
/// The buffers have new memory, empty of code: emit the stubs anew, at the same
/// addresses. vCPUs of the parent's other threads hold nothing back; free them or leave
/// them. A vCPU that this thread has pinned stays pinned, and its holds hold here too; those of
/// other threads hold nothing any more, but count for CW_IN_USE until they are freed. Frees the guard.
///
/// CW_BAD_ARGUMENT in the process that made the guard: nothing was changed, and the
/// guard is given back as by cw_after_fork_parent(). CW_BAD_ARGUMENT too, and nothing
/// is done, in any thread but the one that forked.
///
/// If it fails, the regions or buffers that are not available here cannot be used:
/// nothing can be translated from them, and code must not be run.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cw_after_fork_child(guard: *mut cw_fork_guard) -> cw_status {
    guarded(|| {
        // SAFETY: the header's rules; NULL is reported below.
        if let Ok(guard) = unsafe { borrow(guard) } {
            guard.check_thread()?;
        }
        // SAFETY: the header's rules.
        let guard = unsafe { take_back(guard) };
        let guard = guard.ok_or(Failure::bad_argument(c"the guard of the fork must not be NULL"))?;
        let cw_fork_guard { buffers, tracker, lasting, .. } = *guard;
        let mut done = Ok(());
        for buffer in buffers {
            done = done.and(buffer.after_fork_child());
        }
        done = done.and(tracker.after_fork_child());
        drop(lasting);
        Ok(done?)
    })
}
