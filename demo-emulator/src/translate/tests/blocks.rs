//! Exits, links, faults and code memory.

use std::ptr::NonNull;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use codewarden::Key;

use super::*;
use crate::memory::window::WINDOW_LEN_BYTES;
use crate::riscv::csr;

#[test]
fn a_fault_leaves_the_hart_as_it_was_before_the_instruction() {
    each_compiler(1 << 20, |bench| {
        let unmapped = DATA + DATA_PAGES * PAGE_LEN_BYTES;
        let cases = [
            (load(Op::Ld, 10, 5, 0), unmapped),
            (load(Op::Lw, 10, 5, -3), unmapped),
            (load(Op::Lbu, 0, 5, 0), unmapped),
            (load(Op::Fld, 10, 5, 0), unmapped),
            (load(Op::Flw, 10, 5, 0), unmapped),
            (store(Op::Sd, 10, 5, 0), READ_ONLY),
            (store(Op::Sb, 10, 5, 0), unmapped),
            (load(Op::Ld, 10, 5, 0), 1 << 38),
            (load(Op::Ld, 10, 5, 0), (1 << 38) - 1),
            (load(Op::Ld, 10, 5, 0), u64::MAX),
            (Inst { op: Op::Lr_d, rd: 10, rs1: 5, ..NOP }, unmapped),
            (load(Op::Flh, 10, 5, 0), unmapped),
            (store(Op::Cbo_zero, 0, 5, 0), READ_ONLY + 70),
            (store(Op::Cbo_zero, 0, 5, 0), u64::MAX),
            (store(Op::Cbo_clean, 0, 5, 0), unmapped + 5),
            (store(Op::Cbo_flush, 0, 5, 0), 1 << 38),
            (Inst { op: Op::Lr_w, rd: 10, rs1: 5, ..NOP }, DATA + 2),
            (Inst { op: Op::Amoadd_d, rd: 10, rs1: 5, rs2: 10, ..NOP }, READ_ONLY),
            (Inst { op: Op::Amomax_w, rd: 10, rs1: 5, rs2: 10, ..NOP }, DATA + 1),
            (Inst { op: Op::Sc_w, rd: 10, rs1: 5, rs2: 10, ..NOP }, DATA + 1),
        ];
        for (inst, addr) in cases {
            // Registers that change before and after it; the result of the first load is used once,
            // overwritten, and never stored.
            let insts = [
                load(Op::Ld, 7, 6, 0),
                addi(7, 7, 1),
                addi(10, 0, 77),
                inst,
                addi(7, 7, 1),
                addi(5, 0, 1),
                jal(1, 0x100),
            ];
            let block = bench.compile(&insts);
            let mut hart = bench.hart();
            (hart.x[5], hart.x[6], hart.f[10]) = (addr, DATA, 5);
            assert_eq!(bench.enter(&mut hart, block.entry()), ExitReason::Fault, "{inst:?} at {addr:#x}");
            assert_eq!(hart.pc, CODE + 12, "{inst:?}");
            assert_eq!((hart.x[5], hart.x[7], hart.x[10], hart.x[1]), (addr, 1, 77, 0), "{inst:?}");
            assert_eq!(hart.f[10], 5);
        }
    });
}

#[test]
fn an_access_that_repeats_another_still_faults() {
    each_compiler(1 << 20, |bench| {
        let cases = [
            // The same place, the same value; a value that is overwritten at once; one that was loaded.
            ([store(Op::Sd, 0, 5, 0), store(Op::Sd, 0, 5, 0)], 0),
            ([store(Op::Sd, 11, 5, 0), store(Op::Sd, 0, 5, 0)], 0),
            ([load(Op::Ld, 10, 5, 0), store(Op::Sd, 10, 5, 0)], 1),
            ([load(Op::Ld, 0, 5, 0), store(Op::Sd, 0, 5, 0)], 1),
        ];
        for (insts, faults) in cases {
            let block = bench.compile(&[insts[0], insts[1], jal(0, 8)]);
            let mut hart = bench.hart();
            hart.x[5] = READ_ONLY;
            assert_eq!(bench.enter(&mut hart, block.entry()), ExitReason::Fault, "{insts:?}");
            assert_eq!(hart.pc, CODE + 4 * faults, "{insts:?}");
        }
    });
}

