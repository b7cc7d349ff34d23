//! Memory calls, over the address space.

use codewarden::addr::{HostAddr, HostRange, PageSize};

use super::super::address_space::{PAGE_BYTES, Place, Source};
use super::super::errno::{Errno, SysResult};
use super::super::thread::Thread;
use super::super::user_memory::{host_pointer, write_bytes};

const PROT_BITS: u64 = 7;

/// mmap. Flags are the same on both machines.
pub(super) fn map(thread: &mut Thread, [address, len, prot, flags, fd, offset]: [u64; 6]) -> SysResult {
    let has = |flag: i32| flags & flag as u64 != 0;
    let shared = match (flags & libc::MAP_TYPE as u64) as i32 {
        libc::MAP_PRIVATE => false,
        libc::MAP_SHARED | libc::MAP_SHARED_VALIDATE => true,
        _ => return Err(Errno::EINVAL.into()),
    };
    if prot & !PROT_BITS != 0 || !offset.is_multiple_of(PAGE_BYTES) {
        return Err(Errno::EINVAL.into());
    }
    if has(libc::MAP_HUGETLB) {
        return Err(Errno::ENOMEM.into());
    }
    let place = if has(libc::MAP_FIXED_NOREPLACE) {
        Place::FixedNoReplace(address)
    } else if has(libc::MAP_FIXED) {
        Place::Fixed(address)
    } else {
        Place::Hint(address)
    };
    let source = match (has(libc::MAP_ANONYMOUS), shared) {
        (true, false) => Source::Anonymous,
        (true, true) => Source::AnonymousShared,
        (false, false) => Source::File { fd: fd as i32, offset },
        (false, true) => Source::FileShared { fd: fd as i32, offset },
    };
    Ok(thread.process.space().map(place, len, prot as u8, source)?)
}

/// munmap.
pub(super) fn unmap(thread: &mut Thread, [address, len, ..]: [u64; 6]) -> SysResult {
    thread.process.space().unmap(address, len)?;
    Ok(0)
}

/// mprotect.
pub(super) fn protect(thread: &mut Thread, [address, len, prot, ..]: [u64; 6]) -> SysResult {
    if prot & !PROT_BITS != 0 {
        return Err(Errno::EINVAL.into());
    }
    thread.process.space().protect(address, len, prot as u8)?;
    Ok(0)
}

/// mremap.
pub(super) fn remap(thread: &mut Thread, [address, old_len, new_len, flags, to, _]: [u64; 6]) -> SysResult {
    let has = |flag: i32| flags & flag as u64 != 0;
    let known = (libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED) as u64;
    if flags & !known != 0 || has(libc::MREMAP_FIXED) && !has(libc::MREMAP_MAYMOVE) {
        return Err(Errno::EINVAL.into());
    }
    let to = has(libc::MREMAP_FIXED).then_some(to);
    Ok(thread.process.space().remap(address, old_len, new_len, has(libc::MREMAP_MAYMOVE), to)?)
}

/// brk.
pub(super) fn brk(thread: &mut Thread, [address, ..]: [u64; 6]) -> SysResult {
    Ok(thread.process.space().set_brk(address))
}

/// madvise.
pub(super) fn advise(thread: &mut Thread, [address, len, advice, ..]: [u64; 6]) -> SysResult {
    thread.process.space().advise(address, len, advice as i32)?;
    Ok(0)
}

/// mincore.
pub(super) fn residency(thread: &mut Thread, [address, len, vector, ..]: [u64; 6]) -> SysResult {
    let pages = thread.process.space().residency(address, len)?;
    write_bytes(&thread.process.window, vector, &pages)?;
    Ok(0)
}

/// mlock and similar calls: guest memory is not pinned, and no guest can notice.
pub(super) fn lock(_thread: &mut Thread, _arguments: [u64; 6]) -> SysResult {
    Ok(0)
}

/// riscv_flush_icache: an empty or endless range means everything.
pub(super) fn flush_icache(thread: &mut Thread, [start, end, ..]: [u64; 6]) -> SysResult {
    let page = PageSize::host();
    let (first, last) = (start & !(PAGE_BYTES - 1), end.checked_next_multiple_of(PAGE_BYTES));
    let range = last.filter(|last| *last > first).and_then(|last| {
        let host = host_pointer(&thread.process.window, first, last - first).ok()?;
        HostRange::new(HostAddr(host as usize), (last - first) as usize, page).ok()
    });
    thread.process.observer.flush_icache(range);
    Ok(0)
}
