//! Decoding against capstone, against its own inverse, and at the edges of
//! the encoding space.

use std::collections::HashSet;

use capstone::arch::riscv::{ArchExtraMode, ArchMode};
use capstone::prelude::*;
use demo_emulator::riscv::decode::decode;
use demo_emulator::riscv::encode::encode;
use demo_emulator::riscv::inst::{Inst, Op};
use demo_emulator::riscv::random::{OPS, Random};
use demo_emulator::riscv::text::{mnemonic as name, text};

fn disassembler() -> Capstone {
    let compressed = std::iter::once(ArchExtraMode::RiscVC);
    Capstone::new().riscv().mode(ArchMode::RiscV64).extra_mode(compressed).build().unwrap()
}

/// Capstone's mnemonic for the bits; empty if it has none.
fn mnemonic(disassembler: &Capstone, bits: u32) -> String {
    let insts = disassembler.disasm_count(&bits.to_le_bytes(), 0x1000, 1).unwrap();
    insts.iter().next().and_then(|inst| inst.mnemonic()).unwrap_or_default().to_string()
}

/// The full form of an alias or of a compressed form.
#[rustfmt::skip]
fn unalias(mnemonic: &str) -> &str {
    let ordered = [".aqrl", ".aq", ".rl"].iter().find_map(|bits| mnemonic.strip_suffix(bits));
    match ordered.unwrap_or(mnemonic) {
        "c.mv" => "add",
        "c.addi16sp" | "c.addi4spn" | "c.li" | "c.nop" | "mv" | "nop" | "li" => "addi",
        "sext.w" => "addiw",
        "beqz" => "beq", "bnez" => "bne", "c.beqz" => "beq", "c.bnez" => "bne",
        "bgez" | "blez" => "bge", "bgtz" | "bltz" => "blt",
        "csrc" => "csrrc", "csrci" => "csrrci", "csrsi" => "csrrsi", "csrwi" | "fsflagsi" | "fsrmi" => "csrrwi",
        "csrr" | "csrs" | "frcsr" | "frflags" | "frrm" => "csrrs",
        "rdcycle" | "rdtime" | "rdinstret" => "csrrs",
        "csrw" | "fscsr" | "fsflags" | "fsrm" => "csrrw",
        "c.j" | "j" => "jal", "c.jr" | "c.jalr" | "jr" | "ret" => "jalr",
        "c.fldsp" => "fld", "c.fsdsp" => "fsd", "c.ldsp" => "ld", "c.lwsp" => "lw", "c.sdsp" => "sd", "c.swsp" => "sw",
        "fmv.d" | "fmv.s" => if mnemonic.ends_with('d') { "fsgnj.d" } else { "fsgnj.s" },
        "fneg.d" => "fsgnjn.d", "fneg.s" => "fsgnjn.s", "fabs.d" => "fsgnjx.d", "fabs.s" => "fsgnjx.s",
        "sgtz" | "sltz" => "slt", "seqz" => "sltiu", "snez" => "sltu",
        "neg" => "sub", "negw" => "subw", "not" => "xori",
        other => other.strip_prefix("c.").unwrap_or(other),
    }
}

/// Whether capstone agrees about the bits, or is known to be wrong.
fn agrees(inst: &Inst, bits: u32, mnemonic: &str) -> bool {
    let rounding = bits >> 12 & 7;
    match (inst.op, mnemonic) {
        // Privileged instructions; reserved encodings that capstone accepts; the name of the
        // illegal instruction itself.
        (Op::Illegal, "sfence.vma" | "uret" | "sret" | "mret" | "wfi" | "dret") => true,
        (Op::Illegal, "c.lui") => inst.len == 2 && bits & 0x107c == 0,
        (Op::Illegal, "c.unimp") => inst.len == 2 && bits & 0xffff == 0,
        // Reserved fields are ignored by definition, but capstone minds them.
        (Op::Fence, "") => bits & 0xf00f_ff80 != 0,
        (Op::Fence_i, "") => bits & 0xffff_8f80 != 0,
        // Exact in every rounding mode, so the mode may be any.
        (Op::Fcvt_d_s | Op::Fcvt_d_w | Op::Fcvt_d_wu, "") => rounding != 0,
        // Extensions that capstone does not know.
        (_, "") if text(inst).is_some() => true,
        // HINTs.
        (Op::Add | Op::Addi | Op::Lui, "") => inst.len == 2 && (inst.rd == 0 || inst.imm == 0),
        (Op::Slli | Op::Srli | Op::Srai, "") => inst.len == 2 && (inst.rd == 0 || inst.imm == 0),
        (Op::Illegal, mnemonic) => mnemonic.is_empty(),
        (op, mnemonic) => name(op) == unalias(mnemonic),
    }
}

