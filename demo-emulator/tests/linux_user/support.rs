//! Small riscv64 programs made in the test, so that no cross compiler is needed.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicU32, Ordering};

use demo_emulator::riscv::encode::encode;
use demo_emulator::riscv::inst::{Inst, Op};

/// The one segment's address: readable, writable, executable.
pub(crate) const BASE: u64 = 0x10_0000;
const CODE_OFFSET: usize = 0x1000;
const DATA_OFFSET: usize = 0x2000;
const IMAGE_BYTES: usize = 0x3000;
/// Address of the program's zeroed scratch memory.
pub(crate) const SCRATCH: u64 = BASE + IMAGE_BYTES as u64;

pub(crate) const SP: u8 = 2;
pub(crate) const S0: u8 = 8;
pub(crate) const A0: u8 = 10;
pub(crate) const A1: u8 = 11;
pub(crate) const A2: u8 = 12;
const A7: u8 = 17;

/// A program that is being written.
#[derive(Default)]
pub(crate) struct Program {
    code: Vec<u8>,
    data: Vec<u8>,
    position_independent: bool,
}

impl Program {
    pub(crate) fn put(&mut self, op: Op, rd: u8, rs1: u8, rs2: u8, imm: i64) -> &mut Self {
        let inst = Inst { op, rd, rs1, rs2, rs3: 0, rm: 0, len: 4, imm: imm as i32 };
        self.code.extend(encode(&inst).to_le_bytes());
        self
    }

    /// The bits of an instruction.
    pub(crate) fn raw(&mut self, bits: u32) -> &mut Self {
        self.code.extend(bits.to_le_bytes());
        self
    }

    /// Loads a 31-bit number.
    pub(crate) fn li(&mut self, rd: u8, value: i64) -> &mut Self {
        let upper = (value + 0x800) >> 12 << 12;
        self.put(Op::Lui, rd, 0, 0, upper).put(Op::Addiw, rd, rd, 0, value - upper)
    }

    pub(crate) fn mv(&mut self, rd: u8, rs: u8) -> &mut Self {
        self.put(Op::Addi, rd, rs, 0, 0)
    }

    /// Puts bytes into the data; returns their address.
    pub(crate) fn data(&mut self, bytes: &[u8]) -> i64 {
        self.data.resize(self.data.len().next_multiple_of(8), 0);
        let address = BASE as i64 + (DATA_OFFSET + self.data.len()) as i64;
        self.data.extend(bytes);
        address
    }

    /// A system call with these arguments.
    pub(crate) fn call(&mut self, number: i64, arguments: &[i64]) -> &mut Self {
        for (register, value) in (A0..).zip(arguments) {
            self.li(register, *value);
        }
        self.ecall(number)
    }

    /// A system call with the arguments in the registers.
    pub(crate) fn ecall(&mut self, number: i64) -> &mut Self {
        self.li(A7, number).put(Op::Ecall, 0, 0, 0, 0)
    }

    /// Exits with the value in `a0`.
    pub(crate) fn exit(&mut self) -> &mut Self {
        self.ecall(94)
    }

    /// Address of the next instruction.
    pub(crate) fn here(&self) -> i64 {
        BASE as i64 + (CODE_OFFSET + self.code.len()) as i64
    }

    /// Exits with `status` unless `rs` holds `expected`.
    pub(crate) fn expect(&mut self, rs: u8, expected: i64, status: i64) -> &mut Self {
        const T6: u8 = 31;
        self.li(T6, expected).put(Op::Beq, 0, rs, T6, 24).li(A0, status).exit();
        self
    }

    fn elf_type(&self) -> u16 {
        if self.position_independent { 3 } else { 2 }
    }

    /// Lets the loader choose the address. The code must then name no address of its own.
    pub(crate) fn anywhere(&mut self) -> &mut Self {
        self.position_independent = true;
        self
    }

    /// The ELF file.
    pub(crate) fn elf(&self) -> Vec<u8> {
        assert!(self.code.len() <= DATA_OFFSET - CODE_OFFSET && self.data.len() <= IMAGE_BYTES - DATA_OFFSET);
        let mut image = vec![0; IMAGE_BYTES];
        let mut word = |offset: usize, value: u64| image[offset..offset + 8].copy_from_slice(&value.to_le_bytes());
        word(0, u64::from_le_bytes(*b"\x7fELF\x02\x01\x01\0"));
        word(16, u64::from(self.elf_type()) | 243 << 16 | 1 << 32);
        word(24, BASE + CODE_OFFSET as u64);
        word(32, 64);
        word(48, 5 | 64 << 32 | 56 << 48);
        word(56, 1);
        word(64, 1 | 7 << 32);
        word(80, BASE);
        word(88, BASE);
        word(96, IMAGE_BYTES as u64);
        word(104, 2 * IMAGE_BYTES as u64);
        word(112, 0x1000);
        image[CODE_OFFSET..][..self.code.len()].copy_from_slice(&self.code);
        image[DATA_OFFSET..][..self.data.len()].copy_from_slice(&self.data);
        image
    }
}

/// A folder of the test's own, removed at its end.
pub(crate) struct Folder(PathBuf);

impl Folder {
    pub(crate) fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("demo-emulator-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    /// Writes an executable file.
    pub(crate) fn file(&self, name: &str, contents: &[u8]) -> PathBuf {
        let path = self.0.join(name);
        fs::write(&path, contents).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        path
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// The emulator with these options.
pub(crate) fn emulator_with(options: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_demo-emulator"));
    command.args(options);
    command
}

/// The emulator, interpreting.
pub(crate) fn emulator() -> Command {
    emulator_with(&["--interpret"])
}

/// Runs a program with these options.
pub(crate) fn run_with(options: &[&str], program: &Program) -> Output {
    let folder = Folder::new();
    let path = folder.file("program", &program.elf());
    emulator_with(options).arg(path).output().unwrap()
}

/// Runs a program in the interpreter.
pub(crate) fn run(program: &Program) -> Output {
    run_with(&["--interpret"], program)
}
