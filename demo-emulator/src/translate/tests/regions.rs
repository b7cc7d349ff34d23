//! Regions of several blocks: loops, calls, faults with registers that the hart does not have yet.

use std::ptr::NonNull;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::mpsc;
use std::time::Duration;

use super::*;
use crate::translate::region::Region;

fn branch(op: Op, rs1: u8, rs2: u8, imm: i32) -> Inst {
    Inst { op, rs1, rs2, imm, ..NOP }
}

const RETURN: Inst = Inst { op: Op::Jalr, rs1: 1, ..NOP };
const ECALL: Inst = Inst { op: Op::Ecall, ..NOP };

/// x10 = 1 + ... + x11, by a loop over two blocks; then a store to x5 and a call of the dispatcher.
fn sum() -> Vec<Block> {
    let head = placed_at(CODE, &[store(Op::Sd, 10, 6, 0), branch(Op::Beq, 11, 0, 16)]);
    let body =
        placed_at(CODE + 8, &[Inst { op: Op::Add, rd: 10, rs1: 10, rs2: 11, ..NOP }, addi(11, 11, -1), jal(0, -16)]);
    let end = placed_at(CODE + 20, &[addi(12, 10, 1), store(Op::Sd, 10, 5, 8), ECALL]);
    vec![head, body, end]
}

#[test]
fn a_loop_runs_within_its_region() {
    let mut bench = Bench::new(1 << 20);
    let region = bench.compile_region(&sum(), &BlockOptions::default());
    let mut hart = bench.hart();
    (hart.x[5], hart.x[6], hart.x[11]) = (DATA, DATA, 100);
    assert_eq!(bench.enter(&mut hart, region.entry()), ExitReason::Trap);
    assert_eq!((hart.pc, hart.x[10], hart.x[11], hart.x[12]), (CODE + 28, 5050, 0, 5051));
    assert_eq!(bench.data()[8..16], 5050u64.to_le_bytes());
}

#[test]
fn a_fault_after_a_loop_finds_all_registers() {
    let mut bench = Bench::new(1 << 20);
    let region = bench.compile_region(&sum(), &BlockOptions::default());
    let mut hart = bench.hart();
    (hart.x[5], hart.x[6], hart.x[11]) = (READ_ONLY, DATA, 100);
    assert_eq!(bench.enter(&mut hart, region.entry()), ExitReason::Fault);
    assert_eq!((hart.pc, hart.x[10], hart.x[11], hart.x[12]), (CODE + 24, 5050, 0, 5051));
}

/// The loop walks over the end of its memory.
#[test]
fn a_fault_within_a_loop_finds_all_registers() {
    let mut bench = Bench::new(1 << 20);
    let walk = [
        placed_at(CODE, &[addi(12, 12, 3), load(Op::Ld, 13, 5, 0), addi(5, 5, 8), branch(Op::Bne, 13, 11, -12)]),
        placed_at(CODE + 16, &[ECALL]),
    ];
    let region = bench.compile_region(&walk, &BlockOptions::default());
    let mut hart = bench.hart();
    (hart.x[5], hart.x[11], hart.x[13]) = (DATA, 1, 7);
    assert_eq!(bench.enter(&mut hart, region.entry()), ExitReason::Fault);
    let count = DATA_PAGES * PAGE_LEN_BYTES / 8;
    assert_eq!((hart.pc, hart.x[12], hart.x[5], hart.x[13]), (CODE + 4, 3 * (count + 1), DATA + 8 * count, 0));
}

