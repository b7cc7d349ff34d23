//! The guest's address space: mmap, munmap, mprotect, brk. `mremap` and `madvise`
//! have the other calls.
//!
//! The window begins as one reserved private anonymous host mapping. Invariant: if the guest has no
//! mapping at an address, the host has a part of such a mapping there, without access and without
//! pages. To make new private memory, only the protection is lifted. So the reserved mapping stays
//! whole, and so does a userfaultfd registration on it. A private mapping of a file is a copy of
//! its contents in private memory. Later writes to the file are not seen, as POSIX allows. Reading
//! beyond its end gives zeros; Linux would raise SIGBUS.
//!
//! # Old or new, and nothing between
//!
//! Other harts continue while mappings change. Linux makes them wait, so each access meets the old
//! mapping or the new one. Here:
//!
//! - A mapping that has contents or replaces another is made outside the window and moved in at
//!   once ([`staged`](super::staged)). A reserved mapping replaces a removed one at once. A single
//!   mprotect changes a protection.
//! - A fault is the guest's only if the mappings forbid the access while no change is going on;
//!   [`AddressSpace::permits`] tells that under the lock. Otherwise the instruction runs again.
//!
//! The window's page table says which pages allow fetches. It loses a bit before the host does and
//! gains one after. Every change that can make a translation untrue is announced to the
//! [`MemoryObserver`].

use std::ops::Range;
use std::os::fd::RawFd;
use std::sync::Arc;

use codewarden::addr::{HostAddr, HostRange, PageSize};
use codewarden::protection::Access;

use crate::memory::Window;
use crate::memory::window::{EXEC, READ, WINDOW_LEN_BYTES, WRITE};

use super::errno::Errno;
use super::file_change::{FileChangeId, FileChanges, on_host};
use super::host_memory;
use super::observer::{Backing, MemoryObserver};
use super::staged::Staged;
use super::vma::{FileId, Kind, Mapping, Mappings, OnFork, Prot};

/// Guest page size in bytes; the host's must be the same.
pub const PAGE_BYTES: u64 = 4096;

/// No mapping below this, so that null pointers fault.
pub(super) const LOWEST: u64 = 0x1_0000;

/// Room between the stack's limit and the top of mmap's placement.
const STACK_GAP_BYTES: u64 = 1 << 20;

/// The source of a mapping.
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
        /// Offset of the first byte; page-aligned.
        offset: u64,
    },
    /// A file's own pages.
    FileShared {
        /// Open with the modes that the protection needs.
        fd: RawFd,
        /// Offset of the first byte; page-aligned.
        offset: u64,
    },
}

/// The place of a mapping.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Place {
    /// There if it is free, else anywhere (0: no wish).
    Hint(u64),
    /// There, replacing any mapping.
    Fixed(u64),
    /// There, or EEXIST.
    FixedNoReplace(u64),
}

/// The guest's mappings and the host memory under them.
pub struct AddressSpace {
    pub(super) window: Window,
    page: PageSize,
    pub(super) observer: Arc<dyn MemoryObserver>,
    pub(super) mappings: Mappings,
    file_changes: FileChanges,
    /// mmap searches downwards from here.
    mmap_top: u64,
    brk_start: u64,
    brk: u64,
    /// Serves as the inode of the next anonymous shared mapping.
    next_anonymous_inode: u64,
    /// Counts changes of mappings, also failed ones.
    pub(super) changes: u64,
}

/// An instruction's access to memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum AccessKind {
    /// It reads.
    Load,
    /// It writes, or reads and writes.
    Store,
    /// It is fetched.
    Fetch,
}

/// `len` rounded up to whole pages, if it is a valid length.
pub(super) fn whole_pages(len: u64) -> Option<u64> {
    Some(len.checked_add(PAGE_BYTES - 1)? & !(PAGE_BYTES - 1)).filter(|len| *len != 0)
}

/// Whether it is a multiple of the page size.
pub(super) fn is_aligned(value: u64) -> bool {
    value.is_multiple_of(PAGE_BYTES)
}

/// The host's access for a guest's protection.
pub(super) fn access_of(prot: Prot) -> Access {
    match prot {
        0 => Access::None,
        prot if prot & WRITE != 0 => Access::ReadWrite,
        _ => Access::Read,
    }
}

/// `start..start + len` if it lies in the window.
pub(super) fn checked_end(start: u64, len: u64) -> Option<u64> {
    start.checked_add(len).filter(|end| *end <= WINDOW_LEN_BYTES)
}

