//! The state of one page in one atomic word, so that every change sees all of it.
//!
//! | bits | content |
//! |---|---|
//! | 0..3 | state |
//! | 3..16 | un-protects in flight |
//! | 16..64 | generation |
//!
//! | from | to | by | generation |
//! |---|---|---|---|
//! | Open | Protecting | a translator that begins, only while nothing is in flight | +1 |
//! | Protecting | Protected | the same translator, after its system call | +1 |
//! | Protecting | Cancelled | an un-protect | +1 |
//! | Cancelled | Open | the translator that was cancelled, once it has un-protected | +1 |
//! | Protected | Open | an un-protect to write code | +1 |
//! | Protected | SelfChecking | an un-protect for a data write; a harvest, by policy | +1 |
//! | Protected | Protected | a harvest that found the page written | +1 |
//! | Open | SelfChecking | a translator that begins, by policy, while nothing but writes is in flight | +1 |
//! | SelfChecking | Open | policy, once the page has cooled; a change of the mapping | +1 |
//!
//! A thread that un-protects (a fault handler, an announced write) leaves the protected state
//! and raises the count of un-protects in flight. It does both in one step, *before* its system
//! call, and lowers the count after the call. A translator that begins needs the count to be 0.
//! Otherwise a handler's late system call could open the page under a block that was committed
//! in between. No later store would then be noticed.
//!
//! A *protecting* system call can be late too. This is why a page that is hit while Protecting
//! becomes Cancelled and not Open. Until the translator has undone its call, the kernel may
//! protect the page although no block is on it. A fault on the page must count as ours, and the
//! kernel would refuse its own writes to it.
//!
//! A generation seen while Protected names one span of protection. As long as the word still
//! holds it, no store has retired on the page since.

use core::fmt;

use crate::sync::{AtomicU64, Ordering, Rule, left_out};

const STATE_BITS: u32 = 3;
const COUNT_BITS: u32 = 13;
const STATE_MASK: u64 = (1 << STATE_BITS) - 1;
const COUNT_ONE: u64 = 1 << STATE_BITS;
const COUNT_MAX: u64 = (1 << COUNT_BITS) - 1;
const COUNT_MASK: u64 = COUNT_MAX << STATE_BITS;
const GENERATION_SHIFT: u32 = STATE_BITS + COUNT_BITS;
const GENERATION_ONE: u64 = 1 << GENERATION_SHIFT;

/// The state of a page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(crate) enum PageState {
    /// Writable; no valid block lies on it.
    Open = 0,
    /// A translator is about to protect it.
    Protecting = 1,
    /// A translator was about to protect it when a write came.
    Cancelled = 2,
    /// Write-protected; valid blocks may lie on it.
    Protected = 3,
    /// Writable; its blocks compare their bytes at every entry.
    SelfChecking = 4,
}

/// Names one span of protection of one page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Generation(u64);

/// A value of the word.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Word(u64);

impl Word {
    #[inline]
    pub(crate) fn state(self) -> PageState {
        match self.0 & STATE_MASK {
            0 => PageState::Open,
            1 => PageState::Protecting,
            2 => PageState::Cancelled,
            3 => PageState::Protected,
            _ => PageState::SelfChecking,
        }
    }

    pub(crate) fn unprotects_in_flight(self) -> u64 {
        (self.0 & COUNT_MASK) / COUNT_ONE
    }

    pub(crate) fn generation(self) -> Generation {
        Generation(self.0 >> GENERATION_SHIFT)
    }

    /// Whether no page protection was ever asked for.
    pub(crate) fn is_pristine(self) -> bool {
        self.0 & !COUNT_MASK == 0
    }

    /// State and generation: the part that stays the same while no thread protects.
    pub(crate) fn without_count(self) -> u64 {
        self.0 & !COUNT_MASK
    }

    /// The word after an un-protect, apart from the count.
    #[inline]
    fn unprotected(self, why: Unprotect) -> Self {
        match self.state() {
            PageState::Protected if why == Unprotect::DataWrite => self.to_state(PageState::SelfChecking),
            PageState::Protected => self.to_state(PageState::Open),
            PageState::Protecting => self.to_state(PageState::Cancelled),
            PageState::SelfChecking if why == Unprotect::Change => self.to_state(PageState::Open),
            PageState::Open | PageState::Cancelled | PageState::SelfChecking => self,
        }
    }

    #[inline]
    fn to_state(self, state: PageState) -> Self {
        // The generation wraps after 2^48 changes of one page's state.
        Self((self.0 & !STATE_MASK | state as u64).wrapping_add(GENERATION_ONE))
    }
}

