//! Announcements: deferred regions, writes by the kernel, tracking that ends.

use loom::thread;

use super::explore::{fails_without, holds, spawn, violation};
use super::guest::{Guest, Link, cache_over};
use super::inside::commit_owner;
use super::kernel::{Kernel, Refuses};
use crate::addr::GuestAddr;
use crate::code_cache::{Key, MemoryLimit};
use crate::policy::Adaptive;
use crate::protection::Mode;
use crate::sync::{Arc, AtomicBool, Ordering, Rule};

const KEY: u64 = 0x40;

#[derive(Clone)]
struct Model {
    guest: Guest,
    link: Link,
}

impl Model {
    fn new(mode: Mode, translated: bool) -> Self {
        let guest = Guest::new(mode, 1);
        let link = guest.link(KEY);
        if translated {
            guest.translate(KEY, &[0]).unwrap();
        }
        Self { guest, link }
    }

    /// Nothing leads to a block of the first byte.
    fn old_is_gone(&self, when: &str) {
        if self.guest.follow(self.link) == Some(0) {
            violation(format!("{when}: the old block can be reached"));
        }
    }

    fn translate(&self) {
        drop(self.guest.translate(KEY, &[0]));
    }

    /// An announcement by the guest. It may return that the kernel had no answer; the promise holds
    /// all the same.
    fn sync(&self) {
        let _ = self.guest.cache.tracker().sync();
        self.old_is_gone("an announcement has returned");
    }
}

/// A store and its announcement while the page is translated.
fn a_store_and_a_translation(translated: bool) {
    let model = Model::new(Mode::Deferred, translated);
    let translator = spawn(&model, Model::translate);
    model.guest.kernel.store(0, 1, 1);
    model.sync();
    translator.join().unwrap();
    model.old_is_gone("all have ended");
}

/// Two announcements of one store.
fn two_announcements() {
    let model = Model::new(Mode::Deferred, true);
    model.guest.kernel.store(0, 1, 1);
    let other = spawn(&model, Model::sync);
    model.sync();
    other.join().unwrap();
}

/// A store amid another thread's announcement: that one finds it, or its own one.
fn a_store_and_anothers_announcement() {
    let model = Model::new(Mode::Deferred, true);
    let other = spawn(&model, |model| drop(model.guest.cache.tracker().sync()));
    model.guest.kernel.store(0, 1, 1);
    model.sync();
    other.join().unwrap();
}

/// The harvest of the first of two announcements fails.
fn two_announcements_and_a_failure() {
    let model = Model::new(Mode::Deferred, true);
    model.guest.kernel.store(0, 1, 1);
    model.guest.kernel.fail_next_harvest();
    let other = spawn(&model, Model::sync);
    model.sync();
    other.join().unwrap();
}

/// A mapping changes while a store is announced.
fn an_announcement_and_a_change() {
    let model = Model::new(Mode::Deferred, true);
    model.guest.kernel.store(0, 1, 1);
    let other = spawn(&model, |model| {
        let (start, len) = model.guest.span(0);
        let change = model.guest.cache.tracker().change_mapping(start, len).unwrap();
        model.old_is_gone("the change may begin");
        drop(change);
    });
    model.sync();
    other.join().unwrap();
}

/// The kernel writes for the guest, announced, against `other`.
fn an_announced_write(translated: bool, other: fn(&Model)) {
    an_announced_write_on(&Model::new(Mode::Sigbus, translated), other);
}

fn an_announced_write_on(model: &Model, other: fn(&Model)) {
    let other = spawn(model, other);
    let (start, len) = model.guest.span(0);
    let held = model.guest.cache.tracker().prepare_kernel_write(start, len).unwrap();
    if !model.guest.kernel.kernel_store(0, 2) {
        // The other thread's store is one step: it may come between the two of this one.
        if !model.guest.kernel.kernel_store(0, 2) {
            violation("an announced write was refused");
        }
    }
    model.old_is_gone("the kernel has written");
    drop(held);
    other.join().unwrap();
    model.old_is_gone("all have ended");
}

/// The tracking ends while a page is translated.
fn the_end_of_a_region() {
    let model = Model::new(Mode::Sigbus, false);
    let translator = spawn(&model, Model::translate);
    model.guest.cache.tracker().remove_region(GuestAddr(0)).unwrap();
    if !model.guest.kernel.kernel_store(0, 1) {
        violation("the memory is the embedder's and a page of it is protected");
    }
    model.old_is_gone("the region is tracked no more");
    translator.join().unwrap();
    model.old_is_gone("all have ended");
    if !model.guest.kernel.kernel_store(0, 1) {
        violation("a page stays protected");
    }
}

