//! A translator begins on a page: the page becomes protected or self-checking, or is busy.

use std::ops::Range;

use super::errors::BeginError;
use super::observer::PageData;
use super::region::Region;
use crate::addr::PageIndex;
use crate::error::Error;
use crate::mode::Mode;
use crate::page_table::{Busy, Generation, InFlight, NotOpen, PageDesc, PageState, Protecting, Stopped};
use crate::policy::Decision;
use crate::protection::Access;
use crate::sync::lock;
use crate::sys::clock::coarse_ms;

/// The result for a translator that begins.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ReadyPage {
    pub(super) generation: Generation,
    /// Translations of the page must compare themselves.
    pub(super) self_checking: bool,
}

impl<D: PageData> Region<D> {
    /// Makes `page` ready for a translator. The generation vouches for bytes that are read
    /// after this call.
    pub(crate) fn begin(&self, page: PageIndex) -> Result<ReadyPage, BeginError> {
        if self.pages.is_lost() {
            self.ensure_abandoned();
            return Err(BeginError::Failed(Error::TrackingLost));
        }
        if !self.protection.is_own() {
            // Pages that are protected by their words are so in the parent, but open here.
            let _ = self.abandon();
            return Err(BeginError::Failed(Error::InForkChild));
        }
        let known = self.pages.get(page);
        if let Some(word) = known.map(|desc| desc.word.load()) {
            let self_checking = word.state() == PageState::SelfChecking;
            if self_checking || word.state() == PageState::Protected {
                return Ok(ReadyPage { generation: word.generation(), self_checking });
            }
        }
        // Only now, because a page that is ready is attached.
        let Some((neighbours, access)) = lock(&self.attached).around(page.0) else {
            return Err(BeginError::Untrackable);
        };
        let made = if known.is_some() { known } else { self.pages.get_or_make(page)? };
        let Some(desc) = made else {
            return Err(BeginError::Failed(Error::BadRange {
                start: self.guest_of(page).0,
                len: self.page.bytes() as u64,
                why: "the page lies outside its region",
            }));
        };
        let word = desc.word.load();
        let held = word.unprotects_in_flight() > 0 && self.pages.is_held_for_writing(page);
        let begun = match self.policy.on_begin(&desc.history.read(coarse_ms(), held)) {
            Decision::Interpret => Err(BeginError::Busy(if held { Busy::Unprotecting } else { Busy::Hot })),
            Decision::SelfCheck => self.begin_self_checking(desc, page, held),
            Decision::Protect if self.mode == Mode::Deferred => self.begin_deferred(desc, page),
            Decision::Protect => self.begin_protected(desc, page, &Neighbours { pages: neighbours, access }),
        };
        if let Err(BeginError::Busy(_)) = begun {
            self.counters.begins_busy.add(1);
        }
        begun
    }

    fn begin_self_checking(&self, desc: &PageDesc<D>, page: PageIndex, held: bool) -> Result<ReadyPage, BeginError> {
        let begin = || {
            if held { self.pages.begin_check_held(page, desc) } else { desc.word.begin_check(InFlight::Heeded) }
        };
        let begun = if self.mode == Mode::Deferred {
            // Under the lock: a page that another translator protects meanwhile
            // stays in the set.
            let mut set = lock(&self.harvest);
            let begun = begin();
            if begun.is_ok() {
                // A harvest would protect it again, for nothing.
                set.remove(page.0..page.0 + 1);
            }
            begun
        } else {
            begin()
        };
        let generation = match begun {
            Ok(generation) => generation,
            Err(other) => return already(other),
        };
        self.became_self_checking(desc);
        self.not_lost()?;
        Ok(ReadyPage { generation, self_checking: true })
    }

    /// Called after the page's word was claimed.
    fn not_lost(&self) -> Result<(), BeginError> {
        self.pages.check_not_stopped().map_err(|stopped| match stopped {
            Stopped::Lost => BeginError::Failed(Error::TrackingLost),
            Stopped::Opening => BeginError::Busy(Busy::Unprotecting),
        })
    }

    fn begin_protected(
        &self,
        desc: &PageDesc<D>,
        page: PageIndex,
        neighbours: &Neighbours,
    ) -> Result<ReadyPage, BeginError> {
        let mut claimed = match self.pages.begin_protect(page, desc) {
            Ok(pages) => ProtectAttempt { region: self, pages },
            Err(found) => return already(found),
        };
        if self.limits.protect_batch_pages > 1 {
            claimed.extend(self.limits.protect_batch_pages, neighbours);
        }
        self.not_lost()?;
        self.count_call();
        if let Err(error) = self.protection.protect(self.host_of(&claimed.pages.pages())) {
            self.protect_alone(&mut claimed, desc, page, error)?;
        }
        self.count_protected(claimed.pages.pages().len());
        claimed.finish(page)
    }

