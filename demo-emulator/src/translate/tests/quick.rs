//! The quick compiler's own promises: it counts runs, and its code is exact at any address.

use super::*;

const ECALL: Inst = Inst { op: Op::Ecall, ..NOP };

/// Compiles a block that leaves as hot after `runs` runs.
fn compile_counting(bench: &mut Bench, insts: &[(u64, Inst)], options: &BlockOptions, runs: u32) -> CompiledBlock {
    let Bench { translator, cells, .. } = bench;
    let mut link = |pc| NonNull::new(as_cell(cell(cells, pc)).cast_mut());
    published(translator.compile_quick(&insts.to_vec(), options, runs, &mut link).unwrap())
}

#[test]
fn a_hot_block_leaves_before_it_runs() {
    let mut bench = Bench::new(1 << 20);
    let block = compile_counting(&mut bench, &placed(&[addi(10, 10, 1), ECALL]), &BlockOptions::default(), 3);
    let mut hart = bench.hart();
    for left in (0..3).rev() {
        assert_eq!(bench.enter(&mut hart, block.entry()), ExitReason::Trap);
        assert_eq!(bench.space.runs_left(block.entry()), Some(left));
        hart.pc = CODE;
    }
    for _ in 0..3 {
        assert_eq!(bench.enter(&mut hart, block.entry()), ExitReason::Hot);
        assert_eq!((hart.pc, hart.x[10]), (CODE, 3));
        assert_eq!(bench.space.runs_left(block.entry()), Some(0));
    }
    bench.space.set_runs_left(block.entry(), 1);
    assert_eq!(bench.enter(&mut hart, block.entry()), ExitReason::Trap);
    hart.pc = CODE;
    assert_eq!(bench.enter(&mut hart, block.entry()), ExitReason::Hot);
    assert_eq!(hart.x[10], 4);
}

#[test]
fn runs_through_both_entries_count() {
    let mut bench = Bench::new(1 << 20);
    let source = 0x0000_0013_u32.to_le_bytes();
    let options = BlockOptions { source: Some(&source), ..BlockOptions::default() };
    bench.set_data(&source);
    let block = compile_counting(&mut bench, &placed_at(DATA, &[NOP]), &options, 5);
    let checked = block.self_checking_entry().unwrap();
    for (entry, left) in [(block.entry(), 4), (checked, 3), (checked, 2)] {
        let mut hart = bench.hart();
        hart.pc = DATA;
        assert_eq!(bench.enter(&mut hart, entry), ExitReason::Miss);
        assert_eq!(bench.space.runs_left(block.entry()), Some(left));
        assert_eq!(bench.space.runs_left(checked), Some(left));
    }
}

#[test]
fn a_region_counts_nothing() {
    let mut bench = Bench::new(1 << 20);
    let region = bench.compile(&[NOP, ECALL]);
    assert_eq!(bench.space.runs_left(region.entry()), None);
    bench.space.set_runs_left(region.entry(), 0);
    let mut hart = bench.hart();
    assert_eq!(bench.enter(&mut hart, region.entry()), ExitReason::Trap);
    assert_eq!(bench.space.runs_left(bench.space.buffer().executable().start().0 + (1 << 20) - 1), None);
}

/// The last pc has the high half of the block's, or another, or one that is no immediate.
#[test]
fn the_pc_is_exact_beyond_4_gib() {
    for start in [(1_u64 << 32) - 8, (1 << 32) - 4, 1 << 32, (1 << 37) + 0x1000, (1 << 33) - 12] {
        for far in [8, -0x1000, 0x10_0000] {
            let mut bench = Bench { compiler: Compiler::Quick, ..Bench::new(1 << 20) };
            for (inst, pc) in [
                (jal(1, far), (start + 4).wrapping_add_signed(far.into())),
                (ECALL, start + 4),
                (Inst { op: Op::Fence_i, ..NOP }, start + 8),
                (load(Op::Ld, 10, 0, 0), start + 4),
            ] {
                let insts = placed_at(start, &[Inst { op: Op::Auipc, rd: 5, ..NOP }, inst]);
                let block = bench.compile_placed(&insts, &BlockOptions::default()).unwrap();
                let mut hart = bench.hart();
                hart.pc = start;
                bench.enter(&mut hart, block.entry());
                assert_eq!((hart.pc, hart.x[5]), (pc, start), "{inst:?}");
                assert_eq!(hart.x[1], if inst.op == Op::Jal { start + 8 } else { 0 });
            }
        }
    }
}

