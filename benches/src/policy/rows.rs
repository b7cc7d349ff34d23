//! The rows.

use super::workload::{Size, Workload};

/// The guest's threads.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Threads {
    /// So many, each in the program on pages of its own.
    Working(usize),
    /// One in the program, and another that runs code of its own meanwhile.
    OneBesideRunning,
}

impl Threads {
    /// All, in the order of the tables.
    pub const ALL: [Threads; 4] =
        [Threads::Working(1), Threads::Working(2), Threads::Working(4), Threads::OneBesideRunning];

    /// For tables.
    pub fn name(self) -> &'static str {
        match self {
            Threads::Working(1) => "one thread",
            Threads::Working(2) => "two threads",
            Threads::Working(_) => "four threads",
            Threads::OneBesideRunning => "one, another running code",
        }
    }

    /// The threads in the program.
    pub fn working(self) -> usize {
        match self {
            Threads::Working(threads) => threads,
            Threads::OneBesideRunning => 1,
        }
    }

    /// All threads of the guest.
    pub fn all(self) -> usize {
        match self {
            Threads::Working(threads) => threads,
            Threads::OneBesideRunning => 2,
        }
    }
}

/// One row of every side.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Row {
    /// The program.
    pub workload: Workload,
    /// The threads that run it.
    pub threads: Threads,
    /// Each thread's share of it.
    pub size: Size,
    /// Runs of each side.
    pub rounds: usize,
}

impl Row {
    /// For filters and for progress messages.
    pub fn name(&self) -> String {
        format!("{}: {}", self.workload.name(), self.threads.name())
    }
}

/// The rows; as a check, small ones that run once.
pub fn all(is_check: bool) -> Vec<Row> {
    let mut rows = Vec::new();
    for workload in Workload::ALL {
        for threads in Threads::ALL {
            // A run of the long programs is 100,000 operations, and takes a second on the baseline.
            let rounds = match workload {
                _ if is_check => 1,
                Workload::Write | Workload::Bulk => 50,
                Workload::DataWrite | Workload::Patch => 7,
            };
            rows.push(Row { workload, threads, size: workload.size(threads.working(), is_check), rounds });
        }
    }
    rows
}
