//! Random blocks, compiled and by the oracle's `exec`: every register, flag and
//! byte of memory must agree, and so must where and why the block ended.

use std::collections::HashMap;

use super::*;
use crate::riscv::exec::exec;
use crate::riscv::trap::{Flow, Trap};

const BLOCKS: u32 = if cfg!(debug_assertions) { 4_000 } else { 100_000 };

#[rustfmt::skip]
const OPS: &[Op] = {
    use Op::*;
    &[
        Lui, Auipc, Lb, Lh, Lw, Ld, Lbu, Lhu, Lwu, Sb, Sh, Sw, Sd,
        Addi, Slti, Sltiu, Xori, Ori, Andi, Slli, Srli, Srai,
        Add, Sub, Sll, Slt, Sltu, Xor, Srl, Sra, Or, And,
        Addiw, Slliw, Srliw, Sraiw, Addw, Subw, Sllw, Srlw, Sraw, Fence,
        Csrrw, Csrrs, Csrrc, Csrrwi, Csrrsi, Csrrci,
        Mul, Mulh, Mulhsu, Mulhu, Div, Divu, Rem, Remu, Mulw, Divw, Divuw, Remw, Remuw,
        Lr_w, Sc_w, Amoswap_w, Amoadd_w, Amoxor_w, Amoand_w, Amoor_w, Amomin_w, Amomax_w, Amominu_w, Amomaxu_w,
        Lr_d, Sc_d, Amoswap_d, Amoadd_d, Amoxor_d, Amoand_d, Amoor_d, Amomin_d, Amomax_d, Amominu_d, Amomaxu_d,
        Flw, Fsw, Fmadd_s, Fmsub_s, Fnmsub_s, Fnmadd_s, Fadd_s, Fsub_s, Fmul_s, Fdiv_s, Fsqrt_s,
        Fsgnj_s, Fsgnjn_s, Fsgnjx_s, Fmin_s, Fmax_s,
        Fcvt_w_s, Fcvt_wu_s, Fcvt_l_s, Fcvt_lu_s, Fcvt_s_w, Fcvt_s_wu, Fcvt_s_l, Fcvt_s_lu,
        Fmv_x_w, Fmv_w_x, Feq_s, Flt_s, Fle_s, Fclass_s,
        Fld, Fsd, Fmadd_d, Fmsub_d, Fnmsub_d, Fnmadd_d, Fadd_d, Fsub_d, Fmul_d, Fdiv_d, Fsqrt_d,
        Fsgnj_d, Fsgnjn_d, Fsgnjx_d, Fmin_d, Fmax_d, Fcvt_s_d, Fcvt_d_s,
        Fcvt_w_d, Fcvt_wu_d, Fcvt_l_d, Fcvt_lu_d, Fcvt_d_w, Fcvt_d_wu, Fcvt_d_l, Fcvt_d_lu,
        Fmv_x_d, Fmv_d_x, Feq_d, Flt_d, Fle_d, Fclass_d,
    ]
};
const LAST_OPS: &[Op] = {
    use Op::*;
    &[Jal, Jalr, Beq, Bne, Blt, Bge, Bltu, Bgeu, Fence_i, Ecall, Ebreak, Illegal]
};

