//! Events that a policy starts: pages that become self-checking and cool, that are opened ahead of
//! a stream, that are protected in batches.

use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use loom::thread;

use super::explore::{holds, spawn, violation};
use super::guest::{Guest, Link};
use super::inside::{CHECKED, with_check};
use crate::code_cache::Key;
use crate::policy::{Decision, Limits, PageHistory, Policy};
use crate::protection::Mode;

/// Alternates its decisions: the first caller may get another one than the second.
#[derive(Debug)]
struct ByTurns {
    asked: AtomicU32,
    decisions: [Decision; 2],
    limits: Limits,
}

impl ByTurns {
    fn new(decisions: [Decision; 2]) -> Self {
        let limits = Limits::default().with_checks_on_data_write(true);
        Self { asked: AtomicU32::new(0), decisions, limits }
    }

    /// Everything is protected, in bulk.
    fn in_bulk() -> Self {
        let limits = Limits::default().with_open_ahead(2).with_protect_batch(2);
        Self { limits, ..Self::new([Decision::Protect; 2]) }
    }
}

impl Policy for ByTurns {
    fn on_begin(&self, _: &PageHistory) -> Decision {
        self.decisions[self.asked.fetch_add(1, Relaxed) as usize % 2]
    }

    fn on_harvest(&self, _: &PageHistory) -> bool {
        true
    }

    fn has_cooled(&self, _: &PageHistory) -> bool {
        true
    }

    fn limits(&self) -> Limits {
        self.limits
    }
}

#[derive(Clone)]
struct Model {
    guest: Guest,
    /// Links to the block of each page.
    links: Vec<Link>,
}

impl Model {
    fn new(mode: Mode, pages: usize, policy: ByTurns) -> Self {
        let guest = Guest::with_policy(mode, pages, policy);
        let links = (0..pages as u64).map(|key| guest.link(key)).collect();
        Self { guest, links }
    }

    /// Makes a block of the page's byte, with both entries; nothing if the page is busy.
    fn translate(&self, page: usize) {
        let mut ticket = self.guest.cache.begin(Key::new(page as u64));
        let (start, _) = self.guest.span(page);
        if ticket.claim(start).is_err() {
            return;
        }
        let byte = self.guest.kernel.load(page);
        ticket.add_source(start, &[byte]).unwrap();
        // A refusal is as good.
        let _ = ticket.commit(with_check(0x100 | usize::from(byte)), 0);
    }

    /// A store of 1. Afterwards no block of the byte 0 runs.
    fn store(&self, page: usize, tid: u32) {
        self.guest.kernel.store(page, 1, tid);
        self.old_is_gone(page);
    }

    /// A store of 1 to the first page and its announcement while `other` runs, and another
    /// announcement when `other` has ended.
    fn announced_store_against(&self, other: thread::JoinHandle<()>) {
        self.guest.kernel.store(0, 1, 1);
        self.sync();
        other.join().unwrap();
        self.sync();
    }

    fn sync(&self) {
        let _ = self.guest.cache.tracker().sync();
        self.old_is_gone(0);
    }

    fn old_is_gone(&self, page: usize) {
        let entry = self.guest.entry(self.links[page]);
        // A self-checking entry compares with the guest's current byte.
        let compares = entry & CHECKED != 0 && self.guest.kernel.load(page) != 0;
        if entry & !CHECKED == 0x100 && !compares {
            violation(format!("page {page}: the old block runs"));
        }
    }
}

/// Two translators of one page: the policy tells one to protect it, and the other to make it
/// self-checking.
fn two_minds(mode: Mode) {
    let model = Model::new(mode, 1, ByTurns::new([Decision::SelfCheck, Decision::Protect]));
    let other = spawn(&model, |model| model.translate(0));
    model.translate(0);
    model.announced_store_against(other);
}

/// A self-checking page cools and is protected while it is written to.
fn a_page_cools(mode: Mode) {
    let model = Model::new(mode, 1, ByTurns::new([Decision::SelfCheck, Decision::Protect]));
    model.translate(0);
    let other = spawn(&model, |model| {
        model.guest.cache.tracker().maintain();
        model.translate(0);
    });
    model.announced_store_against(other);
}

/// A store opens the page after its own, while another thread translates from that page.
fn opened_ahead(translated: bool) {
    let model = Model::new(Mode::Sigbus, 3, ByTurns::in_bulk());
    for page in 0..2 + usize::from(translated) {
        model.translate(page);
    }
    model.store(0, 1);
    let other = spawn(&model, |model| model.translate(2));
    model.store(1, 1);
    model.store(2, 1);
    other.join().unwrap();
    model.old_is_gone(2);
}

/// Two pages are protected together, and one of them is written to.
fn a_batch() {
    let model = Model::new(Mode::Sigbus, 2, ByTurns::in_bulk());
    (0..2).for_each(|page| model.translate(page));
    let (start, len) = model.guest.span(0);
    drop(model.guest.cache.tracker().prepare_kernel_write(start, 2 * len).unwrap());
    let other = spawn(&model, |model| {
        model.translate(0);
        model.translate(1);
    });
    model.store(1, 1);
    other.join().unwrap();
    model.old_is_gone(1);
}

#[test]
fn two_minds_about_a_page() {
    holds(3, || two_minds(Mode::Sigbus));
}

#[test]
fn two_minds_about_a_page_of_a_deferred_region() {
    holds(3, || two_minds(Mode::Deferred));
}

#[test]
fn cooling_against_a_store() {
    holds(3, || a_page_cools(Mode::Sigbus));
}

#[test]
fn cooling_against_an_announced_store() {
    holds(3, || a_page_cools(Mode::Deferred));
}

#[test]
fn opening_ahead_against_a_first_translation() {
    holds(2, || opened_ahead(false));
}

#[test]
fn opening_ahead_against_a_block() {
    holds(2, || opened_ahead(true));
}

#[test]
fn a_batch_against_a_store() {
    holds(2, a_batch);
}
