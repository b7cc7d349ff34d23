//! A translation block's record, the list of the blocks on a page, and how a
//! block dies.
//!
//! A block is reached through its **entry cell** alone: one word that holds the address of
//! its code. Each key has one cell, which outlives the key's blocks. Lookup tables and links
//! hold the cell's address, so one store to the cell kills a block.
//!
//! | content of the cell | meaning |
//! |---|---|
//! | the block's plain entry | the block is valid |
//! | the block's checked entry | the block is valid if its comparison finds its bytes unchanged |
//! | [`EntryStubs::pending`] | a commit is under way; nothing to run |
//! | [`EntryStubs::dead`] | nothing to run |
//!
//! A commit stores `pending`, enters the block in the list of every page that it lies on,
//! fences, asks for the generations, and exchanges `pending` for the entry. A thread that
//! learned of a write has moved the generation. It then fences and walks the page's list. It
//! kills each block with a cell that holds one of its entries or `pending`. One of the two
//! threads sees the other. A kill takes `pending` away, so a commit that lost cannot
//! publish.
//!
//! # Beside a block
//!
//! A write that hit none of a block's bytes leaves the block and makes its page writable.
//! From then on the block compares its bytes each time it is entered. The walk exchanges the
//! plain entry for the checked one (a **downgrade**). Nothing exchanges it back; a later
//! block may have a plain entry again. A commit that is under way is killed, since it may
//! still publish the plain entry. Both steps exchange the content that was found in the
//! cell, so a downgrade never brings back an entry that a kill took away.
//!
//! # The stale flag
//!
//! Code that is already inside the block learns of a kill or a downgrade by a byte that it
//! polls after its own stores ([`StaleFlag`]). Every caller changes the cell first and then
//! the flag, even if it finds either changed: it may have overtaken the thread that made the
//! change, and its own store is about to retire. The mark that the *record* is dead comes
//! last. So a caller that finds the mark knows that cell and flag are done, and the record
//! goes to the dead stack once, however often it is found.
//!
//! The flag belongs to the translation. It outlives the record if the same translation is
//! used again. At that time a thread may still be inside from before, store to the block's
//! own bytes and then look at the flag. So the flag must not say that the block is valid
//! before the generations are known to hold, and it must not overwrite a kill after that.
//! For this a commit makes it [`StaleFlag::PENDING`] before the block is in any list, and
//! later exchanges this for the published value.
//!
//! # Safety
//!
//! Handlers change words, never lists: translators enter nodes and take them out, under the
//! cache's commit lock. The epoch frees a block that was taken out, and it counts the
//! walkers too. So every node that a walker can reach lives. Dead blocks reach the
//! translators through a stack that only grows until it is taken whole.
#![allow(unsafe_code)]

use std::fmt;
use std::ptr::{self, NonNull};

use crate::sync::{AtomicBool, AtomicPtr, AtomicU8, AtomicUsize, Ordering, Rule, left_out};

/// The two addresses that an entry cell holds while there is nothing to run.
///
/// Emitted code jumps to any address that a cell holds, so both must be code of the embedder
/// that goes back to its dispatcher. They must differ from each other and from every block's
/// entry. An embedder that never jumps through cells, and asks for each entry instead, can
/// use [`EntryStubs::NOT_CODE`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EntryStubs {
    /// The address in a dead block's cell.
    pub dead: usize,
    /// The address in the cell of a block that is being committed.
    pub pending: usize,
}

impl EntryStubs {
    /// For embedders that never jump through cells.
    pub const NOT_CODE: EntryStubs = EntryStubs { dead: 0, pending: 1 };
}

/// The entry addresses of a block's code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    plain: usize,
    checked: Option<usize>,
}

impl Entry {
    /// An entry that trusts that the block's bytes are unchanged.
    pub const fn plain(address: usize) -> Self {
        Self { plain: address, checked: None }
    }

    /// Beside [`Entry::plain`], the code at `checked` compares the guest bytes that the
    /// block was made from with their former values, each time. If they are the same it goes
    /// on as the plain entry does; otherwise it goes back to the dispatcher, which calls
    /// [`CodeCache::remove`](crate::CodeCache::remove).
    ///
    /// A block that has one can stay on a page that is written to.
    pub const fn with_check(plain: usize, checked: usize) -> Self {
        Self { plain, checked: Some(checked) }
    }

    /// The address to enter at, with the comparison or without one.
    pub(crate) fn address(self, is_checked: bool) -> Option<usize> {
        if is_checked { self.checked } else { Some(self.plain) }
    }

