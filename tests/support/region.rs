//! The region of a test.

use codewarden::addr::{GuestAddr, PageSize};
use codewarden::guest_memory::GuestMemory;
use codewarden::protection::Mode;
use codewarden::tracker::RegionOptions;

/// The guest's address of the region.
pub(crate) const GUEST: u64 = 0x10_0000;
/// Pages of it.
pub(crate) const PAGES: usize = 16;

pub(crate) fn page_bytes() -> usize {
    PageSize::host().bytes()
}

pub(crate) fn region(guest: u64, memory: &GuestMemory, mode: Mode) -> RegionOptions {
    RegionOptions::new(GuestAddr(guest), memory.range(), mode)
}
