//! The known facts of memory and of each block, without asking the library: the
//! bytes, and the time of each event on a page.

use std::ops::Range;

pub const PAGE_BYTES: usize = 4096;
/// Pages of an area.
pub const PAGES: usize = 4;
pub const AREA_BYTES: usize = PAGES * PAGE_BYTES;
pub const KEYS: usize = 4;

/// A page of memory, shown by one area or by two.
#[derive(Clone, Copy, Default)]
struct Page {
    /// The time of the last event that blocks on it need not outlive.
    touched: u64,
    /// The time of the last event that no block on it outlives.
    killed: u64,
    /// In deferred mode: written since the last announcement.
    is_pending: bool,
}

/// The source of a block.
#[derive(Clone, Default)]
pub struct Source {
    /// Pages of memory, and when each was claimed.
    pages: Vec<(usize, u64)>,
    /// Places in memory, and the byte that each had.
    bytes: Vec<(usize, u8)>,
}

/// A block's code, which may be used again: its plain entry, and the number behind it if it
/// has a self-checking entry.
struct Code {
    key: usize,
    entry: usize,
    has_check: bool,
    bytes: Vec<(usize, u8)>,
}

/// A block that was made reachable.
struct Block {
    /// Its code in `Oracle::code`; for a revived block, any code of the same bytes.
    code: Option<usize>,
    source: Source,
    /// Whether another one was made reachable since, and there is a limit.
    may_be_evicted: bool,
}

pub struct Oracle {
    is_synchronous: bool,
    /// Whether the limit has no room for every block.
    evicts: bool,
    /// The key of the block that was made reachable last.
    newest: usize,
    now: u64,
    memory: Vec<u8>,
    pages: [Page; 2 * PAGES],
    blocks: [Option<Block>; KEYS],
    code: Vec<Code>,
}

/// The place of an area's bytes in memory: two areas show the same.
pub fn place(area: usize, offset: usize) -> usize {
    offset + if area == 2 { AREA_BYTES } else { 0 }
}

fn pages_of(range: Range<usize>) -> Range<usize> {
    range.start / PAGE_BYTES..range.end.div_ceil(PAGE_BYTES)
}

impl Oracle {
    pub fn new(is_synchronous: bool) -> Self {
        let memory = vec![0; 2 * AREA_BYTES];
        let (pages, blocks) = (Default::default(), Default::default());
        Self { is_synchronous, evicts: false, newest: 0, now: 0, memory, pages, blocks, code: Vec::new() }
    }

    fn touch(&mut self, range: Range<usize>) -> &mut [Page] {
        self.now += 1;
        let pages = &mut self.pages[pages_of(range)];
        pages.iter_mut().for_each(|page| page.touched = self.now);
        pages
    }

    /// An event may end the blocks on `range`.
    pub fn may_kill(&mut self, range: Range<usize>) {
        self.touch(range);
    }

    /// No block made from `range` before may be reached.
    pub fn must_kill(&mut self, range: Range<usize>) {
        self.touch(range).iter_mut().for_each(|page| page.killed = page.touched);
    }

    /// A store that the tracking must learn of. It may open following pages of its area too.
    pub fn store(&mut self, at: usize, bytes: &[u8]) {
        self.touch(at..at - at % AREA_BYTES + AREA_BYTES);
        let is_pending = !self.is_synchronous;
        self.touch(at..at + bytes.len()).iter_mut().for_each(|page| page.is_pending |= is_pending);
        self.set(at, bytes);
    }

    /// Memory changed. The caller reports the change to the tracking by itself.
    pub fn set(&mut self, at: usize, bytes: &[u8]) {
        self.memory[at..at + bytes.len()].copy_from_slice(bytes);
    }

    /// The writes to `range` were announced.
    pub fn sync(&mut self, range: Range<usize>) {
        self.now += 1;
        for page in &mut self.pages[pages_of(range)] {
            if std::mem::take(&mut page.is_pending) {
                page.touched = self.now;
            }
        }
    }