    /// Whether `address`, in a cell, leads into the block.
    pub(crate) fn has(self, address: usize) -> bool {
        self.plain == address || self.checked == Some(address)
    }

    /// Whether each address differs from the other and from both stubs.
    pub(crate) fn is_usable(self, stubs: EntryStubs) -> bool {
        self.checked != Some(self.plain) && !self.has(stubs.dead) && !self.has(stubs.pending)
    }
}

impl From<usize> for Entry {
    fn from(address: usize) -> Self {
        Self::plain(address)
    }
}

/// The values of the byte that emitted code may poll after its own stores, at
/// [`Ticket::stale_flag`](crate::Ticket::stale_flag). To leave the block after the store is
/// always right, whatever the value. Code that finds a value that it does not know must
/// leave.
#[derive(Debug)]
pub struct StaleFlag(AtomicU8);

impl StaleFlag {
    /// Go on.
    pub const VALID: u8 = 0;
    /// The block is dead: leave right after the store.
    pub const DEAD: u8 = 1;
    /// The block's page is writable: leave after a store that may have hit the
    /// bytes that the block was made from.
    pub const CHECKED: u8 = 2;
    /// The same, and the bytes can be seen at other addresses too: leave after any
    /// store.
    pub const CHECKED_SHARED: u8 = 3;
    /// A commit is under way: treat the block as a dead one.
    pub const PENDING: u8 = 4;

    pub(crate) fn new() -> Self {
        Self(AtomicU8::new(Self::PENDING))
    }

    /// A commit begins. From here on a new kill differs from the kill that ended the last
    /// life. Called before a walker can find the block.
    pub(crate) fn begin(&self) {
        self.0.swap(Self::PENDING, Ordering::AcqRel);
    }

    /// A commit has found that the generations hold. Sets `value`, unless the block was
    /// killed since the commit began.
    pub(crate) fn publish(&self, value: u8) {
        let _ = self.0.compare_exchange(Self::PENDING, value, Ordering::AcqRel, Ordering::Relaxed);
    }

    /// Async-signal-safe.
    fn kill(&self) {
        self.0.swap(Self::DEAD, Ordering::AcqRel);
    }

    /// Returns whether it was valid until now: a dead block stays dead. Async-signal-safe.
    fn downgrade(&self, to: u8) -> bool {
        self.0.compare_exchange(Self::VALID, to, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    }

    #[cfg(test)]
    pub(crate) fn load(&self) -> u8 {
        self.0.load(Ordering::Acquire)
    }
}

/// The word that blocks are reached through. Its address stays the same as long as the cache
/// lives.
#[repr(transparent)]
#[derive(Debug)]
pub struct EntryCell(AtomicUsize);

impl EntryCell {
    pub(crate) fn new(stubs: EntryStubs) -> Self {
        Self(AtomicUsize::new(stubs.dead))
    }

    /// The address to jump to: a block's entry or one of the stubs.
    #[inline]
    pub fn load(&self) -> usize {
        self.0.load(Ordering::Acquire)
    }

    /// A commit begins. Called under the commit lock.
    pub(crate) fn begin(&self, stubs: EntryStubs) {
        self.0.store(stubs.pending, Ordering::Relaxed);
    }

    /// A commit ends. Returns whether the cell now leads to `address`.
    pub(crate) fn publish(&self, stubs: EntryStubs, address: usize) -> bool {
        if left_out(Rule::PublishByExchange) {
            self.0.store(address, Ordering::Release);
            return true;
        }
        self.0.compare_exchange(stubs.pending, address, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    }

    /// Makes the cell lead to no block if it leads to the block of `entry` or is about to.
    fn kill(&self, stubs: EntryStubs, entry: Entry) {
        // One loop over all values: meanwhile a commit or a downgrade may turn one into
        // another.
        let mut seen = self.0.load(Ordering::Relaxed);
        while entry.has(seen) || seen == stubs.pending {
            match self.0.compare_exchange_weak(seen, stubs.dead, Ordering::AcqRel, Ordering::Relaxed) {
                Ok(_) => return,
                Err(now) => seen = now,
            }
        }
    }

    /// If the cell leads to `plain`, makes it lead to `checked`. Returns the value found.
    fn downgrade(&self, plain: usize, checked: usize) -> usize {
        if left_out(Rule::DowngradeByExchange) {
            let seen = self.0.load(Ordering::Relaxed);
            if seen == plain {
                self.0.store(checked, Ordering::Release);
            }
            return seen;
        }
        match self.0.compare_exchange(plain, checked, Ordering::AcqRel, Ordering::Relaxed) {
            Ok(seen) | Err(seen) => seen,
        }
    }
}

/// One block on one page.
pub(crate) struct Node<B> {
    next: AtomicPtr<Node<B>>,
    /// The pointer to this node: in the list's head or the node before. Used under the
    /// commit lock alone. It makes taking a node out a constant cost, however long the list.
    at: AtomicPtr<AtomicPtr<Node<B>>>,
    block: NonNull<B>,
}

impl<B> Node<B> {
    /// A node of a block that has no place yet. [`Node::bind`] it before it is entered.
    pub(crate) fn unbound() -> Self {
        Self::new(NonNull::dangling())
    }

