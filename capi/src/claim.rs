//! Claims: pages that blocks of your own cache are made from.
//!
//! ```c
//! switch (cw_tracker_claim(tracker, pc, &claim)) {        // protects the page
//! case CW_OK: break;
//! case CW_NEEDS_CHECK: block->compares = true; break;     // only if the policy has checks
//! default: return run_once(pc);                           // CW_BUSY, CW_UNTRACKABLE, ...
//! }
//! if (cw_claim_read(&claim, pc, block->bytes, len) != CW_OK)  // once, and only after the claim
//!     return run_once(pc);
//! cw_claim_add_code(&claim, pc, len);                     // may be left out
//! translate(block);
//! enter(block);                                           // told() finds it, a look-up does not yet
//! if (cw_claim_is_current(&claim))                        // not needed under your lock
//!     allow(block);                                       // now a look-up finds it
//! else
//!     unlink(block);
//! ```
//!
//! If your lock is held from the claim until the block is entered, and around every fault, no
//! write comes between: cw_claim_is_current() is not needed, and a look-up may find the block at
//! once. If not, enter the block so that told() finds it, ask, and only then let it be run: an
//! earlier write ends the claim, a later one finds the block. What told() has killed stays dead,
//! also if allow() comes after it. A number for each page does all of that: take it before the
//! claim, keep it in the block, compare it at each look-up; told() raises it (own_cache.cpp).
//! A lock that is held at the end only does it, too: take it, ask, and enter the block if the claim is
//! current.
//!
//! Claim every page that you read code from, also if the guest may not write it: another
//! mapping of its bytes may be writable (a JIT's writable half). Such a claim is cheap, as one
//! system call protects its read-only neighbours too. Only private memory that the guest may not
//! write needs none, if your own hooks end its blocks when it may be written or is mapped anew.
//! Read the bytes of blocks through their claims (cw_claim_read()): then no claim can be forgotten. A claim covers all declared
//! mappings of its page; a block on two pages has two claims.
//!
//! A store into the running block. Some processors (x86) run the new bytes at the next instruction.
//! If cw_handle_fault() returned true, look whether the block that stored is dead: if so, carry out
//! its store alone and look the next instruction up. That needs the signal of mode sigbus or
//! mprotect. In every mode: told() sets a flag of each vCPU, and blocks ask for it at their entry and
//! behind each store, and leave. A self-checking page does not fault, so end its blocks behind each
//! store, or let them compare there again.
//!
//! Self-checking. A page with the answer CW_NEEDS_CHECK stays writable. Its blocks compare the
//! guest's bytes with those that they were made from at each entry. The guest may store while you
//! translate, so translate from the bytes of one cw_claim_read(), and compare with the same
//! ones: a second reading may differ.
//!
//! CW_BUSY without an interpreter. A write to the page is in progress, or the same store keeps
//! hitting it. Then translate for one run: read the bytes anew (memcpy), end the block behind its
//! first store or system call, run it once, and throw it away. Enter it nowhere, and link no
//! block to it. That is what an interpreter does, and it makes progress however often the page is
//! written. To make it rare choose CW_POLICY_ADAPTIVE_WITH_CHECKS: with CW_POLICY_ADAPTIVE a page
//! that the same store keeps hitting is busy for 32 ms at a time, with checks it becomes
//! self-checking. Then, under one lock, a claim is busy only while a hold lasts.
//!
//! ```c
//! for (;;) {
//!     struct block *block = find(pc);
//!     if (!block && !(block = translate(pc)))            // CW_BUSY, CW_UNTRACKABLE
//!         block = translate_for_one_run(pc);
//!     pc = run(block);
//!     if (block->runs_once)
//!         free(block);
//! }
//! ```
//!
//! # Safety
//!
//! Pointers are used as the header's rules say. A claim names its tracker, which lives.
#![allow(unsafe_code)]

use std::ffi::c_void;
use std::{ptr, slice};

use engine::addr::GuestAddr;
use engine::tracker::BeginError;
use libc::size_t;

use crate::code_page::{Claimed, Codes};
use crate::handle::{borrow, out};
use crate::status::{Failure, cw_status, fail, guarded};
use crate::tracker::{UNDER_GUARD, cw_tracker};

/// A page that was claimed: a value, which you may copy and need not free. Its fields are the
/// library's, except page.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct cw_claim {
    /// NULL if the claim failed.
    pub tracker: *const cw_tracker,
    /// The first byte of the page for the guest.
    pub page: u64,
    /// Names the page's blocks until they are reported.
    pub stamp: u64,
    /// The same of its bytes at other addresses.
    pub shared_stamp: u64,
}

const NO_CLAIM: cw_claim = cw_claim { tracker: ptr::null(), page: 0, stamp: 0, shared_stamp: 0 };

impl cw_claim {
    /// # Safety
    ///
    /// See the module's head.
    unsafe fn codes<'a>(&self) -> Result<&'a Codes, Failure> {
        // SAFETY: this function's contract.
        let tracker = unsafe { self.tracker.as_ref() };
        let tracker = tracker.ok_or(Failure::bad_argument(c"the claim failed: it is of no page"))?;
        if tracker.stands_still_here() {
            return Err(UNDER_GUARD);
        }
        tracker.codes()
    }

    fn is_current(&self, codes: &Codes) -> bool {
        codes.is_current(GuestAddr(self.page), self.stamp, self.shared_stamp)
    }

