//! Pages that are held open for a write that the kernel does not report.
//!
//! A range may reach to the last byte of the 64-bit space. An empty range is no error, and
//! nothing is done. [`views`](super::views) says what each call means for the other views of the
//! range.

use std::fmt;
use std::ops::Range;

use super::observer::{Cause, PageData};
use super::region::{Region, set_opened_in_bulk};
use super::regions::Tracker;
use super::space::{Gate, RegionId, Tracked, for_all};
use crate::addr::{GuestAddr, PageIndex, Span};
use crate::error::Error;
use crate::page_table::{HeldFor, Hit, Hold, PageDesc, PageState, Permit, Unprotect};
use crate::protection::KernelWrites;
use crate::sync::{Rule, left_out, yield_now};
use crate::sys::errno::this_thread;

/// Pages that are held writable: only blocks that compare themselves are made from them.
///
/// A hold ends with its region: a region added there later is not held. In a fork's child the
/// holds of the forking thread go on until they are dropped there too; those of other threads
/// have ended.
#[must_use = "the pages are held until this is dropped"]
pub struct Held {
    /// `None` if there is nothing to hold.
    pages: Option<Box<dyn AnyHeldPages>>,
}

impl fmt::Debug for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Held").field("is_empty", &self.pages.is_none()).finish()
    }
}

/// [`HeldPages`] of any tracker, to be dropped.
trait AnyHeldPages: Send + Sync {}

impl<D: PageData> AnyHeldPages for HeldPages<D> {}

/// The pages of a hold, in every region that has some.
pub(super) struct HeldPages<D: PageData> {
    pub(super) gate: Gate<D>,
    why: HeldFor,
    /// The thread that made this.
    thread: u64,
    pub(super) holds: Vec<(RegionId, Hold)>,
}

impl<D: PageData> HeldPages<D> {
    /// A hold of no pages yet.
    pub(super) fn new(gate: &Gate<D>, why: HeldFor) -> Self {
        Self { gate: gate.clone(), why, thread: this_thread(), holds: Vec::new() }
    }

    /// Holds the pages of `tracked` that have a byte in `asked`.
    pub(super) fn hold(&mut self, tracked: &Tracked<D>, pages: Range<usize>, asked: Span) -> Result<(), Error> {
        let (hold, done) = tracked.region.hold(pages, self.why, self.thread, asked);
        // After an error too, so that the pages that a failed hold entered are released.
        self.holds.push((tracked.id, hold));
        done
    }

    /// The same, of any tracker.
    fn erase(self) -> Held {
        Held { pages: if self.holds.is_empty() { None } else { Some(Box::new(self)) } }
    }
}

impl<D: PageData> Drop for HeldPages<D> {
    fn drop(&mut self) {
        self.gate.release(self.holds.drain(..));
    }
}

impl<D: PageData> Tracker<D> {
    /// The kernel is about to write `len_bytes` from `start` for the guest (`read`, an
    /// out parameter). Until the result is dropped the pages are writable. During that
    /// time only blocks that compare themselves are made from their bytes, through any
    /// view of them, if the policy has such blocks. Costs next to nothing on pages that are open or
    /// self-checking already. If the kernel's writes are tracked like the guest's, nothing is done,
    /// and the pages stay protected: in mode deferred, and in mode thread with the permission for the kernel's faults, if
    /// the observer has no [lock](super::PageObserver::fault_lock).
    ///
    /// A hook that has no end (`access_ok`, a lock of user memory) drops the result at once: the pages
    /// are open, and the next translator protects them again. If one comes before the write, the
    /// kernel refuses that (EFAULT, or fewer bytes), and no block is stale: announce again, and repeat
    /// the call.
    ///
    /// Do not call it in a signal handler.
    ///
    /// # Errors
    ///
    /// [`Error::BadRange`] if the range wraps, [`Error::NotTracked`] if no byte of it is
    /// tracked; a page that could not be made writable.
    pub fn prepare_kernel_write(&self, start: GuestAddr, len_bytes: u64) -> Result<Held, Error> {
        let fails_or_waits = |tracked: &Tracked<D>| match tracked.region.protection.kernel_writes() {
            KernelWrites::Refused | KernelWrites::WaitForTheLock => true,
            KernelWrites::Tracked | KernelWrites::Missed => false,
        };
        self.hold(HeldFor::Writing, start, len_bytes, fails_or_waits)
    }

