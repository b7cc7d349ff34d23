//! A guest thread is a hart on a host thread of its own: its run loop, its start and its end.
//!
//! Threads are made with std, so they have Rust's guard page and alternate signal stack; they are
//! never joined. A fork happens with the address space and the signal actions locked, so the child
//! finds both complete. Every signal is blocked too, so the child has its own entry in the table of
//! mailboxes before a signal can reach it.
//!
//! # Safety
//!
//! The unsafe blocks make system calls that end a thread or the process, or fork it. After the fork
//! the child runs Rust code, which is sound with glibc's `fork` wrapper: it puts malloc and stdio
//! into order. The forking thread, which is the one in the child, holds the locks of this crate
//! that matter.
#![allow(unsafe_code)]

use std::sync::atomic::Ordering;
use std::sync::{Arc, mpsc};

use crate::hart::Hart;
use crate::memory::FaultKind;
use crate::riscv::trap::Trap;

use super::address_space::Touch;
use super::errno::{Errno, Stop, SysResult};
use super::host_signals::{self, Registration, SigSet, Signal};
use super::machine::{Executor, Exit};
use super::process::Process;
use super::signal_frame::AltStack;
use super::syscalls;
use super::user_memory::{host_pointer, read_u64, write_u32};
use super::vfork::ChildsEnd;

const SEGV_MAPERR: i32 = 1;
const SEGV_ACCERR: i32 = 2;
const BUS_ADRALN: i32 = 1;
const BUS_ADRERR: i32 = 2;
const ILL_ILLOPC: i32 = 1;
const TRAP_BRKPT: i32 = 1;

/// Host stack of a guest thread: the executor's and the system calls' own.
const HOST_STACK_BYTES: usize = 4 << 20;

/// One guest thread, used by its host thread alone.
pub struct Thread {
    /// The state that it shares.
    pub process: Arc<Process>,
    /// Its registers.
    pub hart: Box<Hart>,
    executor: Box<dyn Executor>,
    registration: Registration,
    /// Blocked signals.
    pub mask: SigSet,
    /// The mask to go back to once a call that replaced it is over.
    pub suspended_mask: Option<SigSet>,
    /// Its alternate signal stack.
    pub alt_stack: AltStack,
    /// Signals that it sent itself and that the host must not see.
    pub queued: Vec<Signal>,
    /// Zeroed and woken when it ends; 0 for none.
    pub clear_child_tid: u64,
    /// Head of its robust list; 0 for none.
    pub robust_list: u64,
    /// The last fault that made its instruction run again.
    run_again: Option<Refused>,
}

/// An access that the host refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Refused {
    pc: u64,
    address: u64,
    /// The address space's count of changes before.
    changes: u64,
}

/// The request of a clone.
#[derive(Clone, Copy, Debug)]
pub struct CloneRequest {
    /// `CLONE_*` and the signal to send at the child's end.
    pub flags: u64,
    /// The child's stack pointer, 0 to keep the parent's.
    pub stack: u64,
    /// The address for the child's id in the parent.
    pub parent_tid: u64,
    /// The child's thread pointer.
    pub tls: u64,
    /// The address for the child's id in the child, or for the zero at its end.
    pub child_tid: u64,
}

impl Thread {
    /// The first thread of `process`, on the calling host thread.
    pub fn first(process: Arc<Process>, hart: Box<Hart>) -> Result<Self, Errno> {
        let mask = host_signals::set_mask(SigSet::MAX);
        let thread = Self::on_this_thread(process, hart, mask)?;
        host_signals::set_mask(mask);
        Ok(thread)
    }

    /// Signals must be blocked.
    fn on_this_thread(process: Arc<Process>, hart: Box<Hart>, mask: SigSet) -> Result<Self, Errno> {
        let registration = Registration::new(&raw const hart.exit_request)?;
        let executor = process.machine.executor()?;
        Ok(Self {
            process,
            hart,
            executor,
            registration,
            mask,
            suspended_mask: None,
            alt_stack: AltStack::DISABLED,
            queued: Vec::new(),
            clear_child_tid: 0,
            robust_list: 0,
            run_again: None,
        })
    }

    /// The kernel's id of this thread, which is the guest's.
    pub fn tid(&self) -> u32 {
        self.registration.tid()
    }

    /// The word that a safe system call looks at.
    pub fn pending_signal(&self) -> &std::sync::atomic::AtomicU32 {
        self.registration.mailbox().pending()
    }

    /// Whether a signal waits to be delivered.
    pub fn has_signal(&self) -> bool {
        self.pending_signal().load(Ordering::Acquire) != 0
    }

