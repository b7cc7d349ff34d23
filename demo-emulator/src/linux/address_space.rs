//! The guest's address space: mmap, munmap, mprotect, mremap, brk, madvise.
//!
//! The window is one reserved private anonymous host mapping. Invariant: where
//! the guest has nothing mapped, the host has no access and the pages are
//! absent. Private memory is made by lifting the protection and is given back by
//! dropping the pages, so the reserved mapping, and a userfaultfd registration on
//! it, stay whole. A private mapping of a file is its contents read into such
//! memory: later writes to the file are not seen, as POSIX allows, and reading
//! past its end gives zeros where Linux raises SIGBUS. Only shared memory is
//! mapped for real, with MAP_FIXED.
//!
//! The window's page table says what may be fetched. It loses a bit before the
//! host does and gains one after, and every change that can make a translation
//! untrue is announced to the [`MemoryObserver`].

use std::ops::Range;
use std::os::fd::RawFd;
use std::sync::Arc;

use codewarden::addr::{HostAddr, HostRange, PageSize};
use codewarden::protection::Access;

use crate::memory::Window;
use crate::memory::window::{EXEC, READ, WINDOW_LEN_BYTES, WRITE};

use super::errno::Errno;
use super::file_change::{FileChangeId, FileChanges};
use super::host_memory;
use super::observer::{Backing, MemoryObserver};
use super::vma::{FileId, Kind, Mapping, Mappings, Prot};

/// Guest page size in bytes; the host's must be the same.
pub const PAGE_BYTES: u64 = 4096;

/// No mapping below this, so that null pointers fault.
const LOWEST: u64 = 0x1_0000;

/// Room kept between the stack's limit and the top of mmap's placement.
const STACK_GAP_BYTES: u64 = 1 << 20;

/// What to map.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Source {
    /// Zeroed private memory.
    Anonymous,
    /// Zeroed memory that fork's children share.
    AnonymousShared,
    /// A private copy of a file's bytes.
    File {
        /// Open for reading.
        fd: RawFd,
        /// Of the first byte; page-aligned.
        offset: u64,
    },
    /// A file's own pages.
    FileShared {
        /// Open as the protection needs it.
        fd: RawFd,
        /// Of the first byte; page-aligned.
        offset: u64,
    },
}

/// Where to map.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Place {
    /// Anywhere; there if it is free (0: no wish).
    Hint(u64),
    /// There, in place of whatever is.
    Fixed(u64),
    /// There, or EEXIST.
    FixedNoReplace(u64),
}

/// The guest's mappings and the host memory under them.
pub struct AddressSpace {
    window: Window,
    page: PageSize,
    observer: Arc<dyn MemoryObserver>,
    mappings: Mappings,
    file_changes: FileChanges,
    /// mmap places downwards from here.
    mmap_top: u64,
    brk_start: u64,
    brk: u64,
    /// Stands for the inode of the next anonymous shared mapping.
    next_anonymous_inode: u64,
}

/// `len` rounded up to whole pages, if it is a length at all.
fn whole_pages(len: u64) -> Option<u64> {
    Some(len.checked_add(PAGE_BYTES - 1)? & !(PAGE_BYTES - 1)).filter(|len| *len != 0)
}

fn is_aligned(value: u64) -> bool {
    value.is_multiple_of(PAGE_BYTES)
}

fn access_of(prot: Prot) -> Access {
    match prot {
        0 => Access::None,
        prot if prot & WRITE != 0 => Access::ReadWrite,
        _ => Access::Read,
    }
}

/// `start..start + len` where it lies in the window.
fn checked_end(start: u64, len: u64) -> Option<u64> {
    start.checked_add(len).filter(|end| *end <= WINDOW_LEN_BYTES)
}

impl AddressSpace {
    /// An empty address space over `window`, with the stack's `stack_bytes` at
    /// its top left to the caller to map.
    pub fn new(window: Window, observer: Arc<dyn MemoryObserver>, stack_bytes: u64) -> Self {
        Self {
            window,
            page: PageSize::host(),
            observer,
            mappings: Mappings::default(),
            file_changes: FileChanges::default(),
            mmap_top: (WINDOW_LEN_BYTES - stack_bytes - STACK_GAP_BYTES) & !(PAGE_BYTES - 1),
            brk_start: 0,
            brk: 0,
            next_anonymous_inode: 1,
        }
    }

