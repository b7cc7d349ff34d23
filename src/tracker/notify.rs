//! Tells the observer of a write. The observer makes its translations of the page unreachable or
//! self-checking.

use super::observer::{Cause, PageData, PageWrite};
use super::region::Region;
use crate::addr::PageIndex;
use crate::page_table::{PageDesc, PageState, Unprotect, Word};
use crate::sync::{Ordering, Rule, fence, fence_behind_rmw};
use crate::sys::clock::coarse_ms;

impl<D: PageData> Region<D> {
    /// Tells the observer, after the word moved on.
    pub(super) fn invalidated(&self, page: PageIndex, desc: &PageDesc<D>, cause: Cause) {
        self.fence_before_walk();
        self.tell_written(page, desc, cause);
    }

    /// As [`Region::invalidated`], for a page whose word says self-checking.
    pub(super) fn compared(&self, page: PageIndex, desc: &PageDesc<D>, cause: Cause) {
        self.fence_before_walk();
        self.tell_data_written(page, desc, cause);
    }

    // Even in a debug build: a signal stack is small.
    #[inline(always)]
    fn tell_written(&self, page: PageIndex, desc: &PageDesc<D>, cause: Cause) {
        self.observer.written(&desc.data, &PageWrite { page: self.guest_of(page), cause });
    }

    fn tell_data_written(&self, page: PageIndex, desc: &PageDesc<D>, cause: Cause) {
        self.observer.data_written(&desc.data, &PageWrite { page: self.guest_of(page), cause });
    }

    pub(super) fn fence_before_walk(&self) {
        // Pairs with the fence of a commit between entering its block and looking at the
        // generations: one of the two sees the other.
        fence(Rule::FenceBeforeWalk);
    }

    /// Called after an un-protect of the page was entered in its word, which was `before`.
    pub(super) fn notify_observer(
        &self,
        page: PageIndex,
        desc: &PageDesc<D>,
        before: Word,
        why: Unprotect,
        cause: Cause,
    ) {
        // As in `fence_before_walk`. The word was exchanged a moment ago.
        fence_behind_rmw(Rule::FenceBeforeWalk);
        match before.state() {
            PageState::Protected if why == Unprotect::DataWrite => {
                self.tell_data_written(page, desc, cause);
                self.became_self_checking(desc);
            }
            // The thread that made it self-checking may not have told the observer yet.
            PageState::SelfChecking if why != Unprotect::Change => self.tell_data_written(page, desc, cause),
            _ => self.tell_written(page, desc, cause),
        }
    }

    /// Notes that the page's blocks are self-checking from now on.
    pub(super) fn became_self_checking(&self, desc: &PageDesc<D>) {
        desc.history.enter_self_checking(coarse_ms());
        self.counters.self_checking.add(1);
        self.has_self_checking.store(true, Ordering::Release);
    }
}
