//! Each announcement against a first translation of its page: the page has no descriptor yet, or
//! one that says that it was never looked at.
//!
//! Bytes change through the host's own view, by a store that nothing orders.

use super::explore::{fails_without, holds, spawn, violation};
use super::guest::{Guest, Link};
use crate::addr::GuestAddr;
use crate::code_cache::Key;
use crate::memory::guest_memory::BackingId;
use crate::protection::{Access, Mode};
use crate::sync::Rule;
use crate::tracker::SharedMemory;

const KEY: u64 = 0x40;
const OTHER: u64 = 0x80;

#[derive(Clone)]
struct Model {
    guest: Guest,
    link: Link,
}

impl Model {
    /// Page 0 is about to be translated from. Both pages share a chunk of descriptors.
    fn new(mode: Mode, has_descriptor: bool) -> Self {
        let guest = Guest::new(mode, 2);
        let link = guest.link(KEY);
        if has_descriptor {
            guest.translate(OTHER, &[1]).unwrap();
        }
        Self { guest, link }
    }

    fn translate(&self) {
        drop(self.guest.translate(KEY, &[0]));
    }

    /// A block of page 0, which shows the memory of page 1.
    fn translate_the_view(&self) {
        let mut ticket = self.guest.cache.begin(Key::new(KEY));
        if ticket.claim(self.guest.span(0).0).is_ok() {
            let byte = self.guest.kernel.load(1);
            // A refusal is as good.
            let _ = ticket.commit(0x100 | usize::from(byte), 0);
        }
    }

    fn old_is_gone(&self, when: &str) {
        if self.guest.follow(self.link) == Some(0) {
            violation(format!("{when}: the old block can be reached"));
        }
    }

    /// Runs `announce`, which also changes the byte of page 0, against a translation.
    fn against_a_translation(&self, announce: impl FnOnce(&Self)) {
        let translator = spawn(self, Self::translate);
        announce(self);
        self.old_is_gone("it was announced");
        translator.join().unwrap();
        self.old_is_gone("all have ended");
    }
}

/// The byte is stored, and announced afterwards.
fn an_invalidation(mode: Mode, has_descriptor: bool) {
    Model::new(mode, has_descriptor).against_a_translation(|model| {
        let (start, len) = model.guest.span(0);
        model.guest.kernel.host_store(0, 1);
        model.guest.cache.tracker().invalidate(start, len).unwrap();
    });
}

/// The byte is stored while the page is held.
fn a_kernel_write(has_descriptor: bool) {
    Model::new(Mode::Sigbus, has_descriptor).against_a_translation(|model| {
        let (start, len) = model.guest.span(0);
        let held = model.guest.cache.tracker().prepare_kernel_write(start, len).unwrap();
        model.guest.kernel.host_store(0, 1);
        model.old_is_gone("the page is held");
        drop(held);
    });
}

fn an_unseen_write(has_descriptor: bool) {
    Model::new(Mode::Deferred, has_descriptor).against_a_translation(|model| {
        let (start, len) = model.guest.span(0);
        let held = model.guest.cache.tracker().prepare_unseen_write(start, len).unwrap();
        model.guest.kernel.host_store(0, 1);
        model.old_is_gone("the page is held");
        drop(held);
    });
}

fn a_change_of_mapping(has_descriptor: bool) {
    Model::new(Mode::Sigbus, has_descriptor).against_a_translation(|model| {
        let (start, len) = model.guest.span(0);
        let change = model.guest.cache.tracker().change_mapping(start, len).unwrap();
        model.guest.kernel.host_store(0, 1);
        model.old_is_gone("the mapping changes");
        drop(change);
    });
}

/// The guest's access changes, and then it stores.
fn a_change_of_access(has_descriptor: bool) {
    Model::new(Mode::Sigbus, has_descriptor).against_a_translation(|model| {
        let (start, len) = model.guest.span(0);
        let tracker = model.guest.cache.tracker();
        tracker.set_access(start, len, Access::Read).unwrap();
        tracker.set_access(start, len, Access::ReadWrite).unwrap();
        model.guest.kernel.store(0, 1, 1);
    });
}

fn the_end_of_a_region(has_descriptor: bool) {
    Model::new(Mode::Sigbus, has_descriptor).against_a_translation(|model| {
        model.guest.kernel.host_store(0, 1);
        model.guest.cache.tracker().remove_region(GuestAddr(0)).unwrap();
    });
}

/// Page 1 is declared a view of page 0's memory, and its store changes the bytes of
/// both.
fn a_new_view(has_descriptor: bool) {
    let model = Model::new(Mode::Sigbus, has_descriptor);
    let memory = SharedMemory { backing: BackingId::of_file(1, 1), offset: 0 };
    let declare = |page| {
        let (start, len) = model.guest.span(page);
        model.guest.cache.tracker().declare_shared(start, len, memory).unwrap();
    };
    declare(0);
    let translator = spawn(&model, Model::translate_the_view);
    declare(1);
    model.guest.kernel.store(1, 1, 1);
    model.old_is_gone("the store retired");
    translator.join().unwrap();
    model.old_is_gone("all have ended");
}

#[test]
fn an_invalidation_against_a_first_translation() {
    for mode in [Mode::Sigbus, Mode::Deferred] {
        holds(4, move || an_invalidation(mode, false));
        holds(4, move || an_invalidation(mode, true));
    }
}

#[test]
fn a_kernel_write_against_a_first_translation() {
    holds(4, || a_kernel_write(false));
    holds(4, || a_kernel_write(true));
}

#[test]
fn an_unseen_write_against_a_first_translation() {
    holds(4, || an_unseen_write(false));
    holds(4, || an_unseen_write(true));
}

#[test]
fn a_change_of_mapping_against_a_first_translation() {
    holds(4, || a_change_of_mapping(false));
    holds(4, || a_change_of_mapping(true));
}

#[test]
fn a_change_of_access_against_a_first_translation() {
    holds(4, || a_change_of_access(false));
    holds(4, || a_change_of_access(true));
}

#[test]
fn the_end_of_a_region_against_a_first_translation() {
    holds(4, || the_end_of_a_region(false));
    holds(4, || the_end_of_a_region(true));
}

#[test]
fn a_new_view_against_a_first_translation() {
    holds(4, || a_new_view(false));
    holds(4, || a_new_view(true));
}

#[test]
fn it_fails_without_the_fence_before_the_look() {
    for mode in [Mode::Sigbus, Mode::Deferred] {
        fails_without(Rule::FenceBeforeLook, move || an_invalidation(mode, false));
        fails_without(Rule::FenceBeforeLook, move || an_invalidation(mode, true));
    }
}
