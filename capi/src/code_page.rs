//! The tracker of an embedder with a cache of its own: which pages hold its code, and whom to
//! tell.
//!
//! A page's own code has a **stamp** in the page's data: a number that no other code has, and
//! another one after each report. A claim is current while the stamp is the same.
//!
//! If the page's bytes have other addresses too, a store there must reach its code. Each of those
//! pages has a list of the codes that it shows. Fault handlers walk the lists, so a node stays until its
//! region ends; but a node with an idle code is used again for another one. The tracker keeps one such
//! code for each page.
//!
//! A code is idle if it was told of since its last claim. It has a number for each claim, so that a slow
//! writer makes no code idle that was claimed meanwhile:
//!
//! ```text
//!        a claim                     a writer, before it tells       the same, when it has told
//! any ────────────▶ live (number+1) ─────────────────────▶ dying ─────────────────────▶ idle
//! ```
//!
//! A writer that meets a dying code tells as well: the first one may not be done. Claims take turns. A
//! claim reads the stamp and then finds the code live yet; otherwise it begins again.
//!
//! # Orderings
//!
//! A translator notes its page here and only then looks whether its claim still holds; a writer
//! changes the page's word and only then looks here. Both pass a fence between the two, in the
//! tracker. So either the claim fails, or the writer finds the code. In the same way a translator
//! enters its block and then looks at the stamp, and a writer changes the stamp and then calls
//! `told`.
//!
//! # Safety
//!
//! Nodes of a list live as long as the list, and codes as long as the tracker. C's functions may be called as its options say.
#![allow(unsafe_code)]

use std::collections::BTreeMap;
use std::ffi::c_void;
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, AtomicUsize, Ordering::SeqCst, fence};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use engine::Busy;
use engine::addr::GuestAddr;
use engine::error::Error;
use engine::policy::Policy;
use engine::protection::FaultLock;
use engine::tracker::{BeginError, Cause, PageClaim, PageObserver, PageWrite, Tracker};

use crate::of_process::OfProcess;
use crate::status::Failure;
use crate::told::{cw_told, cw_tracker_options};

/// Another number each time, never 0.
fn new_stamp() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    NEXT.fetch_add(1, SeqCst)
}

/// The code of one page whose bytes have other addresses too.
#[derive(Debug)]
pub(crate) struct SharedCode {
    page: u64,
    stamp: AtomicU64,
    /// The number of its last claim, and below that its phase.
    phase: AtomicU64,
}

const IDLE: u64 = 0;
const LIVE: u64 = 1;
const DYING: u64 = 2;
const PHASES: u64 = 3;

impl SharedCode {
    fn new(page: u64) -> Self {
        Self { page, stamp: AtomicU64::new(new_stamp()), phase: AtomicU64::new(IDLE) }
    }

    fn is_idle(&self) -> bool {
        self.phase.load(SeqCst) & PHASES == IDLE
    }

    /// Claims it, by one thread at a time. `enter` puts it into lists. Returns its stamp.
    fn claim(&self, mut enter: impl FnMut()) -> u64 {
        loop {
            let live = (self.phase.load(SeqCst) & !PHASES) + (PHASES + 1) + LIVE;
            self.phase.store(live, SeqCst);
            enter();
            let stamp = self.stamp.load(SeqCst);
            if self.phase.load(SeqCst) == live {
                return stamp;
            }
        }
    }

    /// Calls `report` unless it is idle, in which case it was told of.
    fn tell(&self, report: impl FnOnce()) {
        let mut phase = self.phase.load(SeqCst);
        while phase & PHASES == LIVE {
            match self.phase.compare_exchange(phase, phase - LIVE + DYING, SeqCst, SeqCst) {
                Ok(_) => phase = phase - LIVE + DYING,
                Err(now) => phase = now,
            }
        }
        if phase & PHASES == IDLE {
            return;
        }
        report();
        let _ = self.phase.compare_exchange(phase, phase - DYING + IDLE, SeqCst, SeqCst);
    }
}

/// The codes of pages whose bytes have several addresses, by the pages. They live as long as the tracker.
pub(crate) type SharedCodes = BTreeMap<u64, Box<SharedCode>>;

#[derive(Debug)]
struct Node {
    code: AtomicPtr<SharedCode>,
    next: *const Node,
}

/// The data of a page.
#[derive(Debug, Default)]
pub(crate) struct CodePage {
    /// The stamp of the page's own code; 0 if it was never claimed.
    own: AtomicU64,
    /// The codes of other pages that this page shows.
    others: AtomicPtr<Node>,
}

