//! A tracker under a cache of one's own; `run.rs` is the embedder.
//!
//!     cargo run --example own_cache [MODE]    sigbus, thread, mprotect, deferred; "none" must fail
//!
//! Exits with 0 if no stale block was run.

#[path = "run.rs"]
mod own_cache;

use std::process::ExitCode;

use codewarden::error::Error;
use codewarden::protection::{Mode, best_synchronous};
use own_cache::stale_runs;

fn main() -> Result<ExitCode, Error> {
    let mode = match std::env::args().nth(1) {
        None => best_synchronous()?.0,
        Some(name) => Mode::from_name(&name).ok_or(Error::BadArgument("no mode has this name"))?,
    };
    let stale = stale_runs(mode)?;
    println!("{mode}: {stale} stale");
    Ok(ExitCode::from(u8::from(stale != 0)))
}
