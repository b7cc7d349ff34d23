//! The small embedder that the tests of blocks share: one region, blocks made of
//! single bytes, each mode that is available here.
//!
//! # Safety
//!
//! Each region's memory outlives its cache.
#![allow(unsafe_code)]

mod facilities;
mod modes;
mod region;

use codewarden::addr::GuestAddr;
use codewarden::guest_memory::GuestMemory;
use codewarden::protection::{Facility, Mode};
use codewarden::tracker::BeginError;
use codewarden::{CodeCache, CommitError, EntryStubs, Key};

pub(crate) use facilities::*;
pub(crate) use modes::*;
pub(crate) use region::*;

pub(crate) struct Fixture {
    pub(crate) cache: CodeCache<u32>,
    /// Dropped after the cache.
    pub(crate) memory: GuestMemory,
    pub(crate) mode: Mode,
}

impl Fixture {
    pub(crate) fn new(mode: Mode, memory: GuestMemory) -> Self {
        let cache = CodeCache::new(EntryStubs::NOT_CODE).unwrap();
        // SAFETY: fields are dropped in order: the cache before the memory.
        unsafe { cache.tracker().add_region(region(GUEST, &memory, mode)) }.unwrap();
        Self { cache, memory, mode }
    }

    pub(crate) fn read(&self, guest: u64) -> u8 {
        let mut byte = [0];
        self.memory.read((guest - GUEST) as usize, &mut byte).unwrap();
        byte[0]
    }

    pub(crate) fn store(&self, guest: u64, value: u8) {
        self.memory.write((guest - GUEST) as usize, &[value]).unwrap();
    }

    /// "Translates" the byte at each of `bytes`: the entry is made of them.
    pub(crate) fn translate(&self, key: u64, bytes: &[u64]) -> Result<usize, CommitError> {
        let mut ticket = self.cache.begin(Key::new(key));
        let mut entry = 0x10;
        for &byte in bytes {
            // In thread mode the store may go on a moment before the un-protect is over.
            while let Err(error) = ticket.claim(GuestAddr(byte)) {
                assert!(matches!(error, BeginError::Busy(_)), "{error}");
            }
            entry = entry << 8 | usize::from(self.read(byte));
        }
        ticket.commit(entry, 0).map(|()| entry)
    }

    pub(crate) fn lookup(&self, key: u64) -> Option<usize> {
        self.cache.attach_vcpu().pin().lookup(Key::new(key))
    }

    /// The guest's announcement of its writes, if the mode needs one.
    pub(crate) fn announce(&self) {
        if self.mode == Mode::Deferred {
            self.cache.tracker().sync().unwrap();
        }
    }
}

/// Anonymous memory, and a memfd if `mode` can track it here.
pub(crate) fn memories(mode: Mode) -> impl Iterator<Item = GuestMemory> {
    let len = PAGES * page_bytes();
    let memfd = has_or_skips(mode, Facility::WpShmem).then(|| GuestMemory::memfd(len));
    [Some(GuestMemory::anonymous(len)), memfd].into_iter().flatten().map(Result::unwrap)
}

/// Runs `test` in each of `modes`, over anonymous and memfd memory.
pub(crate) fn in_modes(modes: impl IntoIterator<Item = Mode>, test: impl Fn(&Fixture)) {
    for mode in modes {
        for memory in memories(mode) {
            println!("{mode}");
            test(&Fixture::new(mode, memory));
        }
    }
}
