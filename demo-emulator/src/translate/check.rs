//! The checked entry of a block: host code that compares the guest's bytes with
//! those that the block was made from, then goes on to the plain entry, or
//! leaves with [`ExitReason::CheckFailed`].
//!
//! It is assembled by hand, behind the block in the same allocation. A function
//! of the compiler's would cost a third of a small block's compilation; these
//! few instructions cost none, and the two entries cannot be apart.
//!
//! ```text
//!   up to 16 bytes                      more
//!   mov rax, guest bytes                mov rax, guest bytes
//!   mov rcx, first 8 bytes              movdqu xmm0, [rax]
//!   cmp [rax], rcx                      pcmpeqb xmm0, [snapshot]
//!   jne failed                          movdqu xmm1, [rax + 16]
//!   mov rcx, last 8 bytes               pcmpeqb xmm1, [snapshot + 16]
//!   cmp [rax + len - 8], rcx            pand xmm0, xmm1 ...
//!   je plain                            pmovmskb ecx, xmm0; cmp ecx, 0xffff; je plain
//!   failed: mov eax, CheckFailed; ret
//! ```
//!
//! The last piece overlaps the one before it, so that no byte is read but the
//! block's own: the page behind it may not be there. Whoever jumps to a block
//! has put its address into `hart.pc`. A load that faults counts as the block's
//! first instruction. rax, rcx and xmm0 are the block's to clobber; rdi and rsi
//! hold its arguments.

use std::ops::Range;

use super::entry::ExitReason;

#[cfg(not(target_arch = "x86_64"))]
compile_error!("the checked entry is written for x86-64 hosts only: add it for this one here");

/// Where a check may be placed, in bytes: its constants are vectors.
pub(super) const CHECK_ALIGN_BYTES: usize = VECTOR_BYTES;
const VECTOR_BYTES: usize = 16;

/// The host code of one checked entry.
#[derive(Debug)]
pub(super) struct Check {
    code: Vec<u8>,
    /// What of it is instructions; constants follow.
    inst_bytes: usize,
    /// Where the distance to the plain entry stands: the last four bytes of an
    /// instruction.
    to_plain: usize,
}

impl Check {
    /// Compares `source`, an instruction at least, with the bytes at `host`.
    pub(super) fn new(host: u64, source: &[u8]) -> Self {
        debug_assert!(source.len() >= 2, "{source:?}");
        let mut check = Self { code: Vec::with_capacity(64 + 3 * source.len()), inst_bytes: 0, to_plain: 0 };
        // mov rax, host
        check.emit(&[0x48, 0xb8], &host.to_le_bytes());
        if source.len() <= VECTOR_BYTES {
            check.scalar(source)
        } else {
            check.vectors(source)
        }
        check
    }

    /// Bytes that it needs.
    pub(super) fn len_bytes(&self) -> usize {
        self.code.len()
    }

    /// Its instructions, for a check at offset `at`.
    pub(super) fn insts(&self, at: usize) -> Range<usize> {
        at..at + self.inst_bytes
    }

    /// The code, to be put `offset` bytes behind the plain entry.
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

    fn scalar(&mut self, source: &[u8]) {
        let (width, offsets) = pieces(source.len());
        let mut to_failed = Vec::new();
        for (index, &at) in offsets.iter().enumerate() {
            self.compare(at, &source[at..at + width]);
            if index + 1 < offsets.len() {
                // jne failed
                self.emit(&[0x75], &[0]);
                to_failed.push(self.code.len());
            }
        }
        self.end();
        for from in to_failed {
            // Behind the `je` that stands last.
            self.code[from - 1] = (self.to_plain + 4 - from) as u8;
        }
    }

    /// Compares the piece at `at`.
    fn compare(&mut self, at: usize, piece: &[u8]) {
        let at = (at as i32).to_le_bytes();
        match piece.len() {
            8 => {
                // mov rcx, piece; cmp [rax + at], rcx
                self.emit(&[0x48, 0xb9], piece);
                self.emit(&[0x48, 0x39, 0x88], &at);
            }
            4 => {
                // cmp dword ptr [rax + at], piece
                self.emit(&[0x81, 0xb8], &at);
                self.code.extend(piece);
            }
            _ => {
                // movzx ecx, word ptr [rax + at]; cmp ecx, piece
                self.emit(&[0x0f, 0xb7, 0x88], &at);
                self.emit(&[0x81, 0xf9], piece);
                self.code.extend([0, 0]);
            }
        }
    }

    fn vectors(&mut self, source: &[u8]) {
        let (_, offsets) = pieces(source.len());
        let mut constants = Vec::with_capacity(offsets.len());
        for &at in &offsets {
            let first = constants.is_empty();
            // movdqu xmm, [rax + at]; pcmpeqb xmm, [rip + constant]
            self.emit(&[0xf3, 0x0f, 0x6f, if first { 0x80 } else { 0x88 }], &(at as i32).to_le_bytes());
            self.emit(&[0x66, 0x0f, 0x74, if first { 0x05 } else { 0x0d }], &[0; 4]);
            constants.push(self.code.len());
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
        for (from, at) in constants.into_iter().zip(offsets) {
            let distance = (self.code.len() - from) as i32;
            self.code[from - 4..from].copy_from_slice(&distance.to_le_bytes());
            self.code.extend(&source[at..at + VECTOR_BYTES]);
        }
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

/// How `len` bytes are read: in pieces of one width, at these offsets.
fn pieces(len: usize) -> (usize, Vec<usize>) {
    let width = match len {
        0..4 => 2,
        4..8 => 4,
        8..=VECTOR_BYTES => 8,
        _ => VECTOR_BYTES,
    };
    let whole = (0..len / width).map(|index| index * width);
    let rest = (!len.is_multiple_of(width)).then(|| len - width);
    (width, whole.chain(rest).collect())
}
