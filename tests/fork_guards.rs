//! The guards over a fork. No order of safe calls frees memory that is in use. In a child, no
//! thread that did not come along holds a lock of the library.
//!
//! # Safety
//!
//! A child uses the objects that its guards cover, and makes no call that needs a lock of the
//! standard library. Memory outlives its cache.
#![allow(unsafe_code)]

#[path = "support/child.rs"]
mod child;
#[path = "support/limit.rs"]
mod limit;

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use codewarden::addr::{GuestAddr, PageSize};
use codewarden::code_buffer::CodeBuffer;
use codewarden::error::Error;
use codewarden::guest_memory::GuestMemory;
use codewarden::protection::{Mode, Probe};
use codewarden::tracker::{PageObserver, PageWrite, RegionOptions, Tracker};
use codewarden::{CodeCache, CommitError, EntryStubs, Key, MemoryLimit, Payload};

use child::{Ended, in_child};
use limit::limit_s;

/// One test at a time forks.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A test that waits for itself is ended after this time.
const LIMIT_S: u32 = 60;

/// Each test of this file, and of others, relies on it.
#[test]
fn a_child_reports_its_end() {
    let _alone = alone();
    assert_eq!(in_child(|| 7), Ended::Returned(7));
    assert_eq!(in_child(|| panic!("on purpose")), Ended::Panicked);
    let raised = [libc::SIGKILL, libc::SIGALRM].map(|signal| {
        // SAFETY: ends the child.
        in_child(|| unsafe { libc::raise(signal) } as u8)
    });
    assert_eq!(raised, [Ended::Killed(libc::SIGKILL), Ended::Hung]);
}

/// The modes that are available here. A missing mode is named.
fn modes() -> Vec<Mode> {
    let probe = Probe::of_this_process();
    let can_be_had = |mode: &Mode| match probe.check(*mode) {
        Ok(()) => true,
        Err(error) => {
            assert!(std::env::var_os("CODEWARDEN_REQUIRE_ALL").is_none(), "{error}");
            println!("skipped: {error}");
            false
        }
    };
    Mode::ALL.into_iter().filter(can_be_had).collect()
}

fn cache_on<P: Payload>(memory: &GuestMemory, mode: Mode) -> CodeCache<P> {
    let cache = CodeCache::new(EntryStubs::NOT_CODE).unwrap();
    // SAFETY: the callers keep the memory longer than the cache.
    unsafe { cache.tracker().add_region(RegionOptions::new(GuestAddr(0), memory.range(), mode)) }.unwrap();
    cache
}

/// A block at the first byte.
fn translate<P: Payload>(cache: &CodeCache<P>, payload: P) {
    let mut ticket = loop {
        let mut ticket = cache.begin(Key::new(0));
        if ticket.claim(GuestAddr(0)).is_ok() {
            break ticket;
        }
    };
    ticket.add_source(GuestAddr(0), &[0]).unwrap();
    ticket.commit(0x1000, payload).unwrap();
}

struct NoObserver;

// SAFETY: does nothing.
unsafe impl PageObserver for NoObserver {
    type Data = ();

    fn written(&self, (): &(), _: &PageWrite) {}
}

/// Blocks and code are unchanged after it.
#[test]
fn a_guard_makes_no_child_of_its_own_process() {
    let _alone = alone();
    let memory = GuestMemory::anonymous(PageSize::host().bytes()).unwrap();
    for mode in modes() {
        let cache = cache_on::<()>(&memory, mode);
        translate(&cache, ());
        let mut vcpu = cache.attach_vcpu();
        let mut pin = vcpu.pin();
        assert_eq!(cache.before_fork().after_fork_child(), Err(Error::NotInForkChild));
        assert_eq!(pin.lookup(Key::new(0)), Some(0x1000), "{mode}");
        // Not a child of the guard: the guard was made in the child itself.
        let guard = cache.before_fork();
        let status = in_child(|| {
            drop(guard);
            u8::from(cache.clone().before_fork().after_fork_child() != Err(Error::NotInForkChild))
        });
        assert_eq!(status, Ended::Returned(0), "{mode}");
    }
    let tracker = Tracker::new(Arc::new(NoObserver));
    assert_eq!(tracker.before_fork().after_fork_child(), Err(Error::NotInForkChild));
    let buffer = CodeBuffer::new(4096).unwrap();
    let code = buffer.alloc(1, 1).unwrap();
    // SAFETY: one byte of an allocation that is alive.
    unsafe { code.rw().write_volatile(7) };
    assert_eq!(buffer.before_fork().after_fork_child(), Err(Error::NotInForkChild));
    // SAFETY: as above.
    assert_eq!(unsafe { code.rx().read_volatile() }, 7);
}

