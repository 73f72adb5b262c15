//! Elementwise operators: arithmetic, comparison, logic, activations, conversions.

use super::{Call, Fail, Importer, Res, Val, demand, unsupported};
use crate::onnx::model::{elem_name, elem_of};
use tfc_ir::ops::{
    Abs, Acos, And, Asin, Atan, Ceil, Cos, Erf, Expm1, Floor, Gelu, IsNan, Log1p, Not, Op, Or, Pow, Reciprocal, Relu, RemFloor, RemTrunc,
    Round, Shl, Shr, Sigmoid, Silu, Sin, Softplus, Sqrt, Tan, Tanh, Xor,
};
use tfc_ir::ops::{Add, Div, Exp, Log, Mul, Neg, Sub};
use tfc_ir::tensor::{Scalar, Tensor, round_to};
use tfc_ir::types::Elem;

type One = Res<Vec<Val>>;

fn one(v: Val) -> One {
    Ok(vec![v])
}

macro_rules! unary {
    ($($name:ident => $op:ident,)*) => { $(
        pub(super) fn $name(cx: &mut Importer, n: &Call) -> One {
            n.at_most(1)?;
            one(cx.emit($op {}, &[n.input(0)?])?)
        }
    )* };
}
unary! {
    abs => Abs,
    acos => Acos,
    asin => Asin,
    atan => Atan,
    ceil => Ceil,
    cos => Cos,
    erf => Erf,
    exp => Exp,
    floor => Floor,
    is_nan => IsNan,
    log => Log,
    neg => Neg,
    not => Not,
    reciprocal => Reciprocal,
    round => Round,
    sigmoid => Sigmoid,
    sin => Sin,
    softplus => Softplus,
    sqrt => Sqrt,
    tan => Tan,
    tanh => Tanh,
}

macro_rules! binary {
    ($($name:ident => $op:ident,)*) => { $(
        pub(super) fn $name(cx: &mut Importer, n: &Call) -> One {
            n.at_most(2)?;
            one(cx.emit($op {}, &[n.input(0)?, n.input(1)?])?)
        }
    )* };
}
binary! {
    add => Add,
    and => And,
    div => Div,
    mul => Mul,
    or => Or,
    sub => Sub,
    xor => Xor,
}

pub(super) fn equal(cx: &mut Importer, n: &Call) -> One {
    one(cx.eq(n.input(0)?, n.input(1)?)?)
}

pub(super) fn less(cx: &mut Importer, n: &Call) -> One {
    one(cx.lt(n.input(0)?, n.input(1)?)?)
}

pub(super) fn less_or_equal(cx: &mut Importer, n: &Call) -> One {
    one(cx.le(n.input(0)?, n.input(1)?)?)
}

pub(super) fn greater(cx: &mut Importer, n: &Call) -> One {
    one(cx.lt(n.input(1)?, n.input(0)?)?)
}

pub(super) fn greater_or_equal(cx: &mut Importer, n: &Call) -> One {
    one(cx.le(n.input(1)?, n.input(0)?)?)
}

/// The remainder has the sign of the divisor, or with `fmod` that of the dividend.
pub(super) fn modulo(cx: &mut Importer, n: &Call) -> One {
    let (x, y) = (n.input(0)?, n.input(1)?);
    let fmod = n.flag("fmod", false)?;
    demand!(fmod || !cx.elem(x).is_float() || n.version >= 28, "Mod of floats needs fmod=1 before version 28");
    let op: Op = if fmod { RemTrunc {}.into() } else { RemFloor {}.into() };
    one(cx.emit(op, &[x, y])?)
}

