//! RISC-V ELF programs: their headers, checked before any use.
//!
//! Parsing is pure. It takes the first bytes of a file and a function that reads more, and returns
//! an [`Image`]. The segments lie in the window, in ascending order and without overlap, and no sum
//! of their fields wraps.

use std::fmt;

use crate::memory::window::{EXEC, READ, WINDOW_LEN_BYTES, WRITE};

use super::address_space::{LOWEST, PAGE_BYTES};
use super::user_memory::{half_at, word_at};
use super::vma::Prot;

/// Bytes of the ELF header.
pub const EHDR_BYTES: usize = 64;
/// Bytes of a program header.
pub const PHDR_BYTES: usize = 56;
/// More program headers than a page holds are refused, as Linux refuses them.
const PHDRS_MAX: usize = PAGE_BYTES as usize / PHDR_BYTES;

const ELFCLASS64: u8 = 2;
const ELFDATA2LSB: u8 = 1;
const ET_EXEC: u16 = 2;
const ET_DYN: u16 = 3;
const EM_RISCV: u16 = 243;
const EF_RISCV_RVE: u32 = 8;
const PT_LOAD: u32 = 1;
const PT_INTERP: u32 = 3;

/// The reason why a file cannot be run.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ElfError {
    /// It does not begin with ELF's magic number.
    NotElf,
    /// A 32-bit or big-endian file.
    NotElf64Little,
    /// For another machine: its number.
    OtherMachine(u16),
    /// For RV64E, which has half the registers.
    Rve,
    /// Neither a program nor a position-independent one: its type.
    NotAProgram(u16),
    /// The file is shorter than its headers promise.
    Truncated(&'static str),
    /// A header's field has no possible meaning.
    Malformed(&'static str),
    /// A segment does not fit the guest's address space.
    DoesNotFit {
        /// Its address in the file.
        address: u64,
        /// Its size in memory.
        len_bytes: u64,
    },
    /// A segment that cannot be moved begins where nothing may be mapped: its address.
    TooLow(u64),
}

impl fmt::Display for ElfError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotElf => f.write_str("not an ELF file"),
            Self::NotElf64Little => f.write_str("not a 64-bit little-endian ELF file; only RV64 runs here"),
            Self::OtherMachine(machine) => {
                let name = match machine {
                    3 => " (x86)",
                    40 => " (Arm)",
                    62 => " (x86-64)",
                    183 => " (AArch64)",
                    _ => "",
                };
                write!(f, "an ELF file for machine {machine}{name}, not for RISC-V ({EM_RISCV})")
            }
            Self::Rve => f.write_str("built for RV64E, which is not supported; build it for rv64gc"),
            Self::NotAProgram(1) => f.write_str("an object file; link it first"),
            Self::NotAProgram(4) => f.write_str("a core dump, not a program"),
            Self::NotAProgram(kind) => write!(f, "ELF type {kind} is not a program"),
            Self::Truncated(what) => write!(f, "truncated ELF file: {what} lies beyond its end"),
            Self::Malformed(what) => write!(f, "malformed ELF file: {what}"),
            Self::DoesNotFit { address, len_bytes } => write!(
                f,
                "the segment at {address:#x} of {len_bytes:#x} bytes does not fit the guest's address space of {WINDOW_LEN_BYTES:#x} bytes"
            ),
            Self::TooLow(address) => {
                write!(f, "the segment at {address:#x} begins below {LOWEST:#x}, where nothing may be mapped")
            }
        }
    }
}

impl std::error::Error for ElfError {}

/// A PT_LOAD segment; addresses are the file's.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Segment {
    /// First address.
    pub address: u64,
    /// Bytes in memory.
    pub memory_bytes: u64,
    /// Bytes that come from the file.
    pub file_bytes: u64,
    /// Their offset in the file; congruent to the address in a page.
    pub offset: u64,
    /// Guest protection.
    pub prot: Prot,
}

