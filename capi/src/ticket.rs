//! Tickets: a translation in progress.
//!
//! ```c
//! cw_cache_begin(cache, pc, &ticket);
//! cw_ticket_claim(ticket, pc, NULL);                    // protects the page
//! ... read the guest's bytes, each once, translate ...
//! cw_ticket_add_source(ticket, pc, bytes, len);         // the bytes that it is made from
//! cw_ticket_commit(ticket, entry, 0, payload, destroy); // reachable, or CW_WRITTEN
//! cw_ticket_free(ticket);                               // in any case
//! ```
//!
//! A ticket belongs to one thread at a time. After a commit, or a revival that found a
//! block, it is spent: then only cw_ticket_free() may follow. A ticket that is freed
//! before leaves nothing behind.
//!
//! # Safety
//!
//! Pointers are used as the header's rules say.
#![allow(unsafe_code)]

use std::ffi::c_void;
use std::{ptr, slice};

use engine::addr::GuestAddr;
use engine::{Entry, Key, StaleFlag, Ticket};
use libc::size_t;

use crate::cache::cw_cache;
use crate::code_buffer::cw_allocation;
use crate::handle::{borrow, borrow_mut, out, out_handle, take_back};
use crate::link::cw_link;
use crate::payload::{Kept, Owned};
use crate::status::{Failure, cw_status, guarded};
use crate::tracker::Child;

/// The stale flag of a valid block: go on.
pub const CW_STALE_VALID: u8 = 0;
/// The block is dead: leave right after the store.
pub const CW_STALE_DEAD: u8 = 1;
/// The block's page is writable: leave after a store that may have hit the block's own
/// bytes.
pub const CW_STALE_CHECKED: u8 = 2;
/// The same, and the bytes have other addresses too: leave after any store.
pub const CW_STALE_CHECKED_SHARED: u8 = 3;
/// A commit is in progress: as for a dead one.
pub const CW_STALE_PENDING: u8 = 4;

const _: () = assert!(
    CW_STALE_VALID == StaleFlag::VALID
        && CW_STALE_DEAD == StaleFlag::DEAD
        && CW_STALE_CHECKED == StaleFlag::CHECKED
        && CW_STALE_CHECKED_SHARED == StaleFlag::CHECKED_SHARED
        && CW_STALE_PENDING == StaleFlag::PENDING
);

/// A translation in progress.
pub struct cw_ticket {
    /// None if it is spent.
    ticket: Option<Ticket<Owned>>,
    kept: Vec<Kept>,
    payload_bytes: size_t,
    /// The bytes of the allocations among `kept`.
    kept_bytes: size_t,
    /// A cw_ticket_add_source() failed: the block has bytes that the ticket does not
    /// know.
    is_misread: bool,
    _child: Child,
}

const SPENT: Failure = Failure::bad_argument(c"the ticket is spent: it was committed or revived; begin another one");

impl cw_ticket {
    fn open(&self) -> Result<&Ticket<Owned>, Failure> {
        self.ticket.as_ref().ok_or(SPENT)
    }

    fn open_mut(&mut self) -> Result<&mut Ticket<Owned>, Failure> {
        self.ticket.as_mut().ok_or(SPENT)
    }

    /// The ticket, which is spent from now on.
    fn spend(&mut self) -> Result<Ticket<Owned>, Failure> {
        let ticket = self.ticket.take().ok_or(SPENT)?;
        if self.is_misread {
            return Err(Failure::bad_argument(
                c"cw_ticket_add_source() failed, and the ticket does not know what its block is made from: begin another one",
            ));
        }
        Ok(ticket)
    }
}

/// Begins a translation that will be found by key.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cw_cache_begin(cache: *const cw_cache, key: u64, ticket: *mut *mut cw_ticket) -> cw_status {
    guarded(|| {
        // SAFETY: the header's rules.
        let (new, cache) = unsafe { (out_handle(ticket)?, borrow(cache)?) };
        let ticket = Some(cache.cache.begin(Key::new(key)));
        new.give(cw_ticket {
            ticket,
            kept: Vec::new(),
            payload_bytes: 0,
            kept_bytes: 0,
            is_misread: false,
            _child: cache.child(),
        });
        Ok(())
    })
}

