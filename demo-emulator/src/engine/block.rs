//! A guest basic block, read under a ticket: protected, then fetched, then
//! decoded.

use codewarden::Ticket;
use codewarden::addr::GuestAddr;

use super::Payload;
use crate::memory::Window;
use crate::memory::code::FETCH_BYTES;
use crate::memory::window::PAGE_LEN_BYTES;
use crate::riscv::fetch::fetch;
use crate::riscv::inst::Inst;
use crate::riscv::trap::Trap;
use crate::translate::ends_block;

/// Instructions of a block at most.
pub(super) const MAX_INSTS: usize = 64;

/// A block as it was read.
#[derive(Debug)]
pub(super) struct Source {
    /// Its instructions.
    pub(super) insts: Vec<Inst>,
    /// The bytes that they were decoded from.
    pub(super) bytes: Vec<u8>,
}

/// Why no block could be read.
#[derive(Debug)]
pub(super) enum ReadError {
    /// The first instruction cannot be fetched: the guest's own fault.
    Fetch(Trap),
    /// A page of it cannot be translated from, now or at all.
    Busy,
}

impl Source {
    /// Its instructions with their addresses, the block being at `pc`.
    pub(super) fn placed(&self, pc: u64) -> Vec<(u64, Inst)> {
        let mut next = pc;
        let place = |&inst: &Inst| {
            let at = next;
            next += u64::from(inst.len);
            (at, inst)
        };
        self.insts.iter().map(place).collect()
    }

    /// Whether it may write memory.
    pub(super) fn stores(&self) -> bool {
        self.insts.iter().any(|inst| inst.op.stores())
    }
}

/// Reads the block at `pc`: up to the first instruction that may go elsewhere,
/// over page boundaries, [`MAX_INSTS`] instructions at most. Each aligned piece is
/// read once, after its page was claimed: instructions and bytes are of one reading.
pub(super) fn read(ticket: &mut Ticket<Payload>, window: &Window, pc: u64) -> Result<Source, ReadError> {
    let mut reader = Reader { ticket, window, first: pc & !(FETCH_BYTES - 1), pieces: Vec::with_capacity(8) };
    let (mut insts, mut end) = (Vec::with_capacity(16), pc);
    while insts.len() < MAX_INSTS {
        match fetch(end, |at| reader.piece(at)) {
            Ok(inst) => {
                insts.push(inst);
                end = end.wrapping_add(u64::from(inst.len));
                if ends_block(inst.op) {
                    break;
                }
            }
            Err(error) if insts.is_empty() => return Err(error),
            // What was read so far is a block of its own.
            Err(_) => break,
        }
    }
    let (lead, len_bytes) = ((pc - reader.first) as usize, end.wrapping_sub(pc) as usize);
    let bytes = reader.pieces.into_iter().flat_map(u64::to_le_bytes).skip(lead).take(len_bytes).collect();
    Ok(Source { insts, bytes })
}

/// Reads for the decoder, never from a page that is not needed.
struct Reader<'a> {
    ticket: &'a mut Ticket<Payload>,
    window: &'a Window,
    /// Where the first piece lies.
    first: u64,
    /// What was read, from there on.
    pieces: Vec<u64>,
}

impl Reader<'_> {
    /// The aligned bytes among which `at` is: the last ones that were read, or those
    /// behind them.
    fn piece(&mut self, at: u64) -> Result<u64, ReadError> {
        let index = (at.wrapping_sub(self.first) / FETCH_BYTES) as usize;
        if let Some(&piece) = self.pieces.get(index) {
            return Ok(piece);
        }
        if self.pieces.is_empty() || at.is_multiple_of(PAGE_LEN_BYTES) {
            // Pages that cannot be fetched from are not the tracker's business. What
            // the guest may do with it is asked again under the claim, which ends if
            // that changes.
            self.fetch(at)?;
            self.ticket.claim(GuestAddr(at)).map_err(|_| ReadError::Busy)?;
        }
        let piece = self.fetch(at)?;
        self.pieces.push(piece);
        Ok(piece)
    }

    fn fetch(&self, at: u64) -> Result<u64, ReadError> {
        self.window.fetch(at).map_err(|fault| ReadError::Fetch(Trap::FetchFault(fault)))
    }
}