impl Segment {
    /// First page's address.
    pub fn page_start(&self) -> u64 {
        self.address & !(PAGE_BYTES - 1)
    }

    /// One past the last byte.
    pub fn end(&self) -> u64 {
        self.address + self.memory_bytes
    }

    /// One past the last page.
    pub fn page_end(&self) -> u64 {
        (self.end() + PAGE_BYTES - 1) & !(PAGE_BYTES - 1)
    }
}

/// The contents of a program's headers.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Image {
    /// Whether it can be loaded at any address.
    pub is_position_independent: bool,
    /// First instruction, an address of the file.
    pub entry: u64,
    /// Segments to load, ascending, at least one.
    pub segments: Vec<Segment>,
    /// Address of the program headers in memory, if a segment holds them.
    pub phdr_address: Option<u64>,
    /// Number of program headers.
    pub phdr_count: u64,
    /// The dynamic loader that it asks for.
    pub interpreter: Option<Vec<u8>>,
}

impl Image {
    /// First address of the first page.
    pub fn start(&self) -> u64 {
        self.segments.first().map_or(0, Segment::page_start)
    }

    /// One past the last page.
    pub fn end(&self) -> u64 {
        self.segments.last().map_or(0, Segment::page_end)
    }
}

fn field_u16(bytes: &[u8], offset: usize) -> u16 {
    u16::from_le_bytes([bytes[offset], bytes[offset + 1]])
}

/// Whether `header`, the first bytes of a file, begin an RV64 program.
pub fn is_riscv(header: &[u8]) -> bool {
    header.len() >= 20
        && header.starts_with(b"\x7fELF")
        && header[4] == ELFCLASS64
        && header[5] == ELFDATA2LSB
        && field_u16(header, 18) == EM_RISCV
}

/// Reads the headers of a file of `file_bytes` bytes. `read` fills a buffer from an offset and
/// returns the number of bytes.
pub fn parse(file_bytes: u64, read: &dyn Fn(u64, &mut [u8]) -> usize) -> Result<Image, ElfError> {
    let mut header = [0; EHDR_BYTES];
    let got = read(0, &mut header);
    if got < 4 || !header.starts_with(b"\x7fELF") {
        return Err(ElfError::NotElf);
    }
    if got < EHDR_BYTES {
        return Err(ElfError::Truncated("the ELF header"));
    }
    if header[4] != ELFCLASS64 || header[5] != ELFDATA2LSB {
        return Err(ElfError::NotElf64Little);
    }
    let (kind, machine) = (field_u16(&header, 16), field_u16(&header, 18));
    if machine != EM_RISCV {
        return Err(ElfError::OtherMachine(machine));
    }
    if kind != ET_EXEC && kind != ET_DYN {
        return Err(ElfError::NotAProgram(kind));
    }
    if half_at(&header, 48) & EF_RISCV_RVE != 0 {
        return Err(ElfError::Rve);
    }
    let (phdr_offset, phdr_count) = (word_at(&header, 32), usize::from(field_u16(&header, 56)));
    if usize::from(field_u16(&header, 54)) != PHDR_BYTES {
        return Err(ElfError::Malformed("its program headers have another size than 56 bytes"));
    }
    if phdr_count == 0 || phdr_count > PHDRS_MAX {
        return Err(ElfError::Malformed("it has no program headers, or more than a page of them"));
    }
    let mut phdrs = vec![0; phdr_count * PHDR_BYTES];
    if phdr_offset.checked_add(phdrs.len() as u64).is_none_or(|end| end > file_bytes)
        || read(phdr_offset, &mut phdrs) < phdrs.len()
    {
        return Err(ElfError::Truncated("its program header table"));
    }
    let mut image = Image {
        is_position_independent: kind == ET_DYN,
        entry: word_at(&header, 24),
        segments: Vec::new(),
        phdr_address: None,
        phdr_count: phdr_count as u64,
        interpreter: None,
    };
    for phdr in phdrs.chunks_exact(PHDR_BYTES) {
        match half_at(phdr, 0) {
            PT_LOAD => push_segment(&mut image.segments, phdr, file_bytes)?,
            PT_INTERP => image.interpreter = Some(interpreter(phdr, file_bytes, read)?),
            _ => {}
        }
    }
    if image.segments.is_empty() {
        return Err(ElfError::Malformed("it has nothing to load"));
    }
    if !image.is_position_independent && image.start() < LOWEST {
        return Err(ElfError::TooLow(image.segments[0].address));
    }
    let holds_phdrs = |s: &&Segment| s.offset <= phdr_offset && phdr_offset - s.offset < s.file_bytes;
    image.phdr_address = image.segments.iter().find(holds_phdrs).map(|s| s.address + (phdr_offset - s.offset));
    let entry_is_code =
        |s: &Segment| s.prot & EXEC != 0 && image.entry >= s.address && image.entry - s.address < s.memory_bytes;
    if !image.segments.iter().any(entry_is_code) {
        return Err(ElfError::Malformed("its entry point lies in no executable segment"));
    }
    Ok(image)
}

