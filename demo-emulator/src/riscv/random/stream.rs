//! Random programs that write themselves.
//!
//! A stream is a list of fragments: ordinary random instructions, loops, data among the code, jumps
//! back and into the middle of an instruction, and stores to the code. A FENCE.I follows some of
//! the stores. A stream may trap or run for ever, since a store can make anything of the code.
//!
//! Each fragment comes from [`FRAGMENT_BYTES`] of choices of its own. So choices keep their meaning
//! when a fuzzer cuts them and joins them elsewhere.

use std::collections::BTreeMap;

use super::ops::{Kind, blank, kind};
use super::{DATA_REGISTERS, Generator, Item, OPS, Random, TARGET, accesses_memory, form, is_atomic, normal};
use crate::hart::Hart;
use crate::riscv::encode::encode;
use crate::riscv::inst::{Inst, Op};

/// Choices of one fragment, in bytes.
pub const FRAGMENT_BYTES: usize = 16;

/// Bytes of code at most.
pub const MAX_CODE_BYTES: usize = 5 * PAGE_BYTES;

const PAGE_BYTES: usize = 4096;

/// Added to the address of some stores into the code: the distance to a second view of the same
/// memory, or 0.
pub const ELSEWHERE: u8 = 19;

/// The counters of loops that go on.
const COUNTERS: [u8; 2] = [20, 21];

/// How many jumps back may still be taken.
const FUEL: u8 = 22;

/// The value of the next store into the code.
const VALUE: u8 = 30;

/// Stores into the code.
#[rustfmt::skip]
const STORES: &[Op] = {
    use Op::*;
    &[Sw, Sw, Sw, Sd, Sd, Sh, Sh, Sb, Fsh, Fsw, Fsd, Cbo_zero, Amoswap_w, Amoswap_d, Amoadd_w, Amoxor_d, Sc_w, Sc_d]
};

/// Distances from the beginning of a fragment.
const OFFSETS: &[i64] = &[0, 0, 0, 0, 0, 0, 2, 2, 4, 4, 6, 8, -2, -4, -8, 12, 64, -64, 1, -1];

/// Lengths of data among the code. 0: up to the next page.
const GAPS: &[usize] = &[0, 0, 2, 6, 32, 56, 64, 126, 500];

/// The request of an ECALL in a stream. Offsets are from the first byte of the code.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The kernel writes to the code.
    KernelWrite {
        /// The first byte.
        offset: i64,
        /// The new bytes.
        bytes: Vec<u8>,
    },
    /// The instruction cache is flushed for a fragment of the code.
    Flush {
        /// The first byte.
        offset: i64,
        /// Its length.
        len_bytes: u64,
    },
    /// The instruction cache is flushed, all of it.
    FlushAll,
}

/// How often a store into the code is followed by a FENCE.I.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Announces {
    /// Never.
    Never,
    /// Mostly.
    Mostly,
    /// Always.
    Always,
}

/// A program that writes itself. It ends with an ECALL.
#[derive(Clone, Debug, Default)]
pub struct Stream {
    /// The code, which begins with its first instruction.
    pub code: Vec<u8>,
    /// The requests of the ECALLs at these offsets; any other ECALL ends the program.
    pub events: BTreeMap<u64, Event>,
}

/// A place in the program.
#[derive(Clone, Copy, Debug)]
struct Spot {
    fragment: usize,
    offset: i64,
}

/// An instruction that names a place in the program.
#[derive(Debug)]
enum Reference {
    /// A jump or branch.
    Jump { at: usize, to: Spot },
    /// An AUIPC, and the one that adds the rest.
    Address { auipc: usize, rest: usize, of: Spot },
}

#[derive(Debug)]
enum Asked {
    KernelWrite(Spot, Vec<u8>),
    Flush(Spot, u64),
    FlushAll,
}

#[derive(Debug, Default)]
struct Fragment {
    insts: Vec<Inst>,
    references: Vec<Reference>,
    /// Bytes behind the instructions.
    data: Vec<u8>,
    /// The request of the last instruction, an ECALL.
    asked: Option<Asked>,
}

impl Fragment {
    fn of(insts: Vec<Inst>) -> Self {
        Self { insts, ..Self::default() }
    }

    fn insts_len_bytes(&self) -> usize {
        self.insts.iter().map(|inst| usize::from(inst.len)).sum()
    }

    fn len_bytes(&self) -> usize {
        self.insts_len_bytes() + self.data.len()
    }

    fn push(&mut self, inst: Inst) -> usize {
        self.insts.push(inst);
        self.insts.len() - 1
    }

