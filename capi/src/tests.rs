//! Mistakes that C makes, and the answers to them.
//!
//! # Safety
//!
//! Handles are freed once, and the objects that are passed live; these calls ask no
//! more.
#![allow(unsafe_code)]

use std::ffi::{CStr, c_void};
use std::mem::{MaybeUninit, zeroed};
use std::ptr::{self, null, null_mut};
use std::sync::atomic::{AtomicUsize, Ordering};

use engine::Stats;
use engine::guest_memory::GuestMemory;

use crate::cache::*;
use crate::claim::*;
use crate::code_buffer::*;
use crate::fork::*;
use crate::link::*;
use crate::mapping::*;
use crate::mode::*;
use crate::policy::*;
use crate::region::*;
use crate::signals::*;
use crate::stats::*;
use crate::status::{cw_status::*, *};
use crate::ticket::*;
use crate::told::*;
use crate::tracker::*;
use crate::vcpu::*;
use crate::writes::*;

const GUEST: u64 = 0x10000;
const LEN_BYTES: usize = 1 << 16;

fn message() -> String {
    // SAFETY: a string of this thread's.
    unsafe { CStr::from_ptr(cw_last_error_message()) }.to_str().unwrap().to_owned()
}

#[track_caller]
fn refused(status: cw_status, expected: cw_status, text: &str) {
    assert_eq!(status, expected, "{}", message());
    assert!(message().contains(text), "{:?} has no {text:?}", message());
}

#[track_caller]
fn done(status: cw_status) {
    assert_eq!(status, CW_OK, "{}", message());
}

/// A handle that `make` gives.
#[track_caller]
fn given<T>(make: impl FnOnce(*mut *mut T) -> cw_status) -> *mut T {
    let mut handle = ptr::dangling_mut();
    done(make(&mut handle));
    handle
}

const OPTIONS: cw_cache_options = cw_cache_options {
    size_bytes: size_of::<cw_cache_options>(),
    dead_stub: 0,
    pending_stub: 1,
    policy: MaybeUninit::new(cw_policy::CW_POLICY_ADAPTIVE),
};

struct Fixture {
    cache: *mut cw_cache,
    memory: GuestMemory,
}

impl Fixture {
    fn new(policy: cw_policy) -> Self {
        let memory = GuestMemory::anonymous(LEN_BYTES).unwrap();
        let options = cw_cache_options { policy: MaybeUninit::new(policy), ..OPTIONS };
        // SAFETY: see the module's head.
        let cache = given(|cache| unsafe { cw_cache_new(&options, cache) });
        let fixture = Self { cache, memory };
        // SAFETY: as above; the memory outlives the cache.
        done(unsafe { cw_tracker_add_region(cw_cache_tracker(cache), &fixture.region()) });
        fixture
    }

    fn tracker(&self) -> *const cw_tracker {
        // SAFETY: the cache lives.
        unsafe { cw_cache_tracker(self.cache) }
    }

    fn region(&self) -> cw_region_options {
        cw_region_options {
            size_bytes: size_of::<cw_region_options>(),
            guest: GUEST,
            host: self.memory.range().start().as_ptr().cast(),
            len_bytes: LEN_BYTES,
            mode: MaybeUninit::new(cw_mode::CW_MODE_MPROTECT),
            access: MaybeUninit::new(cw_access::CW_ACCESS_READ_WRITE),
            embedder_owns_signals: MaybeUninit::new(false),
            explicit_fetch: MaybeUninit::new(false),
            reserved: MaybeUninit::new(false),
        }
    }

    /// A ticket with the page at `GUEST` claimed.
    fn claimed(&self) -> *mut cw_ticket {
        // SAFETY: see the module's head.
        let ticket = given(|ticket| unsafe { cw_cache_begin(self.cache, GUEST, ticket) });
        // SAFETY: as above.
        done(unsafe { cw_ticket_claim(ticket, GUEST, null_mut()) });
        ticket
    }

