//! The mechanisms that the regions of a tracker share: one for each mode and options.

use std::sync::Arc;

use super::choice;
use super::contract::{FaultLock, Options, Protection};
use crate::addr::{HostAddr, PageSize};
use crate::error::Error;
use crate::mode::Mode;

/// See the module head. A mechanism ends with its last region.
#[derive(Debug, Default)]
pub(crate) struct Mechanisms(Vec<Shared>);

#[derive(Debug)]
struct Shared {
    mode: Mode,
    options: Options,
    mechanism: Arc<dyn Protection>,
    regions: usize,
}

impl Mechanisms {
    /// The mechanism of `mode` for a new region. One that was lost, or that is a fork's parent's, is
    /// not used for it. [`Mechanisms::give_back`] follows.
    ///
    /// # Errors
    ///
    /// Those of [`choice::open`].
    pub(crate) fn open(
        &mut self,
        mode: Mode,
        page: PageSize,
        options: Options,
        lock: Option<Arc<dyn FaultLock>>,
    ) -> Result<Arc<dyn Protection>, Error> {
        let mut same = self.0.iter_mut().filter(|shared| (shared.mode, shared.options) == (mode, options));
        if let Some(shared) = same.find(|shared| shared.mechanism.check().is_ok()) {
            choice::check_signal(mode)?;
            shared.regions += 1;
            return Ok(shared.mechanism.clone());
        }
        let mechanism = choice::open(mode, page, options, lock)?;
        self.0.push(Shared { mode, options, mechanism: mechanism.clone(), regions: 1 });
        Ok(mechanism)
    }

    fn position(&self, mechanism: &Arc<dyn Protection>) -> Option<usize> {
        self.0.iter().position(|shared| Arc::ptr_eq(&shared.mechanism, mechanism))
    }

    /// A region that has `mechanism`, which may be no shared one, has ended.
    pub(crate) fn give_back(&mut self, mechanism: &Arc<dyn Protection>) {
        match self.position(mechanism) {
            Some(at) if self.0[at].regions > 1 => self.0[at].regions -= 1,
            shared => {
                if let Some(at) = shared {
                    self.0.swap_remove(at);
                }
                mechanism.end();
            }
        }
    }
}

/// Tells mechanisms apart, as long as they exist.
pub(crate) fn name_of(mechanism: &Arc<dyn Protection>) -> HostAddr {
    HostAddr::of(Arc::as_ptr(mechanism))
}
