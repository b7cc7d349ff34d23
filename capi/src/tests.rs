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
use crate::code_buffer::*;
use crate::fork::*;
use crate::link::*;
use crate::mode::*;
use crate::region::*;
use crate::signals::*;
use crate::stats::*;
use crate::status::{cw_status::*, *};
use crate::ticket::*;
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
        done(unsafe { cw_cache_add_region(cache, &fixture.region()) });
        fixture
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
        refused(cw_cache_sync(null()), CW_BAD_ARGUMENT, "handle");
        refused(cw_after_fork_child(null_mut()), CW_BAD_ARGUMENT, "guard");
        refused(cw_mode_from_name(null(), &mut cw_mode::CW_MODE_NONE), CW_BAD_ARGUMENT, "name");
        refused(cw_cache_get_stats(null(), null_mut()), CW_BAD_ARGUMENT, "handle");
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
        cw_mapping_change_free(null_mut());
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
        refused(cw_cache_add_region(fixture.cache, &region), CW_BAD_ARGUMENT, "cw_mode");
        let region = cw_region_options { access: *number.cast(), ..fixture.region() };
        refused(cw_cache_add_region(fixture.cache, &region), CW_BAD_ARGUMENT, "cw_access");
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
        let add = |region: cw_region_options| cw_cache_add_region(fixture.cache, &region);
        refused(add(cw_region_options { len_bytes: 0, ..region }), CW_BAD_RANGE, "at least one");
        refused(add(cw_region_options { guest: GUEST + 1, ..region }), CW_BAD_RANGE, "starts on a page");
        refused(add(region), CW_BAD_RANGE, "overlaps");
        refused(add(cw_region_options { size_bytes: 0, ..region }), CW_BAD_ARGUMENT, "size_bytes");
        refused(cw_cache_remove_region(fixture.cache, 0), CW_BAD_ARGUMENT, "no tracked region");
        let mut mode = cw_mode::CW_MODE_NONE;
        refused(cw_cache_mode_at(fixture.cache, 0, &mut mode), CW_BAD_RANGE, "no tracked region");
        done(cw_cache_mode_at(fixture.cache, GUEST, &mut mode));
        assert_eq!(mode, cw_mode::CW_MODE_MPROTECT);
        refused(cw_cache_invalidate(fixture.cache, u64::MAX, 2), CW_BAD_RANGE, "wraps");
        let memory = cw_shared_memory { device: 1, inode: 1, offset_bytes: 1 };
        refused(cw_cache_declare_shared(fixture.cache, GUEST, 4096, memory), CW_BAD_RANGE, "whole pages");
        let mut hold: *mut cw_hold = ptr::dangling_mut();
        refused(cw_cache_prepare_kernel_write(fixture.cache, u64::MAX, 2, &mut hold), CW_BAD_RANGE, "wraps");
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
        let hold = given(|hold| cw_cache_prepare_unseen_write(fixture.cache, GUEST, 4, hold));
        in_use();
        cw_hold_free(hold);
        let change = given(|change| cw_cache_change_mapping(fixture.cache, GUEST, 4096, change));
        in_use();
        done(cw_mapping_change_replaced(change, MaybeUninit::new(cw_access::CW_ACCESS_READ_WRITE), null()));
        let again = cw_mapping_change_replaced(change, MaybeUninit::new(cw_access::CW_ACCESS_READ), null());
        refused(again, CW_BAD_ARGUMENT, "is over");
        cw_mapping_change_free(change);
        let vcpu = fixture.vcpu();
        in_use();
        done(cw_vcpu_free(vcpu));
        let guard = given(|guard| cw_before_fork(fixture.cache, null(), 0, guard));
        in_use();
        refused(cw_after_fork_child(guard), CW_BAD_ARGUMENT, "no fork's child");
        let guard = given(|guard| cw_before_fork(fixture.cache, null(), 0, guard));
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
        let fork = cw_before_fork(fixture.cache, twice.as_ptr(), 2, &mut guard);
        refused(fork, CW_BAD_ARGUMENT, "twice");
        refused(cw_before_fork(fixture.cache, null(), 1, &mut guard), CW_BAD_ARGUMENT, "buffer_count");
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
        done(cw_cache_get_stats(fixture.cache, (&raw mut longer).cast()));
        assert_eq!((longer.stats.size_bytes, longer.unknown), (size_of::<cw_stats>(), 0));
        assert_eq!((longer.stats.committed, longer.stats.protects), (1, 1));

        let mut shorter = [16_usize, 99, 99];
        done(cw_cache_get_stats(fixture.cache, (&raw mut shorter).cast()));
        assert_eq!(shorter, [16, 0, 99], "the size, no faults, and what is the program's own");
        let mut unset = [0_usize; 64];
        refused(cw_cache_get_stats(fixture.cache, unset.as_mut_ptr().cast()), CW_BAD_ARGUMENT, "size_bytes");
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