fn push_segment(segments: &mut Vec<Segment>, phdr: &[u8], file_bytes: u64) -> Result<(), ElfError> {
    let flags = half_at(phdr, 4);
    let mut prot = 0;
    for (bit, meaning) in [(4, READ), (2, WRITE), (1, EXEC)] {
        prot |= if flags & bit != 0 { meaning } else { 0 };
    }
    let segment = Segment {
        offset: word_at(phdr, 8),
        address: word_at(phdr, 16),
        file_bytes: word_at(phdr, 32),
        memory_bytes: word_at(phdr, 40),
        prot,
    };
    if segment.memory_bytes == 0 {
        return Ok(());
    }
    if segment.file_bytes > segment.memory_bytes {
        return Err(ElfError::Malformed("a segment is larger in the file than in memory"));
    }
    if segment.offset.checked_add(segment.file_bytes).is_none_or(|end| end > file_bytes) {
        return Err(ElfError::Truncated("a segment"));
    }
    if segment.address % PAGE_BYTES != segment.offset % PAGE_BYTES {
        return Err(ElfError::Malformed("a segment's address and file offset differ within a page"));
    }
    let fits = segment.address.checked_add(segment.memory_bytes).is_some_and(|end| end <= WINDOW_LEN_BYTES);
    if !fits {
        return Err(ElfError::DoesNotFit { address: segment.address, len_bytes: segment.memory_bytes });
    }
    if segments.last().is_some_and(|last| last.end() > segment.address) {
        return Err(ElfError::Malformed("its segments overlap or are not in ascending order"));
    }
    segments.push(segment);
    Ok(())
}

