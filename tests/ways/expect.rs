//! What a test of a way expects of a block.
//!
//! # Safety
//!
//! Pointers to guest bytes are made here and used by system calls and by single
//! stores, inside the fixture's memory.
#![allow(unsafe_code)]

use codewarden::addr::GuestAddr;
use codewarden::protection::{Facility, Mode, Probe};

use crate::support::{Fixture, GUEST, in_modes, page_bytes, tracking_modes};

/// Runs `way` in every mode, `none` included, over anonymous and memfd memory.
pub(crate) fn in_every_mode(way: impl Fn(&Fixture)) {
    in_modes(tracking_modes().into_iter().chain([Mode::None]), way);
}

/// A block that was made of one byte, which its key is the address of.
#[derive(Clone, Copy)]
pub(crate) struct Block(u64);

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
        let GuestAddr(key) = self.guest(page, offset);
        let entry = self.translate(key, &[key]).unwrap();
        assert_eq!(self.lookup(key), Some(entry), "{}", self.mode);
        Block(key)
    }

    /// The guest's bytes, read as the host does.
    pub(crate) fn bytes(&self, page: usize, offset: usize, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.memory.read(page * page_bytes() + offset, &mut bytes).unwrap();
        bytes
    }

    /// What the embedder does before the kernel writes for the guest.
    pub(crate) fn prepare(&self, page: usize, offset: usize, len: usize) -> impl Sized {
        self.cache.tracker().prepare_kernel_write(self.guest(page, offset), len as u64).unwrap()
    }

    /// What it does before somebody writes of whom no mode learns.
    pub(crate) fn prepare_unseen(&self, page: usize, offset: usize, len: usize) -> impl Sized {
        self.cache.tracker().prepare_unseen_write(self.guest(page, offset), len as u64).unwrap()
    }

    /// What it does after it.
    pub(crate) fn invalidate(&self, page: usize, offset: usize, len: usize) {
        self.cache.tracker().invalidate(self.guest(page, offset), len as u64).unwrap();
    }

    /// Whether the kernel's own writes need not be announced here.
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

    /// It cannot be reached, in any mode: an announcement killed it.
    pub(crate) fn expect_dead(&self, Block(key): Block) {
        self.announce();
        assert_eq!(self.lookup(key), None, "{}: a block of {key:#x} is stale", self.mode);
    }

    /// Whether it can be reached just now.
    pub(crate) fn is_reachable(&self, Block(key): Block) -> bool {
        self.lookup(key).is_some()
    }

    /// It can be reached: nothing happened to it, or nobody was told.
    pub(crate) fn expect_reachable(&self, Block(key): Block) {
        self.announce();
        assert!(self.lookup(key).is_some(), "{}: the block of {key:#x} is gone", self.mode);
    }

    /// Translates anew, from the bytes of now, and sees that a store is learned of.
    pub(crate) fn expect_tracked(&self, page: usize, offset: usize) {
        let block = self.block(page, offset);
        let GuestAddr(at) = self.guest(page, offset);
        self.store(at, self.read(at).wrapping_add(1));
        self.expect_learned(block);
    }
}
