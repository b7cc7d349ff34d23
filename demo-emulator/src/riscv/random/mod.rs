//! Random legal programs for tests that compare two ways of running guest code.
//!
//! A program is straight-line code with forward jumps. So it ends at its last byte for all
//! operands. It covers every operation but ECALL and EBREAK, compressed forms, and every rounding
//! mode. It never traps if it starts with the hart of [`Generator::start`]: loads, stores and
//! atomics go through [`DATA_REGISTERS`], which no instruction writes. CSRs with a value that
//! differs between runs are read into x0 only.

mod numbers;
mod ops;
pub mod stream;

use super::csr;
use super::decode::decode;
use super::encode::encode;
use super::inst::{Inst, Op};
use crate::hart::Hart;
pub use numbers::Random;
use ops::{Kind, blank, kind, writes_fp};
pub use ops::{OPS, accesses_memory, is_atomic, is_rounded};

/// Registers that hold the address of the data, 16-byte aligned: the stack
/// pointer and two that compressed loads can name.
pub const DATA_REGISTERS: [u8; 3] = [2, 8, 9];

/// Bytes of data that a program may touch, on each side of its address.
pub const DATA_REACH_BYTES: u64 = 4096;

/// Holds the target of an indirect jump; written just before the jump.
const TARGET: u8 = 31;

/// A program and its parts.
#[derive(Clone, Debug, Default)]
pub struct Program {
    /// The code. It runs from its first byte to its end.
    pub code: Vec<u8>,
    /// Its instructions in order, with their own lengths.
    pub insts: Vec<Inst>,
}

/// Makes programs.
#[derive(Debug)]
pub struct Generator {
    random: Random,
    /// The compressed instructions that a program may contain anywhere, grouped by operation: some
    /// operations have thousands, a jump has one.
    compressed: Vec<Vec<Inst>>,
    /// The operations of all others.
    ops: Vec<Op>,
    /// Registers that no instruction writes, by bits.
    kept: u32,
}

/// Instructions that a jump either enters at the first one or skips.
struct Item {
    insts: Vec<Inst>,
    /// How many items the last instruction jumps over, if it jumps.
    skips: Option<u64>,
}

impl Item {
    fn len_bytes(&self) -> i32 {
        self.insts.iter().map(|inst| i32::from(inst.len)).sum()
    }
}

impl Generator {
    /// Begins with a seed.
    pub fn new(seed: u64) -> Self {
        Self::keeping(seed, &DATA_REGISTERS)
    }

    /// A generator whose programs also leave the registers `kept` alone.
    fn keeping(seed: u64, kept: &[u8]) -> Self {
        let kept = kept.iter().chain([&TARGET]).fold(0, |kept, register| kept | 1 << register);
        let mut compressed: Vec<Vec<Inst>> = Vec::new();
        for inst in (0..=0xffff).filter(|bits| bits & 3 != 3).map(decode).filter(|inst| is_allowed(inst, kept)) {
            match compressed.iter_mut().find(|group| group[0].op == inst.op) {
                Some(group) => group.push(inst),
                None => compressed.push(vec![inst]),
            }
        }
        Self { random: Random::new(seed), compressed, ops: OPS.to_vec(), kept }
    }

    /// A generator whose programs lack some operations; none of them has a compressed form.
    pub fn without(seed: u64, missing: impl Fn(Op) -> bool) -> Self {
        let mut generator = Self::new(seed);
        generator.ops.retain(|&op| !missing(op));
        generator
    }

    /// The numbers that the programs come from.
    pub fn random(&mut self) -> &mut Random {
        &mut self.random
    }

    /// A hart about to run a program at `pc`, with its data at `data`.
    pub fn start(&mut self, pc: u64, data: u64) -> Hart {
        let mut hart = Hart::new(pc);
        hart.x[1..].fill_with(|| self.random.integer());
        hart.f.fill_with(|| self.random.register());
        for register in DATA_REGISTERS {
            hart.x[usize::from(register)] = data;
        }
        hart.fflags = self.random.below(32) as u8;
        hart.frm = self.random.below(5) as u8;
        hart
    }

