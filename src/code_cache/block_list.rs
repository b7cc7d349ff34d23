//! The list of the blocks on a page.
//!
//! # Safety
//!
//! Handlers walk lists and never change them. Translators enter nodes and take them out, under the
//! cache's commit lock. The epoch frees the blocks that were taken out, and waits for walkers. So
//! every node that a walker can reach is still allocated.
#![allow(unsafe_code)]

use std::fmt;
use std::ptr::{self, NonNull};
use std::sync::atomic::AtomicUsize;

use crate::sync::{AtomicPtr, Ordering, prefetch};

/// One block on one page.
pub(crate) struct Node<B> {
    next: AtomicPtr<Node<B>>,
    /// The pointer to this node: in the list's head or the node before. Used under the commit lock
    /// alone. With it, taking a node out costs the same however long the list is.
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

/// A list of blocks.
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

impl<B> BlockList<B> {
    pub(crate) fn is_empty(&self) -> bool {
        self.head.load(Ordering::Acquire).is_null()
    }

    /// Brings the first node near, for a walk that follows soon, and the line before it: most records
    /// begin there.
    pub(crate) fn prefetch(&self) {
        const LINE_BYTES: usize = 64;
        let head = self.head.load(Ordering::Relaxed);
        prefetch(head);
        prefetch(head.wrapping_byte_sub(LINE_BYTES));
    }

    /// Enters `node`.
    ///
    /// # Safety
    ///
    /// Under the commit lock. The node is in no list. It and its block live until it was taken out
    /// and the epoch has passed.
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

/// The most blocks on one page. A store to the page walks all of them in a signal handler, with
/// signals blocked, before it retires. A page of 4 KiB has a sixteenth of these if a block of one
/// key begins at each byte.
const MOST_BLOCKS: usize = if cfg!(miri) { 64 } else { 1 << 16 };

/// The blocks on one page.
pub(crate) struct PageBlocks<B> {
    list: BlockList<B>,
    /// The number of blocks. Used only under the commit lock.
    count: AtomicUsize,
}

impl<B> Default for PageBlocks<B> {
    fn default() -> Self {
        Self { list: BlockList::default(), count: AtomicUsize::new(0) }
    }
}

impl<B> PageBlocks<B> {
    pub(super) fn list(&self) -> &BlockList<B> {
        &self.list
    }

    /// Whether the page has no room for another block. Under the commit lock.
    pub(super) fn is_full(&self) -> bool {
        self.count.load(Ordering::Relaxed) >= MOST_BLOCKS
    }

    /// Enters a node.
    ///
    /// # Safety
    ///
    /// As [`BlockList::enter`].
    pub(super) unsafe fn enter(&self, node: &Node<B>) {
        self.count.store(self.count.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
        // SAFETY: by this function's contract.
        unsafe { self.list.enter(node) };
    }

    /// Takes a node out.
    ///
    /// # Safety
    ///
    /// As [`Node::take_out`]; it was entered here.
    pub(super) unsafe fn take_out(&self, node: &Node<B>) {
        self.count.store(self.count.load(Ordering::Relaxed) - 1, Ordering::Relaxed);
        // SAFETY: by this function's contract.
        unsafe { node.take_out() };
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_node_is_taken_out_wherever_it_is() {
        let blocks = [1, 2, 3, 4];
        let list = BlockList::default();
        let nodes = blocks.each_ref().map(|block| Node::new(NonNull::from(block)));
        // SAFETY: the only thread; nodes and blocks stay.
        nodes.iter().for_each(|node| unsafe { list.enter(node) });
        let found = || {
            let mut found = Vec::new();
            // SAFETY: as above.
            unsafe { list.for_each(|&block| found.push(block)) };
            found
        };
        assert_eq!(found(), [4, 3, 2, 1]);
        for (at, left) in [(2, &[4, 2, 1][..]), (3, &[2, 1]), (0, &[2]), (1, &[])] {
            // SAFETY: as above; each once.
            unsafe { nodes[at].take_out() };
            assert_eq!(found(), left);
        }
        assert!(list.is_empty());
    }
}
