//! The self-checking entry of a block: host code that compares the guest's bytes with the block's
//! source. Then it continues at the plain entry, or leaves with [`ExitReason::CheckFailed`].
//!
//! It is assembled by hand, after the block in the same allocation. A compiled function would cost
//! a third of a small block's compilation. These few instructions cost almost no time, and the two
//! entries cannot be apart.
//!
//! ```text
//!   up to 16 bytes                      more
//!   mov rax, guest bytes                mov rax, guest bytes
//!   mov rcx, first chunk                movdqa xmm0, [rax]
//!   xor rcx, [rax]                      pcmpeqb xmm0, [snapshot]
//!   mov rdx, mask                       por xmm0, [bytes beside the block]
//!   test rcx, rdx                       movdqa xmm1, [rax + 16]
//!   jne failed                          pcmpeqb xmm1, [snapshot + 16]
//!   mov rcx, second chunk               pand xmm0, xmm1 ...
//!   cmp [rax + 8], rcx                  pmovmskb ecx, xmm0; cmp ecx, 0xffff
//!   je plain                            je plain
//!   failed: mov eax, CheckFailed; ret
//! ```
//!
//! Memory is read in aligned chunks, each by one load; [`memory::code`](crate::memory::code) gives
//! the reason. A mask leaves out the bytes beside the block in its first and last chunk. Aligned
//! `movdqa` loads are atomic on every processor with AVX; others compare 8 bytes at a time. Before
//! a jump to a block, the block's address is in `hart.pc`. A load that faults counts as the block's
//! first instruction. The check may clobber rax, rcx, rdx, xmm0 and xmm1; rdi and rsi hold the
//! block's arguments.

use std::ops::Range;

use super::entry::ExitReason;
use crate::memory::code::chunks;

/// Alignment of a check in bytes: its constants are vectors.
pub(super) const CHECK_ALIGN_BYTES: usize = VECTOR_BYTES;
const VECTOR_BYTES: usize = 16;
const WORD_BYTES: usize = 8;

/// The host code of one self-checking entry.
#[derive(Debug)]
pub(super) struct Check {
    code: Vec<u8>,
    /// The length of the instructions; constants follow.
    inst_bytes: usize,
    /// The position of the distance to the plain entry: the last four bytes of an instruction.
    to_plain: usize,
}

impl Check {
    /// Compares `source`, at least one instruction, with the bytes at `host`. `vectors` tells
    /// whether the host loads aligned vectors at once.
    pub(super) fn new(host: u64, source: &[u8], vectors: bool) -> Self {
        debug_assert!(source.len() >= 2, "{source:?}");
        let mut check = Self { code: Vec::with_capacity(64 + 3 * source.len()), inst_bytes: 0, to_plain: 0 };
        if vectors && source.len() > VECTOR_BYTES {
            check.vectors(host, source)
        } else {
            check.words(host, source)
        }
        check
    }

    /// Its size in bytes.
    pub(super) fn len_bytes(&self) -> usize {
        self.code.len()
    }

    /// Its instructions, for a check at offset `at`.
    pub(super) fn insts(&self, at: usize) -> Range<usize> {
        at..at + self.inst_bytes
    }

    /// The code, for a place `offset` bytes after the plain entry.
    pub(super) fn placed(mut self, offset: usize) -> Vec<u8> {
        let end = self.to_plain + 4;
        let distance = -((offset + end) as i32);
        self.code[self.to_plain..end].copy_from_slice(&distance.to_le_bytes());
        self.code
    }

    fn emit(&mut self, opcode: &[u8], operand: &[u8]) {
        self.code.extend(opcode);
        self.code.extend(operand);
    }

    /// mov rax, the address of the first chunk.
    fn load_base(&mut self, host: u64, chunk_bytes: usize) -> u64 {
        let base = host & !(chunk_bytes as u64 - 1);
        self.emit(&[0x48, 0xb8], &base.to_le_bytes());
        base
    }

    fn words(&mut self, host: u64, source: &[u8]) {
        let base = self.load_base(host, WORD_BYTES);
        let mut to_failed = Vec::new();
        for chunk in chunks::<WORD_BYTES>(host, source) {
            if chunk.at != base {
                // jne failed
                self.emit(&[0x0f, 0x85], &[0; 4]);
                to_failed.push(self.code.len());
            }
            let at = ((chunk.at - base) as i32).to_le_bytes();
            // mov rcx, chunk
            self.emit(&[0x48, 0xb9], &chunk.bytes);
            if chunk.is_whole() {
                // cmp [rax + at], rcx
                self.emit(&[0x48, 0x39, 0x88], &at);
            } else {
                // xor rcx, [rax + at]; mov rdx, mask; test rcx, rdx
                self.emit(&[0x48, 0x33, 0x88], &at);
                self.emit(&[0x48, 0xba], &chunk.mask);
                self.emit(&[0x48, 0x85, 0xd1], &[]);
            }
        }
        self.end();
        for from in to_failed {
            // The code after the final `je`.
            self.set_distance(from, self.to_plain + 4);
        }
    }

    fn vectors(&mut self, host: u64, source: &[u8]) {
        let base = self.load_base(host, VECTOR_BYTES);
        let mut constants = Vec::new();
        for chunk in chunks::<VECTOR_BYTES>(host, source) {
            let first = chunk.at == base;
            // The register is the first operand, a displacement or a constant the other.
            let (displaced, constant) = if first { (0x80, 0x05) } else { (0x88, 0x0d) };
            // movdqa xmm, [rax + at]; pcmpeqb xmm, [rip + bytes]
            self.emit(&[0x66, 0x0f, 0x6f, displaced], &((chunk.at - base) as i32).to_le_bytes());
            self.emit(&[0x66, 0x0f, 0x74, constant], &[0; 4]);
            constants.push((self.code.len(), chunk.bytes));
            if !chunk.is_whole() {
                // por xmm, [rip + bytes beside the block]
                self.emit(&[0x66, 0x0f, 0xeb, constant], &[0; 4]);
                constants.push((self.code.len(), chunk.mask.map(|own| !own)));
            }
            if !first {
                // pand xmm0, xmm1
                self.emit(&[0x66, 0x0f, 0xdb, 0xc1], &[]);
            }
        }
        // pmovmskb ecx, xmm0; cmp ecx, 0xffff
        self.emit(&[0x66, 0x0f, 0xd7, 0xc8], &[]);
        self.emit(&[0x81, 0xf9], &0xffff_u32.to_le_bytes());
        self.end();
        self.code.resize(self.code.len().next_multiple_of(VECTOR_BYTES), PADDING);
        for (from, constant) in constants {
            self.set_distance(from, self.code.len());
            self.code.extend(constant);
        }
    }

    /// Makes the four bytes before `from` lead to `to`.
    fn set_distance(&mut self, from: usize, to: usize) {
        self.code[from - 4..from].copy_from_slice(&((to - from) as i32).to_le_bytes());
    }

    /// Goes to the plain entry if the last comparison found no difference.
    fn end(&mut self) {
        // je plain
        self.emit(&[0x0f, 0x84], &[0; 4]);
        self.to_plain = self.code.len() - 4;
        // mov eax, CheckFailed; ret
        self.emit(&[0xb8], &(ExitReason::CheckFailed as u32).to_le_bytes());
        self.emit(&[0xc3], &[]);
        self.inst_bytes = self.code.len();
    }
}

/// `int3`.
const PADDING: u8 = 0xcc;
