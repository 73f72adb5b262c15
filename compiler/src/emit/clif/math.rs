//! Elementary functions, as instructions on scalars and on vectors alike.
//!
//! Everything is free of branches and tables (but [`remainder`], which is scalar, and [`far_from_zero`]), so one source
//! serves `f32`, `f32x4`, `f64` and `f64x2`. The polynomials are Chebyshev interpolants, that of [`erf32`] a weighted
//! minimax fit. Infinities, NaNs, subnormal numbers and overflow behave as in IEEE 754 and C99 Annex F.
//!
//! | function | f32, ulp | f64, ulp |
//! |---|---|---|
//! | `exp` | 1.1 | 2 |
//! | `log` | 1 | 2 |
//! | `tanh`, `erf` | 1.6 | 4 |
//! | `expm1`, `log1p`, `sin`, `cos`, `tan`, `asin`, `acos`, `atan` | 1 (computed in f64) | 4 |
//! | `pow` | 1 (computed in f64) | relative error below 2e-13 |
//!
//! The bounds hold for every argument, up to the largest float. Tests hold the f32 bounds with and without fused
//! multiply-add.

use super::{KernelBuilder, int_like};
use cranelift_codegen::ir::condcodes::FloatCC;
use cranelift_codegen::ir::types::{F32, F64, I64};
use cranelift_codegen::ir::{InstBuilder, Value};
use tfc_ir::scalar::Prim;

/// An elementary function of one operand of a float type.
pub fn unary(b: &mut KernelBuilder, prim: Prim, x: Value) -> Value {
    let narrow = b.ty(x).lane_type() == F32;
    match prim {
        Prim::Exp if narrow => exp32(b, x),
        Prim::Log if narrow => log(b, x),
        Prim::Tanh if narrow => tanh32(b, x),
        Prim::Erf if narrow => erf32(b, x),
        _ if narrow => in_f64(b, x, |b, x| unary64(b, prim, x, true)),
        _ => unary64(b, prim, x, false),
    }
}

/// A function of f64 lanes, which are `narrow` if they were f32.
fn unary64(b: &mut KernelBuilder, prim: Prim, x: Value, narrow: bool) -> Value {
    match prim {
        Prim::Exp => exp64(b, x),
        Prim::Log => log(b, x),
        Prim::Expm1 => expm1(b, x),
        Prim::Log1p => log1p(b, x),
        Prim::Sin => trigonometric(b, x, narrow).0,
        Prim::Cos => trigonometric(b, x, narrow).1,
        Prim::Tan => {
            let (s, c) = trigonometric(b, x, narrow);
            b.f.ins().fdiv(s, c)
        }
        Prim::Asin => {
            let c = half_circle(b, x);
            let t = b.f.ins().fdiv(x, c);
            atan(b, t)
        }
        Prim::Acos => {
            let one = like(b, x, 1.0);
            let (below, above) = (b.f.ins().fsub(one, x), b.f.ins().fadd(one, x));
            let q = b.f.ins().fdiv(below, above);
            let q = b.f.ins().sqrt(q);
            let half = atan(b, q);
            b.f.ins().fadd(half, half)
        }
        Prim::Atan => atan(b, x),
        Prim::Tanh => tanh64(b, x),
        Prim::Erf => erf64(b, x),
        _ => unreachable!("{prim:?} is not an elementary function"),
    }
}

/// Applies an f64 function to f32 lanes.
fn in_f64(b: &mut KernelBuilder, x: Value, f: impl Fn(&mut KernelBuilder, Value) -> Value) -> Value {
    if b.ty(x) == F32 {
        let x = b.f.ins().fpromote(F64, x);
        let y = f(b, x);
        return b.f.ins().fdemote(F32, y);
    }
    let upper = b.shuffle(x, x, [2, 3, 0, 1]);
    let (low, high) = (b.f.ins().fvpromote_low(x), b.f.ins().fvpromote_low(upper));
    let (low, high) = (f(b, low), f(b, high));
    let (low, high) = (b.f.ins().fvdemote(low), b.f.ins().fvdemote(high));
    b.shuffle(low, high, [0, 1, 4, 5])
}

fn like(b: &mut KernelBuilder, x: Value, c: f64) -> Value {
    let ty = b.ty(x);
    b.float_of(ty, c)
}

/// `Σ c[i] x^i`.
fn polynomial(b: &mut KernelBuilder, x: Value, c: &[f64]) -> Value {
    let (last, rest) = c.split_last().expect("a coefficient");
    let mut y = like(b, x, *last);
    for &c in rest.iter().rev() {
        let c = like(b, x, c);
        y = b.fma(y, x, c);
    }
    y
}

/// `x - y * c`.
fn minus_product(b: &mut KernelBuilder, x: Value, y: Value, c: f64) -> Value {
    if b.cpu.has_fma() {
        let c = like(b, x, -c);
        b.f.ins().fma(y, c, x)
    } else {
        let c = like(b, x, c);
        let p = b.f.ins().fmul(y, c);
        b.f.ins().fsub(x, p)
    }
}

/// The larger (or smaller) of `x` and a number; NaN stays.
fn bounded(b: &mut KernelBuilder, x: Value, lo: Option<f64>, hi: Option<f64>) -> Value {
    let mut x = x;
    if let Some(hi) = hi {
        let hi = like(b, x, hi);
        let above = b.f.ins().fcmp(FloatCC::LessThan, hi, x);
        x = b.choose(above, hi, x);
    }
    if let Some(lo) = lo {
        let lo = like(b, x, lo);
        let below = b.f.ins().fcmp(FloatCC::LessThan, x, lo);
        x = b.choose(below, lo, x);
    }
    x
}

fn copysign(b: &mut KernelBuilder, magnitude: Value, sign: Value) -> Value {
    let ty = b.ty(sign);
    let int = int_like(ty);
    let mask = if ty.lane_type() == F32 { i64::from(i32::MIN) } else { i64::MIN };
    let mask = b.int_of(int, mask);
    let (m, s) = (b.bits(int, magnitude), b.bits(int, sign));
    let s = b.f.ins().band(s, mask);
    let m = b.f.ins().bor(m, s);
    b.bits(ty, m)
}

