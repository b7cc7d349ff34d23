//! Regular maintenance: lets cooled pages be protected again, and detects mechanisms that were lost
//! in silence.

use std::collections::BTreeMap;

use super::observer::{Cause, PageData};
use super::region::Region;
use super::regions::Tracker;
use crate::page_table::PageState;
use crate::panics::FirstPanic;
use crate::protection::name_of;
use crate::sync::Ordering;
use crate::sys::clock::coarse_ms;

impl<D: PageData> Tracker<D> {
    /// Lets cooled self-checking pages be protected again, as the policy says, and notices a lost
    /// mechanism (all its descriptors closed, its thread killed). Call it from a timer, a few times
    /// a second. It takes one or two cheap system calls a mechanism, of which all regions of a mode
    /// have one, and looks at the pages only if at
    /// least one is self-checking.
    ///
    /// If the policy panics, every region is still looked at, and then the panic goes on.
    ///
    /// # Panics
    ///
    /// If this thread holds the guard of a fork ([`Tracker::before_fork`]).
    #[track_caller]
    pub fn maintain(&self) {
        let mut panics = FirstPanic::default();
        let space = self.gate.read();
        let mut works = BTreeMap::new();
        for region in space.regions.iter().map(|tracked| &tracked.region) {
            let mut check = || region.protection.check().is_ok();
            let works = *works.entry(name_of(&region.protection)).or_insert_with(&mut check);
            // Another call may have noticed it meanwhile.
            region.maintain(works, &mut panics);
        }
        drop(space);
        panics.resume();
    }
}

impl<D: PageData> Region<D> {
    /// Gives the region up unless the mechanism `works`, and lets cooled self-checking pages be
    /// protected again. If the policy panics for a page, the page stays self-checking.
    pub(super) fn maintain(&self, works: bool, panics: &mut FirstPanic) {
        if !works {
            self.ensure_abandoned();
        }
        if !self.has_self_checking.load(Ordering::Relaxed) || !self.has_self_checking.swap(false, Ordering::AcqRel) {
            return;
        }
        let now_ms = coarse_ms();
        let mut left = false;
        self.pages.existing(0..self.pages.pages()).for_each(|(page, desc)| {
            if desc.word.load().state() != PageState::SelfChecking {
                return;
            }
            let history = desc.history.read(now_ms, self.pages.is_held_for_writing(page));
            let has_cooled = panics.catch(|| self.policy.has_cooled(&history)).unwrap_or(false);
            if has_cooled && desc.word.cool() {
                desc.history.leave_self_checking(now_ms);
                self.counters.cooled.add(1);
                self.invalidated(page, desc, Cause::Cooled);
            } else {
                left = true;
            }
        });
        if left {
            self.has_self_checking.store(true, Ordering::Release);
        }
    }
}