fn random_inst(random: &mut Random, op: Op) -> Inst {
    let [rd, rs1, rs2, rs3] = [(); 4].map(|()| random.below(32) as u8);
    let rm = [0, 1, 2, 3, 4, 7][random.below(6) as usize];
    let rm = if name(op).starts_with('f') { rm } else { rm & 3 };
    Inst { op, rd, rs1, rs2, rs3, rm, len: 4, imm: random.bits() as i32 }
}

#[test]
fn capstone_agrees_on_compressed_instructions() {
    let disassembler = disassembler();
    for bits in (0..=0xffff_u32).filter(|bits| bits & 3 != 3) {
        let (inst, mnemonic) = (decode(bits), mnemonic(&disassembler, bits));
        assert_eq!(inst.len, 2);
        assert!(agrees(&inst, bits, &mnemonic), "{bits:#06x}: {inst:?}, capstone: {mnemonic:?}");
    }
}

/// Registers and the immediate of an instruction in capstone's words.
fn operands(disassembler: &Capstone, bits: u32) -> (HashSet<String>, Option<i64>) {
    let insts = disassembler.disasm_count(&bits.to_le_bytes(), 0x1000, 1).unwrap();
    let inst = insts.iter().next().unwrap();
    let number = |word: &str| {
        let (sign, digits) = word.strip_prefix('-').map_or((1, word), |digits| (-1, digits));
        let value = match digits.strip_prefix("0x") {
            Some(digits) => i64::from_str_radix(digits, 16),
            None => digits.parse(),
        };
        value.ok().map(|value| sign * value)
    };
    let words = inst.op_str().unwrap_or_default().split([',', ' ', '(', ')']).filter(|word| !word.is_empty());
    let (numbers, registers): (Vec<_>, Vec<_>) = words.partition(|word| number(word).is_some());
    (registers.into_iter().map(str::to_string).collect(), numbers.last().and_then(|word| number(word)))
}

#[test]
fn compressed_instructions_have_the_operands_of_their_expansion() {
    let disassembler = disassembler();
    let mut compared = 0;
    for bits in (0..=0xffff_u32).filter(|bits| bits & 3 != 3) {
        let inst = decode(bits);
        if inst.op == Op::Illegal || mnemonic(&disassembler, bits).is_empty() {
            continue;
        }
        let (registers, immediate) = operands(&disassembler, bits);
        let (expanded_registers, expanded_immediate) = operands(&disassembler, encode(&inst));
        // `ret` does not print its operands.
        let agree = registers.is_subset(&expanded_registers) || inst.op == Op::Jalr && inst.rs1 == 1;
        assert!(agree, "{bits:#06x}: {inst:?}: {registers:?}");
        if let Some(immediate) = immediate {
            // An alias such as `mv` does not print a 0.
            assert_eq!(immediate, expanded_immediate.unwrap_or(0), "{bits:#06x}: {inst:?}");
            compared += 1;
        }
    }
    assert!(compared > 30_000, "hardly an immediate: {compared}");
}

#[test]
fn capstone_agrees_on_random_words() {
    let disassembler = disassembler();
    let mut random = Random::new(1);
    let mut legal = 0;
    let mut check = |bits: u32| {
        let (inst, mnemonic) = (decode(bits), mnemonic(&disassembler, bits));
        assert_eq!(inst.len, 4);
        assert!(agrees(&inst, bits, &mnemonic), "{bits:#010x}: {inst:?}, capstone: {mnemonic:?}");
        legal += u32::from(inst.op != Op::Illegal);
    };
    for _ in 0..200_000 {
        check(random.bits() as u32 | 3);
    }
    // Near every operation: one bit of the opcode is wrong.
    for &op in OPS.iter().chain(&[Op::Ecall, Op::Ebreak]) {
        for _ in 0..300 {
            let bits = encode(&random_inst(&mut random, op));
            check(bits);
            check((bits ^ 1 << random.below(32)) | 3);
        }
    }
    assert!(legal > 100_000, "hardly a legal word: {legal}");
}

#[test]
fn every_operation_is_its_own_mnemonic() {
    let disassembler = disassembler();
    let mut random = Random::new(2);
    let mut seen = HashSet::new();
    for &op in OPS.iter().chain(&[Op::Ecall, Op::Ebreak]) {
        for _ in 0..50 {
            let bits = encode(&random_inst(&mut random, op));
            assert_eq!(decode(bits).op, op, "{bits:#x}");
            if unalias(&mnemonic(&disassembler, bits)) == name(op) || text(&decode(bits)).is_some() {
                seen.insert(op);
            }
        }
    }
    // Random fences have reserved fields, for which capstone has no name.
    for op in [Op::Fence, Op::Fence_i] {
        let bits = encode(&Inst { op, ..decode(0x0ff0_000f) });
        assert_eq!(unalias(&mnemonic(&disassembler, bits)), name(op));
        seen.insert(op);
    }
    assert_eq!(seen.len(), OPS.len() + 2);
}