/// `sqrt((1 - x) (1 + x))`.
fn half_circle(b: &mut KernelBuilder, x: Value) -> Value {
    let one = like(b, x, 1.0);
    let (below, above) = (b.f.ins().fsub(one, x), b.f.ins().fadd(one, x));
    let p = b.f.ins().fmul(below, above);
    b.f.ins().sqrt(p)
}

/// Rounding to an integral float: `Floor`, `Ceil`, `Trunc` or `RoundEven`.
pub fn round(b: &mut KernelBuilder, prim: Prim, x: Value) -> Value {
    if b.cpu.has_round() {
        return match prim {
            Prim::Floor => b.f.ins().floor(x),
            Prim::Ceil => b.f.ins().ceil(x),
            Prim::Trunc => b.f.ins().trunc(x),
            _ => b.f.ins().nearest(x),
        };
    }
    // Adding and subtracting 2^23 (2^52) rounds what is smaller; what is not is integral.
    let ty = b.ty(x);
    let unit = b.float_of(ty, if ty.lane_type() == F32 { 8_388_608.0 } else { 4_503_599_627_370_496.0 });
    let one = b.float_of(ty, 1.0);
    let zero = b.float_of(ty, 0.0);
    let a = b.f.ins().fabs(x);
    let sum = b.f.ins().fadd(a, unit);
    let nearest = b.f.ins().fsub(sum, unit);
    let step = |b: &mut KernelBuilder, less: Value, greater: Value| {
        let off = b.f.ins().fcmp(FloatCC::LessThan, less, greater);
        b.choose(off, one, zero)
    };
    let y = match prim {
        Prim::RoundEven => copysign(b, nearest, x),
        Prim::Trunc => {
            let d = step(b, a, nearest);
            let y = b.f.ins().fsub(nearest, d);
            copysign(b, y, x)
        }
        _ => {
            let r = copysign(b, nearest, x);
            let y = if prim == Prim::Floor {
                let d = step(b, x, r);
                b.f.ins().fsub(r, d)
            } else {
                let d = step(b, r, x);
                b.f.ins().fadd(r, d)
            };
            copysign_if_zero(b, y, x)
        }
    };
    let small = b.f.ins().fcmp(FloatCC::LessThan, a, unit);
    b.choose(small, y, x)
}

/// `y`, or a zero with the sign of `x` where `y` is a zero.
fn copysign_if_zero(b: &mut KernelBuilder, y: Value, x: Value) -> Value {
    let zero = like(b, y, 0.0);
    let is_zero = b.f.ins().fcmp(FloatCC::Equal, y, zero);
    let signed = copysign(b, zero, x);
    b.choose(is_zero, signed, y)
}

/// `2^n` scaling in two factors, of which neither leaves the normal range. `shifted` is the float
/// `1.5 * 2^mantissa + 2 * bias + n`.
fn scale(b: &mut KernelBuilder, y: Value, shifted: Value) -> Value {
    let ty = b.ty(y);
    let int = int_like(ty);
    let mantissa = if ty.lane_type() == F32 { 23 } else { 52 };
    let n = b.bits(int, shifted);
    let first = b.shr(n, 1);
    let second = b.f.ins().isub(n, first);
    let (first, second) = (b.shl(first, mantissa), b.shl(second, mantissa));
    let (first, second) = (b.bits(ty, first), b.bits(ty, second));
    let y = b.f.ins().fmul(y, first);
    b.f.ins().fmul(y, second)
}

const LOG2_E: f64 = std::f64::consts::LOG2_E;
/// `log 2` in two parts, of which the first has few enough bits for exact products with exponents.
pub const LN2_32: [f64; 2] = [0.693_359_375, -2.121_944_400_546_905_8e-4];
const LN2_64: [f64; 2] = [0.693_147_180_369_123_8, 1.908_214_929_270_587_7e-10];
/// `1.5 * 2^23`: adding it leaves an integer in the low bits of the mantissa.
pub const SHIFT_32: f64 = 12_582_912.0;
const SHIFT_64: f64 = 6_755_399_441_055_744.0;

/// `(e^x - 1 - x) / x²` for `|x| <= log(2) / 2`.
pub const EXP_32: [f64; 5] =
    [0.5, 0.166_665_769_697_887_76, 0.041_666_554_617_204_57, 0.008_363_179_052_722_577, 0.001_392_618_358_771_349_5];
const EXP_64: [f64; 11] = [
    0.5,
    0.166_666_666_666_666_7,
    0.041_666_666_666_666_67,
    0.008_333_333_333_326_135,
    0.001_388_888_888_888_377_5,
    0.000_198_412_698_748_206_25,
    2.480_158_732_554_774_1e-5,
    2.755_725_540_020_642_4e-6,
    2.755_727_364_311_03e-7,
    2.510_521_700_472_074_5e-8,
    2.091_468_696_808_687_7e-9,
];

/// Splits `x` into `n log 2 + r`: returns `1.5 * 2^m + bias + n` and `r`.
fn reduce_by_log2(b: &mut KernelBuilder, x: Value, bias: f64) -> (Value, Value) {
    let narrow = b.ty(x).lane_type() == F32;
    let ([hi, lo], shift) = if narrow { (LN2_32, SHIFT_32) } else { (LN2_64, SHIFT_64) };
    let (log2_e, shift) = (like(b, x, LOG2_E), like(b, x, shift + bias));
    let shifted = b.fma(x, log2_e, shift);
    let n = b.f.ins().fsub(shifted, shift);
    let r = minus_product(b, x, n, hi);
    (shifted, minus_product(b, r, n, lo))
}

/// `e^r - 1` for `|r| <= log(2) / 2`.
fn exp_rest(b: &mut KernelBuilder, r: Value) -> Value {
    let c: &[f64] = if b.ty(r).lane_type() == F32 { &EXP_32 } else { &EXP_64 };
    let q = polynomial(b, r, c);
    let square = b.f.ins().fmul(r, r);
    b.fma(q, square, r)
}

/// `e^x` of f32 lanes.
pub fn exp32(b: &mut KernelBuilder, x: Value) -> Value {
    let x = bounded(b, x, Some(-104.0), Some(89.0));
    let (shifted, r) = reduce_by_log2(b, x, 254.0);
    let rest = exp_rest(b, r);
    let one = like(b, x, 1.0);
    let y = b.f.ins().fadd(rest, one);
    scale(b, y, shifted)
}