    /// Makes TARGET the address of a place.
    fn push_address(&mut self, of: Spot) {
        let auipc = self.push(Inst { rd: TARGET, ..blank(Op::Auipc) });
        let rest = self.push(Inst { rd: TARGET, rs1: TARGET, ..blank(Op::Addi) });
        self.references.push(Reference::Address { auipc, rest, of });
    }
}

/// A loop that is not closed yet.
struct Open {
    counter: u8,
    first: usize,
    /// Fragments until its end.
    left: u64,
}

/// Makes streams.
#[derive(Debug)]
pub struct Streams {
    generator: Generator,
    accesses: Vec<Op>,
}

impl Default for Streams {
    fn default() -> Self {
        Self::new()
    }
}

impl Streams {
    /// A generator without a stream so far.
    pub fn new() -> Self {
        let kept = [&DATA_REGISTERS[..], &COUNTERS, &[FUEL, ELSEWHERE]].concat();
        let accesses = OPS.iter().copied().filter(|op| accesses_memory(*op)).collect();
        Self { generator: Generator::keeping(0, &kept), accesses }
    }

    /// A hart about to run a stream at `pc`, with its data at `data`, and the initial contents of
    /// the data, from `choices`.
    pub fn start(&mut self, choices: &[u8], pc: u64, data: u64, data_len_bytes: usize) -> (Hart, Vec<u8>) {
        *self.random() = Random::of(choices);
        let mut hart = self.generator.start(pc, data);
        hart.x[usize::from(FUEL)] = self.random().below(64);
        hart.x[usize::from(ELSEWHERE)] = 0;
        (hart, self.generator.data(data_len_bytes))
    }

    /// The stream that `choices` stand for, for a place `in_page` bytes after the beginning of a
    /// page.
    pub fn stream(&mut self, in_page: usize, announces: Announces, choices: &[u8]) -> Stream {
        let (mut fragments, mut loops): (Vec<Fragment>, Vec<Open>) = (Vec::new(), Vec::new());
        let mut len_bytes = 0;
        for choices in choices.chunks(FRAGMENT_BYTES) {
            *self.random() = Random::of(choices);
            let index = fragments.len();
            let fragment = self.fragment(index, announces, in_page + len_bytes, &mut loops);
            if len_bytes + fragment.len_bytes() > MAX_CODE_BYTES {
                break;
            }
            len_bytes += fragment.len_bytes();
            fragments.push(fragment);
            while let Some(open) = loops.pop_if(|open| open.left == 0) {
                fragments.push(closing(&open));
                len_bytes += 8;
            }
            loops.iter_mut().for_each(|open| open.left = open.left.saturating_sub(1));
        }
        for open in loops.iter().rev() {
            fragments.push(closing(open));
        }
        fragments.push(Fragment::of(vec![blank(Op::Ecall)]));
        assemble(&fragments)
    }

    fn random(&mut self) -> &mut Random {
        &mut self.generator.random
    }

    fn fragment(&mut self, index: usize, announces: Announces, at: usize, loops: &mut Vec<Open>) -> Fragment {
        match self.random().below(64) {
            0..30 => self.plain(index),
            30..45 => self.patch(index, announces),
            45..50 if loops.len() < COUNTERS.len() => {
                let (count, left) = (2 + self.random().below(80) as i32, 1 + self.random().below(8));
                let counter = COUNTERS[loops.len()];
                loops.push(Open { counter, first: index + 1, left });
                Fragment::of(vec![Inst { rd: counter, imm: count, ..blank(Op::Addi) }])
            }
            50..54 => self.jump(index),
            54..57 => self.gap(index, at),
            57 | 58 => Fragment::of(vec![blank(Op::Fence_i)]),
            59 => self.event(index),
            60 | 61 => {
                let op = self.generator.random.pick(&self.accesses);
                let [rd, rs1, rs2] = [(); 3].map(|()| self.random().below(32) as u8);
                let imm = self.random().bits() as i32;
                Fragment::of(vec![normal(Inst { rd: if rd == FUEL { 0 } else { rd }, rs1, rs2, imm, ..blank(op) })])
            }
            _ => Fragment { data: self.random().bits().to_le_bytes()[..4].to_vec(), ..Fragment::default() },
        }
    }

    fn plain(&mut self, index: usize) -> Fragment {
        let item = self.any_item();
        let mut fragment = Fragment::of(item.insts);
        if let (Some(skips), Some(jump)) = (item.skips, fragment.insts.last()) {
            let (at, to) = (fragment.insts.len() - 1, Spot { fragment: index + 1 + skips as usize, offset: 0 });
            fragment.references.push(match kind(jump.op) {
                Kind::Jalr => Reference::Address { auipc: 0, rest: if jump.len == 2 { at - 1 } else { at }, of: to },
                _ => Reference::Jump { at, to },
            });
        }
        fragment
    }

