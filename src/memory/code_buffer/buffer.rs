//! A code buffer and its allocations.
//!
//! # Safety
//!
//! The views live until the last of the buffer and its allocations is dropped. This module writes
//! bytes in two places: to an allocation, before any other code has it, and to a freed range (the
//! fill), while the free list's lock is held and before the range can be handed out again.
#![allow(unsafe_code)]

use std::ops::Range;
use std::ptr;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use super::free_list::FreeList;
use crate::addr::{HostAddr, HostRange, PageSize};
use crate::error::Error;
use crate::sync::{Arc, Mutex, lock};
use crate::sys::code_views::Views;
use crate::sys::fork::Keeper;
use crate::sys::membarrier;
use crate::sys::probe;
use crate::sys::process::Owner;

/// Fills freed code, so that a stray jump there traps: `int3`, and on other processors zeros, which
/// are undefined instructions on aarch64.
const FREED_FILL: u8 = if cfg!(target_arch = "x86_64") { 0xcc } else { 0 };

/// Free whole pages may hold this many bytes of memory, or a quarter of the bytes in use, before a
/// sweep gives some back.
const KEPT_FREE_BYTES: usize = 1 << 20;

/// The most free ranges that one sweep gives back, largest first: this bounds the cost of one
/// `drop` of an allocation.
const SWEEP_RANGES: usize = 64;

/// Once this many bytes are written, the pages of the writable view leave the page table. They are the pages of
/// several hundred blocks, so the calls are rare. Afterwards each page that is written again costs a fault.
const MAPPED_WRITTEN_BYTES: usize = 256 << 10;

/// Executable memory of bounded size. Clones are the same buffer.
#[derive(Clone, Debug)]
pub struct CodeBuffer {
    pub(super) shared: Arc<Shared>,
}

#[derive(Debug)]
pub(super) struct Shared {
    pub(super) views: Views,
    pub(super) executable: HostRange,
    pub(super) page: PageSize,
    /// The process whose memory is behind the views.
    pub(super) owner: Owner,
    pub(super) state: Mutex<State>,
    pub(super) keeper: Keeper,
    pub(super) meanwhile: Mutex<Meanwhile>,
    /// The bytes written since the writable view's pages left the page table.
    written: AtomicUsize,
}

/// The state that the thread with a fork's guard can use meanwhile.
#[derive(Debug, Default)]
pub(super) struct Meanwhile {
    pub(super) stats: CodeBufferStats,
    /// The offsets of the ranges that it dropped.
    pub(super) freed: Vec<Range<usize>>,
}

#[derive(Debug)]
pub(super) struct State {
    pub(super) free: FreeList,
    /// For each page, whether it may have memory behind it.
    pub(super) resident: Vec<bool>,
    pub(super) resident_pages: usize,
    /// The pages from here on never had memory.
    pub(super) resident_end: usize,
    pub(super) allocations: usize,
    pub(super) given_back_bytes: u64,
}

/// The use of a [`CodeBuffer`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub struct CodeBufferStats {
    /// The bytes that it can hold.
    pub limit_bytes: usize,
    /// The bytes allocated now, rounded up to the allocator's unit.
    pub used_bytes: usize,
    /// The most bytes that may have memory behind them now.
    pub resident_bytes: usize,
    /// The largest allocation that would succeed now.
    pub largest_free_bytes: usize,
    /// The number of live allocations.
    pub allocations: usize,
    /// The bytes given back to the system so far.
    pub given_back_bytes: u64,
}

