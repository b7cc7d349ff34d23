//! Kernels that lack a facility, on one that has them all: `CODEWARDEN_HIDE`.
//!
//! A process of its own runs with each facility hidden. It checks the choice of `auto`, the
//! error of each mode that is not available, and that every other mode works.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

use codewarden::addr::GuestAddr;
use codewarden::code_buffer::CodeBuffer;
use codewarden::error::Error;
use codewarden::guest_memory::GuestMemory;
use codewarden::protection::{Facility, Mode, Probe, best_synchronous};
use codewarden::tracker::{Cause, PageObserver, PageWrite, Tracker};
use codewarden::{CodeCache, EntryStubs};

use crate::alone::task;
use crate::scenario::{End, TRACKING, UFFD, byte_of, expect_end};
use crate::support::{Fixture, GUEST, PAGES, page_bytes, region, skip};

/// The hidden facilities, the modes that are not available then, and the choice of `auto`.
/// Without a barrier on all threads every synchronous mode is refused, mprotect too.
const MASKS: [(&str, &[Mode], Option<Mode>); 23] = [
    ("", &[], Some(Mode::Sigbus)),
    ("uffd", &UFFD, Some(Mode::Mprotect)),
    ("uffd_syscall", &[], Some(Mode::Sigbus)),
    ("uffd_device", &[], Some(Mode::Sigbus)),
    ("uffd_syscall,uffd_device", &UFFD, Some(Mode::Mprotect)),
    ("kernel_faults", &[], Some(Mode::Sigbus)),
    ("user_mode_only", &[], Some(Mode::Sigbus)),
    ("kernel_faults,user_mode_only", &UFFD, Some(Mode::Mprotect)),
    ("wp", &UFFD, Some(Mode::Mprotect)),
    // Pages are populated before they are protected.
    ("wp_unpopulated", &[Mode::Deferred], Some(Mode::Sigbus)),
    ("populate", &[], Some(Mode::Sigbus)),
    ("wp_unpopulated,populate", &UFFD, Some(Mode::Mprotect)),
    ("pagemap_wp", &[], Some(Mode::Sigbus)),
    ("wp_shmem", &[], Some(Mode::Sigbus)),
    ("wp_async", &[Mode::Deferred], Some(Mode::Sigbus)),
    ("sigbus", &[Mode::Sigbus], Some(Mode::Thread)),
    ("thread_id", &[], Some(Mode::Sigbus)),
    ("exact_address", &[], Some(Mode::Sigbus)),
    ("pagemap_scan", &[Mode::Deferred], Some(Mode::Sigbus)),
    ("membarrier", &[Mode::Sigbus, Mode::Thread, Mode::Mprotect], None),
    ("membarrier_sync_core", &[], Some(Mode::Sigbus)),
    // Linux 6.1, of 2022.
    ("wp_unpopulated,wp_async,pagemap_scan", &[Mode::Deferred], Some(Mode::Sigbus)),
    // Linux 5.10, of 2020; it has no memfd in these modes, which cannot be hidden.
    (
        "uffd_device,user_mode_only,wp_unpopulated,pagemap_wp,wp_shmem,wp_async,exact_address,pagemap_scan",
        &[Mode::Deferred],
        Some(Mode::Sigbus),
    ),
];

/// Runs the test `name` once with each mask as its [`task`]. Skips the masks of facilities
/// that this process lacks anyway.
fn with_each_mask(name: &str) {
    let probe = Probe::of_this_process();
    let lacks = Facility::NAMES.into_iter().filter(|(facility, ..)| !probe.has(*facility));
    let lacks: Vec<_> = lacks.map(|(_, name, _)| name).collect();
    if !lacks.is_empty() {
        return skip(&format!("this process has no {}", lacks.join(", ")));
    }
    for (_, name, _) in Facility::NAMES {
        assert!(MASKS.iter().any(|(hidden, ..)| *hidden == name), "{name} is never hidden alone");
    }
    for (hidden, ..) in MASKS {
        let task = if hidden.is_empty() { "nothing" } else { hidden };
        expect_end(name, task, &[("CODEWARDEN_HIDE", hidden)], End::Well);
    }
}

fn mask_of(task: &str) -> (&'static str, &'static [Mode], Option<Mode>) {
    let hidden = if task == "nothing" { "" } else { task };
    *MASKS.iter().find(|(names, ..)| *names == hidden).expect("a mask of the table")
}

