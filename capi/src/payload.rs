//! What a block of C's owns.
//!
//! # Safety
//!
//! A payload is an address that only its `drop` looks behind.
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

// SAFETY: C promises that its payload may be freed by any thread, and nothing else is
// done with it; what is kept is Send by itself.
unsafe impl Send for Owned {}
// SAFETY: nothing is reached through a shared one.
unsafe impl Sync for Owned {}

impl Owned {
    /// Takes over what C gave.
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
            // SAFETY: called once for each payload; what may be called with it is C's
            // promise. What the block keeps goes after it.
            unsafe { free(self.payload) };
        }
        self.kept.clear();
    }
}