    /// All mappings in order.
    pub fn mappings(&self) -> &Mappings {
        &self.mappings
    }

    fn host_range(&self, start: u64, end: u64) -> Result<HostRange, Errno> {
        let host = HostAddr(self.window.base() as usize + start as usize);
        HostRange::new(host, (end - start) as usize, self.page).map_err(|_| Errno::EINVAL)
    }

    /// Maps `len` bytes from `source`; gives their address.
    pub fn map(&mut self, place: Place, len: u64, prot: Prot, source: Source) -> Result<u64, Errno> {
        let len = whole_pages(len).ok_or(if len == 0 { Errno::EINVAL } else { Errno::ENOMEM })?;
        let start = self.choose(place, len)?;
        let end = start + len;
        self.clear(start, end)?;
        let range = self.host_range(start, end)?;
        let kind = match source {
            Source::Anonymous => {
                self.observer.set_access(range, access_of(prot))?;
                Kind::Private
            }
            Source::File { fd, offset } => {
                self.observer.set_access(range, Access::ReadWrite)?;
                self.observer.kernel_write_begin(range.start(), range.len());
                let read = host_memory::read_file(range, fd, offset);
                self.observer.kernel_write_end(range.start(), range.len());
                if let Err(errno) = read {
                    self.release(range, Kind::Private)?;
                    return Err(if errno == Errno::EISDIR { Errno::ENODEV } else { errno });
                }
                self.observer.set_access(range, access_of(prot))?;
                Kind::Private
            }
            Source::AnonymousShared => self.map_shared(range, prot, -1, 0)?,
            Source::FileShared { fd, offset } => self.map_shared(range, prot, fd, offset)?,
        };
        self.window.set_permissions(start..end, prot);
        self.enter(Mapping { start, end, prot, kind });
        Ok(start)
    }

    /// `mapping` is there now, in place of whatever was.
    fn enter(&mut self, mapping: Mapping) {
        self.mappings.insert(mapping);
        self.file_changes.mapped(&mapping, &self.window, &*self.observer);
    }

    /// A call is about to change `bytes` of `file`, which may be mapped.
    pub fn file_change_begin(&mut self, file: FileId, bytes: Range<u64>) -> FileChangeId {
        self.file_changes.begin((&self.mappings, &self.window, &*self.observer), file, bytes)
    }

    /// The call is over.
    pub fn file_change_end(&mut self, change: FileChangeId) {
        self.file_changes.end((&self.mappings, &self.window, &*self.observer), change);
    }

    /// In a fork's child, once the observer has been told.
    pub fn after_fork_child(&mut self) {
        self.file_changes.forget();
    }

    fn map_shared(&mut self, range: HostRange, prot: Prot, fd: RawFd, offset: u64) -> Result<Kind, Errno> {
        let (device, inode) = if fd < 0 {
            self.next_anonymous_inode += 1;
            (0, self.next_anonymous_inode)
        } else {
            file_identity(fd)?
        };
        self.observer.mapping_change_begin(range);
        let mapped = host_memory::map_shared(range, access_of(prot), fd, offset);
        let backing = if mapped.is_ok() {
            Backing::Shared { device, inode, offset, access: access_of(prot) }
        } else {
            Backing::Kept
        };
        self.observer.mapping_change_end(range, backing);
        // Code that knows of one address of its bytes looks for stores there alone.
        self.observer.await_harts();
        mapped.map(|()| Kind::Shared { device, inode, offset })
    }

    fn choose(&self, place: Place, len: u64) -> Result<u64, Errno> {
        match place {
            Place::Fixed(start) | Place::FixedNoReplace(start) => {
                if !is_aligned(start) {
                    return Err(Errno::EINVAL);
                }
                let end = checked_end(start, len).ok_or(Errno::ENOMEM)?;
                if start < LOWEST {
                    return Err(Errno::EPERM);
                }
                if matches!(place, Place::FixedNoReplace(_)) && !self.mappings.is_free(start, end) {
                    return Err(Errno::EEXIST);
                }
                Ok(start)
            }
            Place::Hint(hint) => {
                let hint = hint & !(PAGE_BYTES - 1);
                if hint >= LOWEST && checked_end(hint, len).is_some_and(|end| self.mappings.is_free(hint, end)) {
                    return Ok(hint);
                }
                self.find(len).ok_or(Errno::ENOMEM)
            }
        }
    }

