//! A translation in progress: from `begin` to `commit`.

use std::any::Any;
use std::fmt;
use std::ptr;

use super::block_list::PageBlocks;
use super::cache::CodeCache;
use super::entry::{Entry, EntryCell};
use super::errors::{CommitError, TranslateError};
use super::key::{Key, Payload};
use super::record::{Block, BlockPage, BlockPages};
use super::stale_flag::StaleFlag;
use super::table::Link;
use super::translation::{Place, Source, Translation};
use crate::addr::{GuestAddr, HostRange, Span};
use crate::error::Error;
use crate::memory::code_buffer::Allocation;
use crate::sync::Arc;
use crate::tracker::{BeginError, PageClaim};

/// The most that one payload counts for, so that the sum of a million payloads does not overflow.
const MOST_PAYLOAD_BYTES: usize = usize::MAX >> 20;

impl<P: Payload> CodeCache<P> {
    /// Begins a translation that will be found by `key`.
    pub fn begin(&self, key: Key) -> Ticket<P> {
        Ticket::new(self.clone(), key)
    }
}

/// A translation in progress. If it is dropped without a commit, only the pages' protection
/// remains.
pub struct Ticket<P: Payload> {
    cache: CodeCache<P>,
    key: Key,
    pages: BlockPages<P>,
    flag: Option<Arc<StaleFlag>>,
    source: Option<Source>,
    options: u64,
    payload_bytes: usize,
    links: Vec<Link>,
    /// Bytes were read of a page that was not claimed.
    is_misread: bool,
}

impl<P: Payload> fmt::Debug for Ticket<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ticket").field("key", &self.key).finish_non_exhaustive()
    }
}

impl<P: Payload> Ticket<P> {
    pub(super) fn new(cache: CodeCache<P>, key: Key) -> Self {
        let (pages, flag, source) = (BlockPages::new(), None, None);
        Self { cache, key, pages, flag, source, options: 0, payload_bytes: 0, links: Vec::new(), is_misread: false }
    }

    /// The key of the block.
    pub fn key(&self) -> Key {
        self.key
    }

    /// Protects the page that holds `guest`, if this ticket has not yet, and every page that is
    /// known to show the same bytes. Returns the page's place in this process. From now on its
    /// bytes may be read, each of them once: in a deferred region a second reading may differ.
    ///
    /// # Errors
    ///
    /// [`BeginError::Busy`]: interpret, and begin again later.
    /// [`BeginError::Failed`]: no region is there, or the kernel refused.
    pub fn claim(&mut self, guest: GuestAddr) -> Result<HostRange, BeginError> {
        let page_bytes = self.cache.tracker().page_size().bytes() as u64;
        let mut claims = self.pages.iter().map(|page| &page.claim);
        if let Some(claim) = claims.find(|claim| guest.0.wrapping_sub(claim.guest_page().0) < page_bytes) {
            return Ok(claim.host_page());
        }
        let claim = self.cache.0.tracker.begin(guest)?;
        let (host, shows) = (claim.host_page(), claim.guest_page());
        let aliases = self.cache.tracker().aliases(guest);
        let others = if aliases.is_empty() { Vec::new() } else { self.claim_views(aliases)? };
        self.pages.push(BlockPage::new(claim, shows));
        self.pages.extend(others.into_iter().map(|claim| BlockPage::new(claim, shows)));
        Ok(host)
    }

    /// All of a page's other views or none, also if a policy panics in between: a page that is
    /// found in `pages` is not claimed again.
    #[cold]
    fn claim_views(&self, views: Vec<GuestAddr>) -> Result<Vec<PageClaim<PageBlocks<Block<P>>>>, BeginError> {
        views.into_iter().map(|view| self.cache.0.tracker.begin(view)).collect()
    }

