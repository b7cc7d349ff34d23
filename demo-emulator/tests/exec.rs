//! The effects of instructions, by class, at their edges.

use demo_emulator::hart::Hart;
use demo_emulator::memory::window::{EXEC, READ, WRITE};
use demo_emulator::memory::{Fault, FaultKind, Window, host_fault};
use demo_emulator::riscv::encode::encode;
use demo_emulator::riscv::exec::exec;
use demo_emulator::riscv::inst::{Inst, Op};
use demo_emulator::riscv::interpreter;
use demo_emulator::riscv::trap::{Flow, Trap};

const PAGE: u64 = 4096;
/// A readable, writable, executable page.
const OPEN: u64 = PAGE;
/// The next page, read-only.
const READ_ONLY: u64 = 2 * PAGE;
/// The page after that is not mapped.
const NOTHING: u64 = 3 * PAGE;

const PC: u64 = 0x1_0000_0000;

#[allow(unsafe_code)]
fn window() -> Window {
    host_fault::install().unwrap();
    let window = Window::reserve().unwrap();
    for (page, protection) in [(OPEN, libc::PROT_READ | libc::PROT_WRITE), (READ_ONLY, libc::PROT_READ)] {
        // SAFETY: a page of the window just reserved, which no other code uses.
        let done = unsafe { libc::mprotect(window.host(page).unwrap().cast(), PAGE as usize, protection) };
        assert_eq!(done, 0);
    }
    window.set_permissions(OPEN..READ_ONLY, READ | WRITE | EXEC);
    window.set_permissions(READ_ONLY..NOTHING, READ);
    window
}

fn inst(op: Op) -> Inst {
    Inst { op, rd: 1, rs1: 2, rs2: 3, rs3: 0, rm: 0, len: 4, imm: 0 }
}

/// A hart with operands in x2 and x3.
fn hart(a: u64, b: u64) -> Hart {
    let mut hart = Hart::new(PC);
    (hart.x[1], hart.x[2], hart.x[3]) = (0x1111, a, b);
    hart
}

/// The result of an operation on registers only.
fn result(op: Op, a: u64, b: u64, imm: i32) -> u64 {
    let mut hart = hart(a, b);
    assert_eq!(exec(&Inst { imm, ..inst(op) }, &mut hart, &window_of_nothing()), Ok(Flow::Next));
    assert_eq!((hart.pc, hart.instret), (PC + 4, 1));
    hart.x[1]
}

/// One window for all tests that touch no memory.
fn window_of_nothing() -> Window {
    use std::sync::OnceLock;
    static WINDOW: OnceLock<Window> = OnceLock::new();
    *WINDOW.get_or_init(|| Window::reserve().unwrap())
}

const MIN: u64 = i64::MIN as u64;
const MINUS_1: u64 = u64::MAX;
const MIN_32: u64 = i32::MIN as u64;

#[test]
fn division_at_its_edges() {
    assert_eq!(result(Op::Div, 7, 0, 0), MINUS_1);
    assert_eq!(result(Op::Divu, 7, 0, 0), u64::MAX);
    assert_eq!(result(Op::Rem, -7_i64 as u64, 0, 0), -7_i64 as u64);
    assert_eq!(result(Op::Remu, 7, 0, 0), 7);
    assert_eq!(result(Op::Div, MIN, MINUS_1, 0), MIN);
    assert_eq!(result(Op::Rem, MIN, MINUS_1, 0), 0);
    assert_eq!(result(Op::Div, -7_i64 as u64, 2, 0), -3_i64 as u64);
    assert_eq!(result(Op::Rem, -7_i64 as u64, 2, 0), MINUS_1);
    // Word operations use only the low halves, and sign-extend.
    assert_eq!(result(Op::Divw, 7, 1 << 32, 0), MINUS_1);
    assert_eq!(result(Op::Divuw, 7, 1 << 32, 0), MINUS_1);
    assert_eq!(result(Op::Divuw, 0xffff_ffff, 1, 0), MINUS_1);
    assert_eq!(result(Op::Remw, 0x1_8000_0000, 0, 0), MIN_32);
    assert_eq!(result(Op::Remuw, 0x8000_0000, 0, 0), MIN_32);
    assert_eq!(result(Op::Divw, MIN_32, MINUS_1, 0), MIN_32);
    assert_eq!(result(Op::Remw, MIN_32, MINUS_1, 0), 0);
}