/// Protects the page that holds guest, if this ticket has not yet, and every page that
/// is known to show the same bytes. From now on its bytes may be read, each of them
/// once: in a deferred region a second reading may differ.
///
/// host_page: if it is not NULL, receives the page's address in this process.
///
/// Unless the answer is CW_OK this page is not claimed. Earlier claims of the ticket
/// stay, and the ticket may be used as before. The next step after each answer:
///
/// CW_OK: read the page's bytes.
/// CW_BUSY: a write to the page is in progress or announced. Interpret, and claim it later, by
/// this ticket or another one.
/// CW_BAD_RANGE: no region holds guest. Add the region, or interpret.
/// CW_TRACKING_LOST: the kernel no longer tracks the region. Interpret, or take the region
/// away and add it again (cw_tracker_remove_region(), cw_tracker_add_region()).
/// CW_SYSTEM, CW_NO_MEMORY: the kernel did not protect the page; the message names
/// the remedy. Interpret; a later claim asks the kernel again, or answers CW_TRACKING_LOST.
/// CW_IN_FORK_CHILD: the fork that made this process was not announced, and the mode has a
/// userfaultfd, which is the parent's. Interpret; later claims are CW_TRACKING_LOST.
/// CW_BAD_ARGUMENT: the ticket is NULL or spent. Begin another one.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cw_ticket_claim(
    ticket: *mut cw_ticket,
    guest: u64,
    host_page: *mut *const c_void,
) -> cw_status {
    guarded(|| {
        // SAFETY: the header's rules.
        let ticket = unsafe { borrow_mut(ticket) }?;
        let page = ticket.open_mut()?.claim(GuestAddr(guest))?;
        // SAFETY: the header's rules; NULL is allowed.
        if let Ok(host_page) = unsafe { out(host_page) } {
            host_page.write(page.start().as_ptr().cast_const().cast());
        }
        Ok(())
    })
}

/// Declares that the block is made from these bytes, which were read at guest after the
/// pages there were claimed. Call it for each piece of the guest's code, in the same
/// order each time that the same code is translated. The bytes are copied: pass the
/// bytes that you read, not the guest's memory, which may have changed.
///
/// With it, a write to other bytes of the pages is a data write, which may leave the
/// block, and the block can be revived. Without it, every byte of the pages belongs to
/// the block. Code that depends on anything but the key and these bytes must not call
/// it.
///
/// CW_BAD_RANGE if a page of the range was not claimed or the range wraps,
/// CW_BAD_ARGUMENT if bytes is NULL or there are none. After any failure the ticket
/// makes no block any more: begin another one.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cw_ticket_add_source(
    ticket: *mut cw_ticket,
    guest: u64,
    bytes: *const c_void,
    len_bytes: size_t,
) -> cw_status {
    guarded(|| {
        // SAFETY: the header's rules.
        let ticket = unsafe { borrow_mut(ticket) }?;
        ticket.open()?;
        // True until it is known that nothing failed.
        let was_misread = std::mem::replace(&mut ticket.is_misread, true);
        if bytes.is_null() || len_bytes == 0 || len_bytes > isize::MAX as usize {
            return Err(Failure::bad_argument(c"a block is made from one byte at least, and its address is not NULL"));
        }
        // SAFETY: `len_bytes` bytes of C's own that do not change meanwhile, as this
        // function asks.
        let bytes = unsafe { slice::from_raw_parts(bytes.cast::<u8>(), len_bytes) };
        ticket.open_mut()?.add_source(GuestAddr(guest), bytes)?;
        ticket.is_misread = was_misread;
        Ok(())
    })
}

/// Records every other input of the translation, as one number that you make: a retained
/// block with another number is not revived. The default is 0.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cw_ticket_set_options(ticket: *mut cw_ticket, options: u64) -> cw_status {
    guarded(|| {
        // SAFETY: the header's rules.
        unsafe { borrow_mut(ticket) }?.open_mut()?.set_options(options);
        Ok(())
    })
}

/// Declares how many bytes of memory the payload owns, in addition to the allocations
/// that the block keeps. They count against cw_cache_set_limit().
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cw_ticket_set_payload_bytes(ticket: *mut cw_ticket, payload_bytes: size_t) -> cw_status {
    guarded(|| {
        // SAFETY: the header's rules.
        let ticket = unsafe { borrow_mut(ticket) }?;
        ticket.open()?;
        ticket.payload_bytes = payload_bytes;
        Ok(())
    })
}

/// Gives an allocation to the block. It is freed with the block, when no vCPU can be
/// inside, or with the ticket if that is not committed. If this returns CW_OK the
/// handle is gone; its addresses stay. It counts against cw_cache_set_limit().
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cw_ticket_keep_allocation(
    ticket: *mut cw_ticket,
    allocation: *mut cw_allocation,
) -> cw_status {
    guarded(|| {
        // SAFETY: the header's rules.
        let ticket = unsafe { borrow_mut(ticket) }?;
        ticket.open()?;
        // SAFETY: the header's rules: the handle is taken.
        let allocation = unsafe { take_back(allocation) };
        let allocation = allocation.ok_or(Failure::bad_argument(c"the allocation must not be NULL"))?.0;
        ticket.kept_bytes = ticket.kept_bytes.saturating_add(allocation.len());
        ticket.kept.push(Kept::Allocation(allocation));
        Ok(())
    })
}

/// Gives a link to the block whose code jumps through its cell. It is freed with the
/// block, or with the ticket if that is not committed. If this returns CW_OK the handle
/// is gone.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cw_ticket_keep_link(ticket: *mut cw_ticket, link: *mut cw_link) -> cw_status {
    guarded(|| {
        // SAFETY: the header's rules.
        let ticket = unsafe { borrow_mut(ticket) }?;
        ticket.open()?;
        // SAFETY: the header's rules: the handle is taken.
        let link = unsafe { take_back(link) };
        let link = link.ok_or(Failure::bad_argument(c"the link must not be NULL"))?.0;
        ticket.kept.push(Kept::Link { _link: link });
        Ok(())
    })
}

