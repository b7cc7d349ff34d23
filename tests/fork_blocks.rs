//! A fork's child that has the code of its parent's blocks keeps the blocks. Each process then has its
//! own: a store in one does not reach the other's.
//!
//! # Safety
//! The only locks of other threads that the child's calls need are those that the guards hold. Memory
//! outlives its cache. Code is entered under the pin that found it.
#![allow(unsafe_code)]

#[path = "support/alarm.rs"]
mod alarm;
#[path = "support/child.rs"]
mod child;
#[path = "support/limit.rs"]
mod limit;
#[path = "support/modes.rs"]
mod modes;

use std::io::Read;

use codewarden::addr::GuestAddr;
use codewarden::code_buffer::{Allocation, CodeBuffer};
use codewarden::error::Error;
use codewarden::guest_memory::GuestMemory;
use codewarden::protection::Mode;
use codewarden::tracker::RegionOptions;
use codewarden::{CodeCache, EntryStubs, Key, TranslateError};

use child::{Ended, in_child};
use modes::tracking_modes;

const PAGES: u64 = 4;

/// A function that returns `value`.
fn constant(value: u8) -> Vec<u8> {
    if cfg!(target_arch = "x86_64") {
        return vec![0xb8, value, 0, 0, 0, 0xc3];
    }
    let value = u32::from(value);
    let insts = if cfg!(target_arch = "riscv64") {
        [0x0000_0513 | value << 20, 0x0000_8067]
    } else {
        [0x5280_0000 | value << 5, 0xd65f_03c0]
    };
    insts.map(u32::to_le_bytes).concat()
}

/// A cache with code for each page of a guest.
struct Guest {
    cache: CodeCache<Allocation>,
    buffer: CodeBuffer,
    memory: GuestMemory,
    mode: Mode,
}

impl Guest {
    fn new(mode: Mode) -> Self {
        let memory = GuestMemory::anonymous((PAGES << 12) as usize).unwrap();
        let cache = CodeCache::new(EntryStubs::NOT_CODE).unwrap();
        let options = RegionOptions::new(GuestAddr(0), memory.range(), mode);
        // SAFETY: the memory outlives the cache.
        unsafe { cache.tracker().add_region(options) }.unwrap();
        let guest = Self { cache, buffer: CodeBuffer::new(1 << 16).unwrap(), memory, mode };
        (0..PAGES).for_each(|page| guest.translate(page, page as u8));
        guest
    }

    fn translate(&self, page: u64, value: u8) {
        let ticket = loop {
            let mut ticket = self.cache.begin(Key::new(page << 12));
            match ticket.read(GuestAddr(page << 12), &mut [0]) {
                Ok(()) => break ticket,
                // The thread that answered a write is not done yet.
                Err(error) => assert_eq!(error, TranslateError::Interpret),
            }
            std::thread::yield_now();
        };
        let code = self.buffer.emit(&constant(value)).unwrap();
        ticket.commit(code.entry(0).unwrap(), code).unwrap();
    }

    /// The result of the block of a page.
    fn run(&self, page: u64) -> Option<u32> {
        let mut vcpu = self.cache.attach_vcpu();
        let entry = vcpu.pin().lookup(Key::new(page << 12))?;
        // SAFETY: one of the functions; nothing was killed since.
        Some(unsafe { std::mem::transmute::<usize, extern "C" fn() -> u32>(entry)() })
    }

    fn write(&self, page: u64) {
        self.memory.write((page << 12) as usize, &[1]).unwrap();
        if self.mode == Mode::Deferred {
            self.cache.tracker().sync().unwrap();
        }
    }
}

