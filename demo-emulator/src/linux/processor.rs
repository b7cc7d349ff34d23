//! The processor that the guest is told about: RVA22U64 without Zkt (the emulator promises nothing
//! about time), and Zbc.

use std::fmt::Write;
use std::thread;

use crate::memory::window::WINDOW_LEN_BYTES;
use crate::riscv::csr;
use crate::riscv::inst::BLOCK_BYTES;

/// The extensions of one letter, for AT_HWCAP.
pub(super) const LETTERS: &str = "IMAFDC";

/// The others, in the order of an ISA string, with their bits in the answer of `riscv_hwprobe`.
const EXTENSIONS: &[(&str, Option<u32>)] = &[
    ("zicbom", Some(55)),
    ("zicbop", None),
    ("zicboz", Some(6)),
    ("zicntr", Some(50)),
    ("zicsr", None),
    ("zifencei", None),
    ("zihintpause", Some(36)),
    ("zihpm", Some(51)),
    ("zaamo", Some(56)),
    ("zalrsc", Some(57)),
    ("zfhmin", Some(28)),
    ("zca", Some(43)),
    ("zcd", Some(45)),
    ("zba", Some(3)),
    ("zbb", Some(4)),
    ("zbc", Some(7)),
    ("zbs", Some(5)),
];

/// The value of a key of `riscv_hwprobe`, if there is one.
pub(super) fn probe(key: u64) -> Option<u64> {
    const IMA: u64 = 1;
    const F_AND_D: u64 = 1;
    const C: u64 = 1 << 1;
    const MISALIGNED_FAST: u64 = 3;
    const UNSUPPORTED: u64 = 4;
    let bit = |&(_, bit): &(&str, Option<u32>)| bit.map_or(0, |bit| 1 << bit);
    Some(match key {
        // Vendor, architecture, implementation.
        0..=2 => 0,
        3 => IMA,
        4 => F_AND_D | C | EXTENSIONS.iter().map(bit).sum::<u64>(),
        // Misaligned accesses, under the old and the new key; those of vectors.
        5 | 9 => MISALIGNED_FAST,
        10 => UNSUPPORTED,
        // The blocks of CBO.ZERO and of the other CBO instructions.
        6 | 12 => BLOCK_BYTES,
        // The highest address of a program.
        7 => WINDOW_LEN_BYTES - 1,
        8 => csr::TIME_FREQUENCY_HZ,
        _ => return None,
    })
}

/// The contents of `/proc/cpuinfo`: as many harts as this process may use.
pub(super) fn cpuinfo() -> Vec<u8> {
    let isa = EXTENSIONS.iter().fold(format!("rv64{}", LETTERS.to_lowercase()), |isa, (name, _)| isa + "_" + name);
    let mut text = String::new();
    for hart in 0..thread::available_parallelism().map_or(1, usize::from) {
        let _ = write!(
            text,
            "processor\t: {hart}\nhart\t\t: {hart}\nisa\t\t: {isa}\nmmu\t\t: sv39\nuarch\t\t: demo-emulator\n\n"
        );
    }
    text.into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_isa_string_names_the_extensions() {
        let text = String::from_utf8(cpuinfo()).unwrap();
        let isa = text.lines().find_map(|line| line.strip_prefix("isa\t\t: ")).unwrap();
        assert!(isa.starts_with("rv64imafdc_zicbom_") && isa.ends_with("_zba_zbb_zbc_zbs"), "{isa}");
        assert!(text.starts_with("processor\t: 0\n"));
    }

    #[test]
    fn no_two_extensions_share_a_bit() {
        let bits: Vec<u32> = EXTENSIONS.iter().filter_map(|(_, bit)| *bit).collect();
        let all = bits.iter().fold(0, |all, bit| all | 1_u64 << bit);
        assert_eq!(all.count_ones() as usize, bits.len());
        assert_eq!(probe(4), Some(all | 3));
        assert_eq!((probe(1 << 40), probe(u64::MAX)), (None, None));
    }
}