/// Registers of which blocks are made, so that results are used again. Those
/// from `POINTERS` on mostly hold data addresses.
const REGISTERS: [u8; 8] = [0, 1, 5, 6, 10, 11, 12, 13];
const POINTERS: usize = 4;

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        // splitmix64
        self.0 = self.0.wrapping_add(0x9e3779b97f4a7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58476d1ce4e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d049bb133111eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    fn of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len() as u64) as usize]
    }

    fn integer(&mut self) -> u64 {
        match self.below(4) {
            0 => {
                self.of(&[0, 1, u64::MAX, i64::MIN as u64, i64::MAX as u64, 0x8000_0000, i32::MIN as u64, 0xffff_ffff])
            }
            1 => self.below(256).wrapping_sub(128),
            2 => self.next() as i32 as u64,
            _ => self.next(),
        }
    }

    /// Mostly ordinary numbers, and enough of each corner.
    fn float(&mut self) -> u64 {
        match self.below(10) {
            0..3 => f64::from(self.below(2000) as i32 - 1000).to_bits(),
            3 => (self.below(1 << 53) as f64 / 1e9).to_bits(),
            4..6 => boxed((self.below(2000) as f32 / 7.0 - 100.0).to_bits()),
            6 => {
                let exponent = self.of(&[0u64, 1, 2, 0x3ff, 0x43e, 0x7fd, 0x7fe, 0x7ff]);
                let fraction = self.of(&[0, 1, 1 << 51, (1 << 52) - 1, 0x0123_4567_89ab_cdef]) & ((1 << 52) - 1);
                self.below(2) << 63 | exponent << 52 | fraction
            }
            7 | 8 => {
                let exponent = self.of(&[0u32, 1, 2, 0x7f, 0x9e, 0xfd, 0xfe, 0xff]);
                let fraction = self.of(&[0u32, 1, 1 << 22, (1 << 23) - 1, 0x0123_4567]) & ((1 << 23) - 1);
                let bits = (self.below(2) as u32) << 31 | exponent << 23 | fraction;
                boxed(bits)
            }
            _ => self.next(),
        }
    }

    fn inst(&mut self, op: Op) -> Inst {
        let register = |random: &mut Self| random.of(&REGISTERS);
        let (rd, rs1, rs2, rs3) = (register(self), register(self), register(self), register(self));
        let mut inst = Inst { op, rd, rs1, rs2, rs3, len: self.of(&[2, 4]), ..NOP };
        inst.imm = self.of(&[0, 1, -1, 8, 2047, -2048, self.0 as i32 >> 20]);
        match op {
            Op::Lui | Op::Auipc => inst.imm = self.next() as i32 & !0xfff,
            Op::Slli | Op::Srli | Op::Srai => inst.imm &= 63,
            Op::Slliw | Op::Srliw | Op::Sraiw => inst.imm &= 31,
            Op::Fence => inst.imm &= 255,
            Op::Csrrw | Op::Csrrs | Op::Csrrc | Op::Csrrwi | Op::Csrrsi | Op::Csrrci => {
                inst.imm = if self.chance(3) { 0x300 } else { self.of(&[1, 2, 3]) };
            }
            Op::Jal | Op::Beq | Op::Bne | Op::Blt | Op::Bge | Op::Bltu | Op::Bgeu => inst.imm &= !1,
            _ => {}
        }
        if accesses_memory(op) {
            // Pointers, and seldom something else; atomics have no displacement.
            if self.chance(98) {
                inst.rs1 = self.of(&REGISTERS[POINTERS..]);
            }
            inst.imm = self.of(&[0, 0, 8, 16, 7, -8, 2047]);
        }
        inst.rm = match format!("{op:?}").as_bytes() {
            [b'F', ..] if has_rounding(op) => self.of(&[0, 0, 0, 0, 0, 7, 7, 7, 7, 7, 1, 1, 1, 2, 3, 4, 5]),
            [b'L', b'r', ..] | [b'S', b'c', ..] | [b'A', b'm', ..] => self.below(4) as u8,
            _ => 0,
        };
        inst
    }

    fn block(&mut self) -> Vec<Inst> {
        let mut insts: Vec<Inst> = (0..self.below(16) + 1)
            .map(|_| {
                let op = self.of(OPS);
                self.inst(op)
            })
            .collect();
        // An SC is worth testing mostly behind its LR.
        if self.chance(10) {
            let address = self.of(&REGISTERS[POINTERS..]);
            let (lr, sc) = self.of(&[(Op::Lr_w, Op::Sc_w), (Op::Lr_d, Op::Sc_d)]);
            insts.push(Inst { op: lr, rd: 5, rs1: address, ..NOP });
            insts.push(Inst { op: sc, rd: 6, rs1: address, rs2: 5, ..NOP });
        }
        if self.chance(70) {
            let op = self.of(LAST_OPS);
            insts.push(self.inst(op));
        }
        insts
    }

    fn hart(&mut self) -> Hart {
        let mut hart = Hart::new(CODE);
        for register in 1..32 {
            hart.x[register] = self.integer();
        }
        for &register in &REGISTERS[POINTERS..] {
            if self.chance(95) {
                let offset = self.of(&[0, 8, 16, 64, 256, PAGE_LEN_BYTES - 8, PAGE_LEN_BYTES, PAGE_LEN_BYTES + 8]);
                hart.x[usize::from(register)] = DATA + 2048 + offset;
            } else {
                hart.x[usize::from(register)] =
                    self.of(&[READ_ONLY + 8, DATA + 2051, DATA - 4, 1 << 38, (1 << 38) - 4]);
            }
        }
        hart.f = std::array::from_fn(|_| self.float());
        hart.fflags = self.below(32) as u8;
        hart.frm = if self.chance(80) { 0 } else { self.below(8) as u8 };
        if self.chance(30) {
            let address = self.of(&REGISTERS[POINTERS..]);
            (hart.reserved, hart.reservation_addr) = (1, hart.x[usize::from(address)]);
            hart.reservation_value = self.of(&[0, 1, u64::MAX]);
        }
        hart
    }
}

