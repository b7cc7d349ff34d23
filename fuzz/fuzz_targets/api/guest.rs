//! Three areas of guest memory, two of which show the same bytes, a cache over them, and the
//! oracle.
//!
//! # Safety
//!
//! The memory is dropped last. A mapping is replaced by one of the same memory, or of
//! fresh anonymous memory, under `change_mapping`. A fork's child calls the library and
//! ends by `_exit`.
#![allow(unsafe_code)]

use std::os::fd::AsRawFd;
use std::sync::Arc;

use codewarden::addr::GuestAddr;
use codewarden::guest_memory::GuestMemory;
use codewarden::policy::Adaptive;
use codewarden::protection::{Access, Mode};
use codewarden::tracker::{BeginError, Held, RegionOptions, SharedMemory};
use codewarden::{Busy, CodeCache, CommitError, Entry, EntryStubs, Key, Link, MemoryLimit, Ticket, VCpu};

use crate::oracle::{AREA_BYTES, KEYS, Oracle, PAGE_BYTES, PAGES, Source, place};

/// So many faults at one byte may make a page hot: it is translated from later.
const HOT_FAULTS: usize = 8;

/// The declared size of each payload, in bytes.
const PAYLOAD_BYTES: usize = 100;

/// More than the blocks of all keys take, in bytes.
const ROOM_FOR_ALL_BYTES: usize = 8192;

type Payload = Arc<()>;

/// Pages of memory that are held through an area, with the number of the area's tracking.
struct Hold {
    area: usize,
    tracked_as: u64,
    pages: std::ops::Range<usize>,
    _held: Held,
}

pub struct Guest {
    oracle: Oracle,
    tickets: Vec<(usize, Ticket<Payload>, Source)>,
    holds: Vec<Hold>,
    links: Vec<(usize, Link)>,
    vcpu: VCpu<Payload>,
    pub cache: CodeCache<Payload>,
    payload: Payload,
    mode: Mode,
    /// Whether the policy has self-checking pages.
    has_checks: bool,
    /// The number of each area's present tracking: each new one counts up.
    tracked: [Option<u64>; 3],
    stores: usize,
    /// Pages of each area that the guest may not write to.
    read_only: [[bool; PAGES]; 3],
    /// A fork's child: the parent would not learn of its writes to shared memory.
    is_child: bool,
    limit: MemoryLimit,
    next: u64,
    memory: [GuestMemory; 3],
    /// The kernel copies from this memory.
    source: GuestMemory,
}

fn guest(area: usize, offset: usize) -> GuestAddr {
    GuestAddr((0x10_0000 * (area + 1) + offset) as u64)
}

impl Guest {
    pub fn new(mode: Mode, has_checks: bool) -> Self {
        let first = GuestMemory::memfd(AREA_BYTES).expect("a memfd");
        let second = first.another_view().expect("another view");
        let policy = if has_checks { Adaptive::with_checks() } else { Adaptive::new() };
        let cache = CodeCache::with_policy(EntryStubs::NOT_CODE, Arc::new(policy)).expect("two stubs");
        Self {
            oracle: Oracle::new(mode.is_synchronous()),
            tickets: Vec::new(),
            holds: Vec::new(),
            links: Vec::new(),
            vcpu: cache.attach_vcpu(),
            cache,
            payload: Arc::new(()),
            mode,
            has_checks,
            tracked: [None; 3],
            stores: 0,
            read_only: [[false; PAGES]; 3],
            is_child: false,
            limit: MemoryLimit::default(),
            next: 2,
            memory: [first, second, GuestMemory::anonymous(AREA_BYTES).expect("memory")],
            source: GuestMemory::memfd(PAGE_BYTES).expect("a memfd"),
        }
    }