// SAFETY: the list is changed and walked by atomics; its nodes are shared references.
unsafe impl Send for CodePage {}
// SAFETY: as above.
unsafe impl Sync for CodePage {}

impl CodePage {
    /// The stamp of its own code, which it has from now on.
    fn claim(&self) -> u64 {
        let _ = self.own.compare_exchange(0, new_stamp(), SeqCst, SeqCst);
        self.own.load(SeqCst)
    }

    /// A store to this page changes `code`, from now on. By one thread at a time.
    ///
    /// # Safety
    ///
    /// The code lives as long as this.
    unsafe fn shows(&self, code: &SharedCode) {
        let new = ptr::from_ref(code).cast_mut();
        let mut idle = None;
        for node in self.nodes() {
            let old = node.code.load(SeqCst);
            if old == new {
                return;
            }
            // SAFETY: in the list: the caller's promise of an earlier call.
            if unsafe { &*old }.is_idle() {
                idle = Some(node);
            }
        }
        match idle {
            Some(node) => node.code.store(new, SeqCst),
            None => {
                let node = Node { code: AtomicPtr::new(new), next: self.others.load(SeqCst) };
                self.others.store(Box::into_raw(Box::new(node)), SeqCst);
            }
        }
    }

    fn nodes(&self) -> impl Iterator<Item = &Node> {
        // SAFETY: in the list, whose nodes live as long as this.
        let node = |at: *const Node| unsafe { at.as_ref() };
        std::iter::successors(node(self.others.load(SeqCst)), move |at| node(at.next))
    }
}

impl Drop for CodePage {
    fn drop(&mut self) {
        let mut at = *self.others.get_mut();
        while !at.is_null() {
            // SAFETY: made by `shows`, freed once: the list is gone.
            let node = unsafe { Box::from_raw(at) };
            at = node.next.cast_mut();
        }
    }
}

/// The embedder's functions, and the tracker's observer.
pub(crate) struct Embedder {
    told: unsafe extern "C" fn(context: *mut c_void, page: u64, why: cw_told),
    lock: Option<Lock>,
    others_may_look: Option<unsafe extern "C" fn(context: *mut c_void) -> bool>,
    context: *mut c_void,
}

// SAFETY: C promises that any thread may call its functions.
unsafe impl Send for Embedder {}
// SAFETY: as above.
unsafe impl Sync for Embedder {}

/// C's lock.
#[derive(Clone)]
struct Lock(Arc<Shared>);

struct Shared {
    lock: unsafe extern "C" fn(context: *mut c_void),
    unlock: unsafe extern "C" fn(context: *mut c_void),
    context: *mut c_void,
    /// The tracker ends: no thread of the library takes the lock any more.
    is_over: AtomicBool,
    /// Threads of the library at the lock, of this process.
    inside: AtomicUsize,
    process: OfProcess,
}

// SAFETY: as for the embedder's other functions.
unsafe impl Send for Shared {}
// SAFETY: as above.
unsafe impl Sync for Shared {}

impl FaultLock for Lock {
    fn hold(&self, handle: &mut dyn FnMut()) {
        let Shared { lock, unlock, context, is_over, inside, .. } = &*self.0;
        inside.fetch_add(1, SeqCst);
        // Otherwise the ranges are given up, and with them their faults.
        if !is_over.load(SeqCst) {
            // SAFETY: C's promise; the end waits until this is over.
            unsafe { lock(*context) };
            handle();
            // SAFETY: as above.
            unsafe { unlock(*context) };
        }
        inside.fetch_sub(1, SeqCst);
    }
}

impl Embedder {
    pub(crate) fn new(options: &cw_tracker_options) -> Result<Self, Failure> {
        let &cw_tracker_options { told, lock, unlock, others_may_look, context, .. } = options;
        let told = told.ok_or(Failure::bad_argument(c"told must not be NULL: it is how you learn of stale blocks"))?;
        let lock = match (lock, unlock) {
            (Some(lock), Some(unlock)) => {
                let (is_over, inside) = (AtomicBool::new(false), AtomicUsize::new(0));
                let process = OfProcess::this()?;
                Some(Lock(Arc::new(Shared { lock, unlock, context, is_over, inside, process })))
            }
            (None, None) => None,
            _ => return Err(Failure::bad_argument(c"lock and unlock are both given, or none of them")),
        };
        Ok(Self { told, lock, others_may_look, context })
    }

