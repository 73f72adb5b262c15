//! Rules about single elements: neutral elements, inverses, choices, conversions.

use super::Numerics::{Exact, Rounding};
use super::Use::{Always, Explore};
use super::{Root, Rule};
use crate::terms::{Term, Terms};
use tfc_ir::ops::reduce::ReduceKind;
use tfc_ir::ops::{Cast, Mul, Neg, Not, Op, Reciprocal, Relu, Rsqrt, Select, Sqrt};
use tfc_ir::tensor::Scalar;
use tfc_ir::types::Elem;

#[rustfmt::skip]
pub(super) const RULES: &[Rule] = &[
    Rule::new("add-zero",              Exact,    Always,  &["add"],        add_zero),
    Rule::new("sub-zero",              Exact,    Always,  &["sub"],        sub_zero),
    Rule::new("mul-one",               Exact,    Always,  &["mul"],        mul_one),
    Rule::new("mul-minus-one",         Exact,    Always,  &["mul"],        mul_minus_one),
    Rule::new("div-by-one",            Exact,    Always,  &["div"],        div_by_one),
    Rule::new("div-of-one",            Exact,    Always,  &["div"],        div_of_one),
    Rule::new("pow-one",               Exact,    Always,  &["pow"],        pow_one),
    Rule::new("pow-two",               Exact,    Always,  &["pow"],        pow_two),
    Rule::new("neg-of-neg",            Exact,    Always,  &["neg"],        neg_of_neg),
    Rule::new("not-of-not",            Exact,    Always,  &["not"],        not_of_not),
    Rule::new("and-neutral",           Exact,    Always,  &["and"],        and_neutral),
    Rule::new("or-neutral",            Exact,    Always,  &["or"],         or_neutral),
    Rule::new("select-decided",        Exact,    Always,  &["select"],     select_decided),
    Rule::new("select-of-not",         Exact,    Always,  &["select"],     select_of_not),
    Rule::new("cast-to-same",          Exact,    Always,  &["cast"],       cast_to_same),
    Rule::new("cast-of-wider",         Exact,    Always,  &["cast"],       cast_of_wider),
    Rule::new("max-zero",              Exact,    Always,  &["max"],        max_zero),
    Rule::new("pow-three",             Rounding, Explore, &["pow"],        pow_three),
    Rule::new("pow-half",              Rounding, Explore, &["pow"],        pow_half),
    Rule::new("pow-minus-half",        Rounding, Explore, &["pow"],        pow_minus_half),
    Rule::new("reciprocal-of-sqrt",    Rounding, Explore, &["reciprocal"], reciprocal_of_sqrt),
    Rule::new("div-by-sqrt",           Rounding, Explore, &["div"],        div_by_sqrt),
];

/// One operand of a commutative operator, where the other equals `n` everywhere, broadcast to the result.
fn other_than(t: &mut dyn Terms, root: &Root, n: i32) -> Option<Term> {
    let i = (0..2).find(|&i| t.is(root.arg(i), n))?;
    let shape = t.shape(root.term).clone();
    t.broadcast(root.arg(1 - i), &shape)
}

/// The first operand, where the second equals `n` everywhere, broadcast to the result.
fn first_if_second(t: &mut dyn Terms, root: &Root, n: i32) -> Option<Term> {
    if !t.is(root.arg(1), n) {
        return None;
    }
    let shape = t.shape(root.term).clone();
    t.broadcast(root.arg(0), &shape)
}

/// `x + 0 = x`, where -0 + 0 = 0 may become -0.
fn add_zero(t: &mut dyn Terms, root: &Root) -> Option<Term> {
    other_than(t, root, 0)
}

/// `x - 0 = x`
fn sub_zero(t: &mut dyn Terms, root: &Root) -> Option<Term> {
    first_if_second(t, root, 0)
}

/// `x * 1 = x`
fn mul_one(t: &mut dyn Terms, root: &Root) -> Option<Term> {
    other_than(t, root, 1)
}

/// `x * -1 = -x`
fn mul_minus_one(t: &mut dyn Terms, root: &Root) -> Option<Term> {
    let x = other_than(t, root, -1)?;
    t.add(Neg {}.into(), &[x])
}