#[test]
fn encoding_is_the_inverse_of_decoding() {
    let mut random = Random::new(3);
    for &op in OPS {
        for _ in 0..200 {
            let bits = encode(&random_inst(&mut random, op));
            let inst = decode(bits);
            assert_eq!(encode(&inst), bits, "{inst:?}");
            assert_eq!(decode(encode(&inst)), inst);
        }
    }
    for bits in (0..=0xffff_u32).filter(|bits| bits & 3 != 3) {
        let inst = decode(bits);
        if inst.op != Op::Illegal {
            // A compressed instruction has the effect of its long form.
            assert_eq!(decode(encode(&inst)), Inst { len: 4, ..inst }, "{bits:#06x}");
        }
    }
}

fn plain(op: Op) -> Inst {
    Inst { op, rd: 0, rs1: 0, rs2: 0, rs3: 0, rm: 0, len: 4, imm: 0 }
}

/// Words from an assembler.
#[test]
#[rustfmt::skip]
fn known_words() {
    let cases = [
        (0x1234_52b7, Inst { rd: 5, imm: 0x1234_5000, ..plain(Op::Lui) }),
        (0xffff_f297, Inst { rd: 5, imm: -4096, ..plain(Op::Auipc) }),
        (0x8000_00ef, Inst { rd: 1, imm: -0x10_0000, ..plain(Op::Jal) }),
        (0x7ff0_00ef, Inst { rd: 1, imm: 0xffe, ..plain(Op::Jal) }),
        (0x8062_8067, Inst { rs1: 5, imm: -2042, ..plain(Op::Jalr) }),
        (0x8062_8063, Inst { rs1: 5, rs2: 6, imm: -4096, ..plain(Op::Beq) }),
        (0x7e62_9fe3, Inst { rs1: 5, rs2: 6, imm: 4094, ..plain(Op::Bne) }),
        (0x8062_b023, Inst { rs1: 5, rs2: 6, imm: -2048, ..plain(Op::Sd) }),
        (0x7ff2_b303, Inst { rd: 6, rs1: 5, imm: 2047, ..plain(Op::Ld) }),
        (0x43f2_d313, Inst { rd: 6, rs1: 5, imm: 63, ..plain(Op::Srai) }),
        (0x41f2_d31b, Inst { rd: 6, rs1: 5, imm: 31, ..plain(Op::Sraiw) }),
        (0x1602_b32f, Inst { rd: 6, rs1: 5, rm: 3, ..plain(Op::Lr_d) }),
        (0x1c72_a32f, Inst { rd: 6, rs1: 5, rs2: 7, rm: 2, ..plain(Op::Sc_w) }),
        (0x0031_70d3, Inst { rd: 1, rs1: 2, rs2: 3, rm: 7, ..plain(Op::Fadd_s) }),
        (0x2231_10c3, Inst { rd: 1, rs1: 2, rs2: 3, rs3: 4, rm: 1, ..plain(Op::Fmadd_d) }),
        (0xc031_72d3, Inst { rd: 5, rs1: 2, rm: 7, ..plain(Op::Fcvt_lu_s) }),
        (0x0bf2_931b, Inst { rd: 6, rs1: 5, imm: 63, ..plain(Op::Slli_uw) }),
        (0x0805_c53b, Inst { rd: 10, rs1: 11, ..plain(Op::Zext_h) }),
        (0x6045_9513, Inst { rd: 10, rs1: 11, ..plain(Op::Sext_b) }),
        (0x6b85_d513, Inst { rd: 10, rs1: 11, ..plain(Op::Rev8) }),
        (0x2875_d513, Inst { rd: 10, rs1: 11, ..plain(Op::Orc_b) }),
        (0x63f5_d513, Inst { rd: 10, rs1: 11, imm: 63, ..plain(Op::Rori) }),
        (0x61f5_d51b, Inst { rd: 10, rs1: 11, imm: 31, ..plain(Op::Roriw) }),
        (0x60c5_9533, Inst { rd: 10, rs1: 11, rs2: 12, ..plain(Op::Rol) }),
        (0x60c5_d53b, Inst { rd: 10, rs1: 11, rs2: 12, ..plain(Op::Rorw) }),
        (0x4bf5_d513, Inst { rd: 10, rs1: 11, imm: 63, ..plain(Op::Bexti) }),
        (0x2a05_9513, Inst { rd: 10, rs1: 11, imm: 32, ..plain(Op::Bseti) }),
        (0x6815_9513, Inst { rd: 10, rs1: 11, imm: 1, ..plain(Op::Binvi) }),
        (0x4805_9513, Inst { rd: 10, rs1: 11, ..plain(Op::Bclri) }),
        (0x48c5_d533, Inst { rd: 10, rs1: 11, rs2: 12, ..plain(Op::Bext) }),
        (0x0ac5_a533, Inst { rd: 10, rs1: 11, rs2: 12, ..plain(Op::Clmulr) }),
        (0x0ac5_b533, Inst { rd: 10, rs1: 11, rs2: 12, ..plain(Op::Clmulh) }),
        (0x0ac5_d533, Inst { rd: 10, rs1: 11, rs2: 12, ..plain(Op::Minu) }),
        (0x40c5_f533, Inst { rd: 10, rs1: 11, rs2: 12, ..plain(Op::Andn) }),
        (0x20c5_e53b, Inst { rd: 10, rs1: 11, rs2: 12, ..plain(Op::Sh3add_uw) }),
        (0x6025_951b, Inst { rd: 10, rs1: 11, ..plain(Op::Cpopw) }),
        (0x4025_8553, Inst { rd: 10, rs1: 11, ..plain(Op::Fcvt_s_h) }),
        (0x4225_8553, Inst { rd: 10, rs1: 11, ..plain(Op::Fcvt_d_h) }),
        (0x0025_200f, Inst { rs1: 10, ..plain(Op::Cbo_flush) }),
        (0x0100_000f, Inst { imm: 0x10, ..plain(Op::Fence) }),
        (0x0215_6013, Inst { rs1: 10, imm: 0x21, ..plain(Op::Ori) }),
        (0x0031_f2f3, Inst { rd: 5, rs1: 3, imm: 3, ..plain(Op::Csrrci) }),
    ];
    for (bits, inst) in cases {
        assert_eq!(decode(bits), inst, "{bits:#x}");
    }
}

