//! Writes beside blocks, and translations that are used again.
//!
//! # Safety
//!
//! A stale flag is looked at while its block lives or is kept: no model translates
//! the same bytes twice for one key.
#![allow(unsafe_code)]

use loom::thread;

use super::explore::{fails_without, holds, violation};
use super::guest::{Guest, Link};
use crate::block::{Entry, StaleFlag};
use crate::code_cache::{Key, Ticket};
use crate::policy::Adaptive;
use crate::protection::Mode;
use crate::sync::Rule;

const KEY: u64 = 0x40;
/// Of the addresses of entries that compare.
const CHECKED: usize = 1 << 32;

struct Model {
    guest: Guest,
    link: Link,
    /// Of the block that is there at the beginning.
    flag: *const StaleFlag,
}

// SAFETY: a flag is shared between threads by design.
unsafe impl Send for Model {}

impl Model {
    /// A block over all pages.
    fn new(pages: usize) -> Self {
        let guest = Guest::with_policy(Mode::Sigbus, pages, Adaptive::with_checks());
        let mut model = Self { link: guest.link(KEY), guest, flag: core::ptr::null() };
        let all: Vec<usize> = (0..pages).collect();
        let (mut ticket, entry) = model.read(KEY, &all).unwrap();
        model.flag = ticket.stale_flag().cast();
        ticket.commit(entry, 0).unwrap();
        model
    }

    fn spawn(&self, run: impl FnOnce(&Self) + 'static) -> thread::JoinHandle<()> {
        let model = Self { guest: self.guest.clone(), link: self.link, flag: self.flag };
        thread::spawn(move || run(&model))
    }

    /// A ticket that says what it read, and both entries of a block of that.
    fn read(&self, key: u64, pages: &[usize]) -> Option<(Ticket<u8>, Entry)> {
        let (ticket, plain) = self.guest.ticket(key, pages)?;
        Some((ticket, Entry::with_check(plain, plain | CHECKED)))
    }

    fn translate(&self, key: u64) {
        if let Some((ticket, entry)) = self.read(key, &[0]) {
            let _ = ticket.commit(entry, 0);
        }
    }

    /// Uses the former block again, or does nothing.
    fn revive(&self) {
        if let Some((ticket, _)) = self.read(KEY, &[0]) {
            drop(ticket.revive());
        }
    }

    fn remove(&self) {
        self.guest.cache.remove(Key::new(KEY));
    }

    /// A block of the first byte of page 0, which holds another one by now, does
    /// not run.
    fn old_is_gone(&self, link: Link, when: &str) {
        let entry = self.guest.entry(link);
        // What it compares is the guest's byte of now.
        let same = entry & CHECKED == 0 || self.guest.kernel.load(0) == entry as u8;
        if entry > 1 && same && entry as u8 == 0 {
            violation(format!("{when}: the old block runs"));
        }
    }

    fn flag(&self) -> u8 {
        // SAFETY: as the module says.
        unsafe { &*self.flag }.load()
    }

    /// A vCPU that is inside the first block looks at its flag after a store.
    fn who_is_inside_leaves(&self) {
        if self.flag() == StaleFlag::VALID {
            violation("who is inside goes on as if nothing could write to its bytes");
        }
    }
}

/// A write beside a block makes its page writable while another block on it is
/// committed; the next write hits both.
fn a_downgrade_and_a_commit() {
    const OTHER: u64 = KEY + 2;
    let model = Model::new(1);
    let other = model.guest.link(OTHER);
    let translator = model.spawn(|model| model.translate(OTHER));
    model.guest.kernel.store_beside(0, 1);
    model.who_is_inside_leaves();
    model.guest.kernel.store(0, 1, 1);
    let all_gone = |when| [model.link, other].map(|link| model.old_is_gone(link, when));
    all_gone("the store has retired");
    translator.join().unwrap();
    all_gone("all have ended");
}

/// Two writes beside a block, and one that hits it.
fn two_downgrades() {
    let model = Model::new(1);
    let other = model.spawn(|model| model.guest.kernel.store_beside(0, 2));
    model.guest.kernel.store_beside(0, 1);
    model.who_is_inside_leaves();
    model.guest.kernel.store(0, 1, 1);
    model.old_is_gone(model.link, "the store has retired");
    other.join().unwrap();
    model.old_is_gone(model.link, "all have ended");
}

/// A write beside a block on its first page, and one that hits it on its second.
fn a_downgrade_and_a_kill() {
    let model = Model::new(2);
    let other = model.spawn(|model| model.guest.kernel.store_beside(0, 2));
    model.guest.kernel.store(1, 1, 1);
    let nobody_is_there = |when| {
        if model.guest.follow(model.link).is_some() || model.flag() != StaleFlag::DEAD {
            violation(format!("{when}: the dead block can be reached"));
        }
    };
    nobody_is_there("the store has retired");
    other.join().unwrap();
    nobody_is_there("all have ended");
}

