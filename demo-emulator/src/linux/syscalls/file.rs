//! Files: opening, fcntl, ioctl, links; and the few files of `/proc` that must describe the guest.

use std::fmt::Write;
use std::os::fd::IntoRawFd;
use std::os::unix::ffi::OsStrExt;

use super::super::errno::{Errno, SysResult};
use super::super::processor;
use super::super::program::{c_path, in_sysroot};
use super::super::thread::Thread;
use super::super::user_memory::write_bytes;
use super::super::vma::Kind;
use super::file_change;
use super::open_flags;
use super::path::{as_path, host_path, own_proc_entry, read_path};

/// openat.
pub(super) fn open(thread: &mut Thread, [dir, path, flags, mode, ..]: [u64; 6]) -> SysResult {
    let name = read_path(thread, path)?;
    let contents = match own_proc_entry(&name) {
        Some(b"maps") => Some(maps(thread)),
        Some(b"cmdline") => Some(thread.process.argv.iter().flat_map(|a| a.iter().copied().chain([0])).collect()),
        None if name == b"/proc/cpuinfo" => Some(processor::cpuinfo()),
        _ => None,
    };
    if let Some(contents) = contents {
        return open_contents(&contents, flags);
    }
    let path = host_path(thread, path)?;
    let flags = open_flags::to_host(flags);
    let arguments = [dir, path.as_ptr() as u64, flags, mode, 0, 0];
    let fd = if flags & libc::O_TRUNC as u64 == 0 {
        thread.host_call(libc::SYS_openat, arguments)?
    } else {
        file_change::truncating_open(thread, dir as i32, &path, flags, || {
            thread.host_call(libc::SYS_openat, arguments)
        })?
    };
    thread.process.own_memory.opened(fd as i32);
    Ok(fd)
}

/// A descriptor that reads `contents`.
fn open_contents(contents: &[u8], flags: u64) -> SysResult {
    let mut memfd_flags = rustix::fs::MemfdFlags::empty();
    if flags & libc::O_CLOEXEC as u64 != 0 {
        memfd_flags |= rustix::fs::MemfdFlags::CLOEXEC;
    }
    let file = rustix::fs::memfd_create("proc", memfd_flags).map_err(Errno::from)?;
    let mut rest = contents;
    while !rest.is_empty() {
        let written = rustix::io::write(&file, rest).map_err(Errno::from)?;
        rest = &rest[written..];
    }
    rustix::fs::seek(&file, rustix::fs::SeekFrom::Start(0)).map_err(Errno::from)?;
    Ok(file.into_raw_fd() as u64)
}

/// `/proc/self/maps` of the guest.
fn maps(thread: &Thread) -> Vec<u8> {
    let mut text = String::new();
    let stack_pointer = thread.hart.x[2];
    for mapping in thread.process.space().mappings().iter() {
        let bit = |bit: u8, letter: char| if mapping.prot & bit != 0 { letter } else { '-' };
        let (shared, offset, device, inode) = match mapping.kind {
            Kind::Private => ('p', 0, 0, 0),
            Kind::Shared { device, inode, offset } => ('s', offset, device, inode),
        };
        let name = if (mapping.start..mapping.end).contains(&stack_pointer) { "[stack]" } else { "" };
        let _ = writeln!(
            text,
            "{:08x}-{:08x} {}{}{}{shared} {offset:08x} {:02x}:{:02x} {inode} {name}",
            mapping.start,
            mapping.end,
            bit(1, 'r'),
            bit(2, 'w'),
            bit(4, 'x'),
            device >> 8 & 0xff,
            device & 0xff,
        );
    }
    text.into_bytes()
}

/// readlinkat.
pub(super) fn read_link(thread: &mut Thread, [dir, path, buffer, len, ..]: [u64; 6]) -> SysResult {
    let name = read_path(thread, path)?;
    if own_proc_entry(&name) == Some(b"exe") {
        let target = thread.process.executable.as_os_str().as_bytes();
        let target = &target[..target.len().min(len as usize)];
        write_bytes(&thread.process.window, buffer, target)?;
        return Ok(target.len() as u64);
    }
    let path = c_path(&in_sysroot(thread.process.options.sysroot.as_deref(), as_path(&name)))?;
    let (pointer, _write) = thread.out_pointer(buffer, len)?;
    thread.host_call(libc::SYS_readlinkat, [dir, path.as_ptr() as u64, pointer, len, 0, 0])
}

