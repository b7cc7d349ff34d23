//! execve, exit, limits and prctl.

use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::super::errno::{Errno, Stop, SysResult};
use super::super::program::{self, Found, c_path, in_sysroot};
use super::super::thread::Thread;
use super::super::user_memory::{Fields, read_array, read_strings, word_at, write_bytes};
use super::path::{as_path, is_own_executable, read_path};

/// exit.
pub(super) fn exit(_thread: &mut Thread, [status, ..]: [u64; 6]) -> SysResult {
    Err(Stop::ThreadExit((status & 0xff) as i32))
}

/// exit_group.
pub(super) fn exit_group(thread: &mut Thread, [status, ..]: [u64; 6]) -> SysResult {
    if thread.process.options.trace {
        thread.process.trace("\n");
    }
    thread.process.exit((status & 0xff) as i32)
}

/// execve.
pub(super) fn execute(thread: &mut Thread, [path, argv, envp, ..]: [u64; 6]) -> SysResult {
    let name = read_path(thread, path)?;
    execute_path(thread, as_path(&name), argv, envp)
}

/// execveat: with a path, or with AT_EMPTY_PATH a descriptor.
pub(super) fn execute_at(thread: &mut Thread, [dir, path, argv, envp, flags, _]: [u64; 6]) -> SysResult {
    let name = read_path(thread, path)?;
    let name = match as_path(&name) {
        relative if relative.is_absolute() || dir as i32 == libc::AT_FDCWD => relative.to_path_buf(),
        empty if empty.as_os_str().is_empty() && flags & libc::AT_EMPTY_PATH as u64 == 0 => {
            return Err(Errno::ENOENT.into());
        }
        relative => PathBuf::from(format!("/proc/self/fd/{}", dir as i32)).join(relative),
    };
    // The descriptor may be closed on execution: follow it now.
    let name = if name.starts_with("/proc/self/fd") { name.canonicalize().map_err(Errno::from)? } else { name };
    execute_path(thread, &name, argv, envp)
}

/// A guest program runs in a new emulator with the same options; a program of the host's own
/// machine runs directly. All others give ENOEXEC, so that a shell reads a script without a first
/// line itself.
fn execute_path(thread: &Thread, name: &Path, argv: u64, envp: u64) -> SysResult {
    let process = &thread.process;
    let sysroot = process.options.sysroot.as_deref();
    let path = if is_own_executable(name) { process.executable.clone() } else { in_sysroot(sysroot, name) };
    let mut argv = read_strings(&process.window, argv)?;
    let envp = read_strings(&process.window, envp)?;
    if argv.is_empty() {
        argv.push(Vec::new());
    }
    let refused = |error: program::LoadError| Stop::Errno(error.errno());
    // The kernel makes execve's access check; this check finds the program that runs the file.
    Found::open(&path).map_err(refused)?;
    let (found, _) = program::resolve(&path, argv.clone(), sysroot).map_err(refused)?;
    let (program, argv) = if found.is_riscv() {
        let mut command = vec![b"demo-emulator".to_vec()];
        command.extend(process.options.inherited.iter().cloned());
        command.extend([b"-0".to_vec(), argv[0].clone(), b"--".to_vec(), path.as_os_str().as_bytes().to_vec()]);
        command.extend(argv.into_iter().skip(1));
        // The thread's own, because the first thread may have ended.
        (c"/proc/thread-self/exe".to_owned(), command)
    } else if found.is_elf() {
        (c_path(&path)?, argv)
    } else {
        return Err(Errno::ENOEXEC.into());
    };
    let (argv, argv_pointers) = c_strings(argv)?;
    let (envp, envp_pointers) = c_strings(envp)?;
    let arguments = [program.as_ptr() as u64, argv_pointers.as_ptr() as u64, envp_pointers.as_ptr() as u64, 0, 0, 0];
    let result = thread.host_call(libc::SYS_execve, arguments);
    drop((argv, envp));
    result
}

