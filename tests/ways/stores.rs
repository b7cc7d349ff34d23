//! Stores of the guest.
//!
//! # Safety
//!
//! Stores and instructions that store go to the fixture's own memory.
#![allow(unsafe_code)]

use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

use codewarden::guest_memory::GuestMemory;
use codewarden::policy::{Adaptive, Policy};
use codewarden::protection::Mode;

use crate::expect::{fixture, in_every_mode};
use crate::support::{PAGES, page_bytes, tracking_modes};

#[test]
fn one_byte() {
    in_every_mode(|guest| {
        let block = guest.block(1, 7);
        let other = guest.block(2, 7);
        // SAFETY: in the memory.
        unsafe { guest.host(1, 7).write_volatile(9) };
        assert_eq!(guest.bytes(1, 7, 1), [9]);
        guest.expect_learned(block);
        guest.expect_reachable(other);
        guest.expect_tracked(1, 7);
    });
}

#[test]
fn over_two_pages() {
    in_every_mode(|guest| {
        let (below, above) = (guest.block(3, page_bytes() - 4), guest.block(4, 0));
        let (over, bytes) = (1, [guest.guest(3, page_bytes() - 1).0, guest.guest(4, 0).0]);
        guest.translate(over, &bytes).unwrap();
        // SAFETY: in the memory; one store, unaligned.
        unsafe { guest.host(3, page_bytes() - 4).cast::<u64>().write_unaligned(u64::MAX) };
        assert_eq!(guest.bytes(3, page_bytes() - 4, 8), [0xff; 8]);
        guest.expect_learned(below);
        guest.expect_learned(above);
        assert_eq!(guest.lookup(over).is_some(), guest.mode == Mode::None, "{}: a block over both", guest.mode);
    });
}

/// The page dies with its code, or its blocks compare themselves from then on. So bytes that
/// the store changes beyond the faulting one are never run as old code.
#[test]
fn to_data_beside_code() {
    for mode in tracking_modes().into_iter().chain([Mode::None]) {
        for policy in [Adaptive::new(), Adaptive::with_checks()] {
            let guest = fixture(mode, GuestMemory::anonymous(PAGES * page_bytes()).unwrap(), policy);
            let block = guest.block(1, 1000);
            for byte in 0..5 {
                guest.store(guest.guest(1, 2000).0, byte);
                guest.announce();
            }
            let stays = mode == Mode::None || mode.is_synchronous() && policy.limits().checks_on_data_write;
            assert_eq!(guest.is_reachable(block), stays, "{mode}, {policy:?}");
            guest.block(1, 1000);
            // SAFETY: 1,024 bytes in the memory, the first of which are beside the code.
            unsafe { guest.host(1, 500).write_bytes(0x5a, 1024) };
            guest.expect_learned(block);
        }
    }
}

/// A page without any access before it is protected, or after.
#[test]
fn a_page_never_touched() {
    in_every_mode(|guest| {
        let key = guest.guest(9, 0);
        let mut ticket = guest.cache.begin(key.into());
        ticket.claim(key).unwrap();
        ticket.commit(0x1000, 0).unwrap();
        // SAFETY: in the memory.
        unsafe { guest.host(9, 100).write_volatile(1) };
        guest.announce();
        assert_eq!(guest.lookup(key.0).is_some(), guest.mode == Mode::None);
        assert_eq!(guest.bytes(9, 99, 3), [0, 1, 0]);
    });
}

/// It stores the value that it found, and the kernel treats it as a store.
#[test]
fn a_compare_and_exchange_that_fails() {
    in_every_mode(|guest| {
        let block = guest.block(5, 64);
        // SAFETY: aligned, in the memory, an atomic for every thread here.
        let word = unsafe { AtomicU64::from_ptr(guest.host(5, 64).cast()) };
        assert_eq!(word.compare_exchange(1, 2, SeqCst, SeqCst), Err(0));
        guest.expect_learned(block);
    });
}

#[cfg(target_arch = "x86_64")]
mod instructions {
    use super::*;