    /// Takes the signal that the host's handler left.
    pub fn mailbox_signal(&self) -> Option<Signal> {
        self.registration.mailbox().take()
    }

    /// Runs until the thread ends; the last one's end is the process's.
    pub fn run(mut self) {
        let status = loop {
            self.deliver_signals();
            match self.executor.run(&mut self.hart) {
                Exit::Interrupted => {}
                Exit::Trap(Trap::Ecall) => {
                    if let Some(status) = syscalls::run(&mut self) {
                        break status;
                    }
                }
                Exit::Trap(trap) => self.fault(trap),
            }
        };
        self.end(status);
    }

    fn fault(&mut self, trap: Trap) {
        if self.is_passing(&trap) {
            return;
        }
        let (signal, code, address) = match trap {
            Trap::Ecall => return,
            Trap::Ebreak => (libc::SIGTRAP, TRAP_BRKPT, self.hart.pc),
            Trap::Illegal(_) => (libc::SIGILL, ILL_ILLOPC, self.hart.pc),
            Trap::LoadMisaligned(address) | Trap::StoreMisaligned(address) => (libc::SIGBUS, BUS_ADRALN, address),
            Trap::LoadFault(fault) | Trap::StoreFault(fault) | Trap::FetchFault(fault) => match fault.kind {
                FaultKind::Bus => (libc::SIGBUS, BUS_ADRERR, fault.addr),
                FaultKind::Segv if self.process.space().mappings().at(fault.addr).is_some() => {
                    (libc::SIGSEGV, SEGV_ACCERR, fault.addr)
                }
                FaultKind::Segv => (libc::SIGSEGV, SEGV_MAPERR, fault.addr),
            },
        };
        self.raise_fault(signal, code, address);
    }

    /// Whether the mappings permit the access that the host refused. Then another hart was changing
    /// them, and the instruction runs again. It does so once for each state of the mappings: if the
    /// host refuses more than the guest's mappings do, the loop must still end.
    fn is_passing(&mut self, trap: &Trap) -> bool {
        let (fault, touch) = match trap {
            Trap::LoadFault(fault) => (fault, Touch::Load),
            Trap::StoreFault(fault) => (fault, Touch::Store),
            Trap::FetchFault(fault) => (fault, Touch::Fetch),
            _ => return false,
        };
        let space = self.process.space();
        if fault.kind != FaultKind::Segv || !space.permits(fault.addr, touch) {
            return false;
        }
        let refused = Refused { pc: self.hart.pc, address: fault.addr, changes: space.changes() };
        drop(space);
        self.run_again.replace(refused) != Some(refused)
    }

    /// Linux's steps at the end of a thread. The last thread's status is the process's. A thread
    /// stops counting before its joiners wake: otherwise a status given after a join could lose to
    /// the joined thread's.
    fn end(self, status: i32) {
        host_signals::set_mask(SigSet::MAX);
        self.release_robust_list();
        if self.process.thread_ended() == 0 {
            self.process.exit(status);
        }
        if self.clear_child_tid != 0 && write_u32(&self.process.window, self.clear_child_tid, 0).is_ok() {
            self.wake(self.clear_child_tid);
        }
    }

    fn wake(&self, address: u64) {
        if let Ok(host) = host_pointer(&self.process.window, address, 4) {
            let all = i32::MAX;
            // The kernel looks up the page as for a write.
            let _write = self.process.kernel_write(host, 4);
            // SAFETY: FUTEX_WAKE reads and writes no memory.
            unsafe { libc::syscall(libc::SYS_futex, host, libc::FUTEX_WAKE, all, 0, 0, 0) };
        }
    }

    /// Marks the mutexes that the dying thread holds, as the kernel does.
    fn release_robust_list(&self) {
        const LIMIT: usize = 2048;
        let window = &self.process.window;
        let read = |address| read_u64(window, address).ok();
        let Some((offset, pending)) =
            Some(self.robust_list).filter(|h| *h != 0).and_then(|head| Some((read(head + 8)?, read(head + 16)?)))
        else {
            return;
        };
        let mut entry = read(self.robust_list);
        for _ in 0..LIMIT {
            let Some(at) = entry.map(|at| at & !1).filter(|at| *at != self.robust_list && *at != 0) else { break };
            entry = read(at);
            if at != pending {
                self.mark_owner_died(at.wrapping_add(offset));
            }
        }
        if pending & !1 != 0 {
            self.mark_owner_died((pending & !1).wrapping_add(offset));
        }
    }