#[test]
fn reserved_encodings_are_illegal() {
    let compressed = [
        0x0000, 0x0004, // all zeros; c.addi4spn of 0
        0x8000, 0x9c41, 0x9c61, // free encodings
        0x2001, // c.addiw to x0
        0x6101, 0x6081, 0x6001, // c.addi16sp and c.lui of 0
        0x4002, 0x6002, // c.lwsp and c.ldsp to x0
        0x8002, // c.jr to x0
    ];
    let long = [
        0x0000_1067,
        0x0000_2063,
        0x0000_7003,
        0x0000_4023, // one funct3 too many
        0x0400_1013,
        0x0400_5013,
        0x0200_101b,
        0x0200_501b, // shifts beyond the width's bits
        0x6031_1093,
        0x6061_1093,
        0x6201_1093,
        0x6031_109b,
        0x6201_509b,
        0x2861_5093,
        0x6b81_d09b,
        0x6981_5093, // bit counts, rotations and byte orders that do not exist
        0x0811_40bb,
        0x0801_40b3, // zext.h with a second source; of 32 bits
        0x0001_200f,
        0x0031_200f,
        0x0051_200f,
        0x0041_208f, // cbo.inval; cbo operations that do not exist; with a destination
        0x0400_0033,
        0x2000_003b,
        0x0200_103b, // one funct7 too many
        0x0000_5053,
        0x0000_6053,
        0x0000_5043, // rounding modes 5 and 6
        0x5810_0053,
        0x1010_302f,
        0x1000_502f,
        0x2800_002f, // fsqrt, lr with a second source; widths
        0x0400_0053,
        0x0400_0043,
        0x0000_4007, // arithmetic of halves, quads
        0x4000_0053,
        0x4210_0053, // conversions of a format to itself
        0x0000_4073,
        0x0020_0073,
        0x1050_0073,
        0x3020_0073, // system: funct3 4, uret, wfi, mret
        0x0000_000b,
        0x0000_001f,
        0x0000_003f,
        0xffff_ffff, // custom, and longer than 32 bits
    ];
    for bits in compressed.into_iter().chain(long) {
        let inst = decode(bits);
        assert_eq!((inst.op, inst.imm as u32), (Op::Illegal, bits), "{bits:#x}");
        assert_eq!(encode(&inst), bits);
    }
    // The half above a compressed instruction is ignored.
    assert_eq!(decode(0xffff_0000), Inst { len: 2, ..plain(Op::Illegal) });
}

#[test]
fn hints_change_nothing() {
    // c.nop with an immediate, c.addi of 0, c.li, c.lui, c.mv, c.add, c.slli to x0, c.slli of 0.
    for bits in [0x0005, 0x0081, 0x4005, 0x6005, 0x8006, 0x9006, 0x0006, 0x0082] {
        let inst = decode(bits);
        let unchanged = inst.rd == inst.rs1 && inst.imm == 0;
        assert!(inst.op != Op::Illegal && (inst.rd == 0 || unchanged), "{bits:#06x}: {inst:?}");
    }
}