fn exp64(b: &mut KernelBuilder, x: Value) -> Value {
    let x = bounded(b, x, Some(-746.0), Some(710.0));
    let (shifted, r) = reduce_by_log2(b, x, 2046.0);
    let rest = exp_rest(b, r);
    let one = like(b, x, 1.0);
    let y = b.f.ins().fadd(rest, one);
    scale(b, y, shifted)
}

/// `e^x` of f32 lanes whose exponents stay in `[-126, 126]`: cheaper by the second factor.
fn exp32_normal(b: &mut KernelBuilder, x: Value) -> Value {
    let ty = b.ty(x);
    let (shifted, r) = reduce_by_log2(b, x, 127.0);
    let rest = exp_rest(b, r);
    let n = b.bits(int_like(ty), shifted);
    let power = b.shl(n, 23);
    let power = b.bits(ty, power);
    b.fma(rest, power, power)
}

fn expm1(b: &mut KernelBuilder, x: Value) -> Value {
    let ty = b.ty(x);
    let bounded = bounded(b, x, Some(-50.0), Some(710.0));
    // Half of the power: the whole one may overflow.
    let (shifted, r) = reduce_by_log2(b, bounded, 1022.0);
    let rest = exp_rest(b, r);
    let n = b.bits(int_like(ty), shifted);
    let power = b.shl(n, 52);
    let power = b.bits(ty, power);
    let half = b.float_of(ty, 0.5);
    let less = b.f.ins().fsub(power, half);
    let y = b.fma(rest, power, less);
    let y = b.f.ins().fadd(y, y);
    let zero = b.float_of(ty, 0.0);
    let is_zero = b.f.ins().fcmp(FloatCC::Equal, x, zero);
    b.choose(is_zero, x, y)
}

/// `(2 artanh(s) - 2 s) / s³` by `s²`, for the mantissas `[√½, √2)`.
const LOG_32: [f64; 4] = [0.666_666_665_498_831_8, 0.400_001_255_945_543_7, 0.285_503_969_596_180_14, 0.233_419_433_887_145_6];
const LOG_64: [f64; 8] = [
    0.666_666_666_666_666_5,
    0.400_000_000_000_009_4,
    0.285_714_285_707_644_5,
    0.222_222_224_005_477_57,
    0.181_817_947_008_978,
    0.153_862_905_346_589_92,
    0.132_674_185_964_748_83,
    0.131_007_213_835_013_9,
];

/// Natural logarithm. With `f = m - 1` and `s = f / (2 + f)`, `log m = f - f²/2 + s (f²/2 + s² R(s²))`.
fn log(b: &mut KernelBuilder, x: Value) -> Value {
    let ty = b.ty(x);
    let int = int_like(ty);
    let narrow = ty.lane_type() == F32;
    let (mantissa, first_normal, up, [hi, lo], shift) =
        if narrow { (23, f64::from(f32::MIN_POSITIVE), 24.0, LN2_32, SHIFT_32) } else { (52, f64::MIN_POSITIVE, 54.0, LN2_64, SHIFT_64) };
    let (first_normal, factor, zero) = (b.float_of(ty, first_normal), b.float_of(ty, f64::powf(2.0, up)), b.float_of(ty, 0.0));
    let subnormal = b.f.ins().fcmp(FloatCC::LessThan, x, first_normal);
    let scaled = b.f.ins().fmul(x, factor);
    let normal = b.choose(subnormal, scaled, x);
    let bits = b.bits(int, normal);
    // The exponent of the power of two next to the number: counted from √½.
    let root = if narrow { i64::from(0x3f35_04f3) } else { 0x3fe6_a09e_667f_3bcd };
    let root = b.int_of(int, root);
    let above = b.f.ins().isub(bits, root);
    let exponent = b.sar(above, mantissa);
    let whole = b.shl(exponent, mantissa);
    let m = b.f.ins().isub(bits, whole);
    let m = b.bits(ty, m);
    let shift_float = b.float_of(ty, shift);
    let shift_bits = if narrow { i64::from((shift as f32).to_bits()) } else { shift.to_bits() as i64 };
    let shift_bits = b.int_of(int, shift_bits);
    let e = b.f.ins().iadd(exponent, shift_bits);
    let e = b.bits(ty, e);
    let e = b.f.ins().fsub(e, shift_float);
    let up = b.float_of(ty, up);
    let correction = b.choose(subnormal, up, zero);
    let e = b.f.ins().fsub(e, correction);
    let (one, two, half) = (b.float_of(ty, 1.0), b.float_of(ty, 2.0), b.float_of(ty, 0.5));
    let f = b.f.ins().fsub(m, one);
    let d = b.f.ins().fadd(f, two);
    let s = b.f.ins().fdiv(f, d);
    let z = b.f.ins().fmul(s, s);
    let r = polynomial(b, z, if narrow { &LOG_32 } else { &LOG_64 });
    let square = b.f.ins().fmul(f, f);
    let square = b.f.ins().fmul(square, half);
    let r = b.fma(r, z, square);
    let lo = b.float_of(ty, lo);
    let low = b.f.ins().fmul(e, lo);
    let r = b.fma(s, r, low);
    let r = b.f.ins().fsub(square, r);
    let r = b.f.ins().fsub(r, f);
    let hi = b.float_of(ty, hi);
    let high = b.f.ins().fmul(e, hi);
    let y = b.f.ins().fsub(high, r);
    // 0 gives -∞, less NaN; infinity and NaN stay.
    let inf = b.float_of(ty, f64::INFINITY);
    let finite = b.f.ins().fcmp(FloatCC::LessThan, x, inf);
    let y = b.choose(finite, y, x);
    let outside = b.f.ins().fcmp(FloatCC::LessThanOrEqual, x, zero);
    let is_zero = b.f.ins().fcmp(FloatCC::Equal, x, zero);
    let (minus_inf, nan) = (b.float_of(ty, f64::NEG_INFINITY), b.float_of(ty, f64::NAN));
    let bad = b.choose(is_zero, minus_inf, nan);
    b.choose(outside, bad, y)
}

