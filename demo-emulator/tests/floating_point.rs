//! Floating point: the host's arithmetic against the integers', and the cases
//! of the specification one by one.
//!
//! More operands by hand: `FP_OPERANDS=50000000 cargo test --release -p
//! demo-emulator --test floating_point`.

use demo_emulator::hart::Hart;
use demo_emulator::riscv::fp::format::{DOUBLE, DZ, Format, NV, NX, OF, Rounded, Rounding, SINGLE, UF};
use demo_emulator::riscv::fp::{self, boxed, host, soft};
use demo_emulator::riscv::inst::{Inst, Op};
use demo_emulator::riscv::random::Random;

fn operands() -> u64 {
    std::env::var("FP_OPERANDS").ok().and_then(|count| count.parse().ok()).unwrap_or(60_000)
}

fn operand(random: &mut Random, format: Format) -> u64 {
    if format == DOUBLE { random.double() } else { random.single().into() }
}

#[test]
fn host_and_integers_agree() {
    let mut random = Random::new(1);
    let mut seen_flags = 0;
    let mut compared = 0_u64;
    for _ in 0..operands() {
        for format in [SINGLE, DOUBLE] {
            let [a, b, mut c] = [(); 3].map(|()| operand(&mut random, format));
            let rounding = Rounding::ALL[random.below(5) as usize];
            if random.below(4) == 0 {
                // A sum that cancels, nearly or wholly.
                c = soft::mul(format, a, b, Rounding::Rne).bits ^ format.sign();
            }
            let cases = [
                ("add", host::add(format, a, b, rounding), soft::add(format, a, b, rounding)),
                ("sub", host::sub(format, a, b, rounding), soft::sub(format, a, b, rounding)),
                ("mul", host::mul(format, a, b, rounding), soft::mul(format, a, b, rounding)),
                ("div", host::div(format, a, b, rounding), soft::div(format, a, b, rounding)),
                ("sqrt", host::sqrt(format, a, rounding), soft::sqrt(format, a, rounding)),
                ("fused", host::fused(format, a, b, c, rounding), soft::fused(format, a, b, c, rounding)),
            ];
            for (name, by_host, by_integers) in cases {
                let Some(by_host) = by_host else { continue };
                assert_eq!(by_host, by_integers, "{name} {format:?} {rounding:?} of {a:#x} {b:#x} {c:#x}");
                seen_flags |= by_host.flags;
                compared += 1;
            }
        }
    }
    assert_eq!(seen_flags, NV | DZ | OF | UF | NX, "an exception was never raised");
    assert!(compared > 8 * operands(), "the host did hardly anything");
}

/// The host cannot check ties away from zero, but modes that it has can: the result is one of their
/// neighbours of the exact value, and differs from ties to even only if both are equally far.
#[test]
fn ties_away_from_zero_differ_from_ties_to_even_in_ties_alone() {
    let mut random = Random::new(2);
    let mut ties = 0;
    for _ in 0..operands() {
        // Products of doubles with few bits are exact or ties, mostly.
        let [a, b] = [(); 2].map(|()| operand(&mut random, SINGLE));
        let exact = f64::from(f32::from_bits(a as u32)) * f64::from(f32::from_bits(b as u32));
        let [away, even, down, up] = [Rounding::Rmm, Rounding::Rne, Rounding::Rdn, Rounding::Rup]
            .map(|rounding| soft::mul(SINGLE, a, b, rounding));
        if SINGLE.is_nan(away.bits) || away.flags & OF != 0 || up.flags & OF != 0 || down.flags & OF != 0 {
            continue;
        }
        let value = |outcome: Rounded| f64::from(f32::from_bits(outcome.bits as u32));
        let (below, above) = (exact - value(down), value(up) - exact);
        let expected = match below.partial_cmp(&above) {
            Some(std::cmp::Ordering::Less) => down,
            Some(std::cmp::Ordering::Greater) => up,
            _ if exact < 0.0 => down,
            _ => up,
        };
        if below != 0.0 || above != 0.0 {
            assert_eq!(away.bits, expected.bits, "{a:#x} * {b:#x}");
        }
        if away.bits != even.bits {
            assert_eq!(below, above, "{a:#x} * {b:#x} is no tie");
            ties += 1;
        }
    }
    assert!(ties > 10, "hardly a tie among the operands: {ties}");
}