    fn vcpu(&self) -> *mut cw_vcpu {
        // SAFETY: see the module's head.
        given(|vcpu| unsafe { cw_cache_attach_vcpu(self.cache, None, null_mut(), vcpu) })
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        // SAFETY: see the module's head.
        let status = unsafe { cw_cache_free(self.cache) };
        assert!(status == CW_OK || std::thread::panicking(), "{}", message());
    }
}

/// Counts in the payload itself.
unsafe extern "C" fn count(payload: *mut c_void) {
    // SAFETY: the tests pass a counter that lives.
    unsafe { &*payload.cast::<AtomicUsize>() }.fetch_add(1, Ordering::Relaxed);
}

#[test]
fn null_is_reported_and_never_followed() {
    let mut cache: *mut cw_cache = ptr::dangling_mut();
    // SAFETY: NULL is the value under test.
    unsafe {
        refused(cw_cache_new(&OPTIONS, null_mut()), CW_BAD_ARGUMENT, "out parameter");
        refused(cw_cache_new(null(), &mut cache), CW_BAD_ARGUMENT, "structure");
        assert!(cache.is_null(), "a handle is NULL where there is none");
        refused(cw_cache_begin(null(), 0, &mut null_mut()), CW_BAD_ARGUMENT, "handle");
        refused(cw_ticket_claim(null_mut(), 0, null_mut()), CW_BAD_ARGUMENT, "handle");
        refused(cw_ticket_revive(null_mut(), &mut false), CW_BAD_ARGUMENT, "handle");
        refused(cw_vcpu_pin(null_mut()), CW_BAD_ARGUMENT, "handle");
        refused(cw_vcpu_unpin(null_mut()), CW_BAD_ARGUMENT, "handle");
        refused(cw_tracker_sync(null()), CW_BAD_ARGUMENT, "handle");
        refused(cw_after_fork_child(null_mut()), CW_BAD_ARGUMENT, "guard");
        refused(cw_mode_from_name(null(), &mut cw_mode::CW_MODE_NONE), CW_BAD_ARGUMENT, "name");
        refused(cw_tracker_get_stats(null(), null_mut()), CW_BAD_ARGUMENT, "handle");
        assert_eq!(cw_vcpu_lookup(null_mut(), 0), 0);
        assert!(cw_link_cell(null()).is_null() && cw_ticket_stale_flag(null_mut()).is_null());
        assert!(cw_allocation_rw(null()).is_null() && cw_allocation_rx(null()).is_null());
        assert!(!cw_handle_fault(libc::SIGBUS, null_mut(), null_mut()));
        // Nothing to free.
        done(cw_cache_free(null_mut()));
        done(cw_vcpu_free(null_mut()));
        cw_ticket_free(null_mut());
        cw_link_free(null_mut());
        cw_hold_free(null_mut());
        done(cw_tracker_free(null_mut()));
        cw_code_buffer_free(null_mut());
        cw_allocation_free(null_mut());
        done(cw_alt_stack_free(null_mut()));
        done(cw_after_fork_parent(null_mut()));
    }
}

#[test]
fn a_number_outside_an_enum_is_reported() {
    let fixture = Fixture::new(cw_policy::CW_POLICY_PLAIN);
    // SAFETY: C may pass any number, as this test does.
    unsafe {
        let number: *const u32 = &99;
        let region = cw_region_options { mode: *number.cast(), ..fixture.region() };
        refused(cw_tracker_add_region(fixture.tracker(), &region), CW_BAD_ARGUMENT, "cw_mode");
        let region = cw_region_options { access: *number.cast(), ..fixture.region() };
        refused(cw_tracker_add_region(fixture.tracker(), &region), CW_BAD_ARGUMENT, "cw_access");
        let options = cw_cache_options { policy: *number.cast(), ..OPTIONS };
        refused(cw_cache_new(&options, &mut null_mut()), CW_BAD_ARGUMENT, "cw_policy");
        assert!(cw_mode_name(*number.cast()).is_null());
        refused(cw_mode_check(*number.cast()), CW_BAD_ARGUMENT, "cw_mode");
    }
}

