//! Listings of guest and host code, for `-d in_asm,out_asm`.

use std::fmt::Write;

use capstone::Capstone;
use capstone::arch::{self, BuildsCapstone, BuildsCapstoneExtraMode};

use super::CompiledBlock;

/// Guest instructions, one a line: address, bytes, text.
pub fn guest_listing(pc: u64, bytes: &[u8]) -> String {
    let modes = [arch::riscv::ArchExtraMode::RiscVC];
    let disassembler =
        Capstone::new().riscv().mode(arch::riscv::ArchMode::RiscV64).extra_mode(modes.into_iter()).build();
    listing(disassembler, pc, bytes)
}

/// The host code of a block.
pub fn host_listing(block: &CompiledBlock) -> String {
    listing(Capstone::new().x86().mode(arch::x86::ArchMode::Mode64).build(), block.entry() as u64, &block.code())
}

fn listing(disassembler: capstone::CsResult<Capstone>, start: u64, bytes: &[u8]) -> String {
    let mut text = String::new();
    let decoded = disassembler.and_then(|mut disassembler| {
        // What is no instruction is shown as data and stepped over.
        disassembler.set_skipdata(true)?;
        disassembler.disasm_all(bytes, start)?.iter().try_for_each(|inst| {
            let bytes: String = inst.bytes().iter().fold(String::new(), |bytes, byte| bytes + &format!("{byte:02x}"));
            let (mnemonic, operands) = (inst.mnemonic().unwrap_or("?"), inst.op_str().unwrap_or(""));
            // Writing to a string does not fail.
            let _ = writeln!(text, "{:#014x}:  {bytes:<20}  {mnemonic} {operands}", inst.address());
            Ok(())
        })
    });
    if let Err(error) = decoded {
        let _ = writeln!(text, "{start:#x}: not disassembled: {error}");
    }
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