    /// Sets the node's block.
    pub(crate) fn bind(&mut self, block: NonNull<B>) {
        self.block = block;
    }

    pub(crate) fn new(block: NonNull<B>) -> Self {
        Self { next: AtomicPtr::new(ptr::null_mut()), at: AtomicPtr::new(ptr::null_mut()), block }
    }

    /// Notes the pointer that leads to this node from now on.
    fn set_at(&self, at: &AtomicPtr<Self>) {
        self.at.store(ptr::from_ref(at).cast_mut(), Ordering::Relaxed);
    }

    /// Takes the node out of its list. Walkers that are at it go on as before.
    ///
    /// # Safety
    ///
    /// Under the commit lock; the node was entered, its list still exists, and it was not
    /// taken out.
    pub(crate) unsafe fn take_out(&self) {
        let next = self.next.load(Ordering::Relaxed);
        // SAFETY: `at` points to the head of an existing list or into a node of it. Nodes
        // are taken out under the commit lock, which we hold, and freed later.
        let at = unsafe { &*self.at.load(Ordering::Relaxed) };
        at.store(next, Ordering::Release);
        // SAFETY: as above.
        if let Some(next) = unsafe { next.as_ref() } {
            next.set_at(at);
        }
    }
}

/// The part of a block that the list and the stack need.
pub(crate) trait Record: Sized {
    fn life(&self) -> &Life<Self>;
}

/// The ways to a block, for threads that enter it and threads that are inside.
#[derive(Clone, Copy)]
pub(crate) struct Reach<'a> {
    pub(crate) cell: &'a EntryCell,
    /// The flag, if emitted code polls one.
    pub(crate) flag: Option<&'a StaleFlag>,
    pub(crate) entry: Entry,
    pub(crate) stubs: EntryStubs,
}

impl Reach<'_> {
    fn kill_flag(&self) {
        if let Some(flag) = self.flag {
            flag.kill();
        }
    }

    /// Returns whether it was valid until now.
    fn downgrade_flag(&self, to: u8) -> bool {
        self.flag.is_some_and(|flag| flag.downgrade(to))
    }

    /// Loads the words that a kill will change, to bring them near. The result has no
    /// meaning.
    pub(crate) fn look(&self) -> usize {
        let flag = self.flag.map_or(0, |flag| flag.0.load(Ordering::Relaxed));
        self.cell.0.load(Ordering::Relaxed) ^ usize::from(flag)
    }
}

/// The fate of a block when a write hits beside its bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Downgrade {
    /// From now on it is entered by its comparison.
    Checked,
    /// It was checked before, or is dead.
    Nothing,
    /// It had to die, and this call killed it.
    Killed,
}

/// The part of a block's record that a handler may change.
pub(crate) struct Life<B> {
    /// Cell and flag are done, and the block was handed over.
    dead: AtomicBool,
    next_dead: AtomicPtr<B>,
}

impl<B> Life<B> {
    pub(crate) fn new() -> Self {
        Self { dead: AtomicBool::new(false), next_dead: AtomicPtr::new(ptr::null_mut()) }
    }

    /// Makes the block unreachable. Returns whether this call killed it: then hand the block
    /// over. Async-signal-safe.
    pub(crate) fn kill(&self, reach: Reach<'_>) -> bool {
        if left_out(Rule::KillCellFirst) && self.dead.swap(true, Ordering::AcqRel) {
            return false;
        }
        reach.cell.kill(reach.stubs, reach.entry);
        reach.kill_flag();
        left_out(Rule::KillCellFirst) || !self.dead.swap(true, Ordering::AcqRel)
    }

