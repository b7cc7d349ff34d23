//! Blocks as a vCPU inside them sees them: what their stale flag says, and whether what
//! they own is freed.
//!
//! # Safety
//!
//! A stale flag is looked at while its block lives or is kept: no model translates the
//! same bytes twice for [`KEY`].
#![allow(unsafe_code)]

use super::explore::violation;
use super::guest::{Guest, Link};
use crate::addr::GuestAddr;
use crate::block::{Entry, StaleFlag};
use crate::code_cache::{CodeCache, Key};
use crate::sync::{Arc, AtomicBool, Ordering::Relaxed};

pub(super) const KEY: u64 = 0x40;

/// Of the addresses of entries that compare.
pub(super) const CHECKED: usize = 1 << 32;

/// Both entries of a block.
pub(super) fn with_check(plain: usize) -> Entry {
    Entry::with_check(plain, plain | CHECKED)
}

/// A guest, and a vCPU that is inside the block of `KEY` that is there at the beginning.
#[derive(Clone)]
pub(super) struct Inside {
    pub(super) guest: Guest,
    pub(super) link: Link,
    flag: *const StaleFlag,
}

impl Inside {
    /// The block is made of the byte of each of `pages`, and `entry` makes its entry of
    /// the plain one.
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

    /// Uses the former block again, or does nothing.
    pub(super) fn revive(&self) {
        if let Some((ticket, _)) = self.guest.ticket(KEY, &[0]) {
            drop(ticket.revive());
        }
    }

    /// The embedder says that page 0 changed: a walk over its blocks.
    pub(super) fn invalidate(&self) {
        let (start, len) = self.guest.span(0);
        self.guest.cache.tracker().invalidate(start, len).unwrap();
    }

    /// A block of the first byte of page 0, which holds another one by now, does not run.
    pub(super) fn old_is_gone(&self, when: &str) {
        self.old_is_gone_behind(self.link, when);
    }

    /// The same of another block.
    pub(super) fn old_is_gone_behind(&self, link: Link, when: &str) {
        let entry = self.guest.entry(link);
        // What it compares is the guest's byte of now.
        let same = entry & CHECKED == 0 || self.guest.kernel.load(0) == entry as u8;
        if entry > 1 && same && entry as u8 == 0 {
            violation(format!("{when}: the old block runs"));
        }
    }

    /// Who is inside looks at the flag after a store, and leaves.
    pub(super) fn must_leave(&self) {
        if self.flag() == StaleFlag::VALID {
            violation("who is inside goes on as if nothing could write to its bytes");
        }
    }

    /// Nobody gets to the block, and who is inside knows that it is dead.
    pub(super) fn is_dead(&self, when: &str) {
        if self.guest.follow(self.link).is_some() || self.flag() != StaleFlag::DEAD {
            violation(format!("{when}: the dead block can be reached"));
        }
    }

    /// The flag says what became of the block, when all have ended.
    pub(super) fn flag_agrees(&self) {
        let flag = self.flag();
        match self.guest.follow(self.link) {
            Some(_) if flag != StaleFlag::VALID => violation(format!("a valid block whose flag is {flag}")),
            None if flag != StaleFlag::DEAD => violation(format!("a dead block whose flag is {flag}")),
            _ => {}
        }
    }
}

/// What a block owns: says when it is freed.
pub(super) struct Owned(Arc<AtomicBool>);

impl Drop for Owned {
    fn drop(&mut self) {
        self.0.store(true, Relaxed);
    }
}

/// Makes a block of `key` from page 0 that is entered at `entry`. `freed` becomes true.
pub(super) fn commit_owner(cache: &CodeCache<Owned>, key: u64, entry: usize, freed: &Arc<AtomicBool>) {
    let mut ticket = cache.begin(Key::new(key));
    ticket.claim(GuestAddr(0)).unwrap();
    ticket.commit(entry, Owned(freed.clone())).unwrap();
}
