//! The stub translator, and a dispatcher over it: the smallest possible emulator, the same
//! for every side.
//!
//! A block is made from [`BLOCK_BYTES`] guest bytes and computes their [`meaning`]. The translator
//! computes it once, and the block's code returns it. So a stale block is noticed by its result.
//! The self-checking entry of a block is its address with the lowest bit set. The dispatcher
//! compares the bytes before it enters a block by that entry.
//!
//! # Safety
//!
//! An entry is the address of a `Code` that the block owns as its payload. It is used only
//! under the pin of its lookup, which keeps the `Code` alive.
#![allow(unsafe_code)]

use std::sync::Arc;

use codewarden::addr::{GuestAddr, PageSize};
use codewarden::guest_memory::GuestMemory;
use codewarden::policy::{Adaptive, Plain, Policy};
use codewarden::protection::Mode;
use codewarden::tracker::BeginError;
use codewarden::{CodeCache, Entry, EntryStubs, Key, Stats, VCpu};

use super::side::Side;
use crate::library::add_region;

/// The bytes of a block: eight instructions.
pub const BLOCK_BYTES: usize = 32;

/// The guest's address of its memory.
const GUEST: u64 = 0x4000_0000;

/// The bytes of a block.
pub type Source = [u8; BLOCK_BYTES];

/// The result of the code of these bytes. Every byte counts.
pub fn meaning(source: &Source) -> u64 {
    let words = source.chunks_exact(8).map(|word| u64::from_le_bytes(word.try_into().expect("eight bytes")));
    words.fold(0, |sum: u64, word| sum.rotate_left(7).wrapping_add(word))
}

/// Translated code.
#[derive(Debug)]
#[repr(align(8))]
struct Code {
    source: Source,
    offset: usize,
    result: u64,
    run: fn(&Code) -> u64,
}

impl Code {
    fn translate(source: Source, offset: usize) -> Box<Self> {
        Box::new(Self { source, offset, result: meaning(&source), run: |code| code.result })
    }
}

/// One guest: its memory, and the cache of its translations.
#[derive(Debug)]
pub struct Machine {
    // Dropped before the memory that it tracks.
    cache: CodeCache<Box<Code>>,
    memory: GuestMemory,
    page: PageSize,
    side: Side,
}

impl Machine {
    /// `pages` populated pages, tracked as `side` says.
    pub fn new(side: Side, pages: usize) -> Self {
        let page = PageSize::host();
        let memory = GuestMemory::anonymous(pages * page.bytes()).expect("address space");
        (0..pages).for_each(|index| memory.write(index * page.bytes(), &[1]).expect("inside the memory"));
        let policy: Arc<dyn Policy> = match side {
            Side::Plain | Side::Off => Arc::new(Plain),
            Side::Adaptive(_) => Arc::new(Adaptive::with_checks()),
        };
        let cache = CodeCache::with_policy(EntryStubs::NOT_CODE, policy).expect("the stubs differ");
        add_region(&cache, GuestAddr(GUEST), &memory, side.mode());
        Self { cache, memory, page, side }
    }

    /// A thread of the guest.
    pub fn cpu(&self) -> Cpu<'_> {
        Cpu { machine: self, vcpu: self.cache.attach_vcpu(), interpreted: 0 }
    }

    /// The side that tracks its writes.
    pub fn side(&self) -> Side {
        self.side
    }

    /// The size of its pages.
    pub fn page_bytes(&self) -> usize {
        self.page.bytes()
    }

    /// The counters of its tracking.
    pub fn stats(&self) -> Stats {
        self.cache.stats()
    }

    /// A store of the guest's.
    pub fn store(&self, offset: usize, bytes: &[u8]) {
        self.memory.write(offset, bytes).expect("inside the memory");
    }

    /// The guest announces that it wrote code, as its program does after the writes. With no
    /// tracking, this removes the blocks that begin at `blocks` by hand. In deferred mode it
    /// harvests the pages of these blocks. In every other mode it does nothing.
    pub fn announce(&self, pages: std::ops::Range<usize>, blocks: impl Iterator<Item = usize>) {
        match self.side.mode() {
            Mode::None => blocks.for_each(|offset| self.cache.remove(self.key(offset))),
            Mode::Deferred => {
                let len_bytes = pages.len() * self.page.bytes();
                let start = self.guest(pages.start * self.page.bytes());
                self.cache.tracker().sync_range(start, len_bytes as u64).expect("the region can be harvested");
            }
            _ => {}
        }
    }

    /// The work of an embedder's timer about ten times a second, on every side.
    pub fn maintain(&self) {
        self.cache.tracker().maintain();
    }

    fn guest(&self, offset: usize) -> GuestAddr {
        GuestAddr(GUEST + offset as u64)
    }

    fn key(&self, offset: usize) -> Key {
        Key::from(self.guest(offset))
    }

    fn source(&self, offset: usize) -> Source {
        let mut source = [0; BLOCK_BYTES];
        self.memory.read(offset, &mut source).expect("inside the memory");
        source
    }

    /// Gives whether there is a block now; if not, a write is in the way.
    fn translate(&self, offset: usize) -> bool {
        let guest = self.guest(offset);
        let mut ticket = self.cache.begin(self.key(offset));
        match ticket.claim(guest) {
            Ok(_) => {}
            Err(BeginError::Busy(_)) => return false,
            Err(error) => panic!("{error}"),
        }
        let source = self.source(offset);
        ticket.add_source(guest, &source).expect("the page is claimed");
        let ticket = match ticket.revive() {
            Ok(Some(ticket)) => ticket,
            Ok(None) => return true,
            Err(_) => return false,
        };
        let code = Code::translate(source, offset);
        let plain = (&raw const *code).addr();
        ticket.commit(Entry::with_check(plain, plain | 1), code).is_ok()
    }

    /// Runs the block behind `entry`, unless it is the self-checking entry and the bytes differ.
    ///
    /// # Safety
    ///
    /// The pin of its lookup still exists.
    unsafe fn enter(&self, entry: usize) -> Option<u64> {
        // SAFETY: the module's head.
        let code = unsafe { &*((entry & !1) as *const Code) };
        if entry & 1 == 1 && self.source(code.offset) != code.source {
            return None;
        }
        Some((code.run)(code))
    }
}

/// A thread of the guest: see [`Machine::cpu`].
#[derive(Debug)]
pub struct Cpu<'m> {
    machine: &'m Machine,
    vcpu: VCpu<Box<Code>>,
    /// Blocks that ran without a translation, as their page was busy.
    pub interpreted: u64,
}

impl<'m> Cpu<'m> {
    /// The guest of this thread.
    pub fn machine(&self) -> &'m Machine {
        self.machine
    }

    /// Runs the code at `offset`, and translates it first if necessary.
    pub fn run(&mut self, offset: usize) -> u64 {
        let machine = self.machine;
        let key = machine.key(offset);
        loop {
            let mut pin = self.vcpu.pin();
            if let Some(entry) = pin.lookup(key) {
                // SAFETY: under the pin.
                if let Some(result) = unsafe { machine.enter(entry) } {
                    return result;
                }
                machine.cache.remove(key);
            }
            drop(pin);
            if !machine.translate(offset) {
                self.interpreted += 1;
                return meaning(&machine.source(offset));
            }
        }
    }
}
