//! The example of an emulator with a cache of its own runs no stale code in any mode. In mode
//! `none` it does.

#[path = "support/modes.rs"]
mod modes;
#[path = "../examples/own_cache/run.rs"]
mod own_cache;

use codewarden::protection::Mode;

/// One test: the signal handlers and the cache are the process's.
#[test]
fn it_runs_no_stale_code_in_any_mode() {
    for mode in modes::tracking_modes() {
        assert_eq!(own_cache::stale_runs(mode), Ok(0), "{mode}");
    }
    assert!(own_cache::stale_runs(Mode::None).is_ok_and(|stale| stale > 0), "without tracking");
}