impl CodeBuffer {
    /// A buffer for `limit_bytes` of code, rounded up to whole pages. It takes twice as much
    /// address space, and memory as code is put into it.
    ///
    /// # Errors
    ///
    /// [`Error::BadArgument`] for a limit of 0 or one that cannot be rounded up, [`Error::System`]
    /// if the system refuses the memory, [`Error::Unavailable`] if the system has no `membarrier`
    /// that makes other cores fetch anew
    /// ([`Probe::check_code`](crate::protection::Probe::check_code) tells this in advance).
    pub fn new(limit_bytes: usize) -> Result<Self, Error> {
        let page = PageSize::host();
        let len = page.ceil(limit_bytes).filter(|&len| len != 0 && len <= isize::MAX as usize);
        let len = len.ok_or(Error::BadArgument("a code buffer has one byte at least and fits the address space"))?;
        probe::register_sync_core()?;
        let owner = Owner::this_process()?;
        let views = Views::map(len)?;
        let executable = HostRange::new(HostAddr::of(views.rx), len, page)?;
        let state = State {
            free: FreeList::new(len),
            resident: vec![false; len >> page.shift()],
            resident_pages: 0,
            resident_end: 0,
            allocations: 0,
            given_back_bytes: 0,
        };
        let shared = Shared {
            views,
            executable,
            page,
            owner,
            state: Mutex::new(state),
            keeper: Keeper::default(),
            meanwhile: Mutex::default(),
            written: AtomicUsize::new(0),
        };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// Memory for `len_bytes` of code at a multiple of `align_bytes`, a power of two up to the page
    /// size. Its contents are undefined.
    ///
    /// # Errors
    ///
    /// [`Error::BadArgument`] for an impossible alignment or length, [`Error::Full`] if no free
    /// range is large enough: drop allocations (evict blocks) and try again. [`Error::InForkChild`]
    /// in a child that has not called
    /// [`BufferForkGuard::after_fork_child`](super::BufferForkGuard::after_fork_child).
    /// [`Error::BadArgument`] if this thread holds the guard of a fork.
    pub fn alloc(&self, len_bytes: usize, align_bytes: usize) -> Result<Allocation, Error> {
        if !align_bytes.is_power_of_two() || align_bytes > self.shared.page.bytes() {
            return Err(Error::BadArgument("code is aligned to a power of two, the page size at most"));
        }
        self.shared.check_owner()?;
        self.shared.keeper.check()?;
        let limit = self.shared.views.len;
        let full = Error::Full { what: "byte of code", limit };
        if len_bytes > limit {
            return Err(full);
        }
        let mut state = lock(&self.shared.state);
        let range = state.free.take(len_bytes, align_bytes).ok_or(full)?;
        state.allocations += 1;
        state.populate(range.start, range.end, self.shared.page);
        let (shared, published_in) = (Arc::clone(&self.shared), AtomicU64::new(0));
        Ok(Allocation { shared, start: range.start, len: len_bytes, published_in })
    }

    /// Memory with `code` in it, published: commit a block with its [`Allocation::entry`]. The code
    /// lies at a multiple of 16, and must run at any address; for code that depends on its own
    /// address, use [`CodeBuffer::alloc`].
    ///
    /// # Errors
    ///
    /// Those of [`CodeBuffer::alloc`] and of [`Allocation::publish`].
    pub fn emit(&self, code: &[u8]) -> Result<Allocation, Error> {
        const ALIGN_BYTES: usize = 16;
        let allocation = self.alloc(code.len(), ALIGN_BYTES)?;
        // SAFETY: as many bytes of the writable view, which no other code has.
        unsafe { ptr::copy_nonoverlapping(code.as_ptr(), allocation.rw(), code.len()) };
        allocation.publish()?;
        Ok(allocation)
    }

    /// The executable view, which contains all code.
    pub fn executable(&self) -> HostRange {
        self.shared.executable
    }

    /// The buffer's use now.
    pub fn stats(&self) -> CodeBufferStats {
        if self.stands_still_here() {
            return lock(&self.shared.meanwhile).stats;
        }
        self.shared.stats_of(&lock(&self.shared.state))
    }
}

/// A piece of a [`CodeBuffer`]. Its memory is free again when it is dropped. No thread may be
/// running in it then.
#[derive(Debug)]
pub struct Allocation {
    shared: Arc<Shared>,
    /// The offset of the range from the free list.
    start: usize,
    /// The length that was asked for. The range may be longer.
    len: usize,
    /// The number of the process that published it last; 0 for none. A fork's child has another
    /// number: it publishes anew.
    published_in: AtomicU64,
}

impl Allocation {
    /// The address to write the code to.
    pub fn rw(&self) -> *mut u8 {
        self.shared.views.rw.wrapping_add(self.start)
    }

    /// The address at which the code will run: for code that depends on its own address, before it
    /// is published. Commit a block with [`Allocation::entry`].
    pub fn rx(&self) -> *const u8 {
        self.shared.views.rx.wrapping_add(self.start)
    }