fn interpreter(phdr: &[u8], file_bytes: u64, read: &dyn Fn(u64, &mut [u8]) -> usize) -> Result<Vec<u8>, ElfError> {
    let (offset, len) = (word_at(phdr, 8), word_at(phdr, 32));
    if !(2..=4096).contains(&len) {
        return Err(ElfError::Malformed("the name of its dynamic loader has no possible length"));
    }
    let mut name = vec![0; len as usize];
    if offset.checked_add(len).is_none_or(|end| end > file_bytes) || read(offset, &mut name) < name.len() {
        return Err(ElfError::Truncated("the name of its dynamic loader"));
    }
    if name.pop() != Some(0) || name.contains(&0) {
        return Err(ElfError::Malformed("the name of its dynamic loader does not end where it should"));
    }
    Ok(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A program of one page: headers, then one `ecall`.
    fn program() -> Vec<u8> {
        let mut bytes = vec![0; 0x100];
        bytes[..6].copy_from_slice(b"\x7fELF\x02\x01");
        bytes[16] = 2;
        bytes[18] = 243;
        put(&mut bytes, 24, 0x1_00f0);
        put(&mut bytes, 32, 64);
        bytes[54] = 56;
        bytes[56] = 1;
        bytes[64] = 1;
        bytes[68] = 5;
        put(&mut bytes, 64 + 16, 0x1_0000);
        put(&mut bytes, 64 + 32, 0x100);
        put(&mut bytes, 64 + 40, 0x2000);
        bytes
    }

    fn put(bytes: &mut [u8], offset: usize, value: u64) {
        bytes[offset..offset + 8].copy_from_slice(&value.to_le_bytes());
    }

    fn parse_bytes(bytes: &[u8]) -> Result<Image, ElfError> {
        parse(bytes.len() as u64, &|offset, buffer| {
            let rest = bytes.get(offset as usize..).unwrap_or_default();
            let len = rest.len().min(buffer.len());
            buffer[..len].copy_from_slice(&rest[..len]);
            len
        })
    }

    fn error_of(change: impl FnOnce(&mut Vec<u8>)) -> ElfError {
        let mut bytes = program();
        change(&mut bytes);
        parse_bytes(&bytes).expect_err("this is no program")
    }

    #[test]
    fn a_program_is_read() {
        let image = parse_bytes(&program()).unwrap();
        assert_eq!((image.entry, image.phdr_address, image.phdr_count), (0x1_00f0, Some(0x1_0040), 1));
        assert_eq!(image.segments[0].prot, READ | EXEC);
        assert_eq!((image.start(), image.end()), (0x1_0000, 0x1_2000));
    }

    #[test]
    fn other_files_are_refused_with_their_reason() {
        assert_eq!(parse_bytes(b""), Err(ElfError::NotElf));
        assert_eq!(parse_bytes(b"#!/bin/sh\n"), Err(ElfError::NotElf));
        assert_eq!(parse_bytes(b"\x7fELF\x02\x01"), Err(ElfError::Truncated("the ELF header")));
        assert_eq!(error_of(|b| b[4] = 1), ElfError::NotElf64Little);
        assert_eq!(error_of(|b| b[18] = 62), ElfError::OtherMachine(62));
        assert_eq!(error_of(|b| b[16] = 1), ElfError::NotAProgram(1));
        assert_eq!(error_of(|b| b[48] = 8), ElfError::Rve);
    }

    #[test]
    fn malformed_headers_are_refused() {
        assert!(matches!(error_of(|b| b[54] = 32), ElfError::Malformed(_)));
        assert!(matches!(error_of(|b| b[56] = 0), ElfError::Malformed(_)));
        assert!(matches!(error_of(|b| b[57] = 0xff), ElfError::Malformed(_)));
        assert!(matches!(error_of(|b| put(b, 24, 0x9_0000)), ElfError::Malformed(_)));
        assert!(matches!(error_of(|b| put(b, 64 + 40, 1)), ElfError::Malformed(_)));
        assert!(matches!(error_of(|b| put(b, 64 + 16, 0x1_0008)), ElfError::Malformed(_)));
        assert!(matches!(error_of(|b| put(b, 32, u64::MAX - 8)), ElfError::Truncated(_)));
        assert!(matches!(error_of(|b| put(b, 64 + 8, 0x1000)), ElfError::Truncated(_)));
        assert!(matches!(error_of(|b| put(b, 64 + 8, !0xfff)), ElfError::Truncated(_)));
        assert!(matches!(error_of(|b| b.truncate(100)), ElfError::Truncated(_)));
        for (offset, value) in [(16, 1 << 39), (40, 1 << 40), (40, u64::MAX)] {
            assert!(matches!(error_of(|b| put(b, 64 + offset, value)), ElfError::DoesNotFit { .. }));
        }
        assert_eq!(error_of(|b| put(b, 64 + 16, 0xf000)), ElfError::TooLow(0xf000));
    }

    #[test]
    fn overlapping_segments_are_refused() {
        let overlap = |b: &mut Vec<u8>| {
            b[56] = 2;
            let first: Vec<u8> = b[64..120].to_vec();
            b[120..176].copy_from_slice(&first);
        };
        assert!(matches!(error_of(overlap), ElfError::Malformed(_)));
    }
}
