//! Barriers that one thread makes on every running thread of the process.
//!
//! # Memory
//!
//! [`fence_threads`] (4.14): stores before the call are seen by every load, of any thread, that has
//! not retired when the call returns. Every store that has retired by then used the page tables of
//! that time. The barrier is for a core that runs a load ahead of an older store of its own.
//!
//! # Instructions
//!
//! x86-64 serializes a core on its return from the kernel only with `SYNC_CORE`, and
//! aarch64 needs an ISB on each core that may run new bytes. [`sync_core`] does both
//! from one thread, if the kernel has it (4.16).

use rustix::thread::{MembarrierCommand, membarrier, membarrier_query};

use crate::error::Error;

/// Whether the kernel offers [`fence_threads`].
pub(crate) fn has_fence() -> bool {
    membarrier_query().contains_command(MembarrierCommand::PrivateExpedited)
}

/// Announces that this process will use [`fence_threads`]; once is enough, a fork's
/// child inherits it.
pub(crate) fn register_fence() -> Result<(), Error> {
    membarrier(MembarrierCommand::RegisterPrivateExpedited)
        .map_err(|errno| Error::system("membarrier(REGISTER_PRIVATE_EXPEDITED)", 0, 0, errno))
}

/// When it returns, every thread of the process has passed a full memory barrier since
/// the call. Async-signal-safe.
pub(crate) fn fence_threads() -> Result<(), Error> {
    membarrier(MembarrierCommand::PrivateExpedited)
        .map_err(|errno| Error::system("membarrier(PRIVATE_EXPEDITED)", 0, 0, errno))
}

/// Whether the kernel offers [`sync_core`].
pub(crate) fn has_sync_core() -> bool {
    membarrier_query().contains_command(MembarrierCommand::PrivateExpeditedSyncCore)
}

/// Announces that this process will use [`sync_core`]; once is enough, a fork's
/// child inherits it.
pub(crate) fn register_sync_core() -> Result<(), Error> {
    membarrier(MembarrierCommand::RegisterPrivateExpeditedSyncCore)
        .map_err(|errno| Error::system("membarrier(REGISTER_PRIVATE_EXPEDITED_SYNC_CORE)", 0, 0, errno))
}

/// When it returns, every thread of the process has passed a core-serializing
/// instruction since the call.
pub(crate) fn sync_core() -> Result<(), Error> {
    membarrier(MembarrierCommand::PrivateExpeditedSyncCore)
        .map_err(|errno| Error::system("membarrier(PRIVATE_EXPEDITED_SYNC_CORE)", 0, 0, errno))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn works_once_registered() {
        assert!(has_fence());
        register_fence().unwrap();
        fence_threads().unwrap();
        assert!(has_sync_core());
        register_sync_core().unwrap();
        sync_core().unwrap();
    }
}
