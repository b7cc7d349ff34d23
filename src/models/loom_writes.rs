//! Stores in a synchronous region: once one has retired, nothing leads to a block that was made
//! from the old byte.

use super::explore::{fails_without, holds, spawn, violation};
use super::guest::{Guest, Link};
use super::kernel::{Kernel, Refuses};
use crate::policy::Adaptive;
use crate::protection::Mode;
use crate::sync::Rule;

const KEY: u64 = 0x40;

fn translate(guest: &Guest) {
    drop(guest.translate(KEY, &[0]));
}

/// A store by this thread, and the check of the promise when it has retired. The bytes of a page
/// only grow in these models, so a smaller one is an older one.
fn store(guest: &Guest, links: &[Link], byte: u8, tid: u32) {
    guest.kernel.store(0, byte, tid);
    for &link in links {
        if let Some(stale) = guest.follow(link).filter(|&made_from| made_from < byte) {
            violation(format!("store of {byte} retired and a block of {stale} can be reached"));
        }
    }
}

/// Nothing leads to a block of the first byte.
fn old_is_gone(guest: &Guest, link: Link, when: &str) {
    if guest.follow(link) == Some(0) {
        violation(format!("{when} and the old block can be reached"));
    }
}

/// In the end each block is of the current byte.
fn settled(guest: &Guest, links: &[Link]) {
    for &link in links {
        if let Some(stale) = guest.follow(link).filter(|&made_from| made_from != guest.kernel.load(0)) {
            violation(format!("a block of {stale} stays over {}", guest.kernel.load(0)));
        }
    }
}

/// One store while a page is translated from, for the first time or with a block on it.
fn one_store(translated: bool) {
    let guest = Guest::new(Mode::Sigbus, 1);
    let links = [guest.link(KEY)];
    if translated {
        guest.translate(KEY, &[0]).unwrap();
    }
    let translator = spawn(&guest, translate);
    store(&guest, &links, 1, 1);
    translator.join().unwrap();
    settled(&guest, &links);
}

fn first_translation() {
    one_store(false);
}

fn second_translation() {
    one_store(true);
}

/// Two stores to a page with a block on it: neither handler may rely on a step
/// that the other has not done yet.
fn two_stores() {
    let guest = Guest::new(Mode::Sigbus, 1);
    let links = [guest.link(KEY)];
    guest.translate(KEY, &[0]).unwrap();
    let other = spawn(&guest, move |guest| {
        guest.kernel.store(0, 1, 2);
        old_is_gone(guest, links[0], "the other store retired");
    });
    guest.kernel.store(0, 2, 1);
    old_is_gone(&guest, links[0], "the store retired");
    other.join().unwrap();
    settled(&guest, &links);
}

/// The same with a translator.
fn two_stores_and_a_translator() {
    let guest = Guest::new(Mode::Sigbus, 1);
    let links = [guest.link(KEY)];
    guest.translate(KEY, &[0]).unwrap();
    let translator = spawn(&guest, translate);
    let other = spawn(&guest, another_store);
    guest.kernel.store(0, 1, 1);
    old_is_gone(&guest, links[0], "the store retired");
    other.join().unwrap();
    translator.join().unwrap();
    settled(&guest, &links);
}

/// Two translators of one page, of one key or of two, and a store.
fn two_translators(keys: [u64; 2]) {
    let guest = Guest::new(Mode::Sigbus, 1);
    let links = keys.map(|key| guest.link(key));
    let translators = keys.map(|key| spawn(&guest, move |guest| drop(guest.translate(key, &[0]))));
    store(&guest, &links, 1, 1);
    translators.into_iter().for_each(|translator| translator.join().unwrap());
    settled(&guest, &links);
}

/// A block over two pages, and a store to the second one.
fn two_pages() {
    let guest = Guest::new(Mode::Sigbus, 2);
    let link = guest.link(KEY);
    let translator = spawn(&guest, |guest| drop(guest.translate(KEY, &[0, 1])));
    guest.kernel.store(1, 1, 1);
    old_is_gone(&guest, link, "the store retired");
    translator.join().unwrap();
    old_is_gone(&guest, link, "all have ended");
}

/// A thread that has seen the byte of a store finds no older block.
fn a_bystander() {
    let guest = Guest::new(Mode::Sigbus, 1);
    let link = guest.link(KEY);
    guest.translate(KEY, &[0]).unwrap();
    let writer = spawn(&guest, another_store);
    if guest.kernel.load(0) == 1 {
        old_is_gone(&guest, link, "the byte is new");
    }
    writer.join().unwrap();
}

/// A vCPU goes through a link before its store has an address, while another thread opens the page.
/// It is pinned before the other thread begins, or meanwhile.
fn a_look_ahead(is_pinned_before: bool, other: fn(&Guest)) {
    let guest = Guest::new(Mode::Sigbus, 1);
    let link = guest.link(KEY);
    guest.translate(KEY, &[0]).unwrap();
    let mut vcpu = guest.cache.attach_vcpu();
    if is_pinned_before {
        let pin = vcpu.pin();
        let opener = spawn(&guest, other);
        store_behind(&guest, 0, || (), link);
        drop(pin);
        opener.join().unwrap();
    } else {
        let store = spawn(&guest, move |guest| {
            let pin = vcpu.pin();
            store_behind(guest, 0, || (), link);
            drop(pin);
        });
        other(&guest);
        store.join().unwrap();
    }
}

/// The same in a region with explicit fetch: the vCPU fetches before it looks.
fn an_explicit_fetch() {
    let guest = Guest::over(Kernel::new(Mode::Sigbus, 1).with_explicit_fetch(), Adaptive::new());
    let link = guest.link(KEY);
    guest.translate(KEY, &[0]).unwrap();
    let mut vcpu = guest.cache.attach_vcpu();
    let pin = vcpu.pin();
    let opener = spawn(&guest, another_store);
    store_behind(&guest, 0, || guest.cache.tracker().sync().unwrap(), link);
    drop(pin);
    opener.join().unwrap();
}