    fn next(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    fn shared(&self, area: usize) -> Option<SharedMemory> {
        self.memory[area].backing_id().map(|backing| SharedMemory { backing, offset: 0 })
    }

    pub fn add_region(&mut self, area: usize) {
        let host = self.memory[area].range();
        let (mode, access) = (self.mode, Access::ReadWrite);
        let options = RegionOptions::new(guest(area, 0), host, mode).with_access(access);
        // SAFETY: the memory is dropped after the cache.
        let added = unsafe { self.cache.tracker().add_region(options) };
        assert_eq!(added.is_ok(), self.tracked[area].is_none(), "{added:?}");
        if added.is_ok() {
            self.tracked[area] = Some(self.next());
            self.declare(area);
        }
    }

    pub fn remove_region(&mut self, area: usize) {
        // The next region must find it so.
        self.set_access(area, 0, PAGES, true);
        let removed = self.cache.tracker().remove_region(guest(area, 0));
        assert_eq!(removed.is_ok(), self.tracked[area].take().is_some(), "{removed:?}");
        if removed.is_ok() {
            self.oracle.must_kill(place(area, 0)..place(area, AREA_BYTES));
        }
    }

    /// Declares the area's shared memory, if it shows any.
    pub fn declare(&mut self, area: usize) {
        if let (Some(memory), Some(_)) = (self.shared(area), self.tracked[area]) {
            self.cache.tracker().declare_shared(guest(area, 0), AREA_BYTES as u64, memory).expect("whole pages");
            self.oracle.may_kill(place(area, 0)..place(area, AREA_BYTES));
        }
    }

    /// Whether the guest may store there.
    fn may_write(&self, area: usize, offset: usize, len: usize) -> bool {
        let pages = offset / PAGE_BYTES..(offset + len).div_ceil(PAGE_BYTES);
        !(self.is_child && area < 2) && !self.read_only[area][pages].contains(&true)
    }

    /// The guest's own mprotect. Blocks from these pages stay.
    pub fn set_access(&mut self, area: usize, page: usize, pages: usize, may_write: bool) {
        if self.tracked[area].is_some() {
            let pages = page..(page + pages).min(PAGES);
            let (offset, len) = (pages.start * PAGE_BYTES, pages.len() * PAGE_BYTES);
            let access = if may_write { Access::ReadWrite } else { Access::Read };
            self.cache.tracker().set_access(guest(area, offset), len as u64, access).expect("mprotect");
            self.read_only[area][pages].fill(!may_write);
        }
    }

    pub fn store(&mut self, area: usize, offset: usize, len: usize, value: u8) {
        if self.tracked[area].is_some() && self.may_write(area, offset, len) {
            let bytes = vec![value; len];
            self.memory[area].write(offset, &bytes).expect("inside");
            self.oracle.store(place(area, offset), &bytes);
            self.stores += 1;
        }
    }

    pub fn host_store(&mut self, area: usize, offset: usize, value: u8) {
        if !self.is_child && self.memory[area].write_untracked(offset, &[value]).is_ok() {
            self.oracle.set(place(area, offset), &[value]);
            (0..2).for_each(|view| self.invalidate(view, offset, 1));
        }
    }

    /// A write by the kernel: one of a system call, or one that the kernel does not report.
    pub fn kernel_write(&mut self, area: usize, offset: usize, len: usize, value: u8, is_unseen: bool) {
        let Some(tracked_as) = self.tracked[area] else { return };
        if !self.may_write(area, offset, len) {
            return;
        }
        let (tracker, start) = (self.cache.tracker(), guest(area, offset));
        let held = match is_unseen {
            true => tracker.prepare_unseen_write(start, len as u64),
            false => tracker.prepare_kernel_write(start, len as u64),
        };
        let held = held.expect("a hold");
        let bytes = vec![value; len];
        self.source.write_untracked(0, &bytes).expect("inside");
        let from = self.source.file().expect("a memfd").as_raw_fd();
        let to = self.memory[area].range().start().0 + offset;
        // SAFETY: the bytes are the guest's, and mapped.
        let done = unsafe { libc::pread(from, to as *mut libc::c_void, len, 0) };
        assert_eq!(done, len as isize, "a write that was announced");
        self.oracle.store(place(area, offset), &bytes);
        if is_unseen || matches!(self.mode, Mode::Sigbus | Mode::Mprotect) {
            let (start, end) = (place(area, offset), place(area, offset + len));
            if !self.has_checks {
                self.oracle.must_kill(start..end);
            }
            let pages = start / PAGE_BYTES..end.div_ceil(PAGE_BYTES);
            self.holds.push(Hold { area, tracked_as, pages, _held: held });
        }
    }

    pub fn release(&mut self, which: usize) {
        if which < self.holds.len() {
            self.holds.swap_remove(which);
        }
    }

    /// Replaces the mapping of `pages` from `page` on, or discards their contents.
    fn change(&mut self, area: usize, page: usize, pages: usize, is_replaced: bool) {
        if self.tracked[area].is_none() {
            return;
        }
        let (offset, len) = (page * PAGE_BYTES, pages.min(PAGES - page) * PAGE_BYTES);
        let change = self.cache.tracker().change_mapping(guest(area, offset), len as u64).expect("a change");
        self.oracle.must_kill(place(area, offset)..place(area, offset + len));
        self.check();
        let host = (self.memory[area].range().start().0 + offset) as *mut libc::c_void;
        let (protection, fixed) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_FIXED);
        let private = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        let shared = self.shared(area).map(|memory| SharedMemory { offset: offset as u64, ..memory });
        // SAFETY: the pages are the guest's, whole, and the tracker knows of it.
        let done = unsafe {
            match self.memory[area].file() {
                _ if !is_replaced => libc::madvise(host, len, libc::MADV_DONTNEED) == 0,
                None => libc::mmap(host, len, protection, private | fixed, -1, 0) == host,
                Some(file) => {
                    let file = file.as_raw_fd();
                    libc::mmap(host, len, protection, libc::MAP_SHARED | fixed, file, offset as i64) == host
                }
            }
        };
        assert!(done, "{}", std::io::Error::last_os_error());
        if is_replaced {
            change.finish_replaced(Access::ReadWrite, shared).expect("it can be tracked again");
            self.read_only[area][page..(page + pages).min(PAGES)].fill(false);
        } else {
            drop(change);
        }
        if shared.is_none() {
            self.oracle.set(place(area, offset), &vec![0; len]);
        }
    }

