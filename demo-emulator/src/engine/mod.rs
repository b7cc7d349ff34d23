//! The engine decides how each instruction runs. It keeps its translations of guest code in
//! codewarden's cache.
//!
//! ```text
//!                ran once         ran 4 times         ran 100,000 times
//!   interpreter ──────────▶ tier 0 ──────────▶ tier 1 ──────────▶ tier 2
//!     ▲                       │                  │                  │
//!     └───────────────────────┴──────────────────┴──────────────────┘
//!        the page is busy: a write is going on, or the same
//!        store keeps hitting it
//! ```
//!
//! | tier | a block is | to make it costs about | to run an instruction costs about |
//! |---|---|---|---|
//! | 0 | threaded code: a function for each instruction or frequent pair | 1 us | 2 ns |
//! | 1 | host code from the quick compiler | 2 us | 0.5 ns |
//! | 2 | a part of a region, which Cranelift compiled | 60 to 100 us | 0.3 ns |
//!
//! On x86-64 a block that ran 4 times waits until 16 blocks are to be compiled, and runs on meanwhile. They are
//! published by one barrier, which costs more than to compile one of them. A block that has run 64
//! times does not wait.
//!
//! Most code of a program runs a few thousand times at most, and there tier 1 matters. Tier 0 is for
//! code that the guest writes, runs a few times and overwrites, and for code that changes while it
//! runs. A block finds the next one by a link to its entry cell, without a lookup.
//!
//! A decoded block and a compiled one of the same pc are two blocks of the cache with two keys. A
//! region takes the place of the quickly compiled block at its entry. It holds copies of the hot
//! blocks around it, which may still be entered by themselves. A write to their bytes kills all of
//! them, and the new bytes are decoded afresh. If the guest writes to a page all the time, for
//! instance to data beside code, its blocks stay valid and compare their bytes at each entry.
//!
//! On a processor other than x86-64 there is no tier 1, and hot blocks go from tier 0 to tier 2. If
//! the emulator cannot compile code, tier 0 runs it instead.
//!
//! | file | contents |
//! |---|---|
//! | `counters` | the engine's counters |
//! | `error` | the reasons why it cannot start |
//! | `events` | events for listeners |
//! | `first_runs` | code that runs for the first time |
//! | `source` | a block's instructions and bytes |
//! | `threaded` | the form of their instructions |
//! | `tier0` | decoded blocks |
//! | `payload` | the blocks of the cache, and their keys |
//! | `maintenance` | the thread that maintains the tracker |
//! | `recorder` | the reports of translations and writes to the listeners |
//! | `region` | the blocks that are compiled together |
//! | `interpret` | runs instructions without host code |
//! | `observer` | reports Linux's changes of memory to the tracker |
//! | `far_restarts` | the places that a fault went far back to |
//! | `make` | makes blocks |
//! | `batch` | the decoded blocks that wait to be compiled |
//! | `executor` | the dispatcher of one hart |

mod batch;
mod counters;
mod error;
mod events;
mod executor;
mod far_restarts;
mod first_runs;
mod interpret;
mod maintenance;
mod make;
mod observer;
mod payload;
mod recorder;
mod region;
mod source;
mod threaded;
mod tier0;

use std::sync::{Arc, Mutex, Weak};

use codewarden::addr::{GuestAddr, HostAddr, HostRange, PageSize};
use codewarden::code_buffer::CodeBuffer;
use codewarden::error::Error;
use codewarden::policy::Adaptive;
use codewarden::protection::{Access, Mode};
use codewarden::tracker::RegionOptions;
use codewarden::{CodeCache, MemoryLimit};

use crate::cli::{self, Tier};
use crate::linux::errno::Errno;
use crate::linux::machine::{Executor, Machine};
use crate::linux::observer::MemoryObserver;
use crate::memory::Window;
use crate::memory::window::WINDOW_LEN_BYTES;
use crate::translate::{CodeSpace, entry_stubs};
pub use counters::EngineStats;
pub use error::EngineError;
use error::no_compiler;
pub use events::{Event, Listener};
use executor::EngineExecutor;
use far_restarts::FarRestarts;
use make::Shared;
use observer::Tracking;
pub use payload::Payload;
use recorder::Recorder;

/// The most memory for dead blocks that may come back. More of it revives hardly more blocks: of
/// OpenJDK's, 2 MiB revive nine tenths of those that 16 MiB do.
const RETAINED_BYTES: usize = 2 << 20;

/// A machine with a code cache.
pub struct Engine {
    shared: Shared,
    /// The reason for the mode.
    why: String,
    tracking: Arc<Tracking>,
}