/// One test of a register serves for all accesses near it: addresses outside the window meet the
/// guards.
#[test]
fn accesses_around_a_tested_address_do_not_leave_the_window() {
    each_compiler(1 << 20, |bench| {
        map(&bench.window, 0, 1, libc::PROT_READ);
        let last_page = WINDOW_LEN_BYTES - PAGE_LEN_BYTES;
        map(&bench.window, last_page, 1, libc::PROT_READ);
        let jump = jal(0, 0x100);
        for (base, moves, offset, is_inside) in [
            (0, 0, 0, true),
            (0, 0, -1, false),
            (8, 0, -8, true),
            (8, 0, -2048, false),
            (8, -2000, 1992, true),
            (8, -2000, 1991, false),
            (u64::MAX - 7, 0, 8, false),
            (WINDOW_LEN_BYTES - 8, 0, 0, true),
            (WINDOW_LEN_BYTES - 8, 0, 1, false),
            (WINDOW_LEN_BYTES - 8, 2000, -2000, true),
            (WINDOW_LEN_BYTES - 8, 2000, -1999, false),
            (WINDOW_LEN_BYTES, 0, -8, false),
        ] {
            // The first access tests the register.
            let insts = [load(Op::Lbu, 11, 5, 0), addi(6, 5, moves), load(Op::Ld, 10, 6, offset), jump];
            let block = bench.compile(&insts);
            let mut hart = bench.hart();
            (hart.x[5], hart.x[10]) = (base, 77);
            let reason = bench.enter(&mut hart, block.entry());
            let wanted = if is_inside { (ExitReason::Miss, 0) } else { (ExitReason::Fault, 77) };
            assert_eq!((reason, hart.x[10]), wanted, "{base:#x} {moves} {offset}");
        }
        // Many steps leave the guard's reach: the register is tested again.
        let steps = (0..40).map(|_| addi(5, 5, 2047));
        let insts: Vec<Inst> =
            [load(Op::Lbu, 11, 5, 0)].into_iter().chain(steps).chain([load(Op::Lbu, 10, 5, 0), jump]).collect();
        let block = bench.compile(&insts);
        let mut hart = bench.hart();
        hart.x[5] = last_page;
        assert_eq!(bench.enter(&mut hart, block.entry()), ExitReason::Fault);
        assert_eq!(hart.pc, CODE + 4 * 41);
    });
}

#[test]
fn a_store_that_kills_its_block_is_its_last_instruction() {
    each_compiler(1 << 20, |bench| {
        // The block's own store raises the flag: it lies in guest memory.
        let flag = NonNull::new(bench.window.base().wrapping_add(DATA as usize + 64).cast::<AtomicU8>()).unwrap();
        let options = BlockOptions { own_stores: OwnStores::Poll(flag), ..BlockOptions::default() };
        let stores = [
            store(Op::Sb, 11, 5, 64),
            store(Op::Fsw, 11, 5, 64),
            Inst { op: Op::Amoswap_w, rd: 10, rs1: 6, rs2: 11, ..NOP },
            Inst { op: Op::Sc_w, rd: 10, rs1: 6, rs2: 11, ..NOP },
        ];
        for inst in stores {
            let insts = [addi(11, 0, 1), store(Op::Sd, 11, 5, 0), inst, addi(11, 0, 3), jal(0, 0x100)];
            let block = bench.compile_placed(&placed(&insts), &options).unwrap();
            let mut hart = bench.hart();
            (hart.x[5], hart.x[6], hart.x[10], hart.f[11]) = (DATA, DATA + 64, 9, 1);
            (hart.reserved, hart.reservation_addr, hart.reservation_value) = (1, DATA + 64, 0);
            bench.set_data(&[0; 128]);
            assert_eq!(bench.enter(&mut hart, block.entry()), ExitReason::SelfModified, "{inst:?}");
            assert_eq!((hart.pc, hart.x[11]), (CODE + 12, 1), "{inst:?}");
            assert_eq!(bench.data()[64], 1, "the store has retired");
            let result = if inst.op == Op::Sb || inst.op == Op::Fsw { 9 } else { 0 };
            assert_eq!(hart.x[10], result, "{inst:?}");
            // A store to another block's bytes does not leave.
            (hart.x[5], hart.x[6], hart.pc) = (DATA + 512, DATA + 512, CODE);
            bench.set_data(&[0; 128]);
            assert_eq!(bench.enter(&mut hart, block.entry()), ExitReason::Miss, "{inst:?}");
        }
    });
}

