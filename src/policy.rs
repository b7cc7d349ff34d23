//! What to do with a page: a trait, and the adaptive default.
//!
//! A policy decides between three ways of keeping a page's translations true:
//!
//! | way | a write costs | running costs |
//! |---|---|---|
//! | protect it | a fault, then translating again | nothing |
//! | check it: blocks compare their bytes at every entry | nothing | some loads at each entry |
//! | interpret it for a while | nothing | all that interpreting costs |
//!
//! It is asked by translators, after harvests and by
//! [`Tracker::tend`](crate::tracker::Tracker::tend), never in a fault handler: that goes
//! by [`Limits`], numbers which the policy gives once, and writes down what happened; the
//! next translator that comes to the page asks with it.
//!
//! No call runs between a system call and the words that tell of it, and none under a lock
//! but the tracker's own, which is held for reading: a policy must not add or remove
//! regions, and must not declare views. If a call panics, the page stays as it is, nothing
//! that was written can be reached, and the panic goes on in the caller.

use core::fmt;

/// What happened on a page lately. Times are milliseconds on one monotonic
/// clock.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub struct PageHistory {
    /// The time of asking.
    pub now_ms: u64,
    /// Writes that hit the page while it was protected, since `window_ms`.
    pub hits: u32,
    /// How many of the last ones hit the same byte as the last one.
    pub same_byte_hits: u32,
    /// When the window began that `hits` counts in: with the first hit that came
    /// [`WINDOW_MS`] or later after the beginning of the window before.
    pub window_ms: u64,
    /// When the page last became checked, or stopped being so.
    pub checked_ms: u64,
    /// How often it became checked again soon after it had cooled.
    pub relapses: u32,
    /// Whether a write by the kernel is announced and not over.
    pub held: bool,
}

/// Hits are counted in windows of this length.
pub const WINDOW_MS: u64 = 32;

impl PageHistory {
    /// Hits in the window that goes on.
    fn recent(&self, hits: u32) -> u32 {
        if self.now_ms.saturating_sub(self.window_ms) < WINDOW_MS { hits } else { 0 }
    }
}

/// How a page's translations are kept true.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Decision {
    /// Protect the page.
    Protect,
    /// Leave it writable; what is made from it compares its bytes at every entry.
    Check,
    /// Leave it writable and make nothing from it now.
    Interpret,
}

/// What fault handlers go by, and batches.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// Pages that one fault opens at most, where faults come to one page behind
    /// the other. 1: never ahead.
    pub open_ahead_pages: usize,
    /// Pages that are protected with one system call at most.
    pub protect_batch_pages: usize,
    /// Whether a write beside code makes its page checked. Otherwise every block
    /// on the page dies.
    pub checks_beside: bool,
}

/// Chooses how each page's translations are kept true.
pub trait Policy: Send + Sync + fmt::Debug + 'static {
    /// A translator comes to a page that is open.
    fn on_begin(&self, page: &PageHistory) -> Decision;

    /// A harvest found the page written, and what was made from it is unreachable: whether
    /// the page becomes checked.
    fn on_harvest(&self, page: &PageHistory) -> bool;

    /// Whether a checked page may be protected again when a translator comes
    /// next. Its blocks die of it.
    fn has_cooled(&self, page: &PageHistory) -> bool;

    /// Asked once, when a region is added.
    fn limits(&self) -> Limits;
}

/// Hits of a page in one window from which on protecting it is not worth while.
const HITS_TO_CHECK: u32 = 3;

/// Hits of the same byte in one window after which the page stays writable until
/// the window is over. A store over two pages needs both to be writable at once;
/// against an eager translator that took 1,790 faults.
const HITS_TO_INTERPRET: u32 = 8;

/// How long a page stays checked the first time; twice as long after each
/// relapse.
const CHECKED_MS: u64 = 256;

/// Doublings at most: 16 seconds.
const MOST_DOUBLINGS: u32 = 6;

/// The default: protects; checks what is written again and again, or beside its
/// code, until it cools; opens pages ahead of a stream of writes and protects
/// them again in batches.
#[derive(Clone, Copy, Debug)]
pub struct Adaptive {
    checks: bool,
}

