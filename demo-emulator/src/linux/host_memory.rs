//! The host mappings under the guest's window.
//!
//! # Safety
//!
//! Every range passed to these functions must lie inside the guest's window. The emulator reserved
//! the window for the guest, and no Rust reference to it is ever formed. The callers are the
//! address space and the observers, which take ranges from it. So replacing such a mapping or its
//! contents breaks no object of this process.
#![allow(unsafe_code)]

use std::os::fd::RawFd;

use codewarden::addr::HostRange;
use codewarden::protection::Access;

use super::errno::Errno;

/// mprotect's bits for `access`. Guest code is never executable on the host.
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

/// madvise.
pub fn advise(range: HostRange, advice: i32) -> Result<(), Errno> {
    // SAFETY: a range of the guest's window (module head).
    check(unsafe { libc::madvise(range.start().as_ptr().cast(), range.len(), advice) })
}

/// Puts a new, inaccessible private anonymous mapping there, in place of any other.
pub fn map_reserve(range: HostRange) -> Result<(), Errno> {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_FIXED;
    // SAFETY: MAP_FIXED replaces a range of the guest's window (module head).
    let mapped = unsafe { libc::mmap(range.start().as_ptr().cast(), range.len(), libc::PROT_NONE, flags, -1, 0) };
    if mapped == libc::MAP_FAILED { Err(Errno::last()) } else { Ok(()) }
}

/// Reads up to `len_bytes` from `fd` at `offset` to `to`; bytes beyond the file's end stay
/// unchanged. A file that ends early is no error.
///
/// # Safety
///
/// `to` may be written, and no other code uses it.
pub unsafe fn read_file(to: *mut u8, len_bytes: usize, fd: RawFd, offset: u64) -> Result<(), Errno> {
    let mut done = 0;
    while done < len_bytes {
        // SAFETY: the caller's promise.
        let read = unsafe { libc::pread64(fd, to.add(done).cast(), len_bytes - done, (offset + done as u64) as i64) };
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

/// Copies the pages of `from`, which must be readable, to `to`, which is zero. Pages of zeros are
/// not copied, so sparse memory stays sparse.
///
/// # Safety
///
/// As many bytes at `to` may be written, and no other code uses them.
pub unsafe fn copy_pages(from: HostRange, to: *mut u8) {
    let page_bytes = rustix::param::page_size();
    for offset in (0..from.len()).step_by(page_bytes) {
        let source = from.start().as_ptr().wrapping_add(offset);
        // SAFETY: whole readable pages of the guest's window; as raw bytes, since the kernel may
        // write them meanwhile, which is the guest's own race. The caller answers for the target.
        unsafe {
            let words = source.cast::<u64>();
            if (0..page_bytes / 8).any(|i| words.add(i).read_volatile() != 0) {
                core::ptr::copy_nonoverlapping(source, to.add(offset), page_bytes);
            }
        }
    }
}

/// Whether each of its pages is mapped.
pub fn is_mapped(range: HostRange) -> bool {
    // SAFETY: no effect but the answer.
    unsafe { libc::msync(range.start().as_ptr().cast(), range.len(), libc::MS_ASYNC) == 0 }
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
