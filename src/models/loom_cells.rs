//! Entry cells that are swept and used again: no vCPU and no link ever gets from the cell of one
//! key to the block of another.
//!
//! Under loom the table is full with two cells: the third sweeps.
//!
//! # Safety
//!
//! A front is read under its vCPU's pin, as emitted code does.
#![allow(unsafe_code)]

use loom::thread;

use super::explore::{fails_without, holds, violation};
use super::guest::{Cache, Guest};
use crate::addr::GuestAddr;
use crate::code_cache::{Key, Link, Pin};
use crate::protection::Mode;
use crate::sync::Rule;

const OLD: Key = Key::new(2);
const KEPT: Key = Key::new(4);
const THIRD: Key = Key::new(6);
const NEW: Key = Key::new(8);

/// The entry of the blocks of `key`.
fn entry_of(key: Key) -> usize {
    key.raw() as usize + 100
}

fn commit(cache: &Cache, key: Key) {
    let mut ticket = cache.begin(key);
    ticket.claim(GuestAddr(0)).unwrap();
    ticket.commit(entry_of(key), 0).unwrap();
}

/// A cache that does not need the cell of `OLD`, so that the next new key sweeps it; and a link
/// that keeps the other cell.
fn about_to_sweep() -> (Cache, Link) {
    let Guest { cache, .. } = Guest::new(Mode::None, 1);
    let kept = cache.link(KEPT).unwrap();
    commit(&cache, OLD);
    cache.remove(OLD);
    cache.collect();
    (cache, kept)
}

/// The address that emitted code gets from the front.
fn jump(pin: &Pin<'_, u8>, key: Key) -> Option<usize> {
    // SAFETY: under the pin, an index of the front.
    let front = unsafe { *pin.front().add(key.front_index()) };
    // SAFETY: the cells of a front live under the pin.
    (front.key == key.raw()).then(|| unsafe { &*front.cell }.load())
}

/// A vCPU's front has a cell that is swept and becomes another key's.
fn a_front_and_a_sweep() {
    let (cache, _kept) = about_to_sweep();
    let mut vcpu = cache.attach_vcpu();
    vcpu.pin().lookup(OLD);
    let runner = thread::spawn(move || {
        for _ in 0..2 {
            let pin = vcpu.pin();
            for _ in 0..2 {
                if jump(&pin, OLD).is_some_and(|entry| entry == entry_of(NEW)) {
                    violation("a front led to the block of another key");
                }
            }
        }
    });
    let _third = cache.link(THIRD).unwrap();
    cache.collect();
    commit(&cache, NEW);
    runner.join().unwrap();
}

/// A vCPU that puts cells into its front while they are swept.
fn a_lookup_and_a_sweep() {
    let (cache, _kept) = about_to_sweep();
    let mut vcpu = cache.attach_vcpu();
    let runner = thread::spawn(move || {
        for _ in 0..2 {
            let mut pin = vcpu.pin();
            if jump(&pin, OLD).is_some_and(|entry| entry == entry_of(NEW)) || pin.lookup(OLD).is_some() {
                violation("a key led to the block of another key");
            }
        }
    });
    let _third = cache.link(THIRD).unwrap();
    cache.collect();
    commit(&cache, NEW);
    runner.join().unwrap();
}

/// The last link to a key goes, and a block of the key comes, while cells are swept.
fn a_link_a_commit_and_a_sweep() {
    let Guest { cache, .. } = Guest::new(Mode::None, 1);
    let kept = cache.link(KEPT).unwrap();
    let last = cache.link(NEW).unwrap();
    let sweeper = {
        let cache = cache.clone();
        thread::spawn(move || cache.link(THIRD).unwrap())
    };
    drop(last);
    commit(&cache, NEW);
    let again = cache.link(NEW).unwrap();
    let _third = sweeper.join().unwrap();
    let found = cache.attach_vcpu().pin().lookup(NEW);
    if again.cell().load() != entry_of(NEW) || found != Some(entry_of(NEW)) {
        violation("a block lost its cell");
    }
    // Another key comes first: it would get a cell that was swept.
    commit(&cache, OLD);
    commit(&cache, KEPT);
    if kept.cell().load() != entry_of(KEPT) {
        violation("a link lost its cell");
    }
}

#[test]
fn no_cell_is_used_again_under_a_front() {
    holds(3, a_front_and_a_sweep);
}

#[test]
fn no_swept_cell_stays_in_a_front() {
    holds(3, a_lookup_and_a_sweep);
}

#[test]
fn no_cell_with_a_link_is_swept() {
    holds(3, a_link_a_commit_and_a_sweep);
}

#[test]
fn it_fails_where_a_vcpu_does_not_clear_its_front() {
    fails_without(Rule::ClearFronts, a_front_and_a_sweep);
}

#[test]
fn it_fails_where_the_epoch_does_not_wait_for_pins() {
    fails_without(Rule::WaitForPins, a_front_and_a_sweep);
}

#[test]
fn it_fails_where_a_sweep_does_not_look_for_links() {
    fails_without(Rule::KeepLinked, a_link_a_commit_and_a_sweep);
}