    /// Makes sure that the block is entered by its comparison or not at all. Tells threads
    /// that are inside by `flag`. Async-signal-safe.
    pub(crate) fn downgrade(&self, reach: Reach<'_>, flag: u8) -> Downgrade {
        let killed = || if self.kill(reach) { Downgrade::Killed } else { Downgrade::Nothing };
        let Entry { plain, checked: Some(checked) } = reach.entry else { return killed() };
        if left_out(Rule::DowngradeCellFirst) && !reach.downgrade_flag(flag) {
            return Downgrade::Nothing;
        }
        let found = reach.cell.downgrade(plain, checked);
        if found == reach.stubs.pending && !left_out(Rule::DowngradeKillsPending) {
            return killed();
        }
        // Even if the cell was right already: the thread that changed it may not have
        // reached the flag yet.
        reach.downgrade_flag(flag);
        if found == plain { Downgrade::Checked } else { Downgrade::Nothing }
    }
}

/// The blocks on one page.
pub(crate) struct BlockList<B> {
    head: AtomicPtr<Node<B>>,
}

impl<B> Default for BlockList<B> {
    fn default() -> Self {
        Self { head: AtomicPtr::new(ptr::null_mut()) }
    }
}

// SAFETY: a list is a pointer to nodes whose blocks are shared between threads by design;
// they are reached only as the module's head says.
unsafe impl<B: Send + Sync> Send for BlockList<B> {}
// SAFETY: as above.
unsafe impl<B: Send + Sync> Sync for BlockList<B> {}

impl<B> fmt::Debug for BlockList<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("BlockList")
    }
}

impl<B: Record> BlockList<B> {
    pub(crate) fn is_empty(&self) -> bool {
        self.head.load(Ordering::Acquire).is_null()
    }

    /// Enters `node`.
    ///
    /// # Safety
    /// Under the commit lock. The node is in no list. It and its block live until it was
    /// taken out and the epoch has passed.
    /// until it was taken out and the epoch has passed.
    pub(crate) unsafe fn enter(&self, node: &Node<B>) {
        let head = self.head.load(Ordering::Relaxed);
        node.next.store(head, Ordering::Relaxed);
        node.set_at(&self.head);
        // SAFETY: nodes are taken out under the commit lock, which we hold, and freed later.
        if let Some(head) = unsafe { head.as_ref() } {
            head.set_at(&node.next);
        }
        self.head.store(ptr::from_ref(node).cast_mut(), Ordering::Release);
    }

    /// Calls `each` with every block on the page. Async-signal-safe if `each` is.
    ///
    /// # Safety
    ///
    /// Call it under a walk or a pin of the cache's epoch, or under the commit lock.
    pub(crate) unsafe fn for_each(&self, mut each: impl FnMut(&B)) {
        let mut next = self.head.load(Ordering::Acquire);
        // SAFETY: by this function's contract every node that is reachable, and
        // its block, lives while we walk.
        while let Some(node) = unsafe { next.as_ref() } {
            // SAFETY: as above.
            each(unsafe { node.block.as_ref() });
            next = node.next.load(Ordering::Acquire);
        }
    }
}

/// Dead blocks that no translator has handled yet.
pub(crate) struct DeadStack<B> {
    top: AtomicPtr<B>,
}

// SAFETY: it owns nothing; its pointers are handed over whole.
unsafe impl<B: Send + Sync> Send for DeadStack<B> {}
// SAFETY: as above.
unsafe impl<B: Send + Sync> Sync for DeadStack<B> {}

impl<B> DeadStack<B> {
    pub(crate) fn new() -> Self {
        Self { top: AtomicPtr::new(ptr::null_mut()) }
    }
}

impl<B: Record> DeadStack<B> {
    /// Hands a dead block over. Call it once for each block. Async-signal-safe.
    pub(crate) fn push(&self, block: &B) {
        let this = ptr::from_ref(block).cast_mut();
        let mut top = self.top.load(Ordering::Relaxed);
        loop {
            block.life().next_dead.store(top, Ordering::Relaxed);
            match self.top.compare_exchange_weak(top, this, Ordering::Release, Ordering::Relaxed) {
                Ok(_) => return,
                Err(now) => top = now,
            }
        }
    }