/// The mechanism is lost while a page is translated.
fn the_loss_of_a_mechanism() {
    let model = Model::new(Mode::Sigbus, false);
    let translator = spawn(&model, Model::translate);
    model.guest.kernel.lose();
    translator.join().unwrap();
    if !model.guest.kernel.kernel_store(0, 1) {
        violation("a page stays protected, and nobody answers a fault");
    }
    model.old_is_gone("all have ended");
}

/// A vCPU looks up and runs a block while another thread announces a store to it.
fn an_announcement_and_a_vcpu() {
    let kernel = Arc::new(Kernel::new(Mode::Deferred, 1));
    let cache = cache_over(&kernel, Adaptive::new());
    cache.set_limit(MemoryLimit { retained_bytes: 0, ..MemoryLimit::default() });
    let [told, freed] = [0, 1].map(|_| Arc::new(AtomicBool::new(false)));
    commit_owner(&cache, KEY, 2, &freed);
    let mut vcpu = cache.attach_vcpu();
    let runner = {
        let (told, freed) = (told.clone(), freed.clone());
        thread::spawn(move || {
            for _ in 0..2 {
                let mut pin = vcpu.pin();
                let was_told = told.load(Ordering::Acquire);
                let is_found = pin.lookup(Key::new(KEY)).is_some();
                if was_told && is_found {
                    violation("who was told of the announcement finds the old block");
                }
                // It runs, for a while.
                thread::yield_now();
                if is_found && freed.load(Ordering::Relaxed) {
                    violation("a block was freed under a vCPU");
                }
            }
        })
    };
    kernel.store(0, 1, 1);
    cache.tracker().sync().unwrap();
    told.store(true, Ordering::Release);
    cache.collect();
    runner.join().unwrap();
    cache.collect();
    if !freed.load(Ordering::Relaxed) {
        violation("what the dead block owned is never freed");
    }
}

/// The same if no page can be opened alone, and the other store opens all of them.
fn an_announced_write_and_a_store_that_opens_all() {
    let guest = Guest::over(Kernel::new(Mode::Sigbus, 2).that_refuses(Refuses::SinglePages), Adaptive::new());
    let link = guest.link(KEY);
    guest.translate(KEY, &[0]).unwrap();
    let model = Model { guest, link };
    an_announced_write_on(&model, store);
}

fn store(model: &Model) {
    model.guest.kernel.store(0, 1, 2);
}

#[test]
fn an_announced_store_against_a_first_translation() {
    holds(5, || a_store_and_a_translation(false));
}

#[test]
fn an_announced_store_against_a_second_translation() {
    holds(5, || a_store_and_a_translation(true));
}

#[test]
fn a_store_amid_anothers_announcement() {
    holds(3, a_store_and_anothers_announcement);
}

#[test]
fn two_announcements_at_once() {
    holds(5, two_announcements);
}

#[test]
fn two_announcements_at_once_where_the_first_fails() {
    holds(5, two_announcements_and_a_failure);
}

#[test]
fn an_announcement_against_a_change_of_mapping() {
    holds(5, an_announcement_and_a_change);
}

#[test]
fn an_announcement_against_a_vcpu() {
    holds(3, an_announcement_and_a_vcpu);
}

#[test]
fn an_announced_write_against_a_first_translation() {
    holds(5, || an_announced_write(false, Model::translate));
}

#[test]
fn an_announced_write_against_a_second_translation() {
    holds(5, || an_announced_write(true, Model::translate));
}

#[test]
fn an_announced_write_against_a_store() {
    holds(5, || an_announced_write(true, store));
}

#[test]
fn an_announced_write_against_a_store_that_opens_all_pages() {
    holds(3, an_announced_write_and_a_store_that_opens_all);
}

#[test]
fn the_end_of_a_region_against_a_translation() {
    holds(5, the_end_of_a_region);
}

#[test]
fn the_loss_of_a_mechanism_against_a_translation() {
    holds(5, the_loss_of_a_mechanism);
}

#[test]
fn it_fails_where_a_hold_overtakes_a_handler() {
    fails_without(Rule::HoldBehindHandler, || an_announced_write(true, store));
}

#[test]
fn it_fails_without_the_fence_before_the_walk() {
    fails_without(Rule::FenceBeforeWalk, || an_announced_write(false, Model::translate));
}

#[test]
fn it_fails_without_the_fence_behind_a_stop() {
    fails_without(Rule::FenceBehindStop, the_loss_of_a_mechanism);
}

#[test]
fn it_fails_without_the_fence_before_the_stop_check() {
    fails_without(Rule::FenceBeforeStopCheck, the_loss_of_a_mechanism);
}