/// The loads of a loop do not bring the hart up to date, a store does: a fault behind it must not run
/// it again.
#[test]
fn a_fault_goes_back_to_where_its_loop_was_entered_but_not_over_a_store() {
    let mut bench = Bench::new(1 << 20);
    let walk = |between: Inst| {
        let before = [addi(12, 12, 3), store(Op::Sd, 12, 6, 0), jal(0, 4)];
        let head = [load(Op::Ld, 13, 5, 0), addi(14, 14, 1), between, branch(Op::Beq, 13, 11, 16)];
        let body = [addi(5, 5, 8), addi(13, 0, 0), jal(0, -24)];
        [
            placed_at(CODE, &before),
            placed_at(CODE + 12, &head),
            placed_at(CODE + 28, &body),
            placed_at(CODE + 40, &[ECALL]),
        ]
    };
    let count = DATA_PAGES * PAGE_LEN_BYTES / 8;
    for (between, restart, rounds) in [
        (NOP, CODE + 12, 0),
        (store(Op::Sd, 14, 6, 8), CODE + 12, count),
        (Inst { op: Op::Fence, ..NOP }, CODE + 12, count),
    ] {
        let region = bench.compile_region(&walk(between), &BlockOptions::default());
        for replays in [false, true] {
            bench.set_data(&[0; 64]);
            let mut hart = bench.hart();
            (hart.x[5], hart.x[6], hart.x[11]) = (DATA, DATA, u64::MAX);
            let reason = if replays {
                bench.enter(&mut hart, region.entry())
            } else {
                bench.enter_only(&mut hart, region.entry())
            };
            assert_eq!(reason, ExitReason::Fault);
            let rounds = if replays { count } else { rounds };
            let wanted = (restart, 3, DATA + 8 * rounds, rounds);
            assert_eq!((hart.pc, hart.x[12], hart.x[5], hart.x[14]), wanted, "{between:?}");
        }
    }
}

#[test]
fn a_region_without_far_restarts_keeps_the_rounds_of_its_loop() {
    let mut bench = Bench::new(1 << 20);
    let head = [load(Op::Ld, 13, 5, 0), addi(14, 14, 1), addi(5, 5, 8), branch(Op::Bne, 14, 0, -12)];
    let walk = [placed_at(CODE, &head), placed_at(CODE + 16, &[ECALL])];
    let count = DATA_PAGES * PAGE_LEN_BYTES / 8;
    // Nor goes a fault back over a jump to a lower address.
    let back = [
        placed_at(CODE + 16, &[load(Op::Ld, 13, 5, 0), jal(0, -20)]),
        placed_at(CODE, &[load(Op::Ld, 13, 6, 0), ECALL]),
    ];
    for (near_restarts, pc, far_region) in [(false, CODE + 16, CODE + 16), (true, CODE, 0)] {
        let region = bench.compile_region(&back, &BlockOptions { near_restarts, ..BlockOptions::default() });
        let mut hart = bench.hart();
        (hart.pc, hart.x[5], hart.x[6]) = (CODE + 16, DATA, READ_ONLY + PAGE_LEN_BYTES);
        assert_eq!(bench.enter_only(&mut hart, region.entry()), ExitReason::Fault);
        assert_eq!((hart.pc, hart.far_region), (pc, far_region));
    }
    for (near_restarts, far_region, rounds) in [(false, CODE, 0), (true, 0, count)] {
        let region = bench.compile_region(&walk, &BlockOptions { near_restarts, ..BlockOptions::default() });
        let mut hart = bench.hart();
        hart.x[5] = DATA;
        assert_eq!(bench.enter_only(&mut hart, region.entry()), ExitReason::Fault);
        assert_eq!((hart.pc, hart.x[14], hart.far_region), (CODE, rounds, far_region));
    }
}

