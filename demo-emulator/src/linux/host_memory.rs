//! The host mappings under the guest's window.
//!
//! # Safety
//!
//! Every range handed to these functions must lie inside the guest's window,
//! which the emulator reserved for the guest and to which no Rust reference is
//! ever formed: the callers are the address space and the observers, which take
//! ranges from it. Replacing such a mapping or its contents can break no object
//! of this process.
#![allow(unsafe_code)]

use std::os::fd::RawFd;

use codewarden::addr::HostRange;
use codewarden::protection::Access;

use super::errno::Errno;

/// What `access` means to mprotect. Guest code is never executable on the host.
pub fn host_protection(access: Access) -> i32 {
    match access {
        Access::None => libc::PROT_NONE,
        Access::Read => libc::PROT_READ,
        Access::ReadWrite => libc::PROT_READ | libc::PROT_WRITE,
    }
}

fn check(result: i32) -> Result<(), Errno> {
    if result == 0 { Ok(()) } else { Err(Errno::last()) }
}

/// mprotect.
pub fn protect(range: HostRange, access: Access) -> Result<(), Errno> {
    // SAFETY: a range of the guest's window (module head).
    check(unsafe { libc::mprotect(range.start().as_ptr().cast(), range.len(), host_protection(access)) })
}

/// Throws the contents of private anonymous memory away: it reads as zero.
pub fn discard(range: HostRange) -> Result<(), Errno> {
    advise(range, libc::MADV_DONTNEED)
}

/// madvise.
pub fn advise(range: HostRange, advice: i32) -> Result<(), Errno> {
    // SAFETY: a range of the guest's window (module head).
    check(unsafe { libc::madvise(range.start().as_ptr().cast(), range.len(), advice) })
}

/// Puts a fresh, inaccessible private anonymous mapping there.
pub fn map_reserve(range: HostRange) -> Result<(), Errno> {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_FIXED;
    map_fixed(range, libc::PROT_NONE, flags, -1, 0)
}

/// Puts a shared mapping of `fd` (or anonymous shared memory, -1) there.
pub fn map_shared(range: HostRange, access: Access, fd: RawFd, offset: u64) -> Result<(), Errno> {
    let mut flags = libc::MAP_SHARED | libc::MAP_FIXED | libc::MAP_NORESERVE;
    if fd < 0 {
        flags |= libc::MAP_ANONYMOUS;
    }
    map_fixed(range, host_protection(access), flags, fd, offset)
}

fn map_fixed(range: HostRange, prot: i32, flags: i32, fd: RawFd, offset: u64) -> Result<(), Errno> {
    let start = range.start().as_ptr().cast();
    // SAFETY: MAP_FIXED replaces a range of the guest's window (module head).
    let mapped = unsafe { libc::mmap(start, range.len(), prot, flags, fd, offset as libc::off_t) };
    if mapped == libc::MAP_FAILED { Err(Errno::last()) } else { Ok(()) }
}

/// Moves the shared mapping `from` over `to`; `from` becomes inaccessible.
pub fn move_mapping(from: HostRange, to: HostRange) -> Result<(), Errno> {
    let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
    let (old, new) = (from.start().as_ptr().cast(), to.start().as_ptr());
    // SAFETY: both are ranges of the guest's window (module head).
    let moved = unsafe { libc::mremap(old, from.len(), to.len(), flags, new) };
    if moved == libc::MAP_FAILED {
        return Err(Errno::last());
    }
    map_reserve(from)
}

/// Shows the shared memory at the start of `from` at `to` as well, with `access`,
/// whatever the host lets be done with `from` now.
pub fn show_again(from: HostRange, to: HostRange, access: Access) -> Result<(), Errno> {
    let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
    let (old, new) = (from.start().as_ptr().cast(), to.start().as_ptr());
    // SAFETY: both are ranges of the guest's window (module head).
    let shown = unsafe { libc::mremap(old, 0, to.len(), flags, new) };
    if shown == libc::MAP_FAILED { Err(Errno::last()) } else { protect(to, access) }
}

/// Reads up to the length of `range` from `fd` at `offset` into it, which must
/// be writable; the rest stays zero. A file that ends early is no error.
pub fn read_file(range: HostRange, fd: RawFd, offset: u64) -> Result<(), Errno> {
    let mut done = 0;
    while done < range.len() {
        let start = range.start().as_ptr().wrapping_add(done).cast();
        // SAFETY: the kernel writes into a range of the guest's window only.
        let read = unsafe { libc::pread64(fd, start, range.len() - done, (offset + done as u64) as i64) };
        match read {
            0 => break,
            n if n > 0 => done += n as usize,
            _ => match Errno::last() {
                Errno::EINTR => continue,
                errno => return Err(errno),
            },
        }
    }
    Ok(())
}

/// Copies the pages of `from` to `to`, which is zero and writable; pages that
/// are zero are not touched, so sparse memory stays sparse.
pub fn copy_pages(from: HostRange, to: HostRange, page_bytes: usize) {
    for offset in (0..from.len().min(to.len())).step_by(page_bytes) {
        let source = from.start().as_ptr().wrapping_add(offset);
        // SAFETY: whole readable pages of the guest's window; as raw bytes, since
        // other harts may write them meanwhile, which is the guest's own race.
        unsafe {
            let words = source.cast::<u64>();
            if (0..page_bytes / 8).any(|i| words.add(i).read_volatile() != 0) {
                core::ptr::copy_nonoverlapping(source, to.start().as_ptr().wrapping_add(offset), page_bytes);
            }
        }
    }
}

/// Whether each page is resident: mincore.
pub fn residency(range: HostRange, pages: &mut [u8]) -> Result<(), Errno> {
    debug_assert!(pages.len() * rustix::param::page_size() >= range.len());
    // SAFETY: the vector has a byte for each page of the range.
    check(unsafe { libc::mincore(range.start().as_ptr().cast(), range.len(), pages.as_mut_ptr()) })
}

/// Writes to standard error with no lock that a fork could copy while held.
pub fn write_stderr(mut bytes: &[u8]) -> std::io::Result<()> {
    while !bytes.is_empty() {
        // SAFETY: the kernel reads the bytes of a slice.
        match unsafe { libc::write(libc::STDERR_FILENO, bytes.as_ptr().cast(), bytes.len()) } {
            n if n > 0 => bytes = &bytes[n as usize..],
            _ => return Err(std::io::Error::last_os_error()),
        }
    }
    Ok(())
}
