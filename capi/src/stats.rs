//! Statistics: events so far, and the memory that a cache takes.
//!
//! Each structure has its size in its first field, so that it can grow: set size_bytes
//! to its sizeof before the call. Fields of a newer header that this library does not
//! know are 0. Afterwards size_bytes is the number of bytes that were filled in.
//!
//! # Safety
//!
//! Pointers are used as the header's rules say.
#![allow(unsafe_code)]

use engine::{Footprint, MemoryUse};
use libc::size_t;

use crate::cache::cw_cache;
use crate::handle::{borrow, fill_in};
use crate::status::{cw_status, guarded};

/// Counters since the cache was made.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct cw_stats {
    /// sizeof(cw_stats); afterwards the number of bytes that were filled in.
    pub size_bytes: size_t,
    /// Write faults that were resolved: each hit code or data.
    pub faults: u64,
    /// Write faults that hit a line with code.
    pub faults_code: u64,
    /// Write faults that hit no line with code: data.
    pub faults_data: u64,
    /// Write faults of either kind that the handler thread resolved. It cannot tell a
    /// store by the guest from a write that the kernel makes for it.
    pub faults_by_thread: u64,
    /// Pages that a fault opened ahead of a stream of writes, in addition to its own.
    pub opened_ahead: u64,
    /// Pages that became self-checking.
    pub self_checking: u64,
    /// Self-checking pages that cooled.
    pub cooled: u64,
    /// Pages that harvests asked the kernel about, with data pages between pages with code.
    pub pages_scanned: u64,
    /// Pages with code that a harvest found written.
    pub pages_harvested: u64,
    /// Harvests: one for each span of pages that a cw_cache_sync() asked about in one call.
    pub harvests: u64,
    /// Pages held for announced writes and changed mappings.
    pub pages_announced: u64,
    /// Held pages whose hold was for an announced write by the kernel.
    pub pages_kernel_written: u64,
    /// Pages that were protected for a translator.
    pub protects: u64,
    /// System calls that protected pages or took protection away.
    pub protection_calls: u64,
    /// Translations that could not begin because the page was busy.
    pub begins_busy: u64,
    /// Translations that became reachable.
    pub committed: u64,
    /// Translations that replaced an earlier one of the same key.
    pub retranslated: u64,
    /// Dead blocks that became reachable again because their bytes are the same again.
    pub revived: u64,
    /// Commits and revivals refused because a write came between.
    pub refused: u64,
    /// Blocks that a write or an announcement made unreachable.
    pub invalidated: u64,
    /// Blocks that became self-checking because data on their page was written.
    pub downgraded: u64,
    /// Blocks that you removed, usually because their comparison failed.
    pub removed: u64,
    /// Blocks evicted: made unreachable because there were too many.
    pub evicted: u64,
    /// Translations of dead and evicted blocks that are not retained, or no longer
    /// retained.
    pub discarded: u64,
    /// Translations whose memory was freed.
    pub freed: u64,
}

/// The memory of one kind of translations.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct cw_memory_use {
    /// The number of translations.
    pub blocks: size_t,
    /// The declared bytes of their payloads, and the allocations that they keep.
    pub payload_bytes: size_t,
    /// The cache's own memory for them: records, and the guest bytes that they were
    /// made from.
    pub record_bytes: size_t,
}

/// The memory that a cache takes now.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct cw_footprint {
    /// sizeof(cw_footprint); afterwards the number of bytes that were filled in.
    pub size_bytes: size_t,
    /// Reachable blocks.
    pub live: cw_memory_use,
    /// Dead and evicted blocks that are retained for cw_ticket_revive().
    pub retained: cw_memory_use,
    /// Discarded blocks that a vCPU may still be inside. The limit does not include them.
    pub garbage: cw_memory_use,
    /// Keys that have an entry cell.
    pub cells: size_t,
    /// Entry cells, free ones included.
    pub cell_bytes: size_t,
    /// The table from keys to cells.
    pub table_bytes: size_t,
    /// Descriptors of the pages that were ever translated from.
    pub page_bytes: size_t,
}

/// Pages that were ever translated from, by their state now.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct cw_pages_by_state {
    /// sizeof(cw_pages_by_state); afterwards the number of bytes that were filled in.
    pub size_bytes: size_t,
    /// Writable; no translation of them can be reached.
    pub open_pages: u64,
    /// Write-protected, or about to be.
    pub protected_pages: u64,
    /// Writable; their blocks compare their bytes at each entry.
    pub self_checking_pages: u64,
}

impl From<MemoryUse> for cw_memory_use {
    fn from(used: MemoryUse) -> Self {
        let MemoryUse { blocks, payload_bytes, record_bytes, .. } = used;
        Self { blocks, payload_bytes, record_bytes }
    }
}

/// Fills in the counters. Set stats->size_bytes before. Any time, any thread; some
/// counters may be a moment ahead of others.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cw_cache_get_stats(cache: *const cw_cache, stats: *mut cw_stats) -> cw_status {
    guarded(|| {
        // SAFETY: the header's rules.
        let of = unsafe { borrow(cache) }?.cache.stats();
        let found = cw_stats {
            size_bytes: 0,
            faults: of.faults,
            faults_code: of.faults_code,
            faults_data: of.faults_data,
            faults_by_thread: of.faults_by_thread,
            opened_ahead: of.opened_ahead,
            self_checking: of.self_checking,
            cooled: of.cooled,
            pages_scanned: of.pages_scanned,
            pages_harvested: of.pages_harvested,
            harvests: of.harvests,
            pages_announced: of.pages_announced,
            pages_kernel_written: of.pages_kernel_written,
            protects: of.protects,
            protection_calls: of.protection_calls,
            begins_busy: of.begins_busy,
            committed: of.committed,
            retranslated: of.retranslated,
            revived: of.revived,
            refused: of.refused,
            invalidated: of.invalidated,
            downgraded: of.downgraded,
            removed: of.removed,
            evicted: of.evicted,
            discarded: of.discarded,
            freed: of.freed,
        };
        // SAFETY: the header's rules; words without padding.
        unsafe { fill_in(stats, &found) }
    })
}

/// Fills in the memory that the cache takes now. Set footprint->size_bytes before.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cw_cache_get_footprint(cache: *const cw_cache, footprint: *mut cw_footprint) -> cw_status {
    guarded(|| {
        // SAFETY: the header's rules.
        let of = unsafe { borrow(cache) }?.cache.footprint();
        let Footprint { live, retained, garbage, cells, cell_bytes, table_bytes, page_bytes, .. } = of;
        let (live, retained, garbage) = (live.into(), retained.into(), garbage.into());
        let found = cw_footprint { size_bytes: 0, live, retained, garbage, cells, cell_bytes, table_bytes, page_bytes };
        // SAFETY: the header's rules; words without padding.
        unsafe { fill_in(footprint, &found) }
    })
}

/// Fills in the number of pages in each state. Set pages->size_bytes before. It looks
/// at every page that was ever translated from.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cw_cache_get_pages_by_state(
    cache: *const cw_cache,
    pages: *mut cw_pages_by_state,
) -> cw_status {
    guarded(|| {
        // SAFETY: the header's rules.
        let of = unsafe { borrow(cache) }?.cache.tracker().pages_by_state();
        let found = cw_pages_by_state {
            size_bytes: 0,
            open_pages: of.open,
            protected_pages: of.protected,
            self_checking_pages: of.self_checking,
        };
        // SAFETY: the header's rules; words without padding.
        unsafe { fill_in(pages, &found) }
    })
}
