//! What tracking costs under a policy, against two baselines.
//!
//! **Plain** is what QEMU's user mode does: mprotect, one page a fault, every
//! block of the page dead, the page protected again by the next translation.
//! **mprotect, adaptive** has the policy of the other sides and mprotect's
//! mechanism, so that what the policy gains and what the mechanism gains can be
//! told apart.
//!
//! Every side runs one program ([`workload`]) over one stub translator
//! ([`translator`]): a dispatcher that finds a block, or translates it, and runs
//! it, and asserts what the block computed. The **tracking cost** of a side is
//! the wall time of that run less the wall time of the same run with tracking
//! **off**: mode `none`, where the program, which knows what it wrote, removes
//! the blocks itself. Looking up, translating again and running are in both and
//! fall out; faults, system calls, blocks killed and entries compared stay.
//!
//! Each sample is a run from the start, on fresh memory: what a policy has to
//! see before it adapts is in it.

pub mod measure;
pub mod rows;
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
}

/// Measures the rows whose name has `text`, in the modes that can be had. As a
/// check all is small and runs once.
pub fn measure(modes: &[Mode], text: &str, is_check: bool) -> Report {
    let sides = side::sides(modes);
    let rows = rows::all(is_check).into_iter().filter(|row| row.name().contains(text));
    let programs = rows.map(|row| measure::measure(row, &sides)).collect();
    let syncs = if "sync".contains(text) { sync::all(modes, sync::rounds(is_check)) } else { Vec::new() };
    Report { programs, syncs }
}

impl Report {
    /// What was wanted, beside what was measured.
    pub fn against_wanted(&self) -> String {
        wanted::lines(&self.programs, &self.syncs)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (programs, syncs) = (table::rows(&self.programs), table::syncs(&self.syncs));
        let (of_programs, of_syncs) = (table::OF_PROGRAMS, table::of_syncs());
        write!(f, "{of_programs}\n{programs}\n{of_syncs}\n{syncs}")
    }
}
