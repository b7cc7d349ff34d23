//! The library's side: a code cache on one region, as an emulator uses it. It runs under
//! the plain policy, because these rows measure one page at a time.
//!
//! # Safety
//!
//! The region's memory is dropped after the cache.
#![allow(unsafe_code)]

use std::sync::Arc;
use std::time::{Duration, Instant};

use codewarden::addr::GuestAddr;
use codewarden::guest_memory::GuestMemory;
use codewarden::policy::Plain;
use codewarden::protection::Mode;
use codewarden::tracker::{BeginError, RegionOptions};
use codewarden::{Busy, CodeCache, EntryStubs, Key, Payload, Ticket, VCpu};

use crate::ground::{Company, Ground, PAGES, Setting};
use crate::side::{Case, Side};

/// The guest's address of its memory.
const GUEST: u64 = 0x4000_0000;

/// Tracks `memory` at `guest`; the callers drop the cache before the memory.
pub(crate) fn add_region<P: Payload>(cache: &CodeCache<P>, guest: GuestAddr, memory: &GuestMemory, mode: Mode) {
    add(cache, RegionOptions::new(guest, memory.range(), mode));
}

fn add<P: Payload>(cache: &CodeCache<P>, options: RegionOptions) {
    // SAFETY: the guest memory has no other user, and outlives the cache.
    unsafe { cache.tracker().add_region(options) }.expect("a mode that can be had here");
}

/// How many writes were learned of.
pub(crate) fn learned(cache: &CodeCache<()>) -> u64 {
    let stats = cache.stats();
    stats.faults + stats.pages_harvested
}

/// Checks that exactly `wanted` writes were learned of until now.
pub(crate) fn check_learned(cache: &CodeCache<()>, wanted: u64) {
    let since = Instant::now();
    // A handler thread counts after it has let the store go on.
    while learned(cache) < wanted && since.elapsed() < Duration::from_secs(1) {}
    assert_eq!(learned(cache), wanted, "writes that were learned of");
}

/// The library's side: see the module.
#[derive(Debug)]
pub struct Library {
    mode: Mode,
    // Dropped in this order: the memory last.
    vcpu: VCpu<()>,
    cache: CodeCache<()>,
    ground: Ground,
}

impl Library {
    /// A cache with one region in `mode`.
    pub fn new(mode: Mode, setting: Setting) -> Self {
        let ground = Ground::new(setting);
        let cache = CodeCache::with_policy(EntryStubs::NOT_CODE, Arc::new(Plain)).expect("the stubs differ");
        let explicit_fetch = setting.company == Company::Pinned { explicit_fetch: true };
        let options = RegionOptions::new(GuestAddr(GUEST), ground.memory().range(), mode);
        add(&cache, options.with_explicit_fetch(explicit_fetch));
        Self { mode, vcpu: cache.attach_vcpu(), cache, ground }
    }

    fn guest(&self, index: usize) -> GuestAddr {
        GuestAddr(GUEST + self.ground.offset(index) as u64)
    }

    fn key(&self, index: usize) -> Key {
        Key::from(self.guest(index))
    }

    fn entry(index: usize) -> usize {
        0x1000 + index
    }

    /// In thread mode a store goes on before the handler is done with its page,
    /// so a claim may have to wait for it.
    fn claim(&self, index: usize) -> Ticket<()> {
        let mut ticket = self.cache.begin(self.key(index));
        loop {
            match ticket.claim(self.guest(index)) {
                Ok(_) => return ticket,
                Err(BeginError::Busy(Busy::Hot)) => panic!("the page is hot: the claim is not what is measured"),
                Err(BeginError::Busy(_)) => std::hint::spin_loop(),
                Err(error) => panic!("{error}"),
            }
        }
    }

    fn commit(&self, index: usize) {
        self.claim(index).commit(Self::entry(index), ()).expect("nobody writes");
    }