#[test]
fn modes_have_names() {
    let mut mode = cw_mode::CW_MODE_NONE;
    // SAFETY: strings and places that live.
    unsafe {
        refused(cw_mode_from_name(c"sigbuss".as_ptr(), &mut mode), CW_BAD_ARGUMENT, "sigbus, thread");
        assert_eq!(mode, cw_mode::CW_MODE_NONE, "as before");
        for name in [c"sigbus", c"thread", c"mprotect", c"deferred", c"none"] {
            done(cw_mode_from_name(name.as_ptr(), &mut mode));
            assert_eq!(CStr::from_ptr(cw_mode_name(MaybeUninit::new(mode))), name);
        }
        let mut why = null();
        let mut best = cw_mode::CW_MODE_NONE;
        done(cw_best_synchronous(&mut best, &mut why));
        assert_ne!(best, cw_mode::CW_MODE_NONE);
        assert!(!CStr::from_ptr(why).is_empty());
        refused(cw_best_synchronous(null_mut(), null_mut()), CW_BAD_ARGUMENT, "NULL");
        let mut again = cw_mode::CW_MODE_NONE;
        done(cw_best_synchronous(&mut again, null_mut()));
        assert_eq!(again, best);
    }
}

#[test]
fn impossible_ranges_are_reported() {
    let fixture = Fixture::new(cw_policy::CW_POLICY_PLAIN);
    let region = fixture.region();
    // SAFETY: refused before anything is tracked.
    unsafe {
        let add = |region: cw_region_options| cw_tracker_add_region(fixture.tracker(), &region);
        refused(add(cw_region_options { len_bytes: 0, ..region }), CW_BAD_RANGE, "at least one");
        refused(add(cw_region_options { guest: GUEST + 1, ..region }), CW_BAD_RANGE, "starts on a page");
        refused(add(region), CW_BAD_RANGE, "overlaps");
        refused(add(cw_region_options { size_bytes: 0, ..region }), CW_BAD_ARGUMENT, "size_bytes");
        refused(cw_tracker_remove_region(fixture.tracker(), 0), CW_BAD_ARGUMENT, "no tracked region");
        let mut mode = cw_mode::CW_MODE_NONE;
        refused(cw_tracker_mode_at(fixture.tracker(), 0, &mut mode), CW_BAD_RANGE, "no tracked region");
        done(cw_tracker_mode_at(fixture.tracker(), GUEST, &mut mode));
        assert_eq!(mode, cw_mode::CW_MODE_MPROTECT);
        refused(cw_tracker_invalidate(fixture.tracker(), u64::MAX, 2), CW_BAD_RANGE, "wraps");
        let memory = cw_shared_memory { device: 1, number: 1, offset_bytes: 1 };
        refused(cw_tracker_declare_shared(fixture.tracker(), GUEST, 4096, memory), CW_BAD_RANGE, "whole pages");
        let mut hold: *mut cw_hold = ptr::dangling_mut();
        refused(cw_tracker_prepare_kernel_write(fixture.tracker(), u64::MAX, 2, &mut hold), CW_BAD_RANGE, "wraps");
        assert!(hold.is_null());
        refused(cw_code_buffer_new(0, &mut null_mut()), CW_BAD_ARGUMENT, "one byte");
        let same = cw_cache_options { pending_stub: 0, ..OPTIONS };
        refused(cw_cache_new(&same, &mut null_mut()), CW_BAD_ARGUMENT, "differ");
        refused(cw_cache_link(fixture.cache, u64::MAX, &mut null_mut()), CW_BAD_ARGUMENT, "not a key");
    }
}