/// `log(u) + (x - (u - 1)) / u` with `u` the rounded `1 + x`.
fn log1p(b: &mut KernelBuilder, x: Value) -> Value {
    let (one, zero) = (like(b, x, 1.0), like(b, x, 0.0));
    let u = b.f.ins().fadd(x, one);
    let rounded = b.f.ins().fsub(u, one);
    let error = b.f.ins().fsub(x, rounded);
    let correction = b.f.ins().fdiv(error, u);
    let main = log(b, u);
    let y = b.f.ins().fadd(main, correction);
    let defined = b.f.ins().fcmp(FloatCC::Equal, correction, correction);
    let y = b.choose(defined, y, main);
    let is_zero = b.f.ins().fcmp(FloatCC::Equal, x, zero);
    b.choose(is_zero, x, y)
}

/// π/2 in three parts; the first two have 33 bits.
const HALF_PI: [f64; 3] = [1.570_796_326_734_125_6, 6.077_100_506_303_966e-11, 2.022_266_248_795_950_7e-21];
/// `(sin(r) - r) / r³` and `(cos(r) - 1 + r²/2) / r⁴` by `r²`, for `|r| <= π/4`.
const SIN: [f64; 7] = [
    -0.166_666_666_666_666_67,
    0.008_333_333_333_333_331,
    -0.000_198_412_698_412_650_17,
    2.755_731_921_930_192e-6,
    -2.505_210_621_952_189_4e-8,
    1.605_852_957_226_787_6e-10,
    -7.586_576_588_171_072e-13,
];
const COS: [f64; 7] = [
    0.041_666_666_666_666_67,
    -0.001_388_888_888_888_888_8,
    2.480_158_730_158_462e-5,
    -2.755_731_922_138_211_6e-7,
    2.087_675_578_389_404e-9,
    -1.147_045_974_967_560_6e-11,
    4.745_804_889_760_674e-14,
];

/// Up to here [`HALF_PI`] serves: products of its first two parts with the multiples of π/2 in between are exact.
const NEAR: f64 = 1_048_576.0;

/// 2/π in binary: the digits behind the point, after 54 zeros. The largest f64 needs all of them, the largest f32 five words.
const TWO_OVER_PI: [u64; 19] = [
    0x0000_0000_0000_028b,
    0xe60d_b939_1054_a7f0,
    0x9d5f_47d4_d377_036d,
    0x8a56_64f1_0e41_07f9,
    0x458e_af7a_ef15_86dc,
    0x91b8_e909_374b_8019,
    0x24bb_a827_4648_73f8,
    0x77ac_72c4_a69c_fba2,
    0x08d7_d4ba_ed12_13a6,
    0x71c0_9ad1_7df9_04e6,
    0x4758_e60d_4ce7_d272,
    0x117e_2ef7_e4a0_ec7f,
    0xe25f_ff78_1660_3fbc,
    0xbc46_2d68_29b4_7db4,
    0xd9fb_3c9f_2c26_dd3d,
    0x18fd_9a79_7fa8_b5d4,
    0x9eeb_1faf_97c5_ecf4,
    0x1ce7_de29_4a4b_a9af,
    0xed7e_c47e_3574_2158,
];

/// Splits f64 lanes into `n π/2 + r` with `|r| <= π/4`: returns an integer whose low two bits are those of `n`, and `r`,
/// whose error is below 3 ulp. Lanes far from zero take a branch of their own, and so do those that are nearly a multiple
/// of π/2, nearer than any f32 is.
fn reduce_by_half_pi(b: &mut KernelBuilder, x: Value, narrow: bool) -> (Value, Value) {
    let ty = b.ty(x);
    let (by, shift) = (b.float_of(ty, std::f64::consts::FRAC_2_PI), b.float_of(ty, SHIFT_64));
    let shifted = b.fma(x, by, shift);
    let n = b.f.ins().fsub(shifted, shift);
    let mut r = x;
    for part in HALF_PI {
        r = minus_product(b, r, n, part);
    }
    let quadrant = b.bits(int_like(ty), shifted);
    let (m, limit) = (b.f.ins().fabs(x), b.float_of(ty, NEAR));
    let mut far = b.f.ins().fcmp(FloatCC::GreaterThan, m, limit);
    if !narrow {
        // What the parts of π/2 lack, some 2^-101, is nothing to rests above 2^-48.
        let (close, one) = (b.float_of(ty, f64::powi(2.0, -48)), b.float_of(ty, 1.0));
        let distance = b.f.ins().fabs(r);
        let cancelled = b.f.ins().fcmp(FloatCC::LessThan, distance, close);
        let beyond = b.f.ins().fcmp(FloatCC::GreaterThan, m, one);
        let cancelled = b.f.ins().band(cancelled, beyond);
        far = b.f.ins().bor(far, cancelled);
    }
    far_from_zero(b, x, far, (quadrant, r), narrow)
}

/// Replaces `near`, an integer and a rest, where `far` says so.
fn far_from_zero(b: &mut KernelBuilder, x: Value, far: Value, near: (Value, Value), narrow: bool) -> (Value, Value) {
    let ty = b.ty(x);
    let (quadrant, rest) = (b.f.declare_var(int_like(ty)), b.f.declare_var(ty));
    b.f.def_var(quadrant, near.0);
    b.f.def_var(rest, near.1);
    let (slow, exit) = (b.f.create_block(), b.f.create_block());
    b.f.set_cold_block(slow);
    let any = if ty.is_vector() { b.f.ins().vany_true(far) } else { far };
    b.f.ins().brif(any, slow, &[], exit, &[]);
    b.f.seal_block(slow);
    b.f.switch_to_block(slow);
    let (n, r) = if ty.is_vector() {
        let lanes: Vec<(Value, Value)> = (0..2)
            .map(|l| {
                let x = b.lane(x, l);
                reduce_by_all_digits(b, x, narrow)
            })
            .collect();
        let pair = |b: &mut KernelBuilder, ty, [low, high]: [Value; 2]| {
            let both = b.f.ins().splat(ty, low);
            b.f.ins().insertlane(both, high, 1)
        };
        (pair(b, int_like(ty), [lanes[0].0, lanes[1].0]), pair(b, ty, [lanes[0].1, lanes[1].1]))
    } else {
        reduce_by_all_digits(b, x, narrow)
    };
    let (far_n, far_r) = (b.choose(far, n, near.0), b.choose(far, r, near.1));
    b.f.def_var(quadrant, far_n);
    b.f.def_var(rest, far_r);
    b.f.ins().jump(exit, &[]);
    b.f.seal_block(exit);
    b.f.switch_to_block(exit);
    (b.f.use_var(quadrant), b.f.use_var(rest))
}

