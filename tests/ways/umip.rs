//! Instructions that reveal the kernel's tables (`sgdt`, `sidt`, `smsw`). A processor with UMIP
//! keeps them from user mode. Then the kernel emulates them and stores an invented value, as a
//! system call would. If that store is refused, it kills the process with SIGSEGV. So an embedder
//! with such instructions in its code holds the page, or interprets them.
//!
//! Each case runs in a process of its own.
//!
//! # Safety
//!
//! The store hits the fixture's memory.
#![allow(unsafe_code)]

use codewarden::guest_memory::GuestMemory;
use codewarden::protection::Mode;

use crate::own_process::{NOT_HERE, fatal_unless_announced};
use crate::support::{Fixture, PAGES, page_bytes};

/// The size of the value that `sgdt` stores.
const TABLE_BYTES: usize = 10;

#[cfg(target_arch = "x86_64")]
fn sgdt(into: *mut u8) {
    let flags = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    if !flags.split_whitespace().any(|flag| flag == "umip") {
        std::process::exit(NOT_HERE);
    }
    // SAFETY: `TABLE_BYTES` of the fixture's memory.
    unsafe { core::arch::asm!("sgdt [{}]", in(reg) into, options(nostack)) };
}

#[cfg(not(target_arch = "x86_64"))]
fn sgdt(_: *mut u8) {
    std::process::exit(NOT_HERE);
}

fn on_a_protected_page(mode: Mode, announced: bool) {
    let guest = Fixture::new(mode, GuestMemory::anonymous(PAGES * page_bytes()).unwrap());
    let block = guest.block(1, 64);
    let held = announced.then(|| guest.prepare(1, 64, TABLE_BYTES));
    sgdt(guest.host(1, 64));
    assert_ne!(guest.bytes(1, 64, TABLE_BYTES), [0; TABLE_BYTES]);
    drop(held);
    guest.expect_learned(block);
}

#[test]
fn an_instruction_that_the_kernel_carries_out() {
    fatal_unless_announced("umip::an_instruction_that_the_kernel_carries_out", &[], on_a_protected_page);
}
