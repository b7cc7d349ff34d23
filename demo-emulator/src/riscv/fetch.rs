//! The one function that takes instructions from memory.

use super::decode::decode;
use super::inst::Inst;
use crate::memory::code::FETCH_BYTES;

/// Fetches and decodes the instruction at `pc`, an even address. `chunk` reads the [`FETCH_BYTES`]
/// aligned bytes around an address, all at once. It is called a second time only if the instruction
/// lies in two chunks; see [`memory::code`](crate::memory::code).
pub fn fetch<E>(pc: u64, mut chunk: impl FnMut(u64) -> Result<u64, E>) -> Result<Inst, E> {
    debug_assert!(pc.is_multiple_of(2), "{pc:#x}");
    let offset = pc % FETCH_BYTES;
    let bits = (chunk(pc)? >> (8 * offset)) as u32;
    if bits & 3 != 3 || offset + 4 <= FETCH_BYTES {
        return Ok(decode(bits));
    }
    Ok(decode((chunk(pc.wrapping_add(2))? as u32) << 16 | bits))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The bytes around each place, so that each instruction has a value of its own.
    const MEMORY: [u8; 32] = {
        let mut memory = [0; 32];
        let mut at = 0;
        while at < memory.len() {
            // A load immediate of another value at each multiple of 2.
            memory[at] = if at % 2 == 0 { 0x13 } else { at as u8 };
            at += 1;
        }
        memory
    };

    fn read(at: u64) -> u64 {
        let first = (at & !(FETCH_BYTES - 1)) as usize;
        u64::from_le_bytes(MEMORY[first..first + 8].try_into().unwrap())
    }

    #[test]
    fn one_load_unless_an_instruction_lies_in_two_chunks() {
        for pc in (0..24).step_by(2) {
            let mut asked = Vec::new();
            let inst = fetch(pc, |at| {
                asked.push(at);
                Ok::<_, ()>(read(at))
            });
            let bits = MEMORY[pc as usize..pc as usize + 4].try_into().unwrap();
            assert_eq!(inst, Ok(decode(u32::from_le_bytes(bits))), "{pc}");
            let in_two = pc % FETCH_BYTES == 6;
            assert_eq!(asked, if in_two { vec![pc, pc + 2] } else { vec![pc] });
            assert!(!pc.is_multiple_of(4) || !in_two, "what is aligned is read at once");
        }
    }

    #[test]
    fn a_compressed_instruction_needs_no_chunk_behind_it() {
        let nop = 0x0001 << 48;
        let inst = fetch(0x1006, |at| if at == 0x1006 { Ok(nop) } else { Err(at) });
        assert_eq!(inst, Ok(decode(1)));
        let second = fetch(0x1006, |at| if at == 0x1006 { Ok(0x13 << 48) } else { Err(at) });
        assert_eq!(second, Err(0x1008), "of the instruction's second half");
    }
}