/// [`reduce_by_half_pi`] of an f64 scalar of 1 or more (Payne and Hanek): the mantissa times those 192 digits of 2/π that the
/// product modulo 4 depends on. `r` has an error below 2 ulp; that of an infinity is NaN.
fn reduce_by_all_digits(b: &mut KernelBuilder, x: Value, narrow: bool) -> (Value, Value) {
    use cranelift_codegen::ir::condcodes::IntCC;
    let bits = b.bits(I64, x);
    let (fraction, implicit, field) = (b.int((1 << 52) - 1), b.int(1 << 52), b.int(0x7ff));
    let m = b.f.ins().band(bits, fraction);
    let m = b.f.ins().bor(m, implicit);
    // x is m * 2^(exponent - 1075). Digits of weights from 2^(1077 - exponent) give multiples of 4: 54 zeros and what is behind.
    let exponent = b.shr(bits, 52);
    let exponent = b.f.ins().band(exponent, field);
    let skipped = b.f.ins().iadd_imm_s(exponent, 54 - 1077);
    let index = b.shr(skipped, 6);
    let digits = if narrow { &TWO_OVER_PI[..5] } else { &TWO_OVER_PI[..] };
    let mut words: Vec<Value> = digits.iter().map(|&w| b.int(w as i64)).collect();
    for bit in (0..if narrow { 1 } else { 4 }).rev() {
        let step = 1 << bit;
        let set = b.int(step as i64);
        let set = b.f.ins().band(index, set);
        let moved = |b: &mut KernelBuilder, j: usize| words.get(j + step).map_or(words[j], |&w| b.f.ins().select(set, w, words[j]));
        words = (0..3 + step).map(|j| moved(b, j)).collect();
    }
    let left = b.int(63);
    let left = b.f.ins().isub(left, skipped);
    let window: Vec<Value> = words
        .windows(2)
        .map(|w| {
            let high = b.f.ins().ishl(w[0], skipped);
            let low = b.shr(w[1], 1);
            let low = b.f.ins().ushr(low, left);
            b.f.ins().bor(high, low)
        })
        .collect();
    // The product modulo 2^128, of which the highest two bits are the quadrant.
    let carry = b.f.ins().umulhi(m, window[2]);
    let low = b.f.ins().imul(m, window[1]);
    let low = b.f.ins().iadd(low, carry);
    let carried = b.f.ins().icmp(IntCC::UnsignedLessThan, low, carry);
    let carried = b.f.ins().uextend(I64, carried);
    let high = b.f.ins().imul(m, window[0]);
    let middle = b.f.ins().umulhi(m, window[1]);
    let high = b.f.ins().iadd(high, middle);
    let high = b.f.ins().iadd(high, carried);
    let half = b.int(1 << 61);
    let n = b.f.ins().iadd(high, half);
    let n = b.shr(n, 62);
    let whole = b.shl(n, 62);
    let high = b.f.ins().isub(high, whole);
    // The magnitude of the rest, in 126 digits behind the point, and its sign.
    let negative = b.sar(high, 63);
    let (high, low) = (b.f.ins().bxor(high, negative), b.f.ins().bxor(low, negative));
    let (high, low) = (b.f.ins().fcvt_from_sint(F64, high), b.f.ins().fcvt_from_uint(F64, low));
    let (half_pi, half_pi_low) = (std::f64::consts::FRAC_PI_2 * f64::powi(2.0, -62), std::f64::consts::FRAC_PI_2 * f64::powi(2.0, -126));
    let (half_pi, half_pi_low) = (b.f.ins().f64const(half_pi), b.f.ins().f64const(half_pi_low));
    let (high, low) = (b.f.ins().fmul(high, half_pi), b.f.ins().fmul(low, half_pi_low));
    let r = b.f.ins().fadd(high, low);
    // Both are those of |x|.
    let sign = b.sar(bits, 63);
    let n = b.f.ins().bxor(n, sign);
    let n = b.f.ins().isub(n, sign);
    let sign = b.f.ins().bxor(sign, negative);
    let sign = b.bits(F64, sign);
    let r = copysign(b, r, sign);
    let undefined = b.f.ins().fsub(x, x);
    (n, b.f.ins().fadd(r, undefined))
}

/// Sine and cosine of f64 lanes, which are `narrow` if they were f32.
fn trigonometric(b: &mut KernelBuilder, x: Value, narrow: bool) -> (Value, Value) {
    let ty = b.ty(x);
    let int = int_like(ty);
    let (quadrant, r) = reduce_by_half_pi(b, x, narrow);
    let z = b.f.ins().fmul(r, r);
    let s = polynomial(b, z, &SIN);
    let cube = b.f.ins().fmul(z, r);
    let s = b.fma(s, cube, r);
    let c = polynomial(b, z, &COS);
    let fourth = b.f.ins().fmul(z, z);
    let (one, minus_half) = (b.float_of(ty, 1.0), b.float_of(ty, -0.5));
    let c0 = b.fma(z, minus_half, one);
    let c = b.fma(c, fourth, c0);
    // Odd quadrants swap the two; the second bit of the quadrant negates, for the cosine of the next one.
    let odd = b.shl(quadrant, 63);
    let zero = b.int_of(int, 0);
    let odd = b.f.ins().icmp(cranelift_codegen::ir::condcodes::IntCC::NotEqual, odd, zero);
    let one = b.int_of(int, 1);
    let next = b.f.ins().iadd(quadrant, one);
    let signed = |b: &mut KernelBuilder, y: Value, quadrant: Value| {
        let sign = b.shr(quadrant, 1);
        let sign = b.shl(sign, 63);
        let y = b.bits(int, y);
        let y = b.f.ins().bxor(y, sign);
        b.bits(ty, y)
    };
    let (sin, cos) = (b.choose(odd, c, s), b.choose(odd, s, c));
    let (sin, cos) = (signed(b, sin, quadrant), signed(b, cos, next));
    let zero = b.float_of(ty, 0.0);
    let is_zero = b.f.ins().fcmp(FloatCC::Equal, x, zero);
    (b.choose(is_zero, x, sin), cos)
}

