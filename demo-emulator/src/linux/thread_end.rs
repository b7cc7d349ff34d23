//! The end of a guest thread: its robust mutexes, its waiter, the process's end after the last one.
//!
//! # Safety
//!
//! The unsafe block wakes a futex, a system call that touches no memory.
#![allow(unsafe_code)]

use super::host_signals::{self, SigSet};
use super::thread::Thread;
use super::user_memory::{host_pointer, read_u64, write_u32};

impl Thread {
    /// Linux's steps at the end of a thread. The last thread's status is the process's. A thread
    /// stops counting before its joiners wake: otherwise a status given after a join could lose to
    /// the joined thread's.
    pub(super) fn end(&self, status: i32) {
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
}
