//! How each page is treated: a trait, and the adaptive default.
//!
//! A policy decides between three ways of keeping a page's translations true:
//!
//! | way | a write costs | running costs |
//! |---|---|---|
//! | protect it | a fault, then translating again | nothing |
//! | check it: blocks compare their bytes at every entry | nothing | some loads at each entry |
//! | interpret it for a while | nothing | the whole cost of interpreting |
//!
//! Translators ask the policy, and so do harvests and
//! [`Tracker::maintain`](crate::tracker::Tracker::maintain). A fault handler never asks it: the
//! handler uses the policy's [`Limits`], numbers that it gave once, and records the event. The next
//! translator that comes to the page asks the policy with that record.
//!
//! The library never calls a policy between a system call and the update of the words that record
//! it. During a call it holds no lock but the tracker's own, for reading, so a policy must not add
//! or remove regions, or declare views. If a call panics, the page stays as it is, no translation
//! of written bytes can be reached, and the panic goes on in the caller.

use core::fmt;

/// Recent events on a page. Times are milliseconds on one monotonic clock.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub struct PageHistory {
    /// The time of the question.
    pub now_ms: u64,
    /// Writes that hit the page while it was protected, since `window_ms`.
    pub hits: u32,
    /// How many consecutive hits, up to the last one, hit the same byte as the last one.
    pub same_byte_hits: u32,
    /// The start of the window that `hits` counts in: the first question after a hit. The first
    /// question [`WINDOW_MS`] or later after that ends it.
    pub window_ms: u64,
    /// When the page last became self-checking, or stopped being so.
    pub self_checking_ms: u64,
    /// How often it became self-checking again soon after it had cooled.
    pub relapses: u32,
    /// Whether a write by the kernel is announced and has not ended.
    pub held: bool,
}

/// Hits are counted in windows of this length.
pub const WINDOW_MS: u64 = 32;

impl PageHistory {
    /// `hits`, if the current window still lasts; else 0.
    fn recent(&self, hits: u32) -> u32 {
        if self.now_ms.saturating_sub(self.window_ms) < WINDOW_MS { hits } else { 0 }
    }
}

/// How a page's translations are kept true.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Decision {
    /// Protect the page.
    Protect,
    /// Leave it writable; its blocks compare their bytes at every entry.
    SelfCheck,
    /// Leave it writable and translate nothing from it now.
    Interpret,
}

/// Numbers for fault handlers and for batches.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct Limits {
    /// The most pages that one fault opens, if faults move from each page to the next. 1: never
    /// ahead.
    pub open_ahead_pages: usize,
    /// The most pages that one system call protects.
    pub protect_batch_pages: usize,
    /// Whether a data write makes its page self-checking. Otherwise every block
    /// on the page dies.
    pub checks_on_data_write: bool,
}

impl Limits {
    /// The same with at most `pages` opened by one fault.
    #[must_use]
    pub const fn with_open_ahead(mut self, pages: usize) -> Self {
        self.open_ahead_pages = pages;
        self
    }

    /// The same with at most `pages` protected by one system call.
    #[must_use]
    pub const fn with_protect_batch(mut self, pages: usize) -> Self {
        self.protect_batch_pages = pages;
        self
    }

    /// The same, with pages that become self-checking or without them.
    #[must_use]
    pub const fn with_checks_on_data_write(mut self, checks_on_data_write: bool) -> Self {
        self.checks_on_data_write = checks_on_data_write;
        self
    }
}

impl Default for Limits {
    /// One page at a time, never self-checking.
    fn default() -> Self {
        Self { open_ahead_pages: 1, protect_batch_pages: 1, checks_on_data_write: false }
    }
}

/// Chooses how each page's translations are kept true.
pub trait Policy: Send + Sync + fmt::Debug + 'static {
    /// A translator comes to a page that is open.
    fn on_begin(&self, page: &PageHistory) -> Decision;

    /// A harvest found the page written, and made its translations unreachable. Returns whether the
    /// page becomes self-checking.
    fn on_harvest(&self, page: &PageHistory) -> bool;

    /// Whether a self-checking page may be protected again when the next translator comes. That
    /// kills its blocks.
    fn has_cooled(&self, page: &PageHistory) -> bool;

    /// Asked once, when a region is added.
    fn limits(&self) -> Limits;
}

