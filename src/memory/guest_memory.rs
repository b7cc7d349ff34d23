//! Guest memory: the object that owns it, its addresses, and the host's own access to it.
//!
//! No reference to guest bytes is ever formed: guest threads store to them at any time, so a
//! `&[u8]` would be a lie. Copies that may race (the module `copy`) move bytes in and out. An
//! aligned word is copied whole. If a reader copies more bytes, some may be old and some new.
//!
//! # Views
//!
//! Protection belongs to a mapping, not to the page behind it. Memory on a memfd has two views. The
//! guest's view is tracked. The host's view is not: a store through it never faults and the library
//! never learns of it, so the caller that makes it must tell the tracker. Further views that the
//! *guest* has ([`GuestMemory::another_view`]) must each lie in a region, and all must be declared
//! to the tracker ([`declare_shared`](crate::tracker::Tracker::declare_shared)).
//!
//! Use anonymous memory for private guest memory: faults on a memfd cost more, and a fork's child
//! shares a memfd with its parent.
//!
//! # Safety
//!
//! Each access is inside a range that this object owns or that the embedder promised to keep
//! mapped. The range is checked before the copy.
#![allow(unsafe_code)]

mod copy;

use core::sync::atomic::{AtomicU64, Ordering};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use crate::addr::{HostAddr, HostRange, PageSize};
use crate::error::Error;
use crate::sys::mmap::{Mapping, memfd};

/// Copies bytes of guest memory out, as [`GuestMemory::read`] does.
///
/// # Safety
///
/// The bytes are mapped and readable. `into` is no guest memory.
pub(crate) unsafe fn read_host(from: HostAddr, into: &mut [u8]) {
    // SAFETY: the caller's.
    unsafe { copy::copy_out(from.as_ptr().cast_const(), into) };
}

/// Guest memory of one contiguous range of this process.
#[derive(Debug)]
pub struct GuestMemory {
    range: HostRange,
    /// First byte of the host's view, as long as `range`.
    host_view: Option<HostAddr>,
    backing: Backing,
}

#[derive(Debug)]
enum Backing {
    Anonymous { _view: Mapping },
    Memfd { _view: Mapping, file: Arc<File> },
    Embedder,
}

/// A memfd with the host's view of it.
#[derive(Debug)]
struct File {
    fd: OwnedFd,
    host_view: Mapping,
    id: BackingId,
}

/// The memory behind a view: two views with one id show the same bytes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct BackingId(Id);

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Id {
    /// A memfd of the library.
    Own(u64),
    /// A file of the embedder.
    File { device: u64, inode: u64 },
    /// Memory that the embedder has numbered.
    Numbered(u64),
}

impl BackingId {
    fn next() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Self(Id::Own(NEXT.fetch_add(1, Ordering::Relaxed)))
    }

    /// The id of a file that the embedder mapped, from the two numbers that `fstat` gives.
    pub fn of_file(device: u64, inode: u64) -> Self {
        Self(Id::File { device, inode })
    }

    /// The id of memory without a file, such as shared anonymous memory: a number of the
    /// embedder's own choice. It is the id of no file.
    pub fn numbered(number: u64) -> Self {
        Self(Id::Numbered(number))
    }
}

impl GuestMemory {
    /// `len` bytes (rounded up to whole pages) of private, zeroed memory at an address that the
    /// kernel chooses. Pages cost nothing until they are touched.
    ///
    /// # Errors
    ///
    /// [`Error::System`] if the address space has no room.
    pub fn anonymous(len: usize) -> Result<Self, Error> {
        let page = PageSize::host();
        let view = Mapping::anonymous(whole_pages(len, page)?, page)?;
        Ok(Self::on_anonymous(view))
    }

    /// Like [`GuestMemory::anonymous`], at `start`, a page boundary.
    ///
    /// # Errors
    ///
    /// [`Error::System`] with `EEXIST` if something is mapped there already, [`Error::BadArgument`]
    /// for address 0, which no pointer may have.
    pub fn anonymous_at(start: HostAddr, len: usize) -> Result<Self, Error> {
        if start.0 == 0 {
            return Err(Error::BadArgument("guest memory cannot begin at address 0: no pointer leads there"));
        }
        let page = PageSize::host();
        let range = HostRange::new(start, whole_pages(len, page)?, page)?;
        let view = Mapping::anonymous_at(range.start(), range.len(), page)?;
        Ok(Self::on_anonymous(view))
    }

    fn on_anonymous(view: Mapping) -> Self {
        Self { range: view.range(), host_view: None, backing: Backing::Anonymous { _view: view } }
    }

    /// `len` bytes (rounded up to whole pages) of a new memfd, with the guest's view and the
    /// host's.
    ///
    /// # Errors
    ///
    /// [`Error::System`] if descriptors or address space are short, or if `len` is beyond the limit
    /// on file sizes (`ulimit -f`).
    pub fn memfd(len: usize) -> Result<Self, Error> {
        let page = PageSize::host();
        let len = whole_pages(len, page)?;
        let fd = memfd("codewarden-guest", len)?;
        let host_view = Mapping::shared(&fd, len, page)?;
        Self::on_memfd(Arc::new(File { fd, host_view, id: BackingId::next() }), page)
    }

