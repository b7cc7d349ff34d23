//! Random programs in the interpreter and in `qemu-riscv64`: registers, flags and
//! memory must come out the same.
//!
//! A program is wrapped into an ELF file that loads all registers, runs it,
//! stores all registers and writes its memory to standard output. More
//! programs by hand: `QEMU_PROGRAMS=5000 cargo test --release -p demo-emulator
//! --test qemu`. Without QEMU the comparison is skipped, and says so; with
//! `CODEWARDEN_REQUIRE_ALL=1` that is a failure.

use std::fs;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::process::Command;

use demo_emulator::hart::Hart;
use demo_emulator::memory::window::{EXEC, READ, WRITE};
use demo_emulator::memory::{Window, host_fault};
use demo_emulator::riscv::csr;
use demo_emulator::riscv::encode::encode;
use demo_emulator::riscv::inst::{Inst, Op};
use demo_emulator::riscv::interpreter;
use demo_emulator::riscv::random::{DATA_REACH_BYTES, Generator, Program};
use demo_emulator::riscv::trap::Trap;

/// The image's address; a `lui` makes it.
const BASE: u64 = 0x10_0000;
/// The initial registers, in the image.
const BEFORE: usize = 0;
/// The final registers, without the base register.
const AFTER: usize = 0x800;
const DATA: usize = 0x1000;
const CODE: usize = DATA + 2 * DATA_REACH_BYTES as usize;
/// The order in a register area: x0 to x31, f0 to f31, fcsr.
const F: usize = 32 * 8;
const FCSR: usize = 64 * 8;

const BASE_REGISTER: u8 = 31;

fn inst(op: Op) -> Inst {
    Inst { op, rd: 0, rs1: 0, rs2: 0, rs3: 0, rm: 0, len: 4, imm: 0 }
}

/// Appends instructions.
struct Assembler<'a>(&'a mut Vec<u8>);

impl Assembler<'_> {
    fn put(&mut self, inst: Inst) {
        self.0.extend_from_slice(&encode(&inst).to_le_bytes());
    }
    fn base(&mut self) {
        self.put(Inst { rd: BASE_REGISTER, imm: BASE as i32, ..inst(Op::Lui) });
    }
    fn load(&mut self, op: Op, rd: u8, offset: usize) {
        self.put(Inst { rd, rs1: BASE_REGISTER, imm: offset as i32, ..inst(op) });
    }
    fn store(&mut self, op: Op, rs2: u8, offset: usize) {
        self.put(Inst { rs2, rs1: BASE_REGISTER, imm: offset as i32, ..inst(op) });
    }
    fn set(&mut self, rd: u8, value: i32) {
        self.put(Inst { rd, imm: value, ..inst(Op::Addi) });
    }
}

/// The image of a program that starts with the registers of `hart`.
fn image(hart: &Hart, data: &[u8], program: &Program) -> Vec<u8> {
    let mut image = vec![0; DATA];
    for i in 0..32 {
        image[BEFORE + 8 * i..][..8].copy_from_slice(&hart.x[i].to_le_bytes());
        image[BEFORE + F + 8 * i..][..8].copy_from_slice(&hart.f[i].to_le_bytes());
    }
    image[BEFORE + FCSR] = hart.frm << 5 | hart.fflags;
    image.extend_from_slice(data);
    assert_eq!(image.len(), CODE);

    let mut code = Assembler(&mut image);
    code.base();
    code.load(Op::Ld, 1, BEFORE + FCSR);
    code.put(Inst { rs1: 1, imm: csr::FCSR, ..inst(Op::Csrrw) });
    (0..32).for_each(|i| code.load(Op::Fld, i, BEFORE + F + 8 * usize::from(i)));
    // The base register itself comes last.
    (1..32).for_each(|i| code.load(Op::Ld, i, BEFORE + 8 * usize::from(i)));
    code.0.extend_from_slice(&program.code);
    let mut code = Assembler(&mut image);
    code.base();
    // The offset does not fit with the fcsr's, so the base moves by half of it.
    code.put(Inst { rd: BASE_REGISTER, rs1: BASE_REGISTER, imm: AFTER as i32 / 2, ..inst(Op::Addi) });
    let after = AFTER / 2;
    (0..31).for_each(|i| code.store(Op::Sd, i, after + 8 * usize::from(i)));
    (0..32).for_each(|i| code.store(Op::Fsd, i, after + F + 8 * usize::from(i)));
    code.put(Inst { rd: 1, imm: csr::FCSR, ..inst(Op::Csrrs) });
    code.store(Op::Sd, 1, after + FCSR);
    // write(1, BASE, CODE), then exit(0).
    code.set(17, 64);
    code.set(10, 1);
    code.put(Inst { rd: 11, imm: BASE as i32, ..inst(Op::Lui) });
    code.put(Inst { rd: 12, imm: CODE as i32, ..inst(Op::Lui) });
    code.put(inst(Op::Ecall));
    code.set(17, 93);
    code.set(10, 0);
    code.put(inst(Op::Ecall));
    image
}