/// Counts its own end.
struct Counted(Arc<AtomicUsize>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_add(1, SeqCst);
    }
}

/// The forking thread comes along with everything that it can reach, and so do its pins. The
/// pins of other threads hold nothing back.
#[test]
fn the_forking_threads_pin_holds_in_the_child() {
    let _alone = alone();
    let memory = GuestMemory::anonymous(PageSize::host().bytes()).unwrap();
    for mode in modes() {
        let ended = Arc::new(AtomicUsize::new(0));
        let cache = cache_on::<Counted>(&memory, mode);
        translate(&cache, Counted(ended.clone()));
        let mut vcpu = cache.attach_vcpu();
        let pin = vcpu.pin();
        let (is_pinned, stop) = (AtomicBool::new(false), AtomicBool::new(false));
        let status = std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut others = cache.attach_vcpu();
                let _pin = others.pin();
                is_pinned.store(true, SeqCst);
                while !stop.load(SeqCst) {
                    std::thread::yield_now();
                }
            });
            while !is_pinned.load(SeqCst) {
                std::thread::yield_now();
            }
            let guard = cache.before_fork();
            let status = in_child(|| {
                if guard.after_fork_child().is_err() {
                    return 1;
                }
                (0..10).for_each(|_| cache.collect());
                if ended.load(SeqCst) != 0 {
                    return 2; // the pin is ours, and the block was freed under it
                }
                drop(pin);
                (0..10).for_each(|_| cache.collect());
                3 * u8::from(ended.load(SeqCst) != 1)
            });
            stop.store(true, SeqCst);
            status
        });
        assert_eq!(status, Ended::Returned(0), "{mode}");
    }
}

fn open_files() -> usize {
    fs::read_dir("/proc/self/fd").expect("this process's descriptors").count()
}

/// Makes `left` more generations, each the child of the one before. Returns the number of the
/// first whose count of descriptors differs from `files`.
fn generations(cache: &CodeCache<()>, files: usize, left: u8) -> u8 {
    if left == 0 {
        return 0;
    }
    let guard = cache.before_fork();
    let ended = in_child(|| {
        if guard.after_fork_child().is_err() || open_files() != files {
            return left;
        }
        translate(cache, ());
        if open_files() != files { left } else { generations(cache, files, left - 1) }
    });
    match ended {
        Ended::Returned(left) => left,
        ended => panic!("{left} left: {ended:?}"),
    }
}

/// A child closes the descriptors that it inherited: its own take their numbers.
#[test]
fn generations_of_children_have_as_many_descriptors() {
    let _alone = alone();
    let memory = GuestMemory::anonymous(PageSize::host().bytes()).unwrap();
    for mode in modes() {
        let cache = cache_on::<()>(&memory, mode);
        translate(&cache, ());
        assert_eq!(generations(&cache, open_files(), 5), 0, "{mode}: left generations");
    }
}

/// Holds the first fault until it is let go.
#[derive(Default)]
struct Gate {
    inside: AtomicBool,
    open: AtomicBool,
}

// SAFETY: atomics and a spin that the test ends.
unsafe impl PageObserver for Gate {
    type Data = ();

    fn written(&self, (): &(), _: &PageWrite) {
        self.inside.store(true, SeqCst);
        while !self.open.load(SeqCst) {
            std::hint::spin_loop();
        }
    }
}

