//! `/proc/self/mem`, whose addresses are the guest's.
//!
//! The descriptor is the host's own, for this process. The emulator remembers such files of procfs
//! by device and inode, since the guest may get a descriptor in many ways. In reads and writes of
//! such a file, the addresses are moved into the window; see `syscalls::own_memory`.
//!
//! A fork's child has its parent's descriptors, which still access the parent's memory. The
//! emulator lets it read, but refuses its writes: a child cannot tell its parent which code they
//! change.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::host_fs;
use super::vma::FileId;

/// The open files that are this process's memory.
#[derive(Default, Debug)]
pub struct OwnMemory {
    /// Whether there is one: most programs have none.
    is_used: AtomicBool,
    files: Mutex<Files>,
}

/// The files, by owner.
#[derive(Default, Debug)]
pub(super) struct Files {
    own: Vec<FileId>,
    /// The memory of this process's parent, or of an earlier ancestor.
    parents: Vec<FileId>,
}

impl Files {
    /// Called in a fork's child.
    pub(super) fn after_fork_child(&mut self) {
        self.parents.append(&mut self.own);
    }
}

/// The owner of a descriptor's memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Owner {
    /// This process's.
    This,
    /// An ancestor, which forked.
    Parent,
}

/// Device and inode from `stat`.
pub(super) fn file_id(stat: &libc::stat) -> FileId {
    FileId { device: stat.st_dev, inode: stat.st_ino }
}

impl OwnMemory {
    /// All files, for this thread alone. Also held over a fork, so that a child finds the list
    /// complete.
    pub(super) fn lock(&self) -> MutexGuard<'_, Files> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The guest has opened `fd`.
    pub(super) fn opened(&self, fd: i32) {
        let Ok(stat) = host_fs::stat_fd(fd) else { return };
        if stat.st_mode & libc::S_IFMT != libc::S_IFREG || stat.st_size != 0 || !host_fs::is_of_proc(fd) {
            return;
        }
        let Ok(name) = std::fs::read_link(format!("/proc/self/fd/{fd}")) else { return };
        if !is_own(name.as_os_str().as_encoded_bytes()) {
            return;
        }
        let mut files = self.lock();
        if !files.own.contains(&file_id(&stat)) {
            files.own.push(file_id(&stat));
        }
        self.is_used.store(true, Ordering::Release);
    }

    /// The owner of the memory behind `fd`, if `fd` is such a file.
    pub(super) fn owner(&self, fd: i32) -> Option<Owner> {
        if !self.is_used.load(Ordering::Acquire) {
            return None;
        }
        let file = file_id(&host_fs::stat_fd(fd).ok()?);
        let files = self.lock();
        let is_parents = || files.parents.contains(&file).then_some(Owner::Parent);
        if files.own.contains(&file) { Some(Owner::This) } else { is_parents() }
    }
}

/// Whether the procfs file with that name is the memory of this process: `PID/mem` or
/// `PID/task/TID/mem`, below any mount of procfs.
fn is_own(name: &[u8]) -> bool {
    let mut parts = name.rsplit(|byte| *byte == b'/');
    if parts.next() != Some(b"mem") {
        return false;
    }
    let (Some(id), above) = (parts.next(), parts.next()) else { return false };
    let id = if above == Some(b"task") { parts.next().unwrap_or_default() } else { id };
    let Ok(id) = std::str::from_utf8(id) else { return false };
    // A thread, too, has a folder of its own there.
    id.parse::<u32>().is_ok() && std::fs::metadata(format!("/proc/self/task/{id}")).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_the_own_memory_are_known() {
        let pid = std::process::id();
        for name in ["self", "thread-self", &pid.to_string(), &format!("self/task/{pid}")] {
            let own = std::fs::File::open(format!("/proc/{name}/mem")).unwrap();
            let memory = OwnMemory::default();
            use std::os::fd::AsRawFd;
            assert_eq!(memory.owner(own.as_raw_fd()), None);
            memory.opened(own.as_raw_fd());
            assert_eq!(memory.owner(own.as_raw_fd()), Some(Owner::This), "{name}");
            assert_eq!(memory.owner(own.try_clone().unwrap().as_raw_fd()), Some(Owner::This), "a duplicate");
            let other = std::fs::File::open("/proc/self/maps").unwrap();
            memory.opened(other.as_raw_fd());
            assert_eq!(memory.owner(other.as_raw_fd()), None);
            memory.lock().after_fork_child();
            assert_eq!(memory.owner(own.as_raw_fd()), Some(Owner::Parent), "a fork's child");
        }
        assert!(!is_own(b"/proc/1/mem") && !is_own(b"/tmp/mem") && !is_own(b"mem"));
        assert!(!is_own(format!("/proc/{pid}/maps").as_bytes()));
    }
}
