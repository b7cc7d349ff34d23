//! Nothing is freed under a walker, a pin or a reader of the table.
//!
//! # Safety
//!
//! Blocks are entered, taken out and freed by the contracts of `block_list` and `kill`. "Freed" is
//! a flag here, and the memory stays until the model's end.
#![allow(unsafe_code)]

use core::ptr::NonNull;

use loom::thread;

use super::explore::{fails_without, holds, spawn, violation};
use super::guest::{Guest, cache_over};
use super::inside::commit_owner;
use super::kernel::Kernel;
use crate::code_cache::block_list::{BlockList, Node};
use crate::code_cache::epoch::{Epoch, Retired};
use crate::code_cache::kill::{DeadStack, Life, Reach, Record};
use crate::code_cache::{Entry, EntryCell, EntryStubs, Key, StaleFlag};
use crate::policy::Adaptive;
use crate::protection::Mode;
use crate::sync::{Arc, AtomicBool, Mutex, Ordering::Relaxed, Rule, lock};

const STUBS: EntryStubs = EntryStubs::NOT_CODE;

/// A block with its cell.
struct Fake {
    life: Life<Fake>,
    cell: EntryCell,
    flag: StaleFlag,
    freed: AtomicBool,
}

impl Fake {
    fn new() -> Box<Self> {
        let (cell, flag) = (EntryCell::new(STUBS), StaleFlag::new());
        Box::new(Self { life: Life::new(), cell, flag, freed: AtomicBool::new(false) })
    }

    fn reach(&self) -> Reach<'_> {
        Reach { cell: &self.cell, flag: Some(&self.flag), entry: Entry::plain(2), stubs: STUBS }
    }
}

impl Record for Fake {
    fn life(&self) -> &Life<Self> {
        &self.life
    }
}

struct Free(NonNull<Fake>);

// SAFETY: the block stays until the model's end.
unsafe impl Send for Free {}

impl Drop for Free {
    fn drop(&mut self) {
        // SAFETY: as above.
        unsafe { self.0.as_ref() }.freed.store(true, Relaxed);
    }
}

struct Page {
    list: BlockList<Fake>,
    dead: DeadStack<Fake>,
    epoch: Epoch,
    retired: Mutex<Retired<Free>>,
    // The last field: dropped after everything that points to the nodes.
    nodes: Vec<Node<Fake>>,
    blocks: Vec<Box<Fake>>,
}

// SAFETY: blocks and nodes are shared between threads by design.
unsafe impl Send for Page {}
// SAFETY: as above.
unsafe impl Sync for Page {}

impl Page {
    fn new(blocks: usize) -> Arc<Self> {
        let blocks: Vec<_> = (0..blocks).map(|_| Fake::new()).collect();
        let nodes = blocks.iter().map(|block| Node::new(NonNull::from(&**block))).collect();
        let (list, dead, epoch) = (BlockList::default(), DeadStack::new(), Epoch::new());
        let page = Arc::new(Self { list, dead, epoch, retired: Mutex::new(Retired::new()), nodes, blocks });
        // SAFETY: the only thread; they live as long as the page.
        page.nodes.iter().for_each(|node| unsafe { page.list.enter(node) });
        page
    }

    fn kill(&self, block: &Fake) {
        if block.life.kill(block.reach()) {
            self.dead.push(block);
        }
    }

    /// As a fault handler does.
    fn walk_and_kill(&self) {
        let walk = self.epoch.walk();
        let mut visited = Vec::new();
        // SAFETY: under a walk.
        unsafe {
            self.list.for_each(|block| {
                self.kill(block);
                visited.push(NonNull::from(block));
            });
        }
        // SAFETY: the memory stays until the model's end.
        if visited.iter().any(|block| unsafe { block.as_ref() }.freed.load(Relaxed)) {
            violation("a block was freed under a walker");
        }
        drop(walk);
    }

    /// As a translator does under the commit lock.
    fn reap(&self) {
        // SAFETY: only one thread reaps, and blocks stay until the model's end.
        let dead: Vec<_> = unsafe { self.dead.take_all() }.collect();
        let places = self.blocks.iter().zip(&self.nodes);
        for (_, node) in places.filter(|(block, _)| dead.contains(&NonNull::from(&***block))) {
            // SAFETY: as above; entered by `new`, and handed over once.
            unsafe { node.take_out() };
        }
        let mut retired = lock(&self.retired);
        for block in dead {
            retired.add(Free(block));
        }
        drop(self.epoch.collect(&mut retired));
    }
}

