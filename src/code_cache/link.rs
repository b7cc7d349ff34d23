//! Makes links between blocks; [`Link`] explains them.

use super::cache::CodeCache;
use super::garbage::Garbage;
use super::key::{Key, Payload};
use super::table::Link;
use crate::error::Error;

impl<P: Payload> CodeCache<P> {
    /// A link to the present and future blocks of `key`.
    ///
    /// # Errors
    ///
    /// [`Error::BadArgument`] for the key `u64::MAX`, and if this thread holds the guard of a
    /// fork.
    pub fn link(&self, key: Key) -> Result<Link, Error> {
        if !key.is_valid() {
            return Err(Error::BadArgument("u64::MAX is not a key"));
        }
        self.0.keeper.check()?;
        let (link, swept) = {
            let mut commits = self.commits();
            let (cell, swept) = self.table().cell_or_new(&mut commits.cells, key, self.0.invalidator.stubs);
            (cell.link(), swept)
        };
        if let Some(swept) = swept {
            self.epoch().retire(Garbage::Swept(swept));
            self.collect_garbage();
        }
        Ok(link)
    }
}
