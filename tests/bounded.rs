//! A guest that runs at ever new addresses leaves no memory behind.
//!
//! # Safety
//!
//! The region's memory outlives its cache.
#![allow(unsafe_code)]

use codewarden::addr::GuestAddr;
use codewarden::guest_memory::GuestMemory;
use codewarden::protection::Mode;
use codewarden::tracker::RegionOptions;
use codewarden::{CodeCache, EntryStubs, Footprint, Key, Link, MemoryLimit};

/// Distinct keys in all.
const KEYS: u64 = 1_000_000;
/// The keys before the first measurement.
const WARM: u64 = KEYS / 20;
/// Blocks that are alive at once.
const ALIVE: u64 = 2000;

/// The links of a block's code.
type Links = [Link; 2];

fn resident_bytes() -> usize {
    let pages = std::fs::read_to_string("/proc/self/statm").unwrap();
    pages.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
}

/// The most memory that the cells took, and the table, in bytes.
#[derive(Debug, Default)]
struct Most {
    cell_bytes: usize,
    table_bytes: usize,
}

/// Commits a block for each of `keys`, linked to its neighbours, and looks each up. Ends all of
/// them every [`ALIVE`] blocks. Returns the most memory meanwhile: between two sweeps the cells
/// take one slab more or fewer, so one look would find more with one allocator than with another.
fn run(cache: &CodeCache<Links>, keys: std::ops::Range<u64>) -> Most {
    let (mut vcpu, mut most) = (cache.attach_vcpu(), Most::default());
    for key in keys {
        let links = [key + 1, key ^ 1].map(|target| cache.link(Key::new(target)).unwrap());
        let mut ticket = cache.begin(Key::new(key));
        ticket.claim(GuestAddr(0)).unwrap();
        ticket.commit(key as usize + 16, links).unwrap();
        assert_eq!(vcpu.pin().lookup(Key::new(key)), Some(key as usize + 16));
        if key.is_multiple_of(ALIVE / 8) {
            let Footprint { cell_bytes, table_bytes, .. } = cache.footprint();
            most.cell_bytes = most.cell_bytes.max(cell_bytes);
            most.table_bytes = most.table_bytes.max(table_bytes);
        }
        if key.is_multiple_of(ALIVE) {
            cache.tracker().invalidate(GuestAddr(0), 1).unwrap();
            assert_eq!(vcpu.pin().lookup(Key::new(key)), None);
        }
    }
    most
}

#[test]
fn ever_new_keys_take_no_more_memory() {
    let memory = GuestMemory::anonymous(1 << 16).unwrap();
    let cache = CodeCache::<Links>::new(EntryStubs::NOT_CODE).unwrap();
    cache.set_limit(MemoryLimit { retained_bytes: 0, ..MemoryLimit::default() });
    let options = RegionOptions::new(GuestAddr(0), memory.range(), Mode::None);
    // SAFETY: the memory has no other user, and outlives the cache.
    unsafe { cache.tracker().add_region(options) }.unwrap();
    let (warm, warm_resident) = (run(&cache, 0..WARM), resident_bytes());
    let (most, end_resident) = (run(&cache, WARM..KEYS), resident_bytes());
    let cells = cache.footprint().cells;
    println!("{KEYS} keys: {warm:?}, then {most:?}; resident {warm_resident}, then {end_resident} bytes");
    assert!(cells < 8 * ALIVE as usize, "{cells} cells for {ALIVE} blocks");
    assert!(
        most.cell_bytes <= 2 * warm.cell_bytes && most.table_bytes <= 2 * warm.table_bytes,
        "{warm:?}, then {most:?}"
    );
    assert!(end_resident < warm_resident + (4 << 20), "{warm_resident} bytes, then {end_resident}");
}
