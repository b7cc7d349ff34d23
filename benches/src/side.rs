//! The measured cases, and the two sides that run them.

use std::time::Duration;

use codewarden::protection::{Mode, Probe};

use crate::floor::Floor;
use crate::ground::{Company, Ground, Setting};
use crate::library::Library;

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
    /// Runs `case` once over the batch and gives the time of the measured part
    /// alone.
    ///
    /// # Panics
    ///
    /// If the outcome is not that of `case`: then the time means nothing.
    fn run(&mut self, case: Case) -> Duration;
}

/// Makes a side.
pub fn open(who: Who, mode: Mode, setting: Setting) -> Box<dyn Side> {
    match who {
        Who::Library => Box::new(InCompany(Library::new(mode, setting), setting.company)),
        Who::Floor => Box::new(InCompany(Floor::new(mode, setting), setting.company)),
    }
}

struct InCompany<S>(S, Company);

impl<S: Side> Side for InCompany<S> {
    fn run(&mut self, case: Case) -> Duration {
        Ground::in_company(self.1, || self.0.run(case))
    }
}

/// The modes that can be had here, in the order of the tables: the baseline and the control
/// last. A missing mode is named on stderr.
///
/// # Panics
///
/// If `CODEWARDEN_REQUIRE_ALL` is set and a mode is missing.
pub fn modes() -> Vec<Mode> {
    let probe = Probe::of_this_process();
    [Mode::Sigbus, Mode::Thread, Mode::Deferred, Mode::Mprotect, Mode::None]
        .into_iter()
        .filter(|&mode| match probe.check(mode) {
            Ok(()) => true,
            Err(error) => {
                assert!(std::env::var_os("CODEWARDEN_REQUIRE_ALL").is_none(), "{error}");
                eprintln!("skipped: {error}");
                false
            }
        })
        .collect()
}
