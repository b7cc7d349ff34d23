//! Both embeddings compute the right number in every mode, and a wrong one without tracking.
#![cfg(target_arch = "x86_64")]

use codewarden::protection::{Mode, Probe};
use codewarden_embeddings::guest::{RIGHT, ROUNDS};
use codewarden_embeddings::{with_cranelift, with_dynasm};

#[test]
fn the_patched_loop_is_run_in_every_mode() {
    let probe = Probe::of_this_process();
    for mode in Mode::ALL.into_iter().filter(|&mode| mode != Mode::None) {
        if let Err(error) = probe.check(mode) {
            assert!(std::env::var_os("CODEWARDEN_REQUIRE_ALL").is_none(), "{error}");
            println!("skipped: {error}");
            continue;
        }
        assert_eq!(with_dynasm::run(mode).unwrap(), RIGHT, "{mode}");
        assert_eq!(with_cranelift::run(mode).unwrap(), RIGHT, "{mode}");
    }
}

/// Each round adds the 1 that the program began with.
#[test]
fn without_tracking_the_old_loop_is_run() {
    assert_eq!(with_dynasm::run(Mode::None).unwrap(), ROUNDS);
    assert_eq!(with_cranelift::run(Mode::None).unwrap(), ROUNDS);
}