    /// Tells of the codes of a page. The stamps change first.
    fn tell(&self, page: &CodePage, guest: GuestAddr, why: cw_told) {
        let report = |stamp: &AtomicU64, guest: u64| {
            stamp.store(new_stamp(), SeqCst);
            fence(SeqCst);
            // SAFETY: C's promise.
            unsafe { (self.told)(self.context, guest, why) };
        };
        if page.own.load(SeqCst) != 0 {
            report(&page.own, guest.0);
        }
        for node in page.nodes() {
            // SAFETY: a code of a list lives as long as the list.
            let code = unsafe { &*node.code.load(SeqCst) };
            code.tell(|| report(&code.stamp, code.page));
        }
    }
}

// SAFETY: `tell` walks a list and changes atomics, and calls C's functions, which keep to the
// rules of an observer by C's promise.
unsafe impl PageObserver for Embedder {
    type Data = CodePage;

    fn written(&self, page: &CodePage, write: &PageWrite) {
        let why = match write.cause {
            Cause::Cooled => cw_told::CW_TOLD_COOLED,
            Cause::Lost => cw_told::CW_TOLD_LOST,
            _ => cw_told::CW_TOLD_WRITTEN,
        };
        self.tell(page, write.page, why);
    }

    fn data_written(&self, page: &CodePage, write: &PageWrite) {
        self.tell(page, write.page, cw_told::CW_TOLD_CHECKED);
    }

    fn others_may_look(&self) -> bool {
        // SAFETY: C's promise.
        self.others_may_look.is_none_or(|ask| unsafe { ask(self.context) })
    }

    fn fault_lock(&self) -> Option<Arc<dyn FaultLock>> {
        Some(Arc::new(self.lock.clone()?))
    }
}

/// A page that was claimed, with all addresses of its bytes.
pub(crate) struct Claimed {
    pub(crate) page: GuestAddr,
    pub(crate) stamp: u64,
    /// 0 if its bytes have no other address.
    pub(crate) shared_stamp: u64,
    pub(crate) is_self_checking: bool,
}

/// A tracker that tells an embedder.
pub(crate) struct Codes {
    tracker: Tracker<CodePage>,
    lock: Option<Lock>,
    /// Dropped behind the tracker, whose pages name them.
    shared: Mutex<SharedCodes>,
}

impl Codes {
    pub(crate) fn new(embedder: Embedder, policy: Arc<dyn Policy>) -> Self {
        let lock = embedder.lock.clone();
        Self { tracker: Tracker::with_policy(Arc::new(embedder), policy), lock, shared: Mutex::default() }
    }

    pub(crate) fn tracker(&self) -> &Tracker<CodePage> {
        &self.tracker
    }

    pub(crate) fn has_lock(&self) -> bool {
        self.lock.is_some()
    }

    /// Ends the tracker, under the embedder's lock.
    pub(crate) fn end(self) {
        // (The codes are dropped at the end.)
        let Self { tracker, lock, shared: _codes } = self;
        let Some(Lock(shared)) = lock else { return drop(tracker) };
        // SAFETY: C's promise. This thread has not taken it.
        unsafe { (shared.lock)(shared.context) };
        shared.is_over.store(true, SeqCst);
        drop(tracker);
        // SAFETY: as above.
        unsafe { (shared.unlock)(shared.context) };
        while shared.inside.load(SeqCst) != 0 && shared.process.is_current() {
            thread::sleep(Duration::from_micros(50));
        }
    }

    /// In a fork's child, which has none of its parent's threads, before it has one of its own.
    pub(crate) fn begin_in_child(&self) -> Result<(), Error> {
        if let Some(Lock(shared)) = &self.lock {
            shared.inside.store(0, SeqCst);
            shared.process.take_over()?;
        }
        Ok(())
    }