    /// Reads the guest's bytes at `guest` for the block: claims their pages
    /// ([`Ticket::claim`]), copies the bytes, and notes that the block is made from them
    /// ([`Ticket::add_source`]). An aligned word of 8, 4 or 2 bytes is copied whole.
    ///
    /// Translating the same code must make these calls in the same order each time. An error may
    /// leave the first part of `into` overwritten.
    ///
    /// # Errors
    ///
    /// [`TranslateError::Interpret`]: a write is in progress.
    /// [`TranslateError::Failed`]: the bytes are in no region, or the kernel refused.
    pub fn read(&mut self, guest: GuestAddr, into: &mut [u8]) -> Result<(), TranslateError> {
        let page_bytes = self.cache.tracker().page_size().bytes() as u64;
        let mut left = Span::new(guest.0, into.len() as u64)?;
        while let Some(rest) = left {
            let on_page = Span::page_of(rest.first(), page_bytes);
            let at = GuestAddr(rest.first());
            self.claim(at)?;
            let claim = self.pages.iter().find(|page| page.claim.guest_page().0 == on_page.first());
            let Some(BlockPage { claim, .. }) = claim else { unreachable!("the page was claimed") };
            let part = (rest.first() - guest.0) as usize..(rest.last().min(on_page.last()) - guest.0 + 1) as usize;
            self.cache.0.tracker.read(claim, at, &mut into[part])?;
            [_, left] = rest.without(on_page);
        }
        Ok(self.add_source(guest, into)?)
    }

    /// Declares that the block is made from `bytes`, which were read at `guest` after the pages
    /// there were claimed. Call it for each piece of the guest's code, and in the same order each
    /// time that the same code is translated.
    ///
    /// With it, a write to other bytes of the pages is a data write, which may leave the block, and
    /// the block can be revived. Without any call, every byte of its pages belongs to the block.
    /// Code that depends on anything but the key and these bytes must not call it.
    ///
    /// # Errors
    ///
    /// [`Error::BadRange`] if a page of the range was not claimed, or the range wraps. Bytes read
    /// there may have changed unseen, so the ticket can make no block any more
    /// ([`CommitError::NotClaimed`]). Claim first, then read.
    pub fn add_source(&mut self, guest: GuestAddr, bytes: &[u8]) -> Result<(), Error> {
        let len = bytes.len() as u64;
        let bad = |why| Error::BadRange { start: guest.0, len, why };
        let page_bytes = self.cache.tracker().page_size().bytes() as u64;
        let mut left = Span::new(guest.0, len).inspect_err(|_| self.is_misread = true)?;
        while let Some(rest) = left {
            let on_page = Span::page_of(rest.first(), page_bytes);
            let is_there = |page: &&BlockPage<P>| page.claim.guest_page().0 == on_page.first();
            let Some(page) = self.pages.iter().find(is_there) else {
                self.is_misread = true;
                return Err(bad("claim each page before reading it"));
            };
            let last = rest.last().min(on_page.last());
            let of_page = |at: u64| (at - on_page.first()) as usize;
            let shows = page.shows;
            for view in self.pages.iter().filter(|view| view.shows == shows) {
                view.claim.add_code(of_page(rest.first())..of_page(last) + 1);
            }
            [_, left] = rest.without(on_page);
        }
        self.source.get_or_insert_default().add(guest, bytes);
        Ok(())
    }

    /// Records every other input of the translation, as one number that the embedder makes. A
    /// retained block with another number is not revived. The default is 0.
    pub fn set_options(&mut self, options: u64) {
        self.options = options;
    }

    /// Declares how many bytes of memory are free again when the payload is dropped. They count
    /// against the cache's limit ([`CodeCache::set_limit`]). Without a declaration a payload counts
    /// for nothing, except an [`Allocation`], which counts by itself. A payload of more than 16 TiB
    /// (on 64-bit hosts) counts as 16 TiB.
    pub fn set_payload_bytes(&mut self, payload_bytes: usize) {
        self.payload_bytes = payload_bytes.min(MOST_PAYLOAD_BYTES);
    }

    /// Whether the block needs a self-checking entry, because a claimed page is written to all the
    /// time and stays writable. If it needs none, a page may still become self-checking later.
    pub fn needs_check(&self) -> bool {
        self.pages.iter().any(|page| page.claim.is_self_checking())
    }

    /// A byte that is 0 while the block is valid and entered by its plain entry, and otherwise one
    /// of [`StaleFlag`]'s other values. Emitted code may poll it, for instance after its own
    /// stores. It lives as long as the block's payload. In a synchronous region, a block that can
    /// store to its own bytes must poll it, unless the address of the store shows that it did not
    /// hit them. A block has a flag only if this was called for its ticket.
    pub fn stale_flag(&mut self) -> *const u8 {
        Arc::as_ptr(self.flag.get_or_insert_with(|| Arc::new(StaleFlag::new()))).cast()
    }