/// Base and exponent may have different types; the result has that of the base. The power is computed in a type that
/// has both: the exponents that are known may all be numbers of the type of the base.
pub(super) fn pow(cx: &mut Importer, n: &Call) -> One {
    let (x, y) = (n.input(0)?, n.input(1)?);
    let (base, exponent) = (cx.elem(x), cx.elem(y));
    let same = |t: &Tensor| t.iter().all(|n| round_to(base, n).to_f64() == n.to_f64());
    let fits = base == exponent || cx.as_const(y).is_some_and(same);
    let wide = match (base.is_float() || exponent.is_float(), fits) {
        (_, true) => base,
        (true, false) => Elem::F64,
        (false, false) => Elem::I64,
    };
    let (x_wide, y_wide) = (cx.cast(x, wide)?, cx.cast(y, wide)?);
    let p = cx.emit(Pow {}, &[x_wide, y_wide])?;
    if base.is_float() || wide != Elem::F64 {
        return one(cx.cast(p, base)?);
    }
    // A power is off by up to 2e-13 of itself, and a whole number must not come out as the one before.
    let p = cx.affine(p, 1.0 + 1e-12, 0.0)?;
    let p = cx.cast(p, base)?;
    // Whole powers of integers are exact.
    let (whole, magnitude, limit) = (cx.emit(Floor {}, &[y_wide])?, cx.emit(Abs {}, &[y_wide])?, cx.scalar(Elem::F64, 9e15));
    let (is_whole, is_small) = (cx.eq(whole, y_wide)?, cx.lt(magnitude, limit)?);
    let is_whole = cx.emit(And {}, &[is_whole, is_small])?;
    let (x_int, y_int) = (cx.cast(x, Elem::I64)?, cx.cast(y_wide, Elem::I64)?);
    let exact = cx.emit(Pow {}, &[x_int, y_int])?;
    let exact = cx.cast(exact, base)?;
    one(cx.select(is_whole, exact, p)?)
}

/// A right shift of a signed number keeps the sign: with `y` for `x < 0 ? not x : x`, which is not
/// negative, it is `x < 0 ? not (y >> n) : y >> n`.
pub(super) fn bit_shift(cx: &mut Importer, n: &Call) -> One {
    let (x, by) = (n.input(0)?, n.input(1)?);
    match n.text("direction", "")?.as_str() {
        "LEFT" => one(cx.emit(Shl {}, &[x, by])?),
        "RIGHT" if !cx.elem(x).is_signed_int() => one(cx.emit(Shr {}, &[x, by])?),
        "RIGHT" => {
            let zero = cx.like(x, 0.0);
            let negative = cx.lt(x, zero)?;
            let turned = cx.emit(Not {}, &[x])?;
            let y = cx.select(negative, turned, x)?;
            let y = cx.emit(Shr {}, &[y, by])?;
            let back = cx.emit(Not {}, &[y])?;
            one(cx.select(negative, back, y)?)
        }
        other => Err(Fail::Invalid(format!("the direction is `{other}`, but must be LEFT or RIGHT"))),
    }
}

fn fold(cx: &mut Importer, n: &Call, combine: fn(&mut Importer, Val, Val) -> Res<Val>) -> Res<Val> {
    let all = n.all()?;
    all[1..].iter().try_fold(all[0], |acc, &v| combine(cx, acc, v))
}

pub(super) fn max(cx: &mut Importer, n: &Call) -> One {
    one(fold(cx, n, |cx, a, b| cx.max(a, b))?)
}

pub(super) fn min(cx: &mut Importer, n: &Call) -> One {
    one(fold(cx, n, |cx, a, b| cx.min(a, b))?)
}

pub(super) fn sum(cx: &mut Importer, n: &Call) -> One {
    one(fold(cx, n, |cx, a, b| cx.add(a, b))?)
}

pub(super) fn mean(cx: &mut Importer, n: &Call) -> One {
    let all = n.all()?;
    let elem = cx.elem(all[0]);
    // The sum may be beyond what 16 bits hold.
    let wide = if elem == Elem::F16 { Elem::F32 } else { elem };
    let mut total = cx.cast(all[0], wide)?;
    for &x in &all[1..] {
        let x = cx.cast(x, wide)?;
        total = cx.add(total, x)?;
    }
    let count = cx.like(total, n.inputs.len() as f64);
    let y = cx.div(total, count)?;
    one(cx.cast(y, elem)?)
}