/// `x / 1 = x`
fn div_by_one(t: &mut dyn Terms, root: &Root) -> Option<Term> {
    first_if_second(t, root, 1)
}

/// `1 / x = reciprocal(x)` for floats
fn div_of_one(t: &mut dyn Terms, root: &Root) -> Option<Term> {
    if t.number(root.arg(0)) != Some(1.0) || t.ty(root.arg(1)) != t.ty(root.term) {
        return None;
    }
    t.add(Reciprocal {}.into(), &[root.arg(1)])
}

/// `x ^ 1 = x`
fn pow_one(t: &mut dyn Terms, root: &Root) -> Option<Term> {
    first_if_second(t, root, 1)
}

/// `x ^ 2 = x * x`; not for f64, where a power may round worse than a product.
fn pow_two(t: &mut dyn Terms, root: &Root) -> Option<Term> {
    if t.ty(root.term).elem == Elem::F64 {
        return None;
    }
    let x = first_if_second(t, root, 2)?;
    t.add(Mul {}.into(), &[x, x])
}

/// `x ^ 3 = x * x * x`
fn pow_three(t: &mut dyn Terms, root: &Root) -> Option<Term> {
    let x = first_if_second(t, root, 3)?;
    let square = t.add(Mul {}.into(), &[x, x])?;
    t.add(Mul {}.into(), &[square, x])
}

/// `x ^ 0.5 = sqrt(x)`, which differs at -0 and -∞.
fn pow_half(t: &mut dyn Terms, root: &Root) -> Option<Term> {
    let fits = t.number(root.arg(1)) == Some(0.5) && not_negative(t, root.arg(0), 12);
    fits.then(|| t.add(Sqrt {}.into(), &[root.arg(0)]))?
}

/// `x ^ -0.5 = rsqrt(x)`, which differs at -0 and -∞.
fn pow_minus_half(t: &mut dyn Terms, root: &Root) -> Option<Term> {
    let fits = t.number(root.arg(1)) == Some(-0.5) && not_negative(t, root.arg(0), 12);
    fits.then(|| t.add(Rsqrt {}.into(), &[root.arg(0)]))?
}

/// Whether every element is above 0, or +0, or NaN, whatever the inputs are: sums, means and products of squares and of
/// other such terms.
fn not_negative(t: &dyn Terms, y: Term, depth: usize) -> bool {
    if let Some(c) = t.constant(y) {
        return c.iter().all(|x| !x.to_f64().is_sign_negative());
    }
    if let Some(c) = t.number(y) {
        return !c.is_sign_negative();
    }
    let Some(depth) = depth.checked_sub(1) else { return false };
    let even = |n: Option<f64>| n.is_some_and(|n| n % 2.0 == 0.0);
    t.forms(y).iter().any(|f| match &*f.op {
        Op::Abs(_) | Op::Exp(_) | Op::Sigmoid(_) => true,
        Op::Mul(_) if t.same(f.args[0], f.args[1]) => true,
        Op::Pow(_) if even(t.number(f.args[1])) => true,
        Op::Max(_) if f.args.iter().any(|&x| t.number(x).is_some_and(|n| n > 0.0)) => true,
        Op::Add(_) | Op::Mul(_) | Op::Div(_) | Op::Max(_) | Op::Min(_) => f.args.iter().all(|&x| not_negative(t, x, depth)),
        Op::Pow(_) | Op::Sqrt(_) | Op::Reshape(_) | Op::Transpose(_) | Op::Expand(_) | Op::Slice(_) => not_negative(t, f.args[0], depth),
        Op::Reduce(r) => matches!(r.kind, ReduceKind::Sum | ReduceKind::Mean) && not_negative(t, f.args[0], depth),
        Op::Cast(c) => c.to.is_float() && t.ty(f.args[0]).elem.is_float() && not_negative(t, f.args[0], depth),
        _ => false,
    })
}

/// `reciprocal(sqrt(x)) = rsqrt(x)`
fn reciprocal_of_sqrt(t: &mut dyn Terms, root: &Root) -> Option<Term> {
    let (_, x) = t.unary::<Sqrt>(root.arg(0)).into_iter().next()?;
    t.add(Rsqrt {}.into(), &[x])
}

