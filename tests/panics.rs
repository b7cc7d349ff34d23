//! Each function of the embedder's that safe code may write panics at each of its calls, in every
//! mode. Afterwards nothing is stale, lost or stuck. (Mode `none` promises nothing about stale
//! blocks.)
//!
//! One script of calls runs over a guest of two views. Each call may end in the planted panic;
//! the script goes on behind it. After each call a naive model compares the reachable blocks
//! with the bytes of the guest's memory.
//!
//! # Safety
//!
//! The memory outlives its cache.
#![allow(unsafe_code)]

#[path = "support/facilities.rs"]
mod facilities;
#[path = "support/limit.rs"]
mod limit;
#[path = "support/modes.rs"]
mod modes;

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use codewarden::addr::{GuestAddr, PageSize};
use codewarden::guest_memory::GuestMemory;
use codewarden::policy::{Decision, Limits, PageHistory, Policy};
use codewarden::protection::{Facility, Mode};
use codewarden::tracker::{RegionOptions, SharedMemory};
use codewarden::{CodeCache, CommitError, Entry, EntryStubs, Key, MemoryLimit, MemoryUse, VCpu};

use facilities::has_or_skips;
use limit::limit_s;

/// The functions that the embedder writes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Of {
    Begin,
    Harvest,
    Cooled,
    Limits,
    PolicyDrop,
    PolicyDebug,
    Payload,
    Hook,
    HookDrop,
    IntoEntry,
}

const ALL: [Of; 10] = [
    Of::Begin,
    Of::Harvest,
    Of::Cooled,
    Of::Limits,
    Of::PolicyDrop,
    Of::PolicyDebug,
    Of::Payload,
    Of::Hook,
    Of::HookDrop,
    Of::IntoEntry,
];

/// The panic that was planted.
struct Planted;

/// A panic at one call of one function. `Debug` by hand, as a policy must have one.
struct Plant {
    of: Of,
    at: usize,
    calls: AtomicUsize,
    made: AtomicUsize,
    dropped: AtomicUsize,
}

impl Plant {
    fn call(&self, of: Of) {
        if of == self.of && self.calls.fetch_add(1, Relaxed) == self.at && !std::thread::panicking() {
            resume_unwind(Box::new(Planted));
        }
    }

    fn went_off(&self) -> bool {
        self.calls.load(Relaxed) > self.at
    }
}

/// Decides by turns, so that each page comes to each state.
struct Turns(Arc<Plant>, AtomicUsize);

impl fmt::Debug for Turns {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.call(Of::PolicyDebug);
        f.write_str("Turns")
    }
}

impl Drop for Turns {
    fn drop(&mut self) {
        self.0.call(Of::PolicyDrop);
    }
}

impl Turns {
    fn turn(&self) -> usize {
        self.1.fetch_add(1, Relaxed)
    }
}

impl Policy for Turns {
    fn on_begin(&self, page: &PageHistory) -> Decision {
        self.0.call(Of::Begin);
        if page.held || self.turn() % 4 == 3 { Decision::SelfCheck } else { Decision::Protect }
    }

    fn on_harvest(&self, _: &PageHistory) -> bool {
        self.0.call(Of::Harvest);
        self.turn() % 2 == 1
    }

    fn has_cooled(&self, page: &PageHistory) -> bool {
        self.0.call(Of::Cooled);
        !page.held
    }

    fn limits(&self) -> Limits {
        self.0.call(Of::Limits);
        Limits::default().with_open_ahead(2).with_protect_batch(2).with_checks_on_data_write(true)
    }
}

struct Payload(Arc<Plant>);

impl Payload {
    fn new(plant: &Arc<Plant>) -> Self {
        plant.made.fetch_add(1, Relaxed);
        Self(plant.clone())
    }
}

impl Drop for Payload {
    fn drop(&mut self) {
        self.0.dropped.fetch_add(1, Relaxed);
        self.0.call(Of::Payload);
    }
}

struct Hook(Arc<Plant>);

impl Drop for Hook {
    fn drop(&mut self) {
        self.0.call(Of::HookDrop);
    }
}

struct Made(Arc<Plant>, Entry);

impl From<Made> for Entry {
    fn from(made: Made) -> Self {
        made.0.call(Of::IntoEntry);
        made.1
    }
}

const PAGES: usize = 6;
const CHECKED: usize = 1 << 40;
/// Large enough that the memory of dead blocks is too much.
const PAYLOAD_BYTES: usize = 10_000;
const LIMIT: MemoryLimit = MemoryLimit { live_bytes: 200_000, retained_bytes: 50_000 };

struct Script {
    cache: CodeCache<Payload>,
    plant: Arc<Plant>,
    mode: Mode,
    page: usize,
    memory: GuestMemory,
    _second: GuestMemory,
    step: usize,
}

