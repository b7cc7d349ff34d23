//! The recent events on a page, which fault handlers record for the policy.
//!
//! These are plain atomics of the standard library, each a record of its own. If two
//! threads write an entry at once, the policy may guess wrong. That costs time only:
//! every decision of the policy is sound.

use core::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering::Relaxed};

use crate::policy::{PageHistory, WINDOW_MS};

/// How the library learned of a write.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Hit {
    /// A fault in a line that holds code.
    Code,
    /// A fault in another line.
    Data,
    /// Found by a harvest.
    Harvested,
    /// The kernel's, announced.
    Kernel,
}

/// The result of [`History::totals`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Totals {
    /// Of code or, in a deferred region, by harvests.
    pub(crate) code_hits: u32,
    pub(crate) data_hits: u32,
    /// Up to [`MOST_KERNEL_HITS`].
    pub(crate) kernel_hits: u32,
    /// Within the page.
    pub(crate) last_byte: Option<usize>,
    /// Of the host; 0: not known.
    pub(crate) last_pc: usize,
}

/// The record of one page. It is small, so that it shares a cache line with the page's word.
#[derive(Debug, Default)]
pub(crate) struct History {
    /// Bits 0..16: the byte that was hit last, plus 1; 16..24: hits of it in a
    /// row; 24..32: hits; 32..64: when the window began, in ms, 0 if no look found it yet.
    window: AtomicU64,
    /// Bits 0..8: relapses; 8: the page held blocks when it was opened together with others; 16..32:
    /// hits by the kernel; 32..64: when the page became self-checking or stopped being so, in ms, 0
    /// if it never was.
    checked: AtomicU64,
    /// Of code or, in a deferred region, by harvests.
    code_hits: AtomicU32,
    data_hits: AtomicU32,
    last_pc: AtomicUsize,
}

const RELAPSES: u64 = 0xff;
const IN_BULK: u64 = 1 << 8;
const KERNEL_HITS_SHIFT: u32 = 16;
/// Hits by the kernel that are counted.
const MOST_KERNEL_HITS: u64 = 0xffff;
const CHECKED_SHIFT: u32 = 32;

/// A page that becomes self-checking within this time after it stopped being so has
/// relapsed.
const RELAPSE_MS: u64 = 4_000;

/// A time in 32 bits.
fn short(ms: u64) -> u64 {
    (ms & 0xffff_ffff).max(1)
}

/// The time since `since_ms`, a time in 32 bits. These are 32 bits of the clock, rounded up if
/// they were 0, and another thread may have read the clock a moment later. So only an age of just
/// less than 2^32 ms is none. With half of all ages a window would not end for weeks.
fn age(now_ms: u64, since_ms: u64) -> u64 {
    const MOST_AHEAD_MS: u32 = 1_000;
    let age_ms = (now_ms as u32).wrapping_sub(since_ms as u32);
    if age_ms > u32::MAX - MOST_AHEAD_MS { 0 } else { age_ms.into() }
}

fn unpack(window: u64) -> (u64, u64, u64, u64) {
    (window & 0xffff, window >> 16 & 0xff, window >> 24 & 0xff, window >> 32)
}

impl History {
    /// A write at `byte` of the page, if that is known, by the host instruction at
    /// `pc`. It reads no clock: in a fault handler that would touch four pages of memory just after
    /// the kernel emptied the TLB. Async-signal-safe.
    #[inline]
    pub(crate) fn record(&self, hit: Hit, byte: Option<usize>, pc: usize) {
        let (last, same, hits, since_ms) = unpack(self.window.load(Relaxed));
        let this = byte.map_or(0, |byte| (byte as u64 + 1) & 0xffff);
        let same = if hits > 0 && last == this { (same + 1).min(0xff) } else { 1 };
        self.window.store(this | same << 16 | (hits + 1).min(0xff) << 24 | since_ms << 32, Relaxed);
        // Two additions at once may count as one, as everything here.
        let hits = match hit {
            Hit::Code | Hit::Harvested => &self.code_hits,
            Hit::Data => &self.data_hits,
            Hit::Kernel => return self.record_kernel_hit(),
        };
        hits.store(hits.load(Relaxed).wrapping_add(1), Relaxed);
        self.last_pc.store(pc, Relaxed);
    }