/// Whether the block needs a self-checking entry, because a claimed page is written to
/// all the time and stays writable. If it needs none, a page may still become
/// self-checking later. False for a spent ticket.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cw_ticket_needs_check(ticket: *const cw_ticket) -> bool {
    // SAFETY: the header's rules.
    unsafe { borrow(ticket) }.and_then(cw_ticket::open).is_ok_and(Ticket::needs_check)
}

/// Whether no write came since the pages were claimed. Otherwise a commit would be
/// refused. False for a spent ticket.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cw_ticket_is_current(ticket: *const cw_ticket) -> bool {
    // SAFETY: the header's rules.
    unsafe { borrow(ticket) }.and_then(cw_ticket::open).is_ok_and(Ticket::is_current)
}

/// The block's stale flag: a byte that is CW_STALE_VALID while the block is valid and
/// entered by its plain entry, and otherwise another CW_STALE_ value. Emitted code that
/// may store to its own bytes polls it after stores, and leaves the block if it is not
/// CW_STALE_VALID. It lives as long as the block's payload. NULL for a spent ticket.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cw_ticket_stale_flag(ticket: *mut cw_ticket) -> *const u8 {
    // SAFETY: the header's rules.
    unsafe { borrow_mut(ticket) }.and_then(cw_ticket::open_mut).map_or(ptr::null(), Ticket::stale_flag)
}

/// Looks for a retained block of the same key, made from the same bytes
/// (cw_ticket_add_source(), called for all of them before) with the same options. Makes
/// it reachable again, unless such a block is reachable already.
///
/// revived: receives true if such a block is reachable now: there is nothing to
/// translate, and the ticket is spent. Otherwise translate, and commit.
///
/// CW_WRITTEN: a write came since a page was claimed. The ticket is spent: begin again.
/// CW_BAD_ARGUMENT: cw_ticket_add_source() failed, and the ticket is spent; or it was before.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cw_ticket_revive(ticket: *mut cw_ticket, revived: *mut bool) -> cw_status {
    guarded(|| {
        // SAFETY: the header's rules.
        let (ticket, revived) = unsafe { (borrow_mut(ticket)?, out(revived)?) };
        revived.write(false);
        ticket.ticket = ticket.spend()?.revive()?;
        revived.write(ticket.ticket.is_none());
        Ok(())
    })
}

/// Makes the block reachable: lookups of its key and links to it lead to plain until a
/// write to its bytes arrives. It supersedes a block of the same key. The ticket is
/// spent after any answer.
///
/// plain: the address of the block's code.
/// checked: the address of the self-checking entry: code that first compares the guest's
/// bytes with the bytes that the block was made from. If they are the same, it goes on
/// like the plain entry. If not, it goes back to the dispatcher, which calls
/// cw_cache_remove(). 0 if there is none. The two differ from each other, from both stubs
/// and from 0.
///
/// payload, destroy: the data that the block owns; both may be NULL. destroy(payload)
/// is called once after any answer: when no vCPU can be inside the block any more and
/// it is not retained for cw_ticket_revive(). For a block that was refused that may be
/// before the return. Any thread that is in a call of this library may call it, never
/// in a signal handler. It must not call the library except to free links and
/// allocations, nor unwind or longjmp.
///
/// CW_WRITTEN: a write came since a page was claimed: begin again, or interpret.
/// CW_NEEDS_CHECK: cw_ticket_needs_check() is true, and there is no self-checking entry.
/// CW_BAD_ARGUMENT: no page was claimed, cw_ticket_add_source() failed, an address or the
/// key cannot be used, or an allocation that the block keeps was never published
/// (cw_allocation_publish()).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cw_ticket_commit(
    ticket: *mut cw_ticket,
    plain: usize,
    checked: usize,
    payload: *mut c_void,
    destroy: Option<unsafe extern "C" fn(payload: *mut c_void)>,
) -> cw_status {
    guarded(|| {
        // First: it is taken over even if the call fails.
        let owned = Owned::new(payload, destroy);
        // SAFETY: the header's rules.
        let ticket = unsafe { borrow_mut(ticket) }?;
        let mut open = ticket.spend()?;
        if plain == 0 {
            return Err(Failure::bad_argument(c"the plain entry must not be 0"));
        }
        let entry = if checked == 0 { Entry::plain(plain) } else { Entry::with_check(plain, checked) };
        let kept = std::mem::take(&mut ticket.kept);
        for kept in &kept {
            if let Kept::Allocation(allocation) = kept
                && !allocation.is_empty()
            {
                allocation.entry(0)?;
            }
        }
        open.set_payload_bytes(ticket.payload_bytes.saturating_add(ticket.kept_bytes));
        Ok(open.commit(entry, owned.keeps(kept))?)
    })
}

/// Frees a ticket, spent or not. Does nothing for NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cw_ticket_free(ticket: *mut cw_ticket) {
    // SAFETY: the header's rules.
    drop(unsafe { take_back(ticket) });
}