/// A handler is about to open the page and does not come along. The child inherits the
/// protection of `mprotect`, and nothing else would open the page.
#[test]
fn a_page_that_a_thread_was_opening_is_open_in_the_child() {
    let _alone = alone();
    let memory = GuestMemory::anonymous(PageSize::host().bytes()).unwrap();
    for mode in modes().into_iter().filter(|mode| mode.is_synchronous()) {
        let gate = Arc::new(Gate::default());
        let tracker = Tracker::new(gate.clone());
        // SAFETY: the memory outlives the tracker.
        unsafe { tracker.add_region(RegionOptions::new(GuestAddr(0), memory.range(), mode)) }.unwrap();
        let claim = tracker.begin(GuestAddr(0)).unwrap();
        let status = std::thread::scope(|scope| {
            scope.spawn(|| memory.write(0, &[1]).unwrap());
            while !gate.inside.load(SeqCst) {
                std::thread::yield_now();
            }
            let guard = tracker.before_fork();
            let status = in_child(|| {
                gate.open.store(true, SeqCst);
                if guard.after_fork_child().is_err() || claim.is_current() {
                    return 1;
                }
                // By the kernel, which no fault would help.
                let held = tracker.prepare_kernel_write(GuestAddr(0), 1);
                // SAFETY: a new descriptor, and one byte of the memory.
                let read = unsafe {
                    let zero = libc::open(c"/dev/zero".as_ptr(), libc::O_RDONLY);
                    libc::read(zero, memory.range().start().as_ptr().cast(), 1)
                };
                drop(held);
                memory.write(0, &[2]).unwrap();
                2 * u8::from(read != 1)
            });
            gate.open.store(true, SeqCst);
            status
        });
        assert_eq!(status, Ended::Returned(0), "{mode}: {} is a store that no handler knew", libc::SIGSEGV);
    }
}

/// Runs `other` over and over while one cache forks, so that a thread is inside a lock at many
/// of the forks. The child goes on, and runs `more`.
fn forks_while(other: impl Fn() + Sync, more: impl Fn() -> bool) {
    const FORKS: usize = 120;
    let memory = GuestMemory::anonymous(PageSize::host().bytes()).unwrap();
    for mode in modes().into_iter().filter(|&mode| mode != Mode::None) {
        let cache = cache_on::<()>(&memory, mode);
        let buffer = CodeBuffer::new(4096).unwrap();
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !stop.load(SeqCst) {
                    other();
                }
            });
            let fork_once = || {
                let guards = (buffer.before_fork(), cache.before_fork());
                in_child(|| match (guards.0.after_fork_child(), guards.1.after_fork_child()) {
                    (Ok(()), Ok(())) => {
                        translate(&cache, ());
                        2 * u8::from(!more())
                    }
                    _ => 1,
                })
            };
            let status = (0..FORKS).map(|_| fork_once()).find(|&status| status != Ended::Returned(0));
            stop.store(true, SeqCst);
            assert_eq!(status, None, "{mode}");
        });
    }
}

#[test]
fn forks_while_regions_come_and_go() {
    let _alone = alone();
    let memory = GuestMemory::anonymous(PageSize::host().bytes()).unwrap();
    forks_while(|| drop(cache_on::<()>(&memory, Mode::Mprotect)), || CodeBuffer::new(4096).is_ok());
}

#[test]
fn forks_while_code_buffers_come_and_go() {
    let _alone = alone();
    forks_while(|| drop(CodeBuffer::new(4096).unwrap()), || CodeBuffer::new(4096).is_ok());
}

/// The standard library has a lock for each; the child must not need them.
#[test]
fn forks_while_threads_start_and_end() {
    let _alone = alone();
    forks_while(|| std::thread::spawn(|| ()).join().unwrap(), || true);
}

#[test]
fn forks_while_the_environment_changes() {
    let _alone = alone();
    let change = || {
        // SAFETY: only the standard library reads the environment in this process.
        unsafe { std::env::set_var("CODEWARDEN_TEST_OF_FORKS", "1".repeat(1000)) };
    };
    forks_while(change, || true);
}

