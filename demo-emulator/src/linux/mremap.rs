//! mremap: mappings that grow, shrink, move or are shown a second time.

use codewarden::protection::Access;

use super::address_space::{AddressSpace, PAGE_BYTES, Place, Source, access_of, checked_end, is_aligned, whole_pages};
use super::errno::Errno;
use super::observer::Backing;
use super::staged::Staged;
use super::vma::{Kind, Mapping};

impl AddressSpace {
    /// mremap of one mapping, without MREMAP_DONTUNMAP. `to` is a mandatory address; `may_move`
    /// allows any other.
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
            self.mappings.insert(Mapping { start: old_end, end: start + new_len, ..mapping });
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
        let source = mapping.clip(start, old_end);
        self.relocate(source, Mapping { start: target, end: target + new_len, ..source })?;
        Ok(target)
    }

    /// mremap from an old length of 0: a second view of shared memory from `start` on.
    fn show_again(&mut self, start: u64, len: u64, may_move: bool, to: Option<u64>) -> Result<u64, Errno> {
        let len = whole_pages(len).filter(|_| is_aligned(start)).ok_or(Errno::EINVAL)?;
        let mapping = self.mappings.at(start).ok_or(Errno::EFAULT)?;
        let Kind::Shared { device, inode, offset } = mapping.kind else { return Err(Errno::EINVAL) };
        if !may_move {
            return Err(Errno::ENOMEM);
        }
        let to = self.choose(to.map_or(Place::Hint(0), Place::Fixed), len)?;
        self.changes += 1;
        let from = self.host_range(start, start + PAGE_BYTES)?;
        let staged = Staged::view_of(from, len as usize, access_of(mapping.prot))?;
        let kind = Kind::Shared { device, inode, offset: offset + (start - mapping.start) };
        self.replace(Mapping { start: to, end: to + len, kind, ..mapping }, staged)?;
        Ok(to)
    }

    /// Moves the mapping `source` to `target`, in place of any other.
    fn relocate(&mut self, source: Mapping, target: Mapping) -> Result<(), Errno> {
        self.changes += 1;
        let from = self.host_range(source.start, source.end)?;
        let (len_bytes, access) = (target.len_bytes() as usize, access_of(source.prot));
        // The guest loses the source first, so that no store to it is lost.
        self.window.set_permissions(source.start..source.end, 0);
        self.observer.mapping_change_begin(from);
        let staged = match source.kind {
            // A copy: moved host pages would leave mappings that can never merge again.
            Kind::Private => self.observer.set_access(from, Access::Read).and_then(|()| {
                let kept_end = source.end.min(source.start + target.len_bytes());
                Staged::copy_of(self.host_range(source.start, kept_end)?, len_bytes, access)
            }),
            Kind::Shared { .. } => Staged::view_of(from, len_bytes, access),
        };
        let hidden = self.observer.set_access(from, Access::None);
        self.observer.mapping_change_end(from, Backing::Kept);
        let moved = staged.and_then(|staged| hidden.and_then(|()| self.replace(target, staged)));
        let done = moved.and_then(|()| self.clear(source.start, source.end));
        if done.is_err() {
            // The source stays: its contents are still there.
            self.observer.set_access(from, access)?;
            self.window.set_permissions(source.start..source.end, source.prot);
        }
        done
    }
}
