//! A retained translation becomes reachable again.
//!
//! A retained translation is published by the same steps as a new one, with the claims of a ticket
//! that has just read the same bytes under them. A vCPU may have been inside its code since before
//! the block died. The guest has the same bytes again, so the vCPU may run the code as if it had
//! entered now. It checks the stale flag after each of its own stores, and leaves if the flag is
//! not valid. If it finds the flag valid again, its store came before the ticket's reading, which
//! found the bytes unchanged. A later store moves the generation before it retires. Then either the
//! commit sees that and the flag never becomes valid, or the walk finds the block and sets the
//! flag.
//!
//! A walker may have found the *old* record just before a translator took it out of its lists. It
//! would then kill by the old record: it would set the flag of a valid block, or take its entry
//! away and hand no record over. So nothing is revived while there is any walker. A walker is
//! inside a list only for a moment.

use super::cache::{CodeCache, Commits};
use super::errors::CommitError;
use super::key::{Key, Payload};
use super::record::{Block, BlockPages};
use super::translation::{Source, Translation};
use crate::sync::{Rule, left_out};

/// The result of a search for a block of the ticket's bytes.
enum Found<P: Payload> {
    /// A block that is reachable.
    Block,
    /// A translation that was retained. Only the caller has it now.
    Retained(Box<Translation<P>>),
    Nothing,
}

impl<P: Payload> CodeCache<P> {
    /// Makes a retained translation of the same bytes reachable. Returns the pages if there is
    /// none.
    pub(super) fn revive(
        &self,
        key: Key,
        pages: BlockPages<P>,
        source: &Source,
        options: u64,
    ) -> Result<Option<BlockPages<P>>, CommitError> {
        let needs_check = pages.iter().any(|page| page.claim.is_self_checking());
        let same = |other: &Translation<P>| other.options == options && other.source.as_ref() == Some(source);
        let mut commits = self.commits();
        self.reap(&mut commits);
        let result = match self.find(&mut commits, key, same, needs_check) {
            Found::Block => Ok(None),
            Found::Nothing => Ok(Some(pages)),
            Found::Retained(translation) => {
                let block = Box::new(Block::new(pages, translation));
                let result = self.publish(&mut commits, key, block).map(|_| self.0.counters.revived.add(1));
                self.enforce_limit(&mut commits);
                result.map(|()| None)
            }
        };
        self.collect_if_due(commits);
        result
    }

    fn find(
        &self,
        commits: &mut Commits<P>,
        key: Key,
        same: impl Fn(&Translation<P>) -> bool,
        needs_check: bool,
    ) -> Found<P> {
        let stubs = self.0.invalidator.stubs;
        let newest = self.0.table.cell(&commits.cells, key).and_then(Self::newest);
        if let Some(block) = newest.filter(|block| block.translation().is_some_and(&same)) {
            let reach = block.reach(stubs);
            // If its cell does not lead to it, it is dying.
            return if reach.entry.has(reach.cell.load()) { Found::Block } else { Found::Nothing };
        }
        if !self.outlast_walkers(commits) && !left_out(Rule::ReviveAfterWalkers) {
            return Found::Nothing;
        }
        let usable = |other: &Translation<P>| same(other) && other.entry.address(needs_check).is_some();
        let Commits { cells, retained, .. } = commits;
        let found = self.0.table.cell(cells, key).and_then(|cell| retained.take(cell, usable));
        found.map_or(Found::Nothing, Found::Retained)
    }
}