#[test]
fn multiplication_high_halves() {
    assert_eq!(result(Op::Mulh, MINUS_1, MINUS_1, 0), 0);
    assert_eq!(result(Op::Mulhu, MINUS_1, MINUS_1, 0), MINUS_1 - 1);
    assert_eq!(result(Op::Mulhsu, MINUS_1, MINUS_1, 0), MINUS_1);
    assert_eq!(result(Op::Mulh, MIN, MIN, 0), 1 << 62);
    assert_eq!(result(Op::Mul, MINUS_1, 3, 0), -3_i64 as u64);
    assert_eq!(result(Op::Mulw, 0x4000_0000, 2, 0), MIN_32);
}

#[test]
fn shifts_take_as_many_bits_as_their_width_needs() {
    assert_eq!(result(Op::Sll, 1, 64 + 3, 0), 8);
    assert_eq!(result(Op::Srl, MINUS_1, 63, 0), 1);
    assert_eq!(result(Op::Sra, MIN, 63, 0), MINUS_1);
    assert_eq!(result(Op::Slli, 1, 0, 63), MIN);
    assert_eq!(result(Op::Srai, MIN, 0, 63), MINUS_1);
    assert_eq!(result(Op::Sllw, 1, 32 + 31, 0), MIN_32);
    assert_eq!(result(Op::Srlw, MINUS_1, 32, 0), MINUS_1);
    assert_eq!(result(Op::Srlw, MINUS_1, 1, 0), 0x7fff_ffff);
    assert_eq!(result(Op::Sraw, 0x8000_0000, 31, 0), MINUS_1);
    assert_eq!(result(Op::Sraiw, 0x8000_0000, 0, 4), 0xffff_ffff_f800_0000);
    assert_eq!(result(Op::Srliw, 0xf_8000_0000, 0, 4), 0x0800_0000);
}

#[test]
fn words_wrap_and_sign_extend() {
    assert_eq!(result(Op::Addw, 0x7fff_ffff, 1, 0), MIN_32);
    assert_eq!(result(Op::Subw, MIN_32, 1, 0), 0x7fff_ffff);
    assert_eq!(result(Op::Addiw, 0xffff_ffff, 0, 1), 0);
    assert_eq!(result(Op::Addiw, 0x7fff_ffff, 0, 1), MIN_32);
    assert_eq!(result(Op::Addi, u64::MAX, 0, 1), 0);
}

#[test]
fn comparisons_with_immediates_sign_extend_first() {
    assert_eq!(result(Op::Sltiu, 5, 0, -1), 1);
    assert_eq!(result(Op::Slti, 5, 0, -1), 0);
    assert_eq!(result(Op::Slt, MIN, 0, 0), 1);
    assert_eq!(result(Op::Sltu, MIN, 0, 0), 0);
    assert_eq!(result(Op::Xori, 5, 0, -1), !5);
    assert_eq!(result(Op::Lui, 0, 0, i32::MIN), MIN_32);
    assert_eq!(result(Op::Auipc, 0, 0, -4096), PC - 4096);
}

#[test]
fn x0_stays_0() {
    let mut hart = hart(1, 2);
    exec(&Inst { rd: 0, ..inst(Op::Add) }, &mut hart, &window_of_nothing()).unwrap();
    exec(&Inst { rd: 0, imm: 4, ..inst(Op::Jal) }, &mut hart, &window_of_nothing()).unwrap();
    hart.f[2] = 1.0_f64.to_bits();
    exec(&Inst { rd: 0, ..inst(Op::Fmv_x_d) }, &mut hart, &window_of_nothing()).unwrap();
    assert_eq!(hart.x[0], 0);
}

