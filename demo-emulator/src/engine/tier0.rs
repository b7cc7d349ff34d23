//! Tier 0: decoded blocks. codewarden's cache holds them like any other translation, as threaded
//! code ([`threaded`](super::threaded)). So code that runs a few times need not be compiled.
//!
//! # Exits
//!
//! A block remembers the first two places that it goes on to, each by a link to its entry cell. So
//! most blocks are found without a lookup. The link leads to no block if the next one was killed,
//! or removed because it is compiled now: then the dispatcher looks for it.
//!
//! # Entries
//!
//! A block's entry is its address. If its page is self-checking, the lowest bit of the entry is
//! set, and the dispatcher calls [`DecodedBlock::admits`] first. If a block is overwritten about as
//! often as it runs, decoding it afresh each time is useless. Then the failed check leaves the
//! block as it is several times, and the interpreter runs the guest's bytes.
//!
//! # Safety
//!
//! A block's stale flag lives as long as its payload, which holds the decoded block. The address in
//! an entry is a block's, and the reader's pin keeps that block's payload.
#![allow(unsafe_code)]

use std::iter;
use std::ptr;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use codewarden::{Entry, Link};

use super::source::Source;
use super::threaded::{End, OwnBytes, ThreadedBlock};
use crate::hart::Hart;
use crate::memory::Window;
use crate::riscv::decode::decode;
use crate::riscv::inst::Inst;
use crate::translate::OwnStores;

/// The bit of an entry that asks for a check.
const CHECK: usize = 1;

/// Failed checks of a block that is overwritten all the time, for each time that it is decoded
/// afresh.
const FAILURES: u32 = 8;

/// Runs between two failed checks that make decoding worthwhile.
const RUNS_WORTH_DECODING: u32 = 2;

/// Runs of a block before it remembers the places that it goes on to.
const RUNS_BEFORE_LINKS: u32 = 4;

/// A place that a block goes on to.
#[derive(Debug)]
struct Exit {
    pc: u64,
    link: Link,
}

/// A decoded block. Each run reads the first fields, which are in one or two lines of the
/// processor's cache.
#[derive(Debug)]
#[repr(C, align(16))]
pub struct DecodedBlock {
    code: ThreadedBlock,
    /// How often it ran.
    runs: AtomicU32,
    /// Runs since its check failed.
    admitted: AtomicU32,
    exits: [OnceLock<Exit>; 2],
    failed: AtomicU32,
    bytes: Box<[u8]>,
}

// SAFETY: the flag is an atomic that lives as long as the block.
unsafe impl Send for DecodedBlock {}
// SAFETY: as above.
unsafe impl Sync for DecodedBlock {}

/// Whether a block may run.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Admission {
    /// It may.
    Run,
    /// Its bytes have changed: decode it afresh.
    Decode,
    /// Its bytes change all the time: let the interpreter run them.
    Interpret,
}

impl DecodedBlock {
    /// A block of the code at `start`.
    pub(super) fn new(start: u64, source: &Source, own_stores: OwnStores) -> Self {
        let [runs, admitted, failed] = [(); 3].map(|()| AtomicU32::new(0));
        let own = OwnBytes { start, len_bytes: source.bytes.len() as u64, own_stores };
        let (code, bytes) = (ThreadedBlock::new(&source.insts, own), source.bytes.as_slice().into());
        Self { code, bytes, exits: [const { OnceLock::new() }; 2], runs, admitted, failed }
    }

    /// Its size in bytes.
    pub(super) fn owned_bytes(&self) -> usize {
        size_of::<Self>() + self.code.code_bytes() + self.bytes.len()
    }

    /// Its instructions, decoded again.
    pub(super) fn insts(&self) -> impl Iterator<Item = Inst> {
        let mut rest = &*self.bytes;
        iter::from_fn(move || {
            let low = rest.first_chunk().copied().map(u16::from_le_bytes)?;
            let high = rest.get(2..4).map_or(0, |bytes| u16::from_le_bytes([bytes[0], bytes[1]]));
            let inst = decode(u32::from(high) << 16 | u32::from(low));
            rest = &rest[usize::from(inst.len)..];
            Some(inst)
        })
    }