    /// Announces a write to `len_bytes` from `start` for which the kernel delivers no
    /// fault in any mode: into pages that were pinned (buffers registered with io_uring,
    /// aio and `O_DIRECT` that are under way), by a debugger, or at a thread's end
    /// (`clear_child_tid`, robust lists). Until the result is dropped the pages are held
    /// as by [`Tracker::prepare_kernel_write`], in every mode.
    ///
    /// Do not call it in a signal handler.
    ///
    /// # Errors
    ///
    /// As [`Tracker::prepare_kernel_write`].
    pub fn prepare_unseen_write(&self, start: GuestAddr, len_bytes: u64) -> Result<Held, Error> {
        self.hold(HeldFor::Writing, start, len_bytes, |_| true)
    }

    fn hold(
        &self,
        why: HeldFor,
        start: GuestAddr,
        len_bytes: u64,
        wanted: impl Fn(&Tracked<D>) -> bool,
    ) -> Result<Held, Error> {
        let mut held = HeldPages::new(&self.gate, why);
        self.gate.check_moves()?;
        let Some(span) = Span::new(start.0, len_bytes)? else { return Ok(held.erase()) };
        let done = {
            let space = self.gate.read();
            let found = space.tracked(span)?.filter(|(tracked, _)| wanted(tracked));
            for_all(found, |tracked, pages| held.hold(tracked, pages, span))
        };
        // The end of `held` takes the gate.
        done.map(|()| held.erase())
    }
}

impl<D: PageData> Region<D> {
    /// Makes `pages` writable and their blocks unreachable or self-checking. Keeps translators from
    /// protecting one of them until `PageTable::release`. Of their bytes, those at guest
    /// addresses `asked` are held, by `thread`. After an error the pages are held too.
    pub(super) fn hold(
        &self,
        pages: Range<usize>,
        held_for: HeldFor,
        thread: u64,
        asked: Span,
    ) -> (Hold, Result<(), Error>) {
        let mut done = Ok(());
        let mut run: Option<Range<usize>> = None;
        let mut flush = |run: Option<Range<usize>>, leave: Permit<'_>| {
            if let (Some(run), true) = (run, self.mode.is_synchronous())
                && let Err(error) = self.unprotect_pages(run, leave)
            {
                done = Err(error);
            }
        };
        let how = |page, desc: &PageDesc<D>| self.why_held(page, desc, held_for, asked);
        let hold = self.pages.hold(pages, held_for, thread, how, |page, desc, before, why, leave| {
            // If an un-protect is in flight, its thread may not have told the observer or made
            // its system call yet. An opener of all pages makes that call last, without a
            // count.
            let in_flight = before.unprotects_in_flight() != 0 || self.pages.is_opening();
            let settled = !in_flight || left_out(Rule::HoldBehindHandler);
            let open = match before.state() {
                PageState::Open => true,
                PageState::SelfChecking => why != Unprotect::Change,
                _ => false,
            };
            if open && settled {
                return;
            }
            self.counters.pages_announced.add(1);
            if held_for == HeldFor::Writing {
                self.counters.pages_kernel_written.add(1);
                desc.history.record(Hit::Kernel, None, 0);
            }
            self.notify_observer(page, desc, before, why, Cause::Announced);
            if before.state() == PageState::Protected && why == Unprotect::Write {
                set_opened_in_bulk(desc);
            }
            match &mut run {
                Some(run) if run.end == page.0 => run.end += 1,
                _ => flush(run.replace(page.0..page.0 + 1), leave),
            }
        });
        flush(run, hold.permit());
        if done.is_err() {
            done = self.open_all();
        }
        // A translator that was about to protect one of them may still do so, and undoes it.
        // Until then the kernel's writes would be refused.
        self.await_cancelled(hold.pages().clone());
        (hold, done)
    }

    fn why_held(&self, page: PageIndex, desc: &PageDesc<D>, held_for: HeldFor, asked: Span) -> Unprotect {
        if held_for == HeldFor::Change {
            return Unprotect::Change;
        }
        let page_span = Span::page_of(self.guest_of(page).0, self.page.bytes() as u64);
        let bytes = asked.intersection(page_span).map_or(0..0, |held| {
            let offset = |at: u64| (at - page_span.first()) as usize;
            offset(held.first())..offset(held.last()) + 1
        });
        let hits_data =
            self.limits.checks_on_data_write && !desc.has_code(bytes, self.page.bytes()) && desc.has_any_code();
        if hits_data { Unprotect::DataWrite } else { Unprotect::Write }
    }

    /// Waits for translators that were about to protect one of `pages` when these were
    /// un-protected, until none of them can do so any more.
    pub(super) fn await_cancelled(&self, pages: Range<usize>) {
        for (_, desc) in self.pages.existing(pages) {
            while desc.word.load().state() == PageState::Cancelled {
                yield_now();
            }
        }
    }
}
