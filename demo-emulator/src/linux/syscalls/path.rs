//! Paths that the guest names, and the host's paths for them.

use std::ffi::{CString, OsStr};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use super::super::errno::Errno;
use super::super::program::{c_path, in_sysroot};
use super::super::thread::Thread;
use super::super::user_memory::{PATH_MAX, read_string};

/// The guest's path at `address`.
pub(super) fn read_path(thread: &Thread, address: u64) -> Result<Vec<u8>, Errno> {
    read_string(&thread.process.window, address, PATH_MAX)
}

/// Those bytes as a path.
pub(super) fn as_path(bytes: &[u8]) -> &Path {
    Path::new(OsStr::from_bytes(bytes))
}

/// The entry of this process below `/proc` that `path` names, "exe" for instance.
pub(super) fn own_proc_entry(path: &[u8]) -> Option<&[u8]> {
    let rest = path.strip_prefix(b"/proc/")?;
    let pid = std::process::id().to_string();
    [&b"self"[..], b"thread-self", pid.as_bytes()].iter().find_map(|who| rest.strip_prefix(*who)?.strip_prefix(b"/"))
}

/// The host's path for a guest's.
pub(super) fn host_path(thread: &Thread, address: u64) -> Result<CString, Errno> {
    let path = read_path(thread, address)?;
    if own_proc_entry(&path) == Some(b"exe") {
        return c_path(&thread.process.executable);
    }
    c_path(&in_sysroot(thread.process.options.sysroot.as_deref(), as_path(&path)))
}

/// Whether `path` is the guest's own executable in `/proc`.
pub(super) fn is_own_executable(path: &Path) -> bool {
    own_proc_entry(path.as_os_str().as_bytes()) == Some(b"exe")
}
