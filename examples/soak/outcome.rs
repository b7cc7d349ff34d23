//! The result of a run, as a table, and the complaints about it.

use std::fmt;
use std::time::Duration;

use codewarden::Stats;
use codewarden::protection::Mode;

use crate::taken::Taken;

/// The heap beside the footprint may grow by this: the maps of retained blocks and of free
/// code memory vary a little.
const ROUGH_BYTES: i64 = 256 << 10;
/// The heap less the waiting blocks may grow by this.
const ROUGH_HEAP_BYTES: i64 = 1 << 20;
/// Allocations that stay with the process.
const ROUGH_ALLOCATIONS: u64 = 16;

pub(crate) struct Outcome {
    pub(crate) mode: Mode,
    /// The counts after so many cycles.
    pub(crate) taken: Vec<(u64, Taken)>,
    pub(crate) stats: Stats,
    /// Blocks that the other vCPU ran.
    pub(crate) hops: u64,
    /// Blocks that were wrongly found or wrongly missing.
    pub(crate) wrong: u64,
    /// Allocations left in the code buffer when the cache was dropped.
    pub(crate) left_code: u64,
    /// Allocations left in the heap when everything was dropped.
    pub(crate) left_heap: u64,
    pub(crate) time: Duration,
}

impl Outcome {
    /// The conditions that the run broke.
    pub(crate) fn complaints(&self) -> Vec<&'static str> {
        let Self { taken, stats, hops, wrong, left_code, left_heap, .. } = self;
        let [(_, warm), .., (_, end)] = &taken[..] else { return vec!["nothing was looked at"] };
        let [fits_warm, fits] = [warm, end].map(|taken| taken.footprint.live.blocks + taken.footprint.retained.blocks);
        let resident_most = warm.resident_bytes / 50;
        let checks = [
            (end.resident_bytes.abs_diff(warm.resident_bytes) <= resident_most, "resident memory changed"),
            (end.mappings <= warm.mappings, "there are more mappings"),
            (end.descriptors <= warm.descriptors, "there are more descriptors"),
            (end.threads <= warm.threads, "there are more threads"),
            (end.untold_bytes() - warm.untold_bytes() <= ROUGH_BYTES, "the heap grew beside the footprint"),
            (end.settled_bytes() - warm.settled_bytes() <= ROUGH_HEAP_BYTES, "the heap grew"),
            (fits * 10 >= fits_warm * 9, "fewer blocks fit"),
            (end.footprint.cells <= 4 * fits, "cells that nobody needs are not swept"),
            (*left_code == 0 && *left_heap <= ROUGH_ALLOCATIONS, "not all was freed in the end"),
            (*wrong == 0, "stale or freed code was found, or code was missing"),
            (stats.evicted > 0 && stats.revived > 0 && *hops > 0, "a part of the load did not take place"),
        ];
        checks.iter().filter(|(is_fine, _)| !is_fine).map(|(_, complaint)| *complaint).collect()
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { mode, taken, stats, hops, wrong, left_code, left_heap, time } = self;
        writeln!(f, "{mode}: {:.1} s", time.as_secs_f64())?;
        let mut row = |what: &str, of: &dyn Fn(&(u64, Taken)) -> i64| {
            write!(f, "  {what:<32}")?;
            taken.iter().try_for_each(|taken| write!(f, "{:>12}", of(taken)))?;
            writeln!(f)
        };
        let kib = |bytes: u64| (bytes / 1024) as i64;
        row("cycles", &|(cycles, _)| *cycles as i64)?;
        row("resident, KiB", &|(_, taken)| kib(taken.resident_bytes))?;
        row("mappings", &|(_, taken)| taken.mappings as i64)?;
        row("descriptors", &|(_, taken)| taken.descriptors as i64)?;
        row("threads", &|(_, taken)| taken.threads as i64)?;
        row("heap, KiB", &|(_, taken)| kib(taken.heap.bytes))?;
        row("  beside the footprint, bytes", &|(_, taken)| taken.untold_bytes())?;
        row("code buffer, resident, KiB", &|(_, taken)| kib(taken.buffer.resident_bytes as u64))?;
        row("  used, KiB", &|(_, taken)| kib(taken.buffer.used_bytes as u64))?;
        row("live, blocks", &|(_, taken)| taken.footprint.live.blocks as i64)?;
        row("live, KiB", &|(_, taken)| kib(taken.footprint.live.bytes() as u64))?;
        row("retained, blocks", &|(_, taken)| taken.footprint.retained.blocks as i64)?;
        row("retained, KiB", &|(_, taken)| kib(taken.footprint.retained.bytes() as u64))?;
        row("garbage, blocks", &|(_, taken)| taken.footprint.garbage.blocks as i64)?;
        row("garbage, KiB", &|(_, taken)| kib(taken.footprint.garbage.bytes() as u64))?;
        row("cells in the table", &|(_, taken)| taken.footprint.cells as i64)?;
        row("cells and table, KiB", &|(_, taken)| {
            kib((taken.footprint.cell_bytes + taken.footprint.table_bytes) as u64)
        })?;
        let Stats { invalidated, committed, evicted, revived, discarded, freed, .. } = stats;
        writeln!(f, "  {invalidated} invalidated, {committed} committed, {evicted} evicted, {revived} revived,")?;
        writeln!(f, "  {discarded} discarded, {freed} freed; the other vCPU ran {hops} blocks")?;
        let [(_, warm), .., (_, end)] = &taken[..] else { return Ok(()) };
        let change = (end.resident_bytes as f64 / warm.resident_bytes as f64 - 1.0) * 100.0;
        writeln!(f, "  resident memory changed by {change:+.2} %; {wrong} stale or freed blocks found;")?;
        write!(f, "  when all was dropped {left_code} pieces of code and {left_heap} allocations of the heap were left")
    }
}