/// The kind of each static of the library. `All::lock` takes each lock; the text that takes it
/// is here.
const STATICS: [(&str, &str, Static); 12] = [
    ("memory/guest_memory.rs", "NEXT", Static::Atomic),
    ("sync/primitives.rs", "LOCK_WAITS", Static::Atomic),
    ("sync/tsan.rs", "FENCE", Static::Atomic),
    ("sys/errno.rs", "FROM_THREAD", Static::Atomic),
    ("sys/fault.rs", "FOREIGN", Static::Atomic),
    ("sys/process.rs", "COOKIE", Static::Atomic),
    ("sys/process.rs", "NEXT", Static::Atomic),
    // Made by the holder of the lock below.
    ("sys/ranges.rs", "GIVEN_UP", Static::Atomic),
    ("sys/ranges.rs", "RANGES", Static::Atomic),
    ("sys/ranges.rs", "WRITING", Static::Lock("RangesWriter::lock()")),
    ("sys/signal.rs", "PREVIOUS", Static::Atomic),
    ("sys/statics.rs", "HANDLERS_INSTALLED", Static::Lock("HANDLERS_INSTALLED.lock()")),
];

#[derive(Clone, Copy, PartialEq)]
enum Static {
    Lock(&'static str),
    Atomic,
}

/// The sources of the library that are in a build that ships.
fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|end| end == "rs") {
            found.push(path);
        }
    }
}

/// The statics of `code` that all threads share, by name.
fn statics(code: &str) -> Vec<&str> {
    let code = code.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
    let of_threads = |line: &str| line.ends_with("thread_local! {");
    let mut in_thread_local = false;
    let mut names = Vec::new();
    for line in code.lines() {
        in_thread_local = (in_thread_local || of_threads(line)) && line != "}";
        let line = line.trim_start();
        let line =
            ["pub(crate) ", "pub(super) ", "pub "].iter().find_map(|open| line.strip_prefix(open)).unwrap_or(line);
        let Some((name, _)) = line.strip_prefix("static ").and_then(|rest| rest.split_once(':')) else { continue };
        if !in_thread_local {
            names.push(name);
        }
    }
    names
}

/// A static lock that no guard holds hangs a child. So this list has each static, and guards
/// take every lock by one function.
#[test]
fn every_static_lock_is_held_over_a_fork() {
    const FOR_TESTS: [&str; 4] = ["models/", "protection/conformance/", "sys/kernel_facts/", "sync/interruptible.rs"];
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let (mut files, mut found) = (Vec::new(), Vec::new());
    sources(&src, &mut files);
    for path in files {
        let file = path.strip_prefix(&src).expect("in src").to_string_lossy().into_owned();
        if file.ends_with("/tests.rs") || FOR_TESTS.iter().any(|tests| file.starts_with(tests)) {
            continue;
        }
        let code = fs::read_to_string(&path).expect("a source");
        found.extend(statics(&code).into_iter().map(|name| (file.clone(), name.to_owned())));
    }
    found.sort();
    let known: Vec<_> = STATICS.iter().map(|(file, name, _)| ((*file).to_owned(), (*name).to_owned())).collect();
    assert_eq!(found, known, "say of each static what it is; `All::lock` takes each lock");
    let code = fs::read_to_string(src.join("sys/statics.rs")).expect("a source");
    let takes =
        code.split("fn lock() -> Self {").nth(1).and_then(|rest| rest.split("\n    }").next()).expect("All::lock");
    for (_, name, what) in STATICS {
        if let Static::Lock(taken) = what {
            assert!(takes.contains(taken), "All::lock does not take {name}");
        }
    }
    assert_eq!(statics("pub(crate) static A: u8 = 0;\nthread_local! {\n    static B: u8 = 0;\n}\n"), ["A"]);
}

