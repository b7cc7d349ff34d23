//! Writes that the kernel cannot report.
//!
//! The library learns of stores by guest threads by itself. These calls are for
//! announcements by the guest (deferred regions) and for writes by the kernel or by others. None may be called in a signal handler. They may
//! be called while your own vCPU is pinned, but unpin it around a call that may last.
//!
//! A call for a range answers CW_BAD_RANGE, and does nothing, if the range wraps or if
//! no byte of it lies in a region. A range of no bytes is CW_OK, and nothing is done.
//!
//! # Safety
//!
//! Pointers are used as the header's rules say.
#![allow(unsafe_code)]

use engine::addr::GuestAddr;
use engine::tracker::Held;

use crate::handle::{borrow, out_handle, take_back};
use crate::status::{cw_status, guarded};
use crate::tracker::{Child, cw_tracker};

/// Pages that are held writable for writes that no mode reports.
pub struct cw_hold {
    _held: Held,
    _child: Child,
}

/// The guest announces that code may have changed. When this returns, no translation of
/// bytes that were written in a deferred region before the call can be reached. In the
/// other modes it costs a fence, which a guest with explicit_fetch needs.
///
/// If it fails, everything that was asked about counts as written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cw_tracker_sync(tracker: *const cw_tracker) -> cw_status {
    guarded(|| {
        // SAFETY: the header's rules.
        let tracker = unsafe { borrow(tracker) }?.any();
        Ok(tracker.sync()?)
    })
}

/// cw_tracker_sync() for len_bytes from guest, through whichever view of their memory
/// they were written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cw_tracker_sync_range(tracker: *const cw_tracker, guest: u64, len_bytes: u64) -> cw_status {
    guarded(|| {
        // SAFETY: the header's rules.
        let tracker = unsafe { borrow(tracker) }?.any();
        Ok(tracker.sync_range(GuestAddr(guest), len_bytes)?)
    })
}

/// The bytes changed unseen by the tracker (through a mapping of your own, by a
/// debugger, by a device). When this returns, no translation of the pages in the range
/// can be reached, in any mode.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cw_tracker_invalidate(tracker: *const cw_tracker, guest: u64, len_bytes: u64) -> cw_status {
    guarded(|| {
        // SAFETY: the header's rules.
        let tracker = unsafe { borrow(tracker) }?.any();
        Ok(tracker.invalidate(GuestAddr(guest), len_bytes)?)
    })
}

/// The kernel is about to write len_bytes from guest for the guest (read, recvmsg, an
/// out parameter of any system call). Until cw_hold_free() the pages are writable, and
/// no block is made from them except one with a self-checking entry, if the policy has
/// checks. Where the kernel's writes are tracked like the guest's it does nothing, and the pages stay
/// protected: in mode deferred, and in mode thread with the permission for the kernel's faults, if the tracker has no lock().
/// Without it such a system call may fail with EFAULT in modes sigbus, mprotect and (without the permission)
/// thread. With the permission it waits for your lock(): for ever, if you hold that.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cw_tracker_prepare_kernel_write(
    tracker: *const cw_tracker,
    guest: u64,
    len_bytes: u64,
    hold: *mut *mut cw_hold,
) -> cw_status {
    guarded(|| {
        // SAFETY: the header's rules.
        let (new, tracker) = unsafe { (out_handle(hold)?, borrow(tracker)?) };
        let held = tracker.any().prepare_kernel_write(GuestAddr(guest), len_bytes)?;
        new.give(cw_hold { _held: held, _child: tracker.child() });
        Ok(())
    })
}

/// cw_tracker_prepare_kernel_write() without an end, for a hook that has none (access_ok, a
/// lock of user memory): announces one write by the kernel. When this returns the pages are
/// writable and none of their blocks can be reached; those that compare their bytes may stay. (Where
/// cw_tracker_prepare_kernel_write() does nothing this does nothing either.) The next claim of a page protects it again, so announce as late as possible.
///
/// If another thread claims a page between this call and the write, the kernel refuses the
/// write: the system call fails with EFAULT or is cut short, and no block is stale. Announce
/// again, and repeat it. If that may not be (a read that has taken data already), hold the pages
/// by cw_tracker_prepare_kernel_write().
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cw_tracker_announce_write(
    tracker: *const cw_tracker,
    guest: u64,
    len_bytes: u64,
) -> cw_status {
    guarded(|| {
        // SAFETY: the header's rules.
        let tracker = unsafe { borrow(tracker) }?.any();
        drop(tracker.prepare_kernel_write(GuestAddr(guest), len_bytes)?);
        Ok(())
    })
}

/// Announces a write to len_bytes from guest for which the kernel delivers no fault in
/// any mode: into pinned pages (io_uring's registered buffers, aio and O_DIRECT in
/// progress), by a debugger, at a thread's end (clear_child_tid, robust lists). As
/// cw_tracker_prepare_kernel_write(), in every mode.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cw_tracker_prepare_unseen_write(
    tracker: *const cw_tracker,
    guest: u64,
    len_bytes: u64,
    hold: *mut *mut cw_hold,
) -> cw_status {
    guarded(|| {
        // SAFETY: the header's rules.
        let (new, tracker) = unsafe { (out_handle(hold)?, borrow(tracker)?) };
        let held = tracker.any().prepare_unseen_write(GuestAddr(guest), len_bytes)?;
        new.give(cw_hold { _held: held, _child: tracker.child() });
        Ok(())
    })
}

/// The writes are over. Does nothing for NULL. Any thread may call it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cw_hold_free(hold: *mut cw_hold) {
    // SAFETY: the header's rules.
    drop(unsafe { take_back(hold) });
}
