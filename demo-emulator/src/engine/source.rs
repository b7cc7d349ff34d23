//! The instructions and bytes of a guest basic block, read under a ticket: protect, fetch, decode.

use codewarden::addr::GuestAddr;
use codewarden::{Payload, Ticket};

use crate::memory::Window;
use crate::memory::code::FETCH_BYTES;
use crate::memory::window::PAGE_LEN_BYTES;
use crate::riscv::fetch::fetch;
use crate::riscv::inst::Inst;
use crate::riscv::trap::Trap;
use crate::translate::{Block, Targets, ends_block};

/// The most instructions of a block.
pub(super) const MAX_INSTS: usize = 64;

/// A block's instructions and bytes, read at one time.
#[derive(Debug)]
pub(super) struct Source {
    /// Its instructions.
    pub(super) insts: Vec<Inst>,
    /// The bytes that they were decoded from.
    pub(super) bytes: Vec<u8>,
}

/// The reason why no block could be read.
#[derive(Debug)]
pub(super) enum ReadError {
    /// The first instruction cannot be fetched: the guest's own fault.
    Fetch(Trap),
    /// One of its pages cannot be translated from, now or ever.
    Busy,
}

impl Source {
    /// Its instructions with their addresses, for a block at `pc`.
    pub(super) fn placed(&self, pc: u64) -> Block {
        self.places(pc).collect()
    }

    /// The same, one after the other.
    pub(super) fn places(&self, pc: u64) -> impl Iterator<Item = (u64, Inst)> {
        let mut next = pc;
        self.insts.iter().map(move |&inst| {
            let at = next;
            next += u64::from(inst.len);
            (at, inst)
        })
    }

    /// Whether it may write memory.
    pub(super) fn stores(&self) -> bool {
        self.insts.iter().any(|inst| inst.op.stores())
    }
}

/// Reads the block at `pc`: over page boundaries up to the first instruction that may jump or to the
/// start of another block in `starts`, at most [`MAX_INSTS`] instructions. Each aligned chunk is read once, after its page was claimed, so the
/// instructions and the bytes come from the same reads.
pub(super) fn read<P: Payload>(
    ticket: &mut Ticket<P>,
    window: &Window,
    pc: u64,
    starts: &[u64],
) -> Result<Source, ReadError> {
    let mut reader = Reader { ticket, window, first: pc & !(FETCH_BYTES - 1), chunks: Vec::with_capacity(8) };
    let (mut insts, mut end) = (Vec::with_capacity(16), pc);
    while insts.len() < MAX_INSTS {
        match fetch(end, |at| reader.chunk(at)) {
            Ok(inst) => {
                insts.push(inst);
                end = end.wrapping_add(u64::from(inst.len));
                if ends_block(inst.op) || starts.contains(&end) {
                    break;
                }
            }
            Err(error) if insts.is_empty() => return Err(error),
            // The instructions read so far are a block of their own.
            Err(_) => break,
        }
    }
    let (lead, len_bytes) = ((pc - reader.first) as usize, end.wrapping_sub(pc) as usize);
    let bytes = reader.chunks.into_iter().flat_map(u64::to_le_bytes).skip(lead).take(len_bytes).collect();
    Ok(Source { insts, bytes })
}

/// The number of instructions of the block at `pc` and the ways on from it, as its bytes are now.
/// `None` if it cannot be fetched.
pub(super) fn shape(window: &Window, pc: u64) -> Option<(usize, Targets)> {
    let mut at = pc;
    let mut targets = None;
    for insts in 1..=MAX_INSTS {
        let fetched = fetch(at, |at| window.fetch(at));
        let Ok(inst) = fetched else { break };
        targets = Some((insts, Targets::of(at, &inst)));
        if ends_block(inst.op) {
            break;
        }
        at = at.wrapping_add(u64::from(inst.len));
    }
    targets
}

/// Reads for the decoder, never from a page that is not needed.
struct Reader<'a, P: Payload> {
    ticket: &'a mut Ticket<P>,
    window: &'a Window,
    /// The address of the first chunk.
    first: u64,
    /// The chunks read, from there on.
    chunks: Vec<u64>,
}

impl<P: Payload> Reader<'_, P> {
    /// The aligned bytes around `at`: the last ones that were read, or the next.
    fn chunk(&mut self, at: u64) -> Result<u64, ReadError> {
        let index = (at.wrapping_sub(self.first) / FETCH_BYTES) as usize;
        if let Some(&chunk) = self.chunks.get(index) {
            return Ok(chunk);
        }
        if self.chunks.is_empty() || at.is_multiple_of(PAGE_LEN_BYTES) {
            // The tracker need not know pages that cannot be fetched from. The guest's permissions
            // are checked again under the claim, which ends if they change.
            self.fetch(at)?;
            self.ticket.claim(GuestAddr(at)).map_err(|_| ReadError::Busy)?;
        }
        let chunk = self.fetch(at)?;
        self.chunks.push(chunk);
        Ok(chunk)
    }

    fn fetch(&self, at: u64) -> Result<u64, ReadError> {
        self.window.fetch(at).map_err(|fault| ReadError::Fetch(Trap::FetchFault(fault)))
    }
}
