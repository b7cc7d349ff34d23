//! Copies guest bytes without a data race, even while guest threads store and other copies run.
//!
//! Rust has no copy of many bytes that may race. A plain copy must not race, atomic accesses of
//! different sizes must not race with each other, and a copy byte by byte is slow. So each piece is
//! a load and a store in assembly. In Rust's memory model these are relaxed atomic accesses of
//! single bytes, so all have one size. The processor does more: it copies aligned pieces of 8, 4
//! and 2 bytes at once, so an aligned instruction is copied whole. (`rep movsb` is no faster here,
//! and promises nothing about pieces.)
//!
//! # Safety
//!
//! The caller guarantees that both sides are mapped with the needed access, and that no reference
//! to a byte of guest memory exists.
#![allow(unsafe_code)]

/// Largest piece, in bytes.
#[cfg(not(miri))]
const PIECE: usize = 8;

/// One piece of 1, 2, 4 or 8 bytes.
///
/// # Safety
///
/// As in the module's head.
#[cfg(all(target_arch = "x86_64", not(miri)))]
#[inline(always)]
unsafe fn copy_piece(from: *const u8, into: *mut u8, bytes: usize) {
    use core::arch::asm;
    // SAFETY: the caller's obligation; the registers are the asm's own.
    unsafe {
        match bytes {
            8 => asm!("mov {t}, qword ptr [{from}]", "mov qword ptr [{into}], {t}",
                from = in(reg) from, into = in(reg) into, t = out(reg) _, options(nostack, preserves_flags)),
            4 => asm!("mov {t:e}, dword ptr [{from}]", "mov dword ptr [{into}], {t:e}",
                from = in(reg) from, into = in(reg) into, t = out(reg) _, options(nostack, preserves_flags)),
            2 => asm!("movzx {t:e}, word ptr [{from}]", "mov word ptr [{into}], {t:x}",
                from = in(reg) from, into = in(reg) into, t = out(reg) _, options(nostack, preserves_flags)),
            _ => asm!("movzx {t:e}, byte ptr [{from}]", "mov byte ptr [{into}], {t:l}",
                from = in(reg) from, into = in(reg) into, t = out(reg) _, options(nostack, preserves_flags)),
        }
    }
}

/// One piece of 1, 2, 4 or 8 bytes.
///
/// # Safety
///
/// As in the module's head.
#[cfg(all(target_arch = "aarch64", not(miri)))]
#[inline(always)]
unsafe fn copy_piece(from: *const u8, into: *mut u8, bytes: usize) {
    use core::arch::asm;
    // SAFETY: the caller's obligation; the registers are the asm's own.
    unsafe {
        match bytes {
            8 => asm!("ldr {t:x}, [{from}]", "str {t:x}, [{into}]",
                from = in(reg) from, into = in(reg) into, t = out(reg) _, options(nostack, preserves_flags)),
            4 => asm!("ldr {t:w}, [{from}]", "str {t:w}, [{into}]",
                from = in(reg) from, into = in(reg) into, t = out(reg) _, options(nostack, preserves_flags)),
            2 => asm!("ldrh {t:w}, [{from}]", "strh {t:w}, [{into}]",
                from = in(reg) from, into = in(reg) into, t = out(reg) _, options(nostack, preserves_flags)),
            _ => asm!("ldrb {t:w}, [{from}]", "strb {t:w}, [{into}]",
                from = in(reg) from, into = in(reg) into, t = out(reg) _, options(nostack, preserves_flags)),
        }
    }
}

/// One piece of 1, 2, 4 or 8 bytes.
///
/// # Safety
///
/// As in the module's head.
#[cfg(all(target_arch = "riscv64", not(miri)))]
#[inline(always)]
unsafe fn copy_piece(from: *const u8, into: *mut u8, bytes: usize) {
    use core::arch::asm;
    // SAFETY: the caller's obligation; the registers are the asm's own.
    unsafe {
        match bytes {
            8 => asm!("ld {t}, 0({from})", "sd {t}, 0({into})",
                from = in(reg) from, into = in(reg) into, t = out(reg) _, options(nostack, preserves_flags)),
            4 => asm!("lw {t}, 0({from})", "sw {t}, 0({into})",
                from = in(reg) from, into = in(reg) into, t = out(reg) _, options(nostack, preserves_flags)),
            2 => asm!("lh {t}, 0({from})", "sh {t}, 0({into})",
                from = in(reg) from, into = in(reg) into, t = out(reg) _, options(nostack, preserves_flags)),
            _ => asm!("lb {t}, 0({from})", "sb {t}, 0({into})",
                from = in(reg) from, into = in(reg) into, t = out(reg) _, options(nostack, preserves_flags)),
        }
    }
}