#[test]
fn a_spent_ticket_says_so_and_every_payload_is_destroyed_once() {
    let fixture = Fixture::new(cw_policy::CW_POLICY_ADAPTIVE);
    let destroyed = AtomicUsize::new(0);
    let payload = (&raw const destroyed).cast_mut().cast::<c_void>();
    let count_is = |expected: usize| assert_eq!(destroyed.load(Ordering::Relaxed), expected);
    // SAFETY: see the module's head.
    unsafe {
        let ticket = fixture.claimed();
        refused(cw_ticket_add_source(ticket, GUEST, null(), 4), CW_BAD_ARGUMENT, "not NULL");
        refused(cw_ticket_add_source(ticket, GUEST, [1_u8].as_ptr().cast(), 0), CW_BAD_ARGUMENT, "one byte");
        refused(cw_ticket_add_source(ticket, 0, [1_u8].as_ptr().cast(), 1), CW_BAD_RANGE, "claim each page");
        refused(cw_ticket_commit(ticket, 2, 0, payload, Some(count)), CW_BAD_ARGUMENT, "made from");
        count_is(1);
        cw_ticket_free(ticket);
        destroyed.store(0, Ordering::Relaxed);
        let ticket = fixture.claimed();
        refused(cw_ticket_commit(ticket, 0, 0, payload, Some(count)), CW_BAD_ARGUMENT, "plain entry");
        count_is(1);
        for spent in [
            cw_ticket_commit(ticket, 2, 0, payload, Some(count)),
            cw_ticket_claim(ticket, GUEST, null_mut()),
            cw_ticket_revive(ticket, &mut false),
            cw_ticket_set_payload_bytes(ticket, 1),
        ] {
            refused(spent, CW_BAD_ARGUMENT, "spent");
        }
        count_is(2);
        assert!(cw_ticket_stale_flag(ticket).is_null() && !cw_ticket_is_current(ticket));
        cw_ticket_free(ticket);

        let ticket = given(|ticket| cw_cache_begin(fixture.cache, GUEST, ticket));
        refused(cw_ticket_commit(ticket, 2, 0, payload, Some(count)), CW_BAD_ARGUMENT, "claim each page");
        count_is(3);
        cw_ticket_free(ticket);
        refused(cw_ticket_commit(null_mut(), 2, 0, payload, Some(count)), CW_BAD_ARGUMENT, "handle");
        count_is(4);

        let ticket = fixture.claimed();
        done(cw_ticket_commit(ticket, 2, 0, payload, Some(count)));
        cw_ticket_free(ticket);
        count_is(4);
    }
    drop(fixture);
    count_is(5);
}

#[test]
fn a_cache_is_freed_last() {
    let fixture = Fixture::new(cw_policy::CW_POLICY_ADAPTIVE);
    let in_use = || {
        // SAFETY: it is refused.
        refused(unsafe { cw_cache_free(fixture.cache) }, CW_IN_USE, "free them first");
    };
    // SAFETY: see the module's head.
    unsafe {
        let ticket = fixture.claimed();
        in_use();
        cw_ticket_free(ticket);
        let hold = given(|hold| cw_tracker_prepare_unseen_write(fixture.tracker(), GUEST, 4, hold));
        in_use();
        cw_hold_free(hold);
        let vcpu = fixture.vcpu();
        in_use();
        done(cw_vcpu_free(vcpu));
        let guard = given(|guard| cw_tracker_before_fork(fixture.tracker(), null(), 0, guard));
        in_use();
        refused(cw_after_fork_child(guard), CW_BAD_ARGUMENT, "no fork's child");
        let guard = given(|guard| cw_tracker_before_fork(fixture.tracker(), null(), 0, guard));
        cw_after_fork_parent(guard);
        // A link keeps the objects that it needs.
        let link = given(|link| cw_cache_link(fixture.cache, GUEST, link));
        drop(fixture);
        assert_eq!(*cw_link_cell(link), OPTIONS.dead_stub);
        cw_link_free(link);
    }
}

#[test]
fn a_vcpu_is_pinned_once_and_looks_up_under_its_pin() {
    let fixture = Fixture::new(cw_policy::CW_POLICY_ADAPTIVE);
    // SAFETY: see the module's head.
    unsafe {
        let ticket = fixture.claimed();
        done(cw_ticket_commit(ticket, 7, 0, null_mut(), None));
        cw_ticket_free(ticket);
        let vcpu = fixture.vcpu();
        assert_eq!(cw_vcpu_lookup(vcpu, GUEST), 0);
        assert!(message().contains("not pinned"), "{}", message());
        done(cw_vcpu_unpin(vcpu));
        done(cw_vcpu_pin(vcpu));
        refused(cw_vcpu_pin(vcpu), CW_BAD_ARGUMENT, "do not nest");
        refused(cw_vcpu_free(vcpu), CW_IN_USE, "unpin");
        assert_eq!(cw_vcpu_lookup(vcpu, GUEST), 7);
        // Does the same as the header's cw_lookup().
        let mut front = zeroed::<cw_front>();
        done(cw_vcpu_front(vcpu, &mut front));
        let slot = &*front.slots.add((GUEST >> 1) as usize & (CW_FRONT_SLOTS - 1));
        assert_eq!((slot.key, *slot.cell), (GUEST, 7));
        done(cw_cache_remove(fixture.cache, GUEST));
        assert_eq!(*slot.cell, front.dead_stub);
        assert_eq!(cw_vcpu_lookup(vcpu, GUEST), 0);
        done(cw_vcpu_unpin(vcpu));
        done(cw_vcpu_free(vcpu));
    }
}

