//! The table of ranges: readers against a writer, and the end of a mechanism against a new range.
//!
//! # Safety
//!
//! The table is in an `Arc`, one thread changes it at a time, and its [`Writing`] goes with it.
#![allow(unsafe_code)]

use super::explore::{fails_without, holds, spawn, violation};
use crate::addr::{HostAddr, HostRange, PageSize};
use crate::protection::GivenUp;
use crate::sync::{Arc, AtomicBool, Mutex, Ordering::Relaxed, Rule, lock};
use crate::sys::range_table::{Lookup, RangeTable, SlotId, Writing};

fn page(number: usize) -> HostRange {
    HostRange::page_of(HostAddr(number << 12), PageSize::from_shift(12))
}

/// A value that notes its drop.
struct Value {
    page: usize,
    dropped: Arc<AtomicBool>,
}

impl Drop for Value {
    fn drop(&mut self) {
        self.dropped.store(true, Relaxed);
    }
}

struct Table {
    ranges: RangeTable<Value>,
    writing: Mutex<Writing>,
    given_up: GivenUp,
    told: AtomicBool,
}

impl Table {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            ranges: RangeTable::new(),
            writing: Mutex::new(Writing::new()),
            given_up: GivenUp::default(),
            told: AtomicBool::new(false),
        })
    }

    /// A range of page `number`, and whether its value was dropped.
    fn insert(&self, number: usize) -> (SlotId, Arc<AtomicBool>) {
        let dropped = Arc::new(AtomicBool::new(false));
        let value = Value { page: number, dropped: dropped.clone() };
        // SAFETY: see the module's head.
        let slot = unsafe { self.ranges.insert(&mut lock(&self.writing), page(number), value, 1) };
        (slot.unwrap_or_else(|_| unreachable!("pages do not overlap")), dropped)
    }

    fn remove(&self, slot: SlotId) {
        let slot = self.ranges.take_out(slot, false);
        lock(&self.writing).give_back(slot);
    }

    /// The page of the value that a search for page `number` finds.
    fn find(&self, number: usize) -> Lookup<usize> {
        let found = self.ranges.with(page(number).start(), |value| value.page);
        if matches!(found, Lookup::Found(other) if other != number) {
            violation("the range of another address was found");
        }
        found
    }
}

/// The index that the reader searches is filled again under it, with ranges below and above. The
/// last change needs a larger array.
fn a_search_against_three_changes() {
    let table = Table::new();
    table.insert(5);
    let reader = spawn(&table, |table| {
        if table.find(5) != Lookup::Found(5) {
            violation("a range that is there all the time was not found");
        }
    });
    for number in [3, 2, 7] {
        table.insert(number);
    }
    reader.join().unwrap();
}

#[test]
fn a_range_stays_found_while_the_table_changes() {
    holds(2, a_search_against_three_changes);
}

#[test]
fn it_fails_without_the_fence_before_a_refill() {
    fails_without(Rule::FenceBeforeRefill, a_search_against_three_changes);
}

#[test]
fn it_fails_without_the_fence_before_the_second_look() {
    fails_without(Rule::FenceBeforeSecondLook, a_search_against_three_changes);
}

fn a_search_against_a_removal() {
    let table = Table::new();
    let (slot, dropped) = table.insert(1);
    let reader = spawn(&(table.clone(), dropped), |(table, dropped)| {
        table.ranges.with(page(1).start(), |_| {
            if dropped.load(Relaxed) {
                violation("a value was freed under its reader");
            }
        });
    });
    table.remove(slot);
    reader.join().unwrap();
}

#[test]
fn no_value_is_freed_under_a_reader() {
    holds(3, a_search_against_a_removal);
}

#[test]
fn it_fails_without_the_fence_behind_a_use() {
    fails_without(Rule::FenceBehindUse, a_search_against_a_removal);
}

#[test]
fn it_fails_without_the_fence_behind_a_retirement() {
    fails_without(Rule::FenceBehindRetire, a_search_against_a_removal);
}

/// A late reader finds the slot under its earlier range.
#[test]
fn a_slot_that_is_used_again_answers_for_its_new_range_alone() {
    holds(3, || {
        let table = Table::new();
        let (slot, _) = table.insert(1);
        let reader = spawn(&table, |table| {
            table.find(1);
            table.find(2);
        });
        table.remove(slot);
        table.insert(2);
        if table.find(2) != Lookup::Found(2) {
            violation("the new range was not found");
        }
        reader.join().unwrap();
    });
}

/// A thread gives a mechanism up, which opens all of its pages, while another one attaches a range.
fn a_loss_against_a_new_range() {
    let table = Table::new();
    let loser = spawn(&table, |table| {
        table.given_up.mark();
        table.ranges.for_each(|_| table.told.store(true, Relaxed));
    });
    table.insert(1);
    let is_refused = table.given_up.check().is_err();
    loser.join().unwrap();
    if !is_refused && !table.told.load(Relaxed) {
        violation("a range was attached and does not hear of the loss");
    }
}

#[test]
fn every_range_hears_of_a_loss_or_is_refused() {
    holds(3, a_loss_against_a_new_range);
}

#[test]
fn it_fails_without_the_fence_behind_a_loss() {
    fails_without(Rule::FenceBehindGivenUp, a_loss_against_a_new_range);
}

#[test]
fn it_fails_without_the_fence_before_the_look_for_a_loss() {
    fails_without(Rule::FenceBeforeGivenUpCheck, a_loss_against_a_new_range);
}
