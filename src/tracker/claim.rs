//! A page that a translator has claimed, or the reason why it could not claim it.
//!
//! # Safety
//!
//! Bytes are read only from tracked regions; their embedder promised to keep them mapped.
#![allow(unsafe_code)]

use std::fmt;
use std::ops::Range;

use crate::addr::{GuestAddr, HostAddr, HostRange, PageIndex, Span};
use crate::error::Error;
use crate::memory::guest_memory;
use crate::page_table::{Busy, PageDesc};
use crate::protection::Mode;
use crate::sync::{Arc, Rule, fence};

use super::begin::ReadyPage;
use super::errors::BeginError;
use super::observer::PageData;
use super::region::Region;
use super::regions::Tracker;
use super::space::Tracked;

/// A page that was protected for a translator.
pub struct PageClaim<D: PageData> {
    pub(super) region: Arc<Region<D>>,
    /// Points into the table of `region`, which the claim keeps.
    pub(super) page: PageIndex,
    pub(super) begun: ReadyPage,
}

impl<D: PageData> fmt::Debug for PageClaim<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PageClaim").field("page", &self.guest_page()).field("begun", &self.begun).finish()
    }
}

impl<D: PageData> PageClaim<D> {
    /// First byte of the page as the guest sees it.
    pub fn guest_page(&self) -> GuestAddr {
        self.region.guest_of(self.page)
    }

    /// The page in this process.
    pub fn host_page(&self) -> HostRange {
        let start = self.region.host().start().0 + (self.page.0 << self.region.page_size().shift());
        HostRange::page_of(HostAddr(start), self.region.page_size())
    }

    /// Copies the bytes at `offset` of the page, which has them. The region is tracked meanwhile. An
    /// error if the page's mapping may be gone: the claim was ended by a change of mappings that is not
    /// over, or that has left nothing there; and if the guest may not read it.
    fn read(&self, offset: usize, into: &mut [u8]) -> Result<(), BeginError> {
        let word = self.desc().word.load();
        if word.generation() != self.begun.generation && word.unprotects_in_flight() > 0 {
            return Err(BeginError::Busy(Busy::Unprotecting));
        }
        self.region.while_readable(self.page, || {
            // SAFETY: the page is attached and readable, so it is mapped, by the contract of
            // `Tracker::add_region` or because the region keeps its memory.
            unsafe { guest_memory::read_host(HostAddr(self.host_page().start().0 + offset), into) };
        })
    }

    /// The mechanism that learns of writes to it.
    pub fn mode(&self) -> Mode {
        self.region.mode()
    }

    /// Whether the page is self-checking: it stays writable, and each translation of it must
    /// compare its bytes with those that it was made from before each use.
    pub fn is_self_checking(&self) -> bool {
        self.begun.self_checking
    }

    /// Declares that a translation is made from `bytes` of the page, by offset. Call it
    /// before the observer can find the translation. A page has 64 lines, of 64 bytes each
    /// if it has 4 KiB. A write to a line with code makes the page's translations
    /// unreachable. A write to another line makes the page self-checking, if the policy has
    /// self-checking pages. Batches include only pages with code.
    pub fn add_code(&self, bytes: Range<usize>) {
        self.desc().add_code(bytes, self.region.page_size().bytes());
    }

    /// The observer's data for the page.
    pub fn data(&self) -> &D {
        &self.desc().data
    }

    fn desc(&self) -> &PageDesc<D> {
        // Claims are made from descriptors, which stay as long as their region.
        self.region.pages.get(self.page).unwrap_or_else(|| unreachable!("a claimed page has a descriptor"))
    }

    /// Whether no write came since the page was claimed. In a fork's child it is not current before
    /// [`after_fork_child`](super::TrackerForkGuard::after_fork_child) was called. Enter the
    /// translation at a place that the observer finds before you ask this, and let it be run after that.
    pub fn is_current(&self) -> bool {
        fence(Rule::FenceBeforeGenerations);
        self.desc().word.holds(self.begun.generation) && self.region.protection.is_own()
    }
}

/// The observer's data for a page: see [`Tracker::data`](super::Tracker::data).
pub struct PageDataRef<D: PageData> {
    pub(super) region: Arc<Region<D>>,
    pub(super) page: PageIndex,
}