    /// The offsets of `len_bytes` at `guest` in the page.
    fn offsets(&self, codes: &Codes, guest: u64, len_bytes: size_t) -> Result<std::ops::Range<usize>, Failure> {
        let page_bytes = codes.tracker().page_size().bytes();
        match usize::try_from(guest.wrapping_sub(self.page)) {
            Ok(first) if first < page_bytes && len_bytes <= page_bytes - first => Ok(first..first + len_bytes),
            _ => Err(Failure::new(cw_status::CW_BAD_RANGE, c"a claim is of one page: claim each page of the bytes")),
        }
    }
}

/// Protects the page that holds guest, and every page that is known to show the same bytes.
/// From now on its bytes may be read, each of them once.
///
/// After CW_OK and CW_NEEDS_CHECK the page is claimed. After any other answer it is not, and
/// claim is of no page. The next step after each answer:
///
/// CW_OK: read the page's bytes.
/// CW_NEEDS_CHECK: the same, and the block compares its bytes at each entry. Only if the policy
/// has checks.
/// CW_BUSY: a write to the page is in progress or announced. Interpret, or translate for one run
/// (see above).
/// CW_UNTRACKABLE: no mapping is there, or one that the region's mode cannot track. The same;
/// or track it by other means. The answer costs no system call.
/// CW_BAD_RANGE: no region holds guest. Add the region, or interpret.
/// CW_TRACKING_LOST, CW_SYSTEM, CW_NO_MEMORY, CW_IN_FORK_CHILD: as for cw_ticket_claim().
/// CW_BAD_ARGUMENT: NULL, a cache's tracker, or this thread holds the guard of a fork.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cw_tracker_claim(tracker: *const cw_tracker, guest: u64, claim: *mut cw_claim) -> cw_status {
    let mut needs_check = false;
    let claimed = guarded(|| {
        // SAFETY: the header's rules.
        let claim = unsafe { out(claim) }?.write(NO_CLAIM);
        // SAFETY: the header's rules.
        let Claimed { page, stamp, shared_stamp, is_self_checking } =
            unsafe { borrow(tracker) }?.codes()?.claim(GuestAddr(guest))?;
        needs_check = is_self_checking;
        *claim = cw_claim { tracker, page: page.0, stamp, shared_stamp };
        Ok(())
    });
    if claimed == cw_status::CW_OK && needs_check {
        return fail(Failure::new(
            cw_status::CW_NEEDS_CHECK,
            c"the page stays writable: its blocks compare their bytes at each entry",
        ));
    }
    claimed
}

/// Copies len_bytes at guest, which lie on the claimed page, into your buffer. It is one
/// snapshot for the block: each byte is read once, an aligned word of 8, 4 or 2 bytes whole.
/// So read all that you need of a page, the whole of it if you do not know yet, in one call.
///
/// CW_WRITTEN: the claim is not current, as cw_claim_is_current() tells. Claim again, or translate for one run.
/// CW_BAD_RANGE: not all of the bytes lie on the page, or the guest may not read it (CW_ACCESS_NONE).
/// CW_BAD_ARGUMENT: NULL, or the claim failed.
/// Other answers are those of a claim.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cw_claim_read(
    claim: *const cw_claim,
    guest: u64,
    buffer: *mut c_void,
    len_bytes: size_t,
) -> cw_status {
    guarded(|| {
        // SAFETY: the header's rules.
        let claim = unsafe { borrow(claim) }?;
        // SAFETY: the header's rules.
        let codes = unsafe { claim.codes() }?;
        claim.offsets(codes, guest, len_bytes)?;
        if buffer.is_null() {
            return Err(Failure::bad_argument(c"the buffer must not be NULL"));
        }
        // SAFETY: C's buffer has as many bytes; any bytes are bytes.
        let into = unsafe {
            buffer.cast::<u8>().write_bytes(0, len_bytes);
            slice::from_raw_parts_mut(buffer.cast::<u8>(), len_bytes)
        };
        const WRITTEN: Failure =
            Failure::new(cw_status::CW_WRITTEN, c"a write came since the page was claimed: claim it again");
        // Otherwise this would protect the page anew.
        if !claim.is_current(codes) {
            return Err(WRITTEN);
        }
        codes.read(GuestAddr(guest), into).map_err(|error| match error {
            BeginError::Busy(_) => WRITTEN,
            error => error.into(),
        })?;
        if claim.is_current(codes) { Ok(()) } else { Err(WRITTEN) }
    })
}

/// Declares that a block is made from len_bytes at guest, which lie on the claimed page.
/// Call it before the block is entered.
///
/// Then stores to other bytes of the page are data: if the policy has checks they make the page
/// self-checking instead of stale. And pages with declared code are opened and protected in
/// batches. Without it every byte of the page belongs to the block.
///
/// CW_BAD_RANGE: not all of the bytes lie on the page. A block on two pages calls it for each part.
/// CW_BAD_ARGUMENT: NULL, or the claim failed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cw_claim_add_code(claim: *const cw_claim, guest: u64, len_bytes: size_t) -> cw_status {
    guarded(|| {
        // SAFETY: the header's rules.
        let claim = unsafe { borrow(claim) }?;
        // SAFETY: the header's rules.
        let codes = unsafe { claim.codes() }?;
        let bytes = claim.offsets(codes, guest, len_bytes)?;
        codes.add_code(GuestAddr(claim.page), bytes);
        Ok(())
    })
}

/// Whether told() was not called for the page since it was claimed, and the region is there.
/// False for a claim that failed, and for NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cw_claim_is_current(claim: *const cw_claim) -> bool {
    // SAFETY: the header's rules.
    let Ok(claim) = (unsafe { borrow(claim) }) else { return false };
    // SAFETY: a claim names its tracker, which lives.
    let codes = unsafe { claim.tracker.as_ref() }.and_then(|tracker| tracker.codes().ok());
    codes.is_some_and(|codes| claim.is_current(codes))
}