/// `min(max(x, low), high)`: the upper bound wins where the bounds cross.
pub(super) fn clip(cx: &mut Importer, n: &Call) -> One {
    let x = n.input(0)?;
    let (low, high) = if n.version < 11 {
        let (low, high) = (n.opt_float("min")?, n.opt_float("max")?);
        (low.map(|l| cx.like(x, l)), high.map(|h| cx.like(x, h)))
    } else {
        (n.opt(1), n.opt(2))
    };
    let mut y = x;
    for (bound, upper) in [(low, false), (high, true)] {
        let Some(b) = bound else { continue };
        demand!(cx.ty(b).shape.elements().is(1), "the bounds of Clip must be scalars, but one is {}", cx.ty(b));
        let b = cx.reshape(b, Default::default())?;
        y = if upper { cx.min(y, b)? } else { cx.max(y, b)? };
    }
    one(y)
}

pub(super) fn where_(cx: &mut Importer, n: &Call) -> One {
    one(cx.select(n.input(0)?, n.input(1)?, n.input(2)?)?)
}

pub(super) fn cast(cx: &mut Importer, n: &Call) -> One {
    let code = n.int("to", 0)?;
    let code = i32::try_from(code).unwrap_or(0);
    let Some(to) = elem_of(code) else {
        unsupported!("conversion to {} is not supported", elem_name(code));
    };
    one(cx.cast(n.input(0)?, to)?)
}

pub(super) fn cast_like(cx: &mut Importer, n: &Call) -> One {
    let to = cx.elem(n.input(1)?);
    one(cx.cast(n.input(0)?, to)?)
}

pub(super) fn identity(_: &mut Importer, n: &Call) -> One {
    n.at_most(1)?;
    one(n.input(0)?)
}

/// At inference nothing is dropped.
pub(super) fn dropout(cx: &mut Importer, n: &Call) -> One {
    let x = n.input(0)?;
    let training = match n.opt(2) {
        Some(t) => cx.const_scalar(t) != Some(0.0),
        None => false,
    };
    let ratio = match n.opt(1) {
        Some(r) => cx.const_scalar(r),
        None => Some(n.float("ratio", 0.5)?),
    };
    if training && ratio != Some(0.0) {
        unsupported!("Dropout in training mode is not supported");
    }
    let mut results = vec![x];
    if n.wants(1) {
        let all = cx.constant(Tensor::scalar(Elem::Bool, Scalar::Int(1)));
        let shape = cx.shape(x).clone();
        results.push(cx.expand(all, shape)?);
    }
    Ok(results)
}

pub(super) fn sign(cx: &mut Importer, n: &Call) -> One {
    let x = n.input(0)?;
    let (elem, zero) = (cx.elem(x), cx.like(x, 0.0));
    let positive = cx.lt(zero, x)?;
    let positive = cx.cast(positive, elem)?;
    if !elem.is_float() && !elem.is_signed_int() {
        return one(positive);
    }
    let negative = cx.lt(x, zero)?;
    let negative = cx.cast(negative, elem)?;
    let sign = cx.sub(positive, negative)?;
    if !elem.is_float() {
        return one(sign);
    }
    let nan = cx.emit(IsNan {}, &[x])?;
    one(cx.select(nan, x, sign)?)
}

/// From where `e^-x` is nothing beside `e^x`, of which neither overflows in any float type there.
fn far(elem: Elem) -> f64 {
    if elem == Elem::F64 { 20.0 } else { 10.0 }
}

/// `e^|x| / 2` as the product of two numbers, since `e^|x|` may overflow where its half does not.
fn half_exp(cx: &mut Importer, x: Val) -> Res<Val> {
    let half = cx.affine(x, 0.5, 0.0)?;
    let half = cx.emit(Abs {}, &[half])?;
    let root = cx.exp(half)?;
    let halved = cx.affine(root, 0.5, 0.0)?;
    cx.mul(root, halved)
}

