//! Every word decodes without a panic, and decoding inverts encoding.

#![no_main]

use demo_emulator::riscv::decode::decode;
use demo_emulator::riscv::encode::encode;
use demo_emulator::riscv::inst::{Inst, Op};
use libfuzzer_sys::fuzz_target;

/// `inst` through its 32-bit form and back.
fn again(inst: Inst) -> Inst {
    decode(encode(&inst))
}

fuzz_target!(|words: Vec<u32>| {
    for bits in words {
        let inst = decode(bits);
        assert_eq!(inst.len, if bits & 3 == 3 { 4 } else { 2 }, "{bits:#010x}: {inst:?}");
        if inst.op == Op::Illegal {
            assert_eq!(encode(&inst), if inst.len == 4 { bits } else { bits & 0xffff });
        } else {
            // A compressed instruction has a 32-bit form that does the same.
            assert_eq!(again(inst), Inst { len: 4, ..inst }, "{bits:#010x}");
        }
    }
});