    /// Another view of the same bytes for the guest, at another address. It must be tracked like
    /// the first, and both must be declared as the module's head says. Only memory on a memfd has
    /// one.
    ///
    /// # Errors
    ///
    /// [`Error::BadArgument`] if this memory is not on a memfd of the library.
    pub fn another_view(&self) -> Result<Self, Error> {
        match &self.backing {
            Backing::Memfd { file, .. } => Self::on_memfd(file.clone(), PageSize::host()),
            _ => Err(Error::BadArgument("only memory made by GuestMemory::memfd has further views")),
        }
    }

    fn on_memfd(file: Arc<File>, page: PageSize) -> Result<Self, Error> {
        let view = Mapping::shared(&file.fd, file.host_view.range().len(), page)?;
        let host_view = Some(file.host_view.range().start());
        Ok(Self { range: view.range(), host_view, backing: Backing::Memfd { _view: view, file } })
    }

    /// Memory that the embedder made and keeps.
    ///
    /// # Errors
    ///
    /// [`Error::BadRange`] if `start` and `len` are not whole pages.
    ///
    /// # Safety
    ///
    /// While this object or a tracker of it lives:
    ///
    /// - The `len` bytes at `start` belong to the guest alone. The library may change its
    ///   protection, and no Rust reference to any byte of it exists. Its bytes may be unmapped or
    ///   replaced only after the tracker was told.
    /// - Every byte that is read or written through this object is mapped at that time, with the
    ///   access that the call needs.
    /// - `host_view`, if given, is a mapping of the same bytes, of the same length. It is readable,
    ///   writable and tracked by no tracker.
    pub unsafe fn from_raw(start: HostAddr, len: usize, host_view: Option<HostAddr>) -> Result<Self, Error> {
        let page = PageSize::host();
        let range = HostRange::new(start, len, page)?;
        if let Some(host) = host_view {
            HostRange::new(host, len, page)?;
        }
        Ok(Self { range, host_view, backing: Backing::Embedder })
    }

    /// The guest's view: the addresses that its loads and stores use.
    pub fn range(&self) -> HostRange {
        self.range
    }

    /// Length in bytes.
    #[allow(clippy::len_without_is_empty)] // never empty
    pub fn len(&self) -> usize {
        self.range.len()
    }

    /// The host's view of the same bytes, if there is one. It is never protected, and the library
    /// does not learn of a store through it.
    pub fn host_view(&self) -> Option<HostAddr> {
        self.host_view
    }

    /// The memfd behind it, if the library made one.
    pub fn file(&self) -> Option<BorrowedFd<'_>> {
        match &self.backing {
            Backing::Memfd { file, .. } => Some(file.fd.as_fd()),
            _ => None,
        }
    }

    /// The id of the library's memfd behind it: equal for all views of one memfd.
    pub fn backing_id(&self) -> Option<BackingId> {
        match &self.backing {
            Backing::Memfd { file, .. } => Some(file.id),
            _ => None,
        }
    }

    /// Copies the bytes at `offset` out, through the host's view if there is one. Bytes that
    /// another thread is storing to may come out old or new. An aligned word of 8, 4 or 2 bytes
    /// comes out whole.
    ///
    /// # Errors
    ///
    /// [`Error::BadRange`] if the bytes are not all in this memory.
    pub fn read(&self, offset: usize, into: &mut [u8]) -> Result<(), Error> {
        let from = self.at(self.host_view.unwrap_or(self.range.start()), offset, into.len())?;
        // SAFETY: checked to be inside the memory; `into` is no guest memory, as references to that
        // do not exist.
        unsafe { copy::copy_out(from.cast_const(), into) };
        Ok(())
    }

    /// Copies bytes in through the guest's view. Like the guest's own store, it faults if the page
    /// is protected, and the library learns of it. An aligned word of 8, 4 or 2 bytes goes in
    /// whole.
    ///
    /// # Errors
    ///
    /// [`Error::BadRange`] if the bytes are not all in this memory.
    pub fn write(&self, offset: usize, from: &[u8]) -> Result<(), Error> {
        let into = self.at(self.range.start(), offset, from.len())?;
        // SAFETY: as in `read`.
        unsafe { copy::copy_in(from, into) };
        Ok(())
    }

    /// Copies bytes in through the host's view. It never faults and **the library does not learn of
    /// it**: the caller must tell the tracker of every view.
    ///
    /// # Errors
    ///
    /// [`Error::BadArgument`] if there is no host view, [`Error::BadRange`] if the bytes are not
    /// all in this memory.
    pub fn write_untracked(&self, offset: usize, from: &[u8]) -> Result<(), Error> {
        let host_view = self.host_view.ok_or(Error::BadArgument("this guest memory has no host view"))?;
        let into = self.at(host_view, offset, from.len())?;
        // SAFETY: as in `read`.
        unsafe { copy::copy_in(from, into) };
        Ok(())
    }

    /// Moves `len` bytes from one place of this memory to another, as `memmove` does. The store
    /// goes through the guest's view, as in [`GuestMemory::write`].
    ///
    /// # Errors
    ///
    /// [`Error::BadRange`] if the bytes are not all in this memory.
    pub fn copy_within(&self, from_offset: usize, to_offset: usize, len: usize) -> Result<(), Error> {
        let from = self.at(self.range.start(), from_offset, len)?;
        let into = self.at(self.range.start(), to_offset, len)?;
        // SAFETY: both checked to be inside.
        unsafe { copy::copy_within(from.cast_const(), into, len) };
        Ok(())
    }

    /// The address `offset` bytes into the view at `base`, if all `len` bytes are inside.
    fn at(&self, base: HostAddr, offset: usize, len: usize) -> Result<*mut u8, Error> {
        match offset.checked_add(len) {
            Some(end) if end <= self.range.len() => Ok(HostAddr(base.0 + offset).as_ptr()),
            _ => Err(Error::BadRange {
                start: offset as u64,
                len: len as u64,
                why: "the bytes must lie in the guest memory",
            }),
        }
    }
}

