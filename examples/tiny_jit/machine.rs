//! The machine: guest memory, the code cache over it, and the loop of a vCPU.
//!
//! # Safety
//!
//! Emitted code is entered at the address that a lookup gave under the vCPU's pin. It jumps
//! through cells that its block is linked to. It stores to the guest's memory alone, because
//! every address is masked to that memory's size. A block's code is written before it is
//! published, and not after. Guest memory and the stubs outlive the cache: the fields are
//! dropped in their order, when no vCPU is left.
#![allow(unsafe_code)]

use std::error::Error;
use std::mem::transmute;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use codewarden::addr::GuestAddr;
use codewarden::code_buffer::{Allocation, CodeBuffer};
use codewarden::error::Error as WardenError;
use codewarden::guest_memory::GuestMemory;
use codewarden::policy::Adaptive;
use codewarden::protection::{Access, Mode};
use codewarden::tracker::{BeginError, RegionOptions};
use codewarden::{CodeCache, CommitError, Entry, EntryStubs, FrontSlot, Key, MemoryLimit, Stats, VCpu};

use super::guest::{Asm, CHECK_FAILED, INTERPRET, LOOK_UP, MEMORY, Op, State, aligned, target};

pub(crate) type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

/// The limits of the translations and of the executable memory: the program reaches both.
const LIMIT: MemoryLimit = MemoryLimit::of_bytes(64 << 10);
const CODE_BYTES: usize = 32 << 10;
/// The most guest instructions of a block.
const MOST: usize = 16;

type Enter = unsafe extern "sysv64" fn(*mut State, *mut u8, *const FrontSlot, usize) -> u32;

pub(crate) struct Machine {
    cache: CodeCache<Allocation>,
    pub(crate) memory: GuestMemory,
    code: CodeBuffer,
    /// Owns the code of `enter` and `exit`.
    _stubs: Allocation,
    enter: Enter,
    exit: usize,
    mode: Mode,
    /// The file that the guest's system call reads.
    input: i32,
}

impl Machine {
    pub(crate) fn new(mode: Mode, input: i32) -> Result<Self> {
        let code = CodeBuffer::new(CODE_BYTES)?;
        let mut asm = Asm { code: Vec::new(), exit: 0 };
        asm.put(&[0x53, 0x41, 0x54, 0x41, 0x55]); //                push rbx; push r12; push r13
        asm.put(&[0x48, 0x89, 0xfb, 0x49, 0x89, 0xf4]); //          mov rbx, rdi; mov r12, rsi
        asm.put(&[0x49, 0x89, 0xd5, 0xff, 0xe1]); //                mov r13, rdx; jmp rcx
        let dead = asm.code.len();
        asm.put(&[0x90]); //                                        nop, so that the stubs differ
        let pending = asm.code.len();
        asm.put(&[0xb8]).imm32(LOOK_UP); //                         mov eax, LOOK_UP
        let exit = asm.code.len();
        asm.put(&[0x41, 0x5d, 0x41, 0x5c, 0x5b, 0xc3]); //          pop r13; pop r12; pop rbx; ret
        let stubs = code.emit(&asm.code)?;
        let start = stubs.entry(0)?;

        let memory = GuestMemory::anonymous(MEMORY)?;
        let entry_stubs = EntryStubs { dead: start + dead, pending: start + pending };
        let cache = CodeCache::with_policy(entry_stubs, Arc::new(Adaptive::with_checks()))?;
        cache.set_limit(LIMIT);
        let region = RegionOptions::new(GuestAddr(0), memory.range(), mode);
        // SAFETY: `memory` outlives `cache`; `map_anew` alone replaces it, and announces that.
        unsafe { cache.tracker().add_region(region)? };
        // SAFETY: the code above, which has this signature.
        let enter = unsafe { transmute::<usize, Enter>(start) };
        Ok(Self { cache, memory, code, _stubs: stubs, enter, exit: start + exit, mode, input })
    }

    pub(crate) fn stats(&self) -> Stats {
        self.cache.stats()
    }

    /// The guest maps fresh memory over `len` bytes of its own.
    pub(crate) fn map_anew(&self, start: u64, len: usize) -> Result<()> {
        let change = self.cache.tracker().change_mapping(GuestAddr(start), len as u64)?;
        let (rw, fixed) =
            (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED);
        // SAFETY: guest memory, announced; nothing of Rust's is there.
        let mapped = unsafe { libc::mmap(self.host(start).cast(), len, rw, fixed, -1, 0) };
        if mapped == libc::MAP_FAILED {
            return Err(std::io::Error::last_os_error().into());
        }
        Ok(change.finish_replaced(Access::ReadWrite, None)?)
    }

    /// Runs a vCPU in this thread until it halts. Returns its registers.
    pub(crate) fn run(&self, pc: u64, regs: [u64; 8]) -> Result<[u64; 8]> {
        let leave = Arc::new(AtomicU8::new(0));
        let mut state = State { regs, pc, leave: Arc::as_ptr(&leave) };
        let asked = Arc::clone(&leave);
        let mut vcpu = self.cache.attach_vcpu_with(move || asked.store(1, Ordering::Relaxed));
        loop {
            leave.store(0, Ordering::Relaxed);
            let interpret = match self.enter(&mut vcpu, &mut state) {
                Some(INTERPRET) => true,
                Some(CHECK_FAILED) => {
                    self.cache.remove(Key::new(state.pc));
                    false
                }
                Some(_) => false,
                None => !self.translate(state.pc)?,
            };
            if interpret && !self.interpret(&mut state)? {
                return Ok(state.regs);
            }
        }
    }

