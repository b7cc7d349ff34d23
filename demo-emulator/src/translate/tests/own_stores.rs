//! A block's reaction to its own stores.

use super::*;

/// The block lies on two pages.
const START: u64 = DATA + PAGE_LEN_BYTES - 12;
const END: u64 = START + 20;

/// A block with `inst` in the middle.
fn block(bench: &mut Bench, inst: Inst) -> CompiledBlock {
    let insts = [addi(12, 12, 1), inst, addi(12, 12, 1), addi(12, 12, 1), jal(0, 0x100)];
    let options = BlockOptions { own_stores: OwnStores::Compare, ..BlockOptions::default() };
    bench.compile_placed(&placed_at(START, &insts), &options).unwrap()
}

/// Runs the block with x5 = `addr`; returns whether it left after the store.
fn leaves(bench: &mut Bench, block: &CompiledBlock, addr: u64) -> bool {
    let mut hart = bench.hart();
    (hart.pc, hart.x[5], hart.x[11]) = (START, addr, 0);
    (hart.reserved, hart.reservation_addr, hart.reservation_value) = (1, addr, 0);
    let reason = bench.enter(&mut hart, block.entry());
    let left = reason == ExitReason::SelfModified;
    let (pc, count) = if left { (START + 8, 1) } else { (START + 16 + 0x100, 3) };
    assert_eq!((hart.pc, hart.x[12]), (pc, count), "{reason:?}");
    left
}

/// Stores all around the block and far from it.
fn try_all(inst: Inst, width: u64, align: u64) {
    each_compiler(1 << 20, |bench| {
        let block = block(bench, inst);
        let far = [DATA, DATA + 2 * PAGE_LEN_BYTES - 8];
        for addr in (START - 20..END + 20).chain(far).filter(|addr| addr % align == 0) {
            let overlaps = addr < END && addr + width > START;
            assert_eq!(leaves(bench, &block, addr), overlaps, "{:?} at {addr:#x}", inst.op);
        }
    });
}

#[test]
fn plain_stores() {
    for (op, width) in [(Op::Sb, 1), (Op::Sh, 2), (Op::Sw, 4), (Op::Sd, 8), (Op::Fsw, 4), (Op::Fsd, 8)] {
        try_all(store(op, 11, 5, 0), width, 1);
    }
}

#[test]
fn atomics() {
    for (op, width) in [(Op::Amoadd_w, 4), (Op::Amoswap_d, 8), (Op::Sc_w, 4), (Op::Sc_d, 8)] {
        // The result may overwrite the address.
        for rd in [10, 5] {
            try_all(Inst { op, rd, rs1: 5, rs2: 11, ..NOP }, width, width);
        }
    }
}

#[test]
fn the_offset_belongs_to_the_address() {
    each_compiler(1 << 20, |bench| {
        let block = block(bench, store(Op::Sd, 11, 5, -64));
        assert!(leaves(bench, &block, START + 64));
        assert!(leaves(bench, &block, START + 64 - 7));
        assert!(!leaves(bench, &block, START + 64 - 8));
        assert!(!leaves(bench, &block, END + 64));
    });
}

#[test]
fn a_block_at_address_0() {
    each_compiler(1 << 20, |bench| {
        let insts = [store(Op::Sd, 11, 5, 0), addi(12, 0, 1), jal(0, 8)];
        let options = BlockOptions { own_stores: OwnStores::Compare, ..BlockOptions::default() };
        let block = bench.compile_placed(&placed_at(0, &insts), &options).unwrap();
        map(&bench.window, 0, 1, libc::PROT_READ | libc::PROT_WRITE);
        for (addr, reason) in [(0, ExitReason::SelfModified), (11, ExitReason::SelfModified), (12, ExitReason::Miss)] {
            let mut hart = bench.hart();
            (hart.pc, hart.x[5]) = (0, addr);
            assert_eq!(bench.enter(&mut hart, block.entry()), reason, "{addr}");
        }
    });
}