    /// Links the block to the present and future blocks of `key`. Returns the cell to jump through
    /// ([`EntryCell`]). The cell lives as long as the block's payload.
    ///
    /// # Errors
    ///
    /// As [`CodeCache::link`].
    pub fn link(&mut self, key: Key) -> Result<*const EntryCell, Error> {
        let link = self.cache.link(key)?;
        let cell = ptr::from_ref(link.cell());
        self.links.push(link);
        Ok(cell)
    }

    /// Whether no write came since the pages were claimed. Otherwise a commit would be refused, as
    /// it would in a fork's child that was not announced.
    pub fn is_current(&self) -> bool {
        self.pages.iter().all(|page| page.claim.is_current())
    }

    /// Looks for a retained block of the same key, made from the same bytes
    /// ([`Ticket::add_source`], called for all of them before) with the same options. Makes it
    /// reachable again, unless such a block is reachable already.
    ///
    /// Returns `None` if such a block is reachable now: look the key up. Returns the ticket if
    /// there is none: translate, and commit.
    ///
    /// # Errors
    ///
    /// [`CommitError::Written`]: a write came since a page was claimed. Begin again.
    /// [`CommitError::NotClaimed`], [`CommitError::UnderForkGuard`]: as for [`Ticket::commit`].
    pub fn revive(mut self) -> Result<Option<Self>, CommitError> {
        if self.is_misread {
            return Err(CommitError::NotClaimed);
        }
        let Some(source) = self.source.as_ref().filter(|_| self.key.is_valid()) else {
            return Ok(Some(self));
        };
        if self.cache.stands_still_here() {
            return Err(CommitError::UnderForkGuard);
        }
        let pages = self.cache.revive(self.key, std::mem::take(&mut self.pages), source, self.options)?;
        Ok(pages.map(|pages| Self { pages, ..self }))
    }

    /// Makes the block reachable: lookups of its key and links to it lead to `entry` until a write
    /// to its bytes arrives. It supersedes a block of the same key. `payload` is dropped when no
    /// vCPU can be inside the block any more and it is not retained for [`Ticket::revive`]. Older
    /// blocks may be evicted for it ([`CodeCache::set_limit`]).
    ///
    /// # Errors
    ///
    /// [`CommitError::Written`]: a write came since a page was claimed. The block cannot be
    /// reached; `payload` was dropped or is retained. Begin again, or interpret an instruction
    /// first.
    /// [`CommitError::NotClaimed`]: [`Ticket::add_source`] failed.
    /// [`CommitError::UnderForkGuard`]: this thread holds the guard of a fork.
    /// [`CommitError::NeedsCheck`]: [`Ticket::needs_check`] is true, and `entry` has no self-checking
    /// address. [`CommitError::NoPages`]: nothing was claimed. [`CommitError::BadEntry`]: an
    /// address equals a stub's, or both addresses are the same.
    pub fn commit(self, entry: impl Into<Entry>, payload: P) -> Result<(), CommitError> {
        let needs_check = self.needs_check();
        let Self { cache, key, pages, flag, source, options, payload_bytes, links, is_misread } = self;
        let entry = entry.into();
        let payload_bytes = match payload_bytes {
            0 => (&payload as &dyn Any).downcast_ref::<Allocation>().map_or(0, Allocation::len),
            declared => declared,
        };
        if is_misread {
            return Err(CommitError::NotClaimed);
        }
        if pages.is_empty() {
            return Err(CommitError::NoPages);
        }
        if !entry.is_usable(cache.0.invalidator.stubs) || !key.is_valid() {
            return Err(CommitError::BadEntry);
        }
        if needs_check && entry.address(true).is_none() {
            return Err(CommitError::NeedsCheck);
        }
        if cache.stands_still_here() {
            return Err(CommitError::UnderForkGuard);
        }
        if source.is_none() {
            // Before the block is in their lists.
            let page_bytes = cache.tracker().page_size().bytes();
            pages.iter().for_each(|page| page.claim.add_code(0..page_bytes));
        }
        let (links, place) = (links.into_boxed_slice(), Place::none());
        let translation =
            Box::new(Translation { entry, flag, source, options, links, payload_bytes, place, _payload: payload });
        cache.commit(key, pages, translation)
    }
}
