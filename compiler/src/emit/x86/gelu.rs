//! GELU as a whole: found among the expressions of a kernel, and computed for less than its parts.
//!
//! Neither method is exact where the definition in f32 is (`x/2 * (1 + erf(x/√2))` itself is off by
//! `1.1e-7 |x|` with a perfect `erf`); both are within `1.9e-7 |x|` of the real function. For codes of 8 bits both are within
//! a 30th of a step: within `8e-5 |x|`, and within `8e-5` where it is negative.

use super::asm::{Asm, Local, Src, V};
use super::expr::Exprs;
use super::floats::is_float;
use super::isa::Op;
use super::math::{LESS, abs, copysign, exp_normal, exp2, exp2_coarse, polynomial};
use crate::emit::clif::math::SHIFT_32;
use crate::kernel::nest::{Expr, ExprId};
use std::f64::consts::FRAC_1_SQRT_2;
use tfc_ir::scalar::Prim;
use tfc_ir::types::Elem;

/// A product that is GELU.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Gelu {
    /// Its operand.
    pub x: ExprId,
    /// In the approximation by tanh, the operand of that.
    pub tanh: Option<ExprId>,
}

/// Whether a product is GELU: the factors `x`, `1/2`, and `1 + erf(x/√2)` or `1 + tanh(u)`, in any order.
pub fn find(exprs: &Exprs, product: ExprId) -> Option<Gelu> {
    factors(exprs, product, None).into_iter().find_map(|gate| {
        let inner = gate_of(exprs, gate)?;
        // Minus infinity is common where numbers are rounded to 16 bits; `gelu_tanh` does not make it the NaN that the parts give.
        if matches!(inner, Inner::Tanh(_)) && exprs[product].1 != Elem::F32 {
            return None;
        }
        let (operand, tanh) = match inner {
            Inner::Erf(x) => (Some(x), None),
            Inner::Tanh(u) => (None, Some(u)),
        };
        let mut rest = factors(exprs, product, operand);
        rest.swap_remove(rest.iter().position(|&e| e == gate)?);
        rest.swap_remove(rest.iter().position(|&e| is_number(exprs, e, 0.5))?);
        match rest[..] {
            [x] if operand.is_none_or(|y| x == y) => Some(Gelu { x, tanh }),
            _ => None,
        }
    })
}

/// What `1 +` is applied to.
#[derive(Clone, Copy)]
enum Inner {
    /// `erf(x/√2)` of this `x`.
    Erf(ExprId),
    /// `tanh(u)` of this `u`.
    Tanh(ExprId),
}

fn is_number(exprs: &Exprs, e: ExprId, x: f64) -> bool {
    matches!(exprs[e].0, Expr::Float(bits) if f64::from_bits(bits) as f32 == x as f32)
}

/// The factors of a product that are not products, and `whole` as a whole.
fn factors(exprs: &Exprs, e: ExprId, whole: Option<ExprId>) -> Vec<ExprId> {
    match &exprs[e] {
        (Expr::Prim(Prim::Mul, args), elem) if is_float(*elem) && Some(e) != whole => {
            args.iter().flat_map(|&a| factors(exprs, a, whole)).collect()
        }
        _ => vec![e],
    }
}

/// The other operand, where one is the number.
fn other(exprs: &Exprs, args: &[ExprId], x: f64) -> Option<ExprId> {
    match *args {
        [a, b] if is_number(exprs, b, x) => Some(a),
        [a, b] if is_number(exprs, a, x) => Some(b),
        _ => None,
    }
}

fn gate_of(exprs: &Exprs, e: ExprId) -> Option<Inner> {
    let (Expr::Prim(Prim::Add, args), elem) = &exprs[e] else { return None };
    if !is_float(*elem) {
        return None;
    }
    match &exprs[other(exprs, args, 1.0)?].0 {
        Expr::Prim(Prim::Tanh, args) => Some(Inner::Tanh(args[0])),
        Expr::Prim(Prim::Erf, args) => match &exprs[args[0]].0 {
            Expr::Prim(Prim::Mul, args) => Some(Inner::Erf(other(exprs, args, FRAC_1_SQRT_2)?)),
            _ => None,
        },
        _ => None,
    }
}

/// `x/2 * (1 + erf(x/√2))`, which is `x Φ(x)` with the distribution function `Φ` of the normal distribution.
pub fn gelu(a: &mut Asm, x: V) -> V {
    if a.isa.evex() { by_table(a, x) } else { by_tail(a, x, &TAIL, exp2) }
}