/// A window at its own length saves a constant; only the first one of a process can lie there.
#[test]
fn addresses_are_tested_in_any_window() {
    let benches = [Bench::new(1 << 20), Bench::new(1 << 20)];
    let secret = Box::new([0x005e_c2e7_u64; 2]);
    for mut bench in benches {
        bench.compiler = Compiler::Quick;
        for (addr, reason) in [
            (DATA, ExitReason::Trap),
            ((&raw const *secret as u64).wrapping_sub(bench.window.base() as u64), ExitReason::Fault),
            ((1 << 38) - 8, ExitReason::Fault),
            (1 << 38, ExitReason::Fault),
            (DATA + (1 << 38), ExitReason::Fault),
            (DATA | 1 << 63, ExitReason::Fault),
        ] {
            let block = bench.compile(&[load(Op::Ld, 10, 5, 0), load(Op::Ld, 11, 5, 8), ECALL]);
            let mut hart = bench.hart();
            hart.x[5] = addr;
            assert_eq!(bench.enter(&mut hart, block.entry()), reason, "{addr:#x}");
        }
    }
}

/// The helper may change host registers, and it executes on the hart's registers.
#[test]
fn a_helper_sees_and_leaves_the_registers() {
    let mut bench = Bench { compiler: Compiler::Quick, ..Bench::new(1 << 20) };
    let mut insts: Vec<Inst> = (1..=14).map(|register| addi(register, register, 1)).collect();
    insts.push(Inst { op: Op::Cpop, rd: 13, rs1: 14, ..NOP });
    // The last ones first: they are still in host registers.
    insts.extend((1..=14).rev().map(|register| addi(register, register, 1)));
    insts.extend([Inst { op: Op::Clmul, rd: 14, rs1: 13, rs2: 2, ..NOP }, ECALL]);
    let block = bench.compile(&insts);
    let mut hart = bench.hart();
    hart.x = std::array::from_fn(|register| 16 * register as u64);
    assert_eq!(bench.enter(&mut hart, block.entry()), ExitReason::Trap);
    let mut expected: [u64; 32] = std::array::from_fn(|register| 16 * register as u64);
    (1..=14).for_each(|register| expected[register] += 2);
    // 14 * 16 + 1 has four bits; 5 times 34 without carries.
    (expected[13], expected[14]) = (5, 34 << 2 ^ 34);
    assert_eq!(hart.x, expected);
}

#[test]
fn a_value_that_is_overwritten_at_once_is_not_stored() {
    let mut bench = Bench { compiler: Compiler::Quick, ..Bench::new(1 << 20) };
    let twice = bench.compile(&[addi(10, 11, 1), addi(10, 10, 2), ECALL]);
    let once = bench.compile(&[addi(10, 11, 1), ECALL]);
    let stores = |block: &CompiledBlock| disasm::host_listing(block).matches("[rdi + 0x50], ").count();
    assert_eq!((stores(&twice), stores(&once)), (1, 1), "{}", disasm::host_listing(&twice));
}

/// Each takes the registers as the other leaves them: also those that a region keeps for itself.
#[test]
fn blocks_and_regions_lead_to_each_other() {
    let mut bench = Bench { compiler: Compiler::Quick, ..Bench::new(1 << 20) };
    let count = |start, to: i32| {
        let mut insts: Vec<Inst> = (1..=14).map(|register| addi(register, register, 1)).collect();
        insts.push(Inst { op: Op::Fdiv_d, rd: 1, rs1: 2, rs2: 3, ..NOP });
        insts.push(Inst { op: Op::Cpop, rd: 15, rs1: 14, ..NOP });
        insts.push(jal(0, to - 4 * insts.len() as i32));
        placed_at(start, &insts)
    };
    let first = bench.compile_placed(&count(CODE, 0x100), &BlockOptions::default()).unwrap();
    let region = bench.compile_region(&[count(CODE + 0x100, 0x100)], &BlockOptions::default());
    let last = bench.compile_placed(&count(CODE + 0x200, 0x100), &BlockOptions::default()).unwrap();
    for (pc, entry) in [(CODE + 0x100, region.entry()), (CODE + 0x200, last.entry())] {
        bench.cell(pc).store(entry, std::sync::atomic::Ordering::Release);
    }
    let mut hart = bench.hart();
    assert_eq!(bench.enter(&mut hart, first.entry()), ExitReason::Miss);
    assert_eq!((hart.pc, &hart.x[1..16]), (CODE + 0x300, &[3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 2][..]));
}