#[test]
fn jumps_and_branches() {
    let window = window_of_nothing();
    let mut of_jalr = hart(0x5001, 0);
    // rd and rs1 are the same; the lowest bit is dropped after the sum; the return address depends
    // on the length.
    let jalr = Inst { rd: 2, imm: 2, len: 2, ..inst(Op::Jalr) };
    assert_eq!(exec(&jalr, &mut of_jalr, &window), Ok(Flow::Jump));
    assert_eq!((of_jalr.pc, of_jalr.x[2]), (0x5002, PC + 2));

    let branch = |op, a, b| {
        let mut hart = hart(a, b);
        let flow = exec(&Inst { imm: -8, ..inst(op) }, &mut hart, &window).unwrap();
        assert_eq!(hart.pc, if flow == Flow::Jump { PC - 8 } else { PC + 4 });
        flow == Flow::Jump
    };
    assert!(branch(Op::Blt, MIN, 0) && !branch(Op::Bltu, MIN, 0));
    assert!(branch(Op::Bgeu, MIN, 0) && !branch(Op::Bge, MIN, 0));
    assert!(branch(Op::Beq, 4, 4) && !branch(Op::Bne, 4, 4));
    assert!(branch(Op::Bge, 4, 4) && branch(Op::Bgeu, 4, 4) && !branch(Op::Blt, 4, 4) && !branch(Op::Bltu, 4, 4));
}

/// Runs an instruction that traps and checks that it has no other effect.
fn trap_of(window: &Window, inst: Inst, hart: &mut Hart) -> Trap {
    let before = format!("{hart:?}");
    let trap = exec(&inst, hart, window).unwrap_err();
    assert_eq!(format!("{hart:?}"), before, "{inst:?} changed the hart");
    trap
}

#[test]
fn faults_leave_the_hart_alone() {
    let window = window();
    let fault = |addr| Fault { addr, kind: FaultKind::Segv };
    for op in [Op::Lb, Op::Lh, Op::Lw, Op::Ld, Op::Lbu, Op::Lhu, Op::Lwu, Op::Flw, Op::Fld, Op::Lr_w, Op::Lr_d] {
        let trap = trap_of(&window, inst(op), &mut hart(NOTHING, 9));
        assert_eq!(trap, Trap::LoadFault(fault(NOTHING)), "{op:?}");
    }
    for op in [Op::Sb, Op::Sh, Op::Sw, Op::Sd, Op::Fsw, Op::Fsd, Op::Amoswap_w, Op::Amoadd_d, Op::Amomin_w] {
        for page in [READ_ONLY, NOTHING, 1 << 38, u64::MAX - 7] {
            let trap = trap_of(&window, inst(op), &mut hart(page, 9));
            assert_eq!(trap, Trap::StoreFault(fault(page)), "{op:?}");
        }
    }
    // A reservation on a readable page, then a store that the page forbids.
    let mut holder = hart(READ_ONLY, 9);
    exec(&inst(Op::Lr_w), &mut holder, &window).unwrap();
    assert_eq!(trap_of(&window, inst(Op::Sc_w), &mut holder), Trap::StoreFault(fault(READ_ONLY)));
    assert_eq!(trap_of(&window, inst(Op::Ecall), &mut hart(0, 0)), Trap::Ecall);
    assert_eq!(trap_of(&window, inst(Op::Ebreak), &mut hart(0, 0)), Trap::Ebreak);
}

