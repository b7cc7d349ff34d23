//! The rows.

use codewarden::protection::Mode;

use crate::ground::{Company, Layout, Memory, Setting};
use crate::side::Case;

/// One row: a case in a setting.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    /// The case.
    pub case: Case,
    /// The setting.
    pub setting: Setting,
}

impl Row {
    /// The row's name in tables.
    pub fn name(&self) -> String {
        let Setting { memory, layout, company } = self.setting;
        let mut name = self.case.name().to_string();
        name += match memory {
            Memory::Anonymous => "",
            Memory::Memfd => ", memfd",
        };
        name += match layout {
            Layout::Alternate => "",
            Layout::Neighbouring => ", neighbouring pages",
        };
        name += match company {
            Company::Alone => "",
            Company::Spinning => ", another thread spinning",
            Company::Pinned { explicit_fetch: false } => ", another vCPU running",
            Company::Pinned { explicit_fetch: true } => ", another vCPU running, explicit fetch",
            Company::TwoStoring => ", two threads at once",
        };
        name
    }

    /// Whether `mode` has the row.
    pub fn exists_in(&self, mode: Mode) -> bool {
        self.case.exists_in(mode)
    }
}

/// The headline rows: anonymous memory, one thread.
pub fn plain() -> Vec<Row> {
    let row = |case| Row { case, setting: Setting::PLAIN };
    let side_by_side = Setting { layout: Layout::Neighbouring, ..Setting::PLAIN };
    vec![
        row(Case::Protect),
        Row { case: Case::Protect, setting: side_by_side },
        row(Case::Commit),
        row(Case::Fault),
        row(Case::Cycle),
        Row { case: Case::Sync, setting: side_by_side },
    ]
}

/// The same on a memfd.
pub fn memfd() -> Vec<Row> {
    let setting = Setting { memory: Memory::Memfd, ..Setting::PLAIN };
    [Case::Protect, Case::Commit, Case::Fault, Case::Cycle].map(|case| Row { case, setting }).to_vec()
}

/// With a second thread.
pub fn threads() -> Vec<Row> {
    let spinning = Setting { company: Company::Spinning, ..Setting::PLAIN };
    let storing = Setting { company: Company::TwoStoring, ..Setting::PLAIN };
    let mut rows = [Case::Protect, Case::Fault, Case::Cycle].map(|case| Row { case, setting: spinning }).to_vec();
    let pinned = |explicit_fetch| Setting { company: Company::Pinned { explicit_fetch }, ..Setting::PLAIN };
    rows.extend([pinned(false), pinned(true), storing].map(|setting| Row { case: Case::Fault, setting }));
    rows
}
