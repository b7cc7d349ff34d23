//! Random blocks, compiled and by the interpreter's `exec`: every register, flag and byte of memory
//! must agree, and so must the place and the reason of the block's end.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU8, Ordering};

use super::*;
use crate::riscv::random::{OPS, Random, accesses_memory, is_atomic, is_rounded};
use crate::riscv::trap::{Flow, Trap};
use crate::translate::region::Region;

const BLOCKS: u32 = if cfg!(debug_assertions) { 4_000 } else { 40_000 };

/// The blocks use only these registers, so that results are used again; more than a region keeps.
/// The registers from `POINTERS` on mostly hold data addresses.
const REGISTERS: [u8; 17] = [0, 1, 5, 6, 7, 8, 9, 14, 15, 16, 17, 18, 31, 10, 11, 12, 13];
const POINTERS: usize = 13;

/// The addresses of single blocks: apart from the data, amid it, and where addresses get another
/// high half.
const STARTS: [u64; 4] = [CODE, CODE, DATA + 2048 + 60, (1 << 32) - 20];

/// Makes blocks; their instructions may also fault.
struct Blocks {
    random: Random,
    /// Operations that may stand anywhere, and those that end a block.
    ops: Vec<Op>,
    last_ops: Vec<Op>,
    /// Whether instructions use all registers.
    uses_all: bool,
    /// Whether most instructions only compute and load.
    is_quiet: bool,
}

impl Blocks {
    fn new(seed: u64) -> Self {
        let (mut last_ops, ops): (Vec<Op>, Vec<Op>) = OPS.iter().partition(|op| ends_block(**op));
        last_ops.extend([Op::Ecall, Op::Ebreak, Op::Illegal]);
        Self { random: Random::new(seed), ops, last_ops, uses_all: false, is_quiet: false }
    }

    fn chance(&mut self, percent: u64) -> bool {
        self.random.below(100) < percent
    }

    fn inst(&mut self, op: Op) -> Inst {
        let register = |this: &mut Self| match this.uses_all {
            true => this.random.below(32) as u8,
            false => this.random.pick(&REGISTERS),
        };
        let (rd, rs1, rs2, rs3) = (register(self), register(self), register(self), register(self));
        let mut inst = Inst { op, rd, rs1, rs2, rs3, len: self.random.pick(&[2, 4]), ..NOP };
        let imm = self.random.bits() as i32 >> 20;
        inst.imm = self.random.pick(&[0, 1, -1, 8, 2047, -2048, imm]);
        match op {
            Op::Lui | Op::Auipc => inst.imm = self.random.bits() as i32 & !0xfff,
            Op::Slli | Op::Srli | Op::Srai | Op::Slli_uw | Op::Rori | Op::Bclri | Op::Bexti | Op::Binvi | Op::Bseti => {
                inst.imm &= 63;
            }
            Op::Slliw | Op::Srliw | Op::Sraiw | Op::Roriw => inst.imm &= 31,
            Op::Fence => inst.imm &= 255,
            Op::Csrrw | Op::Csrrs | Op::Csrrc | Op::Csrrwi | Op::Csrrsi | Op::Csrrci => {
                inst.imm = if self.chance(3) { 0x300 } else { self.random.pick(&[1, 2, 3]) };
            }
            Op::Jal | Op::Beq | Op::Bne | Op::Blt | Op::Bge | Op::Bltu | Op::Bgeu => inst.imm &= !1,
            _ => {}
        }
        if accesses_memory(op) {
            // Pointers, and seldom something else; atomics and cache blocks have no displacement.
            if self.chance(98) {
                inst.rs1 = self.random.pick(&REGISTERS[POINTERS..]);
            }
            let is_block = matches!(op, Op::Cbo_clean | Op::Cbo_flush | Op::Cbo_zero);
            inst.imm = if is_block { 0 } else { self.random.pick(&[0, 0, 8, 16, 7, -8, 2047]) };
        }
        if is_rounded(op) {
            inst.rm = self.random.pick(&[0, 0, 0, 0, 0, 7, 7, 7, 7, 7, 1, 1, 1, 2, 3, 4, 5]);
        } else if is_atomic(op) {
            inst.imm = 0;
            inst.rm = self.random.below(4) as u8;
        }
        inst
    }

    fn block(&mut self) -> Vec<Inst> {
        self.uses_all = self.chance(30);
        let mut insts: Vec<Inst> = (0..self.random.below(16) + 1)
            .map(|_| {
                let op = loop {
                    let op = self.random.pick(&self.ops);
                    if !self.is_quiet || may_run_again(op) || self.chance(1) {
                        break op;
                    }
                };
                self.inst(op)
            })
            .collect();
        // An SC is mostly worth testing after its LR.
        if self.chance(10) {
            let address = self.random.pick(&REGISTERS[POINTERS..]);
            let (lr, sc) = self.random.pick(&[(Op::Lr_w, Op::Sc_w), (Op::Lr_d, Op::Sc_d)]);
            insts.push(Inst { op: lr, rd: 5, rs1: address, ..NOP });
            insts.push(Inst { op: sc, rd: 6, rs1: address, rs2: 5, ..NOP });
        }
        if self.chance(70) {
            let op = self.random.pick(&self.last_ops);
            insts.push(self.inst(op));
        }
        insts
    }