/// A vCPU's store to `page`, and its look through `link` behind it, which the core runs ahead.
fn store_behind(guest: &Guest, page: usize, between: impl Fn(), link: Link) {
    if guest.kernel.store_behind(page, 2, 1, between, || guest.follow(link)) == Some(0) {
        violation("the store retired and what follows it went on into the old block");
    }
}

/// The same if the page is opened by a thread that opens all pages: `other`'s own page is 0, and
/// the look ahead is of page 1.
fn a_look_ahead_of_all(refuses: Refuses, other: fn(&Guest)) {
    let guest = Guest::over(Kernel::new(Mode::Sigbus, 2).that_refuses(refuses), Adaptive::new());
    let link = guest.link(KEY);
    guest.translate(KEY, &[1]).unwrap();
    guest.translate(KEY + 2, &[0]).unwrap();
    let mut vcpu = guest.cache.attach_vcpu();
    let pin = vcpu.pin();
    let opener = spawn(&guest, other);
    store_behind(&guest, 1, || (), link);
    drop(pin);
    opener.join().unwrap();
}

fn opens_all() {
    a_look_ahead_of_all(Refuses::SinglePages, another_store);
}

fn a_loss_is_found() {
    a_look_ahead_of_all(Refuses::Everything, |guest| guest.cache.tracker().maintain());
}

/// Two messages that look alike: a handler thread is told of the same byte twice. Each store has a
/// handler of its own here, so one number of a thread stands for the one handler.
fn two_messages() {
    let guest = Guest::new(Mode::Thread, 1);
    let links = [guest.link(KEY)];
    guest.translate(KEY, &[0]).unwrap();
    let translator = spawn(&guest, translate);
    let other = spawn(&guest, |guest| {
        guest.kernel.store(0, 1, 7);
    });
    store(&guest, &links, 1, 7);
    other.join().unwrap();
    translator.join().unwrap();
    settled(&guest, &links);
}

fn another_store(guest: &Guest) {
    guest.kernel.store(0, 1, 2);
}

fn an_announced_write(guest: &Guest) {
    let (start, len) = guest.span(0);
    drop(guest.cache.tracker().prepare_kernel_write(start, len).unwrap());
}

#[test]
fn a_store_against_a_first_translation() {
    holds(5, first_translation);
}

#[test]
fn a_store_against_a_second_translation() {
    holds(5, second_translation);
}

#[test]
fn two_stores_at_once() {
    holds(5, two_stores);
}

#[test]
fn two_stores_against_a_translator() {
    holds(2, two_stores_and_a_translator);
}

#[test]
fn translators_of_one_key() {
    holds(2, || two_translators([KEY, KEY]));
}

#[test]
fn translators_of_one_page() {
    holds(2, || two_translators([KEY, KEY + 2]));
}

#[test]
fn a_store_against_a_block_over_two_pages() {
    holds(5, two_pages);
}

#[test]
fn who_sees_the_byte_finds_no_old_block() {
    holds(5, a_bystander);
}

#[test]
fn a_look_ahead_of_a_store_against_another_store() {
    holds(3, || a_look_ahead(true, another_store));
}

#[test]
fn a_look_ahead_of_a_store_against_an_announced_write() {
    holds(3, || a_look_ahead(true, an_announced_write));
}

#[test]
fn a_look_ahead_of_a_vcpu_that_pins_itself_meanwhile() {
    holds(3, || a_look_ahead(false, another_store));
}

#[test]
fn a_look_ahead_of_an_explicit_fetch() {
    holds(3, an_explicit_fetch);
}

#[test]
fn it_fails_without_the_fence_behind_a_pin() {
    fails_without(Rule::FenceBehindPin, || a_look_ahead(false, another_store));
}

#[test]
fn it_fails_without_the_fence_before_the_look_at_other_pins() {
    fails_without(Rule::FenceBeforeOthers, || a_look_ahead(false, another_store));
}

#[test]
fn it_fails_without_the_fence_at_a_sync() {
    fails_without(Rule::FenceAtSync, an_explicit_fetch);
}

#[test]
fn a_look_ahead_of_a_store_against_one_that_opens_all_pages() {
    holds(3, opens_all);
}

#[test]
fn a_look_ahead_of_a_store_against_a_loss() {
    holds(3, a_loss_is_found);
}

#[test]
fn two_messages_that_look_alike() {
    holds(2, two_messages);
}

#[test]
fn it_fails_without_a_barrier_on_all_threads() {
    fails_without(Rule::FenceThreads, opens_all);
    fails_without(Rule::FenceThreads, a_loss_is_found);
    fails_without(Rule::FenceThreads, || a_look_ahead(true, another_store));
    fails_without(Rule::FenceThreads, || a_look_ahead(true, an_announced_write));
}

#[test]
fn it_fails_without_the_count_of_unprotects_in_flight() {
    fails_without(Rule::CountUnprotects, second_translation);
}

#[test]
fn it_fails_without_the_fence_before_the_walk() {
    fails_without(Rule::FenceBeforeWalk, first_translation);
}

#[test]
fn it_fails_without_the_fence_before_the_generations() {
    fails_without(Rule::FenceBeforeGenerations, first_translation);
}

#[test]
fn it_fails_without_an_exchange_to_publish() {
    fails_without(Rule::PublishByExchange, first_translation);
}

#[test]
fn it_fails_where_a_late_kill_trusts_the_flag() {
    fails_without(Rule::KillCellFirst, two_stores);
}