/// From this number of hits in one window on, protecting the page costs more than it saves.
const HITS_TO_CHECK: u32 = 3;

/// After this number of hits of the same byte in one window, the page stays writable until the
/// window is over. A store over two pages needs both to be writable at once; against an eager
/// translator that took 1,790 faults.
const HITS_TO_INTERPRET: u32 = 8;

/// How long a page stays self-checking the first time. Each relapse doubles it.
const CHECKED_MS: u64 = 256;

/// The most doublings: 16 seconds.
const MOST_DOUBLINGS: u32 = 6;

/// The default. It protects a page. If the page, or data on it, is written again and again, the
/// page is self-checking until it cools. It opens pages ahead of a stream of writes and protects
/// them again in batches.
#[derive(Clone, Copy, Debug)]
pub struct Adaptive {
    checks: bool,
}

impl Adaptive {
    /// For blocks without a self-checking entry: no page becomes self-checking. A page that the
    /// same store keeps hitting is interpreted for a while.
    pub const fn new() -> Self {
        Self { checks: false }
    }

    /// For blocks with a self-checking entry.
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
            return if check { Decision::SelfCheck } else { Decision::Protect };
        }
        let interpret = page.held || page.recent(page.same_byte_hits) >= HITS_TO_INTERPRET;
        if interpret { Decision::Interpret } else { Decision::Protect }
    }

    fn on_harvest(&self, page: &PageHistory) -> bool {
        self.checks && page.recent(page.hits) >= HITS_TO_CHECK
    }

    fn has_cooled(&self, page: &PageHistory) -> bool {
        let stay_ms = CHECKED_MS << page.relapses.min(MOST_DOUBLINGS);
        !page.held && page.now_ms.saturating_sub(page.self_checking_ms) >= stay_ms
    }

    fn limits(&self) -> Limits {
        Limits { open_ahead_pages: 128, protect_batch_pages: 256, checks_on_data_write: self.checks }
    }
}

/// One page for each fault, protected again at once, as the mprotect trackers of today do it: the
/// baseline for measuring [`Adaptive`]. A store over two pages may fault many times before it makes
/// progress.
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
        Limits::default()
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn hit(hits: u32, same_byte_hits: u32) -> PageHistory {
        PageHistory { now_ms: 1_000 + WINDOW_MS - 1, window_ms: 1_000, hits, same_byte_hits, ..PageHistory::default() }
    }

    #[test]
    fn a_page_that_is_written_again_and_again_is_self_checking() {
        let policy = Adaptive::with_checks();
        assert_eq!(policy.on_begin(&hit(HITS_TO_CHECK - 1, 0)), Decision::Protect);
        assert_eq!(policy.on_begin(&hit(HITS_TO_CHECK, 0)), Decision::SelfCheck);
        assert!(policy.on_harvest(&hit(HITS_TO_CHECK, 0)));
        let later = PageHistory { now_ms: 1_000 + WINDOW_MS, ..hit(100, 100) };
        assert_eq!(policy.on_begin(&later), Decision::Protect);
        assert!(!policy.on_harvest(&later));
        assert_eq!(policy.on_begin(&PageHistory { held: true, ..hit(0, 0) }), Decision::SelfCheck);
    }

    #[test]
    fn without_checks_a_store_makes_progress_by_interpreting() {
        let policy = Adaptive::new();
        assert_eq!(policy.on_begin(&hit(200, HITS_TO_INTERPRET - 1)), Decision::Protect);
        assert_eq!(policy.on_begin(&hit(200, HITS_TO_INTERPRET)), Decision::Interpret);
        assert!(!policy.on_harvest(&hit(200, 200)) && !policy.limits().checks_on_data_write);
    }

    #[test]
    fn relapses_keep_a_page_self_checking_longer() {
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