    /// Takes all.
    ///
    /// # Safety
    ///
    /// Under the commit lock; every block that was pushed still lives.
    pub(crate) unsafe fn take_all(&self) -> Vec<NonNull<B>> {
        let mut blocks = Vec::new();
        if self.top.load(Ordering::Relaxed).is_null() {
            return blocks;
        }
        let mut next = self.top.swap(ptr::null_mut(), Ordering::Acquire);
        while let Some(block) = NonNull::new(next) {
            // SAFETY: by this function's contract.
            let life = unsafe { block.as_ref() }.life();
            next = life.next_dead.load(Ordering::Relaxed);
            blocks.push(block);
        }
        blocks
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    const STUBS: EntryStubs = EntryStubs::NOT_CODE;

    struct Fake {
        life: Life<Fake>,
        cell: EntryCell,
        flag: StaleFlag,
        entry: Entry,
    }

    impl Fake {
        /// A block whose commit is under way.
        fn pending(entry: Entry) -> Self {
            let cell = EntryCell::new(STUBS);
            cell.begin(STUBS);
            Self { life: Life::new(), cell, flag: StaleFlag::new(), entry }
        }

        fn valid(entry: Entry) -> Self {
            let block = Self::pending(entry);
            block.flag.publish(StaleFlag::VALID);
            assert!(block.cell.publish(STUBS, 10));
            block
        }

        fn reach(&self) -> Reach<'_> {
            Reach { cell: &self.cell, flag: Some(&self.flag), entry: self.entry, stubs: STUBS }
        }

        fn kill(&self) -> bool {
            self.life.kill(self.reach())
        }

        fn downgrade(&self) -> Downgrade {
            self.life.downgrade(self.reach(), StaleFlag::CHECKED)
        }

        /// The content of the cell, and the flag.
        fn state(&self) -> (usize, u8) {
            (self.cell.load(), self.flag.load())
        }
    }

    impl Record for Fake {
        fn life(&self) -> &Life<Self> {
            &self.life
        }
    }

    #[test]
    fn a_node_is_taken_out_wherever_it_is() {
        let blocks = [1, 2, 3, 4].map(|entry| Fake::pending(Entry::plain(entry)));
        let list = BlockList::default();
        let nodes = blocks.each_ref().map(|block| Node::new(NonNull::from(block)));
        // SAFETY: the only thread; nodes and blocks stay.
        nodes.iter().for_each(|node| unsafe { list.enter(node) });
        let entries = || {
            let mut entries = Vec::new();
            // SAFETY: as above.
            unsafe { list.for_each(|block: &Fake| entries.extend(block.entry.address(false))) };
            entries
        };
        assert_eq!(entries(), [4, 3, 2, 1]);
        for (at, left) in [(2, &[4, 2, 1][..]), (3, &[2, 1]), (0, &[2]), (1, &[])] {
            // SAFETY: as above; each once.
            unsafe { nodes[at].take_out() };
            assert_eq!(entries(), left);
        }
        assert!(list.is_empty());
    }

    #[test]
    fn a_write_beside_a_block_leaves_it_its_checked_entry() {
        let block = Fake::valid(Entry::with_check(10, 11));
        assert_eq!(block.downgrade(), Downgrade::Checked);
        assert_eq!(block.state(), (11, StaleFlag::CHECKED));
        assert_eq!(block.downgrade(), Downgrade::Nothing);
        assert_eq!(block.state(), (11, StaleFlag::CHECKED));
        assert!(block.kill());
        assert_eq!(block.state(), (STUBS.dead, StaleFlag::DEAD));
    }

    #[test]
    fn a_block_without_a_checked_entry_dies_of_it() {
        let block = Fake::valid(Entry::plain(10));
        assert_eq!(block.downgrade(), Downgrade::Killed);
        assert_eq!(block.state(), (STUBS.dead, StaleFlag::DEAD));
        assert_eq!(block.downgrade(), Downgrade::Nothing);
    }

    #[test]
    fn a_commit_that_is_under_way_dies_of_it() {
        let block = Fake::pending(Entry::with_check(10, 11));
        assert_eq!(block.downgrade(), Downgrade::Killed);
        assert!(!block.cell.publish(STUBS, 10));
        assert_eq!(block.state(), (STUBS.dead, StaleFlag::DEAD));
    }

    #[test]
    fn the_dead_stay_dead_and_are_handed_over_once() {
        let block = Fake::valid(Entry::with_check(10, 11));
        assert!(block.kill());
        assert!(!block.kill());
        assert_eq!(block.downgrade(), Downgrade::Nothing);
        assert_eq!(block.state(), (STUBS.dead, StaleFlag::DEAD));
    }

    #[test]
    fn a_downgrade_leaves_the_block_of_another_record_alone() {
        let block = Fake::valid(Entry::with_check(20, 21));
        assert_eq!(block.downgrade(), Downgrade::Nothing);
        assert_eq!(block.cell.load(), 10);
        block.kill();
        assert_eq!(block.cell.load(), 10);
    }

    #[test]
    fn entries_that_can_be_told_apart() {
        assert!(Entry::from(10).is_usable(STUBS) && Entry::with_check(10, 11).is_usable(STUBS));
        for bad in [Entry::plain(STUBS.dead), Entry::with_check(10, 10), Entry::with_check(10, STUBS.pending)] {
            assert!(!bad.is_usable(STUBS));
        }
    }
}
