//! Policies: how each page's blocks are kept true.
//!
//! # Safety
//!
//! A C enum is read as a number: C may pass any.
#![allow(unsafe_code)]

use std::ffi::c_uint;
use std::mem::{MaybeUninit, transmute};
use std::sync::Arc;

use engine::policy::{Adaptive, Plain, Policy};

use crate::mode::number;
use crate::status::Failure;

/// How each page's translations are kept true.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum cw_policy {
    /// Protect; open pages ahead of a stream of writes and protect them again in
    /// batches. Blocks need no self-checking entry. A page that the same store keeps hitting
    /// is CW_BUSY for a while: interpret.
    CW_POLICY_ADAPTIVE = 0,
    /// The same, and pages with data that is written, or that are written again and
    /// again, become self-checking: they stay writable, and their blocks compare their
    /// bytes at each entry. Blocks should have a self-checking entry
    /// (cw_ticket_commit()).
    CW_POLICY_ADAPTIVE_WITH_CHECKS = 1,
    /// One page for each fault, as mprotect trackers do it: a baseline for
    /// measurements. A store over two pages may fault many times before it makes
    /// progress.
    CW_POLICY_PLAIN = 2,
}

impl cw_policy {
    pub(crate) fn read(raw: MaybeUninit<Self>) -> Result<Arc<dyn Policy>, Failure> {
        Ok(match number!(raw, cw_policy) {
            0 => Arc::new(Adaptive::new()),
            1 => Arc::new(Adaptive::with_checks()),
            2 => Arc::new(Plain),
            _ => return Err(Failure::bad_argument(c"no cw_policy has this number")),
        })
    }
}
