//! An instruction that another thread overwrites by one aligned store is fetched old or new, never
//! half of each (RISC-V's Ziccif). After a FENCE.I no version runs that is older than one that ran
//! before. This holds in the interpreter, and in every mode and tier.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

use codewarden::addr::{HostAddr, HostRange, PageSize};
use codewarden::protection::{Access, Mode};
use demo_emulator::cli::{Tier, Tracking};
use demo_emulator::engine::Engine;
use demo_emulator::hart::Hart;
use demo_emulator::linux::machine::{Exit, Interpreter, Machine};
use demo_emulator::memory::window::{EXEC, PAGE_LEN_BYTES, READ, WRITE};
use demo_emulator::memory::{Window, host_fault};
use demo_emulator::riscv::trap::Trap;

const CODE: u64 = 0x10_0000;
const A0: usize = 10;

const FENCE_I: u32 = 0x0000_100f;
const ECALL: u32 = 0x0000_0073;
const C_NOP: u16 = 0x0001;

/// Versions that are stored, for each place of the code.
const VERSIONS: u64 = 15_000;

/// `lui a0, v` with a `v` of this version that lies in both halves.
fn version(number: u64) -> u32 {
    ((number * 8 - 1) as u32 & 0x7_ffff) << 12 | 0x537
}

/// The version of a value of a0, if the value has one.
fn number(value: u64) -> Option<u64> {
    (value >> 12).checked_add(1).filter(|v| v % 8 == 0).map(|v| v / 8)
}

/// Puts `FENCE.I; LUI; ECALL` at `start`, with the LUI aligned; returns its address.
fn put(window: &Window, start: u64) -> u64 {
    let put = |at, inst: u32| {
        window.store_u16(at, inst as u16).unwrap();
        window.store_u16(at + 2, (inst >> 16) as u16).unwrap();
    };
    put(start, FENCE_I);
    let patched = (start + 4).next_multiple_of(4);
    (start + 4..patched).step_by(2).for_each(|at| window.store_u16(at, C_NOP).unwrap());
    put(patched, version(1));
    put(patched + 4, ECALL);
    patched
}

fn overwrite_while_it_runs(name: &str, window: Window, machine: &dyn Machine) {
    let host = HostRange::new(HostAddr(window.host(CODE).unwrap() as usize), 4096, PageSize::host()).unwrap();
    let observer: Arc<_> = machine.observer();
    observer.set_access(host, Access::ReadWrite).unwrap();
    window.set_permissions(CODE..CODE + PAGE_LEN_BYTES, READ | WRITE | EXEC);
    let mut executor = machine.executor().unwrap();
    // All possible starts of a chunk of 8 or 16 bytes.
    for start in [0, 2, 8, 14].map(|offset| CODE + offset) {
        let (patched, written) = (put(&window, start), AtomicU64::new(1));
        observer.flush_icache(None);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for version_number in 2..VERSIONS {
                    // First: no version runs before its number is known.
                    written.store(version_number, SeqCst);
                    window.store_u32(patched, version(version_number)).unwrap();
                    for _ in 0..20 {
                        std::hint::spin_loop();
                    }
                }
            });
            let mut newest = 1;
            while written.load(SeqCst) != VERSIONS - 1 {
                let mut hart = Hart::new(start);
                assert_eq!(executor.run(&mut hart), Exit::Trap(Trap::Ecall), "{name}");
                let (value, known) = (hart.x[A0], written.load(SeqCst));
                let seen = number(value).unwrap_or_else(|| panic!("{name}: {value:#x} was never written"));
                assert!(seen <= known, "{name}: {value:#x} was not written yet");
                assert!(seen >= newest, "{name}: {seen} runs after {newest}");
                newest = seen;
            }
        });
    }
}

#[test]
fn by_the_interpreter() {
    host_fault::install().unwrap();
    let window = Window::reserve().unwrap();
    overwrite_while_it_runs("interpreter", window, &Interpreter::new(window));
}

#[test]
fn in_every_mode_and_tier() {
    host_fault::install().unwrap();
    for mode in [Mode::Sigbus, Mode::Thread, Mode::Mprotect, Mode::Deferred] {
        for tier in [Tier::Decoded, Tier::Quick, Tier::Region, Tier::Auto] {
            let window = Window::reserve().unwrap();
            let name = format!("{} {tier:?}", mode.name());
            match Engine::new(window, Tracking::Mode(mode), tier, 64 << 20) {
                Ok(engine) => overwrite_while_it_runs(&name, window, &engine),
                Err(why) => {
                    assert!(std::env::var_os("CODEWARDEN_REQUIRE_ALL").is_none(), "{name}: {why}");
                    println!("skipped: {name}: {why}");
                }
            }
        }
    }
}