fn boxed(bits: u32) -> u64 {
    0xffff_ffff_0000_0000 | u64::from(bits)
}

fn accesses_memory(op: Op) -> bool {
    let name = format!("{op:?}");
    use Op::*;
    matches!(op, Lb | Lh | Lw | Ld | Lbu | Lhu | Lwu | Sb | Sh | Sw | Sd | Flw | Fld | Fsw | Fsd)
        || ["Lr_", "Sc_", "Amo"].iter().any(|prefix| name.starts_with(prefix))
}

/// Operations that have a rounding-mode field.
fn has_rounding(op: Op) -> bool {
    let name = format!("{op:?}");
    ["Fadd", "Fsub", "Fmul", "Fdiv", "Fsqrt", "Fmadd", "Fmsub", "Fnm", "Fcvt"]
        .iter()
        .any(|prefix| name.starts_with(prefix))
}

/// What the oracle makes of a block.
fn interpret(insts: &[(u64, Inst)], hart: &mut Hart, window: &Window, ran: &mut HashMap<Op, u32>) -> ExitReason {
    let last = insts.last().unwrap().1.op;
    for (_, inst) in insts {
        match exec(inst, hart, window) {
            Ok(Flow::FenceI) => return ExitReason::FenceI,
            Ok(_) => *ran.entry(inst.op).or_default() += 1,
            Err(Trap::Ecall | Trap::Ebreak) => return ExitReason::Trap,
            Err(Trap::Illegal(_)) if inst.op == Op::Illegal => return ExitReason::Trap,
            Err(_) => return ExitReason::Fault,
        }
    }
    if last == Op::Jalr { ExitReason::IndirectMiss } else { ExitReason::Unlinked }
}

#[test]
fn random_blocks_agree_with_the_oracle() {
    let mut bench = Bench::new(1 << 20);
    let mut random = Random(20_261_120);
    let mut ran = HashMap::new();
    let mut reasons: HashMap<ExitReason, u32> = HashMap::new();
    for round in 0..BLOCKS {
        let insts = placed(&random.block());
        let block = bench.translator.compile(&insts, &BlockOptions::default()).unwrap();
        for _ in 0..4 {
            let mut expected = random.hart();
            let mut hart = bench.hart();
            (hart.x, hart.f, hart.fflags, hart.frm) = (expected.x, expected.f, expected.fflags, expected.frm);
            hart.reserved = expected.reserved;
            (hart.reservation_addr, hart.reservation_value) = (expected.reservation_addr, expected.reservation_value);
            let memory: Vec<u8> = (0..1024).flat_map(|_| random.float().to_le_bytes()).collect();

            bench.set_data(&memory);
            let expected_reason = interpret(&insts, &mut expected, &bench.window, &mut ran);
            let expected_memory = bench.data();
            bench.set_data(&memory);
            let reason = bench.enter(&mut hart, block.entry());
            let found = (reason, state(&hart));
            let wanted = (expected_reason, state(&expected));
            assert_eq!(found, wanted, "block {round}: {insts:#?}\n{}", disasm::host_listing(&block));
            assert!(bench.data() == expected_memory, "block {round}, memory: {insts:#?}");
            *reasons.entry(reason).or_default() += 1;
        }
    }
    for op in OPS {
        assert!(ran.get(op).is_some_and(|&count| count > 20), "{op:?} retired {:?} times", ran.get(op));
    }
    println!("ends: {reasons:?}");
    assert!(reasons[&ExitReason::Fault] > 100 && reasons[&ExitReason::Unlinked] > 100, "{reasons:?}");
}

/// All of a hart that a guest can tell, as text that a difference shows in.
fn state(hart: &Hart) -> String {
    let Hart { x, f, pc, fflags, frm, reserved, reservation_addr, reservation_value, .. } = hart;
    format!("{pc:x} {fflags:x} {frm} {reserved} {reservation_addr:x} {reservation_value:x}\nx {x:x?}\nf {f:x?}")
}
