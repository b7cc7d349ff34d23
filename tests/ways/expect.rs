//! A test's expectations of a block.
//!
//! # Safety
//!
//! Pointers to guest bytes are made here and used by system calls and by single
//! stores, inside the fixture's memory.
#![allow(unsafe_code)]

use std::sync::Arc;

use codewarden::addr::GuestAddr;
use codewarden::guest_memory::GuestMemory;
use codewarden::policy::Adaptive;
use codewarden::protection::{Facility, Mode, Probe};
use codewarden::tracker::BeginError;
use codewarden::{CodeCache, Entry, EntryStubs, Key};

use crate::support::{Fixture, GUEST, memories, page_bytes, region, tracking_modes};

/// Runs `way` in every mode, `none` included, over anonymous and memfd memory, under
/// the policy without self-checking pages and under the one with.
pub(crate) fn in_every_mode(way: impl Fn(&Fixture)) {
    for mode in tracking_modes().into_iter().chain([Mode::None]) {
        for policy in [Adaptive::new(), Adaptive::with_checks()] {
            for memory in memories(mode) {
                println!("{mode}, {policy:?}");
                way(&fixture(mode, memory, policy));
            }
        }
    }
}

/// A fixture under `policy`.
pub(crate) fn fixture(mode: Mode, memory: GuestMemory, policy: Adaptive) -> Fixture {
    let cache = CodeCache::with_policy(EntryStubs::NOT_CODE, Arc::new(policy)).unwrap();
    // SAFETY: the fixture drops its cache before its memory.
    unsafe { cache.tracker().add_region(region(GUEST, &memory, mode)) }.unwrap();
    Fixture { cache, memory, mode }
}

/// A block that was made of one byte.
#[derive(Clone, Copy)]
pub(crate) struct Block {
    /// The address of the byte, which is also the key.
    at: u64,
    byte: u8,
}

/// A bit in an entry: enter by the comparison.
const CHECKED: usize = 1 << 40;

impl Fixture {
    /// The guest address of a byte of a page.
    pub(crate) fn guest(&self, page: usize, offset: usize) -> GuestAddr {
        GuestAddr(GUEST + (page * page_bytes() + offset) as u64)
    }

    /// The same byte in this process.
    pub(crate) fn host(&self, page: usize, offset: usize) -> *mut u8 {
        self.memory.range().start().as_ptr().wrapping_add(page * page_bytes() + offset)
    }

    /// Translates from a byte.
    pub(crate) fn block(&self, page: usize, offset: usize) -> Block {
        let guest = self.guest(page, offset);
        let at = guest.0;
        let mut ticket = self.cache.begin(guest.into());
        // In thread mode the store may go on a moment before the un-protect is over.
        while let Err(error) = ticket.claim(guest) {
            assert!(matches!(error, BeginError::Busy(_)), "{error}");
        }
        let byte = self.read(at);
        ticket.add_source(guest, &[byte]).unwrap();
        let plain = 0x1000 | usize::from(byte);
        ticket.commit(Entry::with_check(plain, plain | CHECKED), 0).unwrap();
        let block = Block { at, byte };
        assert!(self.is_reachable(block), "{}", self.mode);
        block
    }

    /// Whether the dispatcher can enter the block, which may compare its byte first.
    pub(crate) fn is_reachable(&self, block: Block) -> bool {
        let Some(entry) = self.lookup(block.at) else { return false };
        if entry & CHECKED != 0 && self.read(block.at) != block.byte {
            self.cache.remove(Key::new(block.at));
            return false;
        }
        true
    }

    /// Whether pages were self-checking and `holds` is true. On a self-checking page a block that
    /// compares its byte may be left, and a block may have been killed that otherwise lives.
    fn is_checked_and(&self, holds: bool) -> bool {
        self.cache.stats().self_checking > 0 && holds
    }

    /// The guest's bytes, read by the host.
    pub(crate) fn bytes(&self, page: usize, offset: usize, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.memory.read(page * page_bytes() + offset, &mut bytes).unwrap();
        bytes
    }

    /// The embedder's announcement before the kernel writes for the guest.
    pub(crate) fn prepare(&self, page: usize, offset: usize, len: usize) -> impl Sized {
        self.cache.tracker().prepare_kernel_write(self.guest(page, offset), len as u64).unwrap()
    }

    /// Its announcement before a write that no mode learns of.
    pub(crate) fn prepare_unseen(&self, page: usize, offset: usize, len: usize) -> impl Sized {
        self.cache.tracker().prepare_unseen_write(self.guest(page, offset), len as u64).unwrap()
    }

    /// Its announcement after such a write.
    pub(crate) fn invalidate(&self, page: usize, offset: usize, len: usize) {
        self.cache.tracker().invalidate(self.guest(page, offset), len as u64).unwrap();
    }

    /// Whether the kernel's own writes need no announcement here.
    pub(crate) fn kernel_writes_pass(&self) -> bool {
        match self.mode {
            Mode::Thread => Probe::of_this_process().has(Facility::KernelFaults),
            Mode::Deferred | Mode::None => true,
            _ => false,
        }
    }

    /// The write was learned of, as the mode promises; without tracking it was not.
    pub(crate) fn expect_learned(&self, block: Block) {
        if self.mode == Mode::None {
            self.expect_reachable(block);
        } else {
            self.expect_dead(block);
        }
    }

    /// It cannot be reached, in any mode: an announcement killed it. If pages were self-checking,
    /// it can be reached while its byte is unchanged.
    pub(crate) fn expect_dead(&self, block: Block) {
        self.announce();
        let is_right = !self.is_reachable(block) || self.is_checked_and(self.read(block.at) == block.byte);
        assert!(is_right, "{}: the block of {:#x} is stale", self.mode, block.at);
    }

    /// It can be reached: nothing happened to it, or the write was not reported. If pages were
    /// self-checking, the block may have found by itself that its byte differs.
    pub(crate) fn expect_reachable(&self, block: Block) {
        self.announce();
        let is_there = self.is_reachable(block) || self.is_checked_and(self.read(block.at) != block.byte);
        assert!(is_there, "{}: the block of {:#x} is gone", self.mode, block.at);
    }

    /// Translates anew from the present bytes, and checks that a store is learned of.
    pub(crate) fn expect_tracked(&self, page: usize, offset: usize) {
        let block = self.block(page, offset);
        let GuestAddr(at) = self.guest(page, offset);
        self.store(at, self.read(at).wrapping_add(1));
        self.expect_learned(block);
    }
}
