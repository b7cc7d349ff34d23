//! Every call for a range against a naive map of pages: regions of every mode beside each other and
//! at the end of the guest's space, memory with several views that the ranges cut, mappings that move, go and
//! cannot be tracked. A block is
//! reachable exactly until a call reaches its bytes, through any view. A call that does not reach
//! them leaves it alone.
//!
//! The tracker and the cache are the real ones, over a software mechanism: no system call.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;

use crate::addr::{GuestAddr, HostAddr, HostRange, PageSize};
use crate::code_cache::{CodeCache, EntryStubs, Key, VCpu};
use crate::error::Error;
use crate::memory::guest_memory::BackingId;
use crate::policy::{Decision, Limits, PageHistory, Policy};
use crate::protection::model::Model;
use crate::protection::{Access, Handled, Mode};
use crate::tracker::{BeginError, Held, MappingChange, MovedFrom, RegionOptions, SharedMemory};

/// Nothing happens by itself: no page is self-checking, and only the requested page is opened or
/// protected.
#[derive(Debug)]
struct Plain;

impl Policy for Plain {
    fn on_begin(&self, _: &PageHistory) -> Decision {
        Decision::Protect
    }

    fn on_harvest(&self, _: &PageHistory) -> bool {
        false
    }

    fn has_cooled(&self, _: &PageHistory) -> bool {
        false
    }

    fn limits(&self) -> Limits {
        Limits::default()
    }
}

const REGION_PAGES: u64 = 8;
/// The first pages of the regions: two neighbours, one apart, one at the end of the
/// guest's space.
const REGIONS: [u64; 4] = [16, 24, 40, PAGES_OF_ALL - REGION_PAGES];
const PAGES_OF_ALL: u64 = 1 << 52;
const PAGE: PageSize = PageSize::from_shift(12);
const MODES: [Mode; 4] = [Mode::Sigbus, Mode::Mprotect, Mode::Thread, Mode::Deferred];
const KEYS: u64 = 12;

/// The bytes of a page: a memory, and a page of it.
type Bytes = (u64, u64);

/// Numbers of private memory start here.
const PRIVATE: u64 = 100;

struct Block {
    source: BTreeSet<Bytes>,
    dead: bool,
    /// Bytes written through a deferred region that no call has asked about yet, with the page
    /// through which they were written.
    pending: BTreeMap<Bytes, u64>,
}

struct Hold {
    regions: Vec<(usize, u64)>,
    pages: BTreeSet<u64>,
    _held: Held,
}

type Mechanism = (Mode, Arc<Model>);

type Step = fn(&mut World);

struct World {
    seed: u64,
    cache: CodeCache<()>,
    vcpu: VCpu<()>,
    /// For each region: how often it was added, and the mechanism while it is there.
    regions: [(u64, Option<Mechanism>); 4],
    /// The bytes that each tracked page shows.
    shown: BTreeMap<u64, Bytes>,
    read_only: BTreeSet<u64>,
    /// Tracked pages without a mapping, or with one that cannot be tracked.
    untrackable: BTreeSet<u64>,
    blocks: BTreeMap<u64, Block>,
    /// Pages of deferred regions that were written since they were last asked about.
    written: BTreeSet<u64>,
    holds: Vec<Hold>,
    private: u64,
    /// Each block has its own address.
    entries: usize,
    /// Blocks that a harvest of a range ended, though they were written through a page outside it.
    by_another_view: u64,
}

/// Bytes of the guest, first and length; they may reach beyond the end of the space.
#[derive(Clone, Copy, Debug)]
struct Asked {
    start: u64,
    len: u64,
}

impl Asked {
    fn wraps(self) -> bool {
        self.len > 0 && self.start.checked_add(self.len - 1).is_none()
    }

    fn has(self, page: u64) -> bool {
        let (first, last) = (page << 12, page << 12 | 0xfff);
        self.len > 0 && !self.wraps() && self.start <= last && first <= self.start + (self.len - 1)
    }

    /// The pages of regions that have a byte of it.
    fn pages(self) -> BTreeSet<u64> {
        REGIONS.iter().flat_map(|&first| first..first + REGION_PAGES).filter(|&page| self.has(page)).collect()
    }