fn try_mode(mode: Mode) -> Result<(), Error> {
    for memory in [GuestMemory::anonymous(PAGES * page_bytes()), GuestMemory::memfd(PAGES * page_bytes())] {
        let memory = memory?;
        let cache = CodeCache::<u32>::new(EntryStubs::NOT_CODE)?;
        #[allow(unsafe_code)]
        // SAFETY: the fixture drops the cache before the memory.
        unsafe { cache.tracker().add_region(region(GUEST, &memory, mode)) }?;
        let guest = Fixture { cache, memory, mode };
        guest.expect_tracked(1);
        guest.expect_tracked(2);
    }
    Ok(())
}

#[test]
fn every_fallback() {
    let Some(task) = task() else { return with_each_mask("mask::every_fallback") };
    let (hidden, missing, auto) = mask_of(&task);
    let (best, why) = match best_synchronous() {
        Ok((mode, why)) => (Some(mode), why),
        Err(error) => (None, error.to_string()),
    };
    assert_eq!(best, auto, "{hidden}: {why}");
    assert_eq!(why.contains("CODEWARDEN_HIDE"), auto != Some(Mode::Sigbus), "{why}");
    assert_eq!(best.map(try_mode), auto.map(|_| Ok(())), "{hidden}");
    for mode in TRACKING {
        match try_mode(mode) {
            Ok(()) => assert!(!missing.contains(&mode), "{mode} without {hidden}"),
            Err(error) => {
                assert!(missing.contains(&mode), "{mode} without {hidden}: {error}");
                assert!(matches!(&error, Error::ModeUnavailable { mode: at, .. } if *at == mode), "{error}");
                let text = error.to_string();
                let names_it = hidden.split(',').any(|name| text.contains(name));
                assert!(names_it && text.contains("CODEWARDEN_HIDE; remove "), "{text}");
            }
        }
    }
    // Mode `none` asks the kernel for nothing.
    try_mode(Mode::None).unwrap();
    // Only code buffers need `membarrier_sync_core`: `try_mode` runs no host code.
    let has_code = CodeBuffer::new(1 << 20).map(drop);
    assert_eq!(has_code, Probe::of_this_process().check_code());
    assert_eq!(has_code.is_err(), hidden == "membarrier_sync_core");
    if let Err(error) = has_code {
        let text = error.to_string();
        assert!(text.contains("executable memory") && text.contains("hidden by CODEWARDEN_HIDE"), "{text}");
    }
}

/// The byte and the thread of the last write.
#[derive(Default)]
struct Last {
    byte: AtomicU64,
    tid: AtomicU64,
}

#[allow(unsafe_code)]
// SAFETY: atomics.
unsafe impl PageObserver for Last {
    type Data = ();

    fn written(&self, (): &(), write: &PageWrite) {
        if let Cause::Store { byte, tid, .. } = write.cause {
            self.byte.store(byte.0, SeqCst);
            self.tid.store(u64::from(tid), SeqCst);
        }
    }
}

/// The library does not ask the kernel for hidden facilities either: a fault tells less.
#[test]
fn what_a_fault_tells() {
    let Some(task) = task() else { return with_each_mask("mask::what_a_fault_tells") };
    let (hidden, missing, _) = mask_of(&task);
    if missing.contains(&Mode::Thread) {
        return;
    }
    let memory = GuestMemory::anonymous(PAGES * page_bytes()).unwrap();
    let last = Arc::new(Last::default());
    let tracker = Tracker::new(last.clone());
    #[allow(unsafe_code)]
    // SAFETY: the memory outlives the tracker.
    unsafe { tracker.add_region(region(GUEST, &memory, Mode::Thread)) }.unwrap();
    tracker.begin(GuestAddr(byte_of(1))).unwrap();
    memory.write((byte_of(1) - GUEST) as usize, &[1]).unwrap();
    let page = GUEST + page_bytes() as u64;
    assert_eq!(last.byte.load(SeqCst), if hidden.contains("exact_address") { page } else { byte_of(1) }, "{hidden}");
    assert_eq!(last.tid.load(SeqCst) == 0, hidden == "thread_id", "{hidden}");
}

/// A mask that hides nothing would look like a fallback that works.
#[test]
fn a_name_that_nothing_has() {
    let name = "mask::a_name_that_nothing_has";
    if task().is_none() {
        return expect_end(name, "wrong", &[("CODEWARDEN_HIDE", "sigbus,wp_asink")], End::Well);
    }
    for mode in Mode::ALL {
        let text = try_mode(mode).unwrap_err().to_string();
        assert!(text.contains("nothing is called: wp_asink") && text.contains("wp_async"), "{text}");
    }
}
