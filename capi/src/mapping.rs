//! Mappings that come, go and change, and memory with several of them.
//!
//! If you change a mapping in a region, call the library before and after:
//!
//! ```c
//! cw_tracker_unmap(tracker, guest, len);              // before: none of its blocks is reachable
//! mmap(..., MAP_FIXED, ...);
//! cw_tracker_map(tracker, guest, len, access, NULL);  // after: what is there now is tracked
//! ```
//!
//! Between the two a claim of the range answers CW_UNTRACKABLE. So when the new bytes are there
//! no thread runs a block of the old ones, or makes one. If nothing was mapped before, the second
//! call is enough. If nothing is mapped afterwards (munmap), the first one is. If your system
//! call failed, tell by cw_tracker_map() what is there still.
//!
//! cw_tracker_protect(), cw_tracker_discard() and cw_tracker_move() carry the guest's system call
//! out themselves. If the kernel refuses it, they answer CW_SYSTEM with its errno, and the mapping
//! is tracked as before.
//!
//! Bounds are rounded to whole pages.
//!
//! # Safety
//!
//! Pointers are used as the header's rules say. System calls act on the memory of regions, which C
//! gave for that.
#![allow(unsafe_code)]

use std::ffi::{c_int, c_void};
use std::io;
use std::mem::MaybeUninit;

use engine::addr::GuestAddr;
use engine::error::Error;
use engine::tracker::MovedFrom;

use crate::handle::borrow;
use crate::mode::cw_access;
use crate::region::cw_shared_memory;
use crate::status::{Failure, cw_status, guarded};
use crate::tracker::{AnyTracker, cw_tracker};

/// The mapping of len_bytes from guest is about to go, or another one is about to take its
/// place. When this returns no block of the range can be reached, and none is made until
/// cw_tracker_map(): a claim answers CW_UNTRACKABLE. The range is yours: unmap it, reserve it
/// (PROT_NONE), or use it for yourself.
///
/// CW_BAD_RANGE, and nothing is done, if the range wraps or no byte of it lies in a region.
/// After another failure no block can be reached either.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cw_tracker_unmap(tracker: *const cw_tracker, guest: u64, len_bytes: u64) -> cw_status {
    guarded(|| {
        // SAFETY: the header's rules.
        let tracker = unsafe { borrow(tracker) }?.any();
        Ok(tracker.change_mapping(GuestAddr(guest), len_bytes)?.finish_unmapped()?)
    })
}

/// A mapping is in place now at len_bytes from guest, with this access for the guest: tracks
/// it. memory: the memory that its first page shows, if that may be mapped elsewhere too; NULL if
/// it is private. What was there before counts as gone.
///
/// CW_UNTRACKABLE if the mode cannot track the mapping, or another userfaultfd does: a claim there answers
/// the same until another mapping comes; parts that can be tracked are. CW_BAD_RANGE if the offset in
/// memory is not a multiple of the page size or wraps: then nothing is tracked there. CW_BAD_RANGE too, and nothing is done, if the range
/// wraps or no byte of it lies in a region.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cw_tracker_map(
    tracker: *const cw_tracker,
    guest: u64,
    len_bytes: u64,
    access: MaybeUninit<cw_access>,
    memory: *const cw_shared_memory,
) -> cw_status {
    guarded(|| {
        // SAFETY: the header's rules; NULL is allowed for the memory.
        let (tracker, memory) = unsafe { (borrow(tracker)?.any(), memory.as_ref()) };
        let access = cw_access::read(access)?;
        let change = tracker.change_mapping(GuestAddr(guest), len_bytes)?;
        change.finish_replaced(access, memory.map(|memory| memory.read())).map_err(|error| match error {
            Error::System { .. } | Error::AlreadyTracked { .. } => untrackable(&error),
            error => error.into(),
        })
    })
}