    /// Claims take turns by this. No call of the tracker is made under it.
    pub(crate) fn shared(&self) -> MutexGuard<'_, SharedCodes> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Claims the page that holds `guest` under each address of its bytes.
    pub(crate) fn claim(&self, guest: GuestAddr) -> Result<Claimed, BeginError> {
        let claim = self.tracker.begin(guest)?;
        let page = claim.guest_page();
        let aliases = self.tracker.aliases(page);
        let stamp = claim.data().claim();
        let mut claims: Vec<PageClaim<CodePage>> = Vec::new();
        for alias in aliases {
            claims.push(self.tracker.begin(alias)?);
        }
        let mut shared_stamp = 0;
        if !claims.is_empty() {
            let shared = &mut *self.shared();
            let code: &SharedCode = shared.entry(page.0).or_insert_with(|| Box::new(SharedCode::new(page.0)));
            shared_stamp = code.claim(|| {
                for other in &claims {
                    // SAFETY: boxed, and dropped behind the tracker.
                    unsafe { other.data().shows(code) };
                }
            });
        }
        claims.push(claim);
        // A write after this finds the code.
        if !claims.iter().all(PageClaim::is_current) {
            return Err(Busy::Written.into());
        }
        let is_self_checking = claims.iter().any(PageClaim::is_self_checking);
        Ok(Claimed { page, stamp, shared_stamp, is_self_checking })
    }

    /// Whether no report of the page's code came since it was claimed, in this process.
    pub(crate) fn is_current(&self, page: GuestAddr, stamp: u64, shared_stamp: u64) -> bool {
        // Its block was entered before. Pairs with the fence in `tell`.
        fence(SeqCst);
        let Some(data) = self.tracker.data(page) else { return false };
        let stamp_of_shared = || self.shared().get(&page.0).map(|code| code.stamp.load(SeqCst));
        let is_shared_current = shared_stamp == 0 || stamp_of_shared() == Some(shared_stamp);
        data.own.load(SeqCst) == stamp && is_shared_current && data.is_own()
    }

    /// A block is made from `bytes` of the page, by offset: at each of its addresses.
    pub(crate) fn add_code(&self, page: GuestAddr, bytes: std::ops::Range<usize>) {
        for at in [page].into_iter().chain(self.tracker.aliases(page)) {
            if let Some(data) = self.tracker.data(at) {
                data.add_code(bytes.clone());
            }
        }
    }

    /// Copies bytes of a page that was claimed.
    pub(crate) fn read(&self, guest: GuestAddr, into: &mut [u8]) -> Result<(), BeginError> {
        let claim = self.tracker.begin(guest)?;
        self.tracker.read(&claim, guest, into)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn codes_of(page: &CodePage) -> Vec<u64> {
        // SAFETY: the tests' codes live as long as their pages.
        page.nodes().map(|node| unsafe { &*node.code.load(SeqCst) }.page).collect()
    }

    fn claim(code: &SharedCode, page: &CodePage) -> u64 {
        // SAFETY: as above.
        code.claim(|| unsafe { page.shows(code) })
    }

    /// Memory that is written by one address, and run by ever new ones.
    #[test]
    fn a_list_is_as_long_as_its_codes_are_many_at_once() {
        let codes: Vec<SharedCode> = (0..100).map(SharedCode::new).collect();
        let page = CodePage::default();
        for (at, pair) in codes.chunks(2).enumerate() {
            pair.iter().for_each(|code| _ = claim(code, &page));
            pair.iter().for_each(|code| _ = claim(code, &page));
            let mut known = codes_of(&page);
            known.sort_unstable();
            assert_eq!(known, [2 * at as u64, 2 * at as u64 + 1]);
            pair.iter().for_each(|code| code.tell(|| ()));
        }
    }

    /// The place of a code is not given away until it was told of.
    #[test]
    fn a_code_is_idle_when_it_was_told_of_and_not_claimed_since() {
        let (first, second) = (SharedCode::new(1), SharedCode::new(2));
        let page = CodePage::default();
        claim(&first, &page);
        let mut told = 0;
        first.tell(|| {
            // A second writer tells as well, and another claim finds no place.
            first.tell(|| told += 1);
            told += 1;
        });
        assert_eq!(told, 2);
        first.tell(|| told += 1);
        assert_eq!(told, 2, "it was told of");
        claim(&first, &page);
        first.tell(|| {
            claim(&second, &page);
            claim(&first, &page);
        });
        assert_eq!(codes_of(&page), [2, 1]);
        first.tell(|| told += 1);
        assert_eq!(told, 3, "it was claimed while it was told of");
    }

    /// A report between the two reads of a claim: the claim begins again.
    #[test]
    fn a_claim_has_no_stamp_of_a_code_that_is_dying() {
        let code = SharedCode::new(1);
        let mut rounds = 0;
        let stamp = code.claim(|| {
            rounds += 1;
            if rounds == 1 {
                code.tell(|| code.stamp.store(new_stamp(), SeqCst));
            }
        });
        assert_eq!((rounds, code.stamp.load(SeqCst)), (2, stamp));
        assert!(!code.is_idle());
    }
}