    fn any_item(&mut self) -> Item {
        if self.random().one_in(4) { self.generator.compressed_item() } else { self.generator.item() }
    }

    /// A place near the fragment, or anywhere.
    fn spot(&mut self, index: usize) -> Spot {
        let distance = self.random().below(256) as u8 as i8;
        let distance = if distance % 4 == 0 { distance } else { distance / 16 };
        Spot { fragment: index.saturating_add_signed(distance.into()), offset: self.random().pick(OFFSETS) }
    }

    /// Stores to the code.
    fn patch(&mut self, index: usize, announces: Announces) -> Fragment {
        let mut fragment = Fragment::default();
        let (op, to) = (self.random().pick(STORES), self.spot(index));
        let rs2 = match self.random().below(8) {
            0 => self.random().below(32) as u8,
            // A copy of other code.
            1..4 => {
                let from = self.spot(index);
                fragment.push_address(from);
                fragment.push(Inst { rd: VALUE, rs1: TARGET, ..blank(Op::Ld) });
                VALUE
            }
            _ => {
                let bits = self.code_word();
                let low = (bits as i32) << 20 >> 20;
                fragment.push(Inst { rd: VALUE, imm: (bits as i32).wrapping_sub(low), ..blank(Op::Lui) });
                fragment.push(Inst { rd: VALUE, rs1: VALUE, imm: low, ..blank(Op::Addiw) });
                VALUE
            }
        };
        fragment.push_address(to);
        if self.random().one_in(3) {
            fragment.push(Inst { rd: TARGET, rs1: TARGET, rs2: ELSEWHERE, ..blank(Op::Add) });
        }
        if is_atomic(op) {
            let align = -(op.stored_bytes() as i32);
            fragment.push(Inst { rd: TARGET, rs1: TARGET, imm: align, ..blank(Op::Andi) });
        }
        match op {
            Op::Sc_w => drop(fragment.push(Inst { rs1: TARGET, ..blank(Op::Lr_w) })),
            Op::Sc_d => drop(fragment.push(Inst { rs1: TARGET, ..blank(Op::Lr_d) })),
            Op::Fsh | Op::Fsw | Op::Fsd => drop(fragment.push(Inst { rd: rs2, rs1: rs2, ..blank(Op::Fmv_d_x) })),
            _ => {}
        }
        let rd = if is_atomic(op) { VALUE } else { 0 };
        fragment.push(Inst { rd, rs1: TARGET, rs2, ..blank(op) });
        let is_announced = match announces {
            Announces::Never => false,
            Announces::Mostly => !self.random().one_in(8),
            Announces::Always => true,
        };
        match is_announced {
            true if self.random().one_in(4) => {
                fragment.push(blank(Op::Ecall));
                fragment.asked = Some(Asked::Flush(to, 8));
            }
            true => drop(fragment.push(blank(Op::Fence_i))),
            false => {}
        }
        fragment
    }

    /// 32 bits of code: an instruction, or two compressed ones.
    fn code_word(&mut self) -> u32 {
        let low = self.code_inst();
        if low & 3 == 3 { low } else { self.code_inst() << 16 | low }
    }

    fn code_inst(&mut self) -> u32 {
        let mut inst = self.any_item().insts[0];
        if matches!(kind(inst.op), Kind::Branch | Kind::Jal) {
            inst.imm = self.random().pick(&[2, 4, 6, 8, 12, 64, -4]);
        }
        match form(&inst) {
            Some(bits) if inst.len == 2 => bits.into(),
            _ => encode(&inst),
        }
    }

    /// A jump to anywhere, as long as there is fuel.
    fn jump(&mut self, index: usize) -> Fragment {
        let mut fragment = Fragment::of(vec![Inst { rd: FUEL, rs1: FUEL, imm: -1, ..blank(Op::Addi) }]);
        let at = fragment.push(Inst { rs1: FUEL, ..blank(Op::Blt) });
        fragment.references.push(Reference::Jump { at, to: Spot { fragment: index + 1, offset: 0 } });
        let (to, rd) = (self.spot(index), self.random().pick(&[0, 1, 5]));
        let [rs1, rs2] = [(); 2].map(|()| self.random().below(32) as u8);
        match self.random().below(4) {
            0 => {
                fragment.push_address(to);
                fragment.push(Inst { rd, rs1: TARGET, ..blank(Op::Jalr) });
            }
            1 => {
                let at = fragment.push(Inst { rd, ..blank(Op::Jal) });
                fragment.references.push(Reference::Jump { at, to });
            }
            _ => {
                let op = self.random().pick(&[Op::Beq, Op::Bne, Op::Blt, Op::Bge, Op::Bltu, Op::Bgeu]);
                let at = fragment.push(Inst { rs1, rs2, ..blank(op) });
                fragment.references.push(Reference::Jump { at, to });
            }
        }
        fragment
    }