/// Carries out the guest's mprotect of len_bytes from guest. The tracking's protection stays,
/// and no block dies. CW_BAD_RANGE, and nothing is done, if the range wraps or not all of its
/// pages lie in regions and are tracked: carry it out yourself on those that are
/// CW_UNTRACKABLE. Try each half of the range to find them.
/// Mode mprotect does not ask the kernel about pages that it protects itself: if they may never be written
/// (a file that was opened for reading) a store is refused, and tracking is lost.
///
/// If the guest may no longer run the pages, or read them, call cw_tracker_unmap() before and
/// cw_tracker_map() after your own mprotect instead, or end their blocks yourself.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cw_tracker_protect(
    tracker: *const cw_tracker,
    guest: u64,
    len_bytes: u64,
    access: MaybeUninit<cw_access>,
) -> cw_status {
    guarded(|| {
        // SAFETY: the header's rules.
        let tracker = unsafe { borrow(tracker) }?.any();
        Ok(tracker.set_access(GuestAddr(guest), len_bytes, cw_access::read(access)?)?)
    })
}

/// Carries out the guest's madvise(len_bytes from guest, advice), for advice that changes
/// contents: MADV_DONTNEED, MADV_REMOVE, MADV_FREE. No block of the range can be reached from
/// before the call on, and none is made until it is over. MADV_FREE frees at once: the kernel
/// would do so later, without notice.
///
/// CW_BAD_RANGE, and nothing is done, if the range wraps or does not lie in one region.
/// CW_BAD_ARGUMENT, and nothing is done, for MADV_MERGEABLE, by which protection is lost (it is a hint:
/// leave it out), and for MADV_GUARD_INSTALL: call cw_tracker_unmap() before your own.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cw_tracker_discard(
    tracker: *const cw_tracker,
    guest: u64,
    len_bytes: u64,
    advice: c_int,
) -> cw_status {
    guarded(|| {
        // SAFETY: the header's rules.
        let tracker = unsafe { borrow(tracker) }?.any();
        match advice {
            libc::MADV_MERGEABLE => {
                return Err(Failure::bad_argument(c"pages that are merged lose their protection: leave this hint out"));
            }
            MADV_GUARD_INSTALL => {
                return Err(Failure::bad_argument(
                    c"guard pages cannot be read: call cw_tracker_unmap(), and madvise yourself",
                ));
            }
            _ => {}
        }
        let (host, len) = host_pages(tracker, guest, len_bytes)?;
        let _change = tracker.change_mapping(GuestAddr(guest), len_bytes)?;
        let advised = advise(host, len, advice);
        if advice == libc::MADV_FREE {
            free_now(host, len, tracker.page_size().bytes(), &advised)?;
        }
        advised
    })
}

/// Of Linux 6.13; libc does not name it.
const MADV_GUARD_INSTALL: c_int = 102;

fn advise(host: *mut c_void, len: usize, advice: c_int) -> Result<(), Failure> {
    // SAFETY: guest memory, and no reference to it.
    match unsafe { libc::madvise(host, len, advice) } {
        0 => Ok(()),
        _ => Err(refused("madvise", host, len)),
    }
}

/// MADV_FREE was carried out, on a part of the pages if it failed: the kernel may discard these at any later
/// time, without notice. It succeeds on private anonymous memory alone, for which this is right.
fn free_now(host: *mut c_void, len: usize, page_bytes: usize, advised: &Result<(), Failure>) -> Result<(), Failure> {
    if advised.is_ok() {
        return advise(host, len, libc::MADV_DONTNEED);
    }
    for offset in (0..len).step_by(page_bytes) {
        let page = host.wrapping_byte_add(offset);
        if advise(page, page_bytes, libc::MADV_FREE).is_ok() {
            advise(page, page_bytes, libc::MADV_DONTNEED)?;
        }
    }
    Ok(())
}

