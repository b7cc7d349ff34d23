//! Pages that are written to all the time, in every mode and tier: their blocks stay, compare their
//! bytes at each entry, and run no overwritten bytes.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread::sleep;
use std::time::{Duration, Instant};

use codewarden::Key;
use codewarden::addr::{GuestAddr, HostAddr, HostRange, PageSize};
use codewarden::protection::{Access, Mode};
use demo_emulator::cli::{Tier, Tracking};
use demo_emulator::engine::Engine;
use demo_emulator::hart::Hart;
use demo_emulator::linux::machine::{Executor, Exit, Machine};
use demo_emulator::linux::observer::MemoryObserver;
use demo_emulator::memory::window::{EXEC, PAGE_LEN_BYTES, READ, WRITE};
use demo_emulator::memory::{Window, host_fault};
use demo_emulator::riscv::decode::decode;
use demo_emulator::riscv::encode::encode;
use demo_emulator::riscv::inst::{Inst, Op};
use demo_emulator::riscv::trap::Trap;

const CODE: u64 = 0x10_0000;
const PAGES: u64 = 2;
/// Data on the first page, and on the second.
const DATA: u64 = CODE + 2048;
const DATA_BEHIND: u64 = DATA + PAGE_LEN_BYTES;
/// Runs after which each tier has its block.
const WARM: u64 = 200;
const ROUNDS: u64 = 200;

const A0: u8 = 10;
const A1: u8 = 11;
const A2: u8 = 12;

struct Guest {
    name: String,
    mode: Mode,
    engine: Engine,
    window: Window,
    observer: Arc<dyn MemoryObserver>,
    executor: Box<dyn Executor>,
}

impl Guest {
    fn new(mode: Mode, tier: Tier) -> Result<Self, String> {
        let window = Window::reserve().unwrap();
        let engine = Engine::new(window, Tracking::Mode(mode), tier, 64 << 20).map_err(|error| error.to_string())?;
        let observer = engine.observer();
        let len_bytes = PAGES * PAGE_LEN_BYTES;
        let host = HostAddr(window.host(CODE).unwrap() as usize);
        let range = HostRange::new(host, len_bytes as usize, PageSize::host()).unwrap();
        observer.set_access(range, Access::ReadWrite).unwrap();
        window.set_permissions(CODE..CODE + len_bytes, READ | WRITE | EXEC);
        let executor = engine.executor().unwrap();
        Ok(Self { name: format!("{} {tier:?}", mode.name()), mode, engine, window, observer, executor })
    }

    /// Writes instructions, and announces the write if the test asks for it.
    fn put(&self, at: u64, insts: &[Inst]) {
        (at..).step_by(4).zip(insts).for_each(|(at, inst)| self.window.store_u32(at, encode(inst)).unwrap());
        self.announce();
    }

    fn store_data(&self, at: u64, value: u64) {
        self.window.store_u64(at, value).unwrap();
        self.announce();
    }

    fn announce(&self) {
        if self.mode == Mode::Deferred {
            self.observer.flush_icache(None);
        }
    }

    /// Runs the code at `pc`, which ends with an ECALL; returns a0.
    fn run(&mut self, pc: u64, a1: u64, a2: u64) -> u64 {
        let mut hart = Hart::new(pc);
        (hart.x[usize::from(A1)], hart.x[usize::from(A2)]) = (a1, a2);
        assert_eq!(self.executor.run(&mut hart), Exit::Trap(Trap::Ecall), "{} at {:#x}", self.name, hart.pc);
        hart.x[usize::from(A0)]
    }

    fn is_self_checking(&self, at: u64) -> bool {
        let mut ticket = self.engine.cache().begin(Key::new(u64::MAX - 1));
        ticket.claim(GuestAddr(at)).is_ok() && ticket.needs_check()
    }

    /// Stores to `data` while the code at `pc` runs, until that page is self-checking.
    fn make_checked(&mut self, pc: u64, data: u64) {
        let is_self_checking = (0..100).any(|value| {
            self.run(pc, 1, data);
            self.store_data(data, value);
            self.is_self_checking(data)
        });
        assert!(is_self_checking, "{}", self.name);
        for _ in 0..WARM {
            self.run(pc, 1, data);
        }
    }
}

fn for_each_way(test: impl Fn(&mut Guest)) {
    host_fault::install().unwrap();
    for mode in [Mode::Sigbus, Mode::Thread, Mode::Mprotect, Mode::Deferred] {
        for tier in [Tier::Decoded, Tier::Quick, Tier::Region, Tier::Auto] {
            match Guest::new(mode, tier) {
                Ok(mut guest) => test(&mut guest),
                Err(why) => {
                    assert!(std::env::var_os("CODEWARDEN_REQUIRE_ALL").is_none(), "{}: {why}", mode.name());
                    println!("skipped: {} {tier:?}: {why}", mode.name());
                }
            }
        }
    }
}

fn addi(rd: u8, rs1: u8, imm: i32) -> Inst {
    Inst { op: Op::Addi, rd, rs1, imm, ..decode(0x13) }
}

fn li(value: u64) -> Inst {
    addi(A0, 0, value as i32)
}

fn ecall() -> Inst {
    Inst { op: Op::Ecall, ..decode(0x13) }
}

