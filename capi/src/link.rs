//! Links: jumps from block to block.
//!
//! A block is reached only through its entry cell: one word that holds the address of
//! its code, of the dead stub or of the pending stub. Emitted code jumps to the address
//! in the cell, so killing a block is one store and reaches every link to it:
//!
//! ```text
//! mov rax, imm64 cell     ; x86-64, the address of the cell
//! jmp [rax]
//! ```
//!
//! # Safety
//!
//! Pointers are used as the header's rules say.
#![allow(unsafe_code)]

use std::ptr;

use engine::{Key, Link};

use crate::cache::cw_cache;
use crate::handle::{borrow, out_handle, take_back};
use crate::status::{cw_status, guarded};

/// Leads to the present and future blocks of one key.
pub struct cw_link(pub(crate) Link);

/// A link to the blocks of the key. Keep it as long as code jumps through its cell. A
/// block keeps the links of its code with cw_ticket_keep_link(); free other links with
/// cw_link_free(). A link may outlive the cache.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cw_cache_link(cache: *const cw_cache, key: u64, link: *mut *mut cw_link) -> cw_status {
    guarded(|| {
        // SAFETY: the header's rules.
        let (new, cache) = unsafe { (out_handle(link)?, borrow(cache)?) };
        new.give(cw_link(cache.cache.link(Key::new(key))?));
        Ok(())
    })
}

/// The cell to jump through: load it atomically with acquire, or let the processor's
/// indirect jump do so, in either case under a vCPU's pin. While there is a link to the
/// key, the address is valid, and the same for every such link. NULL for NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cw_link_cell(link: *const cw_link) -> *const usize {
    // SAFETY: the header's rules. An entry cell is one word.
    unsafe { borrow(link) }.map_or(ptr::null(), |link| ptr::from_ref(link.0.cell()).cast())
}

/// Frees a link. No code may jump through its address any more, unless there is another
/// link to the key. Does nothing for NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cw_link_free(link: *mut cw_link) {
    // SAFETY: the header's rules.
    drop(unsafe { take_back(link) });
}