/// Conversions to integers against Rust's own, which truncate and saturate.
#[test]
fn truncation_agrees_with_rust() {
    let mut random = Random::new(3);
    for _ in 0..operands() {
        let (bits, single) = (random.double(), random.single());
        let (double, float) = (f64::from_bits(bits), f32::from_bits(single));
        if double.is_nan() || float.is_nan() {
            continue;
        }
        use soft::Int::{L, Lu, W, Wu};
        let of_double = |int| soft::to_int(DOUBLE, bits, int, Rounding::Rtz).bits;
        let of_single = |int| soft::to_int(SINGLE, single.into(), int, Rounding::Rtz).bits;
        assert_eq!(
            [W, Wu, L, Lu].map(of_double),
            [double as i32 as u64, double as u32 as i32 as u64, double as i64 as u64, double as u64]
        );
        assert_eq!(
            [W, Wu, L, Lu].map(of_single),
            [float as i32 as u64, float as u32 as i32 as u64, float as i64 as u64, float as u64]
        );
        let exact = double.trunc() == double && double >= 0.0 && double < 2.0_f64.powi(64);
        assert_eq!(soft::to_int(DOUBLE, bits, Lu, Rounding::Rtz).flags == 0, exact || (double == 0.0), "{double}");
        let integer = random.integer();
        let nearest = |format, int| soft::from_int(format, integer, int, Rounding::Rne).bits;
        assert_eq!(nearest(DOUBLE, L), (integer as i64 as f64).to_bits());
        assert_eq!(nearest(DOUBLE, Lu), (integer as f64).to_bits());
        assert_eq!(nearest(DOUBLE, W), f64::from(integer as i32).to_bits());
        assert_eq!(nearest(DOUBLE, Wu), f64::from(integer as u32).to_bits());
        assert_eq!(nearest(SINGLE, L), u64::from((integer as i64 as f32).to_bits()));
        assert_eq!(nearest(SINGLE, Lu), u64::from((integer as f32).to_bits()));
        assert_eq!(
            soft::convert(DOUBLE, SINGLE, bits, Rounding::Rne).bits,
            u64::from((double as f32).to_bits()),
            "{double}"
        );
        assert_eq!(soft::convert(SINGLE, DOUBLE, single.into(), Rounding::Rne).bits, f64::from(float).to_bits());
    }
}

fn inst(op: Op, rm: u8) -> Inst {
    Inst { op, rd: 1, rs1: 2, rs2: 3, rs3: 4, rm, len: 4, imm: 0 }
}

/// Runs an operation on `f2`, `f3`, `f4` and `x2`; returns `f1`, `x1` and the flags.
fn run(op: Op, rm: u8, f: [u64; 3], x: u64) -> (u64, u64, u8) {
    let mut hart = Hart::new(0);
    hart.f[2..5].copy_from_slice(&f);
    hart.x[2] = x;
    assert!(fp::exec(&inst(op, rm), &mut hart), "{op:?} with rounding mode {rm}");
    (hart.f[1], hart.x[1], hart.fflags)
}

fn double(op: Op, rm: u8, a: f64, b: f64) -> (u64, u8) {
    let (f, _, flags) = run(op, rm, [a.to_bits(), b.to_bits(), 0], 0);
    (f, flags)
}

fn single(op: Op, rm: u8, a: f32, b: f32) -> (u64, u8) {
    let (f, _, flags) = run(op, rm, [boxed(a.to_bits()), boxed(b.to_bits()), 0], 0);
    (f, flags)
}