    /// A free place: downwards from the top, else the lowest that there is.
    fn find(&self, len: u64) -> Option<u64> {
        let floor = self.brk.max(LOWEST);
        self.mappings
            .find_top_down(len, floor, self.mmap_top)
            .or_else(|| self.mappings.find_bottom_up(len, LOWEST, WINDOW_LEN_BYTES))
    }

    /// munmap.
    pub fn unmap(&mut self, start: u64, len: u64) -> Result<(), Errno> {
        let len = whole_pages(len).filter(|_| is_aligned(start)).ok_or(Errno::EINVAL)?;
        let end = checked_end(start, len).ok_or(Errno::EINVAL)?;
        self.clear(start, end)
    }

    /// Leaves nothing mapped in `start..end`.
    fn clear(&mut self, start: u64, end: u64) -> Result<(), Errno> {
        for mapping in self.mappings.within(start, end) {
            let range = self.host_range(mapping.start, mapping.end)?;
            self.window.set_permissions(mapping.start..mapping.end, 0);
            self.mappings.remove(mapping.start, mapping.end);
            self.release(range, mapping.kind)?;
        }
        Ok(())
    }

    /// Makes the host memory under `range` what it is where nothing is mapped.
    fn release(&self, range: HostRange, kind: Kind) -> Result<(), Errno> {
        self.observer.mapping_change_begin(range);
        let (done, backing) = match kind {
            Kind::Private => {
                let dropped = host_memory::discard(range);
                (dropped.and_then(|()| self.observer.set_access(range, Access::None)), Backing::Kept)
            }
            Kind::Shared { .. } => (host_memory::map_reserve(range), Backing::Anonymous),
        };
        self.observer.mapping_change_end(range, backing);
        done
    }

    /// mprotect.
    pub fn protect(&mut self, start: u64, len: u64, prot: Prot) -> Result<(), Errno> {
        if !is_aligned(start) {
            return Err(Errno::EINVAL);
        }
        let Some(len) = whole_pages(len) else { return Ok(()) };
        let end = checked_end(start, len).ok_or(Errno::ENOMEM)?;
        if !self.mappings.is_covered(start, end) {
            return Err(Errno::ENOMEM);
        }
        for mapping in self.mappings.within(start, end) {
            if mapping.prot != prot {
                self.protect_one(mapping, prot)?;
            }
        }
        Ok(())
    }

    fn protect_one(&mut self, mapping: Mapping, prot: Prot) -> Result<(), Errno> {
        let range = self.host_range(mapping.start, mapping.end)?;
        let pages = mapping.start..mapping.end;
        // Code that may not be fetched any more is forgotten; so is code that may
        // be written from now on, for a translation may have counted on that.
        let loses_exec = mapping.prot & EXEC != 0 && prot & EXEC == 0;
        let code_gains_write = mapping.prot & (EXEC | WRITE) == EXEC && prot & WRITE != 0;
        let changes_code = loses_exec || code_gains_write;
        if changes_code {
            self.observer.mapping_change_begin(range);
            self.window.set_permissions(pages.clone(), prot & mapping.prot);
        }
        if code_gains_write {
            // Code that could not change itself does not look whether it did.
            self.observer.await_harts();
        }
        let done = match (access_of(mapping.prot), access_of(prot)) {
            (before, after) if before == after => Ok(()),
            (_, access) => self.observer.set_access(range, access),
        };
        self.window.set_permissions(pages, if done.is_ok() { prot } else { mapping.prot });
        if changes_code {
            self.observer.mapping_change_end(range, Backing::Kept);
        }
        done?;
        self.enter(Mapping { prot, ..mapping });
        Ok(())
    }

    /// Fills writable private memory with zeros.
    pub fn write_zeros(&mut self, start: u64, len: u64) -> Result<(), Errno> {
        super::user_memory::write_bytes(&self.window, start, &vec![0; len as usize])
    }

    /// Sets where the heap starts: behind the program, once it is loaded.
    pub fn set_brk_start(&mut self, start: u64) {
        self.brk_start = start;
        self.brk = start;
    }

