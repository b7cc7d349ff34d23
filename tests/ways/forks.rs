//! Memory that a fork's child shares. `tests/fork.rs` has the effects of both sides on each other.
//! `tests/host_faults.rs` has a child that drops its objects without any call to the library first.
//!
//! # Safety
//!
//! Children store to the fixture's memory and leave.
#![allow(unsafe_code)]

use crate::child::{Ended, in_child};
use crate::expect::in_every_mode;

/// A child stores 5 there, in its own mapping.
fn stored_by_a_child(at: *mut u8) {
    let ended = in_child(|| {
        // SAFETY: mapped in the child as it is in the parent.
        unsafe { at.write_volatile(5) };
        0
    });
    assert_eq!(ended, Ended::Returned(0));
}

/// Private memory is the child's own; an unannounced child takes no protection from the
/// parent. (In mprotect mode it inherits the protection, and lifts its own.)
#[test]
fn a_childs_store_to_private_memory() {
    in_every_mode(|guest| {
        if guest.memory.file().is_some() {
            return;
        }
        let block = guest.block(1, 0);
        let at = guest.host(1, 0);
        stored_by_a_child(at);
        assert_eq!(guest.bytes(1, 0, 1), [0]);
        guest.expect_reachable(block);
        guest.expect_tracked(1, 0);
    });
}

/// A mapping in another process: not promised. Its store changes the bytes unreported, so the
/// embedder must announce it.
#[test]
fn a_childs_store_to_shared_memory() {
    in_every_mode(|guest| {
        let Some(view) = guest.memory.host_view() else { return };
        let block = guest.block(1, 0);
        let at = view.as_ptr().wrapping_add(crate::support::page_bytes());
        stored_by_a_child(at);
        assert_eq!(guest.bytes(1, 0, 1), [5]);
        guest.expect_reachable(block);
        guest.invalidate(1, 0, 1);
        guest.expect_dead(block);
        guest.expect_tracked(1, 0);
    });
}