    fn record_kernel_hit(&self) {
        let seen = self.checked.load(Relaxed);
        if seen >> KERNEL_HITS_SHIFT & MOST_KERNEL_HITS < MOST_KERNEL_HITS {
            self.checked.store(seen + (1 << KERNEL_HITS_SHIFT), Relaxed);
        }
        self.last_pc.store(0, Relaxed);
    }

    /// Notes the time and the relapses in `checked`, which is `seen`.
    fn set_checked(&self, seen: u64, now_ms: u64, relapses: u64) {
        let others = seen & ((1 << CHECKED_SHIFT) - 1) & !RELAPSES;
        self.checked.store(short(now_ms) << CHECKED_SHIFT | others | relapses, Relaxed);
    }

    /// The page became self-checking.
    pub(crate) fn enter_self_checking(&self, now_ms: u64) {
        let seen = self.checked.load(Relaxed);
        let (relapses, since_ms) = (seen & RELAPSES, seen >> CHECKED_SHIFT);
        let relapsed = since_ms != 0 && age(now_ms, since_ms) < RELAPSE_MS;
        self.set_checked(seen, now_ms, if relapsed { (relapses + 1).min(RELAPSES) } else { 0 });
    }

    /// It stopped being self-checking.
    pub(crate) fn leave_self_checking(&self, now_ms: u64) {
        let seen = self.checked.load(Relaxed);
        self.set_checked(seen, now_ms, seen & RELAPSES);
    }

    /// Says that the page held blocks when it was opened together with others.
    /// Async-signal-safe.
    pub(crate) fn set_opened_in_bulk(&self) {
        self.checked.store(self.checked.load(Relaxed) | IN_BULK, Relaxed);
    }

    /// Whether it was opened so since the last call. Then it is protected together with others, and
    /// no policy is asked about it. So the hits that no look found are forgotten: a later look would
    /// take hits of any age for those of one window.
    pub(crate) fn take_opened_in_bulk(&self) -> bool {
        let seen = self.checked.load(Relaxed);
        if seen & IN_BULK == 0 {
            return false;
        }
        self.checked.store(seen & !IN_BULK, Relaxed);
        if unpack(self.window.load(Relaxed)).3 == 0 {
            self.window.store(0, Relaxed);
        }
        true
    }

    /// The history that a policy is asked with. This look begins a window if there were hits since
    /// the last one ended, and ends it if it is over.
    pub(crate) fn read(&self, now_ms: u64, held: bool) -> PageHistory {
        let seen = self.window.load(Relaxed);
        let (_, _, hits, since_ms) = unpack(seen);
        let age_ms = if since_ms == 0 { 0 } else { age(now_ms, since_ms) };
        let window = match (hits, since_ms) {
            (1.., 0) => seen | short(now_ms) << 32,
            (1.., _) if age_ms >= WINDOW_MS => 0,
            _ => seen,
        };
        if window != seen {
            // A hit that comes in between is lost.
            self.window.store(window, Relaxed);
        }
        let (_, same_byte_hits, hits, _) = unpack(window);
        let checked = self.checked.load(Relaxed);
        PageHistory {
            now_ms,
            hits: hits as u32,
            same_byte_hits: same_byte_hits as u32,
            window_ms: now_ms.saturating_sub(age_ms),
            self_checking_ms: match checked >> CHECKED_SHIFT {
                0 => 0,
                since_ms => now_ms.saturating_sub(age(now_ms, since_ms)),
            },
            relapses: (checked & RELAPSES) as u32,
            held,
        }
    }

