//! No file makes the ELF parser panic, and a file that it accepts can be loaded: its
//! segments lie in the guest's window and in the file.

#![no_main]

use demo_emulator::linux::address_space::PAGE_BYTES;
use demo_emulator::linux::elf::{self, EHDR_BYTES, Image, PHDR_BYTES};
use demo_emulator::memory::window::{EXEC, WINDOW_LEN_BYTES};
use libfuzzer_sys::fuzz_target;

/// First 8 bytes of a program header: type and flags.
const LOAD_CODE: u64 = 5 << 32 | 1;
const LOAD_DATA: u64 = 6 << 32 | 1;
const INTERPRETER: u64 = 4 << 32 | 3;

fn put(file: &mut [u8], offset: usize, value: u64) {
    file[offset..offset + 8].copy_from_slice(&value.to_le_bytes());
}

/// A program with code, data and the name of a dynamic loader.
fn program() -> Vec<u8> {
    let mut file = vec![0; 0x180];
    file[..6].copy_from_slice(b"\x7fELF\x02\x01");
    (file[16], file[18], file[54], file[56]) = (2, 243, PHDR_BYTES as u8, 3);
    put(&mut file, 24, 0x1_0120);
    put(&mut file, 32, EHDR_BYTES as u64);
    file[0x170..0x178].copy_from_slice(b"/lib/ld\0");
    // Type and flags, file offset, address, bytes in the file, bytes in memory.
    let headers = [
        [LOAD_CODE, 0, 0x1_0000, 0x140, 0x140],
        [LOAD_DATA, 0x140, 0x1_1140, 0x30, 0x3000],
        [INTERPRETER, 0x170, 0x1_1170, 8, 8],
    ];
    for (index, [kind, offset, address, file_bytes, memory_bytes]) in headers.into_iter().enumerate() {
        let at = EHDR_BYTES + index * PHDR_BYTES;
        for (field, value) in [(0, kind), (8, offset), (16, address), (32, file_bytes), (40, memory_bytes)] {
            put(&mut file, at + field, value);
        }
    }
    file
}

/// The input itself, or the input as changes to a program. A change is a byte for the
/// position among the headers, one for the number of bytes to the left, and the new value.
fn file_of(input: &[u8]) -> Vec<u8> {
    match input.split_first() {
        Some((&first, changes)) if first != 0x7f => {
            let mut file = program();
            for change in changes.chunks_exact(3) {
                let at = usize::from(change[0]) + usize::from(change[1] & 0x80);
                let byte = at.min(EHDR_BYTES + 3 * PHDR_BYTES - 1) ^ usize::from(change[1] & 7);
                file[byte] = change[2];
            }
            file
        }
        _ => input.to_vec(),
    }
}

fn check(file: &[u8], image: &Image) {
    let mut end = 0;
    for segment in &image.segments {
        assert!(segment.memory_bytes > 0 && segment.file_bytes <= segment.memory_bytes, "{segment:?}");
        assert!(segment.offset + segment.file_bytes <= file.len() as u64, "{segment:?}");
        assert_eq!(segment.offset % PAGE_BYTES, segment.address % PAGE_BYTES, "{segment:?}");
        assert!(end <= segment.address, "{:?}", image.segments);
        end = segment.end();
        assert!(segment.page_start() < segment.page_end() && segment.page_end() <= WINDOW_LEN_BYTES, "{segment:?}");
    }
    assert!(image.start() < image.end() && image.end() <= WINDOW_LEN_BYTES, "{image:?}");
    let in_segment = |address: u64, prot| {
        image.segments.iter().any(|s| s.prot & prot == prot && (s.address..s.end()).contains(&address))
    };
    assert!(in_segment(image.entry, EXEC), "{image:?}");
    assert!(image.phdr_address.is_none_or(|address| in_segment(address, 0)), "{image:?}");
    assert!(image.interpreter.as_ref().is_none_or(|name| !name.is_empty() && !name.contains(&0)), "{image:?}");
}

fuzz_target!(init: {
    let file = program();
    let image = parse(&file).expect("a program");
    assert_eq!((image.segments.len(), image.interpreter.as_deref()), (2, Some(b"/lib/ld".as_slice())));
}, |input: &[u8]| {
    let file = file_of(input);
    match parse(&file) {
        Ok(image) => check(&file, &image),
        Err(error) => assert!(!error.to_string().is_empty()),
    }
});

fn parse(file: &[u8]) -> Result<Image, elf::ElfError> {
    elf::parse(file.len() as u64, &|offset, buffer| {
        let rest = usize::try_from(offset).ok().and_then(|offset| file.get(offset..)).unwrap_or_default();
        let len = rest.len().min(buffer.len());
        buffer[..len].copy_from_slice(&rest[..len]);
        len
    })
}
