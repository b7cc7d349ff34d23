//! Blocks as a vCPU inside them sees them: the stale flag, and whether the payload is freed.
//!
//! # Safety
//!
//! A stale flag is read only while its block lives or is retained: no model translates the same
//! bytes twice for [`KEY`].
#![allow(unsafe_code)]

use super::explore::violation;
use super::guest::{Guest, Link};
use crate::addr::GuestAddr;
use crate::code_cache::{CodeCache, Entry, Key, StaleFlag};
use crate::sync::{Arc, AtomicBool, Ordering::Relaxed};

pub(super) const KEY: u64 = 0x40;

/// A bit in the addresses of entries that compare.
pub(super) const CHECKED: usize = 1 << 32;

/// Both entries of a block.
pub(super) fn with_check(plain: usize) -> Entry {
    Entry::with_check(plain, plain | CHECKED)
}

/// A guest, and a vCPU that is inside the first block of `KEY`.
#[derive(Clone)]
pub(super) struct Inside {
    pub(super) guest: Guest,
    pub(super) link: Link,
    flag: *const StaleFlag,
}

impl Inside {
    /// The block is made of the byte of each of `pages`. `entry` makes its entry from the plain
    /// address.
    pub(super) fn new(guest: Guest, pages: &[usize], entry: fn(usize) -> Entry) -> Self {
        let link = guest.link(KEY);
        let (mut ticket, plain) = guest.ticket(KEY, pages).unwrap();
        let flag = ticket.stale_flag().cast();
        ticket.commit(entry(plain), 0).unwrap();
        Self { guest, link, flag }
    }

    pub(super) fn flag(&self) -> u8 {
        // SAFETY: as the module says.
        unsafe { &*self.flag }.load()
    }

    /// Revives the retained block, or does nothing.
    pub(super) fn revive(&self) {
        if let Some((ticket, _)) = self.guest.ticket(KEY, &[0]) {
            drop(ticket.revive());
        }
    }

    /// The embedder declares page 0 changed: this walks its blocks.
    pub(super) fn invalidate(&self) {
        let (start, len) = self.guest.span(0);
        self.guest.cache.tracker().invalidate(start, len).unwrap();
    }

    /// Checks that a block of the first byte of page 0, which has changed by now, does not run.
    pub(super) fn old_is_gone(&self, when: &str) {
        self.old_is_gone_behind(self.link, when);
    }

    /// The same check for another block.
    pub(super) fn old_is_gone_behind(&self, link: Link, when: &str) {
        let entry = self.guest.entry(link);
        // A self-checking entry compares with the guest's current byte.
        let same = entry & CHECKED == 0 || self.guest.kernel.load(0) == entry as u8;
        if entry > 1 && same && entry as u8 == 0 {
            violation(format!("{when}: the old block runs"));
        }
    }

    /// A vCPU inside checks the flag after a store, and must leave.
    pub(super) fn must_leave(&self) {
        if self.flag() == StaleFlag::VALID {
            violation("who is inside goes on as if nothing could write to its bytes");
        }
    }

    /// The block cannot be reached, and the flag tells a vCPU inside that it is dead.
    pub(super) fn is_dead(&self, when: &str) {
        if self.guest.follow(self.link).is_some() || self.flag() != StaleFlag::DEAD {
            violation(format!("{when}: the dead block can be reached"));
        }
    }

    /// The flag agrees with the block's state, when all have ended.
    pub(super) fn flag_agrees(&self) {
        let flag = self.flag();
        match self.guest.follow(self.link) {
            Some(_) if flag != StaleFlag::VALID => violation(format!("a valid block whose flag is {flag}")),
            None if flag != StaleFlag::DEAD => violation(format!("a dead block whose flag is {flag}")),
            _ => {}
        }
    }
}

/// A block's payload: reports when it is freed.
pub(super) struct Owned(Arc<AtomicBool>);

impl Drop for Owned {
    fn drop(&mut self) {
        self.0.store(true, Relaxed);
    }
}

/// Makes a block of `key` from page 0 that is entered at `entry`. Its drop sets `freed`.
pub(super) fn commit_owner(cache: &CodeCache<Owned>, key: u64, entry: usize, freed: &Arc<AtomicBool>) {
    let mut ticket = cache.begin(Key::new(key));
    ticket.claim(GuestAddr(0)).unwrap();
    ticket.commit(entry, Owned(freed.clone())).unwrap();
}
