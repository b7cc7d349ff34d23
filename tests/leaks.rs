//! Blocks that come and go at the limit leave nothing on the heap: the soak (`examples/soak`) in
//! one second and one thread. Each byte is counted; only the size of maps may differ, by
//! `ROUGH_BYTES`.
//!
//! # Safety
//!
//! The region's memory outlives its cache.
#![allow(unsafe_code)]

#[path = "support/heap.rs"]
mod heap;
#[path = "support/region.rs"]
mod region;

use codewarden::addr::GuestAddr;
use codewarden::code_buffer::{Allocation, CodeBuffer};
use codewarden::guest_memory::GuestMemory;
use codewarden::protection::Mode;
use codewarden::{CodeCache, EntryStubs, Footprint, Key, Link, MemoryLimit};
use heap::Heap;
use region::{GUEST, PAGES, page_bytes, region};

const WARM_CYCLES: u64 = 20_000;
const CYCLES: u64 = 80_000;
/// Keys of a page that is written to all the time.
const HOT_KEYS: u64 = 8;
/// Keys of the other pages that come again and again: more than the limit.
const COLD_KEYS: u64 = 300;
const LIMIT: MemoryLimit = MemoryLimit::of_bytes(200_000);

/// The code memory and the link that a block owns.
struct Owned {
    _code: Allocation,
    _next: Link,
}

/// The heap may grow by this after [`CYCLES`]: maps are a little larger or smaller each time.
const ROUGH_BYTES: i64 = 16 << 10;

/// The heap outside the cache's own footprint.
fn untold_bytes(footprint: &Footprint) -> i64 {
    let Footprint { live, retained, garbage, cell_bytes, table_bytes, page_bytes, .. } = footprint;
    let records = live.record_bytes + retained.record_bytes + garbage.record_bytes;
    Heap::now().bytes as i64 - (records + cell_bytes + table_bytes + page_bytes) as i64
}

/// A fixed pseudo-random number for each.
fn spread(number: u64) -> u64 {
    let mixed = number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (mixed ^ mixed >> 29).wrapping_mul(0xbf58_476d_1ce4_e5b9) >> 32
}

/// Makes the block of a key from the present bytes; for a hot key after a write.
fn cycle(cache: &CodeCache<Owned>, buffer: &CodeBuffer, memory: &GuestMemory, cycle: u64) {
    let key = match cycle % 4 {
        0 | 1 => cycle / 4 % HOT_KEYS,
        2 => HOT_KEYS + spread(cycle) % COLD_KEYS,
        // This key never comes again.
        _ => HOT_KEYS + COLD_KEYS + cycle,
    };
    let is_hot = key < HOT_KEYS;
    let cold_bytes = (PAGES - 1) * page_bytes();
    let offset = if is_hot { key as usize * 64 } else { page_bytes() + key as usize * 64 % cold_bytes };
    let at = GuestAddr(GUEST + offset as u64);
    if is_hot {
        memory.write(offset, &(spread(cycle) % 3).to_le_bytes()).unwrap();
        cache.tracker().invalidate(at, 8).unwrap();
    }
    let mut bytes = [0; 8];
    memory.read(offset, &mut bytes).unwrap();
    let mut ticket = cache.begin(Key::new(key));
    ticket.claim(at).unwrap();
    ticket.add_source(at, &bytes).unwrap();
    let Some(mut ticket) = ticket.revive().unwrap() else { return };
    let code = buffer.alloc(64 + cycle as usize * 31 % 1000, 64).unwrap();
    ticket.set_payload_bytes(code.len());
    let next = cache.link(Key::new(key + 1)).unwrap();
    code.publish().unwrap();
    ticket.commit(code.entry(0).unwrap(), Owned { _code: code, _next: next }).unwrap();
}

#[test]
fn cycles_at_the_limit_leave_nothing_on_the_heap() {
    let before = Heap::now();
    let memory = GuestMemory::anonymous(PAGES * page_bytes()).unwrap();
    let buffer = CodeBuffer::new(1 << 20).unwrap();
    let cache = CodeCache::new(EntryStubs::NOT_CODE).unwrap();
    // SAFETY: the cache is dropped before the memory.
    unsafe { cache.tracker().add_region(region(GUEST, &memory, Mode::None)) }.unwrap();
    cache.set_limit(LIMIT);
    let cycles_through = |cycles: std::ops::Range<u64>| {
        cycles.for_each(|at| cycle(&cache, &buffer, &memory, at));
        cache.collect();
        let footprint = cache.footprint();
        let blocks = footprint.live.blocks + footprint.retained.blocks;
        assert_eq!((footprint.garbage.blocks, buffer.stats().allocations), (0, blocks), "{footprint:?}");
        (untold_bytes(&footprint), Heap::now(), footprint)
    };
    let (untold_warm, heap_warm, warm) = cycles_through(0..WARM_CYCLES);
    let (untold_end, heap_end, end) = cycles_through(WARM_CYCLES..CYCLES);
    println!("{untold_warm} bytes, {heap_warm:?}, {warm:?}, then {untold_end}, {heap_end:?}, {end:?}");
    let stats = cache.stats();
    assert!(stats.evicted > 0 && stats.revived > 0 && stats.freed > CYCLES / 3, "{stats:?}");
    assert!(untold_end - untold_warm <= ROUGH_BYTES, "{untold_warm}, then {untold_end} bytes");
    assert!(heap_end.bytes <= heap_warm.bytes + 2 * ROUGH_BYTES as u64, "{heap_warm:?}, then {heap_end:?}");
    drop(cache);
    assert_eq!(buffer.stats().allocations, 0);
    drop((buffer, memory));
    let left = Heap::now().allocations.saturating_sub(before.allocations);
    assert!(left < 32, "{left} allocations, when all was dropped");
}
