//! Guest code in memory that other harts write to.
//!
//! RISC-V promises that a fetch of a naturally aligned instruction is atomic (Ziccif). A hart that
//! overwrites one with a single store shows the others the old instruction or the new one, never
//! half of each. So all code is read in **aligned chunks**, each by one load: to run it, to
//! translate it, and to compare it with a translation's source. A chunk is 8 bytes, or 16 if the
//! host loads those at once. It never lies on two pages.
//!
//! An aligned instruction lies in one chunk. So does any other that does not begin in the last two
//! bytes of 8. An instruction that begins there is read by two loads, as the architecture allows;
//! its second half may lie on another page.

use super::access::{Fault, FaultKind};
use super::window::{EXEC, Window};

/// Bytes that one fetch reads.
pub const FETCH_BYTES: u64 = 8;

/// One aligned chunk of memory with some bytes of code.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Chunk<const N: usize> {
    /// Its guest address.
    pub at: u64,
    /// The bytes of the code, 0 for the others.
    pub bytes: [u8; N],
    /// 0xff for each byte of the code, 0 for the others.
    pub mask: [u8; N],
}

impl<const N: usize> Chunk<N> {
    /// Whether all of it is code.
    pub fn is_whole(&self) -> bool {
        self.mask == [0xff; N]
    }
}

/// The aligned chunks of `N` bytes, a power of two, that hold `code` at `start`.
pub fn chunks<const N: usize>(start: u64, code: &[u8]) -> impl Iterator<Item = Chunk<N>> {
    const { assert!(N.is_power_of_two()) }
    let lead = (start % N as u64) as usize;
    (0..lead + code.len()).step_by(N).map(move |offset| {
        let at = start.wrapping_sub(lead as u64).wrapping_add(offset as u64);
        // All but the ends, without a copy of variable length.
        if let Some(whole) = offset.checked_sub(lead).and_then(|from| code[from..].first_chunk()) {
            return Chunk { at, bytes: *whole, mask: [0xff; N] };
        }
        let (mut bytes, mut mask) = ([0; N], [0; N]);
        let (first, end) = (lead.saturating_sub(offset), N.min(lead + code.len() - offset));
        bytes[first..end].copy_from_slice(&code[offset + first - lead..offset + end - lead]);
        mask[first..end].fill(0xff);
        Chunk { at, bytes, mask }
    })
}

impl Window {
    /// Fetches the [`FETCH_BYTES`] aligned bytes around `addr` in one chunk; their page must allow
    /// fetches. A fault is one at `addr`.
    #[inline]
    pub fn fetch(&self, addr: u64) -> Result<u64, Fault> {
        if self.permissions(addr) & EXEC == 0 {
            return Err(Fault { addr, kind: FaultKind::Segv });
        }
        self.load_u64(addr & !(FETCH_BYTES - 1)).map_err(|fault| Fault { addr, ..fault })
    }

    /// Whether memory at `start` has the bytes of `code`, chunk by chunk.
    pub fn has_code(&self, start: u64, code: &[u8]) -> Result<bool, Fault> {
        for chunk in chunks(start, code) {
            let differs = self.load_u64(chunk.at)? ^ u64::from_le_bytes(chunk.bytes);
            if differs & u64::from_le_bytes(chunk.mask) != 0 {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CODE: [u8; 40] = {
        let mut code = [0; 40];
        let mut at = 0;
        while at < code.len() {
            code[at] = at as u8 + 1;
            at += 1;
        }
        code
    };

    fn check<const N: usize>() {
        for (start, len) in (0x1000..0x1020).flat_map(|start| (1..CODE.len()).map(move |len| (start, len))) {
            let (all, end): (Vec<Chunk<N>>, _) = (chunks(start, &CODE[..len]).collect(), start + len as u64);
            let mut seen = 0;
            for (index, chunk) in all.iter().enumerate() {
                assert_eq!(chunk.at, start / N as u64 * N as u64 + (index * N) as u64);
                for (at, (&byte, &mask)) in (chunk.at..).zip(chunk.bytes.iter().zip(&chunk.mask)) {
                    let own = (start..end).contains(&at).then(|| CODE[(at - start) as usize]);
                    assert_eq!(
                        (byte, mask),
                        own.map_or((0, 0), |byte| (byte, 0xff)),
                        "{len} bytes at {start:#x}, {at:#x}"
                    );
                    seen += usize::from(own.is_some());
                }
                assert_eq!(chunk.is_whole(), chunk.at >= start && chunk.at + N as u64 <= end);
            }
            assert_eq!(seen, len, "at {start:#x}");
        }
    }

    #[test]
    fn chunks_are_aligned_and_hold_each_byte_once() {
        check::<8>();
        check::<16>();
    }
}