const NAN: u64 = 0x7ff8_0000_0000_0000;
const NAN_S: u32 = 0x7fc0_0000;
const SIGNALING: f64 = f64::from_bits(0x7ff0_0000_0000_0001);
const INF: f64 = f64::INFINITY;

#[test]
fn nans_come_out_canonical() {
    let odd = f64::from_bits(0xfff8_0000_0000_1234);
    assert_eq!(double(Op::Fadd_d, 0, odd, 1.0), (NAN, 0));
    assert_eq!(double(Op::Fadd_d, 0, SIGNALING, 1.0), (NAN, NV));
    assert_eq!(double(Op::Fsub_d, 0, INF, INF), (NAN, NV));
    assert_eq!(double(Op::Fmul_d, 0, INF, 0.0), (NAN, NV));
    assert_eq!(double(Op::Fdiv_d, 0, 0.0, 0.0), (NAN, NV));
    assert_eq!(double(Op::Fsqrt_d, 0, -1.0, 0.0), (NAN, NV));
    assert_eq!(double(Op::Fsqrt_d, 0, -0.0, 0.0), ((-0.0_f64).to_bits(), 0));
    assert_eq!(single(Op::Fdiv_s, 0, 0.0, 0.0), (boxed(NAN_S), NV));
    // Moves keep the payload.
    assert_eq!(double(Op::Fsgnj_d, 0, odd, 1.0), (0x7ff8_0000_0000_1234, 0));
    let (converted, _, flags) = run(Op::Fcvt_s_d, 0, [odd.to_bits(), 0, 0], 0);
    assert_eq!((converted, flags), (boxed(NAN_S), 0));
}

#[test]
fn infinity_times_zero_plus_a_quiet_nan_is_invalid() {
    for rm in 0..5 {
        let (f, _, flags) = run(Op::Fmadd_d, rm, [INF.to_bits(), 0, NAN], 0);
        assert_eq!((f, flags), (NAN, NV));
    }
}

#[test]
fn fused_signs() {
    let f = [2.0_f64, 3.0, 1.0].map(f64::to_bits);
    let result = |op| f64::from_bits(run(op, 0, f, 0).0);
    assert_eq!(result(Op::Fmadd_d), 7.0);
    assert_eq!(result(Op::Fmsub_d), 5.0);
    assert_eq!(result(Op::Fnmsub_d), -5.0);
    assert_eq!(result(Op::Fnmadd_d), -7.0);
    // Exact zeros take their sign from the rounding mode.
    let cancel = [1.0_f64, 1.0, -1.0].map(f64::to_bits);
    assert_eq!(run(Op::Fmadd_d, 0, cancel, 0).0, 0);
    assert_eq!(run(Op::Fmadd_d, 2, cancel, 0).0, (-0.0_f64).to_bits());
}

#[test]
fn a_single_that_is_not_boxed_is_a_nan() {
    let one = u64::from(1.0_f32.to_bits());
    assert_eq!(run(Op::Fadd_s, 0, [one, boxed(0), 0], 0), (boxed(NAN_S), 0, 0));
    assert_eq!(run(Op::Fsgnj_s, 0, [one, boxed(0), 0], 0).0, boxed(NAN_S));
    assert_eq!(run(Op::Fclass_s, 0, [one, 0, 0], 0).1, 1 << 9);
    assert_eq!(run(Op::Feq_s, 0, [one, one, 0], 0), (0, 0, 0));
    assert_eq!(run(Op::Fmax_s, 0, [one, boxed(7), 0], 0).0, boxed(7));
    // But Fmv moves it unchanged.
    assert_eq!(run(Op::Fmv_x_w, 0, [0x1_8000_0000, 0, 0], 0).1, 0xffff_ffff_8000_0000);
    assert_eq!(run(Op::Fmv_w_x, 0, [0; 3], 0x1234_0000_0001).0, boxed(1));
}