/// The number of the first fault in a child that keeps its blocks, or 0.
fn wrong_in_the_child(guest: &Guest) -> u8 {
    // The last writes in a deferred region are not known here.
    let kept = |page: u64| (guest.mode != Mode::Deferred).then_some(page as u32);
    for page in 0..PAGES {
        if guest.run(page) != kept(page) {
            return 1;
        }
    }
    guest.write(0);
    if guest.run(0).is_some() || guest.run(1) != kept(1) {
        return 2;
    }
    guest.translate(0, 77);
    if guest.run(0) != Some(77) || guest.run(2) != kept(2) {
        return 3;
    }
    guest.cache.evict(usize::MAX);
    guest.cache.collect();
    u8::from(guest.buffer.stats().allocations != 0) * 4
}

fn each_process_has_its_own_blocks(mode: Mode) {
    let guest = Guest::new(mode);
    let _alarm = alarm::Alarm::while_waiting_for("a fork's child, or a page that is not busy");
    let cache = guest.cache.before_fork();
    let mut code = guest.buffer.before_fork();
    code.copy_code().unwrap();
    assert!(code.has_copy());
    let status = in_child(|| {
        code.after_fork_child().unwrap();
        cache.after_fork_child_with_blocks().unwrap();
        wrong_in_the_child(&guest)
    });
    assert_eq!(status, Ended::Returned(0), "{mode}: the child's status");
    for page in 0..PAGES {
        assert_eq!(guest.run(page), Some(page as u32), "{mode}: the parent lost a block");
    }
    for page in 0..PAGES {
        guest.write(page);
        assert_eq!(guest.run(page), None, "{mode}: the parent missed a write");
    }
}

#[test]
fn a_child_with_the_code_keeps_the_blocks() {
    for mode in tracking_modes() {
        each_process_has_its_own_blocks(mode);
    }
}

/// The parent frees its code after the fork. The child runs its copy.
#[test]
fn the_copy_is_the_childs_own() {
    let buffer = CodeBuffer::new(1 << 16).unwrap();
    let code = buffer.emit(&constant(7)).unwrap();
    let entry = code.entry(0).unwrap();
    let (mut reads, writes) = std::io::pipe().unwrap();
    let mut guard = buffer.before_fork();
    guard.copy_code().unwrap();
    // The parent drops these in this order.
    let parts = (guard, code, writes);
    let status = in_child(move || {
        let (guard, code, writes) = parts;
        drop(writes);
        guard.after_fork_child().unwrap();
        assert_eq!(reads.read(&mut [0]).unwrap(), 0, "the parent has dropped its end");
        // SAFETY: the function above, in the child's memory.
        let result = unsafe { std::mem::transmute::<usize, extern "C" fn() -> u32>(entry)() };
        assert!(code.entry(0).is_err(), "it was not published here");
        u8::from(result != 7)
    });
    assert_eq!(status, Ended::Returned(0));
}

/// Both would have one memory, and each would write its code over the other's.
#[test]
fn one_child_takes_the_copy() {
    let buffer = CodeBuffer::new(1 << 16).unwrap();
    let code = buffer.emit(&constant(7)).unwrap();
    let mut guard = Some(buffer.before_fork());
    guard.as_mut().unwrap().copy_code().unwrap();
    let status = in_child(|| {
        let nested = in_child(|| u8::from(guard.take().unwrap().after_fork_child().is_err()));
        let refused = guard.take().unwrap().after_fork_child();
        let has_none = matches!(refused, Err(Error::BadArgument(_))) && buffer.alloc(1, 1).is_err();
        u8::from(nested != Ended::Returned(0) || !has_none)
    });
    assert_eq!(status, Ended::Returned(0));
    drop(code);
}

/// A child that never took over has the parent's memory behind its buffer, and copies nothing of it.
#[test]
fn a_child_without_memory_of_its_own_copies_none() {
    let buffer = CodeBuffer::new(1 << 16).unwrap();
    let code = buffer.emit(&constant(7)).unwrap();
    let mut inherited = Some(buffer.before_fork());
    let status = in_child(|| {
        drop(inherited.take());
        let mut guard = buffer.before_fork();
        let is_refused = guard.copy_code() == Err(Error::InForkChild);
        u8::from(!is_refused || guard.has_copy())
    });
    assert_eq!(status, Ended::Returned(0));
    drop(code);
}
