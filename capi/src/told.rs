//! The reports of a tracker to a cache of your own, and your lock around them.
//!
//! told(context, page, why) is called for a page that you have claimed, before the store
//! goes through (synchronous modes) or before cw_tracker_sync() returns. It names the page
//! with the code, by its guest address: if memory is mapped twice, that may be another page
//! than the one that was stored to. It may be called for a page that has no blocks any more, or whose
//! mapping has changed since (claims of the new one stay current), and twice for one. The calling thread is the one that stored, in its
//! signal handler; the library's (CW_MODE_THREAD); or one that is in a call of yours for this
//! tracker. So several threads may call it at once, unless you have a lock:
//!
//! One lock of yours may be held around every call for the tracker and around
//! cw_handle_fault(). Then told() runs under it, and may use all that it guards: unlink
//! blocks, free them (those that another thread is running when that has left them). For that:
//!
//! - In modes sigbus and mprotect own the signals (embedder_owns_signals), and take the lock
//!   in your handler before cw_handle_fault(). Any lock will do, a pthread mutex too: the thread
//!   that faults does not hold it, by the third rule.
//! - Give lock() and unlock(): the library's thread of CW_MODE_THREAD calls them around each
//!   fault, and cw_tracker_free() around the end. No other call takes the lock.
//! - Store to no tracked page while you hold it, unless the write was announced
//!   (cw_tracker_announce_write(), cw_tracker_prepare_kernel_write()). Your store would wait for the lock that you hold. (If a thread may take your lock twice it does not wait
//!   in modes sigbus and mprotect, but told() may then run amid your own work under the lock.)
//!
//! Without a lock told() may only change atomic words: it may interrupt a thread that holds
//! any other lock. In either case it must not call this library, store to tracked memory,
//! unwind or longjmp, and it takes no other lock that a thread may hold while it calls this
//! library or stores to guest memory.
//!
//! # Safety
//!
//! C's functions are only named here.
#![allow(unsafe_code)]

use std::ffi::c_void;
use std::mem::MaybeUninit;

use libc::size_t;

use crate::policy::cw_policy;

/// Why no block of a page may be reached when told() returns.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum cw_told {
    /// The page's bytes are about to change, or have changed, or may have.
    CW_TOLD_WRITTEN = 0,
    /// The page is self-checking from now on: it stays writable, and changes without further
    /// notice. Blocks that compare their bytes at each entry may stay, no other.
    CW_TOLD_CHECKED = 1,
    /// The page was self-checking and has cooled: its next blocks need not compare their
    /// bytes. No block may stay, also none that compares: nothing more is told of it.
    CW_TOLD_COOLED = 2,
    /// The page is tracked no more: its region was removed, the kernel's tracking was lost, or
    /// the process is a fork's child that cannot keep its blocks. A claim tells whether that has
    /// changed.
    CW_TOLD_LOST = 3,
}

/// The options of a new tracker. cw_tracker_options_default() fills in the rest.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct cw_tracker_options {
    /// sizeof(cw_tracker_options).
    pub size_bytes: size_t,
    /// How each page's blocks are kept true.
    pub policy: MaybeUninit<cw_policy>,
    /// See above. Not NULL.
    pub told: Option<unsafe extern "C" fn(context: *mut c_void, page: u64, why: cw_told)>,
    /// Takes your lock; NULL if there is none.
    pub lock: Option<unsafe extern "C" fn(context: *mut c_void)>,
    /// Gives your lock back; NULL if there is none.
    pub unlock: Option<unsafe extern "C" fn(context: *mut c_void)>,
    /// Whether a thread other than the calling one may be looking blocks up or running them
    /// now. It is asked between told() and the opening of the page, in the same thread. If so,
    /// all threads pass a barrier, which is a system call: a processor may run the look-up of
    /// a block ahead of its own store. The thread whose store it is need not count, also in mode
    /// thread, where the library's thread asks: its fault has ended everything that it ran ahead. False is
    /// right only if each other thread that looks blocks up passes a sequentially consistent
    /// fence between this call and its next look-up. NULL: always a barrier.
    pub others_may_look: Option<unsafe extern "C" fn(context: *mut c_void) -> bool>,
    /// Passed to these functions. It stays valid until cw_tracker_free() has returned: also behind the end
    /// of its last region the library's thread (CW_MODE_THREAD) may be waiting in lock().
    pub context: *mut c_void,
}