impl Script {
    fn new(plant: &Arc<Plant>, mode: Mode) -> Self {
        let page = PageSize::host().bytes();
        let memory = GuestMemory::memfd(PAGES * page).unwrap();
        let second = memory.another_view().unwrap();
        let policy = Arc::new(Turns(plant.clone(), AtomicUsize::new(0)));
        let cache = CodeCache::with_policy(EntryStubs::NOT_CODE, policy).unwrap();
        cache.set_limit(LIMIT);
        let mut script = Self { cache, plant: plant.clone(), mode, page, memory, _second: second, step: 0 };
        for at in [0, PAGES] {
            script.add_region(at);
        }
        script
    }

    /// Tracks the view that the guest has at page `at`.
    fn add_region(&mut self, at: usize) {
        let memory = if at == 0 { &self.memory } else { &self._second };
        let options = RegionOptions::new(GuestAddr((at * self.page) as u64), memory.range(), self.mode);
        let backing = memory.backing_id().unwrap();
        // SAFETY: the cache is dropped before the memory.
        self.until_done(|script| unsafe { script.cache.tracker().add_region(options) }.unwrap());
        let shared = SharedMemory { backing, offset: 0 };
        let bytes = (PAGES * self.page) as u64;
        self.until_done(|script| script.cache.tracker().declare_shared(options.guest, bytes, shared).unwrap());
    }

    /// One call, which may end in the planted panic. Returns whether it did not.
    fn call(&mut self, run: impl FnOnce(&mut Self)) -> bool {
        self.step += 1;
        match catch_unwind(AssertUnwindSafe(|| run(self))) {
            Ok(()) => true,
            Err(panic) if panic.is::<Planted>() => false,
            Err(panic) => resume_unwind(panic),
        }
    }

    /// Runs `run` again if it panicked: there is one panic only.
    fn until_done(&mut self, run: impl Fn(&mut Self)) {
        assert!(self.call(&run) || self.call(&run), "{self:?}: it panicked twice");
    }

    fn guest(&self, page: usize, byte: usize) -> GuestAddr {
        GuestAddr((page * self.page + byte) as u64)
    }

    fn byte(&self, page: usize) -> u8 {
        let mut byte = [0];
        self.memory.read(page % PAGES * self.page, &mut byte).unwrap();
        byte[0]
    }

    /// A block of the first byte of `page`, by `key`: revived, made, or refused.
    fn translate(&mut self, page: usize, key: u64) {
        let start = self.guest(page, 0);
        let end = Instant::now() + Duration::from_secs(limit_s(60).into());
        while Instant::now() < end {
            let mut ticket = self.cache.begin(Key::new(key));
            if ticket.claim(start).is_err() {
                // In thread mode the handler may not be done yet.
                std::thread::yield_now();
                continue;
            }
            let byte = self.byte(page);
            ticket.add_source(start, &[byte]).unwrap();
            ticket.set_payload_bytes(PAYLOAD_BYTES);
            let plain = 0x1000 | usize::from(byte);
            let entry = Made(self.plant.clone(), Entry::with_check(plain, plain | CHECKED));
            let done = match ticket.revive() {
                Ok(None) => Ok(()),
                Ok(Some(ticket)) => ticket.commit(entry, Payload::new(&self.plant)),
                Err(error) => Err(error),
            };
            match done {
                Ok(()) => return,
                Err(CommitError::Written) => {}
                Err(error) => panic!("{self:?}: {error}"),
            }
        }
        panic!("{self:?}: page {page} cannot be translated from");
    }

    fn store(&mut self, page: usize, byte: usize, value: u8) {
        self.memory.write(page * self.page + byte, &[value]).unwrap();
        if self.mode == Mode::Deferred {
            self.until_done(|script| script.cache.tracker().sync().unwrap());
        }
        self.nothing_is_stale();
    }

    /// The promise: a block entered by its plain entry was made of the present byte.
    fn nothing_is_stale(&mut self) {
        if self.mode == Mode::None {
            return;
        }
        let mut vcpu = self.cache.attach_vcpu();
        for page in 0..2 * PAGES {
            let entry = vcpu.pin().lookup_shared(Key::new(page as u64));
            let is_stale = entry.is_some_and(|entry| entry & CHECKED == 0 && entry as u8 != self.byte(page));
            assert!(!is_stale, "{self:?}: page {page} holds {}, and {entry:x?} can be reached", self.byte(page));
        }
    }

    fn attach(&self) -> VCpu<Payload> {
        let hook = Hook(self.plant.clone());
        self.cache.attach_vcpu_with(move || hook.0.call(Of::Hook))
    }

    fn translate_all(&mut self) {
        for page in 0..2 * PAGES {
            self.until_done(|script| script.translate(page, page as u64));
        }
        self.nothing_is_stale();
    }

