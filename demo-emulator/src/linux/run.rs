//! The loop of a guest thread, from its start to its end.
//!
//! Threads are made with std, so they have Rust's guard page and alternate signal stack; they are
//! never joined.

use std::convert::Infallible;
use std::sync::atomic::Ordering;
use std::sync::{Arc, mpsc};

use crate::hart::Hart;
use crate::memory::FaultKind;
use crate::riscv::trap::Trap;

use super::address_space::AccessKind;
use super::clone::CloneRequest;
use super::errno::{Errno, Stop};
use super::guest_fault::GuestFault;
use super::host_exit::end_host_thread;
use super::host_signals::{self, SigSet};
use super::machine::Exit;
use super::process::Process;
use super::syscalls::{self, Next};
use super::thread::{Refused, Thread};

/// Host stack of a guest thread: the executor's and the system calls' own.
const HOST_STACK_BYTES: usize = 4 << 20;

impl Process {
    /// Runs the first thread, the calling one, until the process ends.
    pub fn run(self: Arc<Self>, hart: Box<Hart>) -> Result<Infallible, Errno> {
        Thread::first(self, hart)?.run();
        // The first thread has ended and others continue; the process ends with the last one.
        end_host_thread()
    }
}

impl Thread {
    /// Runs until the thread ends; the last one's end is the process's.
    fn run(mut self) {
        let status = loop {
            self.deliver_signals();
            match self.executor.run(&mut self.hart) {
                Exit::Interrupted => {}
                Exit::Trap(Trap::Ecall) => match syscalls::run(&mut self) {
                    Next::Continue => {}
                    Next::Spawn(request) => {
                        let id = self.spawn(&request);
                        syscalls::finish(&mut self, id.map_err(Stop::from));
                    }
                    Next::Exit(status) => break status,
                },
                Exit::Trap(trap) => self.fault(trap),
            }
        };
        self.end(status);
    }

    fn fault(&mut self, trap: Trap) {
        if self.is_passing(&trap) {
            return;
        }
        let is_mapped = |address| self.process.space().mappings().at(address).is_some();
        if let Some(fault) = GuestFault::of(trap, self.hart.pc, is_mapped) {
            self.raise_fault(&fault);
        }
    }

    /// Whether the mappings permit the access that the host refused. Then another hart was changing
    /// them, and the instruction runs again. It does so once for each state of the mappings: if the
    /// host refuses more than the guest's mappings do, the loop must still end.
    fn is_passing(&mut self, trap: &Trap) -> bool {
        let (fault, kind) = match trap {
            Trap::LoadFault(fault) => (fault, AccessKind::Load),
            Trap::StoreFault(fault) => (fault, AccessKind::Store),
            Trap::FetchFault(fault) => (fault, AccessKind::Fetch),
            _ => return false,
        };
        let space = self.process.space();
        if fault.kind != FaultKind::Segv || !space.permits(fault.addr, kind) {
            return false;
        }
        let refused = Refused { pc: self.hart.pc, address: fault.addr, changes: space.changes() };
        drop(space);
        self.run_again.replace(refused) != Some(refused)
    }

    /// clone of a thread: returns its id.
    fn spawn(&self, request: &CloneRequest) -> Result<u64, Errno> {
        let hart = self.child_hart(request);
        let (process, mask, request) = (self.process.clone(), self.mask, *request);
        process.thread_count.fetch_add(1, Ordering::AcqRel);
        let (sender, receiver) = mpsc::channel();
        let old_mask = host_signals::set_mask(SigSet::MAX);
        let child = move || {
            let made = Self::on_this_thread(process, hart, mask).map(|mut thread| {
                thread.store_tids(&request);
                thread
            });
            match made {
                Ok(thread) => {
                    let _ = sender.send(Ok(u64::from(thread.tid())));
                    host_signals::set_mask(mask);
                    thread.run();
                }
                Err(errno) => drop(sender.send(Err(errno))),
            }
        };
        let spawned = std::thread::Builder::new().stack_size(HOST_STACK_BYTES).spawn(child);
        let result = match spawned {
            Ok(_) => receiver.recv().unwrap_or(Err(Errno::EAGAIN)),
            Err(_) => Err(Errno::EAGAIN),
        };
        host_signals::set_mask(old_mask);
        if result.is_err() {
            self.process.thread_ended();
        }
        result
    }
}