/// The way into the inner loop, which only counts down, must not store x12 to the hart: a fault runs the
/// count of x12 again.
#[test]
fn a_loop_within_stores_nothing_that_runs_again() {
    let mut bench = Bench::new(1 << 20);
    for is_around in [true, false] {
        // x13 is the last word that was loaded. Without a loop around, the second load is behind the inner loop.
        let head = [load(Op::Ld, 13, 5, 0), addi(12, 12, 1), addi(14, 0, 3), jal(0, 4)];
        let inner = [addi(14, 14, -1), branch(Op::Bne, 14, 0, -4)];
        let again = [addi(5, 5, 8), if is_around { jal(0, -28) } else { jal(0, 4) }];
        let behind = [addi(5, 5, 2047), addi(5, 5, 2047), load(Op::Ld, 13, 5, 0), ECALL];
        let mut blocks = vec![
            placed_at(CODE, &head),
            placed_at(CODE + 16, &inner),
            placed_at(CODE + 24, &again),
            placed_at(CODE + 32, &behind),
        ];
        if is_around {
            blocks.insert(0, placed_at(CODE - 8, &[store(Op::Sd, 12, 5, 0), jal(0, 4)]));
        }
        let region = bench.compile_region(&blocks, &BlockOptions::default());
        bench.set_data(&[0; 64]);
        let mut hart = bench.hart();
        let end = DATA + DATA_PAGES * PAGE_LEN_BYTES;
        (hart.pc, hart.x[5]) = (blocks[0][0].0, end - 4096);
        assert_eq!(bench.enter(&mut hart, region.entry()), ExitReason::Fault);
        let wanted = if is_around { (CODE, 512, end) } else { (CODE + 40, 1, end + 6) };
        assert_eq!((hart.pc, hart.x[12], hart.x[5]), wanted);
    }
    assert_eq!(bench.restarts.get(), 1, "the store on the way into the inner loop ends the restart");
}

/// A loop with another one in it, and one with two entries.
#[test]
fn quiet_loops_are_entered_at_one_place() {
    let walk = |to: i32| vec![load(Op::Ld, 13, 5, 0), branch(Op::Bne, 13, 11, to)];
    let quiet =
        |blocks: &[Block]| -> Vec<_> { Region::new(blocks, false).nodes.iter().map(|node| node.quiet_loop).collect() };
    let start = placed_at(CODE, &[store(Op::Sd, 12, 6, 0), branch(Op::Beq, 12, 0, 12)]);
    let (first, second) = (placed_at(CODE + 8, &walk(-4)), placed_at(CODE + 16, &walk(-12)));
    let end = placed_at(CODE + 24, &[ECALL]);
    // The second block leads back to the first, both to themselves or on. The entry leads to both.
    assert_eq!(quiet(&[start.clone(), first.clone(), second.clone(), end.clone()]), [None; 4]);
    let start = placed_at(CODE, &[store(Op::Sd, 12, 6, 0), branch(Op::Beq, 12, 0, 20)]);
    assert_eq!(quiet(&[start.clone(), first.clone(), second, end.clone()]), [None, Some(2), Some(2), None]);
    let storing = placed_at(CODE + 16, &[store(Op::Sd, 12, 6, 0), branch(Op::Bne, 13, 11, -12)]);
    let first = placed_at(CODE + 8, &walk(0 - 4));
    assert_eq!(quiet(&[start, first, storing, end]), [None, Some(2), None, None]);
}

/// Runs an endless loop until another thread has done `stop`; returns the exit.
fn run_endless(stale: Option<&AtomicU8>, stop: impl FnOnce(&AtomicU8) + Send) -> (ExitReason, Hart) {
    let mut bench = Bench::new(1 << 20);
    let endless = [
        placed_at(CODE, &[addi(10, 10, 1), branch(Op::Beq, 0, 0, 8)]),
        placed_at(CODE + 12, &[addi(11, 11, 1), jal(0, -16)]),
    ];
    let options = BlockOptions { stale_flag: stale.map(NonNull::from), ..BlockOptions::default() };
    let region = bench.compile_region(&endless, &options);
    let mut hart = bench.hart();
    let asked = ptr::from_ref(&hart.exit_request) as usize;
    let (left, has_left) = mpsc::channel::<()>();
    let reason = std::thread::scope(|scope| {
        scope.spawn(move || {
            std::thread::sleep(Duration::from_millis(20));
            // SAFETY: the hart lives until this thread is joined.
            let asked = unsafe { &*(asked as *const AtomicU8) };
            stop(asked);
            // If that did not end it, the test shall end all the same.
            if has_left.recv_timeout(Duration::from_secs(20)) == Err(mpsc::RecvTimeoutError::Timeout) {
                asked.store(1, Ordering::Release);
            }
        });
        let reason = bench.enter(&mut hart, region.entry());
        drop(left);
        reason
    });
    (reason, hart)
}