/// fcntl: the commands are the same on all machines, and so is `struct flock`.
pub(super) fn control(thread: &mut Thread, [fd, command, argument, ..]: [u64; 6]) -> SysResult {
    const F_SETOWN_EX: i32 = 15;
    const F_GETOWN_EX: i32 = 16;
    const FLOCK_BYTES: u64 = 32;
    let written = match command as i32 {
        libc::F_GETFL => return thread.host_call(libc::SYS_fcntl, [fd, command, 0, 0, 0, 0]).map(open_flags::to_guest),
        libc::F_SETFL => {
            return thread.host_call(libc::SYS_fcntl, [fd, command, open_flags::to_host(argument), 0, 0, 0]);
        }
        libc::F_GETLK | libc::F_OFD_GETLK => FLOCK_BYTES,
        libc::F_SETLK | libc::F_SETLKW | libc::F_OFD_SETLK | libc::F_OFD_SETLKW => FLOCK_BYTES,
        F_SETOWN_EX | F_GETOWN_EX => 8,
        libc::F_DUPFD
        | libc::F_DUPFD_CLOEXEC
        | libc::F_GETFD
        | libc::F_SETFD
        | libc::F_GETOWN
        | libc::F_SETOWN
        | libc::F_GETPIPE_SZ
        | libc::F_SETPIPE_SZ
        | libc::F_ADD_SEALS
        | libc::F_GET_SEALS
        | libc::F_GETLEASE
        | libc::F_SETLEASE
        | libc::F_NOTIFY => {
            return thread.host_call(libc::SYS_fcntl, [fd, command, argument, 0, 0, 0]);
        }
        _ => return Err(Errno::EINVAL.into()),
    };
    let (pointer, _write) = thread.out_pointer(argument, written)?;
    thread.host_call(libc::SYS_fcntl, [fd, command, pointer, 0, 0, 0])
}

/// Put another file's bytes into this one.
const FICLONE: u64 = 0x4004_9409;
const FICLONERANGE: u64 = 0x4020_940d;

/// The kind of an ioctl's argument.
enum Device {
    Number,
    Pointer(u64),
    Unknown,
}

/// riscv64 and the hosts share the generic ioctl numbers and structures.
fn device_argument(request: u64) -> Device {
    use Device::{Number, Pointer, Unknown};
    match request {
        // TCGETS, TCSETS, TCSETSW, TCSETSF and their termio forms; TCGETS2 and on
        // carry their size.
        0x5401..=0x5404 => Pointer(36),
        0x5405..=0x5408 => Pointer(18),
        // TCSBRK, TCXONC, TCFLSH, TIOCEXCL, TIOCNXCL, TIOCSCTTY
        0x5409..=0x540e => Number,
        // TIOCGPGRP, TIOCSPGRP, TIOCOUTQ
        0x540f..=0x5411 => Pointer(4),
        // TIOCSTI
        0x5412 => Pointer(1),
        // TIOCGWINSZ, TIOCSWINSZ
        0x5413 | 0x5414 => Pointer(8),
        // TIOCMGET to TIOCGSOFTCAR, TIOCSSOFTCAR, FIONREAD
        0x5415..=0x541b => Pointer(4),
        // FIONBIO, TIOCGETD, TIOCSETD
        0x5421 | 0x5423 | 0x5424 => Pointer(4),
        // TIOCNOTTY, TCSBRKP, TIOCSBRK, TIOCCBRK
        0x5422 | 0x5425 | 0x5427 | 0x5428 => Number,
        // TIOCGSID
        0x5429 => Pointer(4),
        // FIONCLEX, FIOCLEX
        0x5450 | 0x5451 => Number,
        // FIOASYNC
        0x5452 => Pointer(4),
        // TIOCGPTPEER and FICLONE look like others and take a number
        0x5441 | FICLONE => Number,
        // SIOCGIFNAME to SIOCGIFINDEX: struct ifreq; SIOCGIFCONF holds a pointer.
        0x8912 => Unknown,
        0x8910..=0x8933 => Pointer(40),
        // Numbers that carry the size of their argument's target.
        _ if request >> 30 & 3 != 0 && request >> 16 & 0x3fff != 0 => Pointer(request >> 16 & 0x3fff),
        _ => Unknown,
    }
}

/// ioctl.
pub(super) fn device_control(thread: &mut Thread, [fd, request, argument, ..]: [u64; 6]) -> SysResult {
    let request = request & 0xffff_ffff;
    let _change = if matches!(request, FICLONE | FICLONERANGE) { file_change::of_all(thread, fd) } else { None };
    match device_argument(request) {
        Device::Number => thread.host_call(libc::SYS_ioctl, [fd, request, argument, 0, 0, 0]),
        Device::Pointer(len) => {
            let (pointer, _write) = thread.out_pointer(argument, len)?;
            thread.host_call(libc::SYS_ioctl, [fd, request, pointer, 0, 0, 0])
        }
        Device::Unknown => Err(Errno::ENOTTY.into()),
    }
}