/// The largest aligned piece that starts at `address` and has at most `left` bytes.
#[cfg(not(miri))]
fn first_piece(address: usize, left: usize) -> usize {
    let aligned = 1 << address.trailing_zeros().min(PIECE.trailing_zeros());
    aligned.min(1 << left.ilog2())
}

/// Copies from the first byte to the last. Pieces are aligned at `pieces_at`, the address of the
/// guest's side.
#[cfg(not(miri))]
unsafe fn forwards(from: *const u8, into: *mut u8, len: usize, pieces_at: usize) {
    let mut at = 0;
    while at < len {
        let piece = first_piece(pieces_at + at, len - at);
        let end = if piece == PIECE { at + (len - at) / PIECE * PIECE } else { at + piece };
        while at < end {
            // SAFETY: within `len`; the caller's obligation.
            unsafe { copy_piece(from.wrapping_add(at), into.wrapping_add(at), piece) };
            at += piece;
        }
    }
}

/// Copies from the last byte to the first.
#[cfg(not(miri))]
unsafe fn backwards(from: *const u8, into: *mut u8, len: usize) {
    let mut left = len;
    while left > 0 {
        // The largest aligned piece that ends here.
        let piece = first_piece(into.addr() + left, left);
        left -= piece;
        // SAFETY: within `len`; the caller's obligation.
        unsafe { copy_piece(from.wrapping_add(left), into.wrapping_add(left), piece) };
    }
}

/// Copies guest bytes out.
///
/// # Safety
///
/// As in the module's head; `into.len()` bytes are there at `guest`.
pub(super) unsafe fn copy_out(guest: *const u8, into: &mut [u8]) {
    #[cfg(not(miri))]
    // SAFETY: the caller's obligation.
    unsafe {
        forwards(guest, into.as_mut_ptr(), into.len(), guest.addr());
    }
    #[cfg(miri)]
    for (at, byte) in into.iter_mut().enumerate() {
        // SAFETY: the caller's obligation.
        *byte = unsafe { bytes::load(guest.wrapping_add(at)) };
    }
}

/// Copies bytes into guest memory.
///
/// # Safety
///
/// As in the module's head; there is room for `from.len()` bytes at `guest`.
pub(super) unsafe fn copy_in(from: &[u8], guest: *mut u8) {
    #[cfg(not(miri))]
    // SAFETY: the caller's obligation.
    unsafe {
        forwards(from.as_ptr(), guest, from.len(), guest.addr());
    }
    #[cfg(miri)]
    for (at, byte) in from.iter().enumerate() {
        // SAFETY: the caller's obligation.
        unsafe { bytes::store(guest.wrapping_add(at), *byte) };
    }
}

/// Moves `len` guest bytes, which may overlap.
///
/// # Safety
///
/// As in the module's head; `len` bytes are there at both.
pub(super) unsafe fn copy_within(from: *const u8, into: *mut u8, len: usize) {
    let is_over_itself = into.addr().wrapping_sub(from.addr()) < len;
    #[cfg(not(miri))]
    // SAFETY: the caller's obligation. A piece is loaded before it is stored, so it may overlap
    // itself.
    unsafe {
        if is_over_itself { backwards(from, into, len) } else { forwards(from, into, len, into.addr()) }
    }
    #[cfg(miri)]
    for step in 0..len {
        let at = if is_over_itself { len - 1 - step } else { step };
        // SAFETY: the caller's obligation.
        unsafe { bytes::store(into.wrapping_add(at), bytes::load(from.wrapping_add(at))) };
    }
}

/// The same accesses by Rust's rules, for Miri, which knows no assembly.
#[cfg(miri)]
mod bytes {
    use core::sync::atomic::{AtomicU8, Ordering::Relaxed};