impl Adaptive {
    /// For embedders whose blocks have no entry that compares: no page becomes
    /// checked. A page that the same store keeps hitting is interpreted for a
    /// while.
    pub const fn new() -> Self {
        Self { checks: false }
    }

    /// For embedders whose blocks have an entry that compares.
    pub const fn with_checks() -> Self {
        Self { checks: true }
    }
}

impl Default for Adaptive {
    fn default() -> Self {
        Self::new()
    }
}

impl Policy for Adaptive {
    fn on_begin(&self, page: &PageHistory) -> Decision {
        if self.checks {
            let check = page.held || page.recent(page.hits) >= HITS_TO_CHECK;
            return if check { Decision::Check } else { Decision::Protect };
        }
        let interpret = page.held || page.recent(page.same_byte_hits) >= HITS_TO_INTERPRET;
        if interpret { Decision::Interpret } else { Decision::Protect }
    }

    fn on_harvest(&self, page: &PageHistory) -> bool {
        self.checks && page.recent(page.hits) >= HITS_TO_CHECK
    }

    fn has_cooled(&self, page: &PageHistory) -> bool {
        let stay_ms = CHECKED_MS << page.relapses.min(MOST_DOUBLINGS);
        !page.held && page.now_ms.saturating_sub(page.checked_ms) >= stay_ms
    }

    fn limits(&self) -> Limits {
        Limits { open_ahead_pages: 128, protect_batch_pages: 256, checks_beside: self.checks }
    }
}

/// One page, one fault, and it is protected again at once, as the mprotect
/// trackers of today do it: what the adaptive one is measured against. A store
/// over two pages may fault many times before it makes progress.
#[derive(Clone, Copy, Debug, Default)]
pub struct Plain;

impl Policy for Plain {
    fn on_begin(&self, page: &PageHistory) -> Decision {
        if page.held { Decision::Interpret } else { Decision::Protect }
    }

    fn on_harvest(&self, _: &PageHistory) -> bool {
        false
    }

    fn has_cooled(&self, _: &PageHistory) -> bool {
        true
    }

    fn limits(&self) -> Limits {
        Limits { open_ahead_pages: 1, protect_batch_pages: 1, checks_beside: false }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn hit(hits: u32, same_byte_hits: u32) -> PageHistory {
        PageHistory { now_ms: 1_000 + WINDOW_MS - 1, window_ms: 1_000, hits, same_byte_hits, ..PageHistory::default() }
    }

    #[test]
    fn a_page_that_is_written_again_and_again_is_checked() {
        let policy = Adaptive::with_checks();
        assert_eq!(policy.on_begin(&hit(HITS_TO_CHECK - 1, 0)), Decision::Protect);
        assert_eq!(policy.on_begin(&hit(HITS_TO_CHECK, 0)), Decision::Check);
        assert!(policy.on_harvest(&hit(HITS_TO_CHECK, 0)));
        let later = PageHistory { now_ms: 1_000 + WINDOW_MS, ..hit(100, 100) };
        assert_eq!(policy.on_begin(&later), Decision::Protect);
        assert!(!policy.on_harvest(&later));
        assert_eq!(policy.on_begin(&PageHistory { held: true, ..hit(0, 0) }), Decision::Check);
    }

    #[test]
    fn without_checks_a_store_makes_progress_by_interpreting() {
        let policy = Adaptive::new();
        assert_eq!(policy.on_begin(&hit(200, HITS_TO_INTERPRET - 1)), Decision::Protect);
        assert_eq!(policy.on_begin(&hit(200, HITS_TO_INTERPRET)), Decision::Interpret);
        assert!(!policy.on_harvest(&hit(200, 200)) && !policy.limits().checks_beside);
    }

    #[test]
    fn relapses_keep_a_page_checked_longer() {
        let policy = Adaptive::with_checks();
        let page = |relapses, age_ms| PageHistory { now_ms: age_ms, relapses, ..PageHistory::default() };
        for relapses in [0, 1, 5, MOST_DOUBLINGS, 100] {
            let stay_ms = CHECKED_MS << relapses.min(MOST_DOUBLINGS);
            assert!(!policy.has_cooled(&page(relapses, stay_ms - 1)));
            assert!(policy.has_cooled(&page(relapses, stay_ms)));
        }
        assert!(!policy.has_cooled(&PageHistory { held: true, ..page(0, u64::MAX) }));
    }
}