/// What GELU for codes of 8 bits is multiplied by, or what makes it so much.
#[derive(Clone, Copy)]
pub enum Scaled {
    /// The factor.
    Factor(Local),
    /// The factor times [`TABLES_COARSE`], and half of it.
    Tables([Local; 3], Local),
}

impl Scaled {
    /// For a factor of at most [`MOST_STEPS`](crate::kernel::site::MOST_STEPS).
    pub fn new(a: &mut Asm, factor: Local) -> Scaled {
        if !a.isa.evex() {
            return Scaled::Factor(factor);
        }
        let x = a.vector_of(factor);
        let tables = TABLES_COARSE.map(|c| a.table(c));
        let mut times = |y: Src| {
            let y = a.binary(Op::MulPs, x, y);
            a.local(y)
        };
        Scaled::Tables(tables.map(|c| times(c.into())), times(0.5.into()))
    }
}

/// A factor times [`gelu`], for codes of 8 bits.
pub fn gelu_coarse(a: &mut Asm, x: V, by: Scaled) -> V {
    match by {
        Scaled::Tables(tables, half) => by_coarse_table(a, x, tables, half),
        Scaled::Factor(factor) => {
            let y = by_tail(a, x, &TAIL_COARSE, exp2_coarse);
            a.binary(Op::MulPs, y, factor)
        }
    }
}

/// `x/2 * (1 + tanh(u))`, which is `x / (1 + e^-2u)`.
pub fn gelu_tanh(a: &mut Asm, x: V, u: V) -> V {
    let minus_two_u = a.binary(Op::MulPs, u, -2.0);
    // Where the exponential is beyond the bounds, the result is x, or x times 0. A NaN comes last and stays.
    let (low, high) = (a.vector_of(-80.0), a.vector_of(80.0));
    let bounded = a.binary(Op::MinPs, high, minus_two_u);
    let bounded = a.binary(Op::MaxPs, low, bounded);
    let e = exp_normal(a, bounded);
    let d = a.binary(Op::AddPs, e, 1.0);
    let vanishes = a.compare_ps(LESS, high, minus_two_u);
    let endless = a.vector_of(f32::INFINITY);
    let d = a.select(vanishes, endless, d);
    a.binary(Op::DivPs, x, d)
}

/// Width of the intervals of [`TABLES`].
const WIDTH: f32 = 45.0 / 128.0;

/// `Φ((n + f) w) - 1/2` for the intervals `n` of width `w`: `Σ c[i][n] f^i` with an error below 8e-8; 1/2 at the end of the
/// last one, which is the centre of it. Minimax fits, where the rounding of a coefficient is known to those behind it.
#[rustfmt::skip]
const TABLES: [[f32; 16]; 5] = [
    [
        0.0, 0.137_416_81, 0.259_011_06, 0.354_215_86, 0.420_175_05, 0.460_610_3, 0.482_543_9, 0.493_071_3,
        0.497_542_1, 0.499_222_07, 0.499_780_63, 0.499_944_96, 0.499_987_72, 0.499_997_56, 0.499_999_58, 0.5,
    ],
    [
        0.140_252_9, 0.131_847_46, 0.109_536_34, 0.080_420_74, 0.052_179_594, 0.029_919_507, 0.015_161_002, 0.006_789_261_5,
        0.002_686_788_8, 0.000_939_648_95, 0.000_290_439_6, 0.000_079_320_57, 0.000_019_149_562, 0.000_004_085_374_3, 0.000_000_770_086_2, 0.000_000_128_241_31,
    ],
    [
        0.000_004_655_759_3, -0.008_147_836, -0.013_537_924, -0.014_909_267, -0.012_898_216, -0.009_244_911, -0.005_621_553_4, -0.002_937_137_4,
        -0.001_328_497, -0.000_522_488_84, -0.000_179_251_74, -0.000_053_965_126, -0.000_014_214_587, -0.000_003_010_296, -0.000_000_678_356_97, -0.000_003_504_284,
    ],
    [
        -0.002_916_945_1, -0.002_368_648_8, -0.001_139_902_2, 0.000_178_404_23, 0.001_040_517_8, 0.001_281_027_4, 0.001_074_977_6, 0.000_707_788_04,
        0.000_384_119_75, 0.000_175_795_7, 0.000_068_598_68, 0.000_023_160_006, 0.000_006_720_923, 0.000_001_692_106_3, 0.000_000_290_838, -0.000_009_195_191_5,
    ],
    [
        0.000_065_612_79, 0.000_239_592_34, 0.000_346_705_2, 0.000_288_372_42, 0.000_135_894_75, -0.000_007_291_456, -0.000_083_013_09, -0.000_091_585_56,
        -0.000_066_753_855, -0.000_038_235_714, -0.000_018_086_628, -0.000_006_606_119, -0.000_002_204_184_3, -0.000_001_656_834_5, -0.000_000_286_090_57, -0.000_005_027_258,
    ],
];