    pub(super) unsafe fn load(from: *const u8) -> u8 {
        // SAFETY: the caller's obligation; guest memory is shared and written only by atomics.
        unsafe { AtomicU8::from_ptr(from.cast_mut()) }.load(Relaxed)
    }

    pub(super) unsafe fn store(into: *mut u8, byte: u8) {
        // SAFETY: as above.
        unsafe { AtomicU8::from_ptr(into) }.store(byte, Relaxed);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use core::sync::atomic::{AtomicU8, Ordering::Relaxed};

    use super::*;

    const LEN: usize = if cfg!(miri) { 24 } else { 40 };

    fn guest() -> Vec<AtomicU8> {
        (0..LEN).map(|byte| AtomicU8::new(byte as u8)).collect()
    }

    fn bytes(guest: &[AtomicU8]) -> Vec<u8> {
        guest.iter().map(|byte| byte.load(Relaxed)).collect()
    }

    /// Each length at each place, compared with the slice's own copies.
    #[test]
    fn agrees_with_copies_of_slices() {
        for len in 0..=LEN / 2 {
            for at in 0..LEN - len {
                let memory = guest();
                let first = memory.as_ptr().cast_mut().cast::<u8>();
                let mut out = vec![0xff; len];
                // SAFETY: inside the vector, which is guest memory here.
                unsafe { copy_out(first.wrapping_add(at), &mut out) };
                assert!(out.iter().copied().eq(at as u8..(at + len) as u8), "{len} bytes from {at}");
                let new: Vec<u8> = (0..len).map(|byte| 0x80 + byte as u8).collect();
                let mut expected = bytes(&memory);
                expected[at..at + len].copy_from_slice(&new);
                // SAFETY: as above.
                unsafe { copy_in(&new, first.wrapping_add(at)) };
                assert_eq!(bytes(&memory), expected, "{len} bytes to {at}");
                for from in 0..LEN - len {
                    let memory = guest();
                    let first = memory.as_ptr().cast_mut().cast::<u8>();
                    let mut expected = bytes(&memory);
                    expected.copy_within(from..from + len, at);
                    // SAFETY: as above.
                    unsafe { copy_within(first.wrapping_add(from), first.wrapping_add(at), len) };
                    assert_eq!(bytes(&memory), expected, "{len} bytes from {from} to {at}");
                }
            }
        }
    }

    /// For Miri and ThreadSanitizer: two copies and a guest's own stores at once.
    #[test]
    fn copies_may_meet() {
        let memory = guest();
        let first = memory.as_ptr().cast_mut().cast::<u8>() as usize;
        std::thread::scope(|scope| {
            let place = move |at: usize| (first as *mut u8).wrapping_add(at);
            // SAFETY: inside the vector.
            scope.spawn(move || (0..50).for_each(|_| unsafe { copy_in(&[1; 13], place(1)) }));
            // SAFETY: inside the vector.
            scope.spawn(move || (0..50).for_each(|_| unsafe { copy_out(place(3), &mut [0; 11]) }));
            // SAFETY: inside the vector.
            scope.spawn(move || (0..50).for_each(|_| unsafe { copy_within(place(2), place(5), 9) }));
            scope.spawn(|| (0..50).for_each(|byte| memory[7].store(byte, Relaxed)));
        });
        assert_eq!(memory[0].load(Relaxed), 0);
    }

    /// An aligned word is never seen in halves. (On the processor; not under Miri.)
    #[cfg(not(miri))]
    #[test]
    fn an_aligned_word_is_copied_whole() {
        use core::sync::atomic::{AtomicBool, AtomicU64};
        let memory = [const { AtomicU64::new(0) }; 4];
        let first = memory.as_ptr().cast_mut().cast::<u8>() as usize;
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for round in 0..200_000u64 {
                    let byte = if round % 2 == 0 { 0 } else { 0xff };
                    // SAFETY: inside the array, two words and some bytes on either side.
                    unsafe { copy_in(&[byte; 20], (first as *mut u8).wrapping_add(6)) };
                }
                stop.store(true, Relaxed);
            });
            while !stop.load(Relaxed) {
                let mut word = [0; 8];
                // SAFETY: inside the array.
                unsafe { copy_out((first as *const u8).wrapping_add(8), &mut word) };
                assert!(word == [0; 8] || word == [0xff; 8], "{word:x?}");
            }
        });
    }
}
