//! The tracker of an embedder with a cache of its own: which pages hold its code, and whom to
//! tell.
//!
//! A page's own code has a **stamp** in the page's data: a number that no other code has, and
//! another one after each report. A claim is current while the stamp is the same.
//!
//! If the page's bytes have other addresses too, a store there must reach its code. Each of those
//! pages has a list of the codes that it shows. Fault handlers walk the lists, so they only
//! grow, and end with their region. The tracker keeps one such code for each page, so that a page
//! that is mapped anew again and again does not make a list longer.
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
//! Nodes of a list live as long as the list. C's functions may be called as its options say.
#![allow(unsafe_code)]

use std::collections::BTreeMap;
use std::ffi::c_void;
use std::process;
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, AtomicU64, AtomicUsize, Ordering::SeqCst, fence};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use engine::Busy;
use engine::addr::GuestAddr;
use engine::policy::Policy;
use engine::protection::FaultLock;
use engine::tracker::{BeginError, Cause, PageClaim, PageObserver, PageWrite, Tracker};

use crate::status::Failure;
use crate::told::{cw_told, cw_tracker_options};

/// Another number each time, never 0.
fn new_stamp() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    NEXT.fetch_add(1, SeqCst)
}

/// The code of one page whose bytes have other addresses too.
#[derive(Debug)]
struct SharedCode {
    page: u64,
    stamp: AtomicU64,
}

#[derive(Debug)]
struct Node {
    code: Arc<SharedCode>,
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

    /// A store to this page changes `code`, from now on.
    fn shows(&self, code: &Arc<SharedCode>) {
        let mut head = self.others.load(SeqCst);
        let mut known = ptr::null();
        let mut node: Option<Box<Node>> = None;
        loop {
            // The nodes that another thread has added since the last look.
            if self.walk_until(head, known, |other| Arc::ptr_eq(other, code)) {
                return;
            }
            known = head;
            let mut new = node.take().unwrap_or_else(|| Box::new(Node { code: code.clone(), next: ptr::null() }));
            new.next = head;
            let new = Box::into_raw(new);
            match self.others.compare_exchange(head, new, SeqCst, SeqCst) {
                Ok(_) => return,
                Err(now) => {
                    // SAFETY: made above, and not in the list.
                    node = Some(unsafe { Box::from_raw(new) });
                    head = now;
                }
            }
        }
    }

    /// Whether `found` is true of a code from `from` on, up to `end`.
    fn walk_until(&self, from: *const Node, end: *const Node, mut found: impl FnMut(&Arc<SharedCode>) -> bool) -> bool {
        let mut at = from;
        while at != end
            && let Some(node) = NonNull::new(at.cast_mut())
        {
            // SAFETY: in the list, whose nodes live as long as this.
            let node = unsafe { node.as_ref() };
            if found(&node.code) {
                return true;
            }
            at = node.next;
        }
        false
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
    process: AtomicU32,
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
                let process = AtomicU32::new(process::id());
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
        page.walk_until(page.others.load(SeqCst), ptr::null(), |code| {
            report(&code.stamp, code.page);
            false
        });
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
    /// Codes whose bytes have several addresses, by their pages.
    shared: Mutex<BTreeMap<u64, Arc<SharedCode>>>,
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
        let Self { tracker, lock, .. } = self;
        let Some(Lock(shared)) = lock else { return drop(tracker) };
        // SAFETY: C's promise. This thread has not taken it.
        unsafe { (shared.lock)(shared.context) };
        shared.is_over.store(true, SeqCst);
        drop(tracker);
        // SAFETY: as above.
        unsafe { (shared.unlock)(shared.context) };
        while shared.inside.load(SeqCst) != 0 && shared.process.load(SeqCst) == process::id() {
            thread::sleep(Duration::from_micros(50));
        }
    }

    /// In a fork's child, which has none of its parent's threads, before it has one of its own.
    pub(crate) fn begin_in_child(&self) {
        if let Some(Lock(shared)) = &self.lock {
            shared.inside.store(0, SeqCst);
            shared.process.store(process::id(), SeqCst);
        }
    }

    fn shared_code(&self, page: u64) -> Arc<SharedCode> {
        let mut shared = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        let new = || Arc::new(SharedCode { page, stamp: AtomicU64::new(new_stamp()) });
        shared.entry(page).or_insert_with(new).clone()
    }

    /// Claims the page that holds `guest` under each address of its bytes.
    pub(crate) fn claim(&self, guest: GuestAddr) -> Result<Claimed, BeginError> {
        let claim = self.tracker.begin(guest)?;
        let page = claim.guest_page();
        let aliases = self.tracker.aliases(page);
        let stamp = claim.data().claim();
        let mut claims: Vec<PageClaim<CodePage>> = Vec::new();
        let mut shared_stamp = 0;
        if !aliases.is_empty() {
            let code = self.shared_code(page.0);
            for alias in aliases {
                let other = self.tracker.begin(alias)?;
                other.data().shows(&code);
                claims.push(other);
            }
            shared_stamp = code.stamp.load(SeqCst);
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
        let is_shared_current = shared_stamp == 0 || self.shared_code(page.0).stamp.load(SeqCst) == shared_stamp;
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
