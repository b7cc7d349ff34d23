//! The modes that are available here.

use codewarden::protection::{Mode, Probe};

/// Reports that a test is skipped here, or fails if a skip is not allowed.
pub(crate) fn skip(why: &dyn std::fmt::Display) {
    assert!(std::env::var_os("CODEWARDEN_REQUIRE_ALL").is_none(), "{why}");
    println!("skipped: {why}");
}

/// Every mode but `none` that is available here.
pub(crate) fn tracking_modes() -> Vec<Mode> {
    let probe = Probe::of_this_process();
    let has = |&mode: &Mode| probe.check(mode).inspect_err(|error| skip(error)).is_ok();
    Mode::ALL.into_iter().filter(|&mode| mode != Mode::None).filter(has).collect()
}