    fn mark_owner_died(&self, futex: u64) {
        let window = &self.process.window;
        let Ok(mut word) = window.load_u32(futex) else { return };
        while word & libc::FUTEX_TID_MASK == self.tid() {
            let died = word & libc::FUTEX_WAITERS | libc::FUTEX_OWNER_DIED;
            match window.compare_exchange_u32(futex, word, died) {
                Ok(seen) if seen == word => {
                    if word & libc::FUTEX_WAITERS != 0 {
                        self.wake(futex);
                    }
                    return;
                }
                Ok(seen) => word = seen,
                Err(_) => return,
            }
        }
    }

    /// clone of a thread: returns its id.
    pub fn spawn(&self, request: &CloneRequest) -> Result<u64, Errno> {
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

    fn child_hart(&self, request: &CloneRequest) -> Box<Hart> {
        let mut hart = Box::new(Hart::new(self.hart.pc.wrapping_add(4)));
        (hart.x, hart.f) = (self.hart.x, self.hart.f);
        (hart.fflags, hart.frm) = (self.hart.fflags, self.hart.frm);
        hart.x[10] = 0;
        apply(request, &mut hart);
        hart
    }

    /// The ids of both kinds of clone; called in the child.
    fn store_tids(&mut self, request: &CloneRequest) {
        let (window, tid) = (self.process.window, self.tid());
        // Linux, too, ignores ids that cannot be stored.
        if request.flags & libc::CLONE_PARENT_SETTID as u64 != 0 {
            let _ = write_u32(&window, request.parent_tid, tid);
        }
        if request.flags & libc::CLONE_CHILD_SETTID as u64 != 0 {
            let _ = write_u32(&window, request.child_tid, tid);
        }
        if request.flags & libc::CLONE_CHILD_CLEARTID as u64 != 0 {
            self.clear_child_tid = request.child_tid;
        }
    }

    /// clone of a process: returns its id to the parent and 0 to the child. With CLONE_VFORK the
    /// parent waits until the child executes or ends; even then memory is copied.
    pub fn fork(&mut self, request: &CloneRequest) -> SysResult {
        let vfork = if request.flags & libc::CLONE_VFORK as u64 != 0 { Some(ChildsEnd::new()?) } else { None };
        let process = self.process.clone();
        let old_mask = host_signals::set_mask(SigSet::MAX);
        if self.has_signal() {
            // The child must not have a copy of the signal.
            return Err(Stop::Restart);
        }
        let (mut space, actions, mut own_memory) = (process.space(), process.actions(), process.own_memory.lock());
        process.observer.before_fork();
        // SAFETY: see the module's head.
        let pid = unsafe { libc::fork() };
        let error = Errno::last();
        if pid != 0 {
            process.observer.after_fork_parent();
        } else {
            process.observer.after_fork_child();
            space.after_fork_child();
            own_memory.after_fork_child();
            if request.flags & libc::CLONE_VM as u64 == 0 {
                space.leave_out_on_fork();
            }
        }
        drop((space, actions, own_memory));
        if pid == 0 {
            vfork.into_iter().for_each(ChildsEnd::hold_in_child);
            self.enter_fork_child(request)?;
            host_signals::set_mask(old_mask);
            return Ok(0);
        }
        host_signals::set_mask(old_mask);
        if pid < 0 {
            return Err(error.into());
        }
        // A vfork's parent is not interrupted by signals; they wait.
        vfork.into_iter().for_each(|end| end.wait(pid));
        if request.flags & libc::CLONE_PARENT_SETTID as u64 != 0 {
            let _ = write_u32(&process.window, request.parent_tid, pid as u32);
        }
        Ok(pid as u64)
    }

    fn enter_fork_child(&mut self, request: &CloneRequest) -> Result<(), Errno> {
        self.registration.after_fork_child()?;
        self.process.thread_count.store(1, Ordering::Release);
        (self.robust_list, self.clear_child_tid) = (0, 0);
        self.queued.clear();
        self.store_tids(request);
        apply(request, &mut self.hart);
        Ok(())
    }
}

/// Stack and thread pointer of a clone's child.
fn apply(request: &CloneRequest, hart: &mut Hart) {
    if request.stack != 0 {
        hart.x[2] = request.stack;
    }
    if request.flags & libc::CLONE_SETTLS as u64 != 0 {
        hart.x[4] = request.tls;
    }
    hart.reserved = 0;
}

/// Ends the process with all its threads, at once.
pub fn exit_process(status: i32) -> ! {
    // SAFETY: nothing is left to do after the guest's end.
    unsafe { libc::_exit(status) }
}

/// Ends the calling host thread alone; the process goes on with the others.
pub fn end_host_thread() -> ! {
    loop {
        // SAFETY: the thread's stack and locals stay mapped and unused.
        unsafe { libc::syscall(libc::SYS_exit, 0) };
    }
}