/// The same of degree 2 with an error below 7.5e-5; 0 at 0.
#[rustfmt::skip]
const TABLES_COARSE: [[f32; 16]; 3] = [
    [
        0.0, 0.137_413_07, 0.259_005_67, 0.354_211_9, 0.420_172_93, 0.460_610_42, 0.482_545_2, 0.493_072_72,
        0.497_543_16, 0.499_222_67, 0.499_780_92, 0.499_945_04, 0.499_987_75, 0.499_997_6, 0.499_999_58, 0.5,
    ],
    [
        0.140_561_4, 0.131_403_55, 0.109_322_995, 0.080_452_53, 0.052_374_53, 0.030_159_622, 0.015_362_516, 0.006_921_95,
        0.002_758_797_5, 0.000_972_600_1, 0.000_303_297_36, 0.000_083_660_26, 0.000_020_411_835, 0.000_004_405_071_6, 0.000_000_840_867_2, 0.000_000_653_455_5,
    ],
    [
        -0.001_999_506_3, -0.008_072_847_5, -0.013_429_709, -0.014_821_324, -0.012_855_798, -0.009_247_187, -0.005_647_544, -0.002_965_741_6,
        -0.001_349_326_5, -0.000_534_467_9, -0.000_184_922_4, -0.000_056_020_734, -0.000_014_885_305, -0.000_003_473_693_6, -0.000_000_712_682_95, 0.000_000_711_240_7,
    ],
];

/// `x (1/2 ± (Φ(|x|) - 1/2))`, by polynomials of the distance to the nearest multiple of a width, whose coefficients a
/// permutation looks up.
fn by_table(a: &mut Asm, x: V) -> V {
    let m = abs(a, x);
    // From here on the result is 0 or x. Positive floats are in the order of their bits; a NaN comes back with x.
    let bounded = a.binary(Op::MinD, m, 15.0 * WIDTH);
    let widths = a.binary(Op::MulPs, bounded, 1.0 / WIDTH);
    // The number of the interval in the lowest bits.
    let number = a.binary(Op::AddPs, widths, SHIFT_32 as f32);
    let n = a.binary(Op::SubPs, number, SHIFT_32 as f32);
    let f = a.binary(Op::SubPs, widths, n);
    let tables = TABLES.map(|c| a.table(c).into());
    let y = looked_up(a, number, f, &tables);
    let above_half = copysign(a, y, x);
    let phi = a.binary(Op::AddPs, above_half, 0.5);
    a.binary(Op::MulPs, x, phi)
}

/// The polynomial in `f` of the interval of every lane.
fn looked_up(a: &mut Asm, number: V, f: V, tables: &[Src]) -> V {
    let (last, lower) = tables.split_last().expect("a coefficient");
    let mut y = a.binary(Op::PermPs, number, *last);
    for &c in lower.iter().rev() {
        let c = a.binary(Op::PermPs, number, c);
        y = a.fma(y, f, c);
    }
    y
}

/// `factor x (1/2 ± (Φ(|x|) - 1/2))` in the same way, by tables times the factor, and half of it.
fn by_coarse_table(a: &mut Asm, x: V, tables: [Local; 3], half: Local) -> V {
    let m = abs(a, x);
    let bounded = a.binary(Op::MinD, m, 15.0 * WIDTH);
    let shift = a.vector_of(SHIFT_32 as f32);
    let number = a.vector_of(shift);
    a.update(Op::Fma231, number, bounded, 1.0 / WIDTH);
    let f = a.binary(Op::SubPs, shift, number);
    a.update(Op::Fma231, f, bounded, 1.0 / WIDTH);
    let y = looked_up(a, number, f, &tables.map(Src::from));
    let (above_half, sign) = (a.vector_of(x), a.vector_of(i32::MIN));
    a.mask_and_flip(above_half, sign, y);
    let phi = a.binary(Op::AddPs, above_half, half);
    a.binary(Op::MulPs, x, phi)
}