#[test]
fn a_block_near_data_needs_a_self_checking_entry() {
    let fixture = Fixture::new(cw_policy::CW_POLICY_ADAPTIVE_WITH_CHECKS);
    let byte = [0_u8];
    // SAFETY: see the module's head.
    unsafe {
        let made = |plain, checked| {
            let ticket = fixture.claimed();
            done(cw_ticket_add_source(ticket, GUEST, byte.as_ptr().cast(), 1));
            let needs = cw_ticket_needs_check(ticket);
            let flag = cw_ticket_stale_flag(ticket);
            let status = cw_ticket_commit(ticket, plain, checked, null_mut(), None);
            cw_ticket_free(ticket);
            (needs, status, flag)
        };
        let (needs, status, flag) = made(2, 3);
        assert_eq!((needs, status, *flag), (false, CW_OK, CW_STALE_VALID));
        fixture.memory.write(0x800, &[1]).unwrap();
        assert_eq!(*flag, CW_STALE_CHECKED);
        let (needs, status, _) = made(4, 0);
        assert!(needs);
        refused(status, CW_NEEDS_CHECK, "self-checking entry");
    }
}

#[test]
fn code_that_is_not_there_and_buffers_that_are_full() {
    // SAFETY: see the module's head.
    unsafe {
        let buffer = given(|buffer| cw_code_buffer_new(4096, buffer));
        let alloc = |len, align, code: *mut *mut cw_allocation| cw_code_buffer_alloc(buffer, len, align, code);
        refused(alloc(1, 3, &mut null_mut()), CW_BAD_ARGUMENT, "power of two");
        refused(alloc(usize::MAX, 1, &mut null_mut()), CW_FULL, "no room");
        let code = given(|code| alloc(4096, 16, code));
        refused(alloc(1, 1, &mut null_mut()), CW_FULL, "no room");
        assert_eq!(cw_allocation_len_bytes(code), 4096);
        cw_allocation_rw(code).cast::<u8>().write(0xc3);
        done(cw_allocation_publish(code));
        assert_eq!(*cw_allocation_rx(code).cast::<u8>(), 0xc3);

        let fixture = Fixture::new(cw_policy::CW_POLICY_ADAPTIVE);
        let twice = [buffer, buffer];
        let mut guard = ptr::dangling_mut();
        let fork = cw_tracker_before_fork(fixture.tracker(), twice.as_ptr(), 2, &mut guard);
        refused(fork, CW_BAD_ARGUMENT, "twice");
        refused(cw_tracker_before_fork(fixture.tracker(), null(), 1, &mut guard), CW_BAD_ARGUMENT, "buffer_count");
        assert!(guard.is_null());

        // A ticket that is not committed frees the handles that it keeps.
        let ticket = fixture.claimed();
        refused(cw_ticket_keep_allocation(ticket, null_mut()), CW_BAD_ARGUMENT, "allocation");
        refused(cw_ticket_keep_link(ticket, null_mut()), CW_BAD_ARGUMENT, "link");
        done(cw_ticket_keep_allocation(ticket, code));
        cw_ticket_free(ticket);
        let mut stats = zeroed::<cw_code_buffer_stats>();
        stats.size_bytes = size_of::<cw_code_buffer_stats>();
        done(cw_code_buffer_get_stats(buffer, &mut stats));
        assert_eq!((stats.allocations, stats.limit_bytes, stats.used_bytes), (0, 4096, 0));
        cw_code_buffer_free(buffer);
    }
}

