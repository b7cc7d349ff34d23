//! Listings of guest and host code, for `-d in_asm,out_asm`.

use std::fmt::Write;

use capstone::arch::{self, BuildsCapstone, BuildsCapstoneExtraMode};
use capstone::{Capstone, CsResult};

use super::compiled::CompiledBlock;
use crate::riscv::decode::decode;
use crate::riscv::text::text;

/// A disassembled instruction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// Its address.
    pub address: u64,
    /// Its bytes in hexadecimal digits, the first byte first.
    pub bytes: String,
    /// Mnemonic and operands.
    pub text: String,
}

/// Guest instructions, one a line: address, bytes, text.
pub fn guest_listing(pc: u64, bytes: &[u8]) -> String {
    listing(guest_lines(pc, bytes), pc)
}

/// Guest instructions; none if they cannot be disassembled.
pub fn guest_instructions(pc: u64, bytes: &[u8]) -> Vec<Line> {
    guest_lines(pc, bytes).unwrap_or_default()
}

/// Capstone lists all instructions but those that only [`text`] knows.
fn guest_lines(pc: u64, bytes: &[u8]) -> CsResult<Vec<Line>> {
    let disassembler = riscv()?;
    let (mut all, mut start, mut at) = (Vec::new(), 0, 0);
    while at < bytes.len() {
        let mut word = [0; 4];
        let rest = &bytes[at..bytes.len().min(at + 4)];
        word[..rest.len()].copy_from_slice(rest);
        let inst = decode(u32::from_le_bytes(word));
        let end = at + usize::from(inst.len);
        if let Some(text) = text(&inst).filter(|_| end <= bytes.len()) {
            all.extend(lines(&disassembler, pc + start as u64, &bytes[start..at])?);
            all.push(Line { address: pc + at as u64, bytes: hexadecimal(rest), text });
            start = end;
        }
        at = end;
    }
    all.extend(lines(&disassembler, pc + start as u64, &bytes[start..])?);
    Ok(all)
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |digits, byte| digits + &format!("{byte:02x}"))
}

/// The host code of a block, its self-checking entry last.
pub fn host_listing(block: &CompiledBlock) -> String {
    let part = |(start, code): (usize, Vec<u8>)| {
        let lines = host().and_then(|disassembler| lines(&disassembler, start as u64, &code));
        listing(lines, start as u64)
    };
    block.code().map(part).collect::<Vec<_>>().join("CHECKED:\n")
}

#[cfg(target_arch = "x86_64")]
fn host() -> CsResult<Capstone> {
    listing_data(Capstone::new().x86().mode(arch::x86::ArchMode::Mode64).build())
}

#[cfg(target_arch = "aarch64")]
fn host() -> CsResult<Capstone> {
    listing_data(Capstone::new().arm64().mode(arch::arm64::ArchMode::Arm).build())
}

fn riscv() -> CsResult<Capstone> {
    let modes = [arch::riscv::ArchExtraMode::RiscVC];
    listing_data(Capstone::new().riscv().mode(arch::riscv::ArchMode::RiscV64).extra_mode(modes.into_iter()).build())
}

/// Bytes that are no instruction are shown as data.
fn listing_data(disassembler: CsResult<Capstone>) -> CsResult<Capstone> {
    let mut disassembler = disassembler?;
    disassembler.set_skipdata(true)?;
    Ok(disassembler)
}

fn lines(disassembler: &Capstone, start: u64, bytes: &[u8]) -> CsResult<Vec<Line>> {
    let line = |inst: &capstone::Insn<'_>| {
        let text = [inst.mnemonic().unwrap_or("?"), inst.op_str().unwrap_or("")].join(" ");
        Line { address: inst.address(), bytes: hexadecimal(inst.bytes()), text: text.trim_end().to_owned() }
    };
    Ok(disassembler.disasm_all(bytes, start)?.iter().map(line).collect())
}

fn listing(lines: CsResult<Vec<Line>>, start: u64) -> String {
    let mut text = String::new();
    // Writing to a string does not fail.
    let _ = match lines {
        Ok(lines) => lines.iter().try_for_each(|Line { address, bytes, text: inst }| {
            writeln!(text, "{address:#014x}:  {bytes:<20}  {inst}")
        }),
        Err(error) => writeln!(text, "{start:#x}: not disassembled: {error}"),
    };
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn compressed_and_plain_instructions_are_listed() {
        // c.li a0, 1; addi a0, a0, 2; ret
        let listing = guest_listing(0x1000, &[0x05, 0x45, 0x13, 0x05, 0x25, 0x00, 0x82, 0x80]);
        let lines: Vec<_> = listing.lines().collect();
        assert_eq!(lines.len(), 3, "{listing}");
        assert!(lines[0].contains("0x1000") || lines[0].contains("0x000000001000"), "{listing}");
        assert!(lines[1].contains("addi"), "{listing}");
    }

    #[test]
    fn instructions_that_capstone_does_not_know_are_listed() {
        // sh1add t1, t0, t2; li a0, 1; cbo.zero (a0); ret
        let bytes = [[0x33, 0xa3, 0x72, 0x20], [0x13, 0x05, 0x10, 0], [0x0f, 0x20, 0x45, 0], [0x67, 0x80, 0, 0]];
        let lines = guest_instructions(0x1000, bytes.as_flattened());
        let texts: Vec<&str> = lines.iter().map(|line| line.text.as_str()).collect();
        assert_eq!(texts, ["sh1add t1, t0, t2", "addi a0, zero, 1", "cbo.zero (a0)", "ret"]);
        assert_eq!(lines.iter().map(|line| line.address).collect::<Vec<_>>(), [0x1000, 0x1004, 0x1008, 0x100c]);
    }
}
