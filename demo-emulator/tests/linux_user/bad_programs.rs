//! Programs that cannot run or that die: each says why in a sentence on standard error, and the
//! status is a shell's or the guest's own.

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use demo_emulator::riscv::inst::Op;
use demo_emulator::riscv::random::Random;

use super::support::{A0, A1, BASE, Folder, Program, emulator, emulator_with, run, run_with};

const WAYS_TO_RUN: [&[&str]; 4] = [
    &["--interpret"],
    &["--tracking", "none", "--tier", "0"],
    &["--tracking", "none", "--tier", "1"],
    &["--tracking", "none", "--tier", "2"],
];

const SIGSEGV: i64 = libc::SIGSEGV as i64;

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// The program's last instruction dies of `signal` and the emulator says `sentence`, with PC for the
/// instruction's address.
fn assert_dies(program: &Program, signal: i32, sentence: &str) {
    let pc = format!("{:#x}", program.here() - 4);
    let sentence = format!("demo-emulator: the guest died of {}\n", sentence.replace("PC", &pc));
    for options in WAYS_TO_RUN {
        let output = run_with(options, program);
        assert_eq!(output.status.signal(), Some(signal), "{options:?}");
        assert_eq!((stderr(&output), output.stdout.len()), (sentence.clone(), 0), "{options:?}");
    }
}

#[test]
fn a_guest_that_dies_of_a_fault_says_where() {
    let mut load = Program::default();
    load.li(A1, 0x2340).put(Op::Ld, A0, A1, 0, 8);
    let sentence = "SIGSEGV: the instruction at pc PC read address 0x2348, where no memory is mapped";
    assert_dies(&load, libc::SIGSEGV, sentence);

    // mprotect(BASE, 4096, PROT_READ): the page of the headers.
    let mut store = Program::default();
    store.call(226, &[BASE as i64, 0x1000, 1]).li(A1, BASE as i64).put(Op::Sd, 0, A1, A0, 16);
    let sentence =
        "SIGSEGV: the instruction at pc PC wrote to address 0x100010, which the protection of its page forbids";
    assert_dies(&store, libc::SIGSEGV, sentence);

    let mut illegal = Program::default();
    illegal.raw(0);
    assert_dies(&illegal, libc::SIGILL, "SIGILL: the bits 0x0 at pc PC are no valid instruction");

    let mut breakpoint = Program::default();
    breakpoint.put(Op::Ebreak, 0, 0, 0, 0);
    assert_dies(&breakpoint, libc::SIGTRAP, "SIGTRAP: the instruction at pc PC is a breakpoint");

    let mut atomic = Program::default();
    atomic.li(A1, 0x2341).put(Op::Amoadd_d, A0, A1, A0, 0);
    let sentence = "SIGBUS: the atomic instruction at pc PC used the misaligned address 0x2341";
    assert_dies(&atomic, libc::SIGBUS, sentence);
}

#[test]
fn a_jump_to_nowhere_says_the_target() {
    let mut program = Program::default();
    program.put(Op::Jalr, 0, 0, 0, 0x40);
    for options in WAYS_TO_RUN {
        let output = run_with(options, &program);
        assert_eq!(output.status.signal(), Some(libc::SIGSEGV), "{options:?}");
        let sentence = "SIGSEGV: the instruction at pc 0x40 was fetched from address 0x40, where no memory is mapped";
        assert_eq!(stderr(&output), format!("demo-emulator: the guest died of {sentence}\n"), "{options:?}");
    }
}

#[test]
fn a_guest_without_a_stack_for_its_signal_says_so() {
    let mut program = Program::default();
    let action = program.data(&[0x40_u64, 0, 0, 0].map(u64::to_le_bytes).concat());
    program.call(134, &[SIGSEGV, action, 0, 8]).li(2, 0x9000).put(Op::Ld, A0, 0, 0, 0);
    let output = run(&program);
    assert_eq!(output.status.signal(), Some(libc::SIGSEGV));
    let said = stderr(&output);
    assert!(said.contains("the guest died of SIGSEGV: its stack at address 0x8"), "{said}");
    assert!(said.contains("has no room for the frame of signal 11"), "{said}");
}

/// Its shell reports it, as on Linux.
#[test]
fn a_guest_that_is_killed_is_killed_in_silence() {
    let mut program = Program::default();
    program.ecall(172).li(A1, SIGSEGV).ecall(129);
    let output = run(&program);
    assert_eq!((output.status.signal(), stderr(&output)), (Some(libc::SIGSEGV), String::new()));
}