#[test]
fn misaligned_accesses_work_and_misaligned_atomics_trap() {
    let window = window();
    window.store_u64(OPEN + 3, 0x8182_8384_8586_8788).unwrap();
    let load = |op| {
        let mut hart = hart(OPEN, 0);
        exec(&Inst { imm: 3, ..inst(op) }, &mut hart, &window).unwrap();
        hart.x[1]
    };
    assert_eq!(load(Op::Ld), 0x8182_8384_8586_8788);
    assert_eq!(load(Op::Lw), 0xffff_ffff_8586_8788);
    assert_eq!(load(Op::Lwu), 0x8586_8788);
    assert_eq!(load(Op::Lh), 0xffff_ffff_ffff_8788);
    assert_eq!(load(Op::Lhu), 0x8788);
    assert_eq!(load(Op::Lb), 0xffff_ffff_ffff_ff88);
    assert_eq!(load(Op::Lbu), 0x88);
    // Also over the end of a page, if both pages are readable.
    exec(&Inst { imm: -4, ..inst(Op::Ld) }, &mut hart(READ_ONLY, 0), &window).unwrap();

    let misaligned = |op, addr| trap_of(&window, inst(op), &mut hart(addr, 9));
    assert_eq!(misaligned(Op::Lr_w, OPEN + 2), Trap::LoadMisaligned(OPEN + 2));
    assert_eq!(misaligned(Op::Lr_d, OPEN + 4), Trap::LoadMisaligned(OPEN + 4));
    assert_eq!(misaligned(Op::Sc_d, OPEN + 4), Trap::StoreMisaligned(OPEN + 4));
    assert_eq!(misaligned(Op::Amoadd_w, OPEN + 1), Trap::StoreMisaligned(OPEN + 1));
    assert_eq!(misaligned(Op::Amoadd_d, OPEN + 4), Trap::StoreMisaligned(OPEN + 4));
}

#[test]
fn atomics_of_words_sign_extend_the_old_value() {
    let window = window();
    window.store_u64(OPEN, 0x7777_7777_8000_0000).unwrap();
    let mut hart = hart(OPEN, 5);
    exec(&inst(Op::Amomax_w), &mut hart, &window).unwrap();
    assert_eq!((hart.x[1], window.load_u64(OPEN)), (MIN_32, Ok(0x7777_7777_0000_0005)));
    // Source and destination may be the same register.
    exec(&Inst { rd: 3, ..inst(Op::Amoadd_d) }, &mut hart, &window).unwrap();
    assert_eq!((hart.x[3], window.load_u64(OPEN)), (0x7777_7777_0000_0005, Ok(0x7777_7777_0000_000a)));
}

#[test]
fn store_conditional_wants_its_reservation() {
    let window = window();
    let mut hart = hart(OPEN, 42);
    let mut run = |op, window: &Window| {
        exec(&inst(op), &mut hart, window).unwrap();
        hart.x[1]
    };
    assert_eq!(run(Op::Sc_d, &window), 1, "no reservation");
    assert_eq!(run(Op::Lr_d, &window), 0);
    assert_eq!(run(Op::Sc_d, &window), 0);
    assert_eq!(window.load_u64(OPEN), Ok(42));
    assert_eq!(run(Op::Sc_d, &window), 1, "used up");
    run(Op::Lr_d, &window);
    window.store_u64(OPEN, 43).unwrap();
    assert_eq!(run(Op::Sc_d, &window), 1, "somebody wrote");
    assert_eq!(window.load_u64(OPEN), Ok(43));
    run(Op::Lr_w, &window);
    // The same value, so only the address differs.
    window.store_u32(OPEN + 8, 43).unwrap();
    hart.x[2] = OPEN + 8;
    exec(&inst(Op::Sc_w), &mut hart, &window).unwrap();
    assert_eq!((hart.x[1], window.load_u32(OPEN + 8)), (1, Ok(43)), "another address");
    hart.x[2] = OPEN;
    exec(&inst(Op::Sc_w), &mut hart, &window).unwrap();
    assert_eq!((hart.x[1], window.load_u32(OPEN)), (1, Ok(43)), "any SC ends the reservation");
}

