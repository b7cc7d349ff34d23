//! The memory and the blocks that all threads of a row share, and each thread's work on them.

use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use codewarden::addr::{GuestAddr, PageSize};
use codewarden::guest_memory::GuestMemory;
use codewarden::policy::Plain;
use codewarden::protection::Mode;
use codewarden::{CodeCache, EntryStubs, Key, VCpu};

use super::at_once::Worker;
use super::extent::Extent;
use crate::floor::BareFaults;
use crate::library::add_region;
use crate::lookup::{FRONT_BLOCKS, shuffled};
use crate::side::Who;

/// Bytes between two blocks of the shared table.
const BLOCK_BYTES: u64 = 32;

/// The part of a page's cycle that is timed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Part {
    /// The pages are protected, and a block is committed on each.
    Commit,
    /// A store to each of the pages.
    Store,
}

/// A cache with one region, and bare protection of as much memory: the blocks that are looked up,
/// then the pages of each thread.
#[derive(Debug)]
pub(super) struct Ground {
    cache: CodeCache<()>,
    bare: BareFaults,
    page: PageSize,
    extent: Extent,
    /// In the order of the lookups.
    front_keys: Vec<u64>,
    shared_keys: Vec<u64>,
    /// The first page that belongs to a thread.
    own: usize,
    /// The library's stores to protected pages so far.
    stores: AtomicU64,
    // Dropped last.
    memory: GuestMemory,
    bare_memory: GuestMemory,
}

impl Ground {
    /// In `mode`, with `blocks` blocks in the shared table besides those of the front, for `threads`
    /// threads.
    pub(super) fn new(mode: Mode, blocks: usize, threads: usize, extent: Extent) -> Self {
        let page = PageSize::host();
        let own = (blocks.max(FRONT_BLOCKS) * BLOCK_BYTES as usize).next_multiple_of(page.bytes());
        // Every second page: for mprotect, each is a VMA of its own.
        let len = own + threads * extent.pages * 2 * page.bytes();
        let [memory, bare_memory] = [(); 2].map(|()| {
            let memory = GuestMemory::anonymous(len).expect("address space");
            (0..len).step_by(page.bytes()).for_each(|at| memory.write(at, &[1]).expect("inside the memory"));
            memory
        });
        let cache = CodeCache::with_policy(EntryStubs::NOT_CODE, Arc::new(Plain)).expect("the stubs differ");
        add_region(&cache, GuestAddr(0), &memory, mode);
        let (front_keys, shared_keys) = (shuffled(FRONT_BLOCKS, 4, 1), shuffled(blocks, BLOCK_BYTES, 2));
        let (bare, stores) = (BareFaults::new(mode, bare_memory.range(), page), AtomicU64::new(0));
        let ground = Self { cache, bare, page, extent, front_keys, shared_keys, own, stores, memory, bare_memory };
        let in_front = ground.front_keys.iter().copied();
        in_front.chain(shuffled(blocks, BLOCK_BYTES, 3)).for_each(|key| ground.commit(key, key as usize));
        ground
    }

    fn commit(&self, key: u64, page: usize) {
        let mut ticket = self.cache.begin(Key::new(key));
        ticket.claim(GuestAddr(page as u64)).expect("no other thread writes to the page");
        ticket.commit(key as usize + 0x1000, ()).expect("no other thread writes to the page");
    }

    /// Stores to page `at`, which is protected. Successive rounds store to different bytes: a byte
    /// that faults again and again makes its page hot.
    fn store(&self, memory: &GuestMemory, at: usize, round: usize) {
        memory.write(at + round * 8 % self.page.bytes(), &[2]).expect("inside the memory");
    }

    /// Each of the pages of `thread`, as an offset, which is also the guest's address.
    fn own_pages(&self, thread: usize) -> impl Iterator<Item = usize> {
        let pages = self.extent.pages;
        (0..pages).map(move |index| self.own + (thread * pages + index) * 2 * self.page.bytes())
    }

    fn first_page(&self, thread: usize) -> usize {
        self.own_pages(thread).next().expect("a thread has pages")
    }

    /// Looks up blocks, in the vCPU's front or in the shared table.
    pub(super) fn lookups(&self, thread: usize, is_shared: bool) -> Lookups<'_> {
        let keys = if is_shared { &self.shared_keys } else { &self.front_keys };
        Lookups { vcpu: self.cache.attach_vcpu(), keys, next: thread * 1000 % keys.len(), is_shared, ground: self }
    }

    pub(super) fn extent(&self) -> Extent {
        self.extent
    }

    /// The handler of the bare pages, until the result is dropped.
    pub(super) fn handle_bare(&self) -> impl Sized {
        self.bare.handle()
    }

    /// Checks that each of the stores to a protected page was a fault.
    ///
    /// # Panics
    ///
    /// If one was not: then the figures mean nothing.
    pub(super) fn check(&self, threads: usize) {
        assert_eq!(self.cache.stats().faults, self.stores.load(Ordering::Relaxed), "faults");
        let is_dead = (0..threads).flat_map(|thread| self.own_pages(thread)).all(|at| self.bare.is_dead(at));
        assert!(is_dead, "the bare blocks died");
    }
}