fn whole_pages(len: usize, page: PageSize) -> Result<usize, Error> {
    match page.ceil(len) {
        Some(len) if len > 0 => Ok(len),
        _ => Err(Error::BadRange {
            start: 0,
            len: len as u64,
            why: "guest memory has one byte at least and fits the address space",
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_begins_at_address_0() {
        let error = GuestMemory::anonymous_at(HostAddr(0), 1).unwrap_err();
        assert!(error.to_string().contains("address 0"), "{error}");
        let error = GuestMemory::anonymous(usize::MAX).unwrap_err();
        assert!(error.to_string().contains("fits the address space"), "{error}");
    }

    fn bytes(memory: &GuestMemory, offset: usize) -> [u8; 4] {
        let mut bytes = [0; 4];
        memory.read(offset, &mut bytes).unwrap();
        bytes
    }

    #[test]
    fn bytes_go_in_and_out() {
        for memory in [GuestMemory::anonymous(5000).unwrap(), GuestMemory::memfd(5000).unwrap()] {
            assert_eq!(memory.len() % PageSize::host().bytes(), 0);
            memory.write(4094, &[1, 2, 3, 4]).unwrap();
            assert_eq!(bytes(&memory, 4094), [1, 2, 3, 4]);
            memory.copy_within(4094, 4095, 4).unwrap();
            assert_eq!(bytes(&memory, 4094), [1, 1, 2, 3]);
        }
    }

    #[test]
    fn bytes_outside_are_refused() {
        let memory = GuestMemory::memfd(4096).unwrap();
        for (offset, len) in [(memory.len(), 1), (memory.len() - 1, 2), (usize::MAX, 2)] {
            assert!(matches!(memory.read(offset, &mut vec![0; len]), Err(Error::BadRange { .. })));
            assert!(matches!(memory.write(offset, &vec![0; len]), Err(Error::BadRange { .. })));
            assert!(matches!(memory.write_untracked(offset, &vec![0; len]), Err(Error::BadRange { .. })));
            assert!(matches!(memory.copy_within(0, offset, len), Err(Error::BadRange { .. })));
        }
        assert!(GuestMemory::anonymous(0).is_err());
    }

    #[test]
    fn views_of_one_memfd_show_the_same_bytes() {
        let first = GuestMemory::memfd(4096).unwrap();
        let second = first.another_view().unwrap();
        assert_ne!(first.range(), second.range());
        assert_eq!(first.backing_id(), second.backing_id());
        first.write(8, &[9; 4]).unwrap();
        drop(first);
        assert_eq!(bytes(&second, 8), [9; 4]);
        second.write_untracked(8, &[7; 4]).unwrap();
        assert_eq!(bytes(&second, 8), [7; 4]);
        assert_ne!(GuestMemory::memfd(4096).unwrap().backing_id(), second.backing_id());
        assert!(GuestMemory::anonymous(4096).unwrap().another_view().is_err());
    }

    #[test]
    fn memory_of_the_embedder() {
        let made = GuestMemory::memfd(8192).unwrap();
        // SAFETY: `made` outlives it and nothing tracks it.
        let raw = unsafe { GuestMemory::from_raw(made.range().start(), made.len(), made.host_view()) }.unwrap();
        raw.write_untracked(0, &[5; 4]).unwrap();
        assert_eq!(bytes(&made, 0), [5; 4]);
        // SAFETY: refused before it is used.
        assert!(unsafe { GuestMemory::from_raw(HostAddr(1), 4096, None) }.is_err());
    }
}