impl fmt::Debug for Word {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} {:?}, {} in flight", self.state(), self.generation(), self.unprotects_in_flight())
    }
}

/// The reason why a page cannot be translated from now: interpret, and come back later.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Busy {
    /// An un-protect is in flight, or a write is announced and not over.
    Unprotecting,
    /// Another translator is about to protect the page.
    Protecting,
    /// A write came while the page was being protected.
    Written,
    /// The same store keeps faulting: the page stays writable for a while, so
    /// that the store makes progress.
    Hot,
}

impl fmt::Display for Busy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unprotecting => "a write to the page is going on or announced: interpret, and begin again later",
            Self::Protecting => "another translator is about to protect the page: begin again",
            Self::Written => "a write came while the page was being protected: begin again",
            Self::Hot => "the same store keeps hitting the page: interpret for a while, and begin again later",
        })
    }
}

impl core::error::Error for Busy {}

/// The reason why a translator that begins has nothing to protect.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum NotOpen {
    /// The page is protected already, and this is its generation.
    Protected(Generation),
    /// The page is self-checking already, and this is its generation.
    SelfChecking(Generation),
    /// Interpret.
    Busy(Busy),
}

impl NotOpen {
    /// The answer for a translator that cannot begin.
    fn found(word: Word) -> Self {
        match word.state() {
            PageState::Protected => Self::Protected(word.generation()),
            PageState::SelfChecking => Self::SelfChecking(word.generation()),
            PageState::Protecting | PageState::Cancelled => Self::Busy(Busy::Protecting),
            PageState::Open => Self::Busy(Busy::Unprotecting),
        }
    }
}

/// The reason for an un-protect.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Unprotect {
    /// Bytes of blocks on the page are about to be written: the blocks are killed.
    Write,
    /// Data on the page is about to be written: the blocks compare
    /// themselves from now on.
    DataWrite,
    /// Its mapping or its contents go away.
    Change,
}

/// How a translator treats un-protects in flight.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum InFlight {
    /// The page is busy.
    Heeded,
    /// They are writes.
    Ignored,
}

/// The word.
#[derive(Debug)]
pub(crate) struct PageWord(AtomicU64);

impl PageWord {
    /// An open page; one that is held has one un-protect in flight.
    pub(super) fn new(is_held: bool) -> Self {
        Self(AtomicU64::new(u64::from(is_held) * COUNT_ONE))
    }

    #[inline]
    pub(crate) fn load(&self) -> Word {
        Word(self.0.load(Ordering::Acquire))
    }

    #[inline]
    fn update(&self, next: impl Fn(Word) -> Option<Word>) -> Result<Word, Word> {
        // Acquire even if the word does not change: a thread that finds a page protected must
        // also find the bytes that its generation vouches for.
        let mut seen = self.0.load(Ordering::Acquire);
        loop {
            let Some(word) = next(Word(seen)) else { return Err(Word(seen)) };
            match self.0.compare_exchange_weak(seen, word.0, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return Ok(Word(seen)),
                Err(now) => seen = now,
            }
        }
    }

    /// A translator begins: it protects the page, then calls
    /// [`PageWord::finish_protect`] or [`PageWord::abort_protect`].
    #[inline]
    pub(super) fn begin_protect(&self) -> Result<(), NotOpen> {
        let claimed = self.update(|word| {
            let counted = word.unprotects_in_flight() == 0 || left_out(Rule::CountUnprotects);
            let idle = word.state() == PageState::Open && counted;
            idle.then(|| word.to_state(PageState::Protecting))
        });
        claimed.map(drop).map_err(NotOpen::found)
    }

    /// A translator begins whose blocks compare themselves: the page stays writable. If the page is
    /// not open, or an un-protect is in flight, the error gives the reason.
    ///
    /// The page's bytes would allow it during an un-protect, but the un-protect may be a change
    /// of the mapping.
    pub(crate) fn begin_check(&self, in_flight: InFlight) -> Result<Generation, NotOpen> {
        let claimed = self.update(|word| {
            let quiet = word.unprotects_in_flight() == 0 || in_flight == InFlight::Ignored;
            (word.state() == PageState::Open && quiet).then(|| word.to_state(PageState::SelfChecking))
        });
        claimed.map(|before| before.to_state(PageState::SelfChecking).generation()).map_err(NotOpen::found)
    }