#[test]
fn links_lead_through_cells_and_can_be_killed_and_made_again() {
    each_compiler(1 << 20, |bench| {
        let target = CODE + 0x100;
        let first = bench.compile(&[addi(10, 10, 1), jal(0, 0x100 - 4)]);
        let second = bench.compile(&[addi(10, 10, 16), NOP]);
        let third = bench.compile(&[addi(10, 10, 64), NOP]);
        let run = |bench: &mut Bench| {
            let mut hart = bench.hart();
            let reason = bench.enter(&mut hart, first.entry());
            (reason, hart.x[10], hart.pc)
        };
        assert_eq!(run(bench), (ExitReason::Miss, 1, target), "there is no block yet");
        bench.cell(target).store(entry_stubs().pending, Ordering::Release);
        assert_eq!(run(bench), (ExitReason::Miss, 1, target), "pending");
        bench.cell(target).store(second.entry(), Ordering::Release);
        assert_eq!(run(bench), (ExitReason::Miss, 17, CODE + 8));
        bench.cell(target).store(entry_stubs().dead, Ordering::Release);
        assert_eq!(run(bench), (ExitReason::Miss, 1, target), "killed");
        bench.cell(target).store(third.entry(), Ordering::Release);
        assert_eq!(run(bench).1, 65, "made again in the same cell");
        assert_ne!(entry_stubs().dead, entry_stubs().pending);
    });
}

#[test]
fn without_a_cell_an_exit_leads_to_the_dispatcher() {
    each_compiler(1 << 20, |bench| {
        let insts = placed(&[addi(10, 10, 1), jal(0, 0x100 - 4)]);
        let block =
            compile(bench.compiler, &mut bench.translator, &insts, &BlockOptions::default(), &mut |_| None).unwrap();
        let mut hart = bench.hart();
        assert_eq!(bench.enter(&mut hart, block.entry()), ExitReason::Miss);
        assert_eq!((hart.x[10], hart.pc), (1, CODE + 0x100));
    });
}

#[test]
fn a_branch_has_a_cell_for_each_way() {
    each_compiler(1 << 20, |bench| {
        let block = bench.compile(&[NOP, Inst { op: Op::Bne, rs1: 5, imm: 8, ..NOP }]);
        let ways = [CODE + 12, CODE + 8];
        let targets = ways.map(|pc| bench.compile(&[addi(10, 0, pc as i32), Inst { op: Op::Ecall, ..NOP }]));
        for (pc, target) in ways.into_iter().zip(&targets) {
            bench.cell(pc).store(target.entry(), Ordering::Release);
        }
        for (value, pc) in [(1, ways[0]), (0, ways[1])] {
            let mut hart = bench.hart();
            hart.x[5] = value;
            assert_eq!(bench.enter(&mut hart, block.entry()), ExitReason::Trap);
            assert_eq!(hart.x[10], pc);
        }
    });
}

#[test]
fn a_loop_of_linked_blocks_leaves_when_asked() {
    each_compiler(1 << 20, |bench| {
        let block = bench.compile(&[addi(10, 10, 1), jal(0, -4)]);
        bench.cell(CODE).store(block.entry(), Ordering::Release);
        let mut hart = bench.hart();
        let asked = ptr::from_ref(&hart.exit_request) as usize;
        let (done, left) = std::sync::mpsc::channel();
        let reason = std::thread::scope(|scope| {
            let cell = &*bench.cells[&CODE];
            scope.spawn(move || {
                std::thread::sleep(Duration::from_millis(20));
                // SAFETY: the hart lives until this thread is joined.
                unsafe { &*(asked as *const AtomicU8) }.store(1, Ordering::Release);
                if left.recv_timeout(Duration::from_secs(5)).is_err() {
                    // The loop ignores the request: let the test end.
                    cell.store(entry_stubs().dead, Ordering::Release);
                }
            });
            let reason = bench.enter(&mut hart, block.entry());
            done.send(()).map(|()| reason)
        });
        assert_eq!(reason, Ok(ExitReason::Interrupted));
        assert_eq!(hart.pc, CODE);
        assert!(hart.x[10] > 0);
    });
}

