//! How long the compiler takes for a block, and how large the code is:
//! `cargo run --release -p demo-emulator --example compile_time`.

use std::error::Error;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::AtomicU8;
use std::time::Instant;

use codewarden::code_buffer::CodeBuffer;
use demo_emulator::memory::Window;
use demo_emulator::riscv::inst::{Inst, Op};
use demo_emulator::translate::{Block, BlockOptions, CodeSpace, OwnStores, Translator, publish_all};

const ROUNDS: usize = 2_000;

fn main() -> Result<(), Box<dyn Error>> {
    let space = CodeSpace::new(Window::reserve()?, CodeBuffer::new(64 << 20)?)?;
    let mut translator = Translator::new(Arc::clone(&space));
    let flag = AtomicU8::new(0);
    let bytes = [0; 4 * 50];
    println!("| block | instructions | own stores | p50, µs | p95, µs | code, bytes |");
    println!("|---|---|---|---|---|---|");
    for (name, ops) in [
        ("arithmetic", &[Op::Addi, Op::Add, Op::Slli, Op::Xor, Op::Sltu][..]),
        ("mixed", &[Op::Ld, Op::Addi, Op::Add, Op::Sd, Op::Slli]),
        ("floating point", &[Op::Fld, Op::Fmul_d, Op::Fadd_d, Op::Fsd, Op::Addi]),
    ] {
        for count in [10, 50] {
            let blocks = [block(ops, count)];
            let source = Some(&bytes[..4 * blocks[0].len()]);
            let polls = OwnStores::Poll(NonNull::from(&flag));
            for (stores, own_stores, source) in [
                ("ignored", OwnStores::Ignore, None),
                ("polled", polls, None),
                ("compared", OwnStores::Compare, None),
                ("compared, two entries", OwnStores::Compare, source),
            ] {
                let options = BlockOptions { own_stores, source, ..BlockOptions::default() };
                let mut times = Vec::with_capacity(ROUNDS);
                let mut code_bytes = 0;
                for _ in 0..ROUNDS {
                    let start = Instant::now();
                    let compiled = translator.compile(&blocks, &options, &mut |_| None)?;
                    times.push(start.elapsed().as_nanos() as f64 / 1e3);
                    code_bytes = publish_all(vec![compiled])?[0].len_bytes();
                }
                times.sort_by(f64::total_cmp);
                let (p50, p95) = (times[ROUNDS / 2], times[ROUNDS * 95 / 100]);
                println!("| {name} | {count} | {stores} | {p50:.1} | {p95:.1} | {code_bytes} |");
            }
        }
    }
    Ok(())
}

/// `count` instructions, the last of them a branch.
fn block(ops: &[Op], count: u64) -> Block {
    let inst = |index: u64| {
        let op = if index + 1 == count { Op::Bne } else { ops[index as usize % ops.len()] };
        let register = |offset: u64| (10 + (index + offset) % 6) as u8;
        let inst = Inst { op, rd: register(0), rs1: register(1), rs2: register(2), rs3: 0, rm: 7, len: 4, imm: 8 };
        (0x1000 + 4 * index, inst)
    };
    (0..count).map(inst).collect()
}
