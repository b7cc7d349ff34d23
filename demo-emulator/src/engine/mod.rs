//! The engine decides how each instruction runs. It keeps its translations of guest code in
//! codewarden's cache.
//!
//! ```text
//!               ran once              ran often
//!   oracle ──────────────▶ tier 0 ──────────────▶ translated
//!     ▲                       │                       │
//!     └───────────────────────┴───────────────────────┘
//!        the page is busy: a write is going on, or the same
//!        store keeps hitting it
//! ```
//!
//! A decoded block and a compiled one of the same pc are two blocks of the cache with two keys. A
//! write to their bytes kills both, and the new bytes are decoded afresh. If the guest writes to a
//! page all the time, for instance to data beside code, its blocks stay valid and compare their
//! bytes at each entry.
//!
//! If there can be no compiled code, tier 0 runs the code that would be compiled.

mod block;
mod counters;
mod executor;
mod first_runs;
mod listener;
mod observer;
mod tier0;
mod upkeep;

use std::fmt;
use std::sync::{Arc, Mutex};

use codewarden::addr::{GuestAddr, HostAddr, HostRange, PageSize};
use codewarden::code_buffer::CodeBuffer;
use codewarden::error::Error;
use codewarden::policy::Adaptive;
use codewarden::protection::{Access, Facility, Mode, Probe};
use codewarden::tracker::RegionOptions;
use codewarden::{CodeCache, Key, MemoryLimit};

use crate::cli::{self, Tier};
use crate::linux::errno::Errno;
use crate::linux::machine::{Executor, Machine};
use crate::linux::observer::MemoryObserver;
use crate::memory::Window;
use crate::memory::window::WINDOW_LEN_BYTES;
use crate::translate::{CodeSpace, CompiledBlock, TranslateError, entry_stubs};
use counters::Counters;
pub use counters::EngineStats;
use executor::EngineExecutor;
pub use listener::{Event, Listener};
use listener::{Recorder, Settle};
use observer::Tracking;
use tier0::DecodedBlock;

/// The payload of a cached block.
#[derive(Debug)]
pub enum Payload {
    /// Tier 0's; boxed, since the block's entry is its address.
    Decoded(Box<DecodedBlock>),
    /// The compiler's; boxed for the same reason: links are found through it.
    Compiled(Box<Compiled>),
}

/// A compiled block.
#[derive(Debug)]
pub struct Compiled {
    /// Its host code.
    pub block: CompiledBlock,
    recorder: Option<Arc<dyn Settle>>,
}

impl Drop for Compiled {
    fn drop(&mut self) {
        // Afterwards the writing instruction can no longer be found.
        if let Some(recorder) = &self.recorder {
            recorder.settle();
        }
    }
}

impl Payload {
    fn compiled(&self) -> Option<&CompiledBlock> {
        match self {
            Self::Compiled(compiled) => Some(&compiled.block),
            Self::Decoded(_) => None,
        }
    }

    /// The bytes that it owns.
    fn owned_bytes(&self) -> usize {
        match self {
            Self::Decoded(block) => block.owned_bytes(),
            Self::Compiled(compiled) => size_of::<Compiled>() + compiled.block.owned_bytes(),
        }
    }
}

/// The key of the compiled block at `pc`.
fn compiled_key(pc: u64) -> Key {
    Key::new(pc)
}

/// The key of the decoded block at `pc`: instructions have even addresses.
fn decoded_key(pc: u64) -> Key {
    Key::new(pc | 1)
}

/// Why the engine cannot start.
#[derive(Debug)]
pub enum EngineError {
    /// codewarden's reason.
    Codewarden(Error),
    /// The translator's.
    Translate(TranslateError),
    /// No synchronous mode is available; the reason for each.
    NoMode(String),
    /// Only compiled code was asked for, and compiling is impossible.
    NoCompiler(Box<EngineError>),
}

impl fmt::Display for EngineError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Codewarden(error) => error.fmt(f),
            Self::Translate(error) => error.fmt(f),
            Self::NoMode(why) => write!(f, "--tracking auto: {why}"),
            Self::NoCompiler(error) => write!(f, "--tier translated: {}", no_compiler(error)),
        }
    }
}

impl std::error::Error for EngineError {}

impl From<Error> for EngineError {
    fn from(error: Error) -> Self {
        Self::Codewarden(error)
    }
}

impl From<TranslateError> for EngineError {
    fn from(error: TranslateError) -> Self {
        Self::Translate(error)
    }
}

/// A machine with a code cache.
pub struct Engine {
    window: Window,
    cache: &'static CodeCache<Payload>,
    /// `None` if nothing is compiled.
    space: Option<Arc<CodeSpace>>,
    mode: Mode,
    why: String,
    tier: Tier,
    tracking: Arc<Tracking>,
    counters: Arc<Counters>,
    recorder: Option<Arc<Recorder>>,
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
        cache.set_limit(MemoryLimit::of_bytes(code_limit_bytes));
        let base = HostAddr(window.base() as usize);
        let host = HostRange::new(base, WINDOW_LEN_BYTES as usize, PageSize::host())?;
        let add = |mode| {
            let options = RegionOptions { access: Access::None, ..RegionOptions::new(GuestAddr(0), host, mode) };
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
        upkeep::start(cache, mode);
        let tracking = Arc::new(Tracking { cache, space: leaked, window, mode, change: Mutex::new(None) });
        Ok(Self { window, cache, space, mode, why, tier, tracking, counters: Arc::default(), recorder: None })
    }

    /// Reports to `listeners` the events of harts that start from now on.
    pub fn listen(&mut self, listeners: Vec<Box<dyn Listener>>) {
        self.recorder = Some(Arc::new(Recorder::new(listeners, self.cache, self.space.clone())));
    }

    /// The guest has ended: gives the listeners the remaining events.
    pub fn finish(&self) {
        if let Some(recorder) = &self.recorder {
            recorder.finish();
        }
    }

    /// The mode that writes are learned of by, and the reason for it.
    pub fn mode(&self) -> (Mode, &str) {
        (self.mode, &self.why)
    }

    /// How guest code is run.
    pub fn tier(&self) -> Tier {
        self.tier
    }

    /// The engine's counts.
    pub fn stats(&self) -> EngineStats {
        self.counters.snapshot()
    }

    /// The cache, for its counters.
    pub fn cache(&self) -> &CodeCache<Payload> {
        self.cache
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

/// Says that code cannot be compiled, and why.
fn no_compiler(error: &EngineError) -> String {
    let why = Probe::of_this_process().why_missing(Facility::MembarrierSyncCore);
    format!("no code can be compiled: {}", why.unwrap_or_else(|| error.to_string()))
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
        Ok(Box::new(EngineExecutor::new(self)))
    }

    fn observer(&self) -> Arc<dyn MemoryObserver> {
        self.tracking.clone()
    }
}