    /// A harvest found the page written, and it becomes self-checking. Returns whether it was
    /// protected until now.
    pub(crate) fn check_harvested(&self) -> bool {
        let next = |word: Word| (word.state() == PageState::Protected).then(|| word.to_state(PageState::SelfChecking));
        self.update(next).is_ok()
    }

    /// A self-checking page has cooled and is open: the caller kills its blocks. Returns whether it
    /// was self-checking until now.
    pub(crate) fn cool(&self) -> bool {
        self.update(|word| (word.state() == PageState::SelfChecking).then(|| word.to_state(PageState::Open))).is_ok()
    }

    /// The system call protected the page. Returns its generation, or `None` if a write came
    /// meanwhile; then un-protect and call [`PageWord::abort_protect`].
    #[inline]
    pub(super) fn finish_protect(&self) -> Option<Generation> {
        let before = self
            .update(|word| (word.state() == PageState::Protecting).then(|| word.to_state(PageState::Protected)))
            .ok()?;
        Some(before.to_state(PageState::Protected).generation())
    }

    /// The system call failed, or was undone.
    pub(super) fn abort_protect(&self) {
        let _ = self.update(|word| match word.state() {
            PageState::Protecting | PageState::Cancelled => Some(word.to_state(PageState::Open)),
            _ => None,
        });
    }

    /// The caller is about to un-protect. No generation that a translator holds stays valid,
    /// and no translator begins until [`PageWord::leave_unprotect`]. Returns the word before.
    ///
    /// From Open only the count changes: no thread holds a generation, and a fault that is not
    /// ours must find the word unchanged. From SelfChecking too only the count changes, unless the
    /// mapping changes: blocks compare themselves.
    #[inline]
    pub(super) fn enter_unprotect(&self, why: Unprotect) -> Word {
        loop {
            let entered = self.update(|word| {
                (word.unprotects_in_flight() < COUNT_MAX).then(|| Word(word.unprotected(why).0 + COUNT_ONE))
            });
            match entered {
                Ok(before) => return before,
                // 8,191 fault handlers are at this page now. Each ends by itself, so wait
                // for one. (Holds take one count together.)
                Err(_) => crate::sync::spin_loop(),
            }
        }
    }

    /// [`PageWord::enter_unprotect`] of a page that is held already and stays so.
    /// Returns the word before.
    pub(super) fn change_held(&self, why: Unprotect) -> Word {
        let before = self.update(|word| Some(word.unprotected(why))).unwrap_or_else(|word| word);
        debug_assert!(before.unprotects_in_flight() > 0, "a page that is held has a count");
        before
    }

    /// The un-protecting system call is over. Returns the word after.
    #[inline]
    pub(super) fn leave_unprotect(&self) -> Word {
        let before = self.0.fetch_sub(COUNT_ONE, Ordering::AcqRel);
        debug_assert!(Word(before).unprotects_in_flight() > 0, "left more often than entered");
        Word(before - COUNT_ONE)
    }

    /// In a fork's child, with no other thread inside. The threads of the parent that were un-protecting
    /// the page do not exist here; one count stays if `is_held`. If there were such threads, or if the
    /// page does not `keep` its blocks, it is open afterwards, and its blocks must die: the result. The
    /// memory is not written if nothing changes: the child would copy it.
    pub(super) fn continue_in_child(&self, is_held: bool, keep: bool) -> bool {
        let word = self.load();
        let has_blocks = matches!(word.state(), PageState::Protected | PageState::SelfChecking);
        let is_settled = word.unprotects_in_flight() == u64::from(is_held);
        if is_settled && (keep || !has_blocks) {
            return false;
        }
        let open = if word.state() == PageState::Open { word } else { word.to_state(PageState::Open) };
        self.0.store(open.without_count() | (u64::from(is_held) * COUNT_ONE), Ordering::Release);
        true
    }

    /// A harvest found the page written and protected it again, or its bytes
    /// were announced to have changed: no generation stays valid.
    pub(crate) fn bump(&self) {
        let _ = self.update(|word| (!word.is_pristine()).then(|| word.to_state(word.state())));
    }

