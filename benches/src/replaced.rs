//! The cost of a commit that replaces a block, beside that of a first commit.

use std::sync::Arc;
use std::time::Instant;

use codewarden::addr::GuestAddr;
use codewarden::guest_memory::GuestMemory;
use codewarden::protection::Mode;
use codewarden::{CodeCache, EntryStubs, Key};

use crate::pair::{Aim, Pair};

/// Blocks, each on a page of its own.
const BLOCKS: u64 = 64;
/// Bytes that a replacing block is made from: four instructions.
const SOURCE_BYTES: usize = 16;

/// First commits and replacing ones by turns, without tracking. A replacing block has its source
/// bytes, other ones than the block before, so the old translation is retained.
pub fn measure(rounds: usize) -> Pair {
    let cache = CodeCache::<()>::new(EntryStubs::NOT_CODE).expect("the stubs differ");
    let page_bytes = cache.tracker().page_size().bytes() as u64;
    let memory = Arc::new(GuestMemory::anonymous((BLOCKS * page_bytes) as usize).expect("address space"));
    for index in 0..BLOCKS {
        memory.write((index * page_bytes) as usize, &[1]).expect("inside");
    }
    cache.add_memory(GuestAddr(0), memory, Mode::None).expect("no tracking");
    let each = |work: &dyn Fn(u64)| {
        let start = Instant::now();
        (0..BLOCKS).for_each(|index| work(index * page_bytes));
        start.elapsed().as_nanos() as f64 / BLOCKS as f64
    };
    let first = |pc: u64| {
        let mut ticket = cache.begin(Key::new(pc));
        ticket.claim(GuestAddr(pc)).expect("an open page");
        ticket.commit(pc as usize + 0x1000, ()).expect("nobody writes");
    };
    let before = cache.stats();
    let samples: Vec<(f64, f64)> = (0..rounds + 1)
        .map(|round| {
            drop(cache.tracker().change_mapping(GuestAddr(0), BLOCKS * page_bytes).expect("tracked"));
            cache.collect();
            let first_ns = each(&first);
            let replace = |pc: u64| {
                let mut ticket = cache.begin(Key::new(pc));
                let source = pc + (round * SOURCE_BYTES) as u64 % (page_bytes / 2);
                ticket.read(GuestAddr(source), &mut [0; SOURCE_BYTES]).expect("an open page");
                ticket.commit(pc as usize + 0x1004, ()).expect("nobody writes");
            };
            (each(&replace), first_ns)
        })
        .skip(1)
        .collect();
    let done = cache.stats().committed - before.committed;
    assert_eq!(done, 2 * BLOCKS * (rounds as u64 + 1), "every commit was made");
    Pair {
        what: "replace a block, with its source bytes".to_owned(),
        beside: "commit a first block".to_owned(),
        unit: "ns",
        samples,
        aim: Aim::AtMost(1.5),
    }
}
