//! The engine's choice of a tier: what is compiled, by which compiler, and how much of it at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use codewarden::addr::{HostAddr, HostRange, PageSize};
use codewarden::protection::{Access, Mode};
use demo_emulator::cli::{Tier, Tracking};
use demo_emulator::engine::{Engine, EngineStats, Event, Listener};
use demo_emulator::hart::Hart;
use demo_emulator::linux::machine::{Executor, Exit, Machine};
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

/// An engine with a program, and an ECALL behind it.
fn with(program: &[Inst]) -> Engine {
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
    engine
}

/// Runs it from instruction `index` with a count in x5, up to the ECALL. Returns x6.
fn go(executor: &mut dyn Executor, index: usize, count: u64) -> u64 {
    let mut hart = Hart::new(CODE + 4 * index as u64);
    hart.x[5] = count;
    let exit = executor.run(&mut hart);
    assert_eq!(exit, Exit::Trap(Trap::Ecall), "at {:#x}", hart.pc);
    hart.x[6]
}

/// Runs a program with a count in x5. Returns x6 and the engine's counts.
fn run(program: &[Inst], count: u64) -> (u64, EngineStats) {
    let engine = with(program);
    let sum = go(&mut *engine.executor().unwrap(), 0, count);
    (sum, engine.stats())
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

/// One hart notes a block, and another one makes a region of it. The first one's batch leaves the region in place.
#[test]
#[cfg(target_arch = "x86_64")]
fn a_batch_compiles_decoded_blocks_only() {
    let one_loop = [inst(Op::Addi, 6, 6, 1), inst(Op::Addi, 5, 5, -1), inst(Op::Bne, 0, 5, -8)];
    let program = [&one_loop[..], &[inst(Op::Jal, 0, 0, 16)], &one_loop[..]].concat();
    let engine = with(&program);
    let [mut first, mut second] = [(); 2].map(|()| engine.executor().unwrap());
    assert_eq!(go(&mut *first, 0, 10), 10);
    assert_eq!(go(&mut *second, 0, 300_000), 300_000);
    let (before, revived) = (engine.stats(), engine.cache().stats().revived);
    assert_eq!(before.regions_compiled, 1, "{before:?}");
    assert_eq!(go(&mut *first, 4, 100), 100);
    let after = engine.stats();
    assert_eq!(after.blocks_compiled - before.blocks_compiled, 1, "{before:?} {after:?}");
    assert_eq!(engine.cache().stats().revived, revived, "the quick block is back");
}

/// The space tells the recorder of blocks that end, and the recorder has the space.
#[test]
fn an_engine_lets_its_listeners_go() {
    struct Ends(Arc<AtomicBool>);
    impl Listener for Ends {
        fn on_event(&self, _: &Event<'_>) {}
    }
    impl Drop for Ends {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }
    let ended = Arc::new(AtomicBool::new(false));
    let mut engine = with(&[inst(Op::Addi, 6, 6, 1)]);
    engine.listen(vec![Box::new(Ends(ended.clone()))]);
    assert_eq!(go(&mut *engine.executor().unwrap(), 0, 0), 1);
    drop(engine);
    assert!(ended.load(Ordering::Relaxed));
}
