//! Permission to open pages.
//!
//! Before the kernel opens a page, the opener keeps translators away from it. Otherwise the page
//! could open under a block that was committed in between, and no later store would be noticed.
//! Each way to keep them away gives a [`Permit`], without which no mechanism opens a page.
//!
//! | opener | translators are kept away by | until |
//! |---|---|---|
//! | a fault handler | [`Counted`](super::Counted), a raised count of un-protects | it is dropped |
//! | an announcement | [`Hold`](super::Hold), a raised count as well | `PageTable::release` |
//! | a translator that undoes its own begin | [`Protecting`](super::Protecting), its own state of the word | it is dropped |
//! | the opener of all pages | [`OpeningAll`](super::stop::OpeningAll) | it is dropped |
//! | the finder of a loss | `PageTable::lose` | the table's end |
//! | a fork's child | the tracker's gate, through which no thread has come yet | the gate opens |

use core::marker::PhantomData;

/// Permission to open pages while translators are kept away. Only the page table can make one.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Permit<'a>(PhantomData<&'a ()>);

impl Permit<'_> {
    pub(super) fn new() -> Self {
        Self(PhantomData)
    }

    /// For tests of a mechanism alone, without words and translators.
    #[cfg(test)]
    pub(crate) fn for_test() -> Self {
        Self::new()
    }
}
