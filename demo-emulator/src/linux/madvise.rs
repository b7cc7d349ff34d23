//! madvise and mincore.

use super::address_space::{AddressSpace, PAGE_BYTES, checked_end, is_aligned, whole_pages};
use super::errno::Errno;
use super::host_memory;
use super::observer::Backing;
use super::vma::{Kind, Mapping, OnFork};

/// `MADV_DONTNEED` for locked memory too. Guest memory is not locked.
const MADV_DONTNEED_LOCKED: i32 = 24;

impl AddressSpace {
    /// madvise.
    pub fn advise(&mut self, start: u64, len: u64, advice: i32) -> Result<(), Errno> {
        if !is_aligned(start) {
            return Err(Errno::EINVAL);
        }
        let Some(len) = whole_pages(len) else { return Ok(()) };
        let end = checked_end(start, len).ok_or(Errno::ENOMEM)?;
        self.changes += 1;
        for mapping in self.mappings.within(start, end) {
            let range = self.host_range(mapping.start, mapping.end)?;
            match advice {
                libc::MADV_DONTNEED | MADV_DONTNEED_LOCKED | libc::MADV_REMOVE => {
                    self.observer.mapping_change_begin(range);
                    let advice = if advice == MADV_DONTNEED_LOCKED { libc::MADV_DONTNEED } else { advice };
                    let done = host_memory::advise(range, advice);
                    self.observer.mapping_change_end(range, Backing::Kept);
                    done?;
                }
                libc::MADV_WIPEONFORK if mapping.kind != Kind::Private => return Err(Errno::EINVAL),
                libc::MADV_DONTFORK | libc::MADV_DOFORK => {
                    let on_fork = OnFork { left_out: advice == libc::MADV_DONTFORK, ..mapping.on_fork };
                    self.mappings.insert(Mapping { on_fork, ..mapping });
                }
                libc::MADV_WIPEONFORK | libc::MADV_KEEPONFORK => {
                    let on_fork = OnFork { wiped: advice == libc::MADV_WIPEONFORK, ..mapping.on_fork };
                    self.mappings.insert(Mapping { on_fork, ..mapping });
                }
                // The others are hints, and may be ignored.
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