#[test]
fn rounding_modes_round() {
    let third = 1.0_f64 / 3.0;
    for (rm, expected) in [(0, third), (1, third), (2, third), (3, third.next_up()), (4, third)] {
        assert_eq!(double(Op::Fdiv_d, rm, 1.0, 3.0), (expected.to_bits(), NX), "{rm}");
    }
    // 2^53 + 1 is a tie.
    let big = 2.0_f64.powi(53);
    for (rm, expected) in [(0, big), (1, big), (2, big), (3, big + 2.0), (4, big + 2.0)] {
        assert_eq!(double(Op::Fadd_d, rm, big, 1.0), (expected.to_bits(), NX), "{rm}");
    }
    // Overflow goes to infinity or stops at the greatest number.
    for (rm, expected) in [(0, INF), (1, f64::MAX), (2, f64::MAX), (3, INF), (4, INF)] {
        assert_eq!(double(Op::Fadd_d, rm, f64::MAX, f64::MAX), (expected.to_bits(), OF | NX), "{rm}");
    }
}

#[test]
fn the_dynamic_mode_is_that_of_frm_and_must_exist() {
    let mut hart = Hart::new(0);
    hart.f[2] = 1.0_f64.to_bits();
    hart.f[3] = 3.0_f64.to_bits();
    hart.frm = 3;
    assert!(fp::exec(&inst(Op::Fdiv_d, 7), &mut hart));
    assert_eq!(hart.f[1], (1.0_f64 / 3.0).next_up().to_bits());
    for frm in 5..8 {
        (hart.frm, hart.fflags, hart.f[1]) = (frm, 0, 42);
        assert!(!fp::exec(&inst(Op::Fadd_d, 7), &mut hart));
        assert!(!fp::exec(&inst(Op::Fcvt_d_w, 7), &mut hart), "even where nothing is rounded");
        assert_eq!((hart.f[1], hart.fflags), (42, 0));
        assert!(fp::exec(&inst(Op::Fmin_d, 0), &mut hart), "no rounding, no mode");
    }
}

#[test]
fn tininess_is_detected_after_rounding() {
    let least_normal = f64::MIN_POSITIVE;
    // 2^-1022 * (1 - 2^-53): rounds up to the least normal with full precision
    // too, if ties go to even: a tie of 53 bits, so not tiny.
    let below = 1.0 - 2.0_f64.powi(-53);
    assert_eq!(double(Op::Fmul_d, 0, least_normal, below), (least_normal.to_bits(), UF | NX));
    // (1 - 2^-53) has 53 bits: with full precision it is exact and so tiny. With one bit more it is
    // no longer tiny: 1 - 2^-54 rounds up to 1.
    let a = (1.0 + 2.0_f64.powi(-27)) * least_normal;
    let b = 1.0 - 2.0_f64.powi(-27);
    assert_eq!(double(Op::Fmul_d, 0, a, b), (least_normal.to_bits(), NX));
    assert_eq!(double(Op::Fmul_d, 4, a, b), (least_normal.to_bits(), NX));
    assert_eq!(double(Op::Fmul_d, 1, a, b), (least_normal.to_bits() - 1, UF | NX));
    // An exact subnormal raises nothing.
    assert_eq!(double(Op::Fmul_d, 0, least_normal, 0.5), (least_normal.to_bits() / 2, 0));
}

#[test]
fn division_by_zero() {
    assert_eq!(double(Op::Fdiv_d, 0, 1.0, -0.0), ((-INF).to_bits(), DZ));
    assert_eq!(double(Op::Fdiv_d, 4, 1.0, 0.0), (INF.to_bits(), DZ));
    assert_eq!(double(Op::Fdiv_d, 0, INF, 0.0), (INF.to_bits(), 0));
}

#[test]
fn minimum_and_maximum_prefer_numbers() {
    for (op, low) in [(Op::Fmin_d, true), (Op::Fmax_d, false)] {
        let of_zeros = if low { -0.0_f64 } else { 0.0 };
        assert_eq!(double(op, 0, 0.0, -0.0), (of_zeros.to_bits(), 0));
        assert_eq!(double(op, 0, -0.0, 0.0), (of_zeros.to_bits(), 0));
        assert_eq!(double(op, 0, f64::NAN, 1.0), (1.0_f64.to_bits(), 0));
        assert_eq!(double(op, 0, 1.0, SIGNALING), (1.0_f64.to_bits(), NV));
        assert_eq!(double(op, 0, -f64::NAN, f64::NAN), (NAN, 0));
        assert_eq!(double(op, 0, -1.0, 2.0).0, if low { -1.0_f64 } else { 2.0 }.to_bits());
    }
}