    /// Data among the code, which is jumped over.
    fn gap(&mut self, index: usize, at: usize) -> Fragment {
        let mut fragment = Fragment::of(vec![blank(Op::Jal)]);
        fragment.references.push(Reference::Jump { at: 0, to: Spot { fragment: index + 1, offset: 0 } });
        let len_bytes = match self.random().pick(GAPS) {
            0 => {
                // The next fragment begins shortly before the page ends.
                let before = 2 * self.random().below(16) as usize;
                (2 * PAGE_BYTES - (at + 4) % PAGE_BYTES - before) % PAGE_BYTES
            }
            len_bytes => len_bytes,
        };
        let (mut bytes, is_zero) = (Vec::with_capacity(len_bytes + 8), self.random().one_in(2));
        while bytes.len() < len_bytes {
            let word = if is_zero { 0 } else { self.random().bits() };
            bytes.extend(word.to_le_bytes());
        }
        bytes.truncate(len_bytes);
        fragment.data = bytes;
        fragment
    }

    fn event(&mut self, index: usize) -> Fragment {
        let at = self.spot(index);
        let asked = match self.random().below(4) {
            0 => Asked::Flush(at, 1 + self.random().below(200)),
            1 => Asked::FlushAll,
            _ => {
                let bytes = [self.code_word(), self.code_word(), self.code_word()].map(u32::to_le_bytes).concat();
                let len_bytes = 1 + self.random().below(bytes.len() as u64) as usize;
                Asked::KernelWrite(at, bytes[..len_bytes].to_vec())
            }
        };
        Fragment { insts: vec![blank(Op::Ecall)], asked: Some(asked), ..Fragment::default() }
    }
}

/// The instructions at the end of a loop.
fn closing(open: &Open) -> Fragment {
    let counter = open.counter;
    let mut fragment = Fragment::of(vec![Inst { rd: counter, rs1: counter, imm: -1, ..blank(Op::Addi) }]);
    let at = fragment.push(Inst { rs1: counter, ..blank(Op::Bne) });
    fragment.references.push(Reference::Jump { at, to: Spot { fragment: open.first, offset: 0 } });
    fragment
}

/// Joins the fragments and resolves each reference to another place.
fn assemble(fragments: &[Fragment]) -> Stream {
    let mut end = 0;
    let start = |fragment: &Fragment| {
        let start = end;
        end += fragment.len_bytes() as i64;
        start
    };
    let starts: Vec<i64> = fragments.iter().map(start).collect();
    let place = |spot: Spot| starts[spot.fragment.min(starts.len() - 1)] + spot.offset;
    let mut stream = Stream::default();
    for (fragment, &start) in fragments.iter().zip(&starts) {
        let mut insts = fragment.insts.clone();
        let address = |at: usize| start + fragment.insts[..at].iter().map(|inst| i64::from(inst.len)).sum::<i64>();
        for reference in &fragment.references {
            match *reference {
                Reference::Jump { at, to } => {
                    let inst = insts[at];
                    let jump = Inst { imm: (place(to) - address(at)) as i32 & !1, ..inst };
                    let holds = if jump.len == 2 { form(&jump).is_some() } else { normal(jump) == jump };
                    // A place that is too far away is not jumped to.
                    insts[at].imm = if holds { jump.imm } else { inst.len.into() };
                }
                Reference::Address { auipc, rest, of } => {
                    let distance = (place(of) - address(auipc)) as i32;
                    let low = distance << 20 >> 20;
                    (insts[auipc].imm, insts[rest].imm) = (distance - low, low);
                }
            }
        }
        for inst in &insts {
            match form(inst) {
                Some(bits) if inst.len == 2 => stream.code.extend(bits.to_le_bytes()),
                _ => stream.code.extend(encode(inst).to_le_bytes()),
            }
        }
        stream.code.extend(&fragment.data);
        let ecall = start as u64 + (fragment.insts_len_bytes() as u64).saturating_sub(4);
        let event = fragment.asked.as_ref().map(|asked| match *asked {
            Asked::KernelWrite(at, ref bytes) => Event::KernelWrite { offset: place(at), bytes: bytes.clone() },
            Asked::Flush(at, len_bytes) => Event::Flush { offset: place(at), len_bytes },
            Asked::FlushAll => Event::FlushAll,
        });
        stream.events.extend(event.map(|event| (ecall, event)));
    }
    stream
}