/// A walker against a translator that reaps the blocks that are dead already and those that the
/// walker kills.
fn a_walker_and_a_reaper() {
    let page = Page::new(2);
    page.kill(&page.blocks[1]);
    let walker = spawn(&page, |page| page.walk_and_kill());
    page.reap();
    page.reap();
    walker.join().unwrap();
    page.reap();
    page.reap();
    if !page.blocks.iter().all(|block| block.freed.load(Relaxed)) {
        violation("a dead block is never freed");
    }
}

/// Two walkers that kill the same blocks.
fn two_walkers_and_a_reaper() {
    let page = Page::new(1);
    let walkers = [0, 1].map(|_| spawn(&page, |page| page.walk_and_kill()));
    page.reap();
    walkers.into_iter().for_each(|walker| walker.join().unwrap());
}

/// A vCPU runs a block that is superseded, and whose memory is collected.
fn a_vcpu_and_a_collector() {
    let cache = cache_over(&Arc::new(Kernel::new(Mode::Sigbus, 1)), Adaptive::new());
    let freed = [0, 1].map(|_| Arc::new(AtomicBool::new(false)));
    let commit = {
        let (cache, freed) = (cache.clone(), freed.clone());
        move |block: usize| commit_owner(&cache, 0, 2 + block, &freed[block])
    };
    commit(0);
    let mut vcpu = cache.attach_vcpu();
    let runner = thread::spawn(move || {
        for _ in 0..2 {
            let mut pin = vcpu.pin();
            let entry = pin.lookup_shared(Key::new(0));
            // It runs, for a while.
            thread::yield_now();
            if entry.is_some_and(|entry| freed[entry - 2].load(Relaxed)) {
                violation("a block was freed under a vCPU");
            }
        }
    });
    commit(1);
    cache.collect();
    runner.join().unwrap();
}

/// A lookup while the table grows.
fn a_reader_and_a_growth() {
    let guest = Guest::new(Mode::Sigbus, 1);
    guest.translate(0, &[0]).unwrap();
    guest.link(2);
    let mut vcpu = guest.cache.attach_vcpu();
    let reader = thread::spawn(move || {
        for _ in 0..2 {
            if vcpu.pin().lookup_shared(Key::new(0)).is_none() {
                violation("a key was lost while the table grew");
            }
        }
    });
    for key in 2..6 {
        guest.link(key << 1);
    }
    guest.cache.collect();
    reader.join().unwrap();
}

/// A lookup of a key without a cell, while another key of the same slot gets one.
fn a_reader_and_another_key() {
    let guest = Guest::new(Mode::Sigbus, 1);
    let mut vcpu = guest.cache.attach_vcpu();
    let reader = thread::spawn(move || {
        if vcpu.pin().lookup_shared(Key::new(1)).is_some() {
            violation("a key led to the block of another key");
        }
    });
    guest.translate(2, &[0]).unwrap();
    reader.join().unwrap();
}

#[test]
fn a_key_leads_to_its_own_block_alone() {
    holds(3, a_reader_and_another_key);
}

#[test]
fn no_block_is_freed_under_a_walker() {
    holds(5, a_walker_and_a_reaper);
}

#[test]
fn two_walkers_hand_a_block_over_once() {
    holds(2, two_walkers_and_a_reaper);
}

#[test]
fn no_block_is_freed_under_a_vcpu() {
    holds(5, a_vcpu_and_a_collector);
}

#[test]
fn no_key_is_lost_while_the_table_grows() {
    holds(5, a_reader_and_a_growth);
}

#[test]
fn it_fails_where_the_epoch_does_not_wait_for_walkers() {
    fails_without(Rule::WaitForWalkers, a_walker_and_a_reaper);
}

#[test]
fn it_fails_where_the_epoch_does_not_wait_for_pins() {
    fails_without(Rule::WaitForPins, a_vcpu_and_a_collector);
}

#[test]
fn it_fails_without_the_fence_behind_a_pin() {
    fails_without(Rule::FenceBehindPin, a_vcpu_and_a_collector);
}

#[test]
fn it_fails_without_the_fence_before_the_epoch_looks() {
    fails_without(Rule::FenceBeforePins, a_walker_and_a_reaper);
}

#[test]
fn it_fails_without_the_fence_behind_a_walkers_count() {
    fails_without(Rule::FenceBehindWalker, a_walker_and_a_reaper);
}
