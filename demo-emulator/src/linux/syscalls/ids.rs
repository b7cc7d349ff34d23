//! Supplementary groups: the length is a count, not bytes.

use super::super::errno::{Errno, SysResult};
use super::super::thread::Thread;

/// NGROUPS_MAX.
const GROUPS_MAX: u64 = 65536;

fn bytes(count: u64) -> Result<u64, Errno> {
    let count = u64::from(count as u32);
    if count > GROUPS_MAX { Err(Errno::EINVAL) } else { Ok(count * 4) }
}

/// getgroups.
pub(super) fn get_groups(thread: &mut Thread, [count, groups, ..]: [u64; 6]) -> SysResult {
    let (pointer, _write) = thread.out_pointer(groups, bytes(count)?)?;
    thread.host_call(libc::SYS_getgroups, [count, pointer, 0, 0, 0, 0])
}

/// setgroups.
pub(super) fn set_groups(thread: &mut Thread, [count, groups, ..]: [u64; 6]) -> SysResult {
    let pointer = thread.pointer(groups, bytes(count)?)?;
    thread.host_call(libc::SYS_setgroups, [count, pointer, 0, 0, 0, 0])
}
