//! The cache: which translated code may run, found by key.
//!
//! A key is the guest's pc and whatever else of the guest's state a block depends on,
//! in one number of yours; UINT64_MAX is not a key. One cache has all regions and all
//! vCPUs of a guest. Any thread may call what takes a const cw_cache, at any time but
//! in a signal handler, and not while another thread frees it.
//!
//! # Safety
//!
//! Pointers are used as the header's rules say.
#![allow(unsafe_code)]

use std::ffi::c_uint;
use std::mem::{MaybeUninit, transmute};
use std::sync::Arc;

use engine::policy::{Adaptive, Plain, Policy};
use engine::{CodeCache, EntryStubs, Key, MemoryLimit};
use libc::size_t;

use crate::handle::{borrow, filled_in, out_handle, take_back};
use crate::mode::number;
use crate::payload::Owned;
use crate::status::{Failure, cw_status, guarded};

/// How each page's translations are kept true.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum cw_policy {
    /// Protect; open pages ahead of a stream of writes and protect them again in
    /// batches. Blocks need no checked entry. A page that the same store keeps hitting
    /// is CW_BUSY for a while: interpret.
    CW_POLICY_ADAPTIVE = 0,
    /// The same, and pages that are written beside their code, or again and again,
    /// become checked: they stay writable, and their blocks compare their bytes at each
    /// entry. Blocks should have a checked entry (cw_ticket_commit()).
    CW_POLICY_ADAPTIVE_WITH_CHECKS = 1,
    /// One page and one fault at a time, as mprotect trackers do it: to measure
    /// against. A store over two pages may fault many times before it makes progress.
    CW_POLICY_PLAIN = 2,
}

/// What a cache is made with. cw_cache_options_default() gives one for blocks that are
/// never jumped to through entry cells.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct cw_cache_options {
    /// sizeof(cw_cache_options).
    pub size_bytes: size_t,
    /// Where the entry cell of a dead block leads: code of yours that goes back to the
    /// dispatcher.
    pub dead_stub: usize,
    /// Where the entry cell of a block that is being committed leads: such code too, at
    /// another address.
    pub pending_stub: usize,
    /// How pages are kept.
    pub policy: MaybeUninit<cw_policy>,
}

/// A cache of translated code.
pub struct cw_cache {
    pub(crate) cache: CodeCache<Owned>,
    pub(crate) stubs: EntryStubs,
    /// One for each object of C's that the cache must outlive.
    children: Arc<()>,
}

/// Held by an object that must be freed before its cache.
pub(crate) struct Child {
    _of: Arc<()>,
}

impl cw_cache {
    /// The cache, for a call that would wait for ever under this thread's own fork guard and
    /// has no error in Rust.
    pub(crate) fn moving(&self) -> Result<&CodeCache<Owned>, Failure> {
        if self.cache.stands_still_here() { Err(UNDER_GUARD) } else { Ok(&self.cache) }
    }

    pub(crate) fn child(&self) -> Child {
        Child { _of: self.children.clone() }
    }
}

pub(crate) const UNDER_GUARD: Failure = Failure::bad_argument(
    c"this thread holds the fork guard: give it back first, or call cw_after_fork_child() in the child",
);

fn policy(raw: MaybeUninit<cw_policy>) -> Result<Arc<dyn Policy>, Failure> {
    Ok(match number!(raw, cw_policy) {
        0 => Arc::new(Adaptive::new()),
        1 => Arc::new(Adaptive::with_checks()),
        2 => Arc::new(Plain),
        _ => return Err(Failure::bad_argument(c"no cw_policy has this number")),
    })
}

/// An empty cache without regions. Free it with cw_cache_free().
///
/// CW_BAD_ARGUMENT where the two stubs are equal.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cw_cache_new(options: *const cw_cache_options, cache: *mut *mut cw_cache) -> cw_status {
    guarded(|| {
        // SAFETY: the header's rules; any bits are options.
        let (new, options) = unsafe { (out_handle(cache)?, filled_in(options)?) };
        let cw_cache_options { dead_stub: dead, pending_stub: pending, policy: raw, .. } = options;
        let stubs = EntryStubs { dead, pending };
        let cache = CodeCache::with_policy(stubs, policy(raw)?)?;
        new.give(cw_cache { cache, stubs, children: Arc::default() });
        Ok(())
    })
}

/// Stops tracking every region, calls the destructor of every payload that is left, and
/// frees the cache. Then guest memory may be unmapped. Nothing for NULL.
///
/// CW_IN_USE while a ticket, vCPU, hold, mapping change or fork guard of it is alive:
/// free that first; the cache is as before. Links and allocations may outlive it. Code
/// of the cache must not be running.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cw_cache_free(cache: *mut cw_cache) -> cw_status {
    guarded(|| {
        // SAFETY: the header's rules.
        if let Ok(cache) = unsafe { borrow(cache) }
            && Arc::strong_count(&cache.children) != 1
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

/// Makes the block of the key unreachable: its checked entry found that its bytes are
/// not what they were, or you want it gone. Nothing where there is none.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cw_cache_remove(cache: *const cw_cache, key: u64) -> cw_status {
    guarded(|| {
        // SAFETY: the header's rules.
        unsafe { borrow(cache) }?.moving()?.remove(Key::new(key));
        Ok(())
    })
}

/// Frees what dead blocks own, as far as no vCPU can be inside them and they are not
/// kept for cw_ticket_revive(). Commits do it in passing; for an embedder that stops
/// translating for long.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cw_cache_collect(cache: *const cw_cache) -> cw_status {
    guarded(|| {
        // SAFETY: the header's rules.
        unsafe { borrow(cache) }?.moving()?.collect();
        Ok(())
    })
}

/// Returns when every vCPU that is inside translated code now has been outside since;
/// they are asked to leave. So what was made unreachable before runs nowhere
/// afterwards.
///
/// CW_BAD_ARGUMENT where the calling thread has a vCPU pinned itself.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cw_cache_wait_for_vcpus(cache: *const cw_cache) -> cw_status {
    guarded(|| {
        // SAFETY: the header's rules.
        Ok(unsafe { borrow(cache) }?.cache.wait_for_vcpus()?)
    })
}

/// Keeps the memory of translations within limits from now on: live_bytes of blocks
/// that can be reached (1 GiB where this is not called), former_bytes of dead and
/// evicted ones that are kept for cw_ticket_revive() (4 MiB). Beyond it the oldest are
/// evicted, at each commit; the one that was committed last stays.
///
/// What counts is what cw_ticket_weighs() said, the allocations that blocks keep
/// (cw_ticket_keep_allocation()), and the cache's own records.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cw_cache_set_limit(
    cache: *const cw_cache,
    live_bytes: size_t,
    former_bytes: size_t,
) -> cw_status {
    guarded(|| {
        // SAFETY: the header's rules.
        unsafe { borrow(cache) }?.moving()?.set_limit(MemoryLimit { live_bytes, former_bytes });
        Ok(())
    })
}

/// Gives up blocks whose payloads weigh payload_bytes, the oldest first, and all if they
/// weigh less: for a code buffer that says CW_FULL. SIZE_MAX gives up all.
///
/// Call it while the own vCPU is not pinned, and try the allocation again. What another
/// vCPU may be inside is freed when that has unpinned, as it is asked to: do without
/// for a while where the memory is not there yet (interpret).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cw_cache_evict(cache: *const cw_cache, payload_bytes: size_t) -> cw_status {
    guarded(|| {
        // SAFETY: the header's rules.
        unsafe { borrow(cache) }?.moving()?.evict(payload_bytes);
        Ok(())
    })
}