    /// The bytes at `at` were read under a claim.
    pub fn claimed(&mut self, source: &mut Source, at: usize, bytes: &[u8]) {
        assert_eq!(bytes, &self.memory[at..at + bytes.len()], "memory is not what was stored");
        self.now += 1;
        let page = at / PAGE_BYTES;
        if source.pages.iter().all(|&(known, _)| known != page) {
            source.pages.push((page, self.now));
        }
        source.bytes.extend((at..).zip(bytes.iter().copied()));
    }

    /// A block was committed or refused.
    pub fn committed(&mut self, key: usize, entry: usize, has_check: bool, source: Source, is_reachable: bool) {
        self.code.push(Code { key, entry, has_check, bytes: source.bytes.clone() });
        let code = Some(self.code.len() - 1);
        self.made_reachable(key, code, source, is_reachable);
    }

    /// A retained block was made reachable again, or a write prevented it.
    pub fn revived(&mut self, key: usize, source: Source, is_reachable: bool) {
        self.made_reachable(key, None, source, is_reachable);
    }

    fn made_reachable(&mut self, key: usize, code: Option<usize>, source: Source, is_reachable: bool) {
        assert!(is_reachable || !self.must_be_found(&source), "a commit was refused and no page was touched");
        // The block that it supersedes is gone either way.
        self.blocks[key] = is_reachable.then_some(Block { code, source, may_be_evicted: false });
        if is_reachable {
            self.newest = key;
            self.set_evicts(self.evicts);
        }
    }

    /// Whether blocks are evicted from now on.
    pub fn set_evicts(&mut self, evicts: bool) {
        self.evicts = evicts;
        if evicts {
            self.may_evict();
        }
    }

    /// Every block but the newest may be gone.
    fn may_evict(&mut self) {
        let others = self.blocks.iter_mut().enumerate().filter(|&(key, _)| key != self.newest);
        others.filter_map(|(_, block)| block.as_mut()).for_each(|block| block.may_be_evicted = true);
    }

    /// Blocks were evicted by hand: each may be gone, the newest too.
    pub fn gave_up(&mut self) {
        self.blocks.iter_mut().flatten().for_each(|block| block.may_be_evicted = true);
    }

    /// The block of `key` was removed.
    pub fn removed(&mut self, key: usize) {
        self.blocks[key] = None;
    }

    fn must_be_found(&self, source: &Source) -> bool {
        source.pages.iter().all(|&(page, claimed)| self.pages[page].touched < claimed)
    }

    /// Checks that a lookup of `key` may give `found`. `is_held` names the pages that nothing may
    /// be translated from.
    pub fn check(&self, key: usize, found: Option<usize>, is_held: impl Fn(usize) -> bool) {
        let Some(entry) = found else {
            let lost =
                self.blocks[key].as_ref().filter(|block| !block.may_be_evicted && self.must_be_found(&block.source));
            return assert!(lost.is_none(), "key {key}: a block was lost and no page of it was touched");
        };
        let block = self.blocks[key].as_ref().expect("a block that was committed");
        let is_entry = |code: &Code| entry == code.entry || code.has_check && entry == code.entry + 1;
        let code = match block.code {
            Some(code) => &self.code[code],
            None => self.code.iter().find(|code| is_entry(code)).expect("an entry that was committed"),
        };
        assert!(is_entry(code), "key {key}: an older block");
        assert!((code.key, &code.bytes) == (key, &block.source.bytes), "key {key}: revived for other bytes");
        for &(page, claimed) in &block.source.pages {
            assert!(self.pages[page].killed < claimed, "key {key}: outlived what ends every block on page {page}");
        }
        if entry != code.entry {
            // The block compares its bytes, and does not run if it is stale.
            return;
        }
        for &(page, _) in &block.source.pages {
            assert!(!is_held(page), "key {key}: a block on page {page}, which is held");
        }
        for &(at, byte) in &block.source.bytes {
            let is_announced = !self.pages[at / PAGE_BYTES].is_pending;
            assert!(byte == self.memory[at] || !is_announced, "key {key}: stale at {at:#x}");
        }
    }
}
