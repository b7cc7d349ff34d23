//! The tables, in markdown: every side in every row, the losing ones too.

use std::fmt::Write;

use super::measure::{Figure, Measured};
use super::side::Side;
use super::workload::Workload;
use super::{scattered_sync, sync};
use crate::spread::Spread;

/// The explanation of the table of programs.
pub const OF_PROGRAMS: &str = "\
A program stores and runs code, and each run of it begins on fresh memory: what a policy has to see before it adapts is
in the time. The tracking cost of a side is the wall time of its run less that of the run with tracking *off* in the
same round, where the program, which knows what it wrote, removes the blocks by hand. *plain* is mprotect, one page and
one fault at a time, as QEMU's user mode does it; *mprotect, adaptive* has the policy of the other sides. *off, again*
is a second run with tracking off: what it \"costs\" is the noise. Where a side's cost does not stand out of that, a
ratio of medians would mean nothing: then *≥* says the baseline's cost by the most that the side may cost, which is its
p90, or what nine of ten pairs of runs with tracking off differ by, whichever is more. Faults, system calls, and runs of
code that was interpreted as its page was busy, are for one operation, over all rounds. *bare calls* is the floor of the
pages that are overwritten in a bulk: the same stores and the mode's bare system calls, with a handler that opens pages
ahead as far as the policy does and calls that protect as many, less the same stores without any.
";

/// The explanation of the table of syncs.
pub fn of_syncs() -> String {
    format!(
        "`sync` of {} contiguous pages with a block each, none or {} of them written since the last, scattered; beside \
         one `PAGEMAP_SCAN` of as many pages that finds the same and kills nothing. With several threads each has so \
         many pages, of one region.\n",
        sync::PAGES,
        sync::WRITTEN
    )
}

/// The explanation of the table of syncs over scattered pages.
pub fn of_scattered_syncs() -> String {
    format!(
        "`sync` of {} populated pages, of which so many at equal distances have a block each. None was written since \
         the last. Beside it, one `PAGEMAP_SCAN` from the first to the last, with all pages protected.\n",
        scattered_sync::PAGES
    )
}

/// The figures of a row's samples, with their names.
pub fn figures(workload: Workload) -> Vec<(String, Figure)> {
    let name = workload.name().to_string();
    let work: Figure = |sample| sample.work_ns;
    let announced: Figure = |sample| sample.announced_ns;
    match workload {
        Workload::Write => vec![(name.clone(), work), (format!("{name}, and its harvest"), announced)],
        _ => vec![(name, work)],
    }
}

/// All rows.
pub fn rows(rows: &[Measured]) -> String {
    let mut table = String::from(
        "| an operation | threads | side | wall time, ns | tracking cost, ns | × cheaper than plain | faults | calls | \
         interpreted |\n|---|---|---|---:|---:|---:|---:|---:|---:|\n",
    );
    for row in rows {
        for (name, figure) in figures(row.row.workload) {
            row.sides.iter().for_each(|&(side, _)| line(&mut table, row, side, &name, figure));
            let threads = row.row.threads.name();
            for (mode, _) in &row.floors {
                if let (Some(floor), Some(times)) = (row.floor(*mode), row.floor_times(*mode, figure)) {
                    let _ = writeln!(
                        table,
                        "| {name} | {threads} | {mode}, bare calls | – | {floor} | {times} | – | – | – |"
                    );
                }
            }
            let (wall, cost) = (row.control_wall(figure), row.control_cost(figure));
            let _ = writeln!(table, "| {name} | {threads} | off, again | {wall} | {cost} | – | 0 | 0 | 0 |");
        }
    }
    table
}

fn line(table: &mut String, row: &Measured, side: Side, name: &str, figure: Figure) {
    let (Some(wall), Some(cost), Some(counts)) = (row.wall(side, figure), row.cost(side, figure), row.counts(side))
    else {
        return;
    };
    let is_off = side == Side::Off;
    let cost = if is_off { "–".into() } else { cost.to_string() };
    let times = row.times_cheaper(side, figure).filter(|_| !is_off).map_or("–".into(), |times| times.to_string());
    let threads = row.row.threads.name();
    let _ = write!(table, "| {name} | {threads} | {} | {wall} | {cost} | {times} |", side.name());
    for count in counts {
        // A small count must not look like 0.
        let digits = if count == 0.0 || count >= 0.1 { 2 } else { 5 };
        let _ = write!(table, " {count:.digits$} |");
    }
    table.push('\n');
}

/// `sync` and the bare ioctl.
pub fn syncs(rows: &[sync::Measured]) -> String {
    let mut table = String::from(
        "| pages written | threads | sync, ns | bare ioctl, ns | sync ÷ bare | sync, ns a written page | bare, ns a \
         written page |\n|---|---|---:|---:|---:|---:|---:|\n",
    );
    for row in rows {
        let threads = row.threads.name();
        let (library, bare) = (&row.library, &row.bare);
        let all = [("none", &library.none_ns, &bare.none_ns), ("1 %", &library.written_ns, &bare.written_ns)];
        for (written, of_library, of_bare) in all {
            let (sync, ioctl) = (Spread::of(of_library), Spread::of(of_bare));
            let ratio = sync.median_ns / ioctl.median_ns;
            let _ = write!(table, "| {written} | {threads} | {sync} | {ioctl} | {ratio:.2} |");
            let _ = match written {
                "none" => writeln!(table, " – | – |"),
                _ => writeln!(table, " {} | {} |", library.page(), bare.page()),
            };
        }
    }
    table
}

/// `sync` over scattered pages and the bare ioctl.
pub fn scattered_syncs(rows: &[scattered_sync::Measured]) -> String {
    let mut table = String::from(
        "| pages with code | sync, ns | bare ioctl, ns | sync ÷ bare | system calls of a sync |\n|---:|---:|---:|---:|---:|\n",
    );
    for row in rows {
        let (sync, ioctl) = (Spread::of(&row.library_ns), Spread::of(&row.bare_ns));
        let _ = writeln!(table, "| {} | {sync} | {ioctl} | {:.2} | {} |", row.with_code, row.ratio(), row.calls);
    }
    table
}
