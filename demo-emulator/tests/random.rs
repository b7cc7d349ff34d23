//! The generator of random programs keeps its promises.

use std::collections::HashSet;

use demo_emulator::memory::window::{EXEC, READ, WRITE};
use demo_emulator::memory::{Window, host_fault};
use demo_emulator::riscv::decode::decode;
use demo_emulator::riscv::inst::Op;
use demo_emulator::riscv::interpreter;
use demo_emulator::riscv::random::{DATA_REACH_BYTES, DATA_REGISTERS, Generator, OPS, is_rounded};

const CODE: u64 = 0x10_0000;
const DATA: u64 = 0x20_0000;
const CODE_LEN_BYTES: u64 = 0x1_0000;

#[allow(unsafe_code)]
fn window() -> Window {
    host_fault::install().unwrap();
    let window = Window::reserve().unwrap();
    for (start, len) in [(CODE, CODE_LEN_BYTES), (DATA - DATA_REACH_BYTES, 2 * DATA_REACH_BYTES)] {
        let host = window.host(start).unwrap().cast();
        // SAFETY: part of the window just reserved, which no other code uses.
        let done = unsafe { libc::mprotect(host, len as usize, libc::PROT_READ | libc::PROT_WRITE) };
        assert_eq!(done, 0);
        window.set_permissions(start..start + len, READ | WRITE | EXEC);
    }
    window
}

fn store(window: &Window, addr: u64, bytes: &[u8]) {
    for (addr, &byte) in (addr..).zip(bytes) {
        window.store_u8(addr, byte).unwrap();
    }
}

#[test]
fn programs_run_to_their_end_without_a_trap() {
    let window = window();
    for seed in 0..40 {
        let mut generator = Generator::new(seed);
        let mut hart = generator.start(CODE, DATA);
        store(&window, DATA - DATA_REACH_BYTES, &generator.data(2 * DATA_REACH_BYTES as usize));
        let program = generator.program(500);
        store(&window, CODE, &program.code);
        let end = CODE + program.code.len() as u64;
        let mut before = hart.pc;
        while hart.pc != end {
            interpreter::step(&mut hart, &window)
                .unwrap_or_else(|trap| panic!("seed {seed}: {trap:?} at {:#x}", hart.pc));
            assert!(hart.pc > before && hart.pc <= end, "seed {seed}: from {before:#x} to {:#x}", hart.pc);
            before = hart.pc;
        }
        for register in DATA_REGISTERS {
            assert_eq!(hart.x[usize::from(register)], DATA);
        }
    }
}

#[test]
fn programs_have_every_operation_and_every_rounding_mode() {
    let mut generator = Generator::new(1);
    let mut seen = HashSet::new();
    let mut compressed = HashSet::new();
    for _ in 0..100 {
        for inst in generator.program(1000).insts {
            seen.insert((inst.op, inst.rm));
            if inst.len == 2 {
                compressed.insert(inst.op);
            }
        }
    }
    for &op in OPS {
        let modes: &[u8] = if is_rounded(op) { &[0, 1, 2, 3, 4, 7] } else { &[0] };
        for &rm in modes {
            assert!(seen.contains(&(op, rm)), "no {op:?} with rounding mode {rm}");
        }
    }
    // The expansions of all compressed instructions but EBREAK.
    use Op::*;
    let expansions = [
        Addi, Addiw, Lui, Add, Sub, Xor, Or, And, Addw, Subw, Slli, Srli, Srai, Andi, Jal, Jalr, Beq, Bne, Lw, Ld, Fld,
        Sw, Sd, Fsd,
    ];
    assert_eq!(compressed, HashSet::from(expansions));
}

#[test]
fn the_insts_are_those_of_the_code() {
    let program = Generator::new(7).program(300);
    let mut code = program.code.as_slice();
    for inst in &program.insts {
        let (bytes, rest) = code.split_at(inst.len.into());
        let mut word = [0; 4];
        word[..bytes.len()].copy_from_slice(bytes);
        assert_eq!(decode(u32::from_le_bytes(word)), *inst);
        code = rest;
    }
    assert!(code.is_empty());
    assert_eq!(Generator::new(7).program(300).code, program.code, "the same seed, the same program");
}
