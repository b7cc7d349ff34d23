//! The self-checking entry of a block on aarch64 hosts: see `check.rs`, which is x86-64's.
//!
//! ```text
//!   ldr x9, guest bytes
//!   ldr x10, [x9]
//!   ldr x11, first chunk
//!   eor x10, x10, x11
//!   ldr x11, mask
//!   and x10, x10, x11
//!   cbnz x10, failed
//!   ldr x10, [x9, 8]
//!   ldr x11, second chunk
//!   eor x10, x10, x11
//!   cbz x10, plain
//!   failed: mov x2, CheckFailed; ret
//! ```
//!
//! Memory is read in aligned chunks of 8 bytes. The check clobbers x9, x10 and x11; x2 and x3 hold
//! the block's arguments. Constants follow the instructions.

use std::ops::Range;

use super::entry::ExitReason;
use crate::memory::code::chunks;

/// Alignment of a check in bytes: that of its constants.
pub(super) const CHECK_ALIGN_BYTES: usize = WORD_BYTES;
const WORD_BYTES: usize = 8;
const INST_BYTES: usize = 4;

const BASE: u32 = 9;
const FOUND: u32 = 10;
const WANTED: u32 = 11;

/// Instructions with a distance in units of 4 bytes in bits 5 to 23, and their register.
const LDR_LITERAL: u32 = 0x5800_0000;
const CBZ: u32 = 0xb400_0000;
const CBNZ: u32 = 0xb500_0000;

/// The host code of one self-checking entry.
#[derive(Debug)]
pub(super) struct Check {
    insts: Vec<u32>,
    /// The place of the instruction that goes to the plain entry.
    to_plain: usize,
    constants: Vec<[u8; WORD_BYTES]>,
    /// The places of the instructions that load each constant.
    loads: Vec<usize>,
}

impl Check {
    /// Compares `source`, at least one instruction, with the bytes at `host`. Vectors are not used.
    pub(super) fn new(host: u64, source: &[u8], _vectors: bool) -> Self {
        debug_assert!(source.len() >= 2, "{source:?}");
        let mut check = Self { insts: Vec::new(), to_plain: 0, constants: Vec::new(), loads: Vec::new() };
        let base = host & !(WORD_BYTES as u64 - 1);
        check.load_constant(BASE, base.to_le_bytes());
        let mut to_failed = Vec::new();
        for chunk in chunks::<WORD_BYTES>(host, source) {
            if chunk.at != base {
                to_failed.push(check.insts.len());
                check.insts.push(CBNZ | FOUND);
            }
            // ldr x10, [x9, at]: the offset is in units of 8 bytes.
            let offset = (chunk.at - base) as u32 / WORD_BYTES as u32;
            assert!(offset < 1 << 12, "a block of more than 32 KiB");
            check.insts.push(0xf940_0000 | offset << 10 | BASE << 5 | FOUND);
            check.load_constant(WANTED, chunk.bytes);
            // eor x10, x10, x11
            check.insts.push(0xca00_0000 | WANTED << 16 | FOUND << 5 | FOUND);
            if !chunk.is_whole() {
                check.load_constant(WANTED, chunk.mask);
                // and x10, x10, x11
                check.insts.push(0x8a00_0000 | WANTED << 16 | FOUND << 5 | FOUND);
            }
        }
        check.to_plain = check.insts.len();
        check.insts.push(CBZ | FOUND);
        // mov x2, CheckFailed; ret
        let failed = check.insts.len();
        check.insts.extend([0xd280_0002 | (ExitReason::CheckFailed as u32) << 5, 0xd65f_03c0]);
        for from in to_failed {
            check.set_distance(from, (failed - from) as i32);
        }
        for index in 0..check.loads.len() {
            let (from, to) =
                (check.loads[index], check.constants_at() / INST_BYTES + index * (WORD_BYTES / INST_BYTES));
            check.set_distance(from, (to - from) as i32);
        }
        check
    }

    /// The offset of the constants, in bytes.
    fn constants_at(&self) -> usize {
        (self.insts.len() * INST_BYTES).next_multiple_of(WORD_BYTES)
    }

    /// Its size in bytes.
    pub(super) fn len_bytes(&self) -> usize {
        self.constants_at() + self.constants.len() * WORD_BYTES
    }

    /// Its instructions, for a check at offset `at`.
    pub(super) fn insts(&self, at: usize) -> Range<usize> {
        at..at + self.insts.len() * INST_BYTES
    }

    /// The code, for a place `offset` bytes after the plain entry.
    pub(super) fn placed(mut self, offset: usize) -> Vec<u8> {
        self.set_distance(self.to_plain, -((offset / INST_BYTES + self.to_plain) as i32));
        let mut code: Vec<u8> = self.insts.iter().flat_map(|inst| inst.to_le_bytes()).collect();
        code.resize(self.constants_at(), 0);
        code.extend(self.constants.iter().flatten());
        code
    }

    fn load_constant(&mut self, register: u32, bytes: [u8; WORD_BYTES]) {
        self.loads.push(self.insts.len());
        self.constants.push(bytes);
        self.insts.push(LDR_LITERAL | register);
    }

    /// Puts a distance, in instructions, into the instruction at `at`.
    fn set_distance(&mut self, at: usize, distance: i32) {
        const BITS: u32 = 19;
        assert!((-(1 << (BITS - 1))..1 << (BITS - 1)).contains(&distance), "a block of more than 1 MiB");
        self.insts[at] |= (distance as u32 & ((1 << BITS) - 1)) << 5;
    }
}