    fn hart(&mut self) -> Hart {
        let mut hart = Hart::new(CODE);
        for register in 1..32 {
            hart.x[register] = self.random.integer();
        }
        for &register in &REGISTERS[POINTERS..] {
            if self.chance(95) {
                let offset =
                    self.random.pick(&[0, 8, 16, 64, 256, PAGE_LEN_BYTES - 8, PAGE_LEN_BYTES, PAGE_LEN_BYTES + 8]);
                hart.x[usize::from(register)] = DATA + 2048 + offset;
            } else {
                hart.x[usize::from(register)] =
                    self.random.pick(&[READ_ONLY + 8, DATA + 2051, DATA - 4, 1 << 38, (1 << 38) - 4]);
            }
        }
        hart.f = std::array::from_fn(|_| self.random.register());
        hart.fflags = self.random.below(32) as u8;
        hart.frm = if self.chance(80) { 0 } else { self.random.below(8) as u8 };
        if self.chance(30) {
            let address = self.random.pick(&REGISTERS[POINTERS..]);
            (hart.reserved, hart.reservation_addr) = (1, hart.x[usize::from(address)]);
            hart.reservation_value = self.random.pick(&[0, 1, u64::MAX]);
        }
        hart
    }
}

/// Runs a block by the interpreter.
fn interpret(
    insts: &[(u64, Inst)],
    own_stores: OwnStores,
    hart: &mut Hart,
    window: &Window,
    ran: &mut HashMap<Op, u32>,
) -> ExitReason {
    let (last_pc, Inst { op: last, len, .. }) = *insts.last().unwrap();
    let (start, end) = (insts[0].0, last_pc + u64::from(len));
    for (_, inst) in insts {
        let addr = inst.address(hart.x[usize::from(inst.rs1)]);
        match exec(inst, hart, window) {
            Ok(flow) => {
                *ran.entry(inst.op).or_default() += 1;
                if flow == Flow::FenceI {
                    return ExitReason::FenceI;
                }
                let is_overwritten = inst.op.stores()
                    && match own_stores {
                        OwnStores::Ignore => false,
                        OwnStores::Compare => addr < end && addr.wrapping_add(inst.op.stored_bytes()) > start,
                        // SAFETY: the flag is a byte of the window.
                        OwnStores::Poll(flag) => unsafe { flag.as_ref() }.load(Ordering::Relaxed) != 0,
                    };
                if is_overwritten {
                    return ExitReason::SelfModified;
                }
            }
            Err(Trap::Ecall | Trap::Ebreak) => return ExitReason::Trap,
            Err(Trap::Illegal(_)) if inst.op == Op::Illegal => return ExitReason::Trap,
            Err(_) => return ExitReason::Fault,
        }
    }
    if last == Op::Jalr { ExitReason::IndirectMiss } else { ExitReason::Miss }
}

#[test]
fn random_blocks_agree_with_the_interpreter() {
    each_compiler(1 << 20, |bench| {
        let mut blocks = Blocks::new(20_261_120);
        let mut ran = HashMap::new();
        let mut reasons: HashMap<ExitReason, u32> = HashMap::new();
        for _ in 0..BLOCKS {
            let start = blocks.random.pick(&STARTS);
            let block = placed_at(start, &blocks.block());
            let own_stores = match blocks.random.below(4) {
                0 => OwnStores::Compare,
                1 => OwnStores::Poll(flag(bench)),
                _ => OwnStores::Ignore,
            };
            let compiled =
                bench.compile_placed(&block, &BlockOptions { own_stores, ..BlockOptions::default() }).unwrap();
            // The quick compiler goes back to the start through the cell.
            bench.cell(start).store(compiled.entry(), Ordering::Release);
            compare(bench, &mut blocks, &[block], &compiled, own_stores, &mut ran, &mut reasons);
            bench.cell(start).store(entry_stubs().dead, Ordering::Release);
        }
        for op in OPS {
            assert!(ran.get(op).is_some_and(|&count| count > 20), "{op:?} retired {:?} times", ran.get(op));
        }
        println!("ends: {reasons:?}");
        for reason in [ExitReason::Fault, ExitReason::Miss, ExitReason::SelfModified] {
            assert!(reasons[&reason] > 100, "{reasons:?}");
        }
    });
}

/// A byte that the guest writes now and then.
fn flag(bench: &Bench) -> NonNull<AtomicU8> {
    NonNull::new(bench.window.base().wrapping_add(DATA as usize + 2048 + 80).cast()).unwrap()
}

