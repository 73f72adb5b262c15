//! Activations that exporters write out: sigmoid, SiLU, GELU, softplus, softmax.

use super::Numerics::Rounding;
use super::Use::Explore;
use super::polynomial::{Product, affine, close, polynomial, products};
use super::{Root, Rule};
use crate::terms::{Case, Term, Terms};
use std::f64::consts::{FRAC_1_SQRT_2, PI};
use tfc_ir::ops::reduce::ReduceKind;
use tfc_ir::ops::{Erf, Exp, Gelu, Mul, Neg, Reduce, Sigmoid, Silu, Softmax, Softplus, Sub, Tanh};

#[rustfmt::skip]
pub(super) const RULES: &[Rule] = &[
    Rule::new("sigmoid",           Rounding, Explore, &["reciprocal"], sigmoid),
    Rule::new("sigmoid-by-tanh",   Rounding, Explore, &["add", "mul", "div"], sigmoid_by_tanh),
    Rule::new("silu",              Rounding, Explore, &["mul"],        silu),
    Rule::new("silu-as-quotient",  Rounding, Explore, &["div"],        silu_as_quotient),
    Rule::new("softplus",          Rounding, Explore, &["log"],        softplus),
    Rule::new("gelu",              Rounding, Explore, &["mul", "div"], gelu),
    Rule::new("gelu-tanh",         Rounding, Explore, &["mul", "div"], gelu_tanh),
    Rule::new("softmax",           Rounding, Explore, &["div"],        softmax),
];

/// The operand of a form of `t` that applies `O`.
fn operand<O: Case>(t: &dyn Terms, y: Term) -> Option<Term> {
    Some(t.unary::<O>(y).into_iter().next()?.1)
}

/// The product of a number and `x`, with as few operators as that takes.
fn scaled(t: &mut dyn Terms, x: Term, scale: f64) -> Option<Term> {
    if scale == 1.0 {
        return Some(x);
    }
    if scale == -1.0 {
        return operand::<Neg>(t, x).or_else(|| t.add(Neg {}.into(), &[x]));
    }
    let c = t.scalar_like(x, scale);
    t.add(Mul {}.into(), &[x, c])
}

/// Whether `y = 1 + exp(z)`, and if so `z`.
fn one_plus_exp(t: &dyn Terms, y: Term) -> Option<Term> {
    let a = affine(t, y, &|e| operand::<Exp>(t, e))?;
    (a.scale == 1.0 && a.offset == 1.0).then_some(a.base)
}

/// `1 / (1 + exp(-x)) = sigmoid(x)`
fn sigmoid(t: &mut dyn Terms, root: &Root) -> Option<Term> {
    let z = one_plus_exp(t, root.arg(0))?;
    let x = scaled(t, z, -1.0)?;
    t.add(Sigmoid {}.into(), &[x])
}

/// `(1 + tanh(x/2)) / 2 = sigmoid(x)`
fn sigmoid_by_tanh(t: &mut dyn Terms, root: &Root) -> Option<Term> {
    let a = affine(t, root.term, &|y| operand::<Tanh>(t, y))?;
    if a.scale != 0.5 || a.offset != 0.5 {
        return None;
    }
    let Product { factors, .. } = products(t, a.base).into_iter().find(|p| p.scale == 0.5 && p.factors.len() == 1)?;
    t.add(Sigmoid {}.into(), &[factors[0]])
}

/// `x * sigmoid(x) = silu(x)`
fn silu(t: &mut dyn Terms, root: &Root) -> Option<Term> {
    for p in products(t, root.term) {
        let [a, b] = p.factors[..] else { continue };
        for (x, y) in [(a, b), (b, a)] {
            if operand::<Sigmoid>(t, y).is_some_and(|z| t.same(z, x)) {
                let silu = t.add(Silu {}.into(), &[x])?;
                return scaled(t, silu, p.scale);
            }
        }
    }
    None
}

/// `x / (1 + exp(-x)) = silu(x)`
fn silu_as_quotient(t: &mut dyn Terms, root: &Root) -> Option<Term> {
    let z = one_plus_exp(t, root.arg(1))?;
    let x = root.arg(0);
    (polynomial(t, z, x)? == [0.0, -1.0, 0.0, 0.0]).then(|| t.add(Silu {}.into(), &[x]))?
}

/// `log(1 + exp(x)) = softplus(x)`
fn softplus(t: &mut dyn Terms, root: &Root) -> Option<Term> {
    let x = one_plus_exp(t, root.arg(0))?;
    t.add(Softplus {}.into(), &[x])
}

/// `x * (1 + erf(x/√2)) / 2 = gelu(x)`
fn gelu(t: &mut dyn Terms, root: &Root) -> Option<Term> {
    gate::<Erf>(t, root, false, &[0.0, FRAC_1_SQRT_2, 0.0, 0.0])
}

/// `x * (1 + tanh(√(2/π) (x + 0.044715 x³))) / 2 = gelu(x)` in the approximation by tanh
fn gelu_tanh(t: &mut dyn Terms, root: &Root) -> Option<Term> {
    let c = (2.0 / PI).sqrt();
    gate::<Tanh>(t, root, true, &[0.0, c, 0.0, c * 0.044715])
}

/// `x * (1 + f(p(x))) / 2` for the polynomial `p`.
fn gate<F: Case>(t: &mut dyn Terms, root: &Root, tanh: bool, inner: &[f64; 4]) -> Option<Term> {
    let elem = t.ty(root.term).elem;
    for p in products(t, root.term) {
        let [a, b] = p.factors[..] else { continue };
        for (x, gate) in [(a, b), (b, a)] {
            let Some(g) = affine(t, gate, &|y| operand::<F>(t, y)) else { continue };
            let Some(z) = polynomial(t, g.base, x) else { continue };
            let same = |(a, b): (&f64, &f64)| close(*a, *b, elem);
            if z.iter().zip(inner).all(same) && close(g.scale * p.scale, 0.5, elem) && close(g.offset * p.scale, 0.5, elem) {
                return t.add(Gelu { tanh }.into(), &[x]);
            }
        }
    }
    None
}

/// `exp(x) / sum(exp(x)) = softmax(x)`, and the same with `x - max(x)` in the place of `x`
fn softmax(t: &mut dyn Terms, root: &Root) -> Option<Term> {
    let x = operand::<Exp>(t, root.arg(0))?;
    let along = |y: Term, kind: ReduceKind, of: Term| {
        let mut forms = t.unary::<Reduce>(y).into_iter();
        forms.find_map(|(r, z)| (r.kind == kind && r.keep && r.axes.len() == 1 && t.same(z, of)).then(|| r.axes[0]))
    };
    let axis = along(root.arg(1), ReduceKind::Sum, root.arg(0))?;
    let unshifted = t.binary::<Sub>(x).into_iter().find(|&(y, max)| along(max, ReduceKind::Max, y) == Some(axis));
    t.add(Softmax { axis, log: false }.into(), &[unshifted.map_or(x, |(y, _)| y)])
}