    /// brk: gives the new end of the heap, or the old one where it cannot be.
    pub fn set_brk(&mut self, brk: u64) -> u64 {
        if brk < self.brk_start {
            return self.brk;
        }
        let (Some(old_end), Some(new_end)) = (round_up(self.brk), round_up(brk)) else { return self.brk };
        let done = if new_end > old_end {
            let place = Place::FixedNoReplace(old_end);
            self.map(place, new_end - old_end, READ | WRITE, Source::Anonymous).map(drop)
        } else if new_end < old_end {
            self.clear(new_end, old_end)
        } else {
            Ok(())
        };
        if done.is_ok() {
            self.brk = brk;
        }
        self.brk
    }

    /// mremap of one mapping, without MREMAP_DONTUNMAP. `to` is where it must
    /// go; `may_move` says whether it may go anywhere.
    pub fn remap(
        &mut self,
        start: u64,
        old_len: u64,
        new_len: u64,
        may_move: bool,
        to: Option<u64>,
    ) -> Result<u64, Errno> {
        if old_len == 0 {
            return self.show_again(start, new_len, may_move, to);
        }
        let old_len = whole_pages(old_len).filter(|_| is_aligned(start)).ok_or(Errno::EINVAL)?;
        let new_len = whole_pages(new_len).ok_or(Errno::EINVAL)?;
        let old_end = checked_end(start, old_len).ok_or(Errno::EFAULT)?;
        let mapping = self.mappings.at(start).filter(|m| m.end >= old_end).ok_or(Errno::EFAULT)?;
        if to.is_none() && new_len <= old_len {
            self.clear(start + new_len, old_end)?;
            return Ok(start);
        }
        let in_place = || checked_end(start, new_len).is_some_and(|end| self.mappings.is_free(old_end, end));
        if to.is_none() && mapping.kind == Kind::Private && in_place() {
            self.map(Place::Fixed(old_end), new_len - old_len, mapping.prot, Source::Anonymous)?;
            return Ok(start);
        }
        if !may_move {
            return Err(Errno::ENOMEM);
        }
        let target = match to {
            Some(to) if !is_aligned(to) || (to < old_end && start < to.saturating_add(new_len)) => {
                return Err(Errno::EINVAL);
            }
            Some(to) => self.choose(Place::Fixed(to), new_len)?,
            None => self.find(new_len).ok_or(Errno::ENOMEM)?,
        };
        self.clear(target, target + new_len)?;
        match mapping.kind {
            Kind::Private => self.move_private(start, old_len, target, new_len, mapping.prot)?,
            Kind::Shared { .. } => self.move_shared(start, old_len, target, new_len)?,
        }
        Ok(target)
    }

    /// mremap of nothing to something: a second view of shared memory from `start`
    /// on.
    fn show_again(&mut self, start: u64, len: u64, may_move: bool, to: Option<u64>) -> Result<u64, Errno> {
        let len = whole_pages(len).filter(|_| is_aligned(start)).ok_or(Errno::EINVAL)?;
        let mapping = self.mappings.at(start).ok_or(Errno::EFAULT)?;
        let Kind::Shared { device, inode, offset } = mapping.kind else { return Err(Errno::EINVAL) };
        if !may_move {
            return Err(Errno::ENOMEM);
        }
        let to = self.choose(to.map_or(Place::Hint(0), Place::Fixed), len)?;
        self.clear(to, to + len)?;
        let (from, onto) = (self.host_range(start, start + PAGE_BYTES)?, self.host_range(to, to + len)?);
        let (access, offset) = (access_of(mapping.prot), offset + (start - mapping.start));
        self.observer.mapping_change_begin(onto);
        let shown = host_memory::show_again(from, onto, access);
        let backing = match shown {
            Ok(()) => Backing::Shared { device, inode, offset, access },
            // Nothing is mapped there, whatever the call left.
            Err(_) => Backing::Anonymous,
        };
        let shown = shown.or_else(|errno| host_memory::map_reserve(onto).and(Err(errno)));
        self.observer.mapping_change_end(onto, backing);
        // As for any new view: `map_shared`.
        self.observer.await_harts();
        shown?;
        self.window.set_permissions(to..to + len, mapping.prot);
        let kind = Kind::Shared { device, inode, offset };
        self.enter(Mapping { start: to, end: to + len, prot: mapping.prot, kind });
        Ok(to)
    }