    /// Whether it has bytes that no region may ever hold.
    fn leaves_regions(self) -> bool {
        let pages = self.pages();
        self.len > 0
            && !self.wraps()
            && pages.len() as u64 != ((self.start + (self.len - 1)) >> 12) - (self.start >> 12) + 1
    }
}

impl World {
    fn new(seed: u64) -> Self {
        let cache = CodeCache::with_policy(EntryStubs::NOT_CODE, Arc::new(Plain)).unwrap();
        let vcpu = cache.attach_vcpu();
        let regions = [(); 4].map(|()| (0, None));
        let (shown, read_only, blocks) = (BTreeMap::new(), BTreeSet::new(), BTreeMap::new());
        let (untrackable, written) = (BTreeSet::new(), BTreeSet::new());
        Self {
            seed,
            cache,
            vcpu,
            regions,
            shown,
            read_only,
            untrackable,
            blocks,
            written,
            holds: Vec::new(),
            private: PRIVATE,
            entries: 0,
            by_another_view: 0,
        }
    }

    fn next(&mut self, below: u64) -> u64 {
        self.seed = self.seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.seed >> 33) % below
    }

    fn page(&mut self) -> u64 {
        REGIONS[self.next(4) as usize] + self.next(REGION_PAGES)
    }

    /// Mostly some pages of one or two regions, cut anywhere; at times more, or nothing.
    fn asked(&mut self) -> Asked {
        let start = (self.page() << 12) + self.next(4096);
        match self.next(40) {
            0 => Asked { start, len: 0 },
            1 => Asked { start: self.next(64) << 12, len: self.next(1 << 16) },
            2 => Asked { start, len: u64::MAX - self.next(1 << 14) },
            3 => Asked { start: self.next(20) << 12, len: u64::MAX - self.next(1 << 18) },
            4 => Asked { start, len: u64::MAX - start + self.next(2) },
            5..12 => Asked { start, len: 1 + self.next(REGION_PAGES << 12) },
            _ => Asked { start, len: 1 + self.next(2 << 12) },
        }
    }

    /// Mostly a page that shows bytes of a block that is there.
    fn page_of_a_block(&mut self) -> u64 {
        let there = self.blocks.values().filter(|block| !block.dead).flat_map(|block| &block.source);
        let bytes: BTreeSet<Bytes> = there.copied().collect();
        let shows: Vec<u64> = self.shown.iter().filter(|(_, it)| bytes.contains(it)).map(|(&page, _)| page).collect();
        if shows.is_empty() || self.next(4) == 0 { self.page() } else { shows[self.next(shows.len() as u64) as usize] }
    }

    /// Whole pages of regions.
    fn whole(&mut self) -> (Range<u64>, Asked) {
        let first = self.page();
        let end = (first + 1 + self.next(2 * REGION_PAGES)).min(PAGES_OF_ALL);
        (first..end, Asked { start: first << 12, len: (end - first) << 12 })
    }

    fn memory(&mut self, pages: u64) -> (Bytes, SharedMemory) {
        let (memory, first) = (self.next(2), self.next(12 * pages) / pages);
        // A file and memory without one, with one number.
        let backing = if memory == 0 { BackingId::of_file(1, 9) } else { BackingId::numbered(9) };
        ((memory, first), SharedMemory { backing, offset: first << 12 })
    }

    fn region_of(page: u64) -> usize {
        REGIONS.iter().position(|&first| (first..first + REGION_PAGES).contains(&page)).unwrap()
    }

    fn host(page: u64) -> HostAddr {
        let region = Self::region_of(page);
        HostAddr((1 << 45) + (region << 30) + (((page - REGIONS[region]) as usize) << 12))
    }

    fn mode(&self, page: u64) -> Option<Mode> {
        self.regions[Self::region_of(page)].1.as_ref().map(|(mode, _)| *mode)
    }

    fn model(&self, page: u64) -> Arc<Model> {
        self.regions[Self::region_of(page)].1.as_ref().unwrap().1.clone()
    }

    /// The tracked pages of `asked`.
    fn tracked(&self, asked: Asked) -> BTreeSet<u64> {
        asked.pages().into_iter().filter(|page| self.shown.contains_key(page)).collect()
    }

    fn bytes_of(&self, pages: &BTreeSet<u64>) -> BTreeSet<Bytes> {
        pages.iter().filter_map(|page| self.shown.get(page).copied()).collect()
    }

    /// No block of these bytes is reachable.
    fn kill(&mut self, bytes: &BTreeSet<Bytes>) {
        let hit = self.blocks.values_mut().filter(|block| !block.source.is_disjoint(bytes));
        hit.for_each(|block| block.dead = true);
    }

    /// Checks the answer of a call for `asked`. Returns the result if the call is valid.
    fn expect<T>(&self, asked: Asked, answer: Result<T, Error>, what: &str) -> Option<T> {
        let tracked = self.tracked(asked);
        match answer {
            _ if asked.wraps() => assert!(matches!(answer, Err(Error::BadRange { .. })), "{what} {asked:x?}"),
            Ok(done) if asked.len == 0 || !tracked.is_empty() => return Some(done),
            answer => {
                let is_right = asked.len > 0
                    && tracked.is_empty()
                    && answer.err() == Some(Error::NotTracked { start: asked.start, len: asked.len });
                assert!(is_right, "{what} {asked:x?}");
            }
        }
        None
    }

    /// As [`World::expect`], for a call that needs all of it tracked.
    fn expect_all(&self, asked: Asked, answer: Result<(), Error>, what: &str) -> bool {
        let is_tracked = asked.len > 0
            && !asked.wraps()
            && !asked.leaves_regions()
            && asked.pages().iter().all(|page| self.shown.contains_key(page));
        match answer {
            Ok(()) => assert!(is_tracked || asked.len == 0, "{what} {asked:x?}"),
            Err(Error::BadRange { .. }) => assert!(asked.wraps(), "{what} {asked:x?}"),
            Err(Error::NotTracked { .. }) => assert!(!is_tracked, "{what} {asked:x?}"),
            Err(error) => panic!("{what} {asked:x?}: {error}"),
        }
        is_tracked
    }

    fn add_or_remove(&mut self) {
        let at = self.next(4) as usize;
        let (guest, pages) = (GuestAddr(REGIONS[at] << 12), REGIONS[at]..REGIONS[at] + REGION_PAGES);
        if self.regions[at].1.take().is_some() {
            let bytes = self.bytes_of(&pages.clone().collect());
            self.cache.tracker().remove_region(guest).unwrap();
            self.kill(&bytes);
            self.forget(|page| pages.contains(page));
            return;
        }
        let mode = MODES[self.next(4) as usize];
        let host = HostRange::of_pages(Self::host(pages.start), REGION_PAGES as usize, PAGE);
        let model = Arc::new(Model::new(mode, host, PAGE));
        let open = |_: &mut _| Ok(model.clone() as Arc<dyn crate::protection::Protection>);
        let reserved = self.next(4) == 0;
        let options = RegionOptions::new(guest, host, mode).with_reserved(reserved);
        self.cache.tracker().add_region_on(options, None, open).unwrap();
        self.regions[at] = (self.regions[at].0 + 1, Some((mode, model)));
        self.untrackable.extend(pages.clone().filter(|_| reserved));
        self.show_private(pages);
    }

    /// These pages are in no region any more.
    fn forget(&mut self, gone: impl Fn(&u64) -> bool) {
        self.shown.retain(|page, _| !gone(page));
        self.read_only.retain(|page| !gone(page));
        self.untrackable.retain(|page| !gone(page));
    }

    /// Other mappings are at these pages now.
    fn map(&mut self, pages: &BTreeSet<u64>, refused: bool) {
        for &page in pages {
            self.model(page).map(HostRange::of_pages(Self::host(page), 1, PAGE), refused);
            self.read_only.remove(&page);
            if refused {
                self.untrackable.insert(page)
            } else {
                self.untrackable.remove(&page)
            };
        }
    }

    fn show_private(&mut self, pages: impl IntoIterator<Item = u64>) {
        for page in pages {
            self.private += 1;
            self.shown.insert(page, (self.private, 0));
        }
    }

    fn declare(&mut self) {
        let (pages, asked) = self.whole();
        let (bytes, memory) = self.memory(1);
        let done = self.cache.tracker().declare_shared(GuestAddr(asked.start), asked.len, memory);
        if self.expect_all(asked, done, "declare_shared") {
            self.kill(&self.bytes_of(&pages.clone().collect()));
            let new = pages.clone().map(|page| (page, (bytes.0, bytes.1 + (page - pages.start))));
            let new: BTreeMap<u64, Bytes> = new.collect();
            self.kill(&new.values().copied().collect());
            self.shown.extend(new);
        }
    }

    fn change(&mut self) {
        let asked = self.asked();
        let change = self.cache.tracker().change_mapping(GuestAddr(asked.start), asked.len);
        let Some(change) = self.expect(asked, change, "change_mapping") else { return };
        let pages = self.tracked(asked);
        self.kill(&self.bytes_of(&pages));
        self.check("in a change of mapping");
        if let Some(&page) = pages.first() {
            let claimed = self.cache.begin(Key::new(1)).claim(GuestAddr(page << 12));
            let is_right = match claimed {
                Err(BeginError::Untrackable) => self.untrackable.contains(&page),
                claimed => matches!(claimed, Err(BeginError::Busy(_))),
            };
            assert!(is_right, "begun in a change");
        }
        let removed = match self.next(12) {
            0 => pages.first().copied().map(|page| {
                let at = Self::region_of(page);
                self.regions[at].1 = None;
                let region = REGIONS[at]..REGIONS[at] + REGION_PAGES;
                self.kill(&self.bytes_of(&region.clone().collect()));
                self.cache.tracker().remove_region(GuestAddr(region.start << 12)).unwrap();
                self.forget(|page| region.contains(page));
            }),
            1 => return drop(change),
            2 => {
                change.finish_unmapped().unwrap();
                self.map(&pages, false);
                self.untrackable.extend(&pages);
                return self.show_private(pages);
            }
            _ => None,
        };
        self.finish(change, asked, pages, removed.is_some());
    }

    fn finish(&mut self, change: MappingChange, asked: Asked, pages: BTreeSet<u64>, removed: bool) {
        let mut shared = (self.next(2) == 0).then(|| self.memory(1));
        let is_askew = self.next(8) == 0;
        if let Some((_, memory)) = shared.as_mut().filter(|_| is_askew) {
            memory.offset += 1;
        }
        let pages: BTreeSet<u64> = pages.into_iter().filter(|page| self.shown.contains_key(page)).collect();
        self.map(&pages, false);
        let refused = if self.next(4) == 0 {
            pages.iter().copied().filter(|_| self.next(4) == 0).collect()
        } else {
            BTreeSet::new()
        };
        self.map(&refused, true);
        let first = asked.start >> 12;
        let last = asked.start.saturating_add(asked.len.saturating_sub(1)) >> 12;
        let done = change.finish_replaced(Access::ReadWrite, shared.map(|(_, memory)| memory));
        let bad =
            shared.is_some_and(|(bytes, _)| is_askew || bytes.1 + (last - first) >= PAGES_OF_ALL) && asked.len > 0;
        match done {
            Err(Error::BadRange { .. }) => assert!(bad),
            Err(Error::NotTracked { .. }) => assert!(removed),
            Err(Error::System { .. }) => assert!(!refused.is_empty()),
            done => assert!(done == Ok(()) && !removed && !bad && refused.is_empty(), "{done:?}"),
        }
        if bad {
            // Nothing is translated from them until a real mapping is there.
            for page in pages.clone() {
                let claimed = self.cache.begin(Key::new(1)).claim(GuestAddr(page << 12));
                assert!(matches!(claimed, Err(BeginError::Untrackable)), "{claimed:?}");
            }
            let (start, len) = (GuestAddr(asked.start), asked.len);
            let again = self.cache.tracker().change_mapping(start, len);
            if let Some(again) = again.ok().filter(|_| !pages.is_empty()) {
                let done = again.finish_replaced(Access::ReadWrite, None);
                assert_eq!(done.is_ok(), refused.is_empty(), "{done:?}");
            }
        }
        match shared.filter(|_| !bad) {
            Some(((memory, offset), _)) => {
                let new: BTreeMap<u64, Bytes> =
                    pages.into_iter().map(|page| (page, (memory, offset + (page - first)))).collect();
                self.kill(&new.values().copied().collect());
                self.shown.extend(new);
            }
            None => self.show_private(pages),
        }
    }

    /// A mapping moves, grows or shrinks, with all that is known of it.
    fn move_mapping(&mut self) {
        let ((from, asked_from), (to, asked_to)) = (self.whole(), self.whole());
        let leaves = if self.next(2) == 0 { MovedFrom::Mapped } else { MovedFrom::Unmapped };
        let tracker = self.cache.tracker();
        let source = tracker.change_mapping(GuestAddr(asked_from.start), asked_from.len);
        let target = tracker.change_mapping(GuestAddr(asked_to.start), asked_to.len);
        let source = self.expect(asked_from, source, "the source of a move");
        let target = self.expect(asked_to, target, "the target of a move");
        let (old, new) = (self.tracked(asked_from), self.tracked(asked_to));
        self.kill(&self.bytes_of(&old));
        self.kill(&self.bytes_of(&new));
        self.check("in a move");
        let (Some(source), Some(target)) = (source, target) else { return };
        let source = source.moving().unwrap();
        if self.next(8) == 0 {
            // The call fails, and nothing was moved.
            return drop((source, target));
        }
        // What each page of the target shows, by the page that was moved there.
        let mut moved = BTreeMap::new();
        for &page in &new {
            let (index, last) = (page - to.start, from.end - from.start - 1);
            let (source, beyond) = (from.start + index.min(last), index.saturating_sub(last));
            let shown = self.shown.get(&source).map(|&(memory, at)| (memory, at + beyond));
            // What has grown is new private memory, or more of the shared one.
            let shown = shown.filter(|(memory, _)| *memory < PRIVATE || beyond == 0);
            moved.insert(page, (shown, self.shown.contains_key(&source).then_some(source)));
        }
        let untrackable = self.untrackable.clone();
        let read_only = self.read_only.clone();
        let left: BTreeSet<u64> = old.difference(&new).copied().filter(|page| !to.contains(page)).collect();
        let kept: BTreeSet<u64> =
            left.difference(&untrackable).copied().filter(|_| leaves == MovedFrom::Mapped).collect();
        let gone: BTreeSet<u64> = left.iter().copied().filter(|_| leaves == MovedFrom::Unmapped).collect();
        self.map(&gone, false);
        self.untrackable.extend(&gone);
        for page in &kept {
            // The kernel has dropped the tracking.
            self.model(*page).map(HostRange::of_pages(Self::host(*page), 1, PAGE), false);
        }
        self.map(&new, false);
        target.finish_moved(source, leaves).unwrap();
        let private: BTreeSet<u64> =
            gone.into_iter().chain(kept.into_iter().filter(|page| self.shown[page].0 >= PRIVATE)).collect();
        for (page, (shown, source)) in moved {
            match source {
                Some(source) if !untrackable.contains(&source) => {
                    if read_only.contains(&source) {
                        self.read_only.insert(page);
                    }
                }
                _ => _ = self.untrackable.insert(page),
            }
            match shown {
                Some(bytes) => _ = self.shown.insert(page, bytes),
                None => self.show_private([page]),
            }
        }
        self.show_private(private);
        self.kill(&self.bytes_of(&new));
    }

    fn set_access(&mut self) {
        let asked = self.asked();
        let access = if self.next(2) == 0 { Access::Read } else { Access::ReadWrite };
        let done = self.cache.tracker().set_access(GuestAddr(asked.start), asked.len, access);
        let is_untrackable = |page: &u64| self.untrackable.contains(page);
        if asked.len > 0 && !asked.wraps() && asked.pages().iter().any(is_untrackable) {
            assert!(matches!(done, Err(Error::NotTracked { .. })), "set_access {asked:x?}: {done:?}");
            return;
        }
        if self.expect_all(asked, done, "set_access") {
            for page in self.tracked(asked) {
                if access == Access::Read {
                    self.read_only.insert(page)
                } else {
                    self.read_only.remove(&page)
                };
            }
        }
    }

    fn store(&mut self) {
        let page = self.page_of_a_block();
        let Some(&bytes) = self.shown.get(&page).filter(|_| !self.untrackable.contains(&page)) else { return };
        let at = HostAddr(Self::host(page).0 + self.next(4096) as usize);
        let mut retired = 0;
        let handled = self.model(page).store(at, 1, || retired += 1);
        if self.read_only.contains(&page) {
            assert_eq!((handled, retired), (Handled::NotOurs, 0));
            return;
        }
        assert_eq!((handled, retired), (Handled::Retry, 1));
        if self.mode(page) == Some(Mode::Deferred) {
            self.written.insert(page);
            let hit = self.blocks.values_mut().filter(|block| block.source.contains(&bytes));
            hit.for_each(|block| block.pending.extend([(bytes, page)]));
        } else {
            self.kill(&BTreeSet::from([bytes]));
        }
    }

    /// A write by the kernel, or an unseen one: through each page of the hold.
    fn hold(&mut self) {
        let asked = self.asked();
        let (tracker, start) = (self.cache.tracker(), GuestAddr(asked.start));
        let held = match self.seed % 2 {
            0 => tracker.prepare_kernel_write(start, asked.len),
            _ => tracker.prepare_unseen_write(start, asked.len),
        };
        let Some(held) = self.expect(asked, held, "a hold") else { return };
        let pages = self.tracked(asked);
        for &page in &pages {
            let is_open = self.mode(page) == Some(Mode::Deferred) || !self.model(page).is_protected(Self::host(page));
            assert!(is_open, "a page that is held is protected");
        }
        self.kill(&self.bytes_of(&pages));
        let regions: BTreeSet<usize> = pages.iter().map(|&page| Self::region_of(page)).collect();
        let regions = regions.into_iter().map(|at| (at, self.regions[at].0)).collect();
        self.holds.push(Hold { regions, pages, _held: held });
        if self.holds.len() > 1 {
            self.holds.swap_remove(0);
        }
    }

    fn release(&mut self) {
        self.holds.clear();
    }

    fn is_held(&self, page: u64) -> bool {
        let at = Self::region_of(page);
        let lasts = |hold: &Hold| hold.regions.contains(&(at, self.regions[at].0)) && self.regions[at].1.is_some();
        self.holds.iter().any(|hold| lasts(hold) && hold.pages.contains(&page))
    }

    fn sync(&mut self) {
        let asked = match self.next(3) {
            0 => self.asked(),
            // It begins after the block's page, and may end in another view of it.
            1 => Asked {
                start: (self.page_of_a_block() << 12).wrapping_add(0x1000),
                len: 1 + self.next(REGION_PAGES << 12),
            },
            _ => Asked { start: self.page_of_a_block() << 12 | 0x800, len: 1 + self.next(0x1000) },
        };
        let bytes = if self.next(8) == 0 {
            self.cache.tracker().sync().unwrap();
            self.shown.values().copied().collect()
        } else {
            let done = self.cache.tracker().sync_range(GuestAddr(asked.start), asked.len);
            if self.expect(asked, done, "sync_range").is_none() {
                return;
            }
            self.bytes_of(&self.tracked(asked))
        };
        for block in self.blocks.values_mut().filter(|block| !block.dead) {
            let mut told = block.pending.iter().filter(|(written, _)| bytes.contains(written)).peekable();
            block.dead = told.peek().is_some();
            self.by_another_view += u64::from(block.dead && told.all(|(_, &page)| !asked.has(page)));
        }
        // A page written before any block of its bytes existed is reported too.
        let (shown, is_asked) = (&self.shown, |at: &Bytes| bytes.contains(at));
        let told: BTreeSet<u64> =
            self.written.iter().copied().filter(|page| shown.get(page).is_some_and(is_asked)).collect();
        let told_bytes = self.bytes_of(&told);
        let mut pin = self.vcpu.pin();
        for (&key, block) in self.blocks.iter_mut().filter(|(_, block)| !block.source.is_disjoint(&told_bytes)) {
            block.dead |= pin.lookup(Key::new(key)).is_none();
        }
        self.written.retain(|page| !told.contains(page));
    }

    fn invalidate(&mut self) {
        let asked = self.asked();
        let done = self.cache.tracker().invalidate(GuestAddr(asked.start), asked.len);
        if self.expect(asked, done, "invalidate").is_some() {
            self.kill(&self.bytes_of(&self.tracked(asked)));
        }
    }

    fn translate(&mut self) {
        let (key, count) = (self.next(KEYS), 1 + self.next(2));
        let mut ticket = self.cache.begin(Key::new(key));
        let mut source = BTreeSet::new();
        for _ in 0..count {
            let page = self.page();
            let guest = GuestAddr(page << 12 | self.next(4096));
            match (ticket.claim(guest), self.shown.get(&page)) {
                (Ok(host), Some(&bytes)) => {
                    assert_eq!(host.start(), Self::host(page));
                    let mut views = self.shown.iter().filter(|(_, shown)| **shown == bytes);
                    assert!(!views.any(|(view, _)| self.untrackable.contains(view)), "an untrackable page was claimed");
                    let mut views = self.shown.iter().filter(|(_, shown)| **shown == bytes);
                    assert!(!views.any(|(&view, _)| self.is_held(view)), "a page that is held was claimed");
                    source.insert(bytes);
                }
                (Err(BeginError::Busy(busy)), Some(&bytes)) => {
                    let mut views = self.shown.iter().filter(|(_, shown)| **shown == bytes);
                    assert!(views.any(|(&view, _)| self.is_held(view)), "{busy:?} for nothing");
                    return;
                }
                (Err(BeginError::Untrackable), Some(&bytes)) => {
                    let mut views = self.shown.iter().filter(|(_, shown)| **shown == bytes);
                    assert!(views.any(|(view, _)| self.untrackable.contains(view)), "{page:x} can be tracked");
                    return;
                }
                (Err(BeginError::Failed(Error::NotTracked { .. })), None) => return,
                (claimed, shown) => panic!("{claimed:?} of what shows {shown:?}"),
            }
        }
        self.entries += 1;
        ticket.commit(0x10 + self.entries, ()).unwrap();
        self.blocks.insert(key, Block { source, dead: false, pending: BTreeMap::new() });
    }

    /// The reachable blocks are those of the map.
    fn check(&mut self, after: &str) {
        let mut pin = self.vcpu.pin();
        for (&key, block) in &self.blocks {
            let found = pin.lookup(Key::new(key)).is_some();
            assert_eq!(found, !block.dead, "after {after}: the block of key {key}, from {:?}", block.source);
        }
    }

    fn step(&mut self) {
        let what: [(&str, Step); 22] = [
            ("a region", Self::add_or_remove),
            ("a declaration", Self::declare),
            ("a declaration", Self::declare),
            ("a change", Self::change),
            ("a change", Self::change),
            ("a move", Self::move_mapping),
            ("a move", Self::move_mapping),
            ("set_access", Self::set_access),
            ("a hold", Self::hold),
            ("a release", Self::release),
            ("a release", Self::release),
            ("a store", Self::store),
            ("a translation", Self::translate),
            ("sync_range", Self::sync),
            ("sync_range", Self::sync),
            ("invalidate", Self::invalidate),
            ("a store", Self::store),
            ("a store", Self::store),
            ("a translation", Self::translate),
            ("a translation", Self::translate),
            ("a translation", Self::translate),
            ("a translation", Self::translate),
        ];
        let (name, step) = what[self.next(22) as usize];
        step(self);
        self.check(name);
    }
}

#[test]
fn ranges_and_views_against_a_map_of_pages() {
    const ROUNDS: u64 = if cfg!(miri) { 2 } else { 240 };
    const STEPS: usize = if cfg!(miri) { 40 } else { 400 };
    let mut by_another_view = 0;
    for seed in 0..ROUNDS {
        let mut world = World::new(seed);
        // Shown if the round fails.
        println!("seed {seed}");
        (0..4).for_each(|_| world.add_or_remove());
        (0..STEPS).for_each(|_| world.step());
        by_another_view += world.by_another_view;
    }
    println!("{by_another_view} blocks ended by a harvest of another view");
    // Otherwise the rounds try little.
    assert!(by_another_view > 20 || cfg!(miri));
}