/// Each of `calls` has no error to return and would wait for itself. It must panic, at the line
/// of the call.
fn panics_under_the_guard(calls: &[&dyn Fn()]) {
    let place = Arc::new(Mutex::new(String::new()));
    let before = std::panic::take_hook();
    let told = place.clone();
    std::panic::set_hook(Box::new(move |panic| {
        *told.lock().unwrap() = panic.location().map(|at| at.file().to_owned()).unwrap_or_default();
    }));
    let panics: Vec<_> = calls.iter().map(|call| catch_unwind(AssertUnwindSafe(call)).err()).collect();
    let places = place.lock().unwrap().clone();
    std::panic::set_hook(before);
    for (index, panic) in panics.into_iter().enumerate() {
        let panic = panic.unwrap_or_else(|| panic!("call {index} came back"));
        let text = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
        assert!(text.is_some_and(|text| text.contains("fork guard")), "{index}: {text:?}");
    }
    assert!(places.ends_with("fork_guards.rs"), "{places}");
}

/// The call would wait for itself.
#[test]
fn a_thread_that_holds_a_guard_gets_an_error() {
    let _alone = alone();
    // SAFETY: sets a timer: a thread that waits for itself ends the process.
    unsafe { libc::alarm(limit_s(LIMIT_S)) };
    let page = PageSize::host().bytes();
    let memory = GuestMemory::anonymous(2 * page).unwrap();
    let cache = cache_on::<()>(&memory, Mode::Mprotect);
    let tracker = cache.tracker();
    let held = tracker.prepare_unseen_write(GuestAddr(0), 1).unwrap();
    let (mut ticket, start) = (cache.begin(Key::new(1)), GuestAddr(0));
    let second = GuestAddr(page as u64);
    let claimed_ticket = |key| {
        let mut ticket = cache.begin(Key::new(key));
        ticket.claim(second).unwrap();
        ticket.add_source(second, &[0]).unwrap();
        ticket
    };
    claimed_ticket(9).commit(0x9000, ()).unwrap();
    let (to_commit, to_revive) = (claimed_ticket(2), claimed_ticket(3));
    let link = cache.link(Key::new(9)).unwrap();
    let asked = Arc::new(());
    let hook = asked.clone();
    let (vcpu, mut staying) = (cache.attach_vcpu_with(move || drop(hook.clone())), cache.attach_vcpu());
    let (footprint, pages) = (cache.footprint(), tracker.pages_by_state());
    let (descriptors, hot) = (tracker.descriptors(), tracker.hottest_pages(9).len());
    let guard = cache.before_fork();
    let told = |error: Option<Error>| matches!(error, Some(Error::BadArgument(why)) if why.contains("fork guard"));
    let claimed = ticket.claim(start).unwrap_err();
    assert!(claimed.to_string().contains("fork guard"), "{claimed}");
    let options = RegionOptions::new(GuestAddr(1 << 20), memory.range(), Mode::Mprotect);
    // SAFETY: it is refused.
    assert!(told(unsafe { tracker.add_region(options) }.err()));
    assert!(told(tracker.remove_region(start).err()));
    assert!(told(tracker.sync().err()) && told(tracker.invalidate(start, 1).err()));
    assert!(told(tracker.prepare_unseen_write(start, 1).err()) && told(tracker.change_mapping(start, 1).err()));
    let shown = format!("{guard:?}");
    assert!(shown.contains("ForkGuard"), "{shown}");
    assert_eq!(to_commit.commit(0x2000, ()), Err(CommitError::UnderForkGuard));
    assert!(matches!(to_revive.revive(), Err(CommitError::UnderForkGuard)));
    assert!(told(cache.link(Key::new(1)).err()) && told(cache.wait_for_vcpus().err()));
    panics_under_the_guard(&[
        &|| cache.remove(Key::new(9)),
        &|| cache.remove_for_good(Key::new(9)),
        &|| cache.collect(),
        &|| cache.evict(1),
        &|| cache.set_limit(MemoryLimit::default()),
        &|| drop(cache.attach_vcpu()),
        &|| tracker.maintain(),
        &|| drop(tracker.aliases(start)),
        &|| drop(tracker.before_fork()),
        &|| drop(cache.before_fork()),
    ]);
    // Numbers, and the debug output.
    assert!(cache.stands_still_here() && tracker.stands_still_here());
    assert_eq!((cache.footprint(), tracker.pages_by_state()), (footprint, pages));
    assert_eq!((tracker.descriptors(), tracker.hottest_pages(9).len()), (descriptors, hot));
    assert_eq!((tracker.mode_at(start), cache.stats().committed), (Some(Mode::Mprotect), 1));
    assert_eq!(cache.recent_writes(0).len() as u64, cache.writes_recorded());
    assert!(!format!("{cache:?} {tracker:?} {vcpu:?} {ticket:?} {link:?} {:?}", cache.histograms()).is_empty());
    // The thread may drop the objects that it has, and looks blocks up.
    assert_eq!(staying.pin().lookup(Key::new(9)), Some(0x9000));
    drop((vcpu, link, held));
    assert_eq!(Arc::strong_count(&asked), 2, "the guard takes the vCPU out");
    drop(guard);
    assert_eq!(Arc::strong_count(&asked), 1);
    assert!(!cache.stands_still_here());
    ticket.claim(start).unwrap();
    claimed_ticket(2).commit(0x2000, ()).unwrap();
    // SAFETY: as above.
    unsafe { libc::alarm(0) };
}

