//! The aims of a policy, and the measurements next to them.

use std::fmt::Write;

use codewarden::protection::Mode;

use super::measure::Measured;
use super::rows::Threads;
use super::side::Side;
use super::workload::Workload;
use super::{scattered_sync, sync, table};
use crate::spread::Spread;

/// The aim of each: how many times cheaper than the baseline, in one thread.
const CHEAPER: [(Workload, Mode, f64); 9] = [
    (Workload::Write, Mode::Deferred, 6.0),
    (Workload::Bulk, Mode::Sigbus, 10.0),
    (Workload::Bulk, Mode::Thread, 8.0),
    (Workload::Bulk, Mode::Deferred, 8.0),
    (Workload::DataWrite, Mode::Sigbus, 50.0),
    (Workload::DataWrite, Mode::Thread, 50.0),
    (Workload::DataWrite, Mode::Deferred, 50.0),
    (Workload::Patch, Mode::Sigbus, 5.0),
    (Workload::Patch, Mode::Thread, 5.0),
];

/// How many times the bare ioctl `sync` may take, in one thread.
const SYNC_BY_BARE: f64 = 1.3;

/// The same over scattered pages, of which none was written.
const SCATTERED_BY_BARE: f64 = 1.5;

/// One line for each aim: the aim, the measurement, whether it is met.
pub fn lines(rows: &[Measured], syncs: &[sync::Measured], scattered: &[scattered_sync::Measured]) -> String {
    let mut text = String::new();
    let mut line = |holds: bool, what: String| {
        let _ = writeln!(text, "- {}: {what}", if holds { "holds" } else { "MISSED" });
    };
    for (workload, mode, least) in CHEAPER {
        let row = rows.iter().find(|row| row.row.workload == workload && row.row.threads == Threads::Working(1));
        let (name, figure) = table::figures(workload).swap_remove(0);
        if let Some(times) = row.and_then(|row| row.times_cheaper(Side::Adaptive(mode), figure)) {
            let floor = row.and_then(|row| row.floor_times(mode, figure));
            let floor = floor.map_or(String::new(), |times| format!("; the bare system calls {times} times"));
            let what = format!("{name}, {mode}: {times} times cheaper than plain (wanted {least}){floor}");
            line(times.least() >= least, what);
        }
    }
    for row in syncs.iter().filter(|row| row.threads == Threads::Working(1)) {
        let (library, bare) = (&row.library, &row.bare);
        let all = [("none", &library.none_ns, &bare.none_ns), ("1 %", &library.written_ns, &bare.written_ns)];
        for (written, library, bare) in all {
            let ratio = Spread::of(library).median_ns / Spread::of(bare).median_ns;
            let pages = sync::PAGES;
            let what = format!("sync of {pages} pages, {written} written: {ratio:.2} of the bare ioctl");
            line(ratio <= SYNC_BY_BARE, format!("{what} (at most {SYNC_BY_BARE})"));
        }
    }
    for row in scattered {
        let (pages, ratio) = (row.with_code, row.ratio());
        let what = format!("sync of {pages} scattered pages, none written: {ratio:.2} of the bare ioctl");
        line(ratio <= SCATTERED_BY_BARE, format!("{what} (at most {SCATTERED_BY_BARE})"));
    }
    text
}