/// `x` bounded to `[-limit, limit]`, and whether it was within.
fn bounded(cx: &mut Importer, x: Val, limit: f64) -> Res<(Val, Val)> {
    let magnitude = cx.emit(Abs {}, &[x])?;
    let (low, high) = (cx.like(x, -limit), cx.like(x, limit));
    let near = cx.le(magnitude, high)?;
    let y = cx.min(x, high)?;
    Ok((cx.max(y, low)?, near))
}

/// `y` with the sign of `x`, for a `y` that is not negative; a zero `x` stays.
fn with_sign(cx: &mut Importer, y: Val, x: Val) -> Res<Val> {
    let (minus, zero) = (cx.neg(y)?, cx.like(x, 0.0));
    let (negative, none) = (cx.lt(x, zero)?, cx.eq(x, zero)?);
    let y = cx.select(negative, minus, y)?;
    cx.select(none, x, y)
}

/// `(expm1(x) - expm1(-x)) / 2`, exact near 0; for large `|x|` `sign(x) e^|x| / 2`.
pub(super) fn sinh(cx: &mut Importer, n: &Call) -> One {
    let x = n.input(0)?;
    let (y, is_near) = bounded(cx, x, far(cx.elem(x)))?;
    let minus = cx.neg(y)?;
    let (a, b) = (cx.emit(Expm1 {}, &[y])?, cx.emit(Expm1 {}, &[minus])?);
    let d = cx.sub(a, b)?;
    let near = cx.affine(d, 0.5, 0.0)?;
    let far = half_exp(cx, x)?;
    let far = with_sign(cx, far, x)?;
    one(cx.select(is_near, near, far)?)
}

/// `(e^x + e^-x) / 2`; for large `|x|` `e^|x| / 2`.
pub(super) fn cosh(cx: &mut Importer, n: &Call) -> One {
    let x = n.input(0)?;
    let (y, is_near) = bounded(cx, x, far(cx.elem(x)))?;
    let minus = cx.neg(y)?;
    let (a, b) = (cx.exp(y)?, cx.exp(minus)?);
    let s = cx.add(a, b)?;
    let near = cx.affine(s, 0.5, 0.0)?;
    let far = half_exp(cx, x)?;
    one(cx.select(is_near, near, far)?)
}

/// From where `log(2 x)` is the inverse of both `sinh` and `cosh` after rounding, and below the root of the largest number.
fn square_limit(elem: Elem) -> f64 {
    if elem == Elem::F16 { 100.0 } else { 1e9 }
}

/// `log x + log 2`.
fn log_twice(cx: &mut Importer, x: Val) -> Res<Val> {
    let y = cx.log(x)?;
    cx.affine(y, 1.0, std::f64::consts::LN_2)
}

/// `sign(x) * log1p(|x| + x² / (1 + sqrt(x² + 1)))`; for large `|x|`, where the square overflows,
/// `sign(x) * (log|x| + log 2)`.
pub(super) fn asinh(cx: &mut Importer, n: &Call) -> One {
    let x = n.input(0)?;
    let y = cx.emit(Abs {}, &[x])?;
    let limit = cx.like(x, square_limit(cx.elem(x)));
    let bounded = cx.min(y, limit)?;
    let square = cx.mul(bounded, bounded)?;
    let root = cx.affine(square, 1.0, 1.0)?;
    let root = cx.sqrt(root)?;
    let root = cx.affine(root, 1.0, 1.0)?;
    let rest = cx.div(square, root)?;
    let near = cx.add(bounded, rest)?;
    let near = cx.emit(Log1p {}, &[near])?;
    let far = log_twice(cx, y)?;
    let small = cx.le(y, limit)?;
    let magnitude = cx.select(small, near, far)?;
    one(with_sign(cx, magnitude, x)?)
}

