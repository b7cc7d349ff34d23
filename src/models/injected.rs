//! The fault handler on the translator's own thread, at each step of it, as when a signal handler
//! of the embedder stores to guest memory. It also runs a translator between any two steps of a
//! handler. Here a thread does all or nothing between two steps of another; every such timing is
//! tried.
//!
//! # Safety
//!
//! A stale flag is read only while its block lives or is retained.
#![allow(unsafe_code)]

use core::cell::{Cell, RefCell};
use std::rc::Rc;

use super::guest::{Guest, Link};
use super::kernel::{Kernel, Refuses};
use crate::code_cache::{Key, StaleFlag};
use crate::policy::Adaptive;
use crate::protection::Mode;
use crate::sync::interruptible::{interrupt_at, was_interrupted};
use crate::sync::{LEFT_OUT, Rule};

const KEY: u64 = 0x40;

/// A run of one scenario, which reports its findings.
struct Run {
    guest: Guest,
    link: Link,
    stale: Rc<Cell<Option<u8>>>,
}

impl Run {
    fn new(pages: usize, translated: bool) -> Self {
        Self::over(Kernel::new(Mode::Sigbus, pages), pages, translated)
    }

    /// No page can be opened alone: a store opens all of them.
    fn opening_all(translated: bool) -> Self {
        Self::over(Kernel::new(Mode::Sigbus, 2).that_refuses(Refuses::SinglePages), 2, translated)
    }

    fn over(kernel: Kernel, pages: usize, translated: bool) -> Self {
        let guest = Guest::over(kernel, Adaptive::new());
        let link = guest.link(KEY);
        let all: Vec<usize> = (0..pages).collect();
        if translated {
            guest.translate(KEY, &all).unwrap();
        }
        Self { guest, link, stale: Rc::new(Cell::new(None)) }
    }

    /// A store to `page`. When it has retired, it checks for stale blocks.
    fn store(&self, page: usize, byte: u8) -> impl FnOnce() + 'static {
        let Self { guest, link, stale } =
            Self { guest: self.guest.clone(), link: self.link, stale: self.stale.clone() };
        move || {
            guest.kernel.store(page, byte, u32::from(byte));
            note(&guest, link, page, &stale);
        }
    }

    /// A write by the kernel, for which the page is held. If the write is refused, that counts as a
    /// stale block.
    fn announced_write(&self, page: usize, byte: u8) -> impl FnOnce() + 'static {
        let Self { guest, link, stale } =
            Self { guest: self.guest.clone(), link: self.link, stale: self.stale.clone() };
        move || {
            let (start, len) = guest.span(page);
            let held = guest.cache.tracker().prepare_kernel_write(start, len).unwrap();
            if !guest.kernel.kernel_store(page, byte) {
                stale.set(Some(byte));
            }
            drop(held);
            note(&guest, link, page, &stale);
        }
    }

    fn translate(&self) -> impl FnOnce() + 'static {
        let guest = self.guest.clone();
        move || drop(guest.translate(KEY, &[0]))
    }

    /// The stale byte that was seen, now or at one of the stores.
    fn verdict(&self, page: usize) -> Option<u8> {
        note(&self.guest, self.link, page, &self.stale);
        self.stale.get()
    }
}

fn note(guest: &Guest, link: Link, page: usize, stale: &Cell<Option<u8>>) {
    if let Some(byte) = guest.follow(link).filter(|&byte| byte != guest.kernel.load(page)) {
        stale.set(Some(byte));
    }
}

/// Runs `main` again and again, with `interrupt` at each of its steps. Returns the number of steps,
/// and the steps at which a stale block was seen.
fn at_each_step(
    new: impl Fn() -> Run,
    page: usize,
    main: impl Fn(&Run),
    interrupt: impl Fn(&Run, usize),
) -> (usize, Vec<usize>) {
    let mut stale_at = Vec::new();
    for step in 0.. {
        let run = new();
        interrupt(&run, step);
        main(&run);
        let interrupted = was_interrupted();
        let mut good = run.verdict(page).is_none();
        // Nothing was left half done: the page can be translated and written again.
        while run.guest.translate(KEY, &[page]).is_err() {}
        good &= run.guest.follow(run.link) == Some(run.guest.kernel.load(page));
        run.guest.kernel.store(page, 200, 9);
        good &= run.guest.follow(run.link).is_none();
        if !good {
            stale_at.push(step);
        }
        if !interrupted {
            return (step, stale_at);
        }
    }
    unreachable!("the steps end")
}

#[test]
fn a_store_at_each_step_of_a_translation() {
    for translated in [false, true] {
        for page in [0, 1] {
            // The link tells the byte of the last page that the block was made from.
            let (steps, stale) = at_each_step(
                || Run::new(2, translated),
                page,
                |run| drop(run.guest.translate(KEY, &[1 - page, page])),
                |run, step| interrupt_at(step, run.store(page, 1)),
            );
            assert!(stale.is_empty(), "stale at {stale:?} of {steps} steps");
            assert!(steps > 30, "{steps}");
        }
    }
}

/// A lookup finds the previous block, the new one, or none. It never finds the stub of the commit
/// in progress.
#[test]
fn a_lookup_at_each_step_of_a_translation() {
    for translated in [false, true] {
        let attached = RefCell::new(None);
        let (steps, wrong) = at_each_step(
            || Run::new(1, translated),
            0,
            |run| drop(run.guest.translate(KEY, &[0])),
            |run, step| {
                let (vcpu, wrong) = (Rc::new(RefCell::new(run.guest.cache.attach_vcpu())), run.stale.clone());
                // The vCPU ends out here: the translator may hold a lock that the end takes.
                attached.replace(Some(vcpu.clone()));
                interrupt_at(step, move || {
                    let (mut vcpu, key) = (vcpu.borrow_mut(), Key::new(KEY));
                    let mut pin = vcpu.pin();
                    let found = [pin.lookup(key), pin.lookup_shared(key)];
                    // The byte is 0 all the time, and the entry is made of it.
                    if found.into_iter().flatten().any(|entry| entry != 1 << 8) {
                        wrong.set(Some(0));
                    }
                });
            },
        );
        assert!(wrong.is_empty(), "wrong at {wrong:?} of {steps} steps");
        assert!(steps > 20, "{steps}");
    }
}