impl AddressSpace {
    /// An empty address space over `window`; the caller maps the stack's `stack_bytes` at its top.
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
            changes: 0,
        }
    }

    /// All mappings in order.
    pub fn mappings(&self) -> &Mappings {
        &self.mappings
    }

    /// Whether the guest's mappings allow the access at `address`. The page's own protection
    /// differs only during a change, and no caller can see one: this takes the lock.
    pub fn permits(&self, address: u64, kind: AccessKind) -> bool {
        self.mappings.at(address).is_some_and(|mapping| match kind {
            AccessKind::Load => access_of(mapping.prot) != Access::None,
            AccessKind::Store => mapping.prot & WRITE != 0,
            AccessKind::Fetch => mapping.prot & EXEC != 0,
        })
    }

    /// The number of changes so far: the same number twice means that nothing changed in between.
    pub fn changes(&self) -> u64 {
        self.changes
    }

    /// The host's range of those guest addresses.
    pub(super) fn host_range(&self, start: u64, end: u64) -> Result<HostRange, Errno> {
        let host = HostAddr(self.window.base() as usize + start as usize);
        HostRange::new(host, (end - start) as usize, self.page).map_err(|_| Errno::EINVAL)
    }

    /// Maps `len` bytes from `source`; returns their address.
    pub fn map(&mut self, place: Place, len: u64, prot: Prot, source: Source) -> Result<u64, Errno> {
        let len = whole_pages(len).ok_or(if len == 0 { Errno::EINVAL } else { Errno::ENOMEM })?;
        let start = self.choose(place, len)?;
        let end = start + len;
        self.changes += 1;
        let (access, len_bytes, on_fork) = (access_of(prot), len as usize, OnFork::default());
        let (staged, kind) = match source {
            Source::Anonymous if self.mappings.is_free(start, end) => {
                self.observer.set_access(self.host_range(start, end)?, access)?;
                self.window.set_permissions(start..end, prot);
                self.enter(Mapping { start, end, prot, kind: Kind::Private, on_fork });
                return Ok(start);
            }
            Source::Anonymous => (Staged::anonymous(len_bytes, access), Kind::Private),
            Source::File { fd, offset } => (Staged::file(len_bytes, access, fd, offset), Kind::Private),
            Source::AnonymousShared => {
                self.next_anonymous_inode += 1;
                let kind = Kind::Shared { device: 0, inode: self.next_anonymous_inode, offset: 0 };
                (Staged::shared(len_bytes, access, -1, 0), kind)
            }
            Source::FileShared { fd, offset } => {
                let (device, inode) = file_identity(fd)?;
                (Staged::shared(len_bytes, access, fd, offset), Kind::Shared { device, inode, offset })
            }
        };
        let staged = staged.map_err(|errno| if errno == Errno::EISDIR { Errno::ENODEV } else { errno })?;
        self.replace(Mapping { start, end, prot, kind, on_fork }, staged)?;
        Ok(start)
    }

    /// Puts `mapping`, which is `staged`, in place of any other.
    pub(super) fn replace(&mut self, mapping: Mapping, staged: Staged) -> Result<(), Errno> {
        let Mapping { start, end, prot, kind, .. } = mapping;
        let (range, access) = (self.host_range(start, end)?, access_of(prot));
        let before = self.mappings.within(start, end);
        let code = self.shown_code(&mapping);
        // Code that knows one address of its bytes checks stores to that address only. So no code
        // may be made until all addresses are known, and none may run once the new mapping is
        // there.
        let held: Vec<_> = code.iter().map(|part| self.observer.without_code(&on_host(&self.window, part))).collect();
        self.observer.mapping_change_begin(range);
        for old in &before {
            self.window.set_permissions(old.start..old.end, old.prot & prot);
        }
        // Code that could not change itself does not check for it.
        let changes_itself = before.iter().any(|old| old.prot & (EXEC | WRITE) == EXEC) && prot & WRITE != 0;
        if changes_itself || !code.is_empty() {
            self.observer.await_harts();
        }
        let moved = staged.move_onto(range);
        let backing = match (&moved, kind) {
            (Ok(()), Kind::Private) => Backing::Private { access },
            (Ok(()), Kind::Shared { device, inode, offset }) => Backing::Shared { device, inode, offset, access },
            (Err(_), _) => self.not_replaced(range, start..end, &before),
        };
        self.observer.mapping_change_end(range, backing);
        drop(held);
        moved?;
        self.window.set_permissions(start..end, prot);
        self.enter(mapping);
        Ok(())
    }

    /// The mappings that show the same bytes as `mapping` and may have translations.
    fn shown_code(&self, mapping: &Mapping) -> Vec<Mapping> {
        let (Some(file), Kind::Shared { offset, .. }) = (mapping.file(), mapping.kind) else { return Vec::new() };
        let bytes = offset..offset.saturating_add(mapping.len_bytes());
        self.mappings.showing(file, &bytes).into_iter().filter(|part| part.prot & EXEC != 0).collect()
    }

    /// Records `mapping`, which is in place now.
    fn enter(&mut self, mapping: Mapping) {
        self.mappings.insert(mapping);
        self.file_changes.mapped(&mapping, &self.window, &*self.observer);
    }

    /// A call is about to change `bytes` of `file`, which may be mapped.
    pub fn file_change_begin(&mut self, file: FileId, bytes: Range<u64>) -> FileChangeId {
        self.file_changes.begin((&self.mappings, &self.window, &*self.observer), file, bytes)
    }

    /// The call has ended.
    pub fn file_change_end(&mut self, change: FileChangeId) {
        self.file_changes.end((&self.mappings, &self.window, &*self.observer), change);
    }

    /// Called in a fork's child, after the observer.
    pub fn after_fork_child(&mut self) {
        self.file_changes.forget();
    }

    /// Called next if the guest's memory is a copy: removes or wipes the mappings that the guest
    /// marked so.
    ///
    /// The host copies every mapping. Leaving one out would make a hole in the window, and the
    /// emulator's own memory could be mapped there.
    pub fn leave_out_on_fork(&mut self) {
        let marked: Vec<Mapping> = self.mappings.iter().filter(|m| m.on_fork != OnFork::default()).copied().collect();
        for mapping in marked {
            let Mapping { start, end, prot, on_fork, .. } = mapping;
            // A failure leaves the copy there.
            if on_fork.left_out {
                let _ = self.clear(start, end);
            } else if self.map(Place::Fixed(start), end - start, prot, Source::Anonymous).is_ok() {
                self.mappings.insert(mapping);
            }
        }
    }

    /// A replacement failed: as Linux does, it left `before` as it was, or a hole.
    fn not_replaced(&mut self, range: HostRange, pages: Range<u64>, before: &[Mapping]) -> Backing {
        if host_memory::is_mapped(range) {
            before.iter().for_each(|old| self.window.set_permissions(old.start..old.end, old.prot));
            return Backing::Kept;
        }
        self.window.set_permissions(pages.clone(), 0);
        self.mappings.remove(pages.start, pages.end);
        let closed = host_memory::map_reserve(range);
        closed.map_or(Backing::Kept, |()| Backing::Private { access: Access::None })
    }

    /// The address of a new mapping.
    pub(super) fn choose(&self, place: Place, len: u64) -> Result<u64, Errno> {
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

    /// A free place: downwards from the top, else the lowest one.
    pub(super) fn find(&self, len: u64) -> Option<u64> {
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
    pub(super) fn clear(&mut self, start: u64, end: u64) -> Result<(), Errno> {
        let gone = self.mappings.within(start, end);
        let (Some(first), Some(last)) = (gone.first(), gone.last()) else { return Ok(()) };
        let (start, end) = (first.start, last.end);
        let range = self.host_range(start, end)?;
        self.changes += 1;
        self.window.set_permissions(start..end, 0);
        self.observer.mapping_change_begin(range);
        let done = host_memory::map_reserve(range);
        let backing = if done.is_ok() { Backing::Private { access: Access::None } } else { Backing::Kept };
        self.observer.mapping_change_end(range, backing);
        if let Err(errno) = done {
            gone.iter().for_each(|kept| self.window.set_permissions(kept.start..kept.end, kept.prot));
            return Err(errno);
        }
        self.mappings.remove(start, end);
        Ok(())
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
        self.changes += 1;
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
        // Code that may no longer be fetched is forgotten. So is code that becomes writable, since
        // a translation may have relied on the old protection.
        let loses_exec = mapping.prot & EXEC != 0 && prot & EXEC == 0;
        let code_gains_write = mapping.prot & (EXEC | WRITE) == EXEC && prot & WRITE != 0;
        let changes_code = loses_exec || code_gains_write;
        if changes_code {
            self.observer.mapping_change_begin(range);
            self.window.set_permissions(pages.clone(), prot & mapping.prot);
        }
        if code_gains_write {
            // Code that could not change itself does not check for it.
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

    /// Sets the heap's start: after the program, once it is loaded.
    pub fn set_brk_start(&mut self, start: u64) {
        self.brk_start = start;
        self.brk = start;
    }

    /// brk: returns the new end of the heap, or the old one on failure.
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
}

fn round_up(address: u64) -> Option<u64> {
    Some(address.checked_add(PAGE_BYTES - 1)? & !(PAGE_BYTES - 1))
}

/// Device and inode of an open file.
fn file_identity(fd: RawFd) -> Result<(u64, u64), Errno> {
    let stat = super::host_fs::stat_fd(fd)?;
    Ok((stat.st_dev, stat.st_ino))
}
