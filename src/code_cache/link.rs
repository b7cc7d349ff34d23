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
        let mut commits = self.commits();
        let (link, swept) = self.table().link(&mut commits.cells, key, self.0.invalidator.stubs);
        if let Some(swept) = swept {
            commits.garbage.retire(Garbage::Swept(Box::new(swept)));
            self.collect_garbage(commits);
        }
        Ok(link)
    }
}