    /// The number of bytes that were asked for.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether no bytes were asked for.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Makes every thread fetch the bytes written here as code. Call it after the last write and
    /// before any other code gets the address; the [module](super) says why.
    ///
    /// # Errors
    ///
    /// Those of [`Allocation::publish_all`].
    pub fn publish(&self) -> Result<(), Error> {
        Self::publish_all([self])
    }

    /// Publishes several allocations by one barrier. The barrier interrupts each processor that
    /// runs a thread of this process, which takes longer than to compile a small block quickly. So
    /// write the code of many blocks, publish them together, then commit each.
    ///
    /// The allocations may be of several buffers. Without any there is no barrier.
    ///
    /// # Errors
    ///
    /// [`Error::System`] if `membarrier` fails, [`Error::InForkChild`] if one of them must not be
    /// run in this child. Then this call has published none of them.
    pub fn publish_all<'a>(allocations: impl IntoIterator<Item = &'a Self>) -> Result<(), Error> {
        let allocations: Vec<&Self> = allocations.into_iter().collect();
        if allocations.is_empty() {
            return Ok(());
        }
        for allocation in &allocations {
            allocation.shared.check_owner()?;
            clean_caches(allocation.rw(), allocation.rx(), allocation.len);
        }
        membarrier::sync_core()?;
        for allocation in allocations {
            allocation.published_in.store(allocation.shared.owner.number(), Ordering::Release);
            allocation.shared.wrote(allocation.len);
        }
        Ok(())
    }

    /// The entry of published code, `offset_bytes` after its start: an address for
    /// [`Ticket::commit`](crate::Ticket::commit).
    ///
    /// # Errors
    ///
    /// [`Error::BadArgument`] if the allocation was never published, or if this is a fork's child
    /// and its code was left to the parent: another processor may run the old bytes there. The same
    /// for an offset beyond the end. [`Error::InForkChild`] in a child that has not called
    /// [`BufferForkGuard::after_fork_child`](super::BufferForkGuard::after_fork_child).
    pub fn entry(&self, offset_bytes: usize) -> Result<usize, Error> {
        self.shared.check_owner()?;
        if offset_bytes >= self.len {
            return Err(Error::BadArgument("an entry lies inside its allocation"));
        }
        if self.published_in.load(Ordering::Acquire) != self.shared.owner.number() {
            return Err(Error::BadArgument(
                "the allocation is not published: write the code, call publish, and then take its entry",
            ));
        }
        Ok(self.rx() as usize + offset_bytes)
    }
}

impl Drop for Allocation {
    fn drop(&mut self) {
        // In a fork's child, another thread of the parent may have held the lock.
        if !self.shared.owner.is_current() {
            return;
        }
        let range_bytes = FreeList::range_bytes(self.len).unwrap_or_else(|| unreachable!("it was taken"));
        let range = self.start..self.start + range_bytes;
        if self.shared.keeper.is_this_thread() {
            lock(&self.shared.meanwhile).freed.push(range);
        } else {
            self.shared.free(&mut lock(&self.shared.state), range);
            self.shared.wrote(range_bytes);
        }
    }
}

impl Shared {
    pub(super) fn stats_of(&self, state: &State) -> CodeBufferStats {
        CodeBufferStats {
            limit_bytes: self.views.len,
            used_bytes: self.views.len - state.free.free_bytes(),
            resident_bytes: state.resident_pages << self.page.shift(),
            largest_free_bytes: state.free.largest_bytes(),
            allocations: state.allocations,
            given_back_bytes: state.given_back_bytes,
        }
    }

    /// Frees the range of an allocation that was dropped. Does nothing in a fork's child without
    /// its own memory: the parent runs the code there.
    pub(super) fn free(&self, state: &mut State, range: Range<usize>) {
        if self.owner.is_current() {
            // SAFETY: the range was handed out to that allocation alone, and lies in the
            // writable view, which lives as long as this.
            unsafe { ptr::write_bytes(self.views.rw.wrapping_add(range.start), FREED_FILL, range.len()) };
            state.allocations -= 1;
            state.free.give(range);
            state.give_back(&self.views, self.page);
        }
    }