/// x1 and the whole of fcsr after a CSR instruction, or its trap.
fn csr(op: Op, number: i32, operand: u8, hart: &mut Hart) -> Result<u64, Trap> {
    exec(&Inst { imm: number, rs1: operand, ..inst(op) }, hart, &window_of_nothing())?;
    Ok(hart.x[1])
}

#[test]
fn floating_point_registers_of_control() {
    let mut hart = hart(0xffff_ffff_ffff_ffff, 0b10);
    assert_eq!(csr(Op::Csrrw, 3, 2, &mut hart), Ok(0));
    assert_eq!((hart.fflags, hart.frm), (31, 7), "bits that do not exist stay 0");
    assert_eq!(csr(Op::Csrrc, 1, 3, &mut hart), Ok(31));
    assert_eq!(csr(Op::Csrrsi, 2, 0, &mut hart), Ok(7));
    assert_eq!(csr(Op::Csrrwi, 2, 3, &mut hart), Ok(7));
    assert_eq!(csr(Op::Csrrs, 3, 0, &mut hart), Ok(3 << 5 | 0b11101));
    assert_eq!(csr(Op::Csrrci, 3, 0b00101, &mut hart), Ok(3 << 5 | 0b11101));
    assert_eq!((hart.fflags, hart.frm), (0b11000, 3));
}

#[test]
fn counters_can_be_read_alone_and_the_rest_is_illegal() {
    let mut user = hart(1, 1);
    let before = csr(Op::Csrrs, 0xc01, 0, &mut user).unwrap();
    assert!(csr(Op::Csrrs, 0xc01, 0, &mut user).unwrap() >= before);
    assert_eq!(csr(Op::Csrrs, 0xc02, 0, &mut user), Ok(2));
    assert_eq!(csr(Op::Csrrs, 0xc1f, 0, &mut user), Ok(0));
    let illegal = [
        (Op::Csrrw, 0xc00, 0),
        (Op::Csrrs, 0xc01, 2),
        (Op::Csrrci, 0xc02, 1),
        (Op::Csrrs, 0xc20, 0),
        (Op::Csrrw, 0xc03, 0),
        (Op::Csrrs, 0x300, 0),
        (Op::Csrrs, 0x000, 0),
        (Op::Csrrw, 0x340, 2),
    ];
    for (op, number, rs1) in illegal {
        let inst = Inst { imm: number, rs1, rs2: 0, ..inst(op) };
        assert_eq!(trap_of(&window_of_nothing(), inst, &mut hart(1, 1)), Trap::Illegal(encode(&inst)));
    }
}

#[test]
fn a_rounding_mode_that_does_not_exist_is_illegal() {
    let mut hart = hart(0, 0);
    hart.frm = 5;
    let add = Inst { rm: 7, ..inst(Op::Fadd_d) };
    assert_eq!(trap_of(&window_of_nothing(), add, &mut hart), Trap::Illegal(encode(&add)));
    exec(&Inst { rm: 0, ..add }, &mut hart, &window_of_nothing()).unwrap();
}

#[test]
fn the_interpreter_fetches_from_memory_each_time() {
    let window = window();
    let add = |imm| encode(&Inst { rd: 1, rs1: 1, imm, ..inst(Op::Addi) });
    let mut hart = Hart::new(OPEN);
    for imm in [1, 2, 3] {
        window.store_u32(OPEN, add(imm)).unwrap();
        hart.pc = OPEN;
        assert_eq!(interpreter::step(&mut hart, &window), Ok(Flow::Next));
    }
    assert_eq!((hart.x[1], hart.pc), (6, OPEN + 4));

    // FENCE.I is reported.
    window.store_u32(OPEN + 4, 0x100f).unwrap();
    assert_eq!(interpreter::step(&mut hart, &window), Ok(Flow::FenceI));

    // An instruction whose second half lies on a page that may not be run, and a short one that
    // ends before it.
    hart.pc = READ_ONLY - 2;
    window.store_u16(hart.pc, add(0) as u16).unwrap();
    let fault = Fault { addr: READ_ONLY, kind: FaultKind::Segv };
    assert_eq!(interpreter::step(&mut hart, &window), Err(Trap::FetchFault(fault)));
    assert_eq!(hart.pc, READ_ONLY - 2);
    window.store_u16(hart.pc, 0x0001).unwrap();
    assert_eq!(interpreter::step(&mut hart, &window), Ok(Flow::Next));
    assert_eq!(interpreter::step(&mut hart, &window), Err(Trap::FetchFault(fault)));

    hart.pc = OPEN;
    window.store_u32(OPEN, 0).unwrap();
    assert_eq!(interpreter::step(&mut hart, &window), Err(Trap::Illegal(0)));
}

