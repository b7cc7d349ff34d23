//! The engine in one mode and tier, begun afresh for each program: leftovers of one program
//! would make the failure of another impossible to repeat.
//!
//! # Safety
//!
//! The one unsafe call adds a region; the memory below it stays mapped as long as the
//! process.
#![allow(unsafe_code)]

use std::sync::Arc;
use std::sync::atomic::Ordering;

use codewarden::MemoryLimit;
use codewarden::addr::GuestAddr;
use codewarden::protection::{Access, Mode};
use codewarden::tracker::{RegionOptions, SharedMemory};
use demo_emulator::cli::{Tier, Tracking};
use demo_emulator::engine::Engine;
use demo_emulator::hart::Hart;
use demo_emulator::linux::machine::{Executor, Exit, Machine};
use demo_emulator::linux::observer::MemoryObserver;
use demo_emulator::riscv::trap::Trap;

use super::memory::{ALIAS, ALL, CODE_BYTES, Memory, SHARED};

const CODE_LIMIT_BYTES: usize = 8 << 20;

pub(super) struct Way {
    pub(super) mode: Mode,
    tier: Tier,
    pub(super) memory: Memory,
    engine: Engine,
    pub(super) observer: Arc<dyn MemoryObserver>,
    executor: Option<Box<dyn Executor>>,
}

impl Way {
    /// If this machine lacks the mode, the error is the reason.
    pub(super) fn new(mode: Mode, tier: Tier) -> Result<Self, String> {
        let memory = Memory::new();
        let engine = Engine::new(memory.window, Tracking::Mode(mode), tier, CODE_LIMIT_BYTES);
        let engine = engine.map_err(|error| error.to_string())?;
        let observer = engine.observer();
        // The whole window; each program has a region of its own.
        engine.cache().tracker().remove_region(GuestAddr(0)).map_err(|error| error.to_string())?;
        Ok(Self { mode, tier, memory, engine, observer, executor: None })
    }

    pub(super) fn name(&self) -> String {
        format!("{} in tier {}", self.mode.name(), self.tier.name())
    }

    /// Begins with a guest that has run nothing, and an empty cache.
    pub(super) fn begin(&mut self, pc: u64, code: &[u8], data: &[u8]) {
        self.memory.fill(pc, code, data);
        let tracker = self.engine.cache().tracker();
        let (guest, host) = (GuestAddr(ALL.start), self.memory.range(ALL));
        let options = RegionOptions::new(guest, host, self.mode).with_access(Access::None);
        // SAFETY: see the module's head.
        unsafe { tracker.add_region(options) }.expect("a region");
        self.memory.allow(&*self.observer);
        for view in [SHARED, ALIAS] {
            let memory = SharedMemory { backing: self.memory.backing(), offset: 0 };
            tracker.declare_shared(GuestAddr(view), CODE_BYTES, memory).expect("whole pages");
        }
        self.executor = Some(self.engine.executor().expect("room for a hart"));
    }

    /// Ends the tracking of the memory.
    pub(super) fn end(&mut self) {
        self.executor = None;
        let cache = self.engine.cache();
        cache.tracker().remove_region(GuestAddr(ALL.start)).expect("the region");
        // A block must not be revived for another program.
        cache.set_limit(MemoryLimit { live_bytes: 0, retained_bytes: 0 });
        cache.set_limit(MemoryLimit::of_bytes(CODE_LIMIT_BYTES));
    }

    /// Runs until an instruction traps; `hart.pc` is its address.
    pub(super) fn run(&mut self, hart: &mut Hart) -> Trap {
        let executor = self.executor.as_mut().expect("a program that has begun");
        loop {
            match executor.run(hart) {
                Exit::Trap(trap) => return trap,
                // The cache asked for it, so that it can free memory.
                Exit::Interrupted => hart.exit_request.store(0, Ordering::Release),
            }
        }
    }
}