/// `x / sqrt(y) = x * rsqrt(y)`
fn div_by_sqrt(t: &mut dyn Terms, root: &Root) -> Option<Term> {
    let (_, y) = t.unary::<Sqrt>(root.arg(1)).into_iter().next()?;
    let factor = t.add(Rsqrt {}.into(), &[y])?;
    t.add(Mul {}.into(), &[root.arg(0), factor])
}

/// `-(-x) = x`
fn neg_of_neg(t: &mut dyn Terms, root: &Root) -> Option<Term> {
    Some(t.unary::<Neg>(root.arg(0)).into_iter().next()?.1)
}

/// `not(not(x)) = x`
fn not_of_not(t: &mut dyn Terms, root: &Root) -> Option<Term> {
    Some(t.unary::<Not>(root.arg(0)).into_iter().next()?.1)
}

/// `true and x = x` and `x and x = x`
fn and_neutral(t: &mut dyn Terms, root: &Root) -> Option<Term> {
    neutral(t, root, 1)
}

/// `false or x = x` and `x or x = x`
fn or_neutral(t: &mut dyn Terms, root: &Root) -> Option<Term> {
    neutral(t, root, 0)
}

fn neutral(t: &mut dyn Terms, root: &Root, n: i32) -> Option<Term> {
    if t.same(root.arg(0), root.arg(1)) {
        return Some(root.arg(0));
    }
    (t.ty(root.term).elem == Elem::Bool).then(|| other_than(t, root, n))?
}

/// `select(true, x, y) = x`, `select(false, x, y) = y`, `select(c, x, x) = x`
fn select_decided(t: &mut dyn Terms, root: &Root) -> Option<Term> {
    let choice = match t.splat(root.arg(0)) {
        Some(c) => root.arg(if c == Scalar::Int(0) { 2 } else { 1 }),
        None if t.same(root.arg(1), root.arg(2)) => root.arg(1),
        None => return None,
    };
    let shape = t.shape(root.term).clone();
    t.broadcast(choice, &shape)
}

/// `select(not(c), x, y) = select(c, y, x)`
fn select_of_not(t: &mut dyn Terms, root: &Root) -> Option<Term> {
    let (_, c) = t.unary::<Not>(root.arg(0)).into_iter().next()?;
    if t.ty(c).elem != Elem::Bool {
        return None;
    }
    t.add(Select {}.into(), &[c, root.arg(2), root.arg(1)])
}

/// `cast(x) = x` if the type is that of `x`.
fn cast_to_same(t: &mut dyn Terms, root: &Root) -> Option<Term> {
    (root.op::<Cast>().to == t.ty(root.arg(0)).elem).then(|| root.arg(0))
}

/// `cast(c, cast(b, x)) = cast(c, x)` if the inner conversion keeps every value.
fn cast_of_wider(t: &mut dyn Terms, root: &Root) -> Option<Term> {
    let (inner, x) = t.unary::<Cast>(root.arg(0)).into_iter().next()?;
    let (from, to) = (t.ty(x).elem, root.op::<Cast>().to);
    // Integers that pass through a float saturate in the end; without it they wrap.
    let saturates = from.is_int() && inner.to.is_float() && to.is_int();
    if !keeps_values(from, inner.to) || (saturates && !keeps_values(from, to)) {
        return None;
    }
    if to == t.ty(x).elem { Some(x) } else { t.add(Cast { to }.into(), &[x]) }
}

/// Whether every value of type `from` is one of type `to`.
fn keeps_values(from: Elem, to: Elem) -> bool {
    let mantissa = |e: Elem| match e {
        Elem::F64 => 53,
        Elem::F32 => 24,
        Elem::F16 => 11,
        _ => 8,
    };
    match (from.int_range(), to.int_range()) {
        (Some((a, b)), Some((c, d))) => c <= a && b <= d && to != Elem::Bool || from == to,
        (Some((a, b)), None) => a.unsigned_abs().max(b.unsigned_abs()) <= 1 << mantissa(to),
        (None, None) => from == to || to == Elem::F64 || (to == Elem::F32 && from != Elem::F64),
        (None, Some(_)) => false,
    }
}

/// `max(x, 0) = relu(x)`
fn max_zero(t: &mut dyn Terms, root: &Root) -> Option<Term> {
    let x = other_than(t, root, 0)?;
    t.add(Relu {}.into(), &[x])
}
