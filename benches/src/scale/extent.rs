//! How long a bench of threads at once takes.

use std::time::Duration;

/// How long and how large.
#[derive(Clone, Copy, Debug)]
pub struct Extent {
    /// Rounds, of all rows by turns.
    pub rounds: usize,
    /// The least time of each run.
    pub time: Duration,
    /// Blocks in the shared table.
    pub blocks: usize,
    /// Lookups of a thread in a phase, and rounds of the empty loop.
    pub lookups: usize,
    /// Pages of each thread.
    pub pages: usize,
}

impl Extent {
    /// As measured, in a minute.
    pub const FULL: Self =
        Self { rounds: 9, time: Duration::from_millis(50), blocks: 100_000, lookups: 1 << 20, pages: 512 };
    /// Enough to see that it runs.
    pub const QUICK: Self = Self { rounds: 1, time: Duration::ZERO, blocks: 2_000, lookups: 1 << 12, pages: 16 };
}
