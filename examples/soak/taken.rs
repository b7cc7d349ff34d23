//! The process's resources in the system, and its heap to the byte.
//!
//! People watch resident memory, but it is rough: it includes pages that were touched once,
//! and the allocator's holes. The heap counts each allocation.

use std::fs;

use codewarden::Footprint;
use codewarden::code_buffer::CodeBufferStats;

use crate::heap::Heap;

/// The counts at one moment.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Taken {
    pub(crate) resident_bytes: u64,
    pub(crate) mappings: u64,
    pub(crate) descriptors: u64,
    pub(crate) threads: u64,
    pub(crate) heap: Heap,
    pub(crate) footprint: Footprint,
    pub(crate) buffer: CodeBufferStats,
}

impl Taken {
    pub(crate) fn now(footprint: Footprint, buffer: CodeBufferStats, page_bytes: u64) -> Self {
        let count = |path: &str| fs::read_dir(path).map_or(0, Iterator::count) as u64;
        let lines = |path: &str| fs::read_to_string(path).map_or(0, |text| text.lines().count()) as u64;
        let statm = fs::read_to_string("/proc/self/statm").unwrap_or_default();
        let pages = statm.split(' ').nth(1).and_then(|pages| pages.parse::<u64>().ok());
        Self {
            resident_bytes: pages.unwrap_or(0) * page_bytes,
            mappings: lines("/proc/self/maps"),
            descriptors: count("/proc/self/fd"),
            threads: count("/proc/self/task"),
            heap: Heap::now(),
            footprint,
            buffer,
        }
    }

    /// The heap beside the cache's own footprint.
    pub(crate) fn untold_bytes(&self) -> i64 {
        let Footprint { live, retained, garbage, cell_bytes, table_bytes, page_bytes, .. } = self.footprint;
        let records = live.record_bytes + retained.record_bytes + garbage.record_bytes;
        self.heap.bytes as i64 - (records + cell_bytes + table_bytes + page_bytes) as i64
    }

    /// The heap less the blocks that wait for vCPUs to leave.
    pub(crate) fn settled_bytes(&self) -> i64 {
        self.heap.bytes as i64 - self.footprint.garbage.record_bytes as i64
    }
}