impl Engine {
    /// An engine over `window`. It learns of writes by `tracking`, and its translations take at
    /// most `code_limit_bytes`. Its fault handlers go in front of those installed before.
    ///
    /// # Errors
    ///
    /// The mode is unavailable here, or there is no memory for code.
    pub fn new(
        window: Window,
        tracking: cli::Tracking,
        tier: Tier,
        code_limit_bytes: usize,
    ) -> Result<Self, EngineError> {
        let (space, tier, no_compiler) = code_space(window, tier, code_limit_bytes)?;
        let cache = CodeCache::with_policy(entry_stubs(), Arc::new(Adaptive::with_checks()))?;
        // The limit counts more than code. So it is reached before the buffer is full, although the
        // buffer is fragmented and holds code that harts have not left yet.
        let retained_bytes = RETAINED_BYTES.min(code_limit_bytes / 4);
        cache.set_limit(MemoryLimit { live_bytes: code_limit_bytes - retained_bytes, retained_bytes });
        let base = HostAddr(window.base() as usize);
        let host = HostRange::new(base, WINDOW_LEN_BYTES as usize, PageSize::host())?;
        let add = |mode| {
            // RISC-V: a hart may run old code until its FENCE.I.
            let options =
                RegionOptions::new(GuestAddr(0), host, mode).with_access(Access::None).with_explicit_fetch(true);
            add_region(&cache, options)
        };
        let (mode, mut why) = match tracking {
            cli::Tracking::Auto => best_mode(add)?,
            cli::Tracking::Mode(mode) => {
                add(mode)?;
                (mode, "asked for by name".to_owned())
            }
        };
        why.extend(no_compiler.map(|no_compiler| format!("; {no_compiler}")));
        // A process has one engine for its whole life. At a fork, guards of both last from one
        // observer call to another.
        let cache = &*Box::leak(Box::new(cache));
        let leaked = space.clone().map(|space| &**Box::leak(Box::new(space)));
        maintenance::start(cache, mode);
        let tracking = Arc::new(Tracking { cache, space: leaked, window, mode, change: Mutex::new(None) });
        let far_restarts = Arc::new(FarRestarts::new());
        let counters = Arc::default();
        let shared = Shared { window, cache, space, mode, tier, counters, far_restarts, recorder: None };
        Ok(Self { shared, why, tracking })
    }

    /// Reports to `listeners` the events of harts that start from now on.
    pub fn listen(&mut self, listeners: Vec<Box<dyn Listener>>) {
        let Shared { cache, space, recorder, .. } = &mut self.shared;
        let new = Arc::new(Recorder::new(listeners, cache, space.clone()));
        if let Some(space) = space {
            let observer: Weak<Recorder> = Arc::downgrade(&new);
            space.observe_blocks(observer);
        }
        *recorder = Some(new);
    }

    /// The guest has ended: gives the listeners the remaining events.
    pub fn finish(&self) {
        if let Some(recorder) = &self.shared.recorder {
            recorder.finish();
        }
    }

    /// The tracking mode, and the reason for it.
    pub fn mode(&self) -> (Mode, &str) {
        (self.shared.mode, &self.why)
    }

    /// How guest code is run.
    pub fn tier(&self) -> Tier {
        self.shared.tier
    }

    /// The engine's counts.
    pub fn stats(&self) -> EngineStats {
        self.shared.counters.snapshot()
    }

    /// The cache, for its counters.
    pub fn cache(&self) -> &CodeCache<Payload> {
        self.shared.cache
    }
}

/// The space for compiled code and the tier that runs; if `auto` does without compiled code, the
/// reason.
#[allow(clippy::type_complexity)]
fn code_space(
    window: Window,
    tier: Tier,
    code_limit_bytes: usize,
) -> Result<(Option<Arc<CodeSpace>>, Tier, Option<String>), EngineError> {
    if tier == Tier::Decoded {
        return Ok((None, tier, None));
    }
    let made = CodeBuffer::new(code_limit_bytes).map_err(EngineError::from);
    match made.and_then(|buffer| Ok(CodeSpace::new(window, buffer)?)) {
        Ok(space) => Ok((Some(space), tier, None)),
        Err(error) if tier == Tier::Auto => Ok((None, Tier::Decoded, Some(no_compiler(&error)))),
        Err(error) => Err(EngineError::NoCompiler(Box::new(error))),
    }
}

/// Adds the region in the best synchronous mode that works; returns the mode and the reason for it.
fn best_mode(add: impl Fn(Mode) -> Result<(), Error>) -> Result<(Mode, String), EngineError> {
    let mut why = String::new();
    for mode in [Mode::Sigbus, Mode::Thread, Mode::Mprotect] {
        match add(mode) {
            Ok(()) if why.is_empty() => {
                return Ok((mode, "the fastest synchronous mode, and this kernel allows it".to_owned()));
            }
            Ok(()) => return Ok((mode, why)),
            Err(error) => {
                let separator = if why.is_empty() { "" } else { "; " };
                why.push_str(&format!("{separator}{error}"));
            }
        }
    }
    Err(EngineError::NoMode(why))
}

#[allow(unsafe_code)]
fn add_region(cache: &CodeCache<Payload>, options: RegionOptions) -> Result<(), Error> {
    // SAFETY: the window stays mapped as long as the process; Linux's side
    // announces every change of its mappings to the observer.
    unsafe { cache.tracker().add_region(options) }
}

impl Machine for Engine {
    fn executor(&self) -> Result<Box<dyn Executor>, Errno> {
        Ok(Box::new(EngineExecutor::new(&self.shared)))
    }

    fn observer(&self) -> Arc<dyn MemoryObserver> {
        self.tracking.clone()
    }
}
