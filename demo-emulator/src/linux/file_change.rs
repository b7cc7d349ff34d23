//! Bytes that change through a file that the guest has mapped, by `pwrite`, `ftruncate`,
//! `fallocate` and similar calls.
//!
//! No page protection detects such a write, so the observer is told of every guest range that shows
//! the bytes. Before the call it is told of the executable ranges: a hart that sees the new bytes
//! during the call then meets no old code. After the call it is told of all ranges. A view that
//! appears or becomes executable during the call is announced at that time.
//!
//! Private mappings of files are copies (see [`address_space`](super::address_space)), so their
//! bytes do not change. Writes by other processes are not seen.

use std::collections::BTreeMap;
use std::ops::Range;

use codewarden::addr::HostAddr;

use super::observer::{ByteRange, MemoryObserver, UnseenWrite};
use super::vma::{FileId, Mapping, Mappings};
use crate::memory::Window;
use crate::memory::window::EXEC;

/// The changes that are under way.
#[derive(Default)]
pub(super) struct FileChanges {
    by_number: BTreeMap<u64, FileChange>,
    next: u64,
}

struct FileChange {
    file: FileId,
    bytes: Range<u64>,
    /// In force until the call has ended.
    announced: Vec<UnseenWrite>,
}

/// One change that is under way.
#[derive(Debug)]
#[must_use = "the change lasts until it is ended"]
pub struct FileChangeId(u64);

/// The host addresses of a part of a mapping.
pub(super) fn on_host(window: &Window, part: &Mapping) -> ByteRange {
    let at = |guest: u64| HostAddr(window.base() as usize + guest as usize);
    at(part.start)..at(part.end)
}

impl FileChanges {
    /// A call is about to change `bytes` of `file`.
    pub(super) fn begin(
        &mut self,
        (mappings, window, observer): (&Mappings, &Window, &dyn MemoryObserver),
        file: FileId,
        bytes: Range<u64>,
    ) -> FileChangeId {
        let code = mappings.showing(file, &bytes).into_iter().filter(|part| part.prot & EXEC != 0);
        let announced = code.map(|part| observer.unseen_write(&on_host(window, &part))).collect();
        self.next += 1;
        self.by_number.insert(self.next, FileChange { file, bytes, announced });
        FileChangeId(self.next)
    }

    /// The call has ended.
    pub(super) fn end(
        &mut self,
        (mappings, window, observer): (&Mappings, &Window, &dyn MemoryObserver),
        id: FileChangeId,
    ) {
        let Some(FileChange { file, bytes, announced }) = self.by_number.remove(&id.0) else { return };
        for part in mappings.showing(file, &bytes) {
            observer.changed(&on_host(window, &part));
        }
        drop(announced);
    }

    /// `mapping` is new or has changed: it may show bytes that are changing.
    pub(super) fn mapped(&mut self, mapping: &Mapping, window: &Window, observer: &dyn MemoryObserver) {
        if self.by_number.is_empty() || mapping.prot & EXEC == 0 {
            return;
        }
        for change in self.by_number.values_mut().filter(|change| mapping.file() == Some(change.file)) {
            let part = mapping.showing(&change.bytes);
            change.announced.extend(part.map(|part| observer.unseen_write(&on_host(window, &part))));
        }
    }

    /// Called in a fork's child: the threads that make these calls are not in it.
    pub(super) fn forget(&mut self) {
        self.by_number.clear();
    }
}
