//! The self-checking entry: equal bytes run, any other byte leaves, and no byte outside the block's
//! pages is read.

use super::*;

const END: u64 = DATA + DATA_PAGES * PAGE_LEN_BYTES;
/// Bytes of a block at most: 64 instructions of four bytes.
const BLOCK_BYTES_MAX: usize = 256;

/// Source bytes for the tests' blocks. Each byte differs from bytes at other places of the block
/// that a comparison could confuse it with.
fn source(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at * 7 + 3) as u8).collect()
}

/// A block of `source`, which adds one to x10 for every two bytes and continues behind them.
fn compile(bench: &mut Bench, start: u64, source: &[u8]) -> CompiledBlock {
    let insts: Vec<Inst> = source.chunks(2).map(|_| Inst { len: 2, ..addi(10, 10, 1) }).collect();
    let options = BlockOptions { source: Some(source), ..BlockOptions::default() };
    bench.compile_placed(&placed_at(start, &insts), &options).unwrap()
}

/// Enters `block` at its check; returns the exit and the new x10.
fn enter(bench: &mut Bench, start: u64, block: &CompiledBlock) -> (ExitReason, u64, u64) {
    let mut hart = bench.hart();
    hart.pc = start;
    let reason = bench.enter(&mut hart, block.self_checking_entry().unwrap());
    (reason, hart.pc, hart.x[10])
}

fn put(bench: &Bench, start: u64, bytes: &[u8]) {
    (start..).zip(bytes).for_each(|(at, &byte)| bench.window.store_u8(at, byte).unwrap());
}

/// A bench for a host that loads aligned vectors at once, or for one that does not.
fn bench(compiler: Compiler, vectors: bool) -> Bench {
    let mut bench = Bench { compiler, ..Bench::new(1 << 20) };
    let mut space = CodeSpace::new(bench.window, CodeBuffer::new(1 << 20).unwrap()).unwrap();
    Arc::get_mut(&mut space).unwrap().loads_vectors_at_once = vectors;
    bench.translator = Translator::new(Arc::clone(&space));
    bench.space = space;
    bench
}

#[test]
fn equal_bytes_run_and_each_byte_counts() {
    for (&compiler, vectors) in Compiler::ALL.iter().flat_map(|compiler| [(compiler, false), (compiler, true)]) {
        each_byte_counts(&mut bench(compiler, vectors));
    }
}

fn each_byte_counts(bench: &mut Bench) {
    for len in (2..=BLOCK_BYTES_MAX).step_by(2) {
        let source = source(len);
        let (half, len_bytes) = (len as u64 / 4 * 2, len as u64);
        // The pages before the first one and after the last one are not mapped.
        for start in [DATA, DATA + 2 + half % 16, DATA + PAGE_LEN_BYTES - half, END - len_bytes] {
            put(bench, start, &source);
            let block = compile(bench, start, &source);
            let run = (ExitReason::Miss, start + len_bytes, len_bytes / 2);
            assert_eq!(enter(bench, start, &block), run, "{len} bytes at {start:#x}");
            for at in start..start + len_bytes {
                let byte = bench.window.load_u8(at).unwrap();
                bench.window.store_u8(at, byte ^ 1 << (at % 8)).unwrap();
                let left = enter(bench, start, &block);
                assert_eq!(left, (ExitReason::CheckFailed, start, 0), "{len} bytes at {start:#x}, changed at {at:#x}");
                bench.window.store_u8(at, byte).unwrap();
            }
            assert_eq!(enter(bench, start, &block), run, "{len} bytes at {start:#x} restored");
            // The bytes around it are not its own.
            for beside in [start.wrapping_sub(1), start + len_bytes] {
                if let Ok(byte) = bench.window.load_u8(beside) {
                    bench.window.store_u8(beside, !byte).unwrap();
                }
            }
            assert_eq!(enter(bench, start, &block), run, "{len} bytes at {start:#x}");
        }
    }
}

#[test]
fn a_fault_of_the_check_is_one_of_the_first_instruction() {
    for (vectors, len) in [false, true].into_iter().flat_map(|v| [2, 4, 6, 8, 10, 16, 18, 40].map(|len| (v, len))) {
        let mut bench = bench(Compiler::Region, vectors);
        let source = source(len);
        for start in [END, END - 2, END - len as u64 + 2, READ_ONLY - 2, 2 * PAGE_LEN_BYTES] {
            if start + len as u64 <= END {
                continue;
            }
            put(&bench, start, &source[..(END.saturating_sub(start) as usize).min(len)]);
            let block = compile(&mut bench, start, &source);
            let mut hart = bench.hart();
            hart.pc = start;
            let reason = bench.enter_only(&mut hart, block.self_checking_entry().unwrap());
            // If the first chunk already differs, the check may leave before it faults.
            assert_eq!((reason, hart.pc, hart.x[10]), (ExitReason::Fault, start, 0), "{len} bytes at {start:#x}");
        }
    }
}

#[test]
fn a_fault_behind_the_check_has_its_own_address() {
    each_compiler(1 << 20, |bench| {
        let insts = [addi(10, 0, 7), load(Op::Ld, 11, 0, 8), NOP];
        let source = source(12);
        put(bench, DATA, &source);
        let options = BlockOptions { source: Some(&source), ..BlockOptions::default() };
        let block = bench.compile_placed(&placed_at(DATA, &insts), &options).unwrap();
        assert_eq!(enter(bench, DATA, &block), (ExitReason::Fault, DATA + 4, 7));
    });
}

#[test]
fn both_entries_are_listed() {
    each_compiler(1 << 20, |bench| {
        let block = compile(bench, DATA, &source(40));
        let listing = disasm::host_listing(&block);
        let (plain, checked) = listing.split_once("CHECKED:\n").unwrap();
        assert!(plain.contains("jmp") && !plain.contains("pcmpeqb"), "{listing}");
        assert_eq!(checked.matches("pcmpeqb").count(), 3, "{listing}");
        assert!(checked.trim_end().ends_with("ret"), "no constants: {listing}");
        let entry = format!("je                    {:#x}", block.entry());
        assert!(checked.replace(' ', "").contains(&entry.replace(' ', "")), "{listing}");
    });
}
