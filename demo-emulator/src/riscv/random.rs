//! Random legal programs for tests that compare one way of running guest code
//! with another.
//!
//! A program is straight-line code with forward jumps, so that it ends, at its
//! last byte, whatever its operands are. It covers every operation but ECALL
//! and EBREAK, compressed forms, every rounding mode, and never traps when
//! started as [`Generator::start`] says: loads, stores and atomics go through
//! [`DATA_REGISTERS`], which no instruction writes, and CSRs whose value no two
//! runs agree on are read into x0 alone.

use super::csr;
use super::decode::decode;
use super::encode::encode;
use super::inst::{Inst, Op};
use crate::hart::Hart;

/// Registers that hold the address of the data, 16-byte aligned: the stack
/// pointer and two that compressed loads can name.
pub const DATA_REGISTERS: [u8; 3] = [2, 8, 9];

/// Bytes of data that a program may touch, before its address and behind.
pub const DATA_REACH_BYTES: u64 = 4096;

/// Holds the targets of indirect jumps, for which it is written just before.
const TARGET: u8 = 31;

/// Every operation of a program, each as often as it stands here.
#[rustfmt::skip]
pub const OPS: &[Op] = {
    use Op::*;
    &[
        Lui, Auipc, Jal, Jalr, Beq, Bne, Blt, Bge, Bltu, Bgeu,
        Lb, Lh, Lw, Ld, Lbu, Lhu, Lwu, Sb, Sh, Sw, Sd,
        Addi, Slti, Sltiu, Xori, Ori, Andi, Slli, Srli, Srai,
        Add, Sub, Sll, Slt, Sltu, Xor, Srl, Sra, Or, And,
        Addiw, Slliw, Srliw, Sraiw, Addw, Subw, Sllw, Srlw, Sraw,
        Fence, Fence_i, Csrrw, Csrrs, Csrrc, Csrrwi, Csrrsi, Csrrci,
        Mul, Mulh, Mulhsu, Mulhu, Div, Divu, Rem, Remu, Mulw, Divw, Divuw, Remw, Remuw,
        Lr_w, Sc_w, Amoswap_w, Amoadd_w, Amoxor_w, Amoand_w, Amoor_w, Amomin_w, Amomax_w, Amominu_w, Amomaxu_w,
        Lr_d, Sc_d, Amoswap_d, Amoadd_d, Amoxor_d, Amoand_d, Amoor_d, Amomin_d, Amomax_d, Amominu_d, Amomaxu_d,
        Flw, Fsw, Fmadd_s, Fmsub_s, Fnmsub_s, Fnmadd_s, Fadd_s, Fsub_s, Fmul_s, Fdiv_s, Fsqrt_s,
        Fsgnj_s, Fsgnjn_s, Fsgnjx_s, Fmin_s, Fmax_s,
        Fcvt_w_s, Fcvt_wu_s, Fcvt_l_s, Fcvt_lu_s, Fcvt_s_w, Fcvt_s_wu, Fcvt_s_l, Fcvt_s_lu,
        Fmv_x_w, Fmv_w_x, Feq_s, Flt_s, Fle_s, Fclass_s,
        Fld, Fsd, Fmadd_d, Fmsub_d, Fnmsub_d, Fnmadd_d, Fadd_d, Fsub_d, Fmul_d, Fdiv_d, Fsqrt_d,
        Fsgnj_d, Fsgnjn_d, Fsgnjx_d, Fmin_d, Fmax_d, Fcvt_s_d, Fcvt_d_s,
        Fcvt_w_d, Fcvt_wu_d, Fcvt_l_d, Fcvt_lu_d, Fcvt_d_w, Fcvt_d_wu, Fcvt_d_l, Fcvt_d_lu,
        Fmv_x_d, Fmv_d_x, Feq_d, Flt_d, Fle_d, Fclass_d,
    ]
};

/// What an operation reads and writes, as far as a generator must know.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    Plain,
    Access,
    Atomic,
    Branch,
    Jal,
    Jalr,
    Csr,
}

