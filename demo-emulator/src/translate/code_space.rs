//! Shared by all translators of a process: the host's instruction set, the code buffer, the index
//! of fault points and the guest's window.
//!
//! # Safety
//!
//! The memory provider hands out the writable view of one allocation. The maker of the provider
//! keeps that allocation until the module is gone. Bytes behind the function stay within the
//! allocation. `enter` passes its caller's obligation on.
#![allow(unsafe_code)]

use std::fmt;
use std::io;
use std::ptr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};

use codewarden::code_buffer::{Allocation, CodeBuffer};
use cranelift_codegen::isa::OwnedTargetIsa;
use cranelift_codegen::settings::{self, Configurable};
use cranelift_jit::{BranchProtection, JITMemoryKind, JITMemoryProvider};
use cranelift_module::ModuleResult;

use super::check::CHECK_ALIGN_BYTES;
use super::entry::{self, ExitReason};
use super::error::TranslateError;
use super::fault_index::{FaultIndex, FaultTable};
use crate::hart::Hart;
use crate::memory::{Window, host_fault};

/// Blocks start at a cache line: the fault index tells them apart by it.
const CODE_ALIGN_BYTES: usize = 64;

/// The compiled code of a process, and the parts around it.
#[derive(Debug)]
pub struct CodeSpace {
    pub(super) isa: OwnedIsa,
    pub(super) faults: FaultIndex,
    pub(super) window: Window,
    /// Whether the host multiplies and adds with one rounding.
    pub(super) has_fma: bool,
    /// Whether the host's aligned loads of 16 bytes are atomic.
    pub(super) loads_vectors_at_once: bool,
    buffer: CodeBuffer,
    /// Whether the buffer is the parent's, because this process could get none of its own.
    is_lost: AtomicBool,
    /// Weak, since an observer may have the space.
    block_observer: OnceLock<Weak<dyn BlockObserver>>,
}

/// Learns of the end of blocks. A trait, since the observer is the engine's.
pub trait BlockObserver: fmt::Debug + Send + Sync {
    /// A block is about to go, and the guest instructions of its stores with it.
    fn block_ends(&self);
}

/// The target, which does not print itself.
pub(super) struct OwnedIsa(pub(super) OwnedTargetIsa);

impl fmt::Debug for OwnedIsa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.name())
    }
}

impl CodeSpace {
    /// A space for code that accesses `window`, in `buffer`. Installs the
    /// process's fault handler.
    ///
    /// # Errors
    ///
    /// [`TranslateError`] if Cranelift has no code generator for this host, or if the signal
    /// handler cannot be installed.
    pub fn new(window: Window, buffer: CodeBuffer) -> Result<Arc<Self>, TranslateError> {
        let isa = OwnedIsa(target()?);
        host_fault::set_fault_hook(entry::fault_hook);
        host_fault::install().map_err(TranslateError::Signal)?;
        let faults = FaultIndex::new(buffer.executable());
        #[cfg(target_arch = "x86_64")]
        let [has_fma, loads_vectors_at_once] =
            [std::is_x86_feature_detected!("fma"), std::is_x86_feature_detected!("avx")];
        #[cfg(not(target_arch = "x86_64"))]
        let [has_fma, loads_vectors_at_once] = [true, false];
        let (is_lost, block_observer) = (AtomicBool::new(false), OnceLock::new());
        Ok(Arc::new(Self { isa, faults, window, has_fma, loads_vectors_at_once, buffer, is_lost, block_observer }))
    }

    /// Tells `observer` when a block ends, from now on and as long as somebody else keeps it. A space
    /// has at most one observer: a second one is ignored.
    pub fn observe_blocks(&self, observer: Weak<dyn BlockObserver>) {
        let _ = self.block_observer.set(observer);
    }

    pub(super) fn block_observer(&self) -> Option<Arc<dyn BlockObserver>> {
        self.block_observer.get()?.upgrade()
    }

    /// The host address of a guest address in the window.
    pub(super) fn host_address(&self, guest: u64) -> u64 {
        self.window.base() as u64 + guest
    }

    /// The buffer that the code lies in.
    pub fn buffer(&self) -> &CodeBuffer {
        &self.buffer
    }

    /// Called in a fork's child that could get no buffer: nothing may be compiled here.
    pub fn lose(&self) {
        self.is_lost.store(true, Ordering::Release);
    }

    /// Whether code may be compiled and run here.
    pub fn is_usable(&self) -> bool {
        !self.is_lost.load(Ordering::Acquire)
    }

    /// The guest instruction that compiled code at `host_pc` makes an access for. If the pc is in a
    /// block, the block must be alive.
    pub fn guest_pc(&self, host_pc: usize) -> Option<u64> {
        self.faults.guest_pc(host_pc)
    }

    /// The runs until the quick compiler's block with this entry, plain or self-checking, leaves as
    /// [`ExitReason::Hot`]. `None` if the entry is a region's. The block must be alive.
    pub fn runs_left(&self, entry: usize) -> Option<u32> {
        let counter = self.faults.table(entry)?.counter()?;
        Some(u32::try_from(counter.load(Ordering::Relaxed)).unwrap_or(0))
    }