/// Strings for the kernel, and the array of their addresses.
fn c_strings(strings: Vec<Vec<u8>>) -> Result<(Vec<CString>, Vec<u64>), Errno> {
    let strings: Result<Vec<_>, _> = strings.into_iter().map(CString::new).collect();
    let strings = strings.map_err(|_| Errno::EINVAL)?;
    let pointers = strings.iter().map(|s| s.as_ptr() as u64).chain([0]).collect();
    Ok((strings, pointers))
}

/// Limits on the emulator's own memory would be limits on the window: the guest is told that they
/// are set.
fn is_pretended(resource: u64) -> bool {
    matches!(resource as u32, libc::RLIMIT_AS | libc::RLIMIT_DATA | libc::RLIMIT_STACK)
}

/// prlimit64.
pub(super) fn limit(thread: &mut Thread, [pid, resource, new, old, ..]: [u64; 6]) -> SysResult {
    let window = thread.process.window;
    let mut wanted = [0u64; 2];
    if new != 0 {
        let bytes: [u8; 16] = read_array(&window, new)?;
        wanted = [word_at(&bytes, 0), word_at(&bytes, 8)];
    }
    let mut before = [0u64; 2];
    let new = if new == 0 || is_pretended(resource) { 0 } else { wanted.as_ptr() as u64 };
    thread.host_call(libc::SYS_prlimit64, [pid, resource, new, before.as_mut_ptr() as u64, 0, 0])?;
    if resource as u32 == libc::RLIMIT_STACK {
        before[0] = thread.process.options.stack_bytes;
    }
    if old != 0 {
        write_bytes(&window, old, &Fields::default().u64s(&before).0)?;
    }
    Ok(0)
}

/// getrlimit.
pub(super) fn get_limit(thread: &mut Thread, [resource, old, ..]: [u64; 6]) -> SysResult {
    limit(thread, [0, resource, 0, old, 0, 0])
}

/// setrlimit.
pub(super) fn set_limit(thread: &mut Thread, [resource, new, ..]: [u64; 6]) -> SysResult {
    limit(thread, [0, resource, new, 0, 0, 0])
}

/// prctl: the options that are of use to a user program.
pub(super) fn control(thread: &mut Thread, [option, a, b, c, d, _]: [u64; 6]) -> SysResult {
    const PR_RISCV_SET_ICACHE_FLUSH_CTX: i32 = 71;
    const NAME_BYTES: u64 = 16;
    let (pointer_bytes, number) = match option as i32 {
        // The guest may then use FENCE.I itself, which always works here.
        PR_RISCV_SET_ICACHE_FLUSH_CTX => return Ok(0),
        libc::PR_SET_NAME | libc::PR_GET_NAME => (NAME_BYTES, false),
        libc::PR_GET_PDEATHSIG | libc::PR_GET_CHILD_SUBREAPER => (4, false),
        libc::PR_SET_PDEATHSIG
        | libc::PR_GET_DUMPABLE
        | libc::PR_SET_DUMPABLE
        | libc::PR_GET_KEEPCAPS
        | libc::PR_SET_KEEPCAPS
        | libc::PR_SET_NO_NEW_PRIVS
        | libc::PR_GET_NO_NEW_PRIVS
        | libc::PR_SET_CHILD_SUBREAPER
        | libc::PR_SET_TIMERSLACK
        | libc::PR_GET_TIMERSLACK
        | libc::PR_GET_SECCOMP
        | libc::PR_CAPBSET_READ
        | libc::PR_GET_SECUREBITS
        | libc::PR_SET_PTRACER => (0, true),
        _ => return Err(Errno::EINVAL.into()),
    };
    if number {
        return thread.host_call(libc::SYS_prctl, [option, a, b, c, d, 0]);
    }
    let (pointer, _write) = thread.out_pointer(a, pointer_bytes)?;
    thread.host_call(libc::SYS_prctl, [option, pointer, b, c, d, 0])
}
