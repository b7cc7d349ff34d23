//! Takes dead blocks out of their lists, and frees garbage.
//!
//! # Safety
//!
//! Lists change only under the commit lock. The epoch frees blocks.
#![allow(unsafe_code)]

use super::cache::{CodeCache, Commits};
use super::garbage::{Garbage, RawBox};
use super::key::Payload;
use super::record::BlockPage;
use super::translation::Translation;
use crate::panics::FirstPanic;
use crate::sync::Arc;

impl<P: Payload> CodeCache<P> {
    /// Takes the dead blocks out of their lists. Their translations are retained or, like the
    /// records, handed to the epoch.
    pub(super) fn reap(&self, commits: &mut Commits<P>) {
        // SAFETY: under the commit lock; blocks are freed after they were taken.
        let mut dead = unsafe { self.0.invalidator.dead.take_all() };
        for block in &mut dead {
            // SAFETY: not retired yet.
            let shared = unsafe { block.as_ref() };
            for BlockPage { claim, node, .. } in &shared.pages {
                // SAFETY: under the commit lock; entered by `publish`, and handed over once.
                unsafe { claim.data().take_out(node) };
            }
            shared.leave_cell();
            // SAFETY: in the queue since its commit.
            *block = unsafe { commits.live.remove(shared) };
        }
        for block in dead {
            // SAFETY: as above.
            let shared = unsafe { block.as_ref() };
            let discarded = commits.retained.retain(shared.key, &shared.translation);
            self.retire(discarded);
            self.0.garbage.add(shared.record_memory_use());
            // SAFETY: from `publish`'s box, taken out of every list and handed over by the stack
            // once. The epoch keeps it as long as a thread is in a list.
            self.epoch().retire(Garbage::Block(unsafe { RawBox::new(block) }));
        }
    }

    /// Hands discarded translations to the epoch.
    pub(super) fn retire(&self, translations: Vec<Arc<Translation<P>>>) {
        self.0.counters.discarded.add(translations.len() as u64);
        for translation in translations {
            self.0.garbage.add(translation.memory_use());
            self.epoch().retire(Garbage::Translation(translation));
        }
    }

    /// Frees the garbage that no thread can reach any more, and asks vCPUs to leave if they hold
    /// much back. Drops the embedder's payloads, so call it under no lock. If a payload panics, the
    /// rest is done first.
    pub(super) fn collect_garbage(&self) {
        let mut panics = FirstPanic::default();
        let mut cells = Vec::new();
        for garbage in self.epoch().collect() {
            let translation = match garbage {
                Garbage::Block(block) => {
                    let block = block.into_box();
                    self.0.garbage.sub(block.record_memory_use());
                    block.translation
                }
                Garbage::Translation(translation) => translation,
                Garbage::Swept(swept) => {
                    cells.extend(swept.cells);
                    continue;
                }
            };
            // Another owner may remain: a record that is garbage too, or a block that lives again.
            // The last owner frees it.
            if let Some(last) = Arc::into_inner(translation) {
                self.0.garbage.sub(last.memory_use());
                self.0.counters.freed.add(1);
                panics.catch(|| drop(last));
            }
        }
        if !cells.is_empty() {
            self.commits().cells.give_back(cells);
        }
        if self.0.garbage.is_too_much() || self.epoch().is_held_back() {
            panics.catch(|| self.epoch().ask_all_to_leave());
        }
        panics.resume();
    }

    /// Frees the payloads of dead blocks if no vCPU can be inside them and they are not retained.
    /// Each commit does this too; an embedder that stops translating may call it.
    ///
    /// # Panics
    ///
    /// If this thread holds the guard of a fork ([`CodeCache::before_fork`]).
    #[track_caller]
    pub fn collect(&self) {
        self.reap(&mut self.commits());
        self.collect_garbage();
    }

    /// Discards the retained translations of dead blocks.
    pub(super) fn discard_retained(&self) {
        {
            let mut commits = self.commits();
            self.reap(&mut commits);
            let discarded = commits.retained.clear();
            self.retire(discarded);
        }
        self.collect_garbage();
    }
}