#[test]
fn addresses_of_arrays() {
    assert_eq!(result(Op::Sh3add, MINUS_1, 16, 0), 8);
    assert_eq!(result(Op::Sh3add_uw, MINUS_1, 8, 0), 0x8_0000_0000);
    assert_eq!(result(Op::Sh1add_uw, 0x1_8000_0000, 1, 0), 0x1_0000_0001);
    assert_eq!(result(Op::Add_uw, MIN_32, 0, 0), 0x8000_0000);
    // The shift takes six bits, of a word.
    assert_eq!(result(Op::Slli_uw, MINUS_1, 0, 63), MIN);
    assert_eq!(result(Op::Slli_uw, MINUS_1, 0, 0), 0xffff_ffff);
}

#[test]
fn counts_of_bits_at_their_edges() {
    for (op, of_zero) in [(Op::Clz, 64), (Op::Ctz, 64), (Op::Clzw, 32), (Op::Ctzw, 32), (Op::Cpop, 0), (Op::Cpopw, 0)] {
        assert_eq!(result(op, 0, 0, 0), of_zero, "{op:?}");
    }
    // Bits above the word do not count.
    assert_eq!(result(Op::Clzw, 0xffff_ffff_0000_0001, 0, 0), 31);
    assert_eq!(result(Op::Ctzw, 0x80_0000_0000, 0, 0), 32);
    assert_eq!(result(Op::Cpopw, MIN_32, 0, 0), 1);
    assert_eq!(result(Op::Clz, 1, 0, 0), 63);
    assert_eq!(result(Op::Ctz, MIN, 0, 0), 63);
    assert_eq!(result(Op::Cpop, MINUS_1, 0, 0), 64);
}

#[test]
fn rotations_and_orders_of_bytes() {
    assert_eq!(result(Op::Rol, MIN + 1, 1, 0), 3);
    assert_eq!(result(Op::Ror, 3, 1, 0), MIN + 1);
    assert_eq!(result(Op::Ror, 5, 64, 0), 5);
    assert_eq!(result(Op::Rori, 1, 0, 63), 2);
    assert_eq!(result(Op::Rori, MIN + 7, 0, 0), MIN + 7);
    // Words are sign-extended, also by a rotation of 0.
    assert_eq!(result(Op::Roriw, 0x7_8000_0000, 0, 0), MIN_32);
    assert_eq!(result(Op::Rorw, 1, 33, 0), MIN_32);
    assert_eq!(result(Op::Rolw, 0x4000_0000, 1, 0), MIN_32);
    assert_eq!(result(Op::Roriw, 0x8000_0000, 0, 31), 1);
    assert_eq!(result(Op::Rev8, 0x0102_0304_0506_0708, 0, 0), 0x0807_0605_0403_0201);
    assert_eq!(result(Op::Orc_b, 0x0100_8000_0000_7f00, 0, 0), 0xff00_ff00_0000_ff00);
    assert_eq!(result(Op::Sext_b, 0x180, 0, 0), -128_i64 as u64);
    assert_eq!(result(Op::Sext_h, 0x1_7fff, 0, 0), 0x7fff);
    assert_eq!(result(Op::Zext_h, MINUS_1, 0, 0), 0xffff);
}

