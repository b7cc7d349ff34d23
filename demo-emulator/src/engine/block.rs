//! A guest basic block, read under a ticket: protected, then fetched, then
//! decoded.

use codewarden::Ticket;
use codewarden::addr::GuestAddr;

use super::Payload;
use crate::memory::Window;
use crate::memory::window::PAGE_LEN_BYTES;
use crate::riscv::decode::decode;
use crate::riscv::inst::Inst;
use crate::riscv::trap::Trap;
use crate::translate::ends_block;

/// Instructions of a block at most.
pub(super) const MAX_INSTS: usize = 64;

/// Bytes that are read at once: most blocks are not longer.
const CHUNK_BYTES: usize = 32;

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
/// over page boundaries, [`MAX_INSTS`] instructions at most. Every byte is read
/// once, after its page was claimed.
pub(super) fn read(ticket: &mut Ticket<Payload>, window: &Window, pc: u64) -> Result<Source, ReadError> {
    let mut reader = Reader { ticket, window, pc, bytes: Vec::with_capacity(2 * CHUNK_BYTES) };
    let (mut insts, mut len_bytes) = (Vec::with_capacity(16), 0);
    while insts.len() < MAX_INSTS {
        match reader.inst(len_bytes) {
            Ok(inst) => {
                insts.push(inst);
                len_bytes += usize::from(inst.len);
                if ends_block(inst.op) {
                    break;
                }
            }
            Err(error) if insts.is_empty() => return Err(error),
            // What was read so far is a block of its own.
            Err(_) => break,
        }
    }
    let mut bytes = reader.bytes;
    bytes.truncate(len_bytes);
    Ok(Source { insts, bytes })
}

/// Reads ahead of the decoder, never into a page that is not needed.
struct Reader<'a> {
    ticket: &'a mut Ticket<Payload>,
    window: &'a Window,
    pc: u64,
    /// What was read, from `pc` on.
    bytes: Vec<u8>,
}

impl Reader<'_> {
    /// The instruction that begins `offset` bytes behind the first.
    fn inst(&mut self, offset: usize) -> Result<Inst, ReadError> {
        let low = self.half(offset)?;
        if low & 3 != 3 {
            return Ok(decode(low));
        }
        Ok(decode(self.half(offset + 2)? << 16 | low))
    }

    fn half(&mut self, offset: usize) -> Result<u32, ReadError> {
        if offset == self.bytes.len() {
            self.read_on()?;
        }
        match self.bytes.get(offset..offset + 2) {
            Some(&[low, high]) => Ok(u32::from(u16::from_le_bytes([low, high]))),
            // An odd pc at the end of a page.
            _ => Err(ReadError::Busy),
        }
    }

    fn read_on(&mut self) -> Result<(), ReadError> {
        let at = self.pc.wrapping_add(self.bytes.len() as u64);
        let in_page = (at % PAGE_LEN_BYTES) as usize;
        if self.bytes.is_empty() || in_page == 0 {
            self.claim(at)?;
        }
        let mut left = CHUNK_BYTES.min(PAGE_LEN_BYTES as usize - in_page);
        let unreadable = |fault| ReadError::Fetch(Trap::FetchFault(fault));
        while left >= 2 {
            let at = self.pc.wrapping_add(self.bytes.len() as u64);
            if left >= 8 {
                self.bytes.extend(self.window.load_u64(at).map_err(unreadable)?.to_le_bytes());
                left -= 8;
            } else {
                self.bytes.extend(self.window.load_u16(at).map_err(unreadable)?.to_le_bytes());
                left -= 2;
            }
        }
        Ok(())
    }

    /// Claims the page of `at`. Pages that cannot be fetched from are not the
    /// tracker's business; what the guest may do with it is asked again under the
    /// claim, which ends where that changes.
    fn claim(&mut self, at: u64) -> Result<(), ReadError> {
        let fetch = || self.window.fetch_u16(at).map_err(|fault| ReadError::Fetch(Trap::FetchFault(fault)));
        fetch()?;
        self.ticket.claim(GuestAddr(at)).map_err(|_| ReadError::Busy)?;
        fetch().map(drop)
    }
}