    fn commit_all(&self) {
        (0..PAGES).for_each(|index| self.commit(index));
    }

    /// Makes every page writable and written, with no block left.
    fn open_all(&mut self) {
        let len = self.ground.memory().len() as u64;
        let change = self.cache.tracker().change_mapping(GuestAddr(GUEST), len).expect("the range is tracked");
        self.ground.next_round();
        self.ground.store_all();
        drop(change);
        self.cache.collect();
    }

    fn lookup(&mut self, index: usize) -> Option<usize> {
        let key = self.key(index);
        self.vcpu.pin().lookup(key)
    }

    fn announce(&self) {
        self.cache.tracker().sync().expect("the region can be harvested");
    }

    /// Checks that the batch's pages were protected: a store to each is learned of.
    fn check_protected(&mut self) {
        let before = learned(&self.cache);
        self.ground.next_round();
        self.ground.store_all();
        self.announce();
        let wanted = if self.mode == Mode::None { 0 } else { PAGES as u64 };
        check_learned(&self.cache, before + wanted);
    }

    /// Checks that every block can be reached if `alive`, else none.
    fn check_blocks(&mut self, alive: bool) {
        for index in 0..PAGES {
            assert_eq!(self.lookup(index), alive.then_some(Self::entry(index)), "{}: page {index}", self.mode);
        }
    }

    fn run_protect(&mut self) -> Duration {
        self.open_all();
        let start = Instant::now();
        for index in 0..PAGES {
            drop(self.claim(index));
        }
        let time = start.elapsed();
        self.check_protected();
        time
    }

    fn run_commit(&mut self) -> Duration {
        self.open_all();
        let start = Instant::now();
        self.commit_all();
        let time = start.elapsed();
        self.check_blocks(true);
        self.check_protected();
        self.check_blocks(self.mode == Mode::None);
        time
    }

    fn run_fault(&mut self) -> Duration {
        self.open_all();
        self.commit_all();
        let links: Vec<_> = (0..PAGES).map(|index| self.cache.link(self.key(index)).expect("a key")).collect();
        assert!(links.iter().enumerate().all(|(index, link)| link.cell().load() == Self::entry(index)));
        let time = self.ground.time_stores();
        self.announce();
        let dead = links.iter().filter(|link| link.cell().load() == EntryStubs::NOT_CODE.dead).count();
        assert_eq!(dead, if self.mode == Mode::None { 0 } else { PAGES }, "{}: links cut", self.mode);
        time
    }

    fn run_cycle(&mut self) -> Duration {
        self.ground.next_round();
        let page_bytes = self.cache.tracker().page_size().bytes() as u64;
        let mut unreachable = 0;
        let start = Instant::now();
        for index in 0..PAGES {
            self.commit(index);
            self.ground.store(index);
            if self.mode == Mode::Deferred {
                self.cache.tracker().sync_range(self.guest(index), page_bytes).expect("can be harvested");
            }
            unreachable += usize::from(self.lookup(index).is_none());
        }
        let time = start.elapsed();
        assert_eq!(unreachable, if self.mode == Mode::None { 0 } else { PAGES }, "{}: blocks dead", self.mode);
        time
    }

    fn run_sync(&mut self) -> Duration {
        self.open_all();
        self.commit_all();
        self.ground.store_all();
        let start = Instant::now();
        self.announce();
        let time = start.elapsed();
        self.check_blocks(false);
        time
    }
}

impl Side for Library {
    fn vcpu(&self) -> Option<VCpu<()>> {
        Some(self.cache.attach_vcpu())
    }

    fn run(&mut self, case: Case) -> Duration {
        self.ground.next_round();
        match case {
            Case::Protect => self.run_protect(),
            Case::Commit => self.run_commit(),
            Case::Fault => self.run_fault(),
            Case::Cycle => self.run_cycle(),
            Case::Sync => self.run_sync(),
        }
    }
}
