//! A page that a translator has claimed, or the reason why it could not.
//!
//! # Safety
//!
//! Bytes are read only from tracked regions; their embedder promised to keep them mapped.
#![allow(unsafe_code)]

use std::fmt;
use std::ops::Range;

use crate::addr::{GuestAddr, HostAddr, HostRange, PageIndex};
use crate::error::Error;
use crate::memory::guest_memory;
use crate::page_table::{Busy, PageDesc};
use crate::protection::Mode;
use crate::sync::{Arc, Rule, fence};

use super::PageObserver;
use super::region::{Begun, Region};

/// The reason why a page cannot be translated from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BeginError {
    /// Not at the moment: interpret the instruction, and come back.
    Busy(Busy),
    /// Permanently.
    Failed(Error),
}

impl fmt::Display for BeginError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Busy(busy) => write!(f, "the page is busy: {busy:?}"),
            Self::Failed(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for BeginError {}

impl From<Error> for BeginError {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

/// A page that was protected for a translator.
pub struct PageClaim<O: PageObserver> {
    pub(super) region: Arc<Region<O>>,
    /// Points into the table of `region`, which the claim keeps.
    pub(super) page: PageIndex,
    pub(super) begun: Begun,
}

impl<O: PageObserver> fmt::Debug for PageClaim<O> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PageClaim").field("page", &self.guest_page()).field("begun", &self.begun).finish()
    }
}

impl<O: PageObserver> PageClaim<O> {
    /// First byte of the page as the guest sees it.
    pub fn guest_page(&self) -> GuestAddr {
        self.region.guest_of(self.page)
    }

    /// The page in this process.
    pub fn host_page(&self) -> HostRange {
        let start = self.region.host().start().0 + (self.page.0 << self.region.page_size().shift());
        HostRange::page_of(HostAddr(start), self.region.page_size())
    }

    /// Copies the bytes at `guest`, which lie on the page. The region is tracked meanwhile.
    pub(super) fn read(&self, guest: GuestAddr, into: &mut [u8]) {
        let offset = (guest.0 - self.guest_page().0) as usize;
        assert!(offset + into.len() <= self.region.page_size().bytes(), "the bytes of one page");
        // SAFETY: the page is in a tracked region, so it is mapped and readable, by the
        // contract of `Tracker::add_region` or because the region keeps its memory.
        unsafe { guest_memory::read_host(HostAddr(self.host_page().start().0 + offset), into) };
    }

    /// The mechanism that learns of writes to it.
    pub fn mode(&self) -> Mode {
        self.region.mode()
    }

    /// Whether the page is checked: it stays writable, and each translation of it must
    /// compare its bytes with those that it was made from before each use.
    pub fn is_checked(&self) -> bool {
        self.begun.checked
    }

    /// Declares that a translation is made from `bytes` of the page, by offset. Call it
    /// before the observer can find the translation. A page has 64 lines, of 64 bytes each
    /// if it has 4 KiB. A write to a line with code makes the page's translations
    /// unreachable. A write to another line makes the page checked, if the policy has
    /// checked pages. Batches include only pages with code.
    pub fn add_code(&self, bytes: Range<usize>) {
        self.desc().add_code(bytes, self.region.page_size().bytes());
    }

    /// The observer's data for the page.
    pub fn data(&self) -> &O::Data {
        &self.desc().data
    }

    fn desc(&self) -> &PageDesc<O::Data> {
        // Claims are made from descriptors, which stay as long as their region.
        self.region.pages.get(self.page).unwrap_or_else(|| unreachable!("a claimed page has a descriptor"))
    }

    /// Whether no write came since the page was claimed, and no fork before
    /// [`after_fork_child`](super::ForkGuard::after_fork_child) was called. Enter the
    /// translation at a place that the observer finds before you ask this.
    pub fn is_current(&self) -> bool {
        fence(Rule::FenceBeforeGenerations);
        self.desc().word.holds(self.begun.generation) && self.region.protection.is_own()
    }
}

/// The observer's data for a page: see [`Tracker::data`](super::Tracker::data).
pub struct PageData<O: PageObserver> {
    pub(super) region: Arc<Region<O>>,
    pub(super) page: PageIndex,
}

impl<O: PageObserver> fmt::Debug for PageData<O> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PageData").field("page", &self.region.guest_of(self.page)).finish_non_exhaustive()
    }
}

impl<O: PageObserver> std::ops::Deref for PageData<O> {
    type Target = O::Data;

    fn deref(&self) -> &O::Data {
        // It was found before, and descriptors stay as long as their region.
        &self.region.pages.get(self.page).unwrap_or_else(|| unreachable!("the page has a descriptor")).data
    }
}
