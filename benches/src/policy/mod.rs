//! The cost of tracking under a policy, against two baselines.
//!
//! **Plain** does as QEMU's user mode does: it uses mprotect and opens one page for each fault. A
//! fault kills every block of the page, and the next translation protects the page again.
//! **mprotect, adaptive** has the policy of the other sides and mprotect's mechanism. It separates
//! the policy's gain from the mechanism's.
//!
//! Every side runs one program ([`workload`]) over one stub translator ([`translator`]).
//! Its dispatcher finds or translates a block, runs it, and asserts the result. The
//! **tracking cost** of a side is the wall time of that run less that of the same run with
//! tracking **off**. Off is mode `none`: the program knows which bytes it wrote, and
//! removes the blocks itself. Lookups, new translations and runs of blocks are in both and
//! cancel out. Faults, system calls, killed blocks and compared entries remain.
//!
//! Each sample is a run from the start, on fresh memory. So it includes everything that a
//! policy must see before it adapts.

pub mod measure;
pub mod rows;
pub mod scattered_sync;
pub mod side;
pub mod sync;
pub mod table;
pub mod translator;
pub mod wanted;
pub mod workload;

use std::fmt;

use codewarden::protection::Mode;

/// All rows of all sides.
#[derive(Clone, Debug)]
pub struct Report {
    /// Programs.
    pub programs: Vec<measure::Measured>,
    /// `sync` and the bare ioctl.
    pub syncs: Vec<sync::Measured>,
    /// `sync` over scattered pages and the bare ioctl.
    pub scattered_syncs: Vec<scattered_sync::Measured>,
}

/// Measures the rows with `text` in their name, in the modes that are available. As a check
/// all is small and runs once.
pub fn measure(modes: &[Mode], text: &str, is_check: bool) -> Report {
    let sides = side::sides(modes);
    let rows = rows::all(is_check).into_iter().filter(|row| row.name().contains(text));
    let programs = rows.map(|row| measure::measure(row, &sides)).collect();
    let rounds = sync::rounds(is_check);
    let syncs = if "sync".contains(text) { sync::all(modes, rounds) } else { Vec::new() };
    let scattered_syncs =
        if "scattered sync".contains(text) { scattered_sync::all(modes, rounds, is_check) } else { Vec::new() };
    Report { programs, syncs, scattered_syncs }
}

impl Report {
    /// The aims, and the measurements next to them.
    pub fn against_wanted(&self) -> String {
        wanted::lines(&self.programs, &self.syncs, &self.scattered_syncs)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (programs, syncs) = (table::rows(&self.programs), table::syncs(&self.syncs));
        let (of_programs, of_syncs) = (table::OF_PROGRAMS, table::of_syncs());
        let (of_scattered, scattered) = (table::of_scattered_syncs(), table::scattered_syncs(&self.scattered_syncs));
        write!(f, "{of_programs}\n{programs}\n{of_syncs}\n{syncs}\n{of_scattered}\n{scattered}")
    }
}