/// `(atan(t) - t) / t³` by `t²`, for `|t| <= tan(π/8)`.
const ATAN: [f64; 12] = [
    -0.333_333_333_333_333_3,
    0.199_999_999_999_998_03,
    -0.142_857_142_856_593_27,
    0.111_111_111_051_067_05,
    -0.090_909_087_510_766_36,
    0.076_922_963_044_744_7,
    -0.066_664_236_280_692_58,
    0.058_789_145_444_006_22,
    -0.052_303_478_730_160_74,
    0.045_511_081_263_251_72,
    -0.034_558_092_551_413_796,
    0.016_271_944_751_624_06,
];

/// Arc tangent of f64 lanes: rotated by π/2 or π/4 into `|t| <= tan(π/8)`.
fn atan(b: &mut KernelBuilder, x: Value) -> Value {
    use std::f64::consts::{FRAC_PI_2, FRAC_PI_4};
    let ty = b.ty(x);
    let a = b.f.ins().fabs(x);
    let (low, high) = (b.float_of(ty, 0.414_213_562_373_095_03), b.float_of(ty, 2.414_213_562_373_095));
    let (zero, one, minus_one) = (b.float_of(ty, 0.0), b.float_of(ty, 1.0), b.float_of(ty, -1.0));
    let (middle, large) = (b.f.ins().fcmp(FloatCC::LessThan, low, a), b.f.ins().fcmp(FloatCC::LessThan, high, a));
    let (less, more) = (b.f.ins().fsub(a, one), b.f.ins().fadd(a, one));
    let numerator = b.choose(middle, less, a);
    let numerator = b.choose(large, minus_one, numerator);
    let denominator = b.choose(middle, more, one);
    let denominator = b.choose(large, a, denominator);
    let t = b.f.ins().fdiv(numerator, denominator);
    let (quarter, half) = (b.float_of(ty, FRAC_PI_4), b.float_of(ty, FRAC_PI_2));
    let base = b.choose(middle, quarter, zero);
    let base = b.choose(large, half, base);
    // What π/4 and π/2 lack.
    let (quarter, half) = (b.float_of(ty, 3.061_616_997_868_383e-17), b.float_of(ty, 6.123_233_995_736_766e-17));
    let rest = b.choose(middle, quarter, zero);
    let rest = b.choose(large, half, rest);
    let z = b.f.ins().fmul(t, t);
    let p = polynomial(b, z, &ATAN);
    let cube = b.f.ins().fmul(z, t);
    let p = b.fma(p, cube, rest);
    let y = b.f.ins().fadd(t, p);
    let y = b.f.ins().fadd(base, y);
    copysign(b, y, x)
}

/// `(tanh(x) - x) / x³` by `x²`, for `|x| < 0.6`.
pub const TANH_32: [f64; 5] =
    [-0.333_333_303_327_315_5, 0.133_329_153_669_874_53, -0.053_873_948_848_643_334, 0.021_110_959_049_514_79, -0.006_269_119_719_649_73];

/// Hyperbolic tangent of f32 lanes: a polynomial near 0, `1 - 2 / (e^2x + 1)` elsewhere.
fn tanh32(b: &mut KernelBuilder, x: Value) -> Value {
    let a = b.f.ins().fabs(x);
    let z = b.f.ins().fmul(x, x);
    let p = polynomial(b, z, &TANH_32);
    let cube = b.f.ins().fmul(z, a);
    let near = b.fma(p, cube, a);
    let bounded = bounded(b, a, None, Some(10.0));
    let twice = b.f.ins().fadd(bounded, bounded);
    let e = exp32_normal(b, twice);
    let (one, two) = (like(b, x, 1.0), like(b, x, 2.0));
    let d = b.f.ins().fadd(e, one);
    let q = b.f.ins().fdiv(two, d);
    let far = b.f.ins().fsub(one, q);
    let limit = like(b, x, 0.6);
    let is_near = b.f.ins().fcmp(FloatCC::LessThan, a, limit);
    let y = b.choose(is_near, near, far);
    copysign(b, y, x)
}

/// `expm1(2x) / (expm1(2x) + 2)`.
fn tanh64(b: &mut KernelBuilder, x: Value) -> Value {
    let a = b.f.ins().fabs(x);
    let a = bounded(b, a, None, Some(22.0));
    let twice = b.f.ins().fadd(a, a);
    let e = expm1(b, twice);
    let two = like(b, x, 2.0);
    let d = b.f.ins().fadd(e, two);
    let y = b.f.ins().fdiv(e, d);
    copysign(b, y, x)
}

/// `(erf(x) - x) / x` by `x²`, for `|x| < 0.9`.
pub const ERF_32: [f64; 6] = [
    0.128_379_154_727_231_07,
    -0.376_125_288_047_536_85,
    0.112_821_940_932_991_78,
    -0.026_780_719_128_523_32,
    0.005_014_484_151_150_446,
    -0.000_610_268_703_676_404_2,
];
/// `-log2(erfc(x))` for `0.9 <= x <= 3.93`, as good as `erf` needs it.
pub const ERFC_32: [f64; 7] = [
    0.000_256_026_620_757_145_36,
    1.626_998_884_016_740_4,
    0.919_082_637_268_518_6,
    0.150_094_455_338_589_06,
    -0.032_139_174_883_998_21,
    0.004_408_343_038_055_595_5,
    -0.000_284_476_486_249_014_34,
];
/// `2^f` for `|f| <= 1/2`.
pub const EXP2_32: [f64; 6] = [
    1.000_000_075_454_897_2,
    0.693_147_188_026_228_8,
    0.240_221_074_853_083_4,
    0.055_503_571_142_190_78,
    0.009_676_031_918_322_054,
    0.001_339_086_336_467_123_4,
];

