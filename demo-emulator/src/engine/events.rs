//! Events of the engine for its listeners: the logs of `-d`, the demo's report, and the writers
//! that `--stats` counts. An ordinary run has no listener.

use codewarden::RecentWrite;

use crate::translate::CompiledBlock;

/// An event.
#[derive(Debug)]
pub enum Event<'a> {
    /// A block was made of these guest bytes and is about to become reachable.
    Translated {
        /// The block's first instruction.
        pc: u64,
        /// Its bytes.
        bytes: &'a [u8],
        /// Its host code; `None` for a decoded block.
        host: Option<&'a CompiledBlock>,
        /// A page of it stays writable: the block compares its bytes at each entry.
        is_self_checking: bool,
    },
    /// The bytes of a killed block are the same again, and the block is valid again.
    Revived {
        /// The block's first instruction.
        pc: u64,
        /// Whether it has host code.
        is_compiled: bool,
    },
    /// A block was entered and found that its bytes have changed. It did not run.
    Overwritten {
        /// The block's first instruction.
        pc: u64,
        /// Whether it had host code.
        is_compiled: bool,
    },
    /// The block at this pc did not become reachable: a write came meanwhile.
    Refused(u64),
    /// A write hit a page with translated code.
    Written {
        /// The library's entry.
        write: &'a RecentWrite,
        /// The guest's store, if it is known.
        store_pc: Option<u64>,
        /// Whether the reporting hart is known to be the one that stored; if false, it may still
        /// be.
        by_this_hart: bool,
    },
    /// A hart is about to make a system call.
    SystemCall,
}

/// Receives the engine's events, on any hart's thread.
pub trait Listener: Send + Sync {
    /// Receives an event.
    fn on_event(&self, event: &Event<'_>);

    /// Whether it needs an event for every block, so that all code is made into blocks. Otherwise
    /// code runs as if there were no listener.
    fn wants_blocks(&self) -> bool {
        true
    }
}