    /// The call that protects failed with `error`. The mapping of a neighbour may be gone.
    #[cold]
    #[inline(never)]
    fn protect_alone(
        &self,
        claimed: &mut ProtectAttempt<'_, D>,
        desc: &PageDesc<D>,
        page: PageIndex,
        error: Error,
    ) -> Result<(), BeginError> {
        let mut protected = Err(error);
        if claimed.pages.pages().len() > 1 {
            claimed.give_up_neighbours(page);
            self.count_call();
            protected = self.protection.protect(self.host_of(&claimed.pages.pages()));
        }
        match protected {
            Ok(()) => Ok(()),
            Err(Error::TrackingLost) => {
                // Not this page alone: the other protected pages may be open by now.
                let _ = self.abandon();
                Err(BeginError::Failed(Error::TrackingLost))
            }
            // A mechanism that checks its work gives up on a page that a writer opens each time.
            Err(_) if desc.word.load().state() == PageState::Cancelled => Err(BeginError::Busy(Busy::Written)),
            Err(error) => Err(BeginError::Failed(error)),
        }
    }

    /// Takes the protection by a harvest of the page, under the lock. This does not hide a
    /// write that another announcement should have reported.
    fn begin_deferred(&self, desc: &PageDesc<D>, page: PageIndex) -> Result<ReadyPage, BeginError> {
        let mut set = lock(&self.harvest);
        let claimed = match self.pages.begin_protect(page, desc) {
            Ok(pages) => ProtectAttempt { region: self, pages },
            Err(found) => return already(found),
        };
        self.not_lost()?;
        self.count_call();
        // An earlier write to it does not matter: no block is on an open page.
        self.protection.harvest(self.host_of(&claimed.pages.pages()), &mut |_| {})?;
        // Under the same lock, so every harvest from now on looks at it. If the kernel refuses the
        // page, no block comes to be on it, and a harvest of it would fail as well.
        set.insert(page.0);
        self.count_protected(1);
        claimed.finish(page)
    }
}

/// The page is ready already, or busy.
fn already(begin: NotOpen) -> Result<ReadyPage, BeginError> {
    match begin {
        NotOpen::Protected(generation) => Ok(ReadyPage { generation, self_checking: false }),
        NotOpen::SelfChecking(generation) => Ok(ReadyPage { generation, self_checking: true }),
        NotOpen::Busy(busy) => Err(BeginError::Busy(busy)),
    }
}

/// The attached pages around one, with equal access.
struct Neighbours {
    pages: Range<usize>,
    access: Access,
}

/// Pages that this translator is about to protect. The drop restores their words and the
/// kernel's protection.
struct ProtectAttempt<'a, D: PageData> {
    region: &'a Region<D>,
    pages: Protecting<'a, D>,
}

impl<'a, D: PageData> ProtectAttempt<'a, D> {
    /// Takes neighbours along that were opened in bulk, or that the guest cannot write: one
    /// system call protects them all.
    fn extend(&mut self, most: usize, neighbours: &Neighbours) {
        while self.pages.pages().len() < most {
            let Some(next) = self.take(self.pages.pages().end, neighbours) else { break };
            self.pages.join(next);
        }
        while self.pages.pages().len() < most {
            let before = self.pages.pages().start.checked_sub(1);
            let Some(next) = before.and_then(|page| self.take(page, neighbours)) else { break };
            self.pages.join(next);
        }
    }

    fn take(&self, page: usize, neighbours: &Neighbours) -> Option<Protecting<'a, D>> {
        if !neighbours.pages.contains(&page) {
            return None;
        }
        let (table, page) = (&self.region.pages, PageIndex(page));
        // The guest cannot write to it, so it will not be opened soon.
        let desc = if neighbours.access == Access::Read {
            table.get_or_make(page).ok()??
        } else {
            table.get(page).filter(|desc| desc.history.take_opened_in_bulk())?
        };
        table.begin_protect(page, desc).ok()
    }

    fn give_up_neighbours(&mut self, page: PageIndex) {
        let region = self.region;
        let behind = self.pages.split_off(page.0 + 1);
        let own = self.pages.split_off(page.0);
        let before = core::mem::replace(&mut self.pages, own);
        drop([before, behind].map(|pages| Self { region, pages }));
    }

    /// The system call protected them all. Returns the result for `page`.
    fn finish(mut self, page: PageIndex) -> Result<ReadyPage, BeginError> {
        let region = self.region;
        let mut begun = Err(BeginError::Busy(Busy::Written));
        while let Some((at, finished)) = self.pages.finish_first() {
            match finished {
                Ok(generation) => {
                    region.counters.protects.add(1);
                    if at == page {
                        begun = Ok(ReadyPage { generation, self_checking: false });
                    }
                }
                Err(pages) => drop(Self { region, pages }),
            }
        }
        begun
    }
}

impl<D: PageData> Drop for ProtectAttempt<'_, D> {
    fn drop(&mut self) {
        let pages = self.pages.pages();
        if !pages.is_empty() && self.region.unprotect_pages(pages, self.pages.permit()).is_err() {
            // An announcement takes an open page for a writable one, so the kernel's own
            // writes would be refused.
            let _ = self.region.open_all();
        }
    }
}
