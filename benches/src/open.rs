//! Opens a side in one of the modes that are available here.

use std::time::Duration;

use codewarden::protection::{Mode, Probe};

use crate::floor::Floor;
use crate::ground::{Company, Ground, Setting};
use crate::library::Library;
use crate::side::{Case, Side, Who};

/// Makes a side.
pub fn open_side(who: Who, mode: Mode, setting: Setting) -> Box<dyn Side> {
    match who {
        Who::Library => Box::new(InCompany(Library::new(mode, setting), setting.company)),
        Who::Floor => Box::new(InCompany(Floor::new(mode, setting), setting.company)),
    }
}

struct InCompany<S>(S, Company);

impl<S: Side> Side for InCompany<S> {
    fn run(&mut self, case: Case) -> Duration {
        let is_pinned = matches!(self.1, Company::Pinned { .. });
        let vcpu = if is_pinned { self.0.vcpu() } else { None };
        Ground::in_company(self.1, vcpu, || self.0.run(case))
    }
}

/// The modes that are available here, in the order of the tables: the baseline and the control
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
