//! Keeping a tracker whole over a `fork`.

use crate::error::Error;
use crate::sync::RwLockWriteGuard;

use super::space::Space;
use super::{PageObserver, Tracker};

/// A tracker that stands still over a `fork`: see [`Tracker::before_fork`].
#[derive(Debug)]
#[must_use = "the tracker stands still until this is dropped"]
pub struct ForkGuard<'a, O: PageObserver> {
    space: RwLockWriteGuard<'a, Space<O>>,
}

impl<O: PageObserver> Tracker<O> {
    /// Called before `fork`: waits until no thread is inside the tracker. Until
    /// the guard is dropped, in the parent, or [`ForkGuard::after_fork_child`] is
    /// called, in the child, no other thread gets in; faults are handled.
    pub fn before_fork(&self) -> ForkGuard<'_, O> {
        ForkGuard { space: self.gate.write() }
    }
}

impl<O: PageObserver> ForkGuard<'_, O> {
    /// In the child: everything that was derived from guest memory becomes
    /// unreachable, and the child's own memory is tracked from now on. What other
    /// threads of the parent held is released.
    ///
    /// # Errors
    ///
    /// A region that cannot be tracked here; nothing can be translated from it.
    pub fn after_fork_child(mut self) -> Result<(), Error> {
        let mut done = Ok(());
        for region in &mut self.space.regions {
            match region.continue_in_child() {
                Ok(child) => *region = child,
                Err(error) => done = Err(error),
            }
        }
        done
    }
}
