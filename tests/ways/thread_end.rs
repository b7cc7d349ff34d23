//! The kernel's writes at the end of a thread: `clear_child_tid` and robust lists.
//!
//! A refused write is not reported: the word stays as it is, and its waiters wait for ever. The
//! writes are refused in thread mode too, because the kernel delivers no fault of an ending
//! thread. So in every mode the embedder holds the page over the thread's end, or writes the
//! word itself.
//!
//! # Safety
//!
//! The child that shares the memory does nothing, and its parent stands still until the child is
//! gone (CLONE_VFORK), because both have one set of thread-locals. The objects that threads
//! point to outlive the threads.
#![allow(unsafe_code)]

use core::ffi::{c_int, c_void};
use core::mem::MaybeUninit;
use core::mem::offset_of;
use core::ptr;
use core::sync::atomic::{AtomicBool, AtomicI32, Ordering::SeqCst};

use codewarden::protection::Mode;

use crate::expect::in_every_mode;
use crate::own_process::wait_for;
use crate::support::Fixture;

const STACK_BYTES: usize = 64 << 10;

/// Makes a child that shares the memory, as a thread does, and ends. At its end the kernel
/// clears the word at `child_tid`.
fn end_of_a_child(child_tid: *mut u8) {
    let mut stack = vec![0_u128; STACK_BYTES / 16];
    // Without CLONE_CHILD_CLEARTID, which musl refuses: the child names the word itself.
    let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD;
    // SAFETY: the stack outlives the child; see the head.
    let pid = unsafe { libc::clone(ends, stack.as_mut_ptr_range().end.cast(), flags, child_tid.cast()) };
    assert!(pid > 0, "{}", std::io::Error::last_os_error());
    assert_eq!(wait_for(pid), 0);
}

extern "C" fn ends(child_tid: *mut c_void) -> c_int {
    // SAFETY: the kernel only notes the address.
    unsafe { libc::syscall(libc::SYS_set_tid_address, child_tid) };
    0
}

impl Fixture {
    /// Whether the writes of an ending thread pass.
    fn last_writes_pass(&self) -> bool {
        matches!(self.mode, Mode::Deferred | Mode::None)
    }
}

#[test]
fn clear_child_tid() {
    in_every_mode(|guest| {
        let set = |page| {
            // SAFETY: in the memory.
            unsafe { guest.host(page, 12).cast::<u32>().write_volatile(77) };
            guest.block(page, 12)
        };
        let word = |page| u32::from_ne_bytes(guest.bytes(page, 12, 4).try_into().unwrap());
        let block = set(1);
        end_of_a_child(guest.host(1, 12));
        if guest.last_writes_pass() {
            assert_eq!(word(1), 0, "{}", guest.mode);
            guest.expect_learned(block);
        } else {
            assert_eq!(word(1), 77, "{}", guest.mode);
            guest.expect_reachable(block);
        }
        let block = set(2);
        let held = guest.prepare_unseen(2, 12, 4);
        end_of_a_child(guest.host(2, 12));
        drop(held);
        assert_eq!(word(2), 0, "{}", guest.mode);
        guest.expect_dead(block);
    });
}

/// A robust list of one futex: the kernel's `struct robust_list_head` and an entry.
#[repr(C)]
struct RobustList {
    first: *mut RobustEntry,
    futex_offset: isize,
    pending: *mut RobustEntry,
    entry: RobustEntry,
}

#[repr(C)]
struct RobustEntry {
    next: *mut c_void,
}

/// A thread that holds a lock, and ends on demand.
struct Owner {
    list: RobustList,
    futex: *mut u32,
    /// The kernel's id of the thread, once it has the lock.
    holder: AtomicI32,
    may_end: AtomicBool,
}

/// Takes the lock, enters it in the kernel's list, and ends without unlocking.
extern "C" fn ends_with_a_lock(owner: *mut c_void) -> *mut c_void {
    let owner: *mut Owner = owner.cast();
    // SAFETY: the owner and the futex outlive the thread; no other thread looks at the list
    // during the entry.
    unsafe {
        let list = &raw mut (*owner).list;
        (*owner).futex.write_volatile(libc::syscall(libc::SYS_gettid) as u32);
        (*list).entry.next = list.cast();
        (*list).first = &raw mut (*list).entry;
        (*list).futex_offset = (*owner).futex as isize - &raw const (*list).entry as isize;
        if libc::syscall(libc::SYS_set_robust_list, list, offset_of!(RobustList, entry)) == 0 {
            (*owner).holder.store(libc::gettid(), SeqCst);
        }
        while !(*owner).may_end.load(SeqCst) {
            libc::sched_yield();
        }
        // Ends the thread alone, without the C library.
        libc::syscall(libc::SYS_exit, 0);
    }
    ptr::null_mut()
}

#[test]
fn robust_list() {
    in_every_mode(|guest| {
        for announced in [false, true] {
            let page = 3 + usize::from(announced);
            let mut owner = Owner {
                list: RobustList {
                    first: ptr::null_mut(),
                    futex_offset: 0,
                    pending: ptr::null_mut(),
                    entry: RobustEntry { next: ptr::null_mut() },
                },
                futex: guest.host(page, 16).cast(),
                holder: AtomicI32::new(0),
                may_end: AtomicBool::new(false),
            };
            let owner = &raw mut owner;
            // SAFETY: the owner lives until the thread has ended; the shared fields are atomic.
            let (holder, may_end) = unsafe { (&(*owner).holder, &(*owner).may_end) };
            let mut thread = MaybeUninit::uninit();
            let started =
                // SAFETY: as above.
                unsafe { libc::pthread_create(thread.as_mut_ptr(), ptr::null(), ends_with_a_lock, owner.cast()) };
            assert_eq!(started, 0);
            while holder.load(SeqCst) == 0 {
                std::thread::yield_now();
            }
            let block = guest.block(page, 16);
            let held = announced.then(|| guest.prepare_unseen(page, 16, 4));
            may_end.store(true, SeqCst);
            // Not joined: musl's join waits for the C library's part of a thread's end.
            // SAFETY: started, and detached once.
            unsafe { libc::pthread_detach(thread.assume_init()) };
            // SAFETY: sends no signal.
            while unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), holder.load(SeqCst), 0) } == 0 {
                std::thread::yield_now();
            }
            drop(held);
            let word = u32::from_ne_bytes(guest.bytes(page, 16, 4).try_into().unwrap());
            let arrived = announced || guest.last_writes_pass();
            assert_eq!(word & libc::FUTEX_OWNER_DIED != 0, arrived, "{}", guest.mode);
            if announced {
                guest.expect_dead(block);
            } else if arrived {
                guest.expect_learned(block);
            } else {
                guest.expect_reachable(block);
            }
        }
    });
}
