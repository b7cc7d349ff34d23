//! Writes that the kernel cannot report.
//!
//! The library learns of stores by guest threads by itself. These calls are for
//! announcements by the guest (deferred regions), for writes by the kernel or by
//! others, and for changed mappings. None may be called in a signal handler. They may
//! be called while your own vCPU is pinned, but unpin it around a call that may last.
//!
//! A call for a range answers CW_BAD_RANGE, and does nothing, if the range wraps or if
//! no byte of it lies in a region. A range of no bytes is CW_OK, and nothing is done.
//!
//! # Safety
//!
//! Pointers are used as the header's rules say.
#![allow(unsafe_code)]

use std::mem::MaybeUninit;

use engine::addr::GuestAddr;
use engine::tracker::{Held, MappingChange};

use crate::cache::{Child, cw_cache};
use crate::handle::{borrow, borrow_mut, out_handle, take_back};
use crate::mode::cw_access;
use crate::region::cw_shared_memory;
use crate::status::{Failure, cw_status, guarded};

/// Pages that are held writable for writes that no mode reports.
pub struct cw_hold {
    _held: Held,
    _child: Child,
}

/// A change of mappings in progress.
pub struct cw_mapping_change {
    /// None if it is finished.
    change: Option<MappingChange>,
    _child: Child,
}

/// The guest announces that code may have changed. When this returns, no translation of
/// bytes that were written in a deferred region before the call can be reached. In the
/// other modes it costs a fence, which a guest with explicit_fetch needs.
///
/// If it fails, everything that was asked about counts as written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cw_cache_sync(cache: *const cw_cache) -> cw_status {
    guarded(|| {
        // SAFETY: the header's rules.
        let cache = unsafe { borrow(cache) }?;
        Ok(cache.cache.tracker().sync()?)
    })
}

/// cw_cache_sync() for len_bytes from guest, through whichever view of their memory
/// they were written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cw_cache_sync_range(cache: *const cw_cache, guest: u64, len_bytes: u64) -> cw_status {
    guarded(|| {
        // SAFETY: the header's rules.
        let cache = unsafe { borrow(cache) }?;
        Ok(cache.cache.tracker().sync_range(GuestAddr(guest), len_bytes)?)
    })
}

/// The bytes changed unseen by the tracker (through a mapping of your own, by a
/// debugger, by a device). When this returns, no translation of the pages in the range
/// can be reached, in any mode.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cw_cache_invalidate(cache: *const cw_cache, guest: u64, len_bytes: u64) -> cw_status {
    guarded(|| {
        // SAFETY: the header's rules.
        let cache = unsafe { borrow(cache) }?;
        Ok(cache.cache.tracker().invalidate(GuestAddr(guest), len_bytes)?)
    })
}

/// The kernel is about to write len_bytes from guest for the guest (read, recvmsg, an
/// out parameter of any system call). Until cw_hold_free() the pages are writable, and
/// no block is made from them except one with a self-checking entry, if the policy has
/// checks. Costs next to nothing if the kernel's writes are tracked like the guest's.
/// Without it such a system call may fail with EFAULT in modes sigbus and mprotect.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cw_cache_prepare_kernel_write(
    cache: *const cw_cache,
    guest: u64,
    len_bytes: u64,
    hold: *mut *mut cw_hold,
) -> cw_status {
    guarded(|| {
        // SAFETY: the header's rules.
        let (new, cache) = unsafe { (out_handle(hold)?, borrow(cache)?) };
        let held = cache.cache.tracker().prepare_kernel_write(GuestAddr(guest), len_bytes)?;
        new.give(cw_hold { _held: held, _child: cache.child() });
        Ok(())
    })
}

/// Announces a write to len_bytes from guest for which the kernel delivers no fault in
/// any
/// mode: into pinned pages (io_uring's registered buffers, aio and O_DIRECT in
/// progress), by a debugger, at a thread's end (clear_child_tid, robust lists). As
/// cw_cache_prepare_kernel_write(), in every mode.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cw_cache_prepare_unseen_write(
    cache: *const cw_cache,
    guest: u64,
    len_bytes: u64,
    hold: *mut *mut cw_hold,
) -> cw_status {
    guarded(|| {
        // SAFETY: the header's rules.
        let (new, cache) = unsafe { (out_handle(hold)?, borrow(cache)?) };
        let held = cache.cache.tracker().prepare_unseen_write(GuestAddr(guest), len_bytes)?;
        new.give(cw_hold { _held: held, _child: cache.child() });
        Ok(())
    })
}

/// The writes are over. Does nothing for NULL. Any thread may call it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cw_hold_free(hold: *mut cw_hold) {
    // SAFETY: the header's rules.
    drop(unsafe { take_back(hold) });
}

/// You are about to change the mapping of len_bytes from guest (mmap with MAP_FIXED,
/// munmap, mremap), or to discard its contents (MADV_DONTNEED). When this returns no
/// translation of the range can be reached, and nothing is translated from it until
/// cw_mapping_change_free(). Bounds are rounded to whole pages.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cw_cache_change_mapping(
    cache: *const cw_cache,
    guest: u64,
    len_bytes: u64,
    change: *mut *mut cw_mapping_change,
) -> cw_status {
    guarded(|| {
        // SAFETY: the header's rules.
        let (new, cache) = unsafe { (out_handle(change)?, borrow(cache)?) };
        let change = cache.cache.tracker().change_mapping(GuestAddr(guest), len_bytes)?;
        new.give(cw_mapping_change { change: Some(change), _child: cache.child() });
        Ok(())
    })
}

/// A new mapping is in place, with this access for the guest: tracks it. memory: the
/// memory that the first page of the change shows, if that may be mapped elsewhere too;
/// NULL if it is private. If the range was unmapped or its contents discarded, do not
/// call this: free the change.
///
/// CW_SYSTEM if the mode cannot track the new mapping, CW_BAD_RANGE if the offset in
/// memory is not a multiple of the page size or wraps: nothing can be translated from
/// the pages until a later change of them was finished with CW_OK. CW_BAD_RANGE too if
/// the region was removed meanwhile. The change is over in any case: then only
/// cw_mapping_change_free() may follow.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cw_mapping_change_replaced(
    change: *mut cw_mapping_change,
    access: MaybeUninit<cw_access>,
    memory: *const cw_shared_memory,
) -> cw_status {
    guarded(|| {
        // SAFETY: the header's rules; NULL is allowed for the memory.
        let (change, memory) = unsafe { (borrow_mut(change)?, memory.as_ref()) };
        let access = cw_access::read(access)?;
        let change = change.change.take().ok_or(Failure::bad_argument(c"the change of mappings is over: free it"))?;
        Ok(change.finish_replaced(access, memory.map(|memory| memory.read()))?)
    })
}

/// Ends a change of mappings. Does nothing for NULL. Any thread may call it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cw_mapping_change_free(change: *mut cw_mapping_change) {
    // SAFETY: the header's rules.
    drop(unsafe { take_back(change) });
}

/// Lets self-checking pages that have cooled be protected again, and checks whether regions
/// are still tracked. Call it some times a second, from a timer. It costs next to
/// nothing if there is nothing to do.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cw_maintain(cache: *const cw_cache) -> cw_status {
    guarded(|| {
        // SAFETY: the header's rules.
        unsafe { borrow(cache) }?.moving()?.tracker().maintain();
        Ok(())
    })
}
