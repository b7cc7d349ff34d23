//! Fork.
//!
//! A userfaultfd that a child inherits acts on its parent, so announce each fork:
//!
//! ```c
//! cw_before_fork(cache, &buffer, 1, &guard);            // not from code of the buffer
//! if ((pid = fork()) == 0)
//!     cw_after_fork_child(guard);                       // before anything else
//! else
//!     cw_after_fork_parent(guard);                      // also if fork failed
//! ```
//!
//! One thread makes all these calls. Between the two no other thread gets into the
//! cache or the buffers; faults are handled. The forking thread holds their locks. If a
//! call by it would wait for itself, it answers CW_BAD_ARGUMENT, and the guard stays as
//! it was. The thread may look blocks up, ask for statistics, and free its tickets,
//! links, vCPUs, holds and allocations.
//!
//! In a child without a guard no call touches anything of the parent's, not even a
//! _free. A call that needs a userfaultfd or a code buffer answers CW_IN_FORK_CHILD
//! there, and then CW_TRACKING_LOST.
//!
//! # Safety
//!
//! A guard borrows the cache and the buffers, which lie in a box next to it. The guard
//! is dropped first.
#![allow(unsafe_code)]

use std::ptr::NonNull;
use std::thread::{self, ThreadId};

use engine::code_buffer::{self, CodeBuffer};
use engine::{CacheForkGuard, CodeCache};
use libc::size_t;

use crate::cache::{Child, UNDER_GUARD, cw_cache};
use crate::code_buffer::cw_code_buffer;
use crate::handle::{borrow, out_handle, take_back};
use crate::payload::Owned;
use crate::status::{Failure, cw_status, guarded};

/// A cache and its code buffers that stand still during a fork.
pub struct cw_fork_guard {
    // Dropped in this order: allocations that are freed with the child's blocks lie in
    // the buffers.
    buffers: Vec<code_buffer::BufferForkGuard<'static>>,
    cache: CacheForkGuard<'static, Owned>,
    lasting: Lasting,
    thread: ThreadId,
}

impl cw_fork_guard {
    /// The thread that took the locks gives them up.
    fn check_thread(&self) -> Result<(), Failure> {
        if self.thread == thread::current().id() {
            return Ok(());
        }
        Err(Failure::bad_argument(c"the guard of a fork is given back by the thread that made it"))
    }
}

/// The objects that the guards borrow.
struct Lasting {
    /// Owned.
    borrowed: NonNull<(CodeCache<Owned>, Vec<CodeBuffer>)>,
    _child: Child,
}

impl Drop for Lasting {
    fn drop(&mut self) {
        // SAFETY: from a box, and the guards are gone.
        drop(unsafe { Box::from_raw(self.borrowed.as_ptr()) });
    }
}

/// Call it before fork: it waits until no other thread is inside the cache or the
/// buffers. Until the guard is given back no other thread adds or removes a region or a
/// code buffer of any cache.
///
/// buffers: every code buffer that contains blocks of the cache, buffer_count of them,
/// each once; NULL if there is none. They are shared mappings: otherwise a child's code
/// would land in its parent's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cw_before_fork(
    cache: *const cw_cache,
    buffers: *const *mut cw_code_buffer,
    buffer_count: size_t,
    guard: *mut *mut cw_fork_guard,
) -> cw_status {
    guarded(|| {
        // SAFETY: the header's rules.
        let (new, cache) = unsafe { (out_handle(guard)?, borrow(cache)?) };
        if buffers.is_null() && buffer_count != 0 {
            return Err(Failure::bad_argument(c"buffers is NULL and buffer_count is not 0"));
        }
        cache.moving()?;
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
        let borrowed = NonNull::from(Box::leak(Box::new((cache.cache.clone(), clones))));
        let lasting = Lasting { borrowed, _child: cache.child() };
        // SAFETY: it outlives the guards: fields are dropped, and taken apart, in their
        // order.
        let (cache, buffers): &'static (CodeCache<Owned>, Vec<CodeBuffer>) = unsafe { borrowed.as_ref() };
        // Before the fork: a thread's first call may take a lock of the standard
        // library.
        let thread = thread::current().id();
        let cache = cache.before_fork();
        let buffers = buffers.iter().map(CodeBuffer::before_fork).collect();
        new.give(cw_fork_guard { buffers, cache, lasting, thread });
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

/// In the child: every block is dead, and the child's own memory is tracked from now
/// on. The buffers have new memory, empty of code: emit the stubs anew, at the same
/// addresses. vCPUs of the parent's other threads hold nothing back; free them or leave
/// them. A vCPU that this thread has pinned stays pinned. Frees the guard.
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
        let cw_fork_guard { buffers, cache, lasting, .. } = *guard;
        let mut done = Ok(());
        for buffer in buffers {
            done = done.and(buffer.after_fork_child());
        }
        done = done.and(cache.after_fork_child());
        drop(lasting);
        Ok(done?)
    })
}
