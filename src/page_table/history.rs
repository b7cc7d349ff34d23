//! The recent events on a page, which fault handlers record for the policy.
//!
//! These are plain atomics of the standard library, each a record of its own. If two
//! threads write an entry at once, the policy may guess wrong. That costs time only:
//! every decision of the policy is sound.

use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering::Relaxed};

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
    pub(crate) code_hits: u32,
    pub(crate) data_hits: u32,
    pub(crate) harvested: u32,
    pub(crate) kernel_hits: u32,
    /// Within the page.
    pub(crate) last_byte: Option<usize>,
    /// Of the host; 0: not known.
    pub(crate) last_pc: usize,
}

/// The record of one page.
#[derive(Debug, Default)]
pub(crate) struct History {
    /// Bits 0..16: the byte that was hit last, plus 1; 16..24: hits of it in a
    /// row; 24..32: hits; 32..64: when the window began, in ms, 0 if no look found it yet.
    window: AtomicU64,
    /// Bits 0..8: relapses; 8..64: the time at which it became self-checking or stopped being
    /// so.
    checked: AtomicU64,
    hits: [AtomicU32; 4],
    last_pc: AtomicUsize,
    opened_in_bulk: AtomicBool,
}

/// A page that becomes self-checking within this time after it stopped being so has
/// relapsed.
const RELAPSE_MS: u64 = 4_000;

/// A time in the window's bits.
fn in_window(ms: u64) -> u64 {
    (ms & 0xffff_ffff).max(1)
}

/// The time since `since_ms`, of the window's bits. These are 32 bits of the clock, rounded up if
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
        let hits = &self.hits[hit as usize];
        hits.store(hits.load(Relaxed).wrapping_add(1), Relaxed);
        self.last_pc.store(pc, Relaxed);
    }

    /// The page became self-checking.
    pub(crate) fn enter_self_checking(&self, now_ms: u64) {
        let seen = self.checked.load(Relaxed);
        let (relapses, since_ms) = (seen & 0xff, seen >> 8);
        let relapsed = seen != 0 && now_ms.saturating_sub(since_ms) < RELAPSE_MS;
        let relapses = if relapsed { (relapses + 1).min(0xff) } else { 0 };
        self.checked.store(relapses | now_ms << 8, Relaxed);
    }

    /// It stopped being self-checking.
    pub(crate) fn leave_self_checking(&self, now_ms: u64) {
        let relapses = self.checked.load(Relaxed) & 0xff;
        self.checked.store(relapses | now_ms << 8, Relaxed);
    }

    /// Says that the page held blocks when it was opened together with others.
    /// Async-signal-safe.
    pub(crate) fn set_opened_in_bulk(&self) {
        self.opened_in_bulk.store(true, Relaxed);
    }

    /// Whether it was opened so since the last call.
    pub(crate) fn take_opened_in_bulk(&self) -> bool {
        self.opened_in_bulk.load(Relaxed) && self.opened_in_bulk.swap(false, Relaxed)
    }

    /// The history that a policy is asked with. This look begins a window if there were hits since
    /// the last one ended, and ends it if it is over.
    pub(crate) fn read(&self, now_ms: u64, held: bool) -> PageHistory {
        let seen = self.window.load(Relaxed);
        let (_, _, hits, since_ms) = unpack(seen);
        let age_ms = if since_ms == 0 { 0 } else { age(now_ms, since_ms) };
        let window = match (hits, since_ms) {
            (1.., 0) => seen | in_window(now_ms) << 32,
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
            self_checking_ms: checked >> 8,
            relapses: (checked & 0xff) as u32,
            held,
        }
    }

    /// All hits since the page's descriptor was made.
    pub(crate) fn totals(&self) -> Totals {
        let of = |hit: Hit| self.hits[hit as usize].load(Relaxed);
        Totals {
            code_hits: of(Hit::Code),
            data_hits: of(Hit::Data),
            harvested: of(Hit::Harvested),
            kernel_hits: of(Hit::Kernel),
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
    }
}