fn kind(op: Op) -> Kind {
    use Op::*;
    match op {
        Lb | Lh | Lw | Ld | Lbu | Lhu | Lwu | Sb | Sh | Sw | Sd | Flw | Fld | Fsw | Fsd => Kind::Access,
        Beq | Bne | Blt | Bge | Bltu | Bgeu => Kind::Branch,
        Jal => Kind::Jal,
        Jalr => Kind::Jalr,
        Csrrw | Csrrs | Csrrc | Csrrwi | Csrrsi | Csrrci => Kind::Csr,
        _ if encode(&blank(op)) & 0x7f == 0x2f => Kind::Atomic,
        _ => Kind::Plain,
    }
}

/// Whether `rd` is a floating-point register.
fn writes_fp(op: Op) -> bool {
    use Op::*;
    let bits = encode(&blank(op));
    let to_integer = bits & 0x7f == 0x53 && matches!(bits >> 27, 0x14 | 0x18 | 0x1c);
    matches!(op, Flw | Fld) || matches!(bits & 0x7f, 0x43 | 0x47 | 0x4b | 0x4f | 0x53) && !to_integer
}

fn blank(op: Op) -> Inst {
    Inst { op, rd: 0, rs1: 0, rs2: 0, rs3: 0, rm: 0, len: 4, imm: 0 }
}

/// A small generator of random numbers (SplitMix64); the same seed gives the
/// same numbers everywhere.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// Begins with a seed.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// Any 64 bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    /// A number below `bound`, which is not 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.bits() % bound
    }

    fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len() as u64) as usize]
    }

    /// An integer operand: often at an edge of some width.
    pub fn integer(&mut self) -> u64 {
        match self.below(4) {
            0 => self.bits(),
            1 => self.bits() as i32 as u64,
            2 => self.below(33).wrapping_sub(16),
            _ => {
                let edge = 1_u64 << self.below(64);
                edge.wrapping_add(self.below(3)).wrapping_sub(1)
            }
        }
    }

    /// A floating-point operand of a format with the given widths: often one
    /// at which operations change their behaviour.
    fn float(&mut self, exponent_bits: u32, fraction_bits: u32) -> u64 {
        let greatest = (1 << exponent_bits) - 1;
        let bias = greatest >> 1;
        let exponent = match self.below(8) {
            0 => 0,
            1 => greatest,
            2 => 1 + self.below(3),
            3 => greatest - 1 - self.below(3),
            4..=6 => bias + self.below(130) - 65,
            _ => self.below(greatest),
        };
        let all = (1 << fraction_bits) - 1;
        let fraction = match self.below(6) {
            0 => 0,
            1 => all,
            2 => self.below(4),
            3 => all - self.below(4),
            4 => 1 << self.below(fraction_bits.into()),
            _ => self.bits() & all,
        };
        self.below(2) << (exponent_bits + fraction_bits) | exponent << fraction_bits | fraction
    }

    /// A single-precision operand.
    pub fn single(&mut self) -> u32 {
        self.float(8, 23) as u32
    }

    /// A double-precision operand.
    pub fn double(&mut self) -> u64 {
        self.float(11, 52)
    }

    /// The contents of a floating-point register: a double, a boxed single, or
    /// seldom a single that is not boxed.
    pub fn register(&mut self) -> u64 {
        match self.below(16) {
            0 => self.single().into(),
            1..8 => super::fp::boxed(self.single()),
            _ => self.double(),
        }
    }
}

/// A program and what it consists of.
#[derive(Clone, Debug, Default)]
pub struct Program {
    /// The code. It runs from its first byte to behind its last one.
    pub code: Vec<u8>,
    /// Its instructions in order, with their own lengths.
    pub insts: Vec<Inst>,
}

/// Makes programs.
#[derive(Debug)]
pub struct Generator {
    random: Random,
    /// The compressed instructions that a program may contain anywhere, those
    /// of one operation together: some have thousands, a jump has one.
    compressed: Vec<Vec<Inst>>,
}