/// Objects that it drops are free when the guard is gone, on both sides.
#[test]
fn a_thread_that_holds_a_code_buffers_guard_gets_an_error() {
    let _alone = alone();
    // SAFETY: sets a timer: a thread that waits for itself ends the process.
    unsafe { libc::alarm(limit_s(LIMIT_S)) };
    let buffer = CodeBuffer::new(4096).unwrap();
    let [first, second] = [(); 2].map(|()| buffer.alloc(64, 16).unwrap());
    let stats = buffer.stats();
    let guard = buffer.before_fork();
    assert!(buffer.stands_still_here());
    assert!(matches!(buffer.alloc(1, 1), Err(Error::BadArgument(why)) if why.contains("fork guard")));
    panics_under_the_guard(&[&|| drop(buffer.before_fork())]);
    drop(first);
    assert!(!format!("{buffer:?} {guard:?} {second:?}").is_empty());
    assert_eq!(buffer.stats(), stats, "nothing changes meanwhile");
    second.publish().unwrap();
    let status = in_child(|| {
        if guard.after_fork_child().is_err() || buffer.stats().allocations != 1 || second.entry(0).is_ok() {
            return 1;
        }
        u8::from(second.publish().is_err() || second.entry(0).is_err())
    });
    assert_eq!(status, Ended::Returned(0));
    assert!(!buffer.stands_still_here());
    assert_eq!(buffer.stats().allocations, 1);
    assert!(second.entry(0).is_ok());
    // SAFETY: as above.
    unsafe { libc::alarm(0) };
}

/// A tracker without a cache. The thread may drop the objects that it holds, and nothing of
/// that is lost.
#[test]
fn a_thread_that_holds_a_trackers_guard_gets_an_error() {
    let _alone = alone();
    // SAFETY: sets a timer: a thread that waits for itself ends the process.
    unsafe { libc::alarm(limit_s(LIMIT_S)) };
    let memory = GuestMemory::anonymous(PageSize::host().bytes()).unwrap();
    for mode in modes() {
        let tracker = Tracker::new(Arc::new(NoObserver));
        // SAFETY: the memory outlives the tracker.
        unsafe { tracker.add_region(RegionOptions::new(GuestAddr(0), memory.range(), mode)) }.unwrap();
        let claim = tracker.begin(GuestAddr(0)).unwrap();
        let held = tracker.prepare_unseen_write(GuestAddr(0), 1).unwrap();
        let guard = tracker.before_fork();
        panics_under_the_guard(&[&|| tracker.maintain(), &|| drop(tracker.aliases(GuestAddr(0))), &|| {
            drop(tracker.before_fork())
        }]);
        assert!(tracker.begin(GuestAddr(0)).is_err() && tracker.sync().is_err());
        drop((claim, held));
        drop(guard);
        tracker.maintain();
        while tracker.begin(GuestAddr(0)).is_err() {
            std::thread::yield_now(); // a handler thread is about to open the page
        }
        drop(tracker.before_fork());
    }
    // SAFETY: as above.
    unsafe { libc::alarm(0) };
}

