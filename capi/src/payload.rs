//! The objects that a block owns for C.
//!
//! # Safety
//!
//! A payload is an address that only its `drop` follows.
#![allow(unsafe_code)]

use std::ffi::c_void;

use engine::Link;
use engine::code_buffer::Allocation;

/// Frees a payload. C's promise: any thread may call it.
type DropPayload = unsafe extern "C" fn(payload: *mut c_void);

/// A handle that a block keeps, only to be dropped.
pub(crate) enum Kept {
    Allocation(Allocation),
    Link { _link: Link },
}

/// The payload of every block: dropped by the cache when no vCPU can be inside.
pub(crate) struct Owned {
    payload: *mut c_void,
    free: Option<DropPayload>,
    kept: Vec<Kept>,
}

// SAFETY: C promises that any thread may free its payload, and nothing else is done
// with it; the kept handles are Send by themselves.
unsafe impl Send for Owned {}
// SAFETY: nothing is reached through a shared one.
unsafe impl Sync for Owned {}

impl Owned {
    /// Takes over the payload that C gave.
    pub(crate) fn new(payload: *mut c_void, free: Option<DropPayload>) -> Self {
        Self { payload, free, kept: Vec::new() }
    }

    pub(crate) fn keeps(mut self, kept: Vec<Kept>) -> Self {
        self.kept = kept;
        self
    }
}

impl Drop for Owned {
    fn drop(&mut self) {
        if let Some(free) = self.free {
            // SAFETY: called once for each payload; C promises that it may be called.
            // The kept handles are dropped after it.
            unsafe { free(self.payload) };
        }
        self.kept.clear();
    }
}