/// Instructions that a jump either reaches at their first or skips.
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
        let mut compressed: Vec<Vec<Inst>> = Vec::new();
        for inst in (0..=0xffff).filter(|bits| bits & 3 != 3).map(decode).filter(allowed_compressed) {
            match compressed.iter_mut().find(|group| group[0].op == inst.op) {
                Some(group) => group.push(inst),
                None => compressed.push(vec![inst]),
            }
        }
        Self { random: Random::new(seed), compressed }
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

    /// What to fill the data with: integers and floating-point operands.
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
            if may_write(register) {
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

    /// An indirect jump and what makes its target: a compressed one has no
    /// displacement of its own.
    fn jump_item(&mut self, jump: Inst) -> Item {
        let base = Inst { rd: TARGET, ..blank(Op::Auipc) };
        let add = Inst { rd: TARGET, rs1: TARGET, ..blank(Op::Addi) };
        let insts = if jump.len == 2 { vec![base, add, jump] } else { vec![base, jump] };
        Item { insts, skips: self.skips() }
    }

    fn item(&mut self) -> Item {
        let op = self.random.pick(OPS);
        let rd = if writes_fp(op) { self.random.below(32) as u8 } else { self.target_register() };
        let [rs1, rs2, rs3] = [(); 3].map(|()| self.random.below(32) as u8);
        let imm = self.random.bits() as i32;
        let inst = Inst { rd, rs1, rs2, rs3, imm, ..blank(op) };
        let single = |inst: Inst| Item { insts: vec![normal(inst)], skips: None };
        match kind(op) {
            Kind::Branch | Kind::Jal => Item { skips: self.skips(), insts: vec![normal(inst)] },
            Kind::Jalr => self.jump_item(normal(Inst { rs1: TARGET, ..inst })),
            Kind::Access => single(Inst { rs1: self.random.pick(&DATA_REGISTERS), ..inst }),
            Kind::Atomic => self.atomic_item(inst),
            Kind::Csr => self.csr_item(inst),
            // The rounding mode, and nothing for what has none.
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
        // With the reservation that lets it succeed, and sometimes once more
        // without. Never with one of the other width: QEMU then stores and
        // says that it did not.
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
        // What it wrote may be no rounding mode: the next one writes one.
        let mode = self.random.below(5) as u8;
        let repair = Inst { rs1: mode, imm: csr::FRM, ..blank(Op::Csrrwi) };
        Item { insts: vec![normal(inst), repair], skips: None }
    }
}

/// Fields that the operation does not have become 0, immediates what fits.
fn normal(inst: Inst) -> Inst {
    decode(encode(&inst))
}

fn may_write(register: u8) -> bool {
    register != TARGET && !DATA_REGISTERS.contains(&register)
}

/// Whether a program may contain this one: as [`Generator::item`] would choose
/// it.
fn allowed_compressed(inst: &Inst) -> bool {
    if matches!(inst.op, Op::Illegal | Op::Ebreak) || !writes_fp(inst.op) && !may_write(inst.rd) {
        return false;
    }
    match kind(inst.op) {
        Kind::Access => DATA_REGISTERS.contains(&inst.rs1),
        Kind::Jalr => inst.rs1 == TARGET,
        // One of each is enough, for the displacement is put in later.
        Kind::Branch | Kind::Jal => inst.imm == 2,
        _ => true,
    }
}

impl Program {
    /// Appends an item, with its jump leading over as many of `rest` as it
    /// says or there are.
    fn append(&mut self, item: &Item, rest: &[Item]) {
        let mut insts = item.insts.clone();
        if let (Some(skips), Some(jump)) = (item.skips, insts.last_mut()) {
            let behind: i32 = rest.iter().take(skips as usize).map(Item::len_bytes).sum();
            if kind(jump.op) != Kind::Jalr {
                jump.imm = i32::from(jump.len) + behind;
            } else {
                // From the first of the item, whose address the base is.
                let last = insts.len() - 1;
                let place = if insts[last].len == 2 { last - 1 } else { last };
                insts[place].imm = item.len_bytes() + behind;
            }
        }
        for inst in insts {
            match inst.len {
                2 => self.code.extend_from_slice(&compress(&inst).to_le_bytes()),
                _ => self.code.extend_from_slice(&encode(&inst).to_le_bytes()),
            }
            self.insts.push(inst);
        }
    }
}

/// The 16-bit form of an instruction that was decoded from one, a jump's
/// displacement changed at most. Found by decoding all of them once.
fn compress(inst: &Inst) -> u16 {
    use std::collections::HashMap;
    use std::sync::OnceLock;
    static FORMS: OnceLock<HashMap<Inst, u16>> = OnceLock::new();
    let forms = FORMS.get_or_init(|| {
        let all = (0..=u16::MAX).filter(|bits| bits & 3 != 3);
        all.map(|bits| (decode(bits.into()), bits)).collect()
    });
    forms[inst]
}