#[test]
fn a_loop_leaves_when_asked() {
    let (reason, hart) = run_endless(None, |asked| asked.store(1, Ordering::Release));
    assert_eq!((reason, hart.pc), (ExitReason::Interrupted, CODE));
    assert!(hart.x[10] > 0 && hart.x[10] == hart.x[11], "{} {}", hart.x[10], hart.x[11]);
}

#[test]
fn a_loop_that_was_overwritten_goes_on_through_the_cell() {
    let stale = AtomicU8::new(0);
    let (reason, hart) = run_endless(Some(&stale), |_| stale.store(1, Ordering::Release));
    assert_eq!((reason, hart.pc), (ExitReason::Miss, CODE));
    assert!(hart.x[10] > 0 && hart.x[10] == hart.x[11], "{} {}", hart.x[10], hart.x[11]);
}

#[test]
fn a_region_that_overwrites_a_later_block_leaves_behind_the_store() {
    let mut bench = Bench::new(1 << 20);
    let flag = NonNull::new(bench.window.base().wrapping_add(DATA as usize + 64).cast::<AtomicU8>()).unwrap();
    let options = BlockOptions { own_stores: OwnStores::Poll(flag), ..BlockOptions::default() };
    let blocks = [
        placed_at(CODE, &[addi(10, 0, 1), store(Op::Sb, 10, 5, 0), jal(0, 8)]),
        placed_at(CODE + 16, &[addi(10, 0, 2), ECALL]),
    ];
    let region = bench.compile_region(&blocks, &options);
    for (addr, reason, pc, x10) in
        [(DATA + 64, ExitReason::SelfModified, CODE + 8, 1), (DATA, ExitReason::Trap, CODE + 20, 2)]
    {
        bench.set_data(&[0; 128]);
        let mut hart = bench.hart();
        hart.x[5] = addr;
        assert_eq!(bench.enter(&mut hart, region.entry()), reason);
        assert_eq!((hart.pc, hart.x[10]), (pc, x10));
    }
}

/// A function that two calls of the region share. Its own caller gets the region back too.
#[test]
fn a_return_goes_to_the_calls_of_its_region() {
    let mut bench = Bench::new(1 << 20);
    let blocks = [
        placed_at(CODE, &[addi(10, 10, 1), jal(1, 0x1000 - 4)]),
        placed_at(CODE + 8, &[addi(10, 10, 2), jal(1, 0x1000 - 12)]),
        placed_at(CODE + 16, &[addi(10, 10, 4), ECALL]),
        placed_at(CODE + 0x1000, &[addi(10, 10, 0x100), Inst { rs1: 1, ..RETURN }]),
    ];
    let region = bench.compile_region(&blocks, &BlockOptions::default());
    let mut hart = bench.hart();
    assert_eq!(bench.enter(&mut hart, region.entry()), ExitReason::Trap);
    assert_eq!((hart.pc, hart.x[10], hart.x[1]), (CODE + 20, 0x207, CODE + 16));
    // The function loads another return address.
    let elsewhere = [blocks[0].clone(), blocks[1].clone(), placed_at(CODE + 0x1000, &[load(Op::Ld, 1, 5, 0), RETURN])];
    let region = bench.compile_region(&elsewhere, &BlockOptions::default());
    bench.set_data(&0x7000u64.to_le_bytes());
    let mut hart = bench.hart();
    hart.x[5] = DATA;
    assert_eq!(bench.enter(&mut hart, region.entry()), ExitReason::IndirectMiss);
    assert_eq!((hart.pc, hart.x[10]), (0x7000, 1));
}

#[test]
fn blocks_without_a_way_from_the_entry_are_left_out() {
    let blocks = [
        placed_at(CODE, &[addi(10, 10, 1), jal(1, 0x1000 - 4)]),
        // The called function is not in the region, so this is not reached within it.
        placed_at(CODE + 8, &[addi(10, 10, 2), ECALL]),
    ];
    let region = Region::new(&blocks, false);
    assert_eq!(region.nodes.len(), 1);
    assert_eq!(region.needed.x, 1 << 10);
}