/// Under a guard of its tracker alone, a cache works on, except for the tracker's own work.
#[test]
fn a_cache_under_its_trackers_guard() {
    let _alone = alone();
    // SAFETY: sets a timer: a thread that waits for itself ends the process.
    unsafe { libc::alarm(limit_s(LIMIT_S)) };
    let memory = GuestMemory::anonymous(PageSize::host().bytes()).unwrap();
    for mode in modes() {
        let cache = cache_on::<()>(&memory, mode);
        translate(&cache, ());
        let asked = Arc::new(());
        let hook = asked.clone();
        let vcpu = cache.attach_vcpu_with(move || drop(hook.clone()));
        let footprint = cache.footprint();
        let guard = cache.tracker().before_fork();
        assert!(cache.tracker().stands_still_here() && !cache.stands_still_here());
        assert_eq!(cache.footprint(), footprint);
        drop(vcpu);
        assert_eq!(Arc::strong_count(&asked), 1, "{mode}: a vCPU that is gone keeps its hook");
        assert!(cache.begin(Key::new(1)).claim(GuestAddr(0)).is_err() && cache.link(Key::new(1)).is_ok());
        panics_under_the_guard(&[&|| drop(cache.before_fork())]);
        cache.remove(Key::new(0));
        cache.collect();
        drop(guard);
        translate(&cache, ());
    }
    // SAFETY: as above.
    unsafe { libc::alarm(0) };
}

/// The guards of one instance do not concern the others: these live, and end, meanwhile.
#[test]
fn a_thread_that_holds_a_guard_has_other_instances() {
    let _alone = alone();
    // SAFETY: sets a timer: a thread that waits for itself ends the process.
    unsafe { libc::alarm(limit_s(LIMIT_S)) };
    let [first, second] = [(); 2].map(|()| GuestMemory::anonymous(PageSize::host().bytes()).unwrap());
    for mode in modes() {
        let (cache, buffer) = (cache_on::<()>(&first, mode), CodeBuffer::new(4096).unwrap());
        let guards = (cache.before_fork(), buffer.before_fork());
        let (other, code) = (cache_on::<()>(&second, mode), CodeBuffer::new(4096).unwrap());
        translate(&other, ());
        second.write(0, &[1]).unwrap();
        other.tracker().maintain();
        drop(code.alloc(1, 1).unwrap());
        let own = (other.before_fork(), code.before_fork());
        drop(own);
        drop((other, code));
        drop(guards);
        translate(&cache, ());
    }
    // SAFETY: as above.
    unsafe { libc::alarm(0) };
}

/// A forgotten guard keeps its locks for ever. But when the cache is gone, the memory is the
/// embedder's again.
#[test]
fn a_guard_that_is_forgotten_ends_with_its_cache() {
    let _alone = alone();
    // SAFETY: sets a timer: a thread that waits for itself ends the process.
    unsafe { libc::alarm(limit_s(LIMIT_S)) };
    let memory = GuestMemory::anonymous(PageSize::host().bytes()).unwrap();
    for mode in modes() {
        let status = in_child(|| {
            let cache = cache_on::<()>(&memory, mode);
            translate(&cache, ());
            std::mem::forget(cache.before_fork());
            drop(cache);
            // The memory is not tracked any more.
            let again = CodeCache::<()>::new(EntryStubs::NOT_CODE).unwrap();
            // SAFETY: the memory outlives the cache.
            unsafe { again.tracker().add_region(RegionOptions::new(GuestAddr(0), memory.range(), mode)) }.unwrap();
            translate(&again, ());
            memory.write(0, &[1]).unwrap();
            0
        });
        assert_eq!(status, Ended::Returned(0), "{mode}");
    }
    // SAFETY: as above.
    unsafe { libc::alarm(0) };
}