/// A guest may close standard error and get its number for a file with data.
#[test]
fn a_file_of_the_guests_gets_no_sentence() {
    const AT_FDCWD: i64 = -100;
    let folder = Folder::new();
    let mut program = Program::default();
    let name = program.data(b"data\0");
    program.call(57, &[2]).call(56, &[AT_FDCWD, name, (libc::O_CREAT | libc::O_WRONLY).into(), 0o600]);
    program.expect(A0, 2, 9).put(Op::Ld, A0, 0, 0, 0);
    let path = folder.file("program", &program.elf());
    let output = emulator().arg(&path).current_dir(folder.path()).output().unwrap();
    assert_eq!((output.status.signal(), stderr(&output)), (Some(libc::SIGSEGV), String::new()));
    assert_eq!(fs::read(folder.path().join("data")).unwrap(), b"");
}

#[test]
fn a_position_independent_program_may_begin_above_its_place() {
    let mut program = Program::default();
    program.anywhere().put(Op::Auipc, A0, 0, 0, 0).put(Op::Srli, A0, A0, 0, 32).exit();
    let mut elf = program.elf();
    let high = 0x3f_0000_0000_u64;
    elf[24..32].copy_from_slice(&(high + 0x1000).to_le_bytes());
    elf[80..88].copy_from_slice(&high.to_le_bytes());
    let folder = Folder::new();
    let output = emulator().arg(folder.file("program", &elf)).output().unwrap();
    assert_eq!(output.status.code(), Some(0x2a), "{}", stderr(&output));
}

#[test]
fn segments_in_impossible_places_are_named() {
    let folder = Folder::new();
    let mut program = Program::default();
    let elf = program.li(A0, 42).exit().elf();
    let changed = |changes: &[(usize, u64)]| {
        let mut elf = elf.clone();
        changes.iter().for_each(|(offset, value)| elf[*offset..offset + 8].copy_from_slice(&value.to_le_bytes()));
        elf
    };
    let (entry, address, memory_bytes) = (24, 80, 104);
    let window_bytes = 1_u64 << 38;
    for (changes, reason) in [
        (&[(entry, 0x9000), (address, 0x8000)][..], "the segment at 0x8000 begins below 0x10000, where nothing may"),
        (&[(memory_bytes, window_bytes - BASE)], "leave no room for a stack of 0x800000 bytes at the top"),
        (&[(memory_bytes, window_bytes)], "the segment at 0x100000 of 0x4000000000 bytes does not fit"),
        (&[(memory_bytes, u64::MAX)], "the segment at 0x100000 of 0xffffffffffffffff bytes does not fit"),
    ] {
        let output = emulator().arg(folder.file("program", &changed(changes))).output().unwrap();
        let said = stderr(&output);
        assert!(output.status.code() == Some(126) && said.contains(reason), "{:?}: {said}", output.status);
    }
    // Most of the address space is no memory yet.
    let large = changed(&[(memory_bytes, window_bytes - BASE - (16 << 20))]);
    let output = emulator().arg(folder.file("program", &large)).output().unwrap();
    assert_eq!(output.status.code(), Some(42), "{}", stderr(&output));
}

/// A program with up to six changed bytes in its headers.
fn damaged(elf: &[u8], seed: u64) -> Vec<u8> {
    let mut random = Random::new(seed);
    let mut elf = elf.to_vec();
    for _ in 0..1 + random.below(6) {
        let byte = [0, 0xff, random.below(256) as u8][random.below(3) as usize];
        // The first bytes would answer "not an ELF file" alone.
        elf[4 + random.below(64 + 56 - 4) as usize] = byte;
    }
    elf
}

/// Waits for the program's end, but not for ever.
fn output_in_time(command: &mut Command, name: &str) -> Output {
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let start = Instant::now();
    while child.try_wait().unwrap().is_none() {
        if start.elapsed() > Duration::from_secs(60) {
            child.kill().unwrap();
            panic!("{name} does not end");
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    child.wait_with_output().unwrap()
}

#[test]
fn damaged_headers_end_in_a_sentence() {
    let folder = Folder::new();
    let mut program = Program::default();
    program.li(A0, 42).exit();
    let elf = program.elf();
    let (mut refused, mut died, mut ran) = (0, 0, 0);
    for seed in 1..=400 {
        let path = folder.file("damaged", &damaged(&elf, seed));
        let options: &[&str] = if seed % 2 == 0 { &["--interpret"] } else { &["--tracking", "none", "--stats"] };
        let output = output_in_time(emulator_with(options).arg(&path).stdin(Stdio::null()), &format!("seed {seed}"));
        let said = stderr(&output);
        assert!(!said.contains("panicked"), "seed {seed}: {said}");
        match (output.status.code(), output.status.signal()) {
            (Some(42), _) => ran += 1,
            (Some(126), _) if said.starts_with("demo-emulator: /") && said.lines().count() == 1 => refused += 1,
            // A signal of the guest's is the last line; the counters stand before it.
            (_, Some(_)) if said.lines().last().is_some_and(|line| line.contains(": the guest died of SIG")) => {
                died += 1
            }
            _ => panic!("seed {seed}: {:?}: {said}", output.status),
        }
    }
    assert!(refused > 100 && died > 3 && ran > 10, "refused {refused}, died {died}, ran {ran}");
}