    pub fn replace(&mut self, area: usize, page: usize, pages: usize) {
        self.change(area, page, pages, true);
    }

    pub fn discard(&mut self, page: usize, pages: usize) {
        self.change(2, page, pages, false);
    }

    pub fn sync(&mut self) {
        self.cache.tracker().sync().expect("a harvest");
        self.oracle.sync(0..2 * AREA_BYTES);
    }

    pub fn sync_range(&mut self, area: usize, offset: usize, len: usize) {
        let done = self.cache.tracker().sync_range(guest(area, offset), len as u64);
        assert_eq!(done.is_ok(), self.tracked[area].is_some() || len == 0, "{done:?}");
        if self.tracked[area].is_some() {
            self.oracle.sync(place(area, offset)..place(area, offset + len));
        }
    }

    pub fn invalidate(&mut self, area: usize, offset: usize, len: usize) {
        let done = self.cache.tracker().invalidate(guest(area, offset), len as u64);
        assert_eq!(done.is_ok(), self.tracked[area].is_some() || len == 0, "{done:?}");
        if self.tracked[area].is_some() {
            self.oracle.must_kill(place(area, offset)..place(area, offset + len));
        }
    }

    pub fn begin(&mut self, key: usize) {
        if self.tickets.len() < 3 {
            self.tickets.push((key, self.cache.begin(Key::new(key as u64)), Source::default()));
        }
    }

    /// Whether the translator of `key` declares the bytes of its blocks.
    fn says_its_bytes(key: usize) -> bool {
        key != 3
    }

    /// Whether blocks of `key` have an entry that compares.
    fn has_check(key: usize) -> bool {
        key != 2
    }

    /// Claims a page and "translates" a byte of it.
    pub fn claim(&mut self, which: usize, area: usize, offset: usize) {
        let is_held = self.is_held(place(area, offset) / PAGE_BYTES);
        let Some((key, ticket, source)) = self.tickets.get_mut(which) else { return };
        let mut claimed = ticket.claim(guest(area, offset));
        // A writer goes on before the handler thread has recorded that it may.
        while self.mode == Mode::Thread && !is_held && matches!(claimed, Err(BeginError::Busy(Busy::Unprotecting))) {
            std::thread::yield_now();
            claimed = ticket.claim(guest(area, offset));
        }
        match claimed {
            Ok(host) => {
                assert_eq!(host.start().0, self.memory[area].range().start().0 + offset / PAGE_BYTES * PAGE_BYTES);
                let mut byte = [0];
                self.memory[area].read(offset, &mut byte).expect("inside");
                self.oracle.claimed(source, place(area, offset), &byte);
                if Self::says_its_bytes(*key) {
                    ticket.add_source(guest(area, offset), &byte).expect("a claimed page");
                }
            }
            Err(BeginError::Busy(busy)) => assert!(is_held || self.stores >= HOT_FAULTS, "{busy:?}"),
            Err(BeginError::Untrackable) => panic!("every mapping can be tracked"),
            Err(BeginError::Failed(error)) => assert!(self.tracked[area].is_none(), "{error}"),
        }
    }

    pub fn commit(&mut self, which: usize) {
        if which < self.tickets.len() {
            let entry = 2 * self.next() as usize;
            let (key, mut ticket, source) = self.tickets.swap_remove(which);
            ticket.set_payload_bytes(PAYLOAD_BYTES);
            let (has_check, needs_check) = (Self::has_check(key), ticket.needs_check());
            let made = if has_check { Entry::with_check(entry, entry + 1) } else { Entry::plain(entry) };
            match ticket.commit(made, self.payload.clone()) {
                Err(CommitError::NoPages) => {}
                Err(CommitError::NeedsCheck) => assert!(needs_check && !has_check && self.has_checks),
                done => self.oracle.committed(key, entry, has_check, source, done.is_ok()),
            }
        }
    }