#[test]
fn code_that_is_published_together() {
    let fixture = Fixture::new(cw_policy::CW_POLICY_ADAPTIVE);
    // SAFETY: see the module's head.
    unsafe {
        let buffer = given(|buffer| cw_code_buffer_new(4096, buffer));
        let codes = [(); 2].map(|()| given(|code| cw_code_buffer_alloc(buffer, 64, 16, code)));
        let commit = |code: *mut cw_allocation| {
            let ticket = fixture.claimed();
            let entry = cw_allocation_rx(code) as usize;
            done(cw_ticket_keep_allocation(ticket, code));
            let status = cw_ticket_commit(ticket, entry, 0, null_mut(), None);
            cw_ticket_free(ticket);
            status
        };
        refused(commit(given(|code| cw_code_buffer_alloc(buffer, 64, 16, code))), CW_BAD_ARGUMENT, "not published");
        let all = codes.map(|code| code.cast_const());
        refused(cw_allocation_publish_all(null(), 2), CW_BAD_ARGUMENT, "allocation_count");
        refused(cw_allocation_publish_all([all[0], null()].as_ptr(), 2), CW_BAD_ARGUMENT, "NULL");
        done(cw_allocation_publish_all(null(), 0));
        done(cw_allocation_publish_all(all.as_ptr(), 2));
        codes.into_iter().for_each(|code| done(commit(code)));
        cw_code_buffer_free(buffer);
    }
}

/// A program that was compiled with an older header, and one with a newer one.
#[test]
fn structures_may_be_shorter_or_longer_than_here() {
    #[repr(C)]
    struct Longer {
        stats: cw_stats,
        unknown: u64,
    }
    let fixture = Fixture::new(cw_policy::CW_POLICY_ADAPTIVE);
    // SAFETY: each structure has as many bytes as it says.
    unsafe {
        let ticket = fixture.claimed();
        done(cw_ticket_commit(ticket, 2, 0, null_mut(), None));
        cw_ticket_free(ticket);

        let mut longer = Longer { stats: zeroed(), unknown: 7 };
        longer.stats.size_bytes = size_of::<Longer>();
        done(cw_tracker_get_stats(fixture.tracker(), (&raw mut longer).cast()));
        assert_eq!((longer.stats.size_bytes, longer.unknown), (size_of::<cw_stats>(), 0));
        assert_eq!((longer.stats.committed, longer.stats.protects), (1, 1));

        let mut shorter = [16_usize, 99, 99];
        done(cw_tracker_get_stats(fixture.tracker(), (&raw mut shorter).cast()));
        assert_eq!(shorter, [16, 0, 99], "the size, no faults, and what is the program's own");
        let mut unset = [0_usize; 64];
        refused(cw_tracker_get_stats(fixture.tracker(), unset.as_mut_ptr().cast()), CW_BAD_ARGUMENT, "size_bytes");
    }
}

/// Each counter of the library has its field here.
#[test]
fn no_counter_is_left_out() {
    let own = include_str!("stats.rs");
    for (name, _) in Stats::default().entries() {
        assert!(own.contains(&format!("\n    pub {name}: u64,\n")), "cw_stats has no {name}");
    }
    assert_eq!(size_of::<cw_stats>(), 8 * (1 + Stats::default().entries().count()));
}

#[test]
fn no_histogram_is_left_out() {
    let fixture = Fixture::new(cw_policy::CW_POLICY_PLAIN);
    let own = include_str!("stats.rs");
    let tracker = engine::tracker::Tracker::new(engine::tracker::Generations::observer());
    for (number, (name, _)) in tracker.histograms().entries().enumerate() {
        let written = format!("    CW_HISTOGRAM_{} = {number},\n", name.to_uppercase());
        assert!(own.contains(&written), "cw_histogram_of has no {name}");
        assert!(own.contains(&format!("            {number} => all.{name},\n")), "{name}");
        let number: *const usize = &number;
        // SAFETY: a number, and a structure that says its size.
        unsafe {
            let mut found = zeroed::<cw_histogram>();
            found.size_bytes = size_of::<cw_histogram>();
            done(cw_tracker_get_histogram(fixture.tracker(), *number.cast(), &mut found));
            assert_eq!((found.count, found.max, found.median), (0, 0, 0));
        }
    }
}

