//! The costs of one block among few and among many: commit, invalidation,
//! retirement.

use std::time::Instant;

use codewarden::addr::GuestAddr;
use codewarden::guest_memory::GuestMemory;
use codewarden::protection::Mode;
use codewarden::{CodeCache, EntryStubs, Key};

use crate::library::add_region;
use crate::lookup::Sizes;
use crate::pair::{Aim, Pair};

/// Blocks that are committed and die in each round, each on a page of its own.
const VICTIMS: u64 = 64;
/// Distance in bytes between two of the other blocks.
const BLOCK_BYTES: u64 = 32;

/// A cache with many blocks.
struct Blocks {
    cache: CodeCache<()>,
    _memory: GuestMemory,
    page_bytes: u64,
}

/// Nanoseconds for one block.
struct Costs {
    commit_ns: f64,
    invalidate_ns: f64,
    retire_ns: f64,
}

impl Blocks {
    fn new(others: usize) -> Self {
        let cache = CodeCache::<()>::new(EntryStubs::NOT_CODE).expect("the stubs differ");
        let page_bytes = cache.tracker().page_size().bytes() as u64;
        let first = VICTIMS * page_bytes;
        let len = (first + others as u64 * BLOCK_BYTES).next_multiple_of(page_bytes);
        let memory = GuestMemory::anonymous(len as usize).expect("address space");
        add_region(&cache, GuestAddr(0), &memory, Mode::None);
        let blocks = Self { cache, _memory: memory, page_bytes };
        (0..others as u64).for_each(|index| blocks.commit(first + index * BLOCK_BYTES));
        blocks
    }

    fn commit(&self, pc: u64) {
        let mut ticket = self.cache.begin(Key::new(pc));
        ticket.claim(GuestAddr(pc)).expect("an open page");
        ticket.commit(pc as usize + 0x1000, ()).expect("nobody writes");
    }

    fn run(&self) -> Costs {
        let each = |work: &dyn Fn(u64)| {
            let start = Instant::now();
            (0..VICTIMS).for_each(|index| work(index * self.page_bytes));
            start.elapsed().as_nanos() as f64 / VICTIMS as f64
        };
        let before = self.cache.stats();
        let commit_ns = each(&|pc| self.commit(pc));
        let invalidate_ns =
            each(&|pc| self.cache.tracker().invalidate(GuestAddr(pc), 1).expect("a page of the region"));
        let start = Instant::now();
        self.cache.collect();
        let retire_ns = start.elapsed().as_nanos() as f64 / VICTIMS as f64;
        let after = self.cache.stats();
        assert_eq!(after.invalidated - before.invalidated, VICTIMS, "each victim died once");
        assert_eq!(after.freed - before.freed, VICTIMS, "each victim was freed");
        Costs { commit_ns, invalidate_ns, retire_ns }
    }
}

/// A row: its name, the cost that it shows, its aim.
type Kind = (&'static str, fn(&Costs) -> f64, Aim);

/// Few and many by turns.
pub fn measure(rounds: usize, sizes: Sizes) -> Vec<Pair> {
    let [many, few] = [sizes.large, 100].map(|count| (count, Blocks::new(count)));
    let kinds: [Kind; 3] = [
        ("commit one block", |costs| costs.commit_ns, Aim::Told),
        ("invalidate one block", |costs| costs.invalidate_ns, Aim::Same),
        ("retire one block", |costs| costs.retire_ns, Aim::Told),
    ];
    let mut pairs = kinds.map(|(what, _, aim)| Pair {
        what: format!("{what} of {}", many.0),
        beside: format!("of {}", few.0),
        unit: "ns",
        samples: Vec::new(),
        aim,
    });
    // The first run warms page tables, and memory that is used again.
    many.1.run();
    few.1.run();
    for _ in 0..rounds {
        let costs = (many.1.run(), few.1.run());
        for (pair, (_, cost, _)) in pairs.iter_mut().zip(kinds) {
            pair.samples.push((cost(&costs.0), cost(&costs.1)));
        }
    }
    pairs.into()
}