    /// Uses a retained block again, if there is one; otherwise the ticket stays.
    pub fn revive(&mut self, which: usize) {
        if which < self.tickets.len() {
            let (key, ticket, source) = self.tickets.swap_remove(which);
            let before = self.lookup(key);
            match ticket.revive() {
                Ok(Some(ticket)) => self.tickets.push((key, ticket, source)),
                // A block of the same bytes is reachable, whatever became of the ticket.
                Ok(None) if before.is_some() && before == self.lookup(key) => {}
                done => self.oracle.revived(key, source, done.is_ok()),
            }
        }
    }

    /// One more link to a key, or one less.
    pub fn link(&mut self, key: usize) {
        match self.links.iter().position(|(linked, _)| *linked == key) {
            Some(old) if self.links.len() > 2 => drop(self.links.swap_remove(old)),
            _ => self.links.push((key, self.cache.link(Key::new(key as u64)).expect("a key"))),
        }
    }

    /// Forks. Returns whether this is the child. The child's memory is a copy except for the
    /// shared part, and it begins without a block. The parent waits for its end.
    pub fn fork(&mut self) -> bool {
        if self.is_child {
            return false;
        }
        let cache = self.cache.clone();
        let guard = cache.before_fork();
        // SAFETY: see the module's head.
        let pid = unsafe { libc::fork() };
        if pid == 0 {
            guard.after_fork_child().expect("regions of the child's own");
            self.is_child = true;
            self.holds.clear();
            self.oracle.must_kill(0..2 * AREA_BYTES);
            return true;
        }
        drop(guard);
        let mut status = 0;
        // libFuzzer's own timer interrupts it.
        let done = loop {
            // SAFETY: the child is ours and not waited for yet.
            let done = unsafe { libc::waitpid(pid, &raw mut status, 0) };
            if done >= 0 || std::io::Error::last_os_error().kind() != std::io::ErrorKind::Interrupted {
                break done;
            }
        };
        assert!(pid > 0 && done == pid && status == 0, "a child's status is {status:#x}");
        false
    }

    /// The end of a child.
    pub fn exit(&self) -> ! {
        // SAFETY: the parent's exit handlers are the parent's.
        unsafe { libc::_exit(0) }
    }

    fn lookup(&mut self, key: usize) -> Option<usize> {
        self.vcpu.pin().lookup_shared(Key::new(key as u64))
    }

    pub fn remove(&mut self, key: usize) {
        self.cache.remove(Key::new(key as u64));
        self.oracle.removed(key);
    }

    pub fn set_limit(&mut self, live_bytes: usize, retained_bytes: usize) {
        self.limit = MemoryLimit { live_bytes, retained_bytes };
        self.cache.set_limit(self.limit);
        self.oracle.set_evicts(live_bytes < ROOM_FOR_ALL_BYTES);
    }

    pub fn evict(&mut self, payload_bytes: usize) {
        self.cache.evict(payload_bytes);
        self.oracle.gave_up();
    }

    /// Lets self-checking pages cool, which ends their blocks.
    pub fn maintain(&mut self) {
        self.cache.tracker().maintain();
        self.oracle.may_kill(0..2 * AREA_BYTES);
    }

    pub fn translate(&mut self, key: usize, area: usize, offset: usize) {
        self.begin(key);
        let newest = self.tickets.len() - 1;
        self.claim(newest, area, offset);
        self.revive(newest);
        // If it was not revived, it is the newest again.
        self.commit(newest);
    }

    /// Whether nothing may be translated from a page of memory.
    fn is_held(&self, page: usize) -> bool {
        self.holds.iter().any(|hold| self.tracked[hold.area] == Some(hold.tracked_as) && hold.pages.contains(&page))
    }

    /// Looks every key up, and checks that translations are within their limit.
    pub fn check(&mut self) {
        let footprint = self.cache.footprint();
        assert!(footprint.live.bytes() <= self.limit.live_bytes || footprint.live.blocks == 1, "{footprint:?}");
        assert!(footprint.retained.bytes() <= self.limit.retained_bytes, "{footprint:?}");
        for key in 0..KEYS {
            let mut pin = self.vcpu.pin();
            let found = pin.lookup(Key::new(key as u64));
            assert_eq!(found, pin.lookup_shared(Key::new(key as u64)));
            for (_, link) in self.links.iter().filter(|(linked, _)| *linked == key) {
                assert_eq!(link.cell().load(), found.unwrap_or(EntryStubs::NOT_CODE.dead), "key {key}: a link");
            }
            drop(pin);
            self.oracle.check(key, found, |page| self.is_held(page));
        }
    }

    /// Checks at the end that every payload was dropped, once.
    pub fn finish(self) {
        let Self { tickets, holds, links, vcpu, cache, payload, memory, .. } = self;
        drop((tickets, holds, links, vcpu, cache));
        assert_eq!(Arc::strong_count(&payload), 1, "payloads that nobody dropped");
        drop(memory);
    }
}