#[test]
fn indirect_jumps_go_by_the_front() {
    each_compiler(1 << 20, |bench| {
        let jump = bench.compile(&[Inst { op: Op::Jalr, rd: 5, rs1: 5, imm: 3, ..NOP }]);
        let target = bench.compile(&[addi(10, 0, 9), jal(0, 0x40)]);
        let cell = AtomicUsize::new(target.entry());
        let mut hart = bench.hart();
        hart.x[5] = 0x9000;
        assert_eq!(bench.enter(&mut hart, jump.entry()), ExitReason::IndirectMiss);
        assert_eq!((hart.pc, hart.x[5]), (0x9002, CODE + 4), "target from the old value, its low bit cleared");

        bench.front[Key::new(0x9002).front_index()] = FrontSlot { key: 0x9002, cell: as_cell(&cell) };
        (hart.x[5], hart.pc) = (0x9000, CODE);
        assert_eq!(bench.enter(&mut hart, jump.entry()), ExitReason::Miss);
        assert_eq!(hart.x[10], 9);

        // Another address of the same row.
        hart.x[5] = 0x9000 + 2 * FRONT_SLOTS as u64;
        assert_eq!(Key::new(hart.x[5] + 2).front_index(), Key::new(0x9002).front_index());
        assert_eq!(bench.enter(&mut hart, jump.entry()), ExitReason::IndirectMiss);

        hart.x[5] = 0x9000;
        hart.exit_request.store(1, Ordering::Relaxed);
        assert_eq!(bench.enter(&mut hart, jump.entry()), ExitReason::Interrupted);
        assert_eq!(hart.pc, 0x9002);
    });
}

#[test]
fn an_instruction_for_the_dispatcher_ends_a_block() {
    each_compiler(1 << 20, |bench| {
        for (op, reason, pc) in [
            (Op::Fence_i, ExitReason::FenceI, CODE + 8),
            (Op::Ecall, ExitReason::Trap, CODE + 4),
            (Op::Ebreak, ExitReason::Trap, CODE + 4),
            (Op::Illegal, ExitReason::Trap, CODE + 4),
        ] {
            let block = bench.compile(&[addi(10, 0, 5), Inst { op, ..NOP }]);
            let mut hart = bench.hart();
            assert_eq!(bench.enter(&mut hart, block.entry()), reason);
            assert_eq!((hart.pc, hart.x[10]), (pc, 5));
        }
    });
}

#[test]
fn a_dead_division_by_zero_raises_its_flag() {
    each_compiler(1 << 20, |bench| {
        let divide = Inst { op: Op::Fdiv_d, rd: 1, rs1: 2, rs2: 3, rm: 7, ..NOP };
        let read_flags = Inst { op: Op::Csrrs, rd: 10, imm: 1, ..NOP };
        let overwrite = Inst { op: Op::Fmv_d_x, rd: 1, ..NOP };
        let block = bench.compile(&[divide, overwrite, read_flags, jal(0, 8)]);
        for (flags, expected) in [(0, 8), (1, 9)] {
            let mut hart = bench.hart();
            (hart.f[2], hart.fflags) = (1f64.to_bits(), flags);
            bench.enter(&mut hart, block.entry());
            assert_eq!(hart.x[10], expected);
        }
    });
}

/// A tiny product can round to the least normal number: rounded with an unbounded exponent, the
/// exact product stays below it.
#[test]
fn an_underflow_to_the_least_normal_number_raises_its_flag() {
    each_compiler(1 << 20, |bench| {
        let single = |bits: u32| 0xffff_ffff_0000_0000 | u64::from(bits);
        for (op, almost_one, least) in [
            (Op::Fmul_d, 0x3fef_ffff_ffff_ffff, f64::MIN_POSITIVE.to_bits()),
            (Op::Fmul_s, single(0x3f7f_ffff), single(f32::MIN_POSITIVE.to_bits())),
        ] {
            let block = bench.compile(&[Inst { op, rd: 1, rs1: 2, rs2: 3, ..NOP }, jal(0, 8)]);
            let mut hart = bench.hart();
            (hart.f[2], hart.f[3], hart.fflags) = (almost_one, least, 1);
            bench.enter(&mut hart, block.entry());
            assert_eq!((hart.f[1], hart.fflags), (least, 3), "{op:?}");
        }
    });
}