/// Error function of f32 lanes: a polynomial near 0, `1 - 2^-h(x)` elsewhere.
fn erf32(b: &mut KernelBuilder, x: Value) -> Value {
    let ty = b.ty(x);
    let a = b.f.ins().fabs(x);
    let z = b.f.ins().fmul(x, x);
    let p = polynomial(b, z, &ERF_32);
    let near = b.fma(p, a, a);
    let bounded = bounded(b, a, None, Some(3.93));
    let minus_h: Vec<f64> = ERFC_32.iter().map(|c| -c).collect();
    let h = polynomial(b, bounded, &minus_h);
    let shift = like(b, x, SHIFT_32 + 127.0);
    let shifted = b.f.ins().fadd(h, shift);
    let n = b.f.ins().fsub(shifted, shift);
    let f = b.f.ins().fsub(h, n);
    let e = polynomial(b, f, &EXP2_32);
    let n = b.bits(int_like(ty), shifted);
    let power = b.shl(n, 23);
    let power = b.bits(ty, power);
    let (one, minus_one) = (like(b, x, 1.0), like(b, x, -1.0));
    let power = b.f.ins().fmul(power, minus_one);
    let far = b.fma(e, power, one);
    let limit = like(b, x, 0.9);
    let is_near = b.f.ins().fcmp(FloatCC::LessThan, a, limit);
    let y = b.choose(is_near, near, far);
    copysign(b, y, x)
}

/// `(erf(x) - x) / x` by `x²`, for `|x| < 1`.
const ERF_64: [f64; 14] = [
    0.128_379_167_095_512_57,
    -0.376_126_389_031_837_52,
    0.112_837_916_709_551_2,
    -0.026_866_170_645_129_84,
    0.005_223_977_625_423_298,
    -0.000_854_832_702_193_483,
    0.000_120_553_329_028_887_35,
    -1.492_564_756_751_933_2e-5,
    1.646_204_544_146_841_9e-6,
    -1.636_464_215_816_761_5e-7,
    1.479_240_120_940_481_3e-8,
    -1.216_456_005_728_345e-9,
    8.709_045_129_053_093e-11,
    -4.230_945_824_295_338e-12,
];
/// `erfc(x) e^(x²)` by `48/5 / (x + 2) - 11/5`, for `1 <= x <= 6`.
const ERFC_64: [f64; 16] = [
    0.221_429_540_229_931_84,
    0.161_893_568_041_024_98,
    0.038_560_570_425_178_75,
    0.005_588_816_281_840_148,
    0.000_197_139_177_805_045_28,
    -8.079_220_427_446_308e-5,
    -7.340_518_554_538_13e-6,
    1.979_561_911_794_838e-6,
    1.635_017_933_188_847_5e-7,
    -7.005_356_150_432_76e-8,
    -5.937_642_934_649_013e-10,
    2.624_803_077_179_173_3e-9,
    -2.626_041_744_982_466_8e-10,
    -7.455_104_496_206_31e-11,
    1.838_675_340_599_342_2e-11,
    4.413_385_032_946_698_4e-13,
];

fn erf64(b: &mut KernelBuilder, x: Value) -> Value {
    let a = b.f.ins().fabs(x);
    let z = b.f.ins().fmul(x, x);
    let p = polynomial(b, z, &ERF_64);
    let near = b.fma(p, a, a);
    let bounded = bounded(b, a, None, Some(6.0));
    let (one, two) = (like(b, x, 1.0), like(b, x, 2.0));
    let d = b.f.ins().fadd(bounded, two);
    let (factor, offset) = (like(b, x, 9.6), like(b, x, -2.2));
    let v = b.f.ins().fdiv(factor, d);
    let v = b.f.ins().fadd(v, offset);
    let g = polynomial(b, v, &ERFC_64);
    let square = b.f.ins().fmul(bounded, bounded);
    let minus = b.f.ins().fneg(square);
    let e = exp64(b, minus);
    let t = b.f.ins().fmul(g, e);
    let far = b.f.ins().fsub(one, t);
    let is_near = b.f.ins().fcmp(FloatCC::LessThan, a, one);
    let y = b.choose(is_near, near, far);
    copysign(b, y, x)
}

/// `x ^ y` of f64 lanes: `e^(y log |x|)` with the special cases of C99.
pub fn pow(b: &mut KernelBuilder, x: Value, y: Value) -> Value {
    let ty = b.ty(x);
    let int = int_like(ty);
    let (zero, one, half) = (b.float_of(ty, 0.0), b.float_of(ty, 1.0), b.float_of(ty, 0.5));
    let a = b.f.ins().fabs(x);
    let l = log(b, a);
    let p = b.f.ins().fmul(y, l);
    let magnitude = exp64(b, p);
    // Odd exponents keep the sign of the base; other integral ones lose it.
    let whole = round(b, Prim::Trunc, y);
    let halved = b.f.ins().fmul(y, half);
    let halved_whole = round(b, Prim::Trunc, halved);
    let is_whole = b.f.ins().fcmp(FloatCC::Equal, whole, y);
    let is_even = b.f.ins().fcmp(FloatCC::Equal, halved_whole, halved);
    let kept = b.bits(int, x);
    let sign_bit = b.int_of(int, i64::MIN);
    let sign = b.f.ins().band(kept, sign_bit);
    let none = b.int_of(int, 0);
    let sign = b.choose(is_even, none, sign);
    let sign = b.choose(is_whole, sign, none);
    let bits = b.bits(int, magnitude);
    let bits = b.f.ins().bor(bits, sign);
    let signed = b.bits(ty, bits);
    // A finite negative base has no other powers.
    let minus_inf = b.float_of(ty, f64::NEG_INFINITY);
    let nan = b.float_of(ty, f64::NAN);
    let negative = b.f.ins().fcmp(FloatCC::LessThan, x, zero);
    let finite = b.f.ins().fcmp(FloatCC::GreaterThan, x, minus_inf);
    let undefined = b.f.ins().band(negative, finite);
    let broken = b.f.ins().fcmp(FloatCC::NotEqual, whole, y);
    let undefined = b.f.ins().band(undefined, broken);
    let r = b.choose(undefined, nan, signed);
    // Any power of 1, the power 0 of anything, and -1 to ±∞ are 1.
    let base_is_unit = b.f.ins().fcmp(FloatCC::Equal, a, one);
    let base_is_one = b.f.ins().fcmp(FloatCC::Equal, x, one);
    let y_abs = b.f.ins().fabs(y);
    let inf = b.float_of(ty, f64::INFINITY);
    let endless = b.f.ins().fcmp(FloatCC::Equal, y_abs, inf);
    let unit_to_inf = b.f.ins().band(base_is_unit, endless);
    let exponent_is_zero = b.f.ins().fcmp(FloatCC::Equal, y, zero);
    let is_one = b.f.ins().bor(base_is_one, exponent_is_zero);
    let is_one = b.f.ins().bor(is_one, unit_to_inf);
    b.choose(is_one, one, r)
}