    fn run(&mut self) {
        self.translate_all();
        // It holds back all blocks that die from here on.
        let mut slow = self.attach();
        let pin = slow.pin();
        for round in 1..5 {
            for page in 0..PAGES {
                self.store(page, 0, round);
            }
            self.translate_all();
            self.store(1, self.page / 2, round);
            self.store(2, self.page / 2, round);
            self.call(|script| script.cache.tracker().maintain());
            self.nothing_is_stale();
            self.translate_all();
        }
        for key in 100..140 {
            self.until_done(|script| script.translate(5, key));
        }
        self.until_done(|script| {
            let tracker = script.cache.tracker();
            let held = tracker.prepare_unseen_write(script.guest(3, 0), 1).unwrap();
            script.memory.write(3 * script.page, &[77]).unwrap();
            // The block compares itself, or is not made.
            script.translate_held(3);
            drop(held);
        });
        self.nothing_is_stale();
        self.until_done(|script| script.cache.tracker().invalidate(script.guest(4, 0), 1).unwrap());
        self.until_done(|script| drop(script.cache.tracker().change_mapping(script.guest(4, 0), 1).unwrap()));
        self.call(|script| drop(script.cache.before_fork()));
        self.translate_all();
        self.call(|script| script.cache.evict(5 * PAYLOAD_BYTES));
        self.nothing_is_stale();
        self.call(|_| drop(pin));
        self.call(|_| drop(slow));
        self.until_done(|script| script.cache.remove(Key::new(0)));
        self.until_done(|script| {
            let _ = format!("{:?} {:?} {:?}", script.cache, script.cache.tracker(), script.cache.begin(Key::new(1)));
        });
        // Every page cools and comes again.
        self.translate_all();
        for _ in 0..3 {
            self.call(|script| script.cache.tracker().maintain());
        }
        assert_eq!(
            self.cache.tracker().pages_by_state().self_checking,
            0,
            "{self:?}: a self-checking page was forgotten"
        );
        self.until_done(|script| script.cache.tracker().remove_region(script.guest(PAGES, 0)).unwrap());
        self.add_region(PAGES);
        self.translate_all();
        // No vCPU is inside: every target is reached.
        self.call(|script| script.cache.evict(usize::MAX));
        self.call(|script| script.cache.evict(usize::MAX));
        let footprint = self.cache.footprint();
        let used = [footprint.live, footprint.retained, footprint.garbage];
        assert_eq!(used, [MemoryUse::default(); 3], "{self:?}: memory was lost");
        self.no_thread_waits();
    }

    fn translate_held(&mut self, page: usize) {
        let mut ticket = self.cache.begin(Key::new(page as u64));
        let start = self.guest(page, 0);
        if ticket.claim(start).is_ok() {
            let byte = self.byte(page);
            ticket.add_source(start, &[byte]).unwrap();
            let plain = 0x1000 | usize::from(byte);
            let _ = ticket.commit(Entry::with_check(plain, plain | CHECKED), Payload::new(&self.plant));
        }
    }

    /// Every payload that was made was dropped.
    fn no_thread_waits(&self) {
        let (made, dropped) = (self.plant.made.load(Relaxed), self.plant.dropped.load(Relaxed));
        assert_eq!(made, dropped, "{self:?}: payloads were lost");
    }
}

impl fmt::Debug for Script {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, {:?} panics at call {}, step {}", self.mode, self.plant.of, self.plant.at, self.step)
    }
}

/// Returns whether the call came at all.
fn run(mode: Mode, of: Of, at: usize) -> bool {
    let [calls, made, dropped] = [0; 3].map(AtomicUsize::new);
    let plant = Arc::new(Plant { of, at, calls, made, dropped });
    let mut script = Script::new(&plant, mode);
    script.run();
    // The blocks alive at the end go with the cache.
    script.until_done(|script| script.translate_all());
    let Script { cache, memory, _second, .. } = script;
    match catch_unwind(AssertUnwindSafe(|| drop(cache))) {
        Err(panic) if !panic.is::<Planted>() => resume_unwind(panic),
        _ => {}
    }
    assert_eq!(plant.made.load(Relaxed), plant.dropped.load(Relaxed), "{mode}, {of:?} {at}: payloads were lost");
    drop((memory, _second));
    plant.went_off()
}

/// Fails if it is stuck.
fn within_a_minute<T: Send + 'static>(what: String, run: impl FnOnce() -> T + Send + 'static) -> T {
    let (done, is_done) = channel();
    let thread = std::thread::spawn(move || {
        let result = run();
        let _ = done.send(());
        result
    });
    let waited = is_done.recv_timeout(Duration::from_secs(60));
    assert!(waited.is_ok() || thread.is_finished(), "{what}: it is stuck");
    thread.join().unwrap_or_else(|panic| resume_unwind(panic))
}

#[test]
fn every_function_of_the_embedders_panics_at_each_call() {
    let modes = modes::tracking_modes().into_iter().filter(|&mode| has_or_skips(mode, Facility::WpShmem));
    for mode in modes.chain([Mode::None]) {
        for of in ALL {
            let mut at = 0;
            while within_a_minute(format!("{mode}, {of:?} {at}"), move || run(mode, of, at)) {
                // The first calls one by one, then fewer: the script repeats itself.
                at += 1 + at / 64 * 4;
            }
            println!("{mode}: {of:?} was called {at} times at least");
            let is_called = !matches!(of, Of::PolicyDebug) && (of != Of::Harvest || mode == Mode::Deferred);
            assert!(!is_called || at > 0, "{mode}: the script does not call {of:?}");
        }
    }
}
