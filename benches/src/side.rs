//! The measured cases, and the two sides that run them.

use std::time::Duration;

use codewarden::VCpu;
use codewarden::protection::Mode;

/// The measured case, per page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Case {
    /// An open page becomes protected: begin and claim.
    Protect,
    /// The same, with the commit of a block.
    Commit,
    /// A store to a protected page with one block and one link to it, until the
    /// store has retired.
    Fault,
    /// Claim and commit, store, `sync` of the page in deferred mode, a lookup
    /// that finds nothing; again and again.
    Cycle,
    /// One `sync` over pages that were all written. Deferred mode alone.
    Sync,
}

impl Case {
    /// For tables and for the names of benches.
    pub fn name(self) -> &'static str {
        match self {
            Case::Protect => "protect one page",
            Case::Commit => "protect and commit one block",
            Case::Fault => "fault to retired store",
            Case::Cycle => "whole cycle",
            Case::Sync => "sync of a written page",
        }
    }

    /// Whether `mode` has it.
    pub fn exists_in(self, mode: Mode) -> bool {
        self != Case::Sync || mode == Mode::Deferred
    }
}

/// The side that does the work.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Who {
    /// codewarden.
    Library,
    /// The bare system calls.
    Floor,
}

impl Who {
    /// Both.
    pub const ALL: [Who; 2] = [Who::Library, Who::Floor];

    /// For tables and for the names of benches.
    pub fn name(self) -> &'static str {
        match self {
            Who::Library => "library",
            Who::Floor => "floor",
        }
    }
}

/// The library or its floor, in one mode, on one batch of pages.
pub trait Side {
    /// A new vCPU, if it has vCPUs.
    fn vcpu(&self) -> Option<VCpu<()>> {
        None
    }

    /// Runs `case` once over the batch and gives the time of the measured part
    /// alone.
    ///
    /// # Panics
    ///
    /// If the outcome is not that of `case`: then the time means nothing.
    fn run(&mut self, case: Case) -> Duration;
}
