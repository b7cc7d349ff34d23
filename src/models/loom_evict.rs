//! Blocks that are evicted, while other threads commit, run, revive or write to them.
//!
//! Each commit evicts every older block: the limit has room for one.

use loom::thread;

use super::explore::{fails_without, holds, spawn, violation};
use super::guest::{Guest, cache_over};
use super::inside::{Inside, KEY, commit_owner};
use super::kernel::Kernel;
use crate::code_cache::{Entry, Key, MemoryLimit, StaleFlag};
use crate::policy::Adaptive;
use crate::protection::Mode;
use crate::sync::{Arc, AtomicBool, Ordering::Relaxed, Rule};

const OTHER: u64 = 0x80;

/// Room for the newest block, and for retained ones.
const ONE_ALONE: MemoryLimit = MemoryLimit { live_bytes: 0, retained_bytes: 1 << 20 };

/// A block of `KEY` on page 0; `OTHER`'s are made of page 1.
fn room_for_one() -> Inside {
    let guest = Guest::with_policy(Mode::Sigbus, 2, Adaptive::new());
    guest.cache.set_limit(ONE_ALONE);
    Inside::new(guest, &[0], Entry::plain)
}

/// Commits another block, which evicts the first one.
fn evict(model: &Inside) {
    let (ticket, entry) = model.guest.ticket(OTHER, &[1]).unwrap();
    ticket.commit(entry, 0).unwrap();
}

/// Makes the first block reachable again, as a dispatcher does that does not find it.
fn want_again(model: &Inside) {
    let Some((ticket, entry)) = model.guest.ticket(KEY, &[0]) else { return };
    if let Ok(Some(ticket)) = ticket.revive() {
        let _ = ticket.commit(entry, 0);
    }
}

/// An evicted block is written to. Whichever thread killed it, it is dead when the store has
/// retired, also for vCPUs inside.
fn an_eviction_and_a_write() {
    let model = room_for_one();
    let other = spawn(&model, evict);
    model.guest.kernel.store(0, 1, 1);
    model.old_is_gone("the store has retired");
    model.must_leave();
    other.join().unwrap();
    model.old_is_gone("all have ended");
}

/// A block is wanted again while it is evicted: it is there, or the other one is, and the flag
/// agrees with the cell.
fn an_eviction_and_a_revival() {
    let model = room_for_one();
    let other = spawn(&model, evict);
    want_again(&model);
    other.join().unwrap();
    let (is_there, flag) = (model.guest.follow(model.link).is_some(), model.flag());
    let live = model.guest.cache.footprint().live.blocks;
    if live != 1 {
        violation(format!("{live} blocks where there is room for one"));
    }
    // If it was made anew, the flag belongs to the other block.
    if model.guest.cache.stats().committed == 2 && is_there != (flag == StaleFlag::VALID) {
        violation(format!("reachable: {is_there}, and the flag is {flag}"));
    }
}

/// A block is evicted and revived while a walker sees it.
fn an_eviction_and_a_late_walker() {
    let model = room_for_one();
    let walker = spawn(&model, Inside::invalidate);
    evict(&model);
    model.revive();
    walker.join().unwrap();
    model.flag_agrees();
}

/// Two translators of one key; each evicts the older blocks.
fn an_eviction_and_a_commit_of_the_same_key() {
    let model = room_for_one();
    model.guest.kernel.store(0, 1, 1);
    let other = spawn(&model, |model| {
        evict(model);
        want_again(model);
    });
    want_again(&model);
    model.old_is_gone("another one was committed");
    other.join().unwrap();
    model.old_is_gone("all have ended");
    let footprint = model.guest.cache.footprint();
    if footprint.live.blocks != 1 {
        violation(format!("room for one: {footprint:?}"));
    }
}

/// A vCPU finds and runs a block that is evicted and discarded at once.
fn an_eviction_and_a_vcpu() {
    let cache = cache_over(&Arc::new(Kernel::new(Mode::Sigbus, 1)), Adaptive::new());
    cache.set_limit(MemoryLimit { live_bytes: 0, retained_bytes: 0 });
    let freed = [0, 1].map(|_| Arc::new(AtomicBool::new(false)));
    let commit = {
        let (cache, freed) = (cache.clone(), freed.clone());
        move |block: usize| commit_owner(&cache, 2 * block as u64, 2 + block, &freed[block])
    };
    commit(0);
    let (mut vcpu, first) = (cache.attach_vcpu(), freed[0].clone());
    let runner = thread::spawn(move || {
        let mut pin = vcpu.pin();
        let is_found = pin.lookup_shared(Key::new(0)).is_some();
        // It runs, for a while.
        thread::yield_now();
        if is_found && first.load(Relaxed) {
            violation("an evicted block was freed under a vCPU");
        }
    });
    commit(1);
    runner.join().unwrap();
    cache.collect();
    if !freed[0].load(Relaxed) || freed[1].load(Relaxed) {
        violation("the evicted block is not freed, or the newest is");
    }
}

#[test]
fn an_eviction_against_a_write() {
    holds(4, an_eviction_and_a_write);
}

#[test]
fn an_eviction_against_a_revival() {
    holds(4, an_eviction_and_a_revival);
}

#[test]
fn an_eviction_against_a_late_walker() {
    holds(4, an_eviction_and_a_late_walker);
}

#[test]
fn an_eviction_against_a_commit_of_the_same_key() {
    holds(3, an_eviction_and_a_commit_of_the_same_key);
}

#[test]
fn an_eviction_against_a_vcpu() {
    holds(4, an_eviction_and_a_vcpu);
}

#[test]
fn it_fails_where_a_store_trusts_an_eviction() {
    fails_without(Rule::KillCellFirst, an_eviction_and_a_write);
}

#[test]
fn it_fails_where_a_revival_of_the_evicted_does_not_wait_for_walkers() {
    fails_without(Rule::ReviveAfterWalkers, an_eviction_and_a_late_walker);
}

#[test]
fn it_fails_where_the_evicted_are_not_kept_for_pins() {
    fails_without(Rule::WaitForPins, an_eviction_and_a_vcpu);
}
