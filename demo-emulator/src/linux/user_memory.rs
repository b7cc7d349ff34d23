//! Guest memory for system calls: small structures are copied through fault-proof accesses, buffers
//! are passed to the kernel as host pointers.
//!
//! A guest pointer is checked only against the window. Then the kernel, or the fault-proof access,
//! detects a page that may not be used, and the guest gets its EFAULT. Nothing here needs `unsafe`.

use crate::memory::Window;
use crate::memory::window::WINDOW_LEN_BYTES;

use super::errno::Errno;

/// Longest path, its end included: PATH_MAX.
pub const PATH_MAX: usize = 4096;

/// The host address of `len_bytes` guest bytes from `addr`.
pub fn host_pointer(window: &Window, addr: u64, len_bytes: u64) -> Result<u64, Errno> {
    match addr.checked_add(len_bytes) {
        Some(end) if end <= WINDOW_LEN_BYTES => Ok(window.base() as u64 + addr),
        _ => Err(Errno::EFAULT),
    }
}

/// Fills `bytes` from guest memory.
pub fn read_bytes(window: &Window, addr: u64, bytes: &mut [u8]) -> Result<(), Errno> {
    host_pointer(window, addr, bytes.len() as u64)?;
    let (mut at, words) = (addr, bytes.chunks_exact_mut(8));
    for chunk in words {
        chunk.copy_from_slice(&window.load_u64(at).map_err(|_| Errno::EFAULT)?.to_le_bytes());
        at += 8;
    }
    let whole = bytes.len() & !7;
    for byte in &mut bytes[whole..] {
        *byte = window.load_u8(at).map_err(|_| Errno::EFAULT)?;
        at += 1;
    }
    Ok(())
}

/// Copies `bytes` to guest memory.
pub fn write_bytes(window: &Window, addr: u64, bytes: &[u8]) -> Result<(), Errno> {
    host_pointer(window, addr, bytes.len() as u64)?;
    let mut at = addr;
    let (words, rest) = bytes.as_chunks::<8>();
    for word in words {
        window.store_u64(at, u64::from_le_bytes(*word)).map_err(|_| Errno::EFAULT)?;
        at += 8;
    }
    for byte in rest {
        window.store_u8(at, *byte).map_err(|_| Errno::EFAULT)?;
        at += 1;
    }
    Ok(())
}

/// Reads `N` bytes.
pub fn read_array<const N: usize>(window: &Window, addr: u64) -> Result<[u8; N], Errno> {
    let mut bytes = [0; N];
    read_bytes(window, addr, &mut bytes)?;
    Ok(bytes)
}

/// Reads a 64-bit word.
pub fn read_u64(window: &Window, addr: u64) -> Result<u64, Errno> {
    read_array(window, addr).map(u64::from_le_bytes)
}

/// Reads a 32-bit word.
pub fn read_u32(window: &Window, addr: u64) -> Result<u32, Errno> {
    read_array(window, addr).map(u32::from_le_bytes)
}

/// Writes a 64-bit word.
pub fn write_u64(window: &Window, addr: u64, value: u64) -> Result<(), Errno> {
    write_bytes(window, addr, &value.to_le_bytes())
}

/// Writes a 32-bit word.
pub fn write_u32(window: &Window, addr: u64, value: u32) -> Result<(), Errno> {
    write_bytes(window, addr, &value.to_le_bytes())
}

/// Reads a string up to its NUL, of less than `limit_bytes`.
pub fn read_string(window: &Window, addr: u64, limit_bytes: usize) -> Result<Vec<u8>, Errno> {
    let mut string = Vec::new();
    while string.len() < limit_bytes {
        match window.load_u8(addr.wrapping_add(string.len() as u64)).map_err(|_| Errno::EFAULT)? {
            0 => return Ok(string),
            byte => string.push(byte),
        }
    }
    Err(Errno::ENAMETOOLONG)
}

/// Reads an array of strings that a null pointer ends: `argv`, `envp`.
pub fn read_strings(window: &Window, addr: u64) -> Result<Vec<Vec<u8>>, Errno> {
    // The kernel's own limits: 128 KiB a string, a quarter of the stack in all.
    const STRING_LIMIT: usize = 128 << 10;
    const TOTAL_LIMIT: usize = 6 << 20;
    let (mut strings, mut total) = (Vec::new(), 0);
    if addr == 0 {
        return Ok(strings);
    }
    loop {
        let pointer = read_u64(window, addr + 8 * strings.len() as u64)?;
        if pointer == 0 {
            return Ok(strings);
        }
        let string = read_string(window, pointer, STRING_LIMIT).map_err(|errno| match errno {
            Errno::ENAMETOOLONG => Errno::E2BIG,
            other => other,
        })?;
        total += string.len() + 9;
        if total > TOTAL_LIMIT {
            return Err(Errno::E2BIG);
        }
        strings.push(string);
    }
}

/// Little-endian fields of a structure, one after the other.
#[derive(Default, Debug)]
pub struct Fields(pub Vec<u8>);

impl Fields {
    /// Appends 64-bit words.
    pub fn u64s(mut self, words: &[u64]) -> Self {
        words.iter().for_each(|word| self.0.extend(word.to_le_bytes()));
        self
    }

    /// Appends 32-bit words.
    pub fn u32s(mut self, words: &[u32]) -> Self {
        words.iter().for_each(|word| self.0.extend(word.to_le_bytes()));
        self
    }

    /// Appends zeros up to `len_bytes`.
    pub fn padded_to(mut self, len_bytes: usize) -> Self {
        self.0.resize(len_bytes, 0);
        self
    }
}

/// The 64-bit word at byte `offset` of a structure.
pub fn word_at(bytes: &[u8], offset: usize) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(&bytes[offset..offset + 8]);
    u64::from_le_bytes(word)
}

/// The 32-bit word at byte `offset` of a structure.
pub fn half_at(bytes: &[u8], offset: usize) -> u32 {
    let mut half = [0; 4];
    half.copy_from_slice(&bytes[offset..offset + 4]);
    u32::from_le_bytes(half)
}