    /// Makes the quick compiler's block with this entry leave as [`ExitReason::Hot`] after `runs`
    /// more runs. Does nothing to a region. The block must be alive.
    pub fn set_runs_left(&self, entry: usize, runs: u32) {
        if let Some(counter) = self.faults.table(entry).and_then(FaultTable::counter) {
            counter.store(counter_of(runs), Ordering::Relaxed);
        }
    }

    /// Runs compiled code until it returns.
    ///
    /// # Safety
    ///
    /// `code` is the entry of a block of this space, or a stub. It and everything that it links to
    /// stay alive until this returns. `hart.front` points to a vCPU's front that no other thread
    /// uses, and the front's cells stay alive as long.
    pub unsafe fn enter(&self, hart: &mut Hart, code: usize) -> ExitReason {
        // SAFETY: the caller's promise.
        unsafe { entry::enter(hart, code, self.window.base(), &self.faults) }
    }
}

/// The counter of a block that leaves as hot after `runs` runs.
pub(super) fn counter_of(runs: u32) -> i32 {
    i32::try_from(runs).unwrap_or(i32::MAX)
}

fn target() -> Result<OwnedTargetIsa, TranslateError> {
    let unsupported = |error: &dyn std::fmt::Display| TranslateError::Host(error.to_string());
    let mut flags = settings::builder();
    for (name, value) in [
        ("opt_level", "speed"),
        ("regalloc_algorithm", "backtracking"),
        ("enable_verifier", if cfg!(debug_assertions) { "true" } else { "false" }),
        // Cranelift implements tail calls with frame pointers only.
        ("preserve_frame_pointers", "true"),
        ("unwind_info", "false"),
        ("enable_probestack", "false"),
        ("is_pic", "false"),
    ] {
        flags.set(name, value).map_err(|error| unsupported(&error))?;
    }
    let builder = cranelift_native::builder().map_err(|error| unsupported(&error))?;
    builder.finish(settings::Flags::new(flags)).map_err(|error| unsupported(&error))
}

/// Memory for one function of a `JITModule` and for the bytes behind it, from a code buffer. The
/// module sees addresses in the writable view.
pub(super) struct OneFunction {
    buffer: CodeBuffer,
    behind_bytes: usize,
    place: Arc<Mutex<Option<Place>>>,
}

/// The memory of a module.
pub(super) struct Place {
    /// All of it.
    pub(super) code: Allocation,
    /// The length of the function.
    pub(super) function_bytes: usize,
}

impl OneFunction {
    /// A provider with room for `behind_bytes` behind the function, aligned for a check, and the
    /// slot that its allocation goes to.
    pub(super) fn new(space: &CodeSpace, behind_bytes: usize) -> (Self, Arc<Mutex<Option<Place>>>) {
        let place = Arc::default();
        (Self { buffer: space.buffer.clone(), behind_bytes, place: Arc::clone(&place) }, place)
    }
}

impl JITMemoryProvider for OneFunction {
    fn allocate(&mut self, size: usize, align: u64, kind: JITMemoryKind) -> io::Result<*mut u8> {
        let mut place = self.place.lock().unwrap_or_else(PoisonError::into_inner);
        if place.is_some() || !matches!(kind, JITMemoryKind::Executable) {
            return Err(io::Error::other("a block is one function and no data"));
        }
        let align = CODE_ALIGN_BYTES.max(align as usize);
        let new = Place::new(&self.buffer, size, self.behind_bytes, align).map_err(io::Error::other)?;
        Ok(place.insert(new).code.rw())
    }

    /// Nothing: the block that the code belongs to owns its memory.
    unsafe fn free_memory(&mut self) {}

    /// Nothing: no mapping changes its protection, and the block is published
    /// when it is complete.
    fn finalize(&mut self, _: BranchProtection) -> ModuleResult<()> {
        Ok(())
    }
}

impl Place {
    fn new(
        buffer: &CodeBuffer,
        function_bytes: usize,
        behind_bytes: usize,
        align: usize,
    ) -> Result<Self, codewarden::error::Error> {
        let all = if behind_bytes == 0 { function_bytes } else { behind(function_bytes) + behind_bytes };
        Ok(Self { code: buffer.alloc(all, align)?, function_bytes })
    }

    /// Memory with `function` in it, and room for `behind_bytes` behind it, aligned for a check.
    #[cfg(target_arch = "x86_64")]
    pub(super) fn of(function: &[u8], space: &CodeSpace, behind_bytes: usize) -> Result<Self, TranslateError> {
        let place = Self::new(&space.buffer, function.len(), behind_bytes, CODE_ALIGN_BYTES)
            .map_err(|error| TranslateError::NoCodeMemory(io::Error::other(error)))?;
        place.put(0, function);
        Ok(place)
    }

    /// The offset of a check behind the function.
    pub(super) fn behind(&self) -> usize {
        behind(self.function_bytes)
    }

    /// Puts `bytes` at an offset; there is room for them.
    pub(super) fn put(&self, offset: usize, bytes: &[u8]) {
        assert!(offset + bytes.len() <= self.code.len(), "there is room");
        // SAFETY: within the allocation's writable view; no hart runs the code yet.
        unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), self.code.rw().add(offset), bytes.len()) };
    }
}

/// The offset of a check behind a function.
pub(super) fn behind(function_bytes: usize) -> usize {
    function_bytes.next_multiple_of(CHECK_ALIGN_BYTES)
}
