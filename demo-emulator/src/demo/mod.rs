//! The demo, which runs if no program is named: a guest that is part of the emulator rewrites its
//! own code, and the emulator reports the effect on its translations.
//!
//! [`report`] prints while the guest runs, [`comparison`] at the end.

pub mod comparison;
pub mod guest;
mod listing;
pub mod report;
