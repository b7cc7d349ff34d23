//! Statistics: events so far, the pages that cost most, a cache's memory.
//!
//! Each structure has its size in its first field, so that it can grow: set size_bytes
//! to its sizeof before the call. Fields of a newer header that this library does not
//! know are 0. Afterwards size_bytes is the number of bytes that were filled in.
//!
//! # Safety
//!
//! Pointers are used as the header's rules say.
#![allow(unsafe_code)]

use std::ffi::{c_int, c_uint};
use std::mem::{MaybeUninit, transmute};

use engine::tracker::{Cause, HotPage};
use engine::{Footprint, MemoryUse, RecentWrite};
use libc::size_t;

use crate::cache::cw_cache;
use crate::handle::{borrow, fill_in, out};
use crate::mode::number;
use crate::status::{Failure, cw_status, guarded};
use crate::tracker::cw_tracker;

/// Counters since the tracker was made. Those of a cache are 0 for a tracker of yours.
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
    /// Harvests: one for each span of pages that a cw_tracker_sync() asked about in one call.
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

/// Which histogram.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum cw_histogram_of {
    /// Nanoseconds from a fault to its end, in this process. About one fault in 16 is timed.
    CW_HISTOGRAM_FAULT_NS = 0,
    /// Pages that one fault opened: its own, and those ahead of a stream.
    CW_HISTOGRAM_FAULT_OPENED_PAGES = 1,
    /// Pages that one system call protected.
    CW_HISTOGRAM_PROTECT_PAGES = 2,
    /// Pages that one harvest asked the kernel about.
    CW_HISTOGRAM_HARVEST_SCANNED_PAGES = 3,
    /// Pages with code that one harvest found written.
    CW_HISTOGRAM_HARVEST_FOUND_PAGES = 4,
    /// Nanoseconds that a cw_tracker_sync() took for one deferred region.
    CW_HISTOGRAM_SYNC_NS = 5,
}

/// The number of buckets of a histogram.
pub const CW_HISTOGRAM_BUCKETS: usize = 65;

/// How many values fell into each bucket.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct cw_histogram {
    /// sizeof(cw_histogram); afterwards the number of bytes that were filled in.
    pub size_bytes: size_t,
    /// The number of values.
    pub count: u64,
    /// Their sum.
    pub sum: u64,
    /// The largest; 0 if there was none.
    pub max: u64,
    /// An estimate of the median, right within a factor of two.
    pub median: u64,
    /// The same of the value that 99 of 100 do not exceed.
    pub percentile_99: u64,
    /// Bucket 0 counts zeros, bucket n the values of n bits: 2^(n-1) to 2^n - 1.
    pub buckets: [u64; CW_HISTOGRAM_BUCKETS],
}

/// The writes to a page while it had blocks, and the last writer. Racing writes may be missed:
/// these are numbers for people.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct cw_hot_page {
    /// The first byte of the page for the guest.
    pub page: u64,
    /// Faults at lines that hold code.
    pub code_hits: u64,
    /// Faults at other lines.
    pub data_hits: u64,
    /// Harvests that found it written.
    pub harvested: u64,
    /// Announced writes of the kernel, up to 65,535.
    pub kernel_hits: u64,
    /// How often it became self-checking again soon after it had cooled.
    pub relapses: u64,
    /// The byte that was hit last; UINT64_MAX if no fault told it.
    pub last_byte: u64,
    /// The host instruction that stored last; 0 if no fault told it.
    pub last_pc: u64,
    /// 1 if it is self-checking now, otherwise 0.
    pub is_self_checking: u64,
}

/// How the library learned of a write.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum cw_cause {
    /// A store to a protected page.
    CW_CAUSE_STORE = 0,
    /// A harvest found the page written.
    CW_CAUSE_HARVEST = 1,
    /// You announced it, or a change of the mapping.
    CW_CAUSE_ANNOUNCED = 2,
    /// The page was opened ahead of a stream of stores.
    CW_CAUSE_AHEAD = 3,
    /// No write: the page was self-checking and has cooled.
    CW_CAUSE_COOLED = 4,
    /// The page is tracked no more.
    CW_CAUSE_LOST = 5,
    /// A cause that this header does not know.
    CW_CAUSE_OTHER = 6,
}

