//! clone of a process, and the part of clone that a new thread shares with it.
//!
//! During a fork the address space and the signal actions are locked, so the child finds both
//! complete. Every signal is blocked, so the child has its own entry in the table of mailboxes
//! before a signal can reach it.
//!
//! # Safety
//!
//! The unsafe block forks the process. After the fork the child runs Rust code, which is sound with
//! glibc's `fork` wrapper: it puts malloc and stdio into order. The forking thread, which is the
//! one in the child, holds the locks of this crate that matter.
#![allow(unsafe_code)]

use std::sync::atomic::Ordering;

use crate::hart::Hart;

use super::clone::CloneRequest;
use super::errno::{Errno, Stop, SysResult};
use super::host_signals::{self, SigSet};
use super::thread::Thread;
use super::user_memory::write_u32;
use super::vfork::VforkWait;

impl Thread {
    /// The registers of a new thread.
    pub(super) fn child_hart(&self, request: &CloneRequest) -> Box<Hart> {
        let mut hart = Box::new(Hart::new(self.hart.pc.wrapping_add(4)));
        (hart.x, hart.f) = (self.hart.x, self.hart.f);
        (hart.fflags, hart.frm) = (self.hart.fflags, self.hart.frm);
        hart.x[10] = 0;
        request.apply(&mut hart);
        hart
    }

    /// The ids of both kinds of clone; called in the child.
    pub(super) fn store_tids(&mut self, request: &CloneRequest) {
        let (window, tid) = (self.process.window, self.tid());
        // Linux, too, ignores ids that cannot be stored.
        if request.has(libc::CLONE_PARENT_SETTID) {
            let _ = write_u32(&window, request.parent_tid, tid);
        }
        if request.has(libc::CLONE_CHILD_SETTID) {
            let _ = write_u32(&window, request.child_tid, tid);
        }
        if request.has(libc::CLONE_CHILD_CLEARTID) {
            self.clear_child_tid = request.child_tid;
        }
    }

    /// clone of a process: returns its id to the parent and 0 to the child. With CLONE_VFORK the
    /// parent waits until the child executes or ends; even then memory is copied.
    pub fn fork(&mut self, request: &CloneRequest) -> SysResult {
        let vfork = if request.has(libc::CLONE_VFORK) { Some(VforkWait::new()?) } else { None };
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
            if !request.has(libc::CLONE_VM) {
                space.leave_out_on_fork();
            }
        }
        drop((space, actions, own_memory));
        if pid == 0 {
            vfork.into_iter().for_each(VforkWait::hold_in_child);
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
        if request.has(libc::CLONE_PARENT_SETTID) {
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
        request.apply(&mut self.hart);
        Ok(())
    }
}