    /// Whether the span of protection that `generation` names still lasts.
    #[inline]
    pub(crate) fn holds(&self, generation: Generation) -> bool {
        self.load().generation() == generation
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn protected() -> (PageWord, Generation) {
        let word = PageWord::new(false);
        assert_eq!(word.begin_protect(), Ok(()));
        let generation = word.finish_protect().unwrap();
        (word, generation)
    }

    #[test]
    fn a_span_of_protection_has_one_generation() {
        let (word, generation) = protected();
        assert_eq!(word.begin_protect(), Err(NotOpen::Protected(generation)));
        assert!(word.holds(generation));
        word.enter_unprotect(Unprotect::Write);
        assert!(!word.holds(generation));
    }

    #[test]
    fn no_translator_begins_while_an_unprotect_is_in_flight() {
        let (word, generation) = protected();
        word.enter_unprotect(Unprotect::Write);
        assert_eq!(word.begin_protect(), Err(NotOpen::Busy(Busy::Unprotecting)));
        word.enter_unprotect(Unprotect::Write);
        word.leave_unprotect();
        assert_eq!(word.begin_protect(), Err(NotOpen::Busy(Busy::Unprotecting)));
        word.leave_unprotect();
        assert_eq!(word.begin_protect(), Ok(()));
        assert_ne!(word.finish_protect().unwrap(), generation);
    }

    #[test]
    fn a_write_while_protecting_cancels() {
        let word = PageWord::new(false);
        assert_eq!(word.begin_protect(), Ok(()));
        word.enter_unprotect(Unprotect::Write);
        word.leave_unprotect();
        assert_eq!(word.load().state(), PageState::Cancelled);
        assert_eq!(word.begin_protect(), Err(NotOpen::Busy(Busy::Protecting)));
        assert_eq!(word.finish_protect(), None);
        assert_eq!(word.load().state(), PageState::Cancelled);
        word.abort_protect();
        assert_eq!(word.load().state(), PageState::Open);
    }

    #[test]
    fn entering_from_open_leaves_the_word_as_it_was() {
        let (word, _) = protected();
        word.enter_unprotect(Unprotect::Write);
        let open = word.leave_unprotect();
        word.enter_unprotect(Unprotect::Write);
        assert_eq!(word.leave_unprotect(), open);
    }

    #[test]
    fn a_data_write_makes_a_page_self_checking() {
        let (word, generation) = protected();
        word.enter_unprotect(Unprotect::DataWrite);
        assert!(!word.holds(generation));
        let Err(NotOpen::SelfChecking(checked)) = word.begin_protect() else { panic!("{word:?}") };
        assert_eq!(word.begin_check(InFlight::Heeded), Err(NotOpen::SelfChecking(checked)));
        word.leave_unprotect();
        // Writes leave a self-checking generation valid; a change of the mapping does not.
        word.enter_unprotect(Unprotect::Write);
        assert!(word.holds(checked));
        word.enter_unprotect(Unprotect::Change);
        assert!(!word.holds(checked));
        assert_eq!(word.load().state(), PageState::Open);
        assert_eq!(word.begin_protect(), Err(NotOpen::Busy(Busy::Unprotecting)));
    }

    #[test]
    fn a_self_checking_page_goes_through_open() {
        let word = PageWord::new(true);
        assert_eq!(word.begin_check(InFlight::Heeded), Err(NotOpen::Busy(Busy::Unprotecting)));
        let checked = word.begin_check(InFlight::Ignored).unwrap();
        assert!(!word.check_harvested());
        assert!(word.cool() && !word.cool());
        assert!(!word.holds(checked));
        word.leave_unprotect();
        assert_eq!(word.begin_protect(), Ok(()));
        word.finish_protect().unwrap();
        assert!(word.check_harvested());
        assert_eq!(word.load().state(), PageState::SelfChecking);
    }

    #[test]
    fn a_held_page_changes_with_each_hold_and_keeps_one_count() {
        let (word, generation) = protected();
        word.enter_unprotect(Unprotect::DataWrite);
        assert!(!word.holds(generation));
        for _ in 0..2 * COUNT_MAX {
            word.change_held(Unprotect::Change);
        }
        assert_eq!((word.load().state(), word.load().unprotects_in_flight()), (PageState::Open, 1));
        word.leave_unprotect();
        assert_eq!(word.begin_protect(), Ok(()));
    }

    #[test]
    fn a_failed_system_call_leaves_the_page_open() {
        let word = PageWord::new(false);
        assert_eq!(word.begin_protect(), Ok(()));
        word.abort_protect();
        assert_eq!(word.load().state(), PageState::Open);
        assert_eq!(word.begin_protect(), Ok(()));
    }

    #[test]
    fn a_harvest_ends_the_generation_and_keeps_the_protection() {
        let (word, generation) = protected();
        word.bump();
        assert!(!word.holds(generation));
        assert_eq!(word.load().state(), PageState::Protected);
    }
}