    /// Moves by copying: moving host pages would tear the reserved mapping.
    fn move_private(&mut self, start: u64, len: u64, to: u64, new_len: u64, prot: Prot) -> Result<(), Errno> {
        let kept = len.min(new_len);
        let (from, onto) = (self.host_range(start, start + kept)?, self.host_range(to, to + kept)?);
        self.map(Place::Fixed(to), new_len, READ | WRITE, Source::Anonymous)?;
        self.window.set_permissions(start..start + len, 0);
        self.observer.set_access(from, Access::Read)?;
        host_memory::copy_pages(from, onto, PAGE_BYTES as usize);
        self.clear(start, start + len)?;
        self.protect(to, new_len, prot)
    }

    fn move_shared(&mut self, start: u64, len: u64, to: u64, new_len: u64) -> Result<(), Errno> {
        let Some(mapping) = self.mappings.within(start, start + len).first().copied() else {
            return Err(Errno::EFAULT);
        };
        let Kind::Shared { device, inode, offset } = mapping.kind else { return Err(Errno::EFAULT) };
        let (from, onto) = (self.host_range(start, start + len)?, self.host_range(to, to + new_len)?);
        self.window.set_permissions(start..start + len, 0);
        self.mappings.remove(start, start + len);
        self.observer.mapping_change_begin(from);
        let moved = host_memory::move_mapping(from, onto);
        self.observer.mapping_change_end(from, Backing::Anonymous);
        moved?;
        self.observer.mapping_change_begin(onto);
        let access = access_of(mapping.prot);
        self.observer.mapping_change_end(onto, Backing::Shared { device, inode, offset, access });
        self.observer.await_harts();
        self.window.set_permissions(to..to + new_len, mapping.prot);
        self.enter(Mapping { start: to, end: to + new_len, ..mapping });
        Ok(())
    }

    /// madvise.
    pub fn advise(&mut self, start: u64, len: u64, advice: i32) -> Result<(), Errno> {
        if !is_aligned(start) {
            return Err(Errno::EINVAL);
        }
        let Some(len) = whole_pages(len) else { return Ok(()) };
        let end = checked_end(start, len).ok_or(Errno::ENOMEM)?;
        for mapping in self.mappings.within(start, end) {
            let range = self.host_range(mapping.start, mapping.end)?;
            match advice {
                libc::MADV_DONTNEED | libc::MADV_REMOVE => {
                    self.observer.mapping_change_begin(range);
                    let done = host_memory::advise(range, advice);
                    self.observer.mapping_change_end(range, Backing::Kept);
                    done?;
                }
                libc::MADV_DONTFORK | libc::MADV_DOFORK | libc::MADV_WIPEONFORK | libc::MADV_KEEPONFORK => {
                    host_memory::advise(range, advice)?;
                }
                // The others are hints: not to follow them breaks nothing.
                _ => {}
            }
        }
        if self.mappings.is_covered(start, end) { Ok(()) } else { Err(Errno::ENOMEM) }
    }

    /// mincore: one byte a page.
    pub fn residency(&self, start: u64, len: u64) -> Result<Vec<u8>, Errno> {
        if !is_aligned(start) {
            return Err(Errno::EINVAL);
        }
        let Some(len) = whole_pages(len) else { return Ok(Vec::new()) };
        let end = checked_end(start, len).ok_or(Errno::ENOMEM)?;
        if !self.mappings.is_covered(start, end) {
            return Err(Errno::ENOMEM);
        }
        let mut pages = vec![0; (len / PAGE_BYTES) as usize];
        host_memory::residency(self.host_range(start, end)?, &mut pages)?;
        Ok(pages)
    }
}

fn round_up(address: u64) -> Option<u64> {
    Some(address.checked_add(PAGE_BYTES - 1)? & !(PAGE_BYTES - 1))
}

/// Device and inode of an open file.
fn file_identity(fd: RawFd) -> Result<(u64, u64), Errno> {
    let stat = super::host_fs::stat_fd(fd)?;
    Ok((stat.st_dev, stat.st_ino))
}
