//! An observer for embedders that compare a number before they run a translation.
//!
//! # Safety
//!
//! [`Generations`] changes one atomic number: that is async-signal-safe.
#![allow(unsafe_code)]

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::observer::{PageObserver, PageWrite};

/// Keeps a **generation** for each page: a number that moves when the page's bytes have
/// changed, before the store retires (synchronous modes) or before
/// [`Tracker::sync`](super::Tracker::sync) returns (deferred).
///
/// A cache of the embedder's own notes the generation of each page of a translation, and
/// compares it before it runs the translation.
///
/// ```
/// # use std::sync::Arc;
/// use codewarden::addr::GuestAddr;
/// use codewarden::guest_memory::GuestMemory;
/// use codewarden::protection::best_synchronous;
/// use codewarden::tracker::{Generations, Tracker};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let memory = Arc::new(GuestMemory::anonymous(1 << 20)?);
/// let tracker = Tracker::new(Generations::observer());
/// tracker.add_memory(GuestAddr(0), memory.clone(), best_synchronous()?.0)?;
///
/// let claim = tracker.begin(GuestAddr(0x1000))?; // before the bytes are read
/// let made_at = claim.data().get();
/// // ... read, translate, and enter the translation with `made_at` in the cache; then:
/// assert!(claim.is_current()); // else throw it away
///
/// memory.write(0x1000, &[1])?; // the guest stores
/// let now = tracker.data(GuestAddr(0x1000)).unwrap();
/// assert_ne!(now.get(), made_at); // stale
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Default)]
pub struct Generations(());

/// The generation of one page.
#[derive(Debug, Default)]
pub struct PageGeneration(AtomicU64);

impl PageGeneration {
    /// The number now.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Acquire)
    }

    /// The number's address, for emitted code that compares it. It lives as long as the
    /// page's region is tracked.
    pub fn as_ptr(&self) -> *const u64 {
        self.0.as_ptr()
    }
}

impl Generations {
    /// For [`Tracker::new`](super::Tracker::new).
    pub fn observer() -> Arc<Self> {
        Arc::default()
    }
}

// SAFETY: changes one atomic number.
unsafe impl PageObserver for Generations {
    type Data = PageGeneration;

    fn written(&self, data: &PageGeneration, _: &PageWrite) {
        data.0.fetch_add(1, Ordering::SeqCst);
    }
}