#[test]
fn a_data_write_ends_no_block() {
    for_each_way(|guest| {
        guest.put(CODE, &[li(7), ecall()]);
        guest.make_checked(CODE, DATA);
        let before = (guest.engine.stats(), guest.engine.cache().stats().invalidated);
        for value in 0..ROUNDS {
            guest.store_data(DATA + 8 * (value % 32), value);
            assert_eq!(guest.run(CODE, 0, 0), 7);
        }
        // A page that cooled meanwhile becomes self-checking again.
        if guest.is_self_checking(CODE) {
            let after = (guest.engine.stats(), guest.engine.cache().stats().invalidated);
            let new = (after.0.made() - before.0.made(), after.1 - before.1);
            assert!(new.0 < ROUNDS / 4 && new.1 < ROUNDS / 4, "{}: {new:?}", guest.name);
        }
    });
}

#[test]
fn a_patch_is_seen_at_the_next_entry() {
    for_each_way(|guest| {
        guest.put(CODE, &[li(0), ecall()]);
        guest.make_checked(CODE, DATA);
        for value in 1..ROUNDS {
            guest.put(CODE, &[li(value)]);
            // Now and then often enough for each tier to make a block of it.
            for _ in 0..if value % 16 == 0 { WARM } else { value % 4 + 1 } {
                assert_eq!(guest.run(CODE, 0, 0), value, "{}", guest.name);
            }
        }
    });
}

#[test]
fn linked_blocks_are_compared_too() {
    for_each_way(|guest| {
        // A loop of two blocks that runs a1 times: only links and back edges lead there.
        let (again, done) = (CODE + 4, 20);
        let code = [
            addi(A0, 0, 0),
            addi(A0, A0, 1),
            addi(A1, A1, -1),
            Inst { op: Op::Beq, rs1: A1, imm: 8, ..decode(0x13) },
            Inst { op: Op::Jal, imm: (again as i64 - (CODE as i64 + 16)) as i32, ..decode(0x13) },
            ecall(),
        ];
        assert_eq!(done, 4 * (code.len() - 1));
        guest.put(CODE, &code);
        guest.make_checked(CODE, DATA);
        for step in 1..ROUNDS {
            guest.put(again, &[addi(A0, A0, step as i32)]);
            let rounds = if step % 8 == 0 { WARM } else { 3 };
            assert_eq!(guest.run(CODE, rounds, 0), rounds * step, "{}", guest.name);
        }
    });
}

#[test]
fn a_store_into_the_running_block_is_seen_by_its_next_instruction() {
    for_each_way(|guest| {
        let fence = if guest.mode == Mode::Deferred { Op::Fence_i } else { Op::Addi };
        let store = Inst { op: Op::Sw, rs1: A2, rs2: A1, ..decode(0x13) };
        guest.put(CODE, &[store, Inst { op: fence, ..decode(0x13) }, li(0), ecall()]);
        guest.make_checked(CODE, DATA);
        for value in 1..ROUNDS {
            let patch = u64::from(encode(&li(value)));
            assert_eq!(guest.run(CODE, patch, CODE + 8), value, "{}", guest.name);
            assert_eq!(guest.run(CODE, 0, DATA), value, "{}", guest.name);
        }
    });
}

#[test]
fn a_block_over_a_self_checking_and_a_protected_page() {
    for (data, is_behind) in [(DATA, false), (DATA_BEHIND, true)] {
        for_each_way(|guest| {
            let start = CODE + PAGE_LEN_BYTES - 8;
            guest.put(start, &[li(0), addi(A0, A0, 1), addi(A0, A0, 2), ecall()]);
            guest.make_checked(start, data);
            let other = if is_behind { CODE } else { CODE + PAGE_LEN_BYTES };
            assert!(!guest.is_self_checking(other), "{}", guest.name);
            for value in 1..ROUNDS {
                let mut insts = [li(1), addi(A0, A0, 1), addi(A0, A0, 1)];
                insts[(value % 3) as usize].imm = value as i32;
                guest.put(start, &insts);
                assert_eq!(guest.run(start, 0, 0), value + 2, "{}", guest.name);
            }
        });
    }
}

#[test]
fn a_self_checking_page_cools() {
    for_each_way(|guest| {
        guest.put(CODE, &[li(3), ecall()]);
        guest.make_checked(CODE, DATA);
        let patience = Instant::now() + Duration::from_secs(20);
        while guest.is_self_checking(CODE) {
            assert!(Instant::now() < patience, "{}", guest.name);
            sleep(Duration::from_millis(20));
            assert_eq!(guest.run(CODE, 0, 0), 3, "{}", guest.name);
        }
        assert_eq!(guest.run(CODE, 0, 0), 3, "{}", guest.name);
        guest.put(CODE, &[li(4)]);
        assert_eq!(guest.run(CODE, 0, 0), 4, "{}", guest.name);
    });
}

/// Another hart patches the code faster than it can be translated. The code still runs, and is not
/// translated more often than it runs.
#[test]
fn code_that_changes_all_the_time_makes_progress() {
    for_each_way(|guest| {
        guest.put(CODE, &[li(7), ecall()]);
        guest.make_checked(CODE, DATA);
        let made = |guest: &Guest| guest.engine.stats().made();
        let (window, stop) = (guest.window, AtomicBool::new(false));
        let (stored, mut most) = (AtomicU64::new(0), 0);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for value in (0..2048).cycle().take_while(|_| !stop.load(Relaxed)) {
                    window.store_u32(CODE, encode(&li(value))).unwrap();
                    stored.fetch_add(1, Relaxed);
                }
            });
            while stored.load(Relaxed) < 200_000 {
                let before = made(guest);
                assert!(guest.run(CODE, 0, 0) < 2048, "{}", guest.name);
                most = most.max(made(guest) - before);
            }
            stop.store(true, Relaxed);
        });
        assert!(most <= 2, "{}: {most} blocks for one run", guest.name);
    });
}