/// The powers that [`power`] computes.
pub const POWERS: [f64; 6] = [-1.0, -0.5, 0.5, 1.0, 2.0, 3.0];

/// `x ^ power` for one of [`POWERS`], within 1.5 ulp.
pub fn power(b: &mut KernelBuilder, x: Value, power: f64) -> Value {
    if power == 1.0 {
        return x;
    }
    if power == -1.0 {
        let one = like(b, x, 1.0);
        return b.f.ins().fdiv(one, x);
    }
    if power == -0.5 {
        let (root, one) = (self::power(b, x, 0.5), like(b, x, 1.0));
        return b.f.ins().fdiv(one, root);
    }
    if power == 0.5 {
        // The powers of -0 and -∞ are 0 and ∞.
        let (zero, minus_inf, inf) = (like(b, x, 0.0), like(b, x, f64::NEG_INFINITY), like(b, x, f64::INFINITY));
        let positive = b.f.ins().fadd(x, zero);
        let root = b.f.ins().sqrt(positive);
        let endless = b.f.ins().fcmp(FloatCC::Equal, x, minus_inf);
        return b.choose(endless, inf, root);
    }
    let square = b.f.ins().fmul(x, x);
    if power == 2.0 { square } else { b.f.ins().fmul(square, x) }
}

/// The exact remainder of f64 scalars, with the sign of `x`, or of `y` if `floor`: long division on the
/// mantissas, eleven binary digits at a time.
pub fn remainder(b: &mut KernelBuilder, x: Value, y: Value, floor: bool) -> Value {
    use cranelift_codegen::ir::condcodes::IntCC;
    let magnitude_mask = b.int(i64::MAX);
    let (xb, yb) = (b.bits(I64, x), b.bits(I64, y));
    let xa = b.f.ins().band(xb, magnitude_mask);
    let ya = b.f.ins().band(yb, magnitude_mask);
    let (zero, one) = (b.int(0), b.int(1));
    // Mantissa and exponent; those of subnormal numbers have exponent 1 and no implicit bit.
    let parts = |b: &mut KernelBuilder, bits: Value| {
        let field = b.shr(bits, 52);
        let normal = b.f.ins().icmp(IntCC::NotEqual, field, zero);
        let low = b.int((1 << 52) - 1);
        let low = b.f.ins().band(bits, low);
        let implicit = b.int(1 << 52);
        let with = b.f.ins().bor(low, implicit);
        (b.f.ins().select(normal, with, low), b.f.ins().select(normal, field, one))
    };
    let (mx, ex) = parts(b, xa);
    let (my, ey) = parts(b, ya);
    let is_zero = b.f.ins().icmp(IntCC::Equal, my, zero);
    let divisor = b.f.ins().select(is_zero, one, my);
    let distance = b.f.ins().isub(ex, ey);
    // The rest of `mx * 2^distance`, for distances from 0.
    let (rest, left) = (b.f.declare_var(I64), b.f.declare_var(I64));
    let first = b.f.ins().urem(mx, divisor);
    b.f.def_var(rest, first);
    b.f.def_var(left, distance);
    let (head, body, exit) = (b.f.create_block(), b.f.create_block(), b.f.create_block());
    b.f.ins().jump(head, &[]);
    b.f.switch_to_block(head);
    let d = b.f.use_var(left);
    let more = b.f.ins().icmp_imm_s(IntCC::SignedGreaterThan, d, 0);
    b.f.ins().brif(more, body, &[], exit, &[]);
    b.f.seal_block(body);
    b.f.switch_to_block(body);
    let r = b.f.use_var(rest);
    let most = b.int(11);
    let digits = b.f.ins().smin(d, most);
    let r = b.f.ins().ishl(r, digits);
    let r = b.f.ins().urem(r, divisor);
    b.f.def_var(rest, r);
    let d = b.f.ins().isub(d, digits);
    b.f.def_var(left, d);
    b.f.ins().jump(head, &[]);
    b.f.seal_block(head);
    b.f.seal_block(exit);
    b.f.switch_to_block(exit);
    // `rest * 2^(ey - 1075)`: exact, in two factors since the power may be subnormal.
    let r = b.f.use_var(rest);
    let r = b.f.ins().fcvt_from_uint(F64, r);
    let unit = b.f.ins().f64const(f64::powi(2.0, -52));
    let r = b.f.ins().fmul(r, unit);
    let power = |b: &mut KernelBuilder, e: Value| {
        let bits = b.shl(e, 52);
        b.bits(F64, bits)
    };
    let half = b.f.ins().sshr(ey, one);
    let other = b.f.ins().isub(ey, half);
    // The exponents together are `ey - 1023`.
    let first = b.f.ins().iadd_imm_s(half, 512);
    let second = b.f.ins().iadd_imm_s(other, 511);
    let (first, second) = (power(b, first), power(b, second));
    let r = b.f.ins().fmul(r, first);
    let r = b.f.ins().fmul(r, second);
    let r = copysign(b, r, x);
    let (xa, ya) = (b.f.ins().fabs(x), b.f.ins().fabs(y));
    let smaller = b.f.ins().fcmp(FloatCC::LessThan, xa, ya);
    let r = b.f.ins().select(smaller, x, r);
    // NaN for a zero divisor, an infinite dividend, or a NaN.
    let (inf, zero, nan) = (b.f.ins().f64const(f64::INFINITY), b.f.ins().f64const(0.0), b.f.ins().f64const(f64::NAN));
    let finite = b.f.ins().fcmp(FloatCC::LessThan, xa, inf);
    let divisible = b.f.ins().fcmp(FloatCC::GreaterThan, ya, zero);
    let defined = b.f.ins().band(finite, divisible);
    let r = b.f.ins().select(defined, r, nan);
    if !floor {
        return r;
    }
    let sum = b.f.ins().fadd(r, y);
    let some = b.f.ins().fcmp(FloatCC::NotEqual, r, zero);
    let (r_negative, y_negative) = (b.f.ins().fcmp(FloatCC::LessThan, r, zero), b.f.ins().fcmp(FloatCC::LessThan, y, zero));
    let differ = b.f.ins().bxor(r_negative, y_negative);
    let off = b.f.ins().band(some, differ);
    b.f.ins().select(off, sum, r)
}
