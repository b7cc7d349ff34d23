//! clone, futex and the list of mutexes that a dying thread holds.

use super::super::clone::CloneRequest;
use super::super::errno::{Errno, Stop, SysResult};
use super::super::thread::Thread;
use super::super::user_memory::write_u64;

/// clone: with CLONE_VM and CLONE_THREAD a thread, otherwise a process with a copy of the memory
/// (vfork and posix_spawn, too). RISC-V takes the thread pointer before the child's id.
pub(super) fn clone(thread: &mut Thread, [flags, stack, parent_tid, tls, child_tid, _]: [u64; 6]) -> SysResult {
    let request = CloneRequest { flags, stack, parent_tid, tls, child_tid };
    let as_thread = libc::CLONE_VM | libc::CLONE_THREAD | libc::CLONE_SIGHAND | libc::CLONE_FS | libc::CLONE_FILES;
    if request.has(libc::CLONE_THREAD) {
        // A host thread cannot share less than a POSIX thread does.
        if flags as i32 & as_thread != as_thread {
            return Err(Errno::EINVAL.into());
        }
        return Err(Stop::Spawn(request));
    }
    let namespaces = libc::CLONE_NEWNS | libc::CLONE_NEWUSER | libc::CLONE_NEWPID | libc::CLONE_NEWNET;
    if flags as i32 & namespaces != 0 || request.has(libc::CLONE_VM) && !request.has(libc::CLONE_VFORK) {
        return Err(Errno::EINVAL.into());
    }
    thread.fork(&request)
}

/// set_tid_address.
pub(super) fn set_tid_address(thread: &mut Thread, [address, ..]: [u64; 6]) -> SysResult {
    thread.clear_child_tid = address;
    Ok(thread.tid().into())
}

/// Size of `struct robust_list_head`.
const ROBUST_HEAD_BYTES: u64 = 24;

/// set_robust_list. The host must not see the list: its pointers are the guest's.
pub(super) fn set_robust_list(thread: &mut Thread, [head, len, ..]: [u64; 6]) -> SysResult {
    if len != ROBUST_HEAD_BYTES {
        return Err(Errno::EINVAL.into());
    }
    thread.robust_list = head;
    Ok(0)
}

/// get_robust_list, of the calling thread.
pub(super) fn get_robust_list(thread: &mut Thread, [tid, head, len, ..]: [u64; 6]) -> SysResult {
    if tid != 0 && tid as u32 != thread.tid() {
        return Err(Errno::EPERM.into());
    }
    write_u64(&thread.process.window, head, thread.robust_list)?;
    write_u64(&thread.process.window, len, ROBUST_HEAD_BYTES)?;
    Ok(0)
}

/// futex: on the host's addresses, so that it works between processes too.
pub(super) fn futex(thread: &mut Thread, [address, operation, value, timeout, second, value3]: [u64; 6]) -> SysResult {
    const TIMESPEC_BYTES: u64 = 16;
    let is_shared = operation as i32 & libc::FUTEX_PRIVATE_FLAG == 0;
    let command = operation as i32 & !(libc::FUTEX_PRIVATE_FLAG | libc::FUTEX_CLOCK_REALTIME);
    // The kernel looks up the page of a shared futex as for a write, for every command.
    let word = |address, is_written| {
        if is_shared || is_written { thread.out_pointer(address, 4) } else { Ok((thread.pointer(address, 4)?, None)) }
    };
    let locks = matches!(command, libc::FUTEX_LOCK_PI | libc::FUTEX_TRYLOCK_PI | libc::FUTEX_UNLOCK_PI);
    let (first, _first_write) = word(address, locks)?;
    let mut arguments = [first, operation, value, timeout, second, value3];
    let waits = matches!(command, libc::FUTEX_WAIT | libc::FUTEX_WAIT_BITSET | libc::FUTEX_WAIT_REQUEUE_PI);
    if locks || waits {
        arguments[3] = thread.pointer(timeout, TIMESPEC_BYTES)?;
    }
    let mut _second_write = None;
    match command {
        libc::FUTEX_WAKE | libc::FUTEX_WAKE_BITSET => {}
        libc::FUTEX_REQUEUE | libc::FUTEX_CMP_REQUEUE => (arguments[4], _second_write) = word(second, false)?,
        libc::FUTEX_WAKE_OP | libc::FUTEX_WAIT_REQUEUE_PI | libc::FUTEX_CMP_REQUEUE_PI => {
            (arguments[4], _second_write) = word(second, true)?;
        }
        _ if locks || waits => {}
        _ => return Err(Errno::ENOSYS.into()),
    }
    thread.host_call(libc::SYS_futex, arguments)
}
