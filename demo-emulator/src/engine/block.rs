//! A guest basic block, read under a ticket: protected, then fetched, then
//! decoded.

use codewarden::Ticket;
use codewarden::addr::GuestAddr;

use super::Payload;
use crate::memory::Window;
use crate::riscv::decode::decode;
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

/// Reads the block at `pc`: up to the first instruction that may go elsewhere,
/// over page boundaries, [`MAX_INSTS`] instructions at most. Every byte is read
/// once, after its page was claimed.
pub(super) fn read(ticket: &mut Ticket<Payload>, window: &Window, pc: u64) -> Result<Source, ReadError> {
    let (mut insts, mut bytes) = (Vec::with_capacity(16), Vec::with_capacity(64));
    let mut at = pc;
    while insts.len() < MAX_INSTS {
        match read_one(ticket, window, at) {
            Ok((inst, bits)) => {
                insts.push(inst);
                bytes.extend(&bits.to_le_bytes()[..usize::from(inst.len)]);
                at += u64::from(inst.len);
                if ends_block(inst.op) {
                    break;
                }
            }
            Err(error) if insts.is_empty() => return Err(error),
            // What was read so far is a block of its own.
            Err(_) => break,
        }
    }
    Ok(Source { insts, bytes })
}

fn read_one(ticket: &mut Ticket<Payload>, window: &Window, pc: u64) -> Result<(Inst, u32), ReadError> {
    let low = read_half(ticket, window, pc)?;
    if low & 3 != 3 {
        return Ok((decode(low), low));
    }
    let high = read_half(ticket, window, pc + 2)?;
    let bits = high << 16 | low;
    Ok((decode(bits), bits))
}

/// Reads two bytes of an instruction, after their page was claimed. Pages that
/// cannot be fetched from are not the tracker's business.
fn read_half(ticket: &mut Ticket<Payload>, window: &Window, addr: u64) -> Result<u32, ReadError> {
    let fetch = || window.fetch_u16(addr).map_err(|fault| ReadError::Fetch(Trap::FetchFault(fault)));
    fetch()?;
    ticket.claim(GuestAddr(addr)).map_err(|_| ReadError::Busy)?;
    fetch().map(u32::from)
}