/// A write that hit a page with blocks of a cache.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct cw_recent_write {
    /// Its number, 0 for the first since the cache was made. Missing numbers were overwritten
    /// or lost.
    pub sequence: u64,
    /// The first byte of the page for the guest.
    pub page: u64,
    /// Blocks that it made unreachable.
    pub killed: u64,
    /// A cw_cause.
    pub cause: u64,
    /// The byte that was stored to; UINT64_MAX if it is not known.
    pub byte: u64,
    /// The host instruction that stored; 0 if it is not known.
    pub pc: u64,
    /// Kernel thread id of the storing thread, in mode thread; otherwise 0.
    pub tid: u64,
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
pub unsafe extern "C" fn cw_tracker_get_stats(tracker: *const cw_tracker, stats: *mut cw_stats) -> cw_status {
    guarded(|| {
        // SAFETY: the header's rules.
        let of = unsafe { borrow(tracker) }?.any().stats();
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
pub unsafe extern "C" fn cw_tracker_get_pages_by_state(
    tracker: *const cw_tracker,
    pages: *mut cw_pages_by_state,
) -> cw_status {
    guarded(|| {
        // SAFETY: the header's rules.
        let of = unsafe { borrow(tracker) }?.any().pages_by_state();
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

/// Fills in a histogram. Set histogram->size_bytes before.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cw_tracker_get_histogram(
    tracker: *const cw_tracker,
    of: MaybeUninit<cw_histogram_of>,
    histogram: *mut cw_histogram,
) -> cw_status {
    guarded(|| {
        // SAFETY: the header's rules.
        let all = unsafe { borrow(tracker) }?.any().histograms();
        let asked = match number!(of, cw_histogram_of) {
            0 => all.fault_ns,
            1 => all.fault_opened_pages,
            2 => all.protect_pages,
            3 => all.harvest_scanned_pages,
            4 => all.harvest_found_pages,
            5 => all.sync_ns,
            _ => return Err(Failure::bad_argument(c"no cw_histogram_of has this number")),
        };
        let mut buckets = [0; CW_HISTOGRAM_BUCKETS];
        for (values, count) in asked.buckets() {
            buckets[(u64::BITS - values.start().leading_zeros()) as usize] = count;
        }
        let (median, percentile_99) = (asked.percentile(50.0), asked.percentile(99.0));
        let (count, sum, max) = (asked.count(), asked.sum(), asked.max());
        let found = cw_histogram { size_bytes: 0, count, sum, max, median, percentile_99, buckets };
        // SAFETY: the header's rules; words without padding.
        unsafe { fill_in(histogram, &found) }
    })
}

/// Writes `found` to C's array of `most` elements, and their number to `count`.
///
/// # Safety
///
/// The header's rules.
unsafe fn list<T, F>(
    array: *mut T,
    most: size_t,
    count: *mut size_t,
    found: impl FnOnce() -> Result<Vec<F>, Failure>,
    each: impl Fn(F) -> T,
) -> Result<(), Failure> {
    // SAFETY: this function's contract.
    let count = unsafe { out(count) }?;
    if array.is_null() && most != 0 {
        return Err(Failure::bad_argument(c"the array is NULL and has room for some"));
    }
    let found = found()?;
    let written = count.write(found.len().min(most));
    for (at, found) in found.into_iter().take(*written).enumerate() {
        // SAFETY: C's array has `most` elements.
        unsafe { array.add(at).write(each(found)) };
    }
    Ok(())
}

/// Lists the pages that were written to most, the hottest first: most of them at most. count
/// receives their number. It looks at every page that was ever translated from.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cw_tracker_hottest_pages(
    tracker: *const cw_tracker,
    pages: *mut cw_hot_page,
    most: size_t,
    count: *mut size_t,
) -> cw_status {
    let each = |hot: HotPage| cw_hot_page {
        page: hot.page.0,
        code_hits: hot.code_hits.into(),
        data_hits: hot.data_hits.into(),
        harvested: hot.harvested.into(),
        kernel_hits: hot.kernel_hits.into(),
        relapses: hot.relapses.into(),
        last_byte: hot.last_byte.map_or(u64::MAX, |byte| byte.0),
        last_pc: hot.last_pc.map_or(0, |pc| pc.0 as u64),
        is_self_checking: hot.is_self_checking.into(),
    };
    // SAFETY: the header's rules.
    guarded(|| unsafe { list(pages, most, count, || Ok(borrow(tracker)?.any().hottest_pages(most)), each) })
}

/// Lists the numbers of the file descriptors that the tracker keeps open, most of them at most;
/// count receives how many were written. If the guest shares its descriptors with this process,
/// keep it from closing these: with all of a region's the protection of its pages is gone. Ask again
/// after a region was added or removed, and in a fork's child. Whether a descriptor of the guest's is one:
///
/// ```c
/// int own[16]; size_t count;
/// cw_tracker_descriptors(tracker, own, 16, &count);
/// for (size_t at = 0; at < count; at++) if (own[at] == fd) return -EBADF;
/// ```
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cw_tracker_descriptors(
    tracker: *const cw_tracker,
    descriptors: *mut c_int,
    most: size_t,
    count: *mut size_t,
) -> cw_status {
    // SAFETY: the header's rules.
    guarded(|| unsafe { list(descriptors, most, count, || Ok(borrow(tracker)?.any().descriptors()), |fd| fd) })
}

/// Lists the last writes that hit pages with blocks of the cache, from the one with number since
/// on, the oldest first: most of them at most. count receives their number. Some hundreds are
/// retained.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cw_cache_recent_writes(
    cache: *const cw_cache,
    since: u64,
    writes: *mut cw_recent_write,
    most: size_t,
    count: *mut size_t,
) -> cw_status {
    let each = |write: RecentWrite| {
        let (cause, byte, pc, tid) = match write.cause {
            Cause::Store { byte, pc, tid } => (cw_cause::CW_CAUSE_STORE, byte.0, pc.map_or(0, |pc| pc.0 as u64), tid),
            Cause::Harvest => (cw_cause::CW_CAUSE_HARVEST, u64::MAX, 0, 0),
            Cause::Announced => (cw_cause::CW_CAUSE_ANNOUNCED, u64::MAX, 0, 0),
            Cause::Ahead => (cw_cause::CW_CAUSE_AHEAD, u64::MAX, 0, 0),
            Cause::Cooled => (cw_cause::CW_CAUSE_COOLED, u64::MAX, 0, 0),
            Cause::Lost => (cw_cause::CW_CAUSE_LOST, u64::MAX, 0, 0),
            _ => (cw_cause::CW_CAUSE_OTHER, u64::MAX, 0, 0),
        };
        let (sequence, page, killed) = (write.sequence, write.page.0, write.killed);
        cw_recent_write { sequence, page, killed, cause: cause as u64, byte, pc, tid: tid.into() }
    };
    // SAFETY: the header's rules.
    guarded(|| unsafe { list(writes, most, count, || Ok(borrow(cache)?.cache.recent_writes(since)), each) })
}
