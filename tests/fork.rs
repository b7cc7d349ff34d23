//! After a fork both sides are right: the parent's tracking is untouched, the
//! child tracks its own memory, nothing stale is reached in either.
//!
//! One process forks here, so one test runs everything.
//!
//! # Safety
//! The only locks of other threads that the child's calls need are the cache's own, which the
//! fork guard holds. Memory outlives its cache.
#![allow(unsafe_code)]

#[path = "support/alarm.rs"]
mod alarm;
#[path = "support/child.rs"]
mod child;
#[path = "support/limit.rs"]
mod limit;
#[path = "support/modes.rs"]
mod modes;

use codewarden::addr::GuestAddr;
use codewarden::guest_memory::GuestMemory;
use codewarden::protection::Mode;
use codewarden::tracker::{BeginError, RegionOptions};
use codewarden::{CodeCache, EntryStubs, Key, Ticket};

use child::{Ended, in_child};
use modes::tracking_modes;

const PAGES: u64 = 4;

/// A ticket that declares that it has read a 0 at `page`.
fn begin(cache: &CodeCache<()>, page: u64) -> Ticket<()> {
    loop {
        let mut ticket = cache.begin(Key::new(page));
        match ticket.claim(GuestAddr(page)) {
            Ok(_) => {
                ticket.add_source(GuestAddr(page), &[0]).unwrap();
                return ticket;
            }
            Err(error) => assert!(matches!(error, BeginError::Busy(_)), "{error}"),
        }
    }
}

fn translate(cache: &CodeCache<()>, page: u64, entry: usize) {
    begin(cache, page).commit(entry, ()).unwrap();
}

fn announce(cache: &CodeCache<()>, mode: Mode) {
    if mode == Mode::Deferred {
        cache.tracker().sync().unwrap();
    }
}

/// Checks the child; returns the number of the first fault, or 0.
fn wrong_in_the_child(cache: &CodeCache<()>, memory: &GuestMemory, mode: Mode) -> u8 {
    let mut vcpu = cache.attach_vcpu();
    for page in 0..PAGES {
        if vcpu.pin().lookup(Key::new(page << 12)).is_some() {
            return 1;
        }
        // No retained block is left that could be used again.
        if !matches!(begin(cache, page << 12).revive(), Ok(Some(_))) {
            return 4;
        }
    }
    // Writes and translations of its own.
    memory.write(0, &[1]).unwrap();
    translate(cache, 0, 0x2000);
    if vcpu.pin().lookup(Key::new(0)) != Some(0x2000) {
        return 2;
    }
    memory.write(8, &[1]).unwrap();
    announce(cache, mode);
    if vcpu.pin().lookup(Key::new(0)).is_some() {
        return 3;
    }
    // The parent's protection of a page that the child never touched is gone.
    memory.write(0x1000, &[1]).unwrap();
    0
}

fn both_sides(mode: Mode, drops_in_child: bool) {
    let memory = GuestMemory::anonymous((PAGES << 12) as usize).unwrap();
    let cache = CodeCache::<()>::new(EntryStubs::NOT_CODE).unwrap();
    let options = RegionOptions::new(GuestAddr(0), memory.range(), mode);
    // SAFETY: the memory outlives the cache.
    unsafe { cache.tracker().add_region(options) }.unwrap();
    for page in 0..PAGES {
        translate(&cache, page << 12, 0x1000);
    }
    // A retained block of the parent's, which it uses again after the fork.
    cache.remove(Key::new(0));
    cache.collect();
    let _alarm = alarm::Alarm::while_waiting_for("a fork's child, or a page that is not busy");
    let guard = cache.before_fork();
    let status = in_child(|| {
        guard.after_fork_child().unwrap();
        let wrong = wrong_in_the_child(&cache, &memory, mode);
        if drops_in_child {
            // SAFETY: nothing else drops the child's copy, which ends here.
            drop(unsafe { std::ptr::read(&raw const cache) });
        }
        wrong
    });
    assert_eq!(status, Ended::Returned(0), "{mode}: the child's status");

    assert!(begin(&cache, 0).revive().unwrap().is_none(), "{mode}: the parent lost a retained block");
    let mut vcpu = cache.attach_vcpu();
    for page in 0..PAGES {
        assert_eq!(vcpu.pin().lookup(Key::new(page << 12)), Some(0x1000), "{mode}: the parent lost a block");
    }
    for page in 0..PAGES {
        memory.write((page << 12) as usize, &[2]).unwrap();
        announce(&cache, mode);
        assert_eq!(vcpu.pin().lookup(Key::new(page << 12)), None, "{mode}: the parent missed a write");
    }
}

/// E3.
#[test]
fn both_sides_of_a_fork_are_right() {
    for mode in tracking_modes() {
        both_sides(mode, false);
        both_sides(mode, true);
    }
}