    /// Counts bytes that were written and are not written again soon. Call it without the state's lock.
    ///
    /// It counts bytes, and not pages. Small allocations in the holes of old code map more than the count says.
    fn wrote(&self, len_bytes: usize) {
        let written = self.written.fetch_add(len_bytes, Ordering::Relaxed).saturating_add(len_bytes);
        // One of several threads that get here finds the count.
        if written >= MAPPED_WRITTEN_BYTES && self.written.swap(0, Ordering::Relaxed) >= MAPPED_WRITTEN_BYTES {
            self.views.unmap_written();
        }
    }

    pub(super) fn check_owner(&self) -> Result<(), Error> {
        if self.owner.is_current() { Ok(()) } else { Err(Error::InForkChild) }
    }
}

impl State {
    /// Notes that the pages of `start..end` are about to be written.
    fn populate(&mut self, start: usize, end: usize, page: PageSize) {
        self.resident_end = self.resident_end.max(((end - 1) >> page.shift()) + 1);
        for resident in &mut self.resident[start >> page.shift()..=(end - 1) >> page.shift()] {
            self.resident_pages += usize::from(!*resident);
            *resident = true;
        }
    }

    /// Gives memory back once many of the resident bytes are not in use. Each sweep starts at the
    /// largest ranges, so that a bounded number of calls gives back most.
    fn give_back(&mut self, views: &Views, page: PageSize) {
        let used = self.free.len_bytes() - self.free.free_bytes();
        if (self.resident_pages << page.shift()).saturating_sub(used) <= KEPT_FREE_BYTES.max(used / 4) {
            return;
        }
        for range in self.free.largest_first().take(SWEEP_RANGES) {
            let (Some(start), end) = (page.ceil(range.start), page.floor(range.end)) else { break };
            if start >= end {
                // All later ranges are smaller, and few of them hold a page.
                break;
            }
            // Most of the largest range was never used.
            let end = end.min(self.resident_end << page.shift());
            if start >= end {
                continue;
            }
            let pages = &mut self.resident[start >> page.shift()..end >> page.shift()];
            let resident = pages.iter().filter(|resident| **resident).count();
            if resident == 0 {
                continue;
            }
            // If the system refuses, that costs only memory.
            if views.give_back(start, end - start).is_ok() {
                pages.fill(false);
                self.resident_pages -= resident;
                self.given_back_bytes += (resident << page.shift()) as u64;
            }
        }
    }
}

/// Cleans the data cache and invalidates the instruction caches, for a processor that keeps them
/// apart.
#[cfg(target_arch = "aarch64")]
pub(super) fn clean_caches(rw: *const u8, rx: *const u8, len: usize) {
    use core::arch::asm;
    let cache_type: usize;
    // SAFETY: CTR_EL0 may be read in user mode on Linux.
    unsafe { asm!("mrs {}, ctr_el0", out(reg) cache_type, options(nomem, nostack, preserves_flags)) };
    let data_line = 4usize << ((cache_type >> 16) & 15);
    let inst_line = 4usize << (cache_type & 15);
    // SAFETY: cache maintenance by address, within mappings of this process.
    unsafe {
        for line in ((rw as usize & !(data_line - 1))..rw as usize + len).step_by(data_line) {
            asm!("dc cvau, {}", in(reg) line, options(nostack, preserves_flags));
        }
        asm!("dsb ish", options(nostack, preserves_flags));
        for line in ((rx as usize & !(inst_line - 1))..rx as usize + len).step_by(inst_line) {
            asm!("ic ivau, {}", in(reg) line, options(nostack, preserves_flags));
        }
        asm!("dsb ish", "isb", options(nostack, preserves_flags));
    }
}

/// Orders the bytes before the barrier that follows, in which each processor runs FENCE.I.
#[cfg(target_arch = "riscv64")]
pub(super) fn clean_caches(_rw: *const u8, _rx: *const u8, _len: usize) {
    use core::arch::asm;
    // SAFETY: a fence.
    unsafe { asm!("fence rw, rw", options(nostack, preserves_flags)) };
}

/// Does nothing: the caches of x86-64 see each other's stores.
#[cfg(target_arch = "x86_64")]
pub(super) fn clean_caches(_rw: *const u8, _rx: *const u8, _len: usize) {}

#[cfg(test)]
mod tests;