/// With `t = x - 1`: `log1p(t + sqrt(t) * sqrt(t + 2))`; for large `x` `log x + log 2`.
pub(super) fn acosh(cx: &mut Importer, n: &Call) -> One {
    let x = n.input(0)?;
    let limit = cx.like(x, square_limit(cx.elem(x)));
    let bounded = cx.min(x, limit)?;
    let t = cx.affine(bounded, 1.0, -1.0)?;
    let t2 = cx.affine(t, 1.0, 2.0)?;
    let (a, b) = (cx.sqrt(t)?, cx.sqrt(t2)?);
    let root = cx.mul(a, b)?;
    let s = cx.add(t, root)?;
    let near = cx.emit(Log1p {}, &[s])?;
    let far = log_twice(cx, x)?;
    let small = cx.le(x, limit)?;
    one(cx.select(small, near, far)?)
}

pub(super) fn atanh(cx: &mut Importer, n: &Call) -> One {
    let x = n.input(0)?;
    let minus = cx.neg(x)?;
    let (a, b) = (cx.emit(Log1p {}, &[x])?, cx.emit(Log1p {}, &[minus])?);
    let d = cx.sub(a, b)?;
    one(cx.affine(d, 0.5, 0.0)?)
}

pub(super) fn relu(cx: &mut Importer, n: &Call) -> One {
    let x = n.input(0)?;
    if cx.elem(x).is_float() {
        return one(cx.emit(Relu {}, &[x])?);
    }
    let zero = cx.like(x, 0.0);
    one(cx.max(x, zero)?)
}

/// `x < 0 ? below : x`.
fn where_negative(cx: &mut Importer, x: Val, below: Val) -> One {
    let zero = cx.like(x, 0.0);
    let negative = cx.lt(x, zero)?;
    one(cx.select(negative, below, x)?)
}

pub(super) fn leaky_relu(cx: &mut Importer, n: &Call) -> One {
    let x = n.input(0)?;
    let below = cx.affine(x, n.float("alpha", 0.01)?, 0.0)?;
    where_negative(cx, x, below)
}

pub(super) fn prelu(cx: &mut Importer, n: &Call) -> One {
    let x = n.input(0)?;
    let below = cx.mul(x, n.input(1)?)?;
    where_negative(cx, x, below)
}

pub(super) fn elu(cx: &mut Importer, n: &Call) -> One {
    let x = n.input(0)?;
    let below = cx.emit(Expm1 {}, &[x])?;
    let below = cx.affine(below, n.float("alpha", 1.0)?, 0.0)?;
    where_negative(cx, x, below)
}

pub(super) fn selu(cx: &mut Importer, n: &Call) -> One {
    let x = n.input(0)?;
    let below = cx.emit(Expm1 {}, &[x])?;
    let below = cx.affine(below, n.float("alpha", 1.673_263_192_176_818_8)?, 0.0)?;
    let y = where_negative(cx, x, below)?[0];
    one(cx.affine(y, n.float("gamma", 1.050_701_022_148_132_3)?, 0.0)?)
}

/// `max(0, x) + min(0, alpha * expm1(x / alpha))`.
pub(super) fn celu(cx: &mut Importer, n: &Call) -> One {
    let (x, alpha) = (n.input(0)?, n.float("alpha", 1.0)?);
    demand!(alpha != 0.0, "alpha must not be 0");
    let scaled = cx.like(x, alpha);
    let scaled = cx.div(x, scaled)?;
    let below = cx.emit(Expm1 {}, &[scaled])?;
    let below = cx.affine(below, alpha, 0.0)?;
    let zero = cx.like(x, 0.0);
    let (a, b) = (cx.max(x, zero)?, cx.min(below, zero)?);
    one(cx.add(a, b)?)
}