/// A block is used again while a vCPU that is inside it from before stores to its
/// bytes, then looks at the flag.
fn a_revival_and_a_write() {
    let model = Model::new(1);
    model.remove();
    let translator = model.spawn(Model::revive);
    model.guest.kernel.store(0, 1, 1);
    model.who_is_inside_leaves();
    model.old_is_gone(model.link, "the store has retired");
    translator.join().unwrap();
    model.old_is_gone(model.link, "all have ended");
}

/// A block is used again on a page that a write beside it makes checked.
fn a_revival_and_a_downgrade() {
    let model = Model::new(1);
    model.remove();
    let translator = model.spawn(Model::revive);
    model.guest.kernel.store_beside(0, 1);
    model.who_is_inside_leaves();
    model.guest.kernel.store(0, 1, 1);
    model.old_is_gone(model.link, "the store has retired");
    translator.join().unwrap();
    model.old_is_gone(model.link, "all have ended");
}

/// A walker that found a record before it was taken out, while its translation is
/// used again.
fn a_revival_and_a_late_walker() {
    let model = Model::new(1);
    let walker = model.spawn(|model| {
        let (start, len) = model.guest.span(0);
        model.guest.cache.tracker().invalidate(start, len).unwrap();
    });
    model.remove();
    model.revive();
    walker.join().unwrap();
    let flag = model.flag();
    match model.guest.follow(model.link) {
        Some(_) if flag != StaleFlag::VALID => violation(format!("a valid block whose flag is {flag}")),
        None if flag != StaleFlag::DEAD => violation(format!("a dead block whose flag is {flag}")),
        _ => {}
    }
}

/// A block is removed by hand while another one of its key is committed.
fn a_removal_and_a_commit() {
    let model = Model::new(1);
    model.guest.kernel.store(0, 1, 1);
    let translator = model.spawn(|model| model.translate(KEY));
    model.remove();
    model.old_is_gone(model.link, "it was removed");
    translator.join().unwrap();
    model.remove();
    if model.guest.follow(model.link).is_some() {
        violation("a block outlived that it was removed");
    }
}

/// A block is removed by hand while a store hits it.
fn a_removal_and_a_store() {
    let model = Model::new(1);
    let other = model.spawn(Model::remove);
    model.guest.kernel.store(0, 1, 1);
    if model.guest.follow(model.link).is_some() || model.flag() != StaleFlag::DEAD {
        violation("the store has retired and the old block can be reached");
    }
    other.join().unwrap();
}

#[test]
fn a_write_beside_a_block_against_a_commit() {
    holds(5, a_downgrade_and_a_commit);
}

#[test]
fn two_writes_beside_a_block() {
    holds(5, two_downgrades);
}

#[test]
fn a_write_beside_a_block_against_one_that_hits_it() {
    holds(5, a_downgrade_and_a_kill);
}

#[test]
fn a_revival_against_a_write() {
    holds(5, a_revival_and_a_write);
}

#[test]
fn a_revival_against_a_write_beside_it() {
    holds(5, a_revival_and_a_downgrade);
}

#[test]
fn a_revival_against_a_late_walker() {
    holds(5, a_revival_and_a_late_walker);
}

#[test]
fn a_removal_against_a_commit() {
    holds(5, a_removal_and_a_commit);
}

#[test]
fn a_removal_against_a_store() {
    holds(5, a_removal_and_a_store);
}

#[test]
fn it_fails_where_a_downgrade_leaves_a_commit_alone() {
    fails_without(Rule::DowngradeKillsPending, a_downgrade_and_a_commit);
}

#[test]
fn it_fails_where_a_late_downgrade_trusts_the_flag() {
    fails_without(Rule::DowngradeCellFirst, two_downgrades);
}

#[test]
fn it_fails_where_a_downgrade_overwrites_a_kill() {
    fails_without(Rule::DowngradeByExchange, a_downgrade_and_a_kill);
}

#[test]
fn it_fails_where_the_flag_is_valid_too_early() {
    fails_without(Rule::FlagAfterGenerations, a_revival_and_a_write);
}

#[test]
fn it_fails_where_a_revival_does_not_fence_before_the_generations() {
    fails_without(Rule::FenceBeforeGenerations, a_revival_and_a_write);
}

#[test]
fn it_fails_where_a_revival_does_not_wait_for_walkers() {
    fails_without(Rule::ReviveAfterWalkers, a_revival_and_a_late_walker);
}

#[test]
fn it_fails_where_a_store_trusts_a_removal() {
    fails_without(Rule::KillCellFirst, a_removal_and_a_store);
}
