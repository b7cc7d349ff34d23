//! Listings of guest and host code, for `-d in_asm,out_asm`.

use std::fmt::Write;

use capstone::arch::{self, BuildsCapstone, BuildsCapstoneExtraMode};
use capstone::{Capstone, CsResult};

use super::compiled::CompiledBlock;

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
    listing(lines(riscv(), pc, bytes), pc)
}

/// Guest instructions; none if they cannot be disassembled.
pub fn guest_instructions(pc: u64, bytes: &[u8]) -> Vec<Line> {
    lines(riscv(), pc, bytes).unwrap_or_default()
}

/// The host code of a block, its self-checking entry last.
pub fn host_listing(block: &CompiledBlock) -> String {
    let part = |(start, code): (usize, Vec<u8>)| listing(lines(host(), start as u64, &code), start as u64);
    block.code().map(part).collect::<Vec<_>>().join("CHECKED:\n")
}

#[cfg(target_arch = "x86_64")]
fn host() -> CsResult<Capstone> {
    Capstone::new().x86().mode(arch::x86::ArchMode::Mode64).build()
}

#[cfg(target_arch = "aarch64")]
fn host() -> CsResult<Capstone> {
    Capstone::new().arm64().mode(arch::arm64::ArchMode::Arm).build()
}

fn riscv() -> CsResult<Capstone> {
    let modes = [arch::riscv::ArchExtraMode::RiscVC];
    Capstone::new().riscv().mode(arch::riscv::ArchMode::RiscV64).extra_mode(modes.into_iter()).build()
}

fn lines(disassembler: CsResult<Capstone>, start: u64, bytes: &[u8]) -> CsResult<Vec<Line>> {
    let mut disassembler = disassembler?;
    // Bytes that are no instruction are shown as data.
    disassembler.set_skipdata(true)?;
    let line = |inst: &capstone::Insn<'_>| {
        let bytes = inst.bytes().iter().fold(String::new(), |bytes, byte| bytes + &format!("{byte:02x}"));
        let text = [inst.mnemonic().unwrap_or("?"), inst.op_str().unwrap_or("")].join(" ");
        Line { address: inst.address(), bytes, text: text.trim_end().to_owned() }
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
}