/// `log2(Φ(-x))` for `0 <= x <= 10`: the error of `Φ(-x)` is below 7e-8, and its limit at 0 is 1/2 where
/// [`exp2`] computes the power. Minimax fit with that weight, falling up to 10.
const TAIL: [f64; 8] = [
    -1.000_000_108_858_401_8,
    -1.151_109_066_401_98,
    -0.459_148_918_002_075_63,
    -0.052_732_998_638_440_13,
    0.007_470_138_934_388_466,
    -0.000_485_808_571_024_598_17,
    -3.105_603_567_350_655e-5,
    5.528_211_605_107_929e-6,
];

/// The same with an error of `Φ(-x)` below 7.5e-6.
const TAIL_COARSE: [f64; 5] =
    [-1.0, -1.150_654_911_997_247_6, -0.461_798_545_196_425_9, -0.048_306_129_516_510_43, 0.004_782_392_652_449_403];

/// `x/2 + |x| (1/2 - Φ(-|x|))`, by a polynomial and a power of 2.
fn by_tail(a: &mut Asm, x: V, tail: &[f64], exp2: fn(&mut Asm, V) -> (V, V)) -> V {
    let m = abs(a, x);
    // From here on the result is 0 or x. A NaN comes last and stays.
    let bound = a.vector_of(10.0);
    let bounded = a.binary(Op::MinPs, bound, m);
    let log = polynomial(a, bounded, tail);
    let (y, power) = exp2(a, log);
    let above_half = a.vector_of(0.5);
    a.update(Op::Fnma231, above_half, y, power);
    let half = a.binary(Op::MulPs, x, 0.5);
    a.fma(m, above_half, half)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::emit::clif::testing::{Compiled, host_cpus};
    use crate::kernel::nest::{Access, Effect, Nest, Stage};
    use crate::kernel::{Body, BufferParam, Extent, Kernel, Use, site};
    use crate::schedule::exprs;
    use tfc_ir::ops;

    /// `out[i] = y(in[i])` for `n` elements.
    fn kernel(n: usize, y: impl FnOnce(&mut exprs::Exprs, ExprId) -> ExprId) -> Kernel {
        let access = |buffer| Access { buffer, offset: Extent::Const(0), strides: vec![Extent::Const(1)], dynamic: vec![] };
        let mut exprs = exprs::Exprs::default();
        let x = exprs.push(Expr::Load(access(0)), Elem::F32);
        let y = y(&mut exprs, x);
        let stages = vec![Stage { once: false, effects: vec![Effect::Store(access(1), y)] }];
        let nest = Nest { inner: vec![Extent::Const(n as i64)], exprs: exprs.list, stages, ..Nest::default() };
        let buffers = [Use::Read, Use::Write].map(|usage| BufferParam { elem: Elem::F32, usage });
        Kernel { buffers: buffers.to_vec(), ints: 0, body: Body::Nest(nest) }
    }

    fn check(tanh: bool, exact: impl Fn(f64) -> f64, bound: f64) {
        // Every 40,009th pattern: all signs and exponents, infinities and NaNs; and the range in which it bends.
        let patterns = (0..u32::MAX / 40_009).map(|i| f32::from_bits(i * 40_009));
        let xs: Vec<f32> = patterns.chain((-60_000..60_000).map(|i| i as f32 / 9_973.0)).chain([0.0, -0.0, f32::NAN]).collect();
        let kernel = kernel(xs.len(), |exprs, x| exprs.apply(&ops::Gelu { tanh }.into(), &[x]));
        for cpu in host_cpus() {
            let mut buffers = [bytemuck::cast_slice(&xs).to_vec(), vec![0xaa; 4 * xs.len()]];
            assert_eq!(Compiled::new(&kernel, &cpu).run(&mut buffers, &[], 0, 1), 0);
            let results: Vec<f32> = bytemuck::pod_collect_to_vec(&buffers[1]);
            for (&x, y) in xs.iter().zip(results) {
                let exact = exact(f64::from(x));
                let error = (f64::from(y) - exact).abs() / f64::from(x).abs().max(f64::from(f32::MIN_POSITIVE));
                let vanishes = exact != 0.0 || y.abs() < 1e-30;
                let same = (exact.is_nan() && y.is_nan()) || f64::from(y) == exact || (error <= bound && vanishes);
                assert!(same, "{}: gelu({x:e}) = {y:e} for {exact:e}, off by {error:e} x", cpu.name);
            }
        }
    }

    #[test]
    fn the_bound_holds_over_all_exponents() {
        check(false, |x| 0.5 * x * (1.0 + libm::erf(x * FRAC_1_SQRT_2)), 1.9e-7);
    }

    #[test]
    fn so_does_that_of_the_approximation_by_tanh() {
        let c = (2.0 / std::f64::consts::PI).sqrt();
        check(true, |x| x / (1.0 + (-2.0 * c * (x + 0.044_715 * x.powi(3))).exp()), 4e-7);
    }

    #[test]
    fn codes_are_those_of_the_real_function_or_near_a_half() {
        for (scale, zero_point) in [
            (1e-5f32, -7),
            (0.001, 0),
            (0.0026, 0),
            (0.0026, -127),
            (0.0026, -62),
            (0.0311, -122),
            (0.03125, -7),
            (0.7, 100),
            (9e11, 3),
            (2e12, 3),
        ] {
            let op = ops::QuantizeStatic { scale: scale.into(), zero_point };
            let ends = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -f32::MAX, -1e30, 1e30, f32::MAX, -0.0, 1e-30, -1e-30];
            let xs: Vec<f32> = (-60_000..60_000).map(|i| i as f32 / 9_973.0).chain(ends).collect();
            let mut kernel = kernel(xs.len(), |exprs, x| {
                let y = exprs.apply(&ops::Gelu { tanh: false }.into(), &[x]);
                let word = |n| Access { buffer: 2, offset: Extent::Const(n), strides: vec![Extent::Const(0)], dynamic: vec![] };
                let below = !site::is_above_low(&op);
                if op.range().inverse <= site::MOST_STEPS { exprs.codes(y, below, word) } else { exprs.apply(&op.clone().into(), &[y]) }
            });
            kernel.buffers[1].elem = Elem::I8;
            kernel.buffers.push(kernel.buffers[0]);
            for cpu in host_cpus() {
                let site = bytemuck::cast_slice(&site::words(&op)).to_vec();
                let mut buffers = [bytemuck::cast_slice(&xs).to_vec(), vec![0xaa; xs.len()], site];
                assert_eq!(Compiled::new(&kernel, &cpu).run(&mut buffers, &[], 0, 1), 0);
                for (&x, &y) in xs.iter().zip(bytemuck::cast_slice::<u8, i8>(&buffers[1])) {
                    let exact = 0.5 * f64::from(x) * (1.0 + libm::erf(f64::from(x) * FRAC_1_SQRT_2)) / f64::from(scale);
                    let exact = if exact.is_nan() { 0.0 } else { exact };
                    let off = (exact + zero_point as f64).clamp(op.scheme().min.into(), 127.0) - f64::from(y);
                    assert!(off.abs() <= 0.5 + 1.0 / 30.0, "{}: {y} for {x}, off by {off}", cpu.name);
                }
            }
        }
    }

    #[test]
    fn factors_are_found_in_any_order_and_products_of_others_are_not() {
        let find_in = |order: [usize; 3], half: f64, one: f64, same: bool| {
            let mut found = None;
            kernel(1, |exprs, x| {
                let prim = |exprs: &mut exprs::Exprs, p, args: &[ExprId]| exprs.push(Expr::Prim(p, args.to_vec()), Elem::F32);
                // The operand is a product itself.
                let operand = prim(exprs, Prim::Mul, &[x, x]);
                let c = exprs.number(FRAC_1_SQRT_2, Elem::F32);
                let scaled = prim(exprs, Prim::Mul, &[c, if same { operand } else { x }]);
                let erf = prim(exprs, Prim::Erf, &[scaled]);
                let one = exprs.number(one, Elem::F32);
                let gate = prim(exprs, Prim::Add, &[one, erf]);
                let half = exprs.number(half, Elem::F32);
                let f = order.map(|i| [operand, gate, half][i]);
                let first = prim(exprs, Prim::Mul, &f[..2]);
                let y = prim(exprs, Prim::Mul, &[first, f[2]]);
                let twice = prim(exprs, Prim::Mul, &[y, half]);
                assert_eq!(find(&exprs.list, twice), None);
                found = find(&exprs.list, y).map(|g| (g.x == operand, g.tanh));
                y
            });
            found
        };
        for order in [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
            assert_eq!(find_in(order, 0.5, 1.0, true), Some((true, None)), "{order:?}");
            assert_eq!(find_in(order, 0.25, 1.0, true), None);
            assert_eq!(find_in(order, 0.5, -1.0, true), None);
            assert_eq!(find_in(order, 0.5, 1.0, false), None);
        }
    }
}