pub(super) fn softsign(cx: &mut Importer, n: &Call) -> One {
    let x = n.input(0)?;
    let y = cx.emit(Abs {}, &[x])?;
    let y = cx.affine(y, 1.0, 1.0)?;
    one(cx.div(x, y)?)
}

/// `max(0, min(1, alpha * x + beta))`.
fn hard(cx: &mut Importer, x: Val, alpha: f64, beta: f64) -> Res<Val> {
    let y = cx.affine(x, alpha, beta)?;
    let (low, high) = (cx.like(x, 0.0), cx.like(x, 1.0));
    let y = cx.min(y, high)?;
    cx.max(y, low)
}

pub(super) fn hard_sigmoid(cx: &mut Importer, n: &Call) -> One {
    one(hard(cx, n.input(0)?, n.float("alpha", 0.2)?, n.float("beta", 0.5)?)?)
}

pub(super) fn hard_swish(cx: &mut Importer, n: &Call) -> One {
    let x = n.input(0)?;
    let gate = hard(cx, x, 1.0 / 6.0, 0.5)?;
    one(cx.mul(x, gate)?)
}

pub(super) fn mish(cx: &mut Importer, n: &Call) -> One {
    let x = n.input(0)?;
    let y = cx.emit(Softplus {}, &[x])?;
    let y = cx.emit(Tanh {}, &[y])?;
    one(cx.mul(x, y)?)
}

pub(super) fn swish(cx: &mut Importer, n: &Call) -> One {
    let (x, alpha) = (n.input(0)?, n.float("alpha", 1.0)?);
    if alpha == 1.0 {
        return one(cx.emit(Silu {}, &[x])?);
    }
    let y = cx.affine(x, alpha, 0.0)?;
    let y = cx.emit(Sigmoid {}, &[y])?;
    one(cx.mul(x, y)?)
}

pub(super) fn thresholded_relu(cx: &mut Importer, n: &Call) -> One {
    let x = n.input(0)?;
    let (alpha, zero) = (cx.like(x, n.float("alpha", 1.0)?), cx.like(x, 0.0));
    let above = cx.lt(alpha, x)?;
    one(cx.select(above, x, zero)?)
}

pub(super) fn shrink(cx: &mut Importer, n: &Call) -> One {
    let x = n.input(0)?;
    let (lambda, bias) = (n.float("lambd", 0.5)?, n.float("bias", 0.0)?);
    let (low, high, zero) = (cx.like(x, -lambda), cx.like(x, lambda), cx.like(x, 0.0));
    let (up, down) = (cx.affine(x, 1.0, bias)?, cx.affine(x, 1.0, -bias)?);
    let above = cx.lt(high, x)?;
    let y = cx.select(above, down, zero)?;
    let below = cx.lt(x, low)?;
    one(cx.select(below, up, y)?)
}

pub(super) fn is_inf(cx: &mut Importer, n: &Call) -> One {
    let x = n.input(0)?;
    let (up, down) = (cx.like(x, f64::INFINITY), cx.like(x, f64::NEG_INFINITY));
    match (n.flag("detect_positive", true)?, n.flag("detect_negative", true)?) {
        (true, false) => one(cx.eq(x, up)?),
        (false, true) => one(cx.eq(x, down)?),
        (true, true) => {
            let (a, b) = (cx.eq(x, up)?, cx.eq(x, down)?);
            one(cx.emit(Or {}, &[a, b])?)
        }
        (false, false) => {
            let never = cx.constant(Tensor::scalar(Elem::Bool, Scalar::Int(0)));
            let shape = cx.shape(x).clone();
            one(cx.expand(never, shape)?)
        }
    }
}

pub(super) fn gelu(cx: &mut Importer, n: &Call) -> One {
    let tanh = match n.text("approximate", "none")?.as_str() {
        "none" => false,
        "tanh" => true,
        other => return Err(Fail::Invalid(format!("approximate is `{other}`, but must be none or tanh"))),
    };
    one(cx.emit(Gelu { tanh }, &[n.input(0)?])?)
}