    /// The initial contents of the data: integers and floating-point operands.
    pub fn data(&mut self, len_bytes: usize) -> Vec<u8> {
        let mut data = Vec::with_capacity(len_bytes + 8);
        while data.len() < len_bytes {
            let value = if self.random.one_in(3) { self.random.integer() } else { self.random.register() };
            data.extend_from_slice(&value.to_le_bytes());
        }
        data.truncate(len_bytes);
        data
    }

    /// A program of at least `count` instructions.
    pub fn program(&mut self, count: usize) -> Program {
        let mut items = Vec::new();
        let mut made = 0;
        while made < count {
            let item = if self.random.one_in(4) { self.compressed_item() } else { self.item() };
            made += item.insts.len();
            items.push(item);
        }
        let mut program = Program::default();
        for (index, item) in items.iter().enumerate() {
            program.append(item, &items[index + 1..]);
        }
        program
    }

    fn target_register(&mut self) -> u8 {
        loop {
            let register = self.random.below(32) as u8;
            if self.kept & 1 << register == 0 {
                return register;
            }
        }
    }

    fn skips(&mut self) -> Option<u64> {
        Some(self.random.below(4))
    }

    fn compressed_item(&mut self) -> Item {
        let group = &self.compressed[self.random.below(self.compressed.len() as u64) as usize];
        let inst = self.random.pick(group);
        match kind(inst.op) {
            Kind::Jalr => self.jump_item(inst),
            Kind::Branch | Kind::Jal => Item { skips: self.skips(), insts: vec![inst] },
            _ => Item { insts: vec![inst], skips: None },
        }
    }

    /// An indirect jump, and the instructions that make its target: a compressed jump has no
    /// displacement of its own.
    fn jump_item(&mut self, jump: Inst) -> Item {
        let base = Inst { rd: TARGET, ..blank(Op::Auipc) };
        let add = Inst { rd: TARGET, rs1: TARGET, ..blank(Op::Addi) };
        let insts = if jump.len == 2 { vec![base, add, jump] } else { vec![base, jump] };
        Item { insts, skips: self.skips() }
    }

    fn item(&mut self) -> Item {
        let op = self.random.pick(&self.ops);
        let rd = if writes_fp(op) { self.random.below(32) as u8 } else { self.target_register() };
        let [rs1, rs2, rs3] = [(); 3].map(|()| self.random.below(32) as u8);
        // Results differ most if operands are the same.
        let rs2 = if self.random.one_in(8) { rs1 } else { rs2 };
        let imm = self.random.bits() as i32;
        let inst = Inst { rd, rs1, rs2, rs3, imm, ..blank(op) };
        let single = |inst: Inst| Item { insts: vec![normal(inst)], skips: None };
        match kind(op) {
            Kind::Branch | Kind::Jal => Item { skips: self.skips(), insts: vec![normal(inst)] },
            Kind::Jalr => self.jump_item(normal(Inst { rs1: TARGET, ..inst })),
            Kind::Access => single(Inst { rs1: self.random.pick(&DATA_REGISTERS), ..inst }),
            Kind::Atomic => self.atomic_item(inst),
            Kind::Csr => self.csr_item(inst),
            // The rounding mode; 0 for operations without one.
            Kind::Plain => single(Inst { rm: self.random.pick(&[0, 1, 2, 3, 4, 7]), ..inst }),
        }
    }

