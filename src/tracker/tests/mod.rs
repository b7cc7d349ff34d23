//! Tests of the tracker over mechanisms that fail, and over larger pages.

mod claims;
mod larger_pages;
mod neighbours;
mod opening_all;
mod removal;
mod repeats;
mod writers;

use super::{PageObserver, PageWrite};

pub(super) struct NoObserver;

#[allow(unsafe_code)]
// SAFETY: does nothing.
unsafe impl PageObserver for NoObserver {
    type Data = ();

    fn written(&self, (): &(), _: &PageWrite) {}
}