    /// Runs it on `hart`, which is at its start.
    #[inline]
    pub(super) fn run(&self, hart: &mut Hart, window: &Window) -> End {
        self.code.run(hart, window)
    }

    /// The link to the decoded block at `pc`, which `make` makes, if this block goes on there often
    /// enough.
    #[inline]
    pub(super) fn exit(&self, pc: u64, make: impl FnOnce() -> Option<Link>) -> Option<&Link> {
        for exit in &self.exits {
            match exit.get() {
                Some(exit) if exit.pc == pc => return Some(&exit.link),
                Some(_) => {}
                None => return self.new_exit(exit, pc, make),
            }
        }
        None
    }

    #[cold]
    fn new_exit<'a>(&self, exit: &'a OnceLock<Exit>, pc: u64, make: impl FnOnce() -> Option<Link>) -> Option<&'a Link> {
        if self.runs.load(Ordering::Relaxed) < RUNS_BEFORE_LINKS {
            return None;
        }
        let link = make()?;
        let exit = exit.get_or_init(|| Exit { pc, link });
        // Another hart may have gone elsewhere.
        (exit.pc == pc).then_some(&exit.link)
    }

    /// Its entry in the cache.
    pub(super) fn entry(&self) -> Entry {
        let at = ptr::from_ref(self) as usize;
        Entry::with_check(at, at | CHECK)
    }

    /// The block of an entry, and whether the entry asks for a check.
    ///
    /// # Safety
    ///
    /// The entry's block is a decoded block that is alive for as long as `'a`.
    pub(super) unsafe fn of_entry<'a>(entry: usize) -> (&'a Self, bool) {
        // SAFETY: by this function's contract.
        (unsafe { &*((entry & !CHECK) as *const Self) }, entry & CHECK != 0)
    }

    /// Counts a run; returns the count before it.
    pub(super) fn count_run(&self) -> u32 {
        count(&self.runs)
    }

    /// How often it ran.
    pub(super) fn runs(&self) -> u32 {
        self.runs.load(Ordering::Relaxed)
    }

    /// Compares the guest's bytes with those that the block was made from.
    pub(super) fn admits(&self, window: &Window) -> Admission {
        // If the bytes can no longer be read, the decoder finds the reason.
        if window.has_code(self.code.own().start, &self.bytes).unwrap_or(false) {
            count(&self.admitted);
            return Admission::Run;
        }
        let admitted = self.admitted.swap(0, Ordering::Relaxed);
        // If its bytes come back, it starts cold: code that changes so soon is not worth compiling.
        self.runs.store(0, Ordering::Relaxed);
        let failed = count(&self.failed) + 1;
        let is_rare = admitted >= RUNS_WORTH_DECODING;
        if is_rare || failed.is_multiple_of(FAILURES) { Admission::Decode } else { Admission::Interpret }
    }

    /// Whether a store of `len_bytes` to `addr` may have hit the block's bytes.
    pub(super) fn is_overwritten(&self, addr: u64, len_bytes: u64) -> bool {
        self.code.own().is_overwritten(addr, len_bytes)
    }
}

/// Adds one; returns the value before. Lost counts of racing harts do not matter.
fn count(counter: &AtomicU32) -> u32 {
    let before = counter.load(Ordering::Relaxed);
    counter.store(before.wrapping_add(1), Ordering::Relaxed);
    before
}

#[cfg(test)]
mod tests {
    use codewarden::addr::{HostAddr, HostRange, PageSize};
    use codewarden::protection::Access;

    use super::*;
    use crate::linux::host_memory;
    use crate::memory::host_fault;
    use crate::memory::window::PAGE_LEN_BYTES;

    const START: u64 = 0x1_0000 + PAGE_LEN_BYTES - 6;
    const NOP: u32 = 0x13;

