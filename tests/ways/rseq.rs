//! Restartable sequences. After a switch of threads the kernel writes the processor's number
//! into the thread's area, on its way back to user mode. If that write is refused, it kills the
//! process with SIGSEGV. A guest may register an area in its own memory. Then the embedder
//! holds the page as long as the area is registered, or answers the guest with ENOSYS, as it
//! may.
//!
//! Each case runs in a process of its own. Its C library registers no area.
//!
//! # Safety
//!
//! The area lies in the fixture's memory, which outlives its registration.
#![allow(unsafe_code)]

use std::time::Duration;

use codewarden::guest_memory::GuestMemory;
use codewarden::protection::Mode;

use crate::own_process::{NOT_HERE, fatal_unless_announced};
use crate::support::{Fixture, PAGES, page_bytes};

/// Any number; the kernel expects it in front of abort handlers, and there are none.
const SIGNATURE: u32 = 0x5305_3053;
/// Bytes of an area, the first ones: `cpu_id_start` and `cpu_id` lead it.
const AREA_BYTES: usize = 32;
const UNREGISTER: i32 = 1;
/// `cpu_id` of an area that is not registered.
const UNINITIALIZED: [u8; 4] = [0xff; 4];

fn rseq(area: *mut u8, flags: i32) -> bool {
    // SAFETY: the caller's area.
    unsafe { libc::syscall(libc::SYS_rseq, area, AREA_BYTES, flags, SIGNATURE) == 0 }
}

/// Registers an area on a protected page and is switched out.
fn with_an_area(mode: Mode, announced: bool) {
    let guest = Fixture::new(mode, GuestMemory::anonymous(PAGES * page_bytes()).unwrap());
    let area = guest.host(1, 64);
    // SAFETY: in the memory.
    unsafe { area.add(4).cast::<[u8; 4]>().write_volatile(UNINITIALIZED) };
    let block = guest.block(1, 64);
    let held = announced.then(|| guest.prepare(1, 64, AREA_BYTES));
    if !rseq(area, 0) {
        std::process::exit(NOT_HERE);
    }
    std::thread::sleep(Duration::from_millis(2));
    assert_ne!(guest.bytes(1, 68, 4), UNINITIALIZED);
    assert!(rseq(area, UNREGISTER));
    drop(held);
    guest.expect_learned(block);
}

#[test]
fn an_area_on_a_protected_page() {
    // Its threads have no rseq area of the C library's.
    let variables = [("GLIBC_TUNABLES", "glibc.pthread.rseq=0")];
    fatal_unless_announced("rseq::an_area_on_a_protected_page", &variables, with_an_area);
}