#[test]
fn two_stores_at_each_two_steps_of_a_translation() {
    for gap in 0..60 {
        let (_, stale) = at_each_step(
            || Run::new(1, true),
            0,
            |run| drop(run.guest.translate(KEY, &[0])),
            |run, step| {
                let (first, second) = (run.store(0, 1), run.store(0, 2));
                interrupt_at(step, move || {
                    // Inside the first one's handler, or after it.
                    interrupt_at(gap, second);
                    first();
                });
            },
        );
        assert!(stale.is_empty(), "stale at {stale:?} with {gap} steps between");
    }
}

/// The store belongs to a block whose code a vCPU has been inside since before. It checks the stale
/// flag next.
fn a_store_at_each_step_of_a_revival() -> (usize, Vec<usize>) {
    let inside = Rc::new(Cell::new(None));
    at_each_step(
        || {
            let run = Run::new(1, false);
            let (mut ticket, entry) = run.guest.ticket(KEY, &[0]).expect("nobody else is there");
            inside.set(Some(ticket.stale_flag().cast::<StaleFlag>()));
            ticket.commit(entry, 0).expect("nobody writes");
            run.guest.cache.remove(Key::new(KEY));
            run
        },
        0,
        |run| {
            if let Some((ticket, _)) = run.guest.ticket(KEY, &[0]) {
                drop(ticket.revive());
            }
        },
        |run, step| {
            let (store, stale, inside) = (run.store(0, 1), run.stale.clone(), inside.clone());
            interrupt_at(step, move || {
                store();
                // SAFETY: its block is retained.
                let flag = inside.get().map(|flag| unsafe { &*flag }.load());
                if flag == Some(StaleFlag::VALID) {
                    stale.set(Some(0));
                }
            });
        },
    )
}

#[test]
fn a_store_by_a_block_at_each_step_of_its_revival() {
    let (steps, stale) = a_store_at_each_step_of_a_revival();
    assert!(stale.is_empty(), "stale at {stale:?} of {steps} steps");
    assert!(steps > 30, "{steps}");
}

#[test]
fn that_fails_where_the_flag_is_valid_too_early() {
    LEFT_OUT.set(Some(Rule::FlagAfterGenerations));
    let (_, stale) = a_store_at_each_step_of_a_revival();
    LEFT_OUT.set(None);
    assert!(!stale.is_empty());
}

#[test]
fn a_store_at_each_step_of_an_announced_write() {
    let (steps, stale) = at_each_step(
        || Run::new(1, true),
        0,
        |run| {
            let (start, len) = run.guest.span(0);
            let held = run.guest.cache.tracker().prepare_kernel_write(start, len).unwrap();
            assert_eq!(run.guest.follow(run.link), None);
            drop(held);
        },
        |run, step| interrupt_at(step, run.store(0, 1)),
    );
    assert!(stale.is_empty(), "stale at {stale:?} of {steps} steps");
    assert!(steps > 20, "{steps}");
}

/// The page's word says open before the page is open.
#[test]
fn an_announced_write_at_each_step_of_a_store_that_opens_all_pages() {
    let (steps, stale) = at_each_step(
        || Run::opening_all(true),
        1,
        |run| run.store(1, 1)(),
        |run, step| interrupt_at(step, run.announced_write(1, 2)),
    );
    assert!(stale.is_empty(), "refused or stale at {stale:?} of {steps} steps");
    assert!(steps > 40, "{steps}");
}

#[test]
fn a_translation_at_each_step_of_a_store_that_opens_all_pages() {
    let (steps, stale) = at_each_step(
        || Run::opening_all(true),
        1,
        |run| run.store(1, 1)(),
        |run, step| {
            let guest = run.guest.clone();
            interrupt_at(step, move || drop(guest.translate(KEY, &[0, 1])));
        },
    );
    assert!(stale.is_empty(), "stale at {stale:?} of {steps} steps");
    assert!(steps > 40, "{steps}");
}

fn a_translation_at_each_step_of_a_store() -> (usize, Vec<usize>) {
    at_each_step(|| Run::new(1, true), 0, |run| run.store(0, 1)(), |run, step| interrupt_at(step, run.translate()))
}

#[test]
fn a_translation_between_any_two_steps_of_a_handler() {
    let (steps, stale) = a_translation_at_each_step_of_a_store();
    assert!(stale.is_empty(), "stale at {stale:?} of {steps} steps");
    assert!(steps > 20, "{steps}");
}

#[test]
fn that_fails_without_the_count_of_unprotects_in_flight() {
    LEFT_OUT.set(Some(Rule::CountUnprotects));
    let (_, stale) = a_translation_at_each_step_of_a_store();
    LEFT_OUT.set(None);
    assert!(!stale.is_empty());
}

#[test]
fn a_store_at_each_step_is_missed_without_an_exchange_to_publish() {
    LEFT_OUT.set(Some(Rule::PublishByExchange));
    let (_, stale) = at_each_step(
        || Run::new(1, false),
        0,
        |run| drop(run.guest.translate(KEY, &[0])),
        |run, step| interrupt_at(step, run.store(0, 1)),
    );
    LEFT_OUT.set(None);
    assert!(!stale.is_empty());
}
