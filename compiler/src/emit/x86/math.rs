//! Elementary functions of f32 lanes: the methods and polynomials of the portable emitter
//! ([`clif::math`](crate::emit::clif::math)), with its error bounds, on wide vectors.

use super::asm::{Asm, V};
use super::isa::Op;
use crate::emit::clif::math::{ERF_32, ERFC_32, EXP_32, EXP2_32, LN2_32, SHIFT_32, TANH_32};

/// Predicates of `vcmpps`: ordered and quiet, but [`UNORDERED`] and [`NOT_EQUAL`].
pub const EQUAL: u8 = 0x00;
/// Less, quiet.
pub const LESS: u8 = 0x11;
/// Less or equal, quiet.
pub const LESS_EQUAL: u8 = 0x12;
/// One is NaN.
pub const UNORDERED: u8 = 0x03;
/// Not equal, or one is NaN.
pub const NOT_EQUAL: u8 = 0x04;

/// `|x|`.
pub fn abs(a: &mut Asm, x: V) -> V {
    a.binary(Op::And, x, i32::MAX)
}

/// `-x`.
pub fn neg(a: &mut Asm, x: V) -> V {
    a.binary(Op::Xor, x, i32::MIN)
}

/// The magnitude of one number with the sign of another.
pub fn copysign(a: &mut Asm, magnitude: V, sign: V) -> V {
    let s = a.binary(Op::And, sign, i32::MIN);
    a.binary(Op::Or, magnitude, s)
}

/// `Σ c[i] x^i`.
pub fn polynomial(a: &mut Asm, x: V, c: &[f64]) -> V {
    let (last, rest) = c.split_last().expect("a coefficient");
    let mut y = a.vector_of(*last as f32);
    for &c in rest.iter().rev() {
        y = a.fma(y, x, c as f32);
    }
    y
}

/// Splits `x` into `n log 2 + r`: returns `1.5 * 2^23 + bias + n` and `r`.
fn reduce_by_log2(a: &mut Asm, x: V, bias: f64) -> (V, V) {
    let shift = (SHIFT_32 + bias) as f32;
    let log2_e = a.vector_of(std::f32::consts::LOG2_E);
    let shifted = a.fma(log2_e, x, shift);
    let n = a.binary(Op::SubPs, shifted, shift);
    let r = a.fma(n, -LN2_32[0] as f32, x);
    (shifted, a.fma(n, -LN2_32[1] as f32, r))
}

/// `e^r - 1` for `|r| <= log(2) / 2`.
fn exp_rest(a: &mut Asm, r: V) -> V {
    let q = polynomial(a, r, &EXP_32);
    let square = a.binary(Op::MulPs, r, r);
    a.fma(q, square, r)
}

/// `e^x`.
pub fn exp(a: &mut Asm, x: V) -> V {
    // The operand that may be NaN comes last: it is the result then.
    let (low, high) = (a.vector_of(-104.0), a.vector_of(89.0));
    let x = a.binary(Op::MinPs, high, x);
    let x = a.binary(Op::MaxPs, low, x);
    let (shifted, r) = reduce_by_log2(a, x, 254.0);
    let rest = exp_rest(a, r);
    let y = a.binary(Op::AddPs, rest, 1.0);
    // 2^n in two factors, of which neither leaves the normal range.
    let first = a.unary_imm(Op::ShrD, shifted, 1);
    let second = a.binary(Op::SubD, shifted, first);
    let (first, second) = (a.unary_imm(Op::ShlD, first, 23), a.unary_imm(Op::ShlD, second, 23));
    let y = a.binary(Op::MulPs, y, first);
    a.binary(Op::MulPs, y, second)
}

/// `e^x` where its exponent stays in `[-126, 126]`.
pub fn exp_normal(a: &mut Asm, x: V) -> V {
    let (shifted, r) = reduce_by_log2(a, x, 127.0);
    let rest = exp_rest(a, r);
    let power = a.unary_imm(Op::ShlD, shifted, 23);
    a.fma(rest, power, power)
}

/// `e^x` for `x <= 0`; 0 where it is not a normal number. The relative error grows with `-x`, by 2^-24 for
/// each unit, so the error next to `e^0` stays below 2e-7.
pub fn exp_weight(a: &mut Asm, x: V) -> V {
    // At the bound the power of two is 2^-127, whose bits are those of 0. A NaN comes last and stays.
    let low = a.vector_of(-88.0);
    let x = a.binary(Op::MaxPs, low, x);
    let shift = a.vector_of((SHIFT_32 + 127.0) as f32);
    let log2_e = a.vector_of(std::f32::consts::LOG2_E);
    let shifted = a.fma(log2_e, x, shift);
    let minus_n = a.binary(Op::SubPs, shift, shifted);
    let rest = a.fma(log2_e, x, minus_n);
    let y = polynomial(a, rest, &EXP2_32);
    let power = a.unary_imm(Op::ShlD, shifted, 23);
    a.binary(Op::MulPs, y, power)
}