    /// Runs emitted code from the pc on, if there is a block, and returns its reason to come
    /// back. The pin ends here: system calls and translations are made without it.
    fn enter(&self, vcpu: &mut VCpu<Allocation>, state: &mut State) -> Option<u32> {
        let mut pin = vcpu.pin();
        let entry = pin.lookup(Key::new(state.pc))?;
        // SAFETY: `entry` is code of this machine's, and lives as long as `pin`.
        Some(unsafe { (self.enter)(state, self.host(0), pin.front(), entry) })
    }

    /// Makes the block at `pc` reachable. `false`: interpret an instruction first.
    fn translate(&self, pc: u64) -> Result<bool> {
        let mut ticket = self.cache.begin(Key::new(pc));
        match ticket.claim(GuestAddr(pc)) {
            Ok(_) => {}
            Err(BeginError::Busy(_) | BeginError::Untrackable) => return Ok(false),
            Err(error) => return Err(error.into()),
        }
        // Reads each word once, after the claim. A block ends with its page.
        let page = self.cache.tracker().page_size().bytes();
        let mut bytes = [0; 4 * MOST];
        let words = bytes[..(4 * MOST).min(page - pc as usize % page)].as_chunks_mut().0;
        self.memory.read(pc as usize, words.as_flattened_mut())?;
        let end = words.iter().position(|word| Op::decode(*word).ends_block());
        let words = &words[..end.map_or(words.len(), |last| last + 1)];
        ticket.add_source(GuestAddr(pc), words.as_flattened())?;
        let mut ticket = match ticket.revive() {
            Ok(Some(ticket)) => ticket,
            Ok(None) => return Ok(true),
            Err(CommitError::Written) => return Ok(false),
            Err(error) => return Err(error.into()),
        };

        let last = pc + 4 * (words.len() as u64 - 1);
        let ends = Op::decode(words[words.len() - 1]).leads_to(last);
        let cells = ends.iter().map(|&to| ticket.link(Key::new(to))).collect::<std::result::Result<Vec<_>, _>>()?;
        // In deferred mode the guest's announcement ends the block.
        let stale = self.mode.is_synchronous().then(|| ticket.stale_flag());
        let mut asm = Asm { code: Vec::new(), exit: self.exit };
        let [checked, plain] = asm.block(pc, words, stale, &cells);
        let memory = match self.code.emit(&asm.code) {
            Ok(memory) => memory,
            Err(WardenError::Full { .. }) => {
                self.cache.evict(asm.code.len());
                return Ok(false);
            }
            Err(error) => return Err(error.into()),
        };
        let start = memory.entry(0)?;
        let entry = Entry::with_check(start + plain, start + checked);
        match ticket.commit(entry, memory) {
            Ok(()) => Ok(true),
            Err(CommitError::Written) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// The four bytes of guest memory at `at`.
    pub(crate) fn word(&self, at: u64) -> Result<[u8; 4]> {
        let mut word = [0; 4];
        self.memory.read(at as usize, &mut word)?;
        Ok(word)
    }

    /// Runs one instruction. Returns whether the vCPU goes on.
    fn interpret(&self, state: &mut State) -> Result<bool> {
        let reg = |r: u8| state.regs[usize::from(r)];
        let mut next = aligned(state.pc + 4);
        match Op::decode(self.word(state.pc)?) {
            Op::Halt => return Ok(false),
            Op::Add(r, number) => state.regs[usize::from(r)] = reg(r).wrapping_add_signed(number.into()),
            Op::Store(r, s) => self.memory.write(aligned(reg(r)) as usize, &(reg(s) as u32).to_le_bytes())?,
            Op::Branch(r, distance) if reg(r) != 0 => next = target(state.pc, distance),
            Op::Branch(..) => {}
            Op::Jump(r) => next = aligned(reg(r)),
            Op::Fence => self.cache.tracker().sync()?,
            Op::Read(r, len) => self.read_input(aligned(reg(r)), usize::from(len.unsigned_abs()))?,
        }
        state.pc = next;
        Ok(true)
    }

    /// The kernel writes to the guest's memory; the write is announced.
    fn read_input(&self, to: u64, len: usize) -> Result<()> {
        let len = len.min(MEMORY - to as usize);
        let _held = self.cache.tracker().prepare_kernel_write(GuestAddr(to), len as u64)?;
        // SAFETY: inside guest memory.
        let read = unsafe { libc::read(self.input, self.host(to).cast(), len) };
        if read < 0 { Err(std::io::Error::last_os_error().into()) } else { Ok(()) }
    }

    fn host(&self, guest: u64) -> *mut u8 {
        self.memory.range().start().as_ptr().wrapping_add(guest as usize)
    }
}