#[test]
fn comparisons_and_nans() {
    let relation = |op, a: f64, b: f64| {
        let (_, x, flags) = run(op, 0, [a.to_bits(), b.to_bits(), 0], 0);
        (x, flags)
    };
    assert_eq!(relation(Op::Feq_d, 0.0, -0.0), (1, 0));
    assert_eq!(relation(Op::Flt_d, -0.0, 0.0), (0, 0));
    assert_eq!(relation(Op::Fle_d, 0.0, -0.0), (1, 0));
    assert_eq!(relation(Op::Flt_d, -2.0, -1.0), (1, 0));
    assert_eq!(relation(Op::Flt_d, -INF, INF), (1, 0));
    assert_eq!(relation(Op::Feq_d, f64::NAN, 1.0), (0, 0));
    assert_eq!(relation(Op::Feq_d, SIGNALING, 1.0), (0, NV));
    assert_eq!(relation(Op::Flt_d, f64::NAN, 1.0), (0, NV));
    assert_eq!(relation(Op::Fle_d, 1.0, f64::NAN), (0, NV));
}

#[test]
fn classes() {
    let subnormal = f64::from_bits(1);
    let numbers = [-INF, -1.0, -subnormal, -0.0, 0.0, subnormal, 1.0, INF, SIGNALING, f64::NAN];
    for (class, number) in numbers.into_iter().enumerate() {
        assert_eq!(run(Op::Fclass_d, 0, [number.to_bits(), 0, 0], 0).1, 1 << class, "{number}");
    }
}

#[test]
fn conversions_to_integers_saturate() {
    let convert = |op, rm, number: f64| {
        let (_, x, flags) = run(op, rm, [number.to_bits(), 0, 0], 0);
        (x as i64, flags)
    };
    assert_eq!(convert(Op::Fcvt_w_d, 0, f64::NAN), (i32::MAX.into(), NV));
    assert_eq!(convert(Op::Fcvt_w_d, 0, 3e9), (i32::MAX.into(), NV));
    assert_eq!(convert(Op::Fcvt_w_d, 0, -INF), (i32::MIN.into(), NV));
    // Unsigned words come out sign-extended.
    assert_eq!(convert(Op::Fcvt_wu_d, 0, f64::NAN), (-1, NV));
    assert_eq!(convert(Op::Fcvt_wu_d, 0, 4_294_967_295.0), (-1, 0));
    assert_eq!(convert(Op::Fcvt_wu_d, 0, -1.0), (0, NV));
    // Rounded to zero it is not negative, so it is inexact and not invalid.
    assert_eq!(convert(Op::Fcvt_wu_d, 1, -0.9), (0, NX));
    assert_eq!(convert(Op::Fcvt_wu_d, 2, -0.9), (0, NV));
    assert_eq!(convert(Op::Fcvt_lu_d, 0, INF), (-1, NV));
    assert_eq!(convert(Op::Fcvt_l_d, 0, 9.3e18), (i64::MAX, NV));
    assert_eq!(convert(Op::Fcvt_l_d, 0, -9_223_372_036_854_775_808.0), (i64::MIN, 0));
    for (rm, expected) in [(0, 2), (1, 2), (2, 2), (3, 3), (4, 3)] {
        assert_eq!(convert(Op::Fcvt_l_d, rm, 2.5), (expected, NX), "{rm}");
        assert_eq!(convert(Op::Fcvt_l_d, rm, -2.5), (-i64::from([2, 2, 3, 2, 3][rm as usize]), NX), "{rm}");
    }
}