/// A static ELF file of one segment.
fn elf(image: &[u8]) -> Vec<u8> {
    const HEADER_LEN: u64 = 0x1000;
    let mut file = b"\x7fELF\x02\x01\x01".to_vec();
    file.resize(16, 0);
    let half =
        |file: &mut Vec<u8>, values: &[u16]| values.iter().for_each(|v| file.extend_from_slice(&v.to_le_bytes()));
    let word =
        |file: &mut Vec<u8>, values: &[u32]| values.iter().for_each(|v| file.extend_from_slice(&v.to_le_bytes()));
    let long =
        |file: &mut Vec<u8>, values: &[u64]| values.iter().for_each(|v| file.extend_from_slice(&v.to_le_bytes()));
    // An executable for RISC-V, with the ABI of doubles and compressed code.
    half(&mut file, &[2, 243]);
    word(&mut file, &[1]);
    long(&mut file, &[BASE + CODE as u64, 64, 0]);
    word(&mut file, &[5]);
    half(&mut file, &[64, 56, 1, 64, 0, 0]);
    // The segment: loaded, to be read, written and run.
    word(&mut file, &[1, 7]);
    long(&mut file, &[HEADER_LEN, BASE, BASE, image.len() as u64, image.len() as u64, 0x1000]);
    file.resize(HEADER_LEN as usize, 0);
    file.extend_from_slice(image);
    file
}

/// Runs the interpreter on the image's registers and data.
fn run_interpreter(window: &Window, image: &[u8]) -> Vec<u8> {
    for (addr, &byte) in (BASE..).zip(image) {
        window.store_u8(addr, byte).unwrap();
    }
    let mut hart = Hart::new(BASE + CODE as u64);
    loop {
        match interpreter::step(&mut hart, window) {
            Ok(_) => {}
            Err(Trap::Ecall) => break,
            Err(trap) => panic!("{trap:?} at {:#x}", hart.pc),
        }
    }
    assert_eq!((hart.x[17], hart.x[10]), (64, 1), "ended at {:#x}", hart.pc);
    (BASE..BASE + CODE as u64).map(|addr| window.load_u8(addr).unwrap()).collect()
}

fn window(len_bytes: u64) -> Window {
    host_fault::install().unwrap();
    let window = Window::reserve().unwrap();
    map(&window, len_bytes);
    window.set_permissions(BASE..BASE + len_bytes, READ | WRITE | EXEC);
    window
}

#[allow(unsafe_code)]
fn map(window: &Window, len_bytes: u64) {
    let host = window.host(BASE).unwrap();
    // SAFETY: part of the window just reserved, which no other code uses.
    let done = unsafe { libc::mprotect(host.cast(), len_bytes as usize, libc::PROT_READ | libc::PROT_WRITE) };
    assert_eq!(done, 0);
}

/// The differences of two images, as text.
fn difference(ours: &[u8], theirs: &[u8]) -> Vec<String> {
    let words = |image: &[u8], at: usize| u64::from_le_bytes(image[at..at + 8].try_into().unwrap());
    (0..CODE)
        .step_by(8)
        .filter(|&at| words(ours, at) != words(theirs, at))
        .map(|at| {
            let name = match at.wrapping_sub(AFTER) / 8 {
                index @ 0..32 => format!("x{index}"),
                index @ 32..64 => format!("f{}", index - 32),
                64 => "fcsr".to_string(),
                _ => format!("byte {at:#x}"),
            };
            format!("{name}: interpreter {:#x}, qemu {:#x}", words(ours, at), words(theirs, at))
        })
        .collect()
}

/// Instructions that some QEMUs lack, and CTZW: QEMU 7.2 also counts the bits above the word.
fn qemu_lacks(op: Op) -> bool {
    matches!(op, Op::Cbo_clean | Op::Cbo_flush | Op::Cbo_zero | Op::Ctzw)
}

/// The processor for `-cpu`. Zfhmin must be asked for, by a name that changed between QEMU's
/// versions.
fn cpu() -> &'static str {
    let is_known = |cpu: &&str| {
        // QEMU looks at its options before it looks for the program.
        let output = Command::new("qemu-riscv64").args(["-cpu", cpu, "/"]).output().unwrap();
        !String::from_utf8_lossy(&output.stderr).contains("Property")
    };
    ["rv64,zfhmin=true", "rv64,Zfhmin=true"].into_iter().find(is_known).unwrap()
}

#[test]
fn random_programs_agree_with_qemu() {
    if Command::new("qemu-riscv64").arg("--version").output().is_err() {
        assert!(std::env::var_os("CODEWARDEN_REQUIRE_ALL").is_none(), "qemu-riscv64 is not installed");
        println!("skipped 1: qemu-riscv64 is not installed");
        return;
    }
    let cpu = cpu();
    let programs = std::env::var("QEMU_PROGRAMS").ok().and_then(|count| count.parse().ok()).unwrap_or(40);
    let window = window(1 << 20);
    let mut instructions = 0;
    let path = std::env::temp_dir().join(format!("codewarden-qemu-{}", std::process::id()));
    for seed in 0..programs {
        let mut generator = Generator::without(seed, qemu_lacks);
        let hart = generator.start(0, BASE + DATA as u64 + DATA_REACH_BYTES);
        let data = generator.data(2 * DATA_REACH_BYTES as usize);
        // Short programs show more operands, long ones more sequences.
        let program = generator.program(if seed % 4 == 0 { 2000 } else { 150 });
        instructions += program.insts.len();
        let image = image(&hart, &data, &program);
        let ours = run_interpreter(&window, &image);

        let mut file = fs::OpenOptions::new().create(true).truncate(true).write(true).mode(0o700).open(&path).unwrap();
        file.write_all(&elf(&image)).unwrap();
        drop(file);
        let output = Command::new("qemu-riscv64").args(["-cpu", cpu]).arg(&path).output().unwrap();
        assert!(output.status.success(), "seed {seed}: {:?}", output.status);
        let difference = difference(&ours, &output.stdout);
        assert!(difference.is_empty(), "seed {seed}: {difference:#?}");
    }
    fs::remove_file(&path).unwrap();
    println!("{programs} programs of {instructions} instructions: the interpreter and qemu-riscv64 agree");
}