#[test]
fn products_without_carries() {
    assert_eq!(result(Op::Clmul, 3, 3, 0), 5);
    assert_eq!(result(Op::Clmul, MINUS_1, MINUS_1, 0), 0x5555_5555_5555_5555);
    assert_eq!(result(Op::Clmulh, MINUS_1, MINUS_1, 0), 0x5555_5555_5555_5555);
    assert_eq!(result(Op::Clmulr, MINUS_1, MINUS_1, 0), 0xaaaa_aaaa_aaaa_aaaa);
    assert_eq!(result(Op::Clmulh, MIN, MIN, 0), 1 << 62);
    assert_eq!(result(Op::Clmulr, MIN, MIN, 0), MIN);
    assert_eq!(result(Op::Clmulr, MIN, 1, 0), 1);
}

#[test]
fn single_bits_and_logic() {
    // An index takes six bits.
    assert_eq!(result(Op::Bset, 0, 64 + 5, 0), 32);
    assert_eq!(result(Op::Bclr, MINUS_1, 63, 0), MIN - 1);
    assert_eq!(result(Op::Binv, MIN, 63, 0), 0);
    assert_eq!(result(Op::Bext, MIN, 63, 0), 1);
    assert_eq!(result(Op::Bseti, 0, 0, 63), MIN);
    assert_eq!(result(Op::Bclri, MINUS_1, 0, 0), MINUS_1 - 1);
    assert_eq!(result(Op::Binvi, 0, 0, 32), 1 << 32);
    assert_eq!(result(Op::Bexti, MIN, 0, 62), 0);
    assert_eq!(result(Op::Andn, 0b1100, 0b1010, 0), 0b0100);
    assert_eq!(result(Op::Orn, 0b1100, 0b1010, 0), !0b0010);
    assert_eq!(result(Op::Xnor, 0b1100, 0b1010, 0), !0b0110);
    assert_eq!(result(Op::Min, MINUS_1, 1, 0), MINUS_1);
    assert_eq!(result(Op::Minu, MINUS_1, 1, 0), 1);
    assert_eq!(result(Op::Max, MIN, 1, 0), 1);
    assert_eq!(result(Op::Maxu, MIN, 1, 0), MIN);
}

#[test]
fn cache_blocks_are_zeroed_whole_or_not_at_all() {
    let window = window();
    let last = READ_ONLY - 64;
    for addr in (OPEN..READ_ONLY).step_by(8) {
        window.store_u64(addr, MINUS_1).unwrap();
    }
    let mut hart = hart(last + 63, 0);
    assert_eq!(exec(&inst(Op::Cbo_zero), &mut hart, &window), Ok(Flow::Next));
    assert_eq!(window.load_u64(last - 8), Ok(MINUS_1));
    assert!((last..READ_ONLY).step_by(8).all(|addr| window.load_u64(addr) == Ok(0)));
    // A fault names the block.
    for (op, addr, refused) in [
        (Op::Cbo_zero, READ_ONLY + 70, READ_ONLY + 64),
        (Op::Cbo_zero, MINUS_1, MINUS_1 - 63),
        (Op::Cbo_clean, NOTHING + 1, NOTHING),
        (Op::Cbo_flush, MINUS_1, MINUS_1 - 63),
    ] {
        hart.x[2] = addr;
        let fault = Fault { addr: refused, kind: FaultKind::Segv };
        assert_eq!(exec(&inst(op), &mut hart, &window), Err(Trap::StoreFault(fault)), "{op:?} {addr:#x}");
    }
    // Memory that may not be written can be cleaned.
    hart.x[2] = READ_ONLY + 1;
    assert_eq!(exec(&inst(Op::Cbo_clean), &mut hart, &window), Ok(Flow::Next));
    assert_eq!(exec(&inst(Op::Cbo_flush), &mut hart, &window), Ok(Flow::Next));
}
