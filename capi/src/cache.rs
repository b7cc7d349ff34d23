//! The cache: finds translated code by key, and never gives stale code.
//!
//! A key is the guest's pc and any other guest state that a block depends on, in one
//! number that you make; UINT64_MAX is not a key. One cache has all regions (by its
//! tracker) and all vCPUs of a guest. Any thread may call a function that takes a const cw_cache at any
//! time, except in a signal handler and while another thread frees the cache.
//!
//! # Safety
//!
//! Pointers are used as the header's rules say.
#![allow(unsafe_code)]

use std::mem::MaybeUninit;

use engine::{CodeCache, EntryStubs, Key, MemoryLimit};
use libc::size_t;

use crate::handle::{borrow, filled_in, out_handle, take_back};
use crate::payload::Owned;
use crate::policy::cw_policy;
use crate::status::{Failure, cw_status, guarded};
use crate::tracker::{Child, UNDER_GUARD, cw_tracker};

/// The options of a new cache. cw_cache_options_default() gives options for blocks that
/// are never jumped to through entry cells.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct cw_cache_options {
    /// sizeof(cw_cache_options).
    pub size_bytes: size_t,
    /// The address in the entry cell of a dead block: your code that goes back to the
    /// dispatcher.
    pub dead_stub: usize,
    /// The address in the entry cell of a block that is being committed: code that does
    /// the same, at another address.
    pub pending_stub: usize,
    /// How each page's translations are kept true.
    pub policy: MaybeUninit<cw_policy>,
}

/// A cache of translated code.
pub struct cw_cache {
    pub(crate) cache: CodeCache<Owned>,
    pub(crate) stubs: EntryStubs,
    /// It also counts the C objects that must be freed before the cache.
    pub(crate) tracker: cw_tracker,
}

impl cw_cache {
    /// The cache, for a call that has no error in Rust. Under this thread's own fork
    /// guard such a call would wait for ever, so this fails then.
    pub(crate) fn moving(&self) -> Result<&CodeCache<Owned>, Failure> {
        if self.cache.stands_still_here() { Err(UNDER_GUARD) } else { Ok(&self.cache) }
    }

    pub(crate) fn child(&self) -> Child {
        self.tracker.child()
    }
}

/// An empty cache without regions. Free it with cw_cache_free().
///
/// CW_BAD_ARGUMENT if the two stubs are equal.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cw_cache_new(options: *const cw_cache_options, cache: *mut *mut cw_cache) -> cw_status {
    guarded(|| {
        // SAFETY: the header's rules; any bits are options.
        let (new, options) = unsafe { (out_handle(cache)?, filled_in(options)?) };
        let cw_cache_options { dead_stub: dead, pending_stub: pending, policy: raw, .. } = options;
        let stubs = EntryStubs { dead, pending };
        let cache = CodeCache::with_policy(stubs, cw_policy::read(raw)?)?;
        new.give(cw_cache { tracker: cw_tracker::of_cache(cache.clone()), cache, stubs });
        Ok(())
    })
}

/// Stops tracking every region, calls the destructor of every remaining payload, and
/// frees the cache. Then guest memory may be unmapped. Does nothing for NULL.
///
/// CW_IN_USE while a ticket, vCPU, hold, mapping change or fork guard of it is alive:
/// free that first; the cache is unchanged. Links and allocations may outlive the
/// cache. Code of the cache must not be running.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cw_cache_free(cache: *mut cw_cache) -> cw_status {
    guarded(|| {
        // SAFETY: the header's rules.
        if let Ok(cache) = unsafe { borrow(cache) }
            && cache.tracker.has_children()
        {
            return Err(Failure::new(
                cw_status::CW_IN_USE,
                c"the cache has tickets, vCPUs, holds, mapping changes or fork guards: free them first",
            ));
        }
        // SAFETY: the header's rules.
        drop(unsafe { take_back(cache) });
        Ok(())
    })
}

/// Makes the block of the key unreachable: its self-checking entry found that its bytes have
/// changed, or you no longer want it. Does nothing if there is no block.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cw_cache_remove(cache: *const cw_cache, key: u64) -> cw_status {
    guarded(|| {
        // SAFETY: the header's rules.
        unsafe { borrow(cache) }?.moving()?.remove(Key::new(key));
        Ok(())
    })
}

/// Frees the payloads of dead blocks if no vCPU can be inside them and they are not
/// retained for cw_ticket_revive(). Commits do this too, for some at a time; call it if you stop
/// translating for long.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cw_cache_collect(cache: *const cw_cache) -> cw_status {
    guarded(|| {
        // SAFETY: the header's rules.
        unsafe { borrow(cache) }?.moving()?.collect();
        Ok(())
    })
}

/// Asks every vCPU that is inside translated code now to leave, and returns when each
/// has been outside since. A block made unreachable before this call runs on no vCPU
/// after it.
///
/// CW_BAD_ARGUMENT if the calling thread has a vCPU pinned itself.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cw_cache_wait_for_vcpus(cache: *const cw_cache) -> cw_status {
    guarded(|| {
        // SAFETY: the header's rules.
        Ok(unsafe { borrow(cache) }?.cache.wait_for_vcpus()?)
    })
}

/// Keeps the memory of translations within limits from now on: live_bytes for reachable
/// blocks (1 GiB without this call), retained_bytes for dead and evicted blocks that are
/// retained for cw_ticket_revive() (4 MiB). Each commit evicts the oldest blocks beyond
/// the limit; the block that was committed last stays.
///
/// Three things count: the bytes declared by cw_ticket_set_payload_bytes(), the
/// allocations that blocks keep (cw_ticket_keep_allocation()), and the cache's own
/// records.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cw_cache_set_limit(
    cache: *const cw_cache,
    live_bytes: size_t,
    retained_bytes: size_t,
) -> cw_status {
    guarded(|| {
        // SAFETY: the header's rules.
        unsafe { borrow(cache) }?.moving()?.set_limit(MemoryLimit { live_bytes, retained_bytes });
        Ok(())
    })
}

/// Discards blocks with payload_bytes of payloads, the oldest first, and all blocks if
/// there are not as many bytes: for a code buffer that answers CW_FULL. SIZE_MAX
/// discards all.
///
/// Call it while your own vCPU is not pinned, and try the allocation again. If another
/// vCPU may be inside a block, it is asked to leave, and the block is freed when it has
/// unpinned. Until the memory is free, do without it for a while (interpret).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cw_cache_evict(cache: *const cw_cache, payload_bytes: size_t) -> cw_status {
    guarded(|| {
        // SAFETY: the header's rules.
        unsafe { borrow(cache) }?.moving()?.evict(payload_bytes);
        Ok(())
    })
}
