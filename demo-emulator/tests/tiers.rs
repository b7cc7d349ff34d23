//! The engine's choice of a tier: what is compiled, by which compiler, and how much of it at once.

use codewarden::addr::{HostAddr, HostRange, PageSize};
use codewarden::protection::{Access, Mode};
use demo_emulator::cli::{Tier, Tracking};
use demo_emulator::engine::{Engine, EngineStats};
use demo_emulator::hart::Hart;
use demo_emulator::linux::machine::{Exit, Machine};
use demo_emulator::memory::window::{EXEC, PAGE_LEN_BYTES, READ};
use demo_emulator::memory::{Window, host_fault};
use demo_emulator::riscv::decode::decode;
use demo_emulator::riscv::encode::encode;
use demo_emulator::riscv::inst::{Inst, Op};
use demo_emulator::riscv::trap::Trap;

const CODE: u64 = 0x10_0000;

fn inst(op: Op, rd: u8, rs1: u8, imm: i32) -> Inst {
    Inst { op, rd, rs1, imm, ..decode(0x13) }
}

/// Runs a program with a count in x5, up to the ECALL behind it. Returns x6 and the engine's counts.
fn run(program: &[Inst], count: u64) -> (u64, EngineStats) {
    host_fault::install().unwrap();
    let window = Window::reserve().unwrap();
    let engine = Engine::new(window, Tracking::Mode(Mode::Mprotect), Tier::Auto, 64 << 20).unwrap();
    let host = HostAddr(window.host(CODE).unwrap() as usize);
    let page = HostRange::new(host, PAGE_LEN_BYTES as usize, PageSize::host()).unwrap();
    engine.observer().set_access(page, Access::ReadWrite).unwrap();
    window.set_permissions(CODE..CODE + PAGE_LEN_BYTES, READ | EXEC);
    for (addr, inst) in (CODE..).step_by(4).zip(program.iter().chain([&inst(Op::Ecall, 0, 0, 0)])) {
        window.store_u32(addr, encode(inst)).unwrap();
    }
    let mut hart = Hart::new(CODE);
    hart.x[5] = count;
    let exit = engine.executor().unwrap().run(&mut hart);
    assert_eq!(exit, Exit::Trap(Trap::Ecall), "at {:#x}", hart.pc);
    (hart.x[6], engine.stats())
}

/// The quick compiler's block of the same bytes is still there: it must not serve for the region.
#[test]
fn a_hot_loop_of_one_block_becomes_a_region() {
    let program = [inst(Op::Addi, 6, 6, 1), inst(Op::Addi, 5, 5, -1), inst(Op::Bne, 0, 5, -8)];
    let (sum, stats) = run(&program, 300_000);
    assert_eq!((sum, stats.regions_compiled), (300_000, 1), "{stats:?}");
}

#[test]
#[cfg(target_arch = "x86_64")]
fn blocks_that_run_equally_often_are_published_together() {
    const BLOCKS: u64 = 128;
    let mut program = [inst(Op::Addi, 6, 6, 1), inst(Op::Jal, 0, 0, 4)].repeat(BLOCKS as usize - 1);
    let back = -4 * (program.len() as i32 + 2);
    program.extend([inst(Op::Addi, 6, 6, 1), inst(Op::Addi, 5, 5, -1), inst(Op::Bne, 0, 5, back)]);
    let (sum, stats) = run(&program, 20);
    assert_eq!(sum, 20 * BLOCKS);
    assert!(stats.blocks_compiled >= BLOCKS * 3 / 4, "{stats:?}");
    assert!(stats.publications <= stats.blocks_compiled / 8, "{stats:?}");
}