    /// Forwards from the end of one page into a second and a third.
    #[test]
    fn rep_stosb() {
        in_every_mode(|guest| {
            let blocks = [guest.block(6, page_bytes() - 8), guest.block(7, 100), guest.block(8, 0)];
            let len = page_bytes() + 16;
            // SAFETY: `len` bytes in the memory.
            unsafe {
                core::arch::asm!("rep stosb", inout("rcx") len => _, inout("rdi") guest.host(6, page_bytes() - 8) => _,
                    in("al") 3_u8, options(nostack));
            }
            assert_eq!(guest.bytes(6, page_bytes() - 8, len), vec![3; len]);
            blocks.into_iter().for_each(|block| guest.expect_learned(block));
        });
    }

    /// The fault's address is the highest byte of the written range.
    #[test]
    fn rep_stosb_backwards() {
        in_every_mode(|guest| {
            let blocks = [guest.block(6, page_bytes() - 8), guest.block(7, 100), guest.block(8, 7)];
            let len = page_bytes() + 16;
            // SAFETY: `len` bytes in the memory, the last one first; the direction is put back.
            unsafe {
                core::arch::asm!("std", "rep stosb", "cld", inout("rcx") len => _, inout("rdi") guest.host(8, 7) => _,
                    in("al") 4_u8, options(nostack));
            }
            assert_eq!(guest.bytes(6, page_bytes() - 8, len), vec![4; len]);
            blocks.into_iter().for_each(|block| guest.expect_learned(block));
        });
    }

    /// The fault's address may be in the middle of the area.
    #[test]
    fn xsave() {
        if !std::arch::is_x86_feature_detected!("xsave") {
            return crate::support::skip(&"this processor has no xsave");
        }
        in_every_mode(|guest| {
            // The header ends in the second page, which begins 64 bytes behind the legacy area.
            let start = page_bytes() - 512;
            let (below, above) = (guest.block(10, start), guest.block(11, 0));
            // SAFETY: 64-byte aligned; x87 and SSE state take 576 bytes, all in the memory.
            unsafe {
                core::arch::asm!("xsave64 [{area}]", area = in(reg) guest.host(10, start),
                    in("eax") 3, in("edx") 0, options(nostack));
            }
            assert_ne!(guest.bytes(11, 0, 8), [0; 8], "which states are saved");
            guest.expect_learned(below);
            guest.expect_learned(above);
        });
    }

    /// One instruction, eight bytes on each of eight pages.
    #[test]
    fn a_scatter() {
        if !std::arch::is_x86_feature_detected!("avx512f") {
            return crate::support::skip(&"this processor has no AVX-512");
        }
        in_every_mode(scatter);
    }

    // Tests may need a newer Rust than the library.
    #[allow(clippy::incompatible_msrv)]
    #[target_feature(enable = "avx512f")]
    fn scatter_to(base: *mut u8, offsets: &[i64; 8]) {
        use core::arch::x86_64::{_mm512_i64scatter_epi64, _mm512_loadu_si512, _mm512_set1_epi64};
        // SAFETY: the caller's bytes, and an array of the vector's size.
        unsafe {
            let offsets = _mm512_loadu_si512(offsets.as_ptr().cast());
            _mm512_i64scatter_epi64::<1>(base.cast(), offsets, _mm512_set1_epi64(-1));
        }
    }

    fn scatter(guest: &crate::support::Fixture) {
        let pages: [usize; 8] = core::array::from_fn(|lane| 15 - lane);
        let blocks = pages.map(|page| guest.block(page, 8));
        let offsets = pages.map(|page| (page * page_bytes() + 8) as i64);
        // SAFETY: the processor has AVX-512, and the bytes are in the memory.
        unsafe { scatter_to(guest.host(0, 0), &offsets) };
        for (page, block) in pages.into_iter().zip(blocks) {
            assert_eq!(guest.bytes(page, 8, 8), [0xff; 8]);
            guest.expect_learned(block);
        }
    }
}