    fn atomic_item(&mut self, inst: Inst) -> Item {
        let rm = self.random.below(4) as u8;
        let inst = Inst { rs1: self.random.pick(&DATA_REGISTERS), rm, ..inst };
        let load = match inst.op {
            Op::Sc_w => Op::Lr_w,
            Op::Sc_d => Op::Lr_d,
            _ => return Item { insts: vec![normal(inst)], skips: None },
        };
        // After its LR, which lets the SC succeed; sometimes once more without. Never after an LR
        // of the other width: QEMU then stores and reports a failure.
        let mut insts = vec![normal(Inst { op: load, rd: self.target_register(), ..inst }), normal(inst)];
        if self.random.one_in(3) {
            insts.push(normal(Inst { rd: self.target_register(), ..inst }));
        }
        Item { insts, skips: None }
    }

    fn csr_item(&mut self, inst: Inst) -> Item {
        let number = self.random.pick(&[csr::FFLAGS, csr::FRM, csr::FCSR, csr::CYCLE, csr::TIME, csr::INSTRET]);
        let inst = Inst { imm: number, ..inst };
        if matches!(number, csr::CYCLE | csr::TIME | csr::INSTRET) {
            let op = if matches!(inst.op, Op::Csrrw | Op::Csrrs) { Op::Csrrs } else { Op::Csrrc };
            return Item { insts: vec![normal(Inst { op, rd: 0, rs1: 0, ..inst })], skips: None };
        }
        // The value written may be no rounding mode: the next instruction writes a valid one.
        let mode = self.random.below(5) as u8;
        let repair = Inst { rs1: mode, imm: csr::FRM, ..blank(Op::Csrrwi) };
        Item { insts: vec![normal(inst), repair], skips: None }
    }
}

/// Sets the operation's missing fields to 0, and immediates to a value that fits.
fn normal(inst: Inst) -> Inst {
    decode(encode(&inst))
}

/// Whether a program may contain this one: the same choice as [`Generator::item`]'s.
fn is_allowed(inst: &Inst, kept: u32) -> bool {
    let is_kept = !writes_fp(inst.op) && kept & 1 << inst.rd != 0;
    if matches!(inst.op, Op::Illegal | Op::Ebreak) || is_kept {
        return false;
    }
    match kind(inst.op) {
        Kind::Access => DATA_REGISTERS.contains(&inst.rs1),
        Kind::Jalr => inst.rs1 == TARGET,
        // One of each is enough, since the displacement is set later.
        Kind::Branch | Kind::Jal => inst.imm == 2,
        _ => true,
    }
}

impl Program {
    /// Appends an item. Its jump skips as many items of `rest` as it names, or all if there are
    /// fewer.
    fn append(&mut self, item: &Item, rest: &[Item]) {
        let mut insts = item.insts.clone();
        if let (Some(skips), Some(jump)) = (item.skips, insts.last_mut()) {
            let behind: i32 = rest.iter().take(skips as usize).map(Item::len_bytes).sum();
            if kind(jump.op) != Kind::Jalr {
                jump.imm = i32::from(jump.len) + behind;
            } else {
                // From the item's first instruction, because its address is the base.
                let last = insts.len() - 1;
                let place = if insts[last].len == 2 { last - 1 } else { last };
                insts[place].imm = item.len_bytes() + behind;
            }
        }
        for inst in insts {
            match form(&inst) {
                Some(bits) if inst.len == 2 => self.code.extend_from_slice(&bits.to_le_bytes()),
                _ => self.code.extend_from_slice(&encode(&inst).to_le_bytes()),
            }
            self.insts.push(inst);
        }
    }
}

/// The 16-bit form of an instruction that was decoded from one, and changed at most in a jump's
/// displacement. The forms are found by decoding all of them once.
fn form(inst: &Inst) -> Option<u16> {
    use std::collections::HashMap;
    use std::sync::OnceLock;
    static FORMS: OnceLock<HashMap<Inst, u16>> = OnceLock::new();
    let forms = FORMS.get_or_init(|| {
        let all = (0..=u16::MAX).filter(|bits| bits & 3 != 3);
        all.map(|bits| (decode(bits.into()), bits)).collect()
    });
    forms.get(inst).copied()
}