impl<D: PageData> fmt::Debug for PageDataRef<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PageDataRef").field("page", &self.region.guest_of(self.page)).finish_non_exhaustive()
    }
}

impl<D: PageData> PageDataRef<D> {
    /// [`PageClaim::add_code`], without the claim.
    pub fn add_code(&self, bytes: Range<usize>) {
        self.desc().add_code(bytes, self.region.page_size().bytes());
    }

    /// Whether the page's mechanism is this process's. In a fork's child that was not announced it is
    /// the parent's: no write here is noticed.
    pub fn is_own(&self) -> bool {
        self.region.protection.is_own()
    }

    fn desc(&self) -> &PageDesc<D> {
        // It was found before, and descriptors stay as long as their region.
        self.region.pages.get(self.page).unwrap_or_else(|| unreachable!("the page has a descriptor"))
    }
}

impl<D: PageData> std::ops::Deref for PageDataRef<D> {
    type Target = D;

    fn deref(&self) -> &D {
        &self.desc().data
    }
}

impl<D: PageData> Tracker<D> {
    /// Protects the page that holds `guest` for a translator.
    ///
    /// # Errors
    ///
    /// [`BeginError::Busy`]: a write is going on; interpret and come back.
    /// [`BeginError::Untrackable`]: no mapping there, or one that could not be tracked.
    /// [`BeginError::Failed`]: no region, or the kernel refused.
    pub fn begin(&self, guest: GuestAddr) -> Result<PageClaim<D>, BeginError> {
        let space = self.gate.enter()?;
        let Tracked { region, .. } = space.at(guest)?;
        let page = region.page_of(guest);
        let begun = region.begin(page)?;
        Ok(PageClaim { region: region.clone(), page, begun })
    }

    /// Copies the bytes at `guest`, which lie on the page of `claim`. An aligned word of 8, 4 or 2
    /// bytes is copied whole.
    ///
    /// # Errors
    ///
    /// [`BeginError::Busy`] while the page is written or its mapping changes, and
    /// [`BeginError::Untrackable`] after its mapping has gone: nothing is read there.
    /// [`Error::BadRange`] if the page lacks a byte of them, or if the guest may not read it
    /// ([`Access::None`](crate::protection::Access::None)). [`Error::NotTracked`] if the claim's
    /// region is no longer tracked.
    pub fn read(&self, claim: &PageClaim<D>, guest: GuestAddr, into: &mut [u8]) -> Result<(), BeginError> {
        let offset = guest.0.wrapping_sub(claim.guest_page().0);
        let page_bytes = self.page.bytes() as u64;
        if offset >= page_bytes || into.len() as u64 > page_bytes - offset {
            let why = "a claim is of one page: claim each page of the bytes";
            return Err(Error::BadRange { start: guest.0, len: into.len() as u64, why }.into());
        }
        // The region cannot be removed meanwhile, and no change of mappings ends.
        let space = self.gate.enter()?;
        let tracked = space.at(guest)?;
        if !Arc::ptr_eq(&tracked.region, &claim.region) {
            return Err(Error::NotTracked { start: guest.0, len: into.len() as u64 }.into());
        }
        claim.read(offset as usize, into)
    }

    /// The observer's data for the page that holds `guest`; `None` if no translation was ever
    /// begun on the page or its neighbours.
    pub fn data(&self, guest: GuestAddr) -> Option<PageDataRef<D>> {
        let region = self.gate.region_at(guest)?;
        let page = region.page_of(guest);
        region.pages.get(page)?;
        Some(PageDataRef { region, page })
    }

    /// The other guest pages that show the bytes of the page that holds `guest`. A translator
    /// begins on each of these too, *after* the page itself: a store through any of them
    /// changes the bytes.
    ///
    /// # Panics
    ///
    /// If this thread holds the guard of a fork ([`Tracker::before_fork`]).
    #[track_caller]
    pub fn aliases(&self, guest: GuestAddr) -> Vec<GuestAddr> {
        self.gate.aliases(Span::page_of(guest.0, self.page.bytes() as u64))
    }
}