/// An empty loop.
pub(super) struct Empty(pub(super) Extent);

impl Worker for Empty {
    fn work(&mut self) {
        (0..self.0.lookups).for_each(|round| _ = black_box(round));
    }
}

/// See [`Ground::lookups`].
pub(super) struct Lookups<'a> {
    vcpu: VCpu<()>,
    keys: &'a [u64],
    /// Threads do not look for one block at a time.
    next: usize,
    is_shared: bool,
    ground: &'a Ground,
}

impl Worker for Lookups<'_> {
    fn work(&mut self) {
        let keys = self.keys.iter().cycle().skip(self.next).take(self.ground.extent.lookups);
        let mut pin = self.vcpu.pin();
        for &key in keys {
            let key = Key::new(black_box(key));
            let found = if self.is_shared { pin.lookup_shared(key) } else { pin.lookup(key) };
            assert!(found.is_some(), "the block is reachable");
        }
    }
}

/// Commits one thread's blocks, on its own pages or on a page of all threads. The pages are protected
/// already.
pub(super) struct Commits<'a> {
    pub(super) ground: &'a Ground,
    pub(super) thread: usize,
    pub(super) is_one_page: bool,
}

impl Worker for Commits<'_> {
    fn work(&mut self) {
        let one = self.ground.first_page(0);
        for _ in 0..COMMITS_OF_A_PAGE {
            for own in self.ground.own_pages(self.thread) {
                self.ground.commit(own as u64, if self.is_one_page { one } else { own });
            }
        }
    }
}

/// A block is committed on each of a thread's own pages, then each is stored to.
pub(super) struct Pages<'a> {
    pub(super) ground: &'a Ground,
    pub(super) thread: usize,
    pub(super) who: Who,
    /// The timed part.
    pub(super) part: Part,
    round: usize,
    is_protected: bool,
}

impl<'a> Pages<'a> {
    pub(super) fn new(ground: &'a Ground, thread: usize, who: Who, part: Part) -> Self {
        Self { ground, thread, who, part, round: 0, is_protected: false }
    }

    fn commit(&mut self) {
        let ground = self.ground;
        match self.who {
            Who::Library => ground.own_pages(self.thread).for_each(|at| ground.commit(at as u64, at)),
            Who::Floor => ground.own_pages(self.thread).for_each(|at| ground.bare.commit(at)),
        }
        self.is_protected = true;
    }

    fn store(&mut self) {
        let Self { ground, thread, who, round, .. } = *self;
        match who {
            Who::Library => {
                ground.own_pages(thread).for_each(|at| ground.store(&ground.memory, at, round));
                ground.stores.fetch_add(ground.extent.pages as u64, Ordering::Relaxed);
            }
            Who::Floor => ground.own_pages(thread).for_each(|at| ground.store(&ground.bare_memory, at, round)),
        }
        (self.round, self.is_protected) = (round + 1, false);
    }
}

impl Worker for Pages<'_> {
    fn prepare(&mut self) {
        match self.part {
            Part::Store => self.commit(),
            Part::Commit if self.is_protected => self.store(),
            Part::Commit => {}
        }
    }

    fn work(&mut self) {
        match self.part {
            Part::Commit => self.commit(),
            Part::Store => self.store(),
        }
    }
}

impl Drop for Pages<'_> {
    /// The next row finds open pages.
    fn drop(&mut self) {
        if self.is_protected {
            self.store();
        }
    }
}

/// A block is committed on one page, which is then stored to, again and again.
pub(super) struct Flaps<'a> {
    pub(super) ground: &'a Ground,
    pub(super) round: usize,
}

impl Worker for Flaps<'_> {
    fn work(&mut self) {
        let page = self.ground.first_page(0);
        for _ in 0..self.ground.extent.pages {
            self.ground.commit(page as u64, page);
            self.ground.store(&self.ground.memory, page, self.round);
            self.round += 1;
        }
        self.ground.stores.fetch_add(self.ground.extent.pages as u64, Ordering::Relaxed);
    }
}

/// Commits of each page in a phase, if they need no system call.
pub(super) const COMMITS_OF_A_PAGE: usize = 8;
