//! Data writes, and translations that are used again.

use super::explore::{fails_without, holds, spawn, violation};
use super::guest::Guest;
use super::inside::{CHECKED, Inside, KEY, with_check};
use crate::code_cache::{Entry, Key};
use crate::policy::Adaptive;
use crate::protection::Mode;
use crate::sync::Rule;

/// A block over all pages that can compare its bytes.
fn a_block(pages: usize) -> Inside {
    let guest = Guest::with_policy(Mode::Sigbus, pages, Adaptive::with_checks());
    Inside::new(guest, &Vec::from_iter(0..pages), with_check)
}

fn translate(model: &Inside, key: u64) {
    if let Some((ticket, plain)) = model.guest.ticket(key, &[0]) {
        let _ = ticket.commit(with_check(plain), 0);
    }
}

fn remove(model: &Inside) {
    model.guest.cache.remove(Key::new(KEY));
}

/// A data write makes its page writable while another block on it is
/// committed; the next write hits both.
fn a_downgrade_and_a_commit() {
    const OTHER: u64 = KEY + 2;
    let model = a_block(1);
    let other = model.guest.link(OTHER);
    let translator = spawn(&model, |model| translate(model, OTHER));
    model.guest.kernel.store_data(0, 1);
    model.must_leave();
    model.guest.kernel.store(0, 1, 1);
    let all_gone = |when| [model.link, other].map(|link| model.old_is_gone_behind(link, when));
    all_gone("the store has retired");
    translator.join().unwrap();
    all_gone("all have ended");
}

/// Two data writes, and one write that hits the block.
fn two_downgrades() {
    let model = a_block(1);
    let other = spawn(&model, |model| model.guest.kernel.store_data(0, 2));
    model.guest.kernel.store_data(0, 1);
    model.must_leave();
    model.guest.kernel.store(0, 1, 1);
    model.old_is_gone("the store has retired");
    other.join().unwrap();
    model.old_is_gone("all have ended");
}

/// A data write to the first page of a block, and a write that hits it on its second.
fn a_downgrade_and_a_kill() {
    let model = a_block(2);
    let other = spawn(&model, |model| model.guest.kernel.store_data(0, 2));
    model.guest.kernel.store(1, 1, 1);
    model.is_dead("the store has retired");
    other.join().unwrap();
    model.is_dead("all have ended");
}

/// A block is revived while a vCPU, inside it since before, stores to its bytes and then checks the
/// flag.
fn a_revival_and_a_write() {
    let model = a_block(1);
    remove(&model);
    let translator = spawn(&model, Inside::revive);
    model.guest.kernel.store(0, 1, 1);
    model.must_leave();
    model.old_is_gone("the store has retired");
    translator.join().unwrap();
    model.old_is_gone("all have ended");
}

/// A block is revived on a page that a data write makes self-checking.
fn a_revival_and_a_downgrade() {
    let model = a_block(1);
    remove(&model);
    let translator = spawn(&model, Inside::revive);
    model.guest.kernel.store_data(0, 1);
    model.must_leave();
    model.guest.kernel.store(0, 1, 1);
    model.old_is_gone("the store has retired");
    translator.join().unwrap();
    model.old_is_gone("all have ended");
}

/// A walker found a record before it was taken out, while its translation is revived.
fn a_revival_and_a_late_walker() {
    // If a late walker can downgrade the address, the revival waits in any case.
    let guest = Guest::with_policy(Mode::Sigbus, 1, Adaptive::with_checks());
    let model = Inside::new(guest, &[0], Entry::plain);
    let walker = spawn(&model, Inside::invalidate);
    remove(&model);
    model.revive();
    walker.join().unwrap();
    model.flag_agrees();
}

/// A walker is late with a block whose plain entry is also the next block's: an embedder has one
/// piece of code for both, and compares other bytes.
fn a_late_downgrade_and_a_block_of_the_same_entry() {
    const PLAIN: usize = 0x100;
    let guest = Guest::with_policy(Mode::Sigbus, 2, Adaptive::with_checks());
    let link = guest.link(KEY);
    let commit = |pages: &[usize], checked| {
        let (ticket, _) = guest.ticket(KEY, pages)?;
        ticket.commit(Entry::with_check(PLAIN, checked | CHECKED), 0).ok()
    };
    commit(&[0, 1], 1).unwrap();
    let walker = spawn(&guest, |guest| guest.kernel.store_data(0, 2));
    commit(&[1], 2);
    walker.join().unwrap();
    if guest.entry(link) == 1 | CHECKED {
        violation("a dead block's self-checking entry is back");
    }
}

/// A block is removed by hand while another one of its key is committed.
fn a_removal_and_a_commit() {
    let model = a_block(1);
    model.guest.kernel.store(0, 1, 1);
    let translator = spawn(&model, |model| translate(model, KEY));
    remove(&model);
    model.old_is_gone("it was removed");
    translator.join().unwrap();
    remove(&model);
    if model.guest.follow(model.link).is_some() {
        violation("a block outlived that it was removed");
    }
}

/// A block is removed by hand while a store hits it.
fn a_removal_and_a_store() {
    let model = a_block(1);
    let other = spawn(&model, remove);
    model.guest.kernel.store(0, 1, 1);
    model.is_dead("the store has retired");
    other.join().unwrap();
}

#[test]
fn a_data_write_against_a_commit() {
    holds(5, a_downgrade_and_a_commit);
}

#[test]
fn two_data_writes() {
    holds(5, two_downgrades);
}

#[test]
fn a_data_write_against_one_that_hits_the_block() {
    holds(5, a_downgrade_and_a_kill);
}

#[test]
fn a_revival_against_a_write() {
    holds(5, a_revival_and_a_write);
}

#[test]
fn a_revival_against_a_data_write() {
    holds(5, a_revival_and_a_downgrade);
}

#[test]
fn a_revival_against_a_late_walker() {
    holds(5, a_revival_and_a_late_walker);
}

#[test]
fn a_late_data_write_against_one_of_the_same_entry() {
    holds(4, a_late_downgrade_and_a_block_of_the_same_entry);
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
fn it_fails_where_two_blocks_of_one_entry_do_not_wait_for_walkers() {
    fails_without(Rule::OneAddressOneWalker, a_late_downgrade_and_a_block_of_the_same_entry);
}

#[test]
fn it_fails_where_a_store_trusts_a_removal() {
    fails_without(Rule::KillCellFirst, a_removal_and_a_store);
}