/// Carries out the guest's mremap: the mapping of from_bytes at from is at to afterwards, with
/// to_bytes. Blocks of both ranges can be reached no more; access and declared memory move along.
/// flags: MREMAP_DONTUNMAP, or 0; where to differs from from the kernel is told to put it there
/// (MREMAP_FIXED). If to is from, it grows or shrinks in its place. If from has a hole
/// (Linux 6.17), what was at to there stays mapped, and is not tracked: cw_tracker_map() it.
///
/// CW_BAD_RANGE, and nothing is done, if a range wraps or does not lie in one region, or to
/// begins inside a page. CW_BAD_ARGUMENT for another flag, and for a from_bytes of 0, which makes a second
/// mapping of shared memory: carry that out yourself, and call cw_tracker_map() with the memory that from
/// was declared to show. (If it was not, give it a number of yours, and declare from as well:
/// cw_shared_number(), cw_tracker_declare_shared().) CW_UNTRACKABLE if the mapping was moved but
/// a part of it that was tracked cannot be at its new place: a claim there answers the same.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cw_tracker_move(
    tracker: *const cw_tracker,
    from: u64,
    from_bytes: u64,
    to: u64,
    to_bytes: u64,
    flags: c_int,
) -> cw_status {
    guarded(|| {
        // SAFETY: the header's rules.
        let tracker = unsafe { borrow(tracker) }?.any();
        let left = match flags {
            0 => MovedFrom::Unmapped,
            libc::MREMAP_DONTUNMAP => MovedFrom::Mapped,
            _ => return Err(Failure::bad_argument(c"the flags of a move are MREMAP_DONTUNMAP or 0")),
        };
        if from_bytes == 0 || to_bytes == 0 {
            return Err(Failure::bad_argument(c"a move is of one byte at least"));
        }
        let page_mask = tracker.page_size().bytes() as u64 - 1;
        if (from | to) & page_mask != 0 {
            return Err(Failure::new(cw_status::CW_BAD_RANGE, c"a mapping starts on a page"));
        }
        let (old, old_len) = host_pages(tracker, from, from_bytes)?;
        let (new, new_len) = host_pages(tracker, to, to_bytes)?;
        let target = tracker.change_mapping(GuestAddr(to), to_bytes)?;
        let source = tracker.change_mapping(GuestAddr(from), from_bytes)?.moving()?;
        let fixed = if from == to { 0 } else { libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED };
        // SAFETY: guest memory, and no reference to it.
        let moved = unsafe { libc::mremap(old, old_len, new_len, flags | fixed, new) };
        if moved == libc::MAP_FAILED {
            return Err(refused("mremap", old, old_len));
        }
        // The guest's call has succeeded. No failure from here on may be taken for its failure.
        let tracked = target.finish_moved(source, left);
        tracked.map_err(|error| untrackable(&error))
    })
}

/// The guest's mapping is there, and cannot be tracked.
fn untrackable(why: &Error) -> Failure {
    Failure::told(cw_status::CW_UNTRACKABLE, &why.to_string())
}

/// The place of a range in this process, in whole pages of one region.
fn host_pages(tracker: &dyn AnyTracker, guest: u64, len_bytes: u64) -> Result<(*mut c_void, usize), Failure> {
    let page_bytes = tracker.page_size().bytes() as u64;
    let offset = guest % page_bytes;
    let len = len_bytes.checked_add(offset).and_then(|len| len.checked_next_multiple_of(page_bytes));
    let found = tracker.host_from(GuestAddr(guest));
    let within = found.zip(len).filter(|(host, len)| *len <= host.len() as u64);
    let (host, len) =
        within.ok_or(Failure::new(cw_status::CW_BAD_RANGE, c"the range does not lie in one tracked region"))?;
    Ok((host.start().as_ptr().cast(), len as usize))
}

/// The kernel refused a call for the guest.
fn refused(call: &'static str, at: *mut c_void, len: usize) -> Failure {
    let errno = io::Error::last_os_error().raw_os_error().unwrap_or(0);
    Error::System { call, start: at.addr(), len, errno }.into()
}

/// Declares that len_bytes from guest, in a region and mapped already, show memory that
/// may be mapped elsewhere too. Then a store through any declared mapping reaches the
/// blocks of all. If memory has several mappings, declare each of them before the guest
/// can store to it. (cw_tracker_map() declares too.) While one of them lies where nothing is mapped, the others
/// cannot be claimed (CW_UNTRACKABLE). CW_BAD_RANGE, and nothing is done, if the range or the offset is
/// not whole pages or wraps, or if not all of the range lies in regions.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cw_tracker_declare_shared(
    tracker: *const cw_tracker,
    guest: u64,
    len_bytes: u64,
    memory: cw_shared_memory,
) -> cw_status {
    guarded(|| {
        // SAFETY: the header's rules.
        let tracker = unsafe { borrow(tracker) }?.any();
        Ok(tracker.declare_shared(GuestAddr(guest), len_bytes, memory.read())?)
    })
}