/// Blocks that lead to each other, from `CODE` on.
fn region(blocks: &mut Blocks) -> Vec<Block> {
    blocks.is_quiet = blocks.chance(50);
    let count = blocks.random.below(6) as usize + 2;
    let mut region: Vec<Block> = Vec::new();
    let mut start = CODE;
    for _ in 0..count {
        let mut insts = blocks.block();
        if !insts.last().is_some_and(|inst| ends_block(inst.op)) && blocks.chance(70) {
            let op = blocks.random.pick(&[Op::Jal, Op::Jalr, Op::Beq, Op::Bne, Op::Blt, Op::Bgeu]);
            insts.push(blocks.inst(op));
        }
        let block = placed_at(start, &insts);
        start = block.last().map_or(start, |(pc, inst)| pc + u64::from(inst.len));
        region.push(block);
    }
    let starts: Vec<u64> = region.iter().map(|block| block[0].0).collect();
    for (pc, last) in region.iter_mut().filter_map(|block| block.last_mut()) {
        if !matches!(last.op, Op::Jalr) && ends_block(last.op) && blocks.chance(90) {
            last.imm = blocks.random.pick(&starts).wrapping_sub(*pc) as i32;
            if last.op == Op::Jal {
                last.rd = blocks.random.pick(&[0, 1]);
            }
        } else if last.op == Op::Jalr && blocks.chance(80) {
            (last.rd, last.rs1, last.imm) = (0, 1, 0);
        }
    }
    region
}

/// Runs a region by the interpreter; `None` if it takes too long.
fn interpret_region(
    blocks: &[Block],
    own_stores: OwnStores,
    hart: &mut Hart,
    window: &Window,
    ran: &mut HashMap<Op, u32>,
) -> Option<ExitReason> {
    let region = Region::new(blocks, false);
    for _ in 0..200 {
        let Some(node) = region.nodes.iter().find(|node| node.start() == hart.pc) else {
            return Some(ExitReason::Miss);
        };
        let reason = interpret(node.insts, own_stores, hart, window, ran);
        let goes_on = match reason {
            ExitReason::Miss => true,
            ExitReason::IndirectMiss => node.returns.contains(&hart.pc),
            _ => false,
        };
        if !goes_on {
            return Some(reason);
        }
    }
    None
}

/// Runs a region a few times; returns how many runs were not compared, because they take too long.
fn compare(
    bench: &mut Bench,
    blocks: &mut Blocks,
    region: &[Block],
    compiled: &CompiledBlock,
    own_stores: OwnStores,
    ran: &mut HashMap<Op, u32>,
    reasons: &mut HashMap<ExitReason, u32>,
) -> u32 {
    let mut loops = 0;
    for _ in 0..4 {
        let mut expected = blocks.hart();
        let mut hart = bench.hart();
        (expected.pc, hart.pc) = (region[0][0].0, region[0][0].0);
        (hart.x, hart.f, hart.fflags, hart.frm) = (expected.x, expected.f, expected.fflags, expected.frm);
        hart.reserved = expected.reserved;
        (hart.reservation_addr, hart.reservation_value) = (expected.reservation_addr, expected.reservation_value);
        let memory: Vec<u8> = (0..1024).flat_map(|_| blocks.random.register().to_le_bytes()).collect();

        bench.set_data(&memory);
        let Some(expected_reason) = interpret_region(region, own_stores, &mut expected, &bench.window, ran) else {
            loops += 1;
            continue;
        };
        let expected_memory = bench.data();
        bench.set_data(&memory);
        let reason = bench.enter(&mut hart, compiled.entry());
        let (found, wanted) = ((reason, state(&hart)), (expected_reason, state(&expected)));
        assert_eq!(found, wanted, "{region:#?}\n{}", disasm::host_listing(compiled));
        assert!(bench.data() == expected_memory, "memory: {region:#?}");
        *reasons.entry(reason).or_default() += 1;
    }
    loops
}

#[test]
fn random_regions_agree_with_the_interpreter() {
    let mut bench = Bench::new(1 << 20);
    let mut blocks = Blocks::new(20_261_129);
    let mut reasons: HashMap<ExitReason, u32> = HashMap::new();
    let mut ran = HashMap::new();
    let loops: u32 = (0..BLOCKS / 8)
        .map(|_| {
            let region = region(&mut blocks);
            let near_restarts = blocks.chance(20);
            let compiled = bench.compile_region(&region, &BlockOptions { near_restarts, ..BlockOptions::default() });
            compare(&mut bench, &mut blocks, &region, &compiled, OwnStores::Ignore, &mut ran, &mut reasons)
        })
        .sum();
    println!("ends: {reasons:?}, {loops} loops, {} restarts", bench.restarts.get());
    assert!(bench.restarts.get() > BLOCKS / 100);
    assert!(reasons.values().sum::<u32>() > 5 * loops, "{reasons:?}, {loops} loops");
    for reason in [ExitReason::Fault, ExitReason::Miss, ExitReason::IndirectMiss, ExitReason::Trap] {
        assert!(reasons.get(&reason).is_some_and(|&count| count > BLOCKS / 100), "{reasons:?}");
    }
}

/// All the state of a hart that a guest can see, as text that shows a difference.
fn state(hart: &Hart) -> String {
    let Hart { x, f, pc, fflags, frm, reserved, reservation_addr, reservation_value, .. } = hart;
    format!("{pc:x} {fflags:x} {frm} {reserved} {reservation_addr:x} {reservation_value:x}\nx {x:x?}\nf {f:x?}")
}