#[test]
fn a_freed_blocks_fault_table_is_gone() {
    each_compiler(64 << 10, |bench| {
        // Small blocks side by side, then a large one in their place.
        let fault = load(Op::Ld, 10, 0, 0);
        let small: Vec<_> = (0..16).map(|_| bench.compile(&[fault, jal(0, 8)])).collect();
        let (first, last) = (small[0].entry(), small[15].entry());
        drop(small);
        let insts: Vec<Inst> = (0..300).map(|_| load(Op::Ld, 10, 5, 0)).chain([fault, jal(0, 8)]).collect();
        let large = bench.compile(&insts);
        let (start, end) = (large.entry(), large.entry() + large.len_bytes());
        assert!(start <= first && end > last, "{start:#x}..{end:#x} {first:#x} {last:#x}");
        let mut hart = bench.hart();
        hart.x[5] = DATA;
        assert_eq!(bench.enter(&mut hart, large.entry()), ExitReason::Fault);
        assert_eq!(hart.pc, CODE + 1200);
    });
}

#[test]
fn code_memory_is_used_again_and_never_writable_where_it_runs() {
    each_compiler(64 << 10, |bench| {
        let mut entries = std::collections::HashSet::new();
        for round in 0..500 {
            let block = bench.compile(&[addi(10, 0, round), load(Op::Ld, 11, 0, 8), NOP]);
            entries.insert(block.entry());
            let mut hart = bench.hart();
            assert_eq!(bench.enter(&mut hart, block.entry()), ExitReason::Fault, "the fault table goes with the block");
            assert_eq!((hart.x[10], hart.pc), (round as u64, CODE + 4));
        }
        assert!(entries.len() < 10, "{} addresses", entries.len());
        assert_eq!(bench.space.buffer().stats().used_bytes, 0);
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        let executable: Vec<_> = maps.lines().filter(|line| line.split(' ').nth(1).unwrap().contains('x')).collect();
        let code = format!("{:x}-", bench.space.buffer().executable().start().0);
        assert!(executable.iter().any(|line| line.starts_with(&code)), "{code} {executable:?}");
        assert!(executable.iter().all(|line| !line.split(' ').nth(1).unwrap().contains('w')), "{executable:?}");
    });
}

#[test]
fn a_full_code_buffer_is_an_error_that_can_be_mended() {
    each_compiler(4096, |bench| {
        let mut blocks = Vec::new();
        let error = loop {
            match bench.compile_placed(&placed(&[NOP, jal(0, 8)]), &BlockOptions::default()) {
                Ok(block) => blocks.push(block),
                Err(error) => break error,
            }
        };
        assert!(matches!(error, TranslateError::NoCodeMemory(_)), "{error}");
        assert!(!blocks.is_empty());
        blocks.pop();
        bench.compile(&[NOP, jal(0, 8)]);
    });
}

#[test]
fn host_code_is_listed() {
    each_compiler(1 << 20, |bench| {
        let block = bench.compile(&[addi(10, 0, 1), jal(0, 8)]);
        let listing = disasm::host_listing(&block);
        assert!(listing.contains("jmp"), "{listing}");
    });
}

/// A load that succeeds shows that its register is in the window; a counter that is read into the
/// register afterwards may be anything.
#[test]
fn a_counter_is_no_address_that_was_tested() {
    each_compiler(1 << 20, |bench| {
        let secret = Box::new(0x005e_c2e7_u64);
        let read = Inst { op: Op::Csrrs, rd: 11, imm: csr::INSTRET, ..NOP };
        let block = bench.compile(&[load(Op::Ld, 10, 11, 0), read, load(Op::Ld, 12, 11, 0)]);
        let mut hart = bench.hart();
        hart.x[11] = DATA;
        hart.instret = (&raw const *secret as u64).wrapping_sub(bench.window.base() as u64);
        assert_eq!((bench.enter(&mut hart, block.entry()), hart.x[12]), (ExitReason::Fault, 0));
        assert_eq!(hart.pc, CODE + 8);
    });
}