/// `2^x` as the product of a number around 1 and a power of 2, for `-127 <= x < 128`: at the lower bound the power is 0.
pub fn exp2(a: &mut Asm, x: V) -> (V, V) {
    exp2_by(a, x, &EXP2_32)
}

/// [`exp2`] with an error of the number below 7.5e-5.
pub fn exp2_coarse(a: &mut Asm, x: V) -> (V, V) {
    exp2_by(a, x, &EXP2_COARSE)
}

fn exp2_by(a: &mut Asm, x: V, fit: &[f64]) -> (V, V) {
    let shift = (SHIFT_32 + 127.0) as f32;
    let shifted = a.binary(Op::AddPs, x, shift);
    let n = a.binary(Op::SubPs, shifted, shift);
    let rest = a.binary(Op::SubPs, x, n);
    let y = polynomial(a, rest, fit);
    (y, a.unary_imm(Op::ShlD, shifted, 23))
}

/// `2^x` on [-0.5, 0.5] with a relative error below 7.5e-5: least squares, weighted until the error is even.
const EXP2_COARSE: [f64; 4] = [0.999_928_073_3, 0.693_260_985_7, 0.242_611_125_4, 0.055_171_669_5];

/// What [`exp_step`] adds: a step is the difference to it.
pub const STEP_SHIFT: f32 = SHIFT_32 as f32;

/// `steps * e^x` for `x <= 0`, rounded to a whole number (of a number up to 1/10000 greater or less), plus
/// [`STEP_SHIFT`], so that the lowest bits are those of the number; `steps` is below 2^9.
pub fn exp_step(a: &mut Asm, x: V, steps: f32) -> V {
    let log2_e = a.vector_of(std::f32::consts::LOG2_E);
    let x = a.fma(log2_e, x, steps.log2());
    // Below the bound it is 0; a NaN comes last and stays.
    let low = a.vector_of(-20.0);
    let x = a.binary(Op::MaxPs, low, x);
    let shifted = a.binary(Op::AddPs, x, STEP_SHIFT);
    let n = a.binary(Op::SubPs, shifted, STEP_SHIFT);
    let rest = a.binary(Op::SubPs, x, n);
    let y = polynomial(a, rest, &EXP2_COARSE);
    let power = a.unary_imm(Op::ShlD, shifted, 23);
    let y = a.binary(Op::AddD, y, power);
    a.binary(Op::AddPs, y, STEP_SHIFT)
}

/// Hyperbolic tangent.
pub fn tanh(a: &mut Asm, x: V) -> V {
    let m = abs(a, x);
    let z = a.binary(Op::MulPs, x, x);
    let p = polynomial(a, z, &TANH_32);
    let cube = a.binary(Op::MulPs, z, m);
    let near = a.fma(p, cube, m);
    let ten = a.vector_of(10.0);
    let bounded = a.binary(Op::MinPs, ten, m);
    let twice = a.binary(Op::AddPs, bounded, bounded);
    let e = exp_normal(a, twice);
    let d = a.binary(Op::AddPs, e, 1.0);
    let two = a.vector_of(2.0);
    let q = a.binary(Op::DivPs, two, d);
    let one = a.vector_of(1.0);
    let far = a.binary(Op::SubPs, one, q);
    let is_near = a.compare_ps(LESS, m, 0.6);
    let y = a.select(is_near, near, far);
    copysign(a, y, x)
}

/// Error function: by a polynomial near 0 and `1 - 2^-h(x)` elsewhere.
pub fn erf(a: &mut Asm, x: V) -> V {
    let m = abs(a, x);
    let z = a.binary(Op::MulPs, x, x);
    let p = polynomial(a, z, &ERF_32);
    let near = a.fma(p, m, m);
    let bound = a.vector_of(3.93);
    let bounded = a.binary(Op::MinPs, bound, m);
    let minus_h: Vec<f64> = ERFC_32.iter().map(|c| -c).collect();
    let h = polynomial(a, bounded, &minus_h);
    let (e, power) = exp2(a, h);
    let power = neg(a, power);
    let far = a.fma(e, power, 1.0);
    let is_near = a.compare_ps(LESS, m, 0.9);
    let y = a.select(is_near, near, far);
    copysign(a, y, x)
}