    /// All hits since the page's descriptor was made.
    pub(crate) fn totals(&self) -> Totals {
        Totals {
            code_hits: self.code_hits.load(Relaxed),
            data_hits: self.data_hits.load(Relaxed),
            kernel_hits: (self.checked.load(Relaxed) >> KERNEL_HITS_SHIFT & MOST_KERNEL_HITS) as u32,
            last_byte: (unpack(self.window.load(Relaxed)).0 as usize).checked_sub(1),
            last_pc: self.last_pc.load(Relaxed),
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn hits_are_counted_in_windows() {
        let history = History::default();
        // The clock's upper half does not matter.
        let start_ms = (7 << 32) - 10;
        for n in 0..20 {
            history.record(Hit::Code, Some(4095), 0x1000);
            let read = history.read(start_ms + n, false);
            assert_eq!((read.hits, read.same_byte_hits, read.window_ms), (n as u32 + 1, n as u32 + 1, start_ms));
        }
        history.record(Hit::Data, Some(8), 0x2000);
        let read = history.read(start_ms + WINDOW_MS - 1, false);
        assert_eq!((read.hits, read.same_byte_hits, read.window_ms), (21, 1, start_ms));
        assert_eq!(history.read(start_ms + WINDOW_MS, true).hits, 0);
        history.record(Hit::Kernel, None, 0);
        let read = history.read(start_ms + WINDOW_MS + 5, true);
        assert_eq!((read.hits, read.same_byte_hits, read.window_ms), (1, 1, start_ms + WINDOW_MS + 5));
        let totals = history.totals();
        assert_eq!((totals.code_hits, totals.data_hits, totals.kernel_hits), (20, 1, 1));
        assert_eq!((totals.last_byte, totals.last_pc), (None, 0));
    }

    /// A page may be left alone for weeks. Its window has 32 bits of the clock.
    #[test]
    fn a_window_ends_however_late_the_next_look_is() {
        const DAY_MS: u64 = 86_400_000;
        for start_ms in [0, 5, 1 << 31, (1 << 32) - 1, 1 << 32] {
            let after = |wait_ms: u64| {
                let history = History::default();
                (0..9).for_each(|_| history.record(Hit::Code, Some(8), 0x1000));
                assert_eq!(history.read(start_ms, false).hits, 9);
                history.read(start_ms + wait_ms, false)
            };
            assert_eq!(after(WINDOW_MS - 2).hits, 9, "{start_ms}");
            for wait_ms in (1..49).map(|days| days * DAY_MS).chain([WINDOW_MS + 1, 1 << 31, (1 << 31) + 1]) {
                let late = after(wait_ms);
                assert_eq!((late.hits, late.same_byte_hits), (0, 0), "{wait_ms} ms after {start_ms}");
            }
        }
        // A thread that read the clock a moment earlier does not end the window.
        let history = History::default();
        history.record(Hit::Code, Some(8), 0x1000);
        assert_eq!(history.read(DAY_MS, false).hits, 1);
        assert_eq!(history.read(DAY_MS - 10, false).hits, 1);
    }

    #[test]
    fn a_page_relapses_when_it_is_self_checking_again_soon() {
        let history = History::default();
        let relapses = |now_ms| history.read(now_ms, false).relapses;
        history.enter_self_checking(10_000);
        assert_eq!(relapses(10_000), 0);
        history.leave_self_checking(11_000);
        history.enter_self_checking(11_000 + RELAPSE_MS - 1);
        assert_eq!(relapses(20_000), 1);
        history.leave_self_checking(20_000);
        history.enter_self_checking(20_000 + RELAPSE_MS);
        assert_eq!(relapses(30_000), 0);
        assert_eq!(history.read(30_000, false).self_checking_ms, 20_000 + RELAPSE_MS);
        // The clock's upper half does not matter, nor the other numbers of the word.
        let later_ms = (5 << 32) - 10;
        history.set_opened_in_bulk();
        (0..MOST_KERNEL_HITS + 5).for_each(|_| history.record(Hit::Kernel, None, 0));
        history.enter_self_checking(later_ms);
        assert_eq!(history.read(later_ms + 20, false).self_checking_ms, later_ms);
        history.leave_self_checking(later_ms + 20);
        history.enter_self_checking(later_ms + 30);
        assert_eq!((relapses(later_ms + 30), history.read(later_ms + 30, false).self_checking_ms), (1, later_ms + 30));
        assert_eq!(history.totals().kernel_hits, MOST_KERNEL_HITS as u32);
        assert!(history.take_opened_in_bulk() && !history.take_opened_in_bulk());
    }

    /// A page that is protected together with others is not looked at. Its hits may be hours apart.
    #[test]
    fn hits_before_a_page_is_protected_in_a_batch_are_of_no_window() {
        let history = History::default();
        for _ in 0..5 {
            history.record(Hit::Code, Some(8), 0x1000);
            history.set_opened_in_bulk();
            assert!(history.take_opened_in_bulk());
        }
        assert_eq!(history.read(1_000, false).hits, 0);
        history.record(Hit::Code, Some(8), 0x1000);
        let read = history.read(2_000, false);
        assert_eq!((read.hits, read.same_byte_hits, read.window_ms), (1, 1, 2_000));
        // A window that a look began lasts.
        history.set_opened_in_bulk();
        assert!(history.take_opened_in_bulk());
        history.record(Hit::Code, Some(8), 0x1000);
        assert_eq!(history.read(2_001, false).hits, 2);
        assert_eq!(history.totals().code_hits, 7);
    }
}