    fn window() -> Window {
        host_fault::install().unwrap();
        let window = Window::reserve().unwrap();
        let host = HostAddr(window.base() as usize + 0x1_0000);
        let range = HostRange::new(host, 2 * PAGE_LEN_BYTES as usize, PageSize::host()).unwrap();
        host_memory::protect(range, Access::ReadWrite).unwrap();
        window
    }

    /// A block of `count` instructions that lies in `window`, over two pages.
    fn block(window: &Window, count: usize, own_stores: OwnStores) -> DecodedBlock {
        (START..).step_by(4).take(count).for_each(|at| window.store_u32(at, NOP).unwrap());
        let source = Source { insts: vec![decode(NOP); count], bytes: NOP.to_le_bytes().repeat(count) };
        DecodedBlock::new(START, &source, own_stores)
    }

    #[test]
    fn each_byte_is_compared() {
        let window = window();
        for count in 1..9 {
            let block = block(&window, count, OwnStores::Compare);
            assert_eq!(block.admits(&window), Admission::Run);
            for at in START..START + 4 * count as u64 {
                let byte = window.load_u8(at).unwrap();
                window.store_u8(at, !byte).unwrap();
                assert_ne!(block.admits(&window), Admission::Run, "{count} instructions, {at:#x}");
                window.store_u8(at, byte).unwrap();
            }
            window.store_u8(START - 1, 1).unwrap();
            window.store_u8(START + 4 * count as u64, 1).unwrap();
            assert_eq!(block.admits(&window), Admission::Run);
        }
    }

    #[test]
    fn a_block_with_unreadable_bytes_is_not_admitted() {
        let window = window();
        let source = Source { insts: vec![decode(NOP)], bytes: NOP.to_le_bytes().to_vec() };
        let behind = DecodedBlock::new(0x1_0000 + 2 * PAGE_LEN_BYTES - 2, &source, OwnStores::Ignore);
        assert_ne!(behind.admits(&window), Admission::Run);
    }

    #[test]
    fn a_block_that_is_overwritten_all_the_time_is_rarely_decoded() {
        let window = window();
        let block = block(&window, 2, OwnStores::Compare);
        let patched = |value| window.store_u8(START, value).unwrap();
        patched(0x93);
        let answers: Vec<_> = (0..2 * FAILURES).map(|_| block.admits(&window)).collect();
        let decoded = answers.iter().filter(|answer| **answer == Admission::Decode).count();
        assert_eq!(decoded, 2, "{answers:?}");
        // A check that fails after enough runs decodes at once, and the block counts its runs anew.
        patched(0x13);
        for _ in 0..RUNS_WORTH_DECODING {
            assert_eq!(block.admits(&window), Admission::Run);
            block.count_run();
        }
        patched(0x93);
        assert_eq!(block.admits(&window), Admission::Decode);
        assert_eq!(block.count_run(), 0);
    }

    #[test]
    fn a_store_into_the_block_is_recognised_by_its_address() {
        let window = window();
        let block = block(&window, 3, OwnStores::Compare);
        let end = START + 12;
        for len_bytes in [1, 2, 4, 8] {
            for addr in START - 10..end + 10 {
                let overlaps = addr < end && addr + len_bytes > START;
                assert_eq!(block.is_overwritten(addr, len_bytes), overlaps, "{len_bytes} bytes at {addr:#x}");
            }
        }
    }

    #[test]
    fn two_places_are_remembered_and_only_after_some_runs() {
        let window = window();
        let block = block(&window, 1, OwnStores::Ignore);
        let cache = codewarden::CodeCache::<()>::new(codewarden::EntryStubs::NOT_CODE).unwrap();
        let link = |pc| cache.link(codewarden::Key::new(pc));
        let cell = |pc| block.exit(pc, || link(pc).ok()).map(|link| ptr::from_ref(link.cell()));
        assert_eq!(cell(0x100), None);
        for _ in 0..RUNS_BEFORE_LINKS {
            block.count_run();
        }
        for pc in [0x100, 0x200, 0x100, 0x200] {
            assert_eq!(cell(pc), Some(ptr::from_ref(link(pc).unwrap().cell())), "{pc:#x}");
        }
        assert_eq!(cell(0x300), None);
    }
}