/// What `told` was told, and how often.
#[derive(Default)]
struct Told {
    pages: std::sync::Mutex<Vec<(u64, cw_told)>>,
}

unsafe extern "C" fn told(context: *mut c_void, page: u64, why: cw_told) {
    // SAFETY: the tests pass a `Told` that lives.
    unsafe { &*context.cast::<Told>() }.pages.lock().unwrap().push((page, why));
}

unsafe extern "C" fn lock(_: *mut c_void) {}

impl Told {
    fn options(&self) -> cw_tracker_options {
        cw_tracker_options {
            size_bytes: size_of::<cw_tracker_options>(),
            policy: MaybeUninit::new(cw_policy::CW_POLICY_ADAPTIVE),
            told: Some(told),
            lock: None,
            unlock: None,
            others_may_look: None,
            context: ptr::from_ref(self).cast_mut().cast(),
        }
    }

    fn take(&self) -> Vec<(u64, cw_told)> {
        std::mem::take(&mut *self.pages.lock().unwrap())
    }
}

/// A claim that no call has filled in.
const UNCLAIMED: cw_claim = cw_claim { tracker: null(), page: 0, stamp: 0, shared_stamp: 0 };

#[test]
fn mistakes_with_a_tracker_are_answered() {
    let of_cache = Fixture::new(cw_policy::CW_POLICY_ADAPTIVE);
    let record = Told::default();
    let options = record.options();
    let memory = GuestMemory::anonymous(LEN_BYTES).unwrap();
    let host = memory.range().start().as_ptr().cast();
    let region = cw_region_options { host, ..of_cache.region() };
    let mut claim = UNCLAIMED;
    let mut byte = 0_u8;
    let byte = (&raw mut byte).cast::<c_void>();
    // SAFETY: see the module's head.
    unsafe {
        let new = |options: cw_tracker_options, tracker: *mut *mut cw_tracker| cw_tracker_new(&options, tracker);
        let mut none: *mut cw_tracker = ptr::dangling_mut();
        refused(new(cw_tracker_options { told: None, ..options }, &mut none), CW_BAD_ARGUMENT, "told");
        assert!(none.is_null());
        refused(new(cw_tracker_options { lock: Some(lock), ..options }, &mut none), CW_BAD_ARGUMENT, "unlock");
        refused(new(cw_tracker_options { size_bytes: 1, ..options }, &mut none), CW_BAD_ARGUMENT, "size_bytes");
        refused(cw_tracker_new(null(), &mut none), CW_BAD_ARGUMENT, "structure");
        refused(new(options, null_mut()), CW_BAD_ARGUMENT, "out parameter");
        assert!(cw_cache_tracker(null()).is_null());

        // A cache's tracker is no embedder's.
        refused(cw_tracker_free(of_cache.tracker().cast_mut()), CW_BAD_ARGUMENT, "cw_cache_free");
        refused(cw_tracker_claim(of_cache.tracker(), GUEST, &mut claim), CW_BAD_ARGUMENT, "tickets");

        // A lock that the library's handler would not take.
        let locked = cw_tracker_options { lock: Some(lock), unlock: Some(lock), ..options };
        let tracker = given(|tracker| new(locked, tracker));
        refused(cw_tracker_add_region(tracker, &region), CW_BAD_ARGUMENT, "own the signals");
        let own = cw_region_options { embedder_owns_signals: MaybeUninit::new(true), ..region };
        done(cw_tracker_add_region(tracker, &own));
        done(cw_tracker_free(tracker));

        let tracker = given(|tracker| new(options, tracker));
        done(cw_tracker_add_region(tracker, &region));
        refused(cw_tracker_claim(null(), GUEST, &mut claim), CW_BAD_ARGUMENT, "handle");
        refused(cw_tracker_claim(tracker, GUEST, null_mut()), CW_BAD_ARGUMENT, "out parameter");
        claim.tracker = ptr::dangling();
        refused(cw_tracker_claim(tracker, 0, &mut claim), CW_BAD_RANGE, "");
        assert!(claim.tracker.is_null(), "a claim that failed is of no page");
        let never = UNCLAIMED;
        for unclaimed in [&raw const claim, &raw const never, null()] {
            assert!(!cw_claim_is_current(unclaimed));
            assert_eq!(cw_claim_read(unclaimed, GUEST, byte, 1), CW_BAD_ARGUMENT);
            assert_eq!(cw_claim_add_code(unclaimed, GUEST, 1), CW_BAD_ARGUMENT);
        }

        done(cw_tracker_claim(tracker, GUEST + 4096 + 7, &mut claim));
        assert!(cw_claim_is_current(&claim) && claim.page == GUEST + 4096);
        for (guest, len) in [(GUEST, 1), (GUEST + 2 * 4096, 1), (GUEST + 4096 + 1, 4096), (GUEST + 4096, usize::MAX)] {
            refused(cw_claim_read(&claim, guest, byte, len), CW_BAD_RANGE, "one page");
            refused(cw_claim_add_code(&claim, guest, len), CW_BAD_RANGE, "one page");
        }
        refused(cw_claim_read(&claim, GUEST + 4096, null_mut(), 1), CW_BAD_ARGUMENT, "buffer");
        done(cw_claim_read(&claim, GUEST + 2 * 4096 - 1, byte, 1));
        done(cw_claim_add_code(&claim, GUEST + 4096, 4096));

        let guard = given(|guard| cw_tracker_before_fork(tracker, null(), 0, guard));
        for under_guard in [
            cw_tracker_claim(tracker, GUEST, &mut { UNCLAIMED }),
            cw_claim_read(&claim, GUEST + 4096, byte, 1),
            cw_claim_add_code(&claim, GUEST + 4096, 1),
            cw_tracker_maintain(tracker),
            cw_tracker_unmap(tracker, GUEST, 1),
            cw_tracker_announce_write(tracker, GUEST, 1),
        ] {
            refused(under_guard, CW_BAD_ARGUMENT, "fork guard");
        }
        assert!(cw_claim_is_current(&claim));
        refused(cw_tracker_free(tracker), CW_IN_USE, "fork guards");
        done(cw_after_fork_parent(guard));

        let hold = given(|hold| cw_tracker_prepare_unseen_write(tracker, GUEST, 1, hold));
        refused(cw_tracker_free(tracker), CW_IN_USE, "holds");
        cw_hold_free(hold);
        assert_eq!(record.take(), []);

        // The region goes, and comes back: the claim is of neither.
        done(cw_tracker_remove_region(tracker, GUEST));
        assert_eq!(record.take(), [(GUEST + 4096, cw_told::CW_TOLD_LOST)]);
        assert!(!cw_claim_is_current(&claim));
        refused(cw_claim_read(&claim, GUEST + 4096, byte, 1), CW_WRITTEN, "claim it again");
        done(cw_claim_add_code(&claim, GUEST + 4096, 1));
        done(cw_tracker_add_region(tracker, &region));
        assert!(!cw_claim_is_current(&claim));
        done(cw_tracker_claim(tracker, GUEST, &mut claim));
        done(cw_tracker_free(tracker));
        assert_eq!(record.take(), [(GUEST, cw_told::CW_TOLD_LOST)]);
    }
}

#[test]
fn a_panic_is_a_status() {
    refused(
        guarded(|| panic!("of the test's")),
        CW_INTERNAL,
        "a mistake in codewarden, please report it: of the test's",
    );
    assert_eq!(cw_last_errno(), 0);
}

#[test]
fn a_refusal_of_the_system_has_its_errno() {
    let error = engine::error::Error::System { call: "mmap", start: 0, len: 0, errno: libc::ENOMEM };
    refused(guarded(|| Err(error.into())), CW_SYSTEM, "mmap");
    assert_eq!(cw_last_errno(), libc::ENOMEM);
    let other = std::thread::spawn(|| (message(), cw_last_errno())).join().unwrap();
    assert_eq!(other, (String::new(), 0), "another thread's is its own");
}
