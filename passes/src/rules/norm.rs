//! Normalisations that exporters write out: layer normalisation and root-mean-square normalisation.

use super::Numerics::Rounding;
use super::Use::Explore;
use super::polynomial::{affine, products, square_root_of};
use super::{Root, Rule};
use crate::terms::{Term, Terms};
use tfc_ir::ops::reduce::ReduceKind;
use tfc_ir::ops::{Add, LayerNorm, Mul, Reduce, RmsNorm, Rsqrt, Sub};
use tfc_ir::tensor::{Scalar, Tensor};
use tfc_ir::types::Shape;

#[rustfmt::skip]
pub(super) const RULES: &[Rule] = &[
    Rule::new("mean-as-sum",      Rounding, Explore, &["mul", "div"], mean_as_sum),
    Rule::new("layer-norm",       Rounding, Explore, &["mul"],        layer_norm),
    Rule::new("layer-norm-affine",Rounding, Explore, &["add"],        layer_norm_affine),
    Rule::new("layer-norm-scale", Rounding, Explore, &["mul"],        layer_norm_scale),
    Rule::new("layer-norm-bias",  Rounding, Explore, &["add"],        layer_norm_bias),
    Rule::new("rms-norm",         Rounding, Explore, &["mul"],        rms_norm),
    Rule::new("rms-norm-scale",   Rounding, Explore, &["mul"],        rms_norm_scale),
];

/// The means that a term is: of what, over how many trailing axes, kept with size 1.
fn trailing_mean(t: &dyn Terms, y: Term) -> Option<(Term, usize)> {
    t.unary::<Reduce>(y).into_iter().find_map(|(r, x)| {
        let rank = t.ty(x).rank();
        let trailing = r.axes.iter().copied().eq(rank - r.axes.len()..rank);
        (r.kind == ReduceKind::Mean && r.keep && trailing && !r.axes.is_empty()).then_some((x, r.axes.len()))
    })
}

/// `sum(x) / n = mean(x)` if `n` elements are summed
fn mean_as_sum(t: &mut dyn Terms, root: &Root) -> Option<Term> {
    let sum = |y: Term| t.unary::<Reduce>(y).into_iter().find(|(r, _)| r.kind == ReduceKind::Sum);
    let a = affine(t, root.term, &sum)?;
    let (reduce, x) = a.base;
    let count = reduce.axes.iter().map(|&i| t.shape(x)[i].as_const()).product::<Option<i64>>()?;
    let mean = a.offset == 0.0 && (a.scale * count as f64 - 1.0).abs() < 1e-6;
    mean.then(|| t.add(Reduce { kind: ReduceKind::Mean, ..reduce }.into(), &[x]))?
}

/// `1 / sqrt(mean(y²) + epsilon)`: what `y` is, over how many trailing axes, and epsilon.
struct Deviation {
    of: Term,
    axes: usize,
    epsilon: f64,
}

fn deviation(t: &dyn Terms, factor: Term) -> Option<Deviation> {
    t.unary::<Rsqrt>(factor).into_iter().find_map(|(_, v)| {
        let a = affine(t, v, &|y| trailing_mean(t, y).and_then(|(square, axes)| Some((square_root_of(t, square)?, axes))))?;
        let (of, axes) = a.base;
        (a.scale == 1.0 && a.offset >= 0.0).then_some(Deviation { of, axes, epsilon: a.offset })
    })
}

/// Whether `d = x - mean(x)` over that many trailing axes, and if so `x`.
fn centred(t: &dyn Terms, d: Term, axes: usize) -> Option<Term> {
    let is_mean = |x: Term, m: Term| trailing_mean(t, m).is_some_and(|(y, n)| t.same(x, y) && n == axes);
    t.binary::<Sub>(d).into_iter().find(|&(x, m)| is_mean(x, m)).map(|(x, _)| x)
}

/// `y` without leading axes of size 1, if it broadcasts to the last `axes` axes of `x`.
fn per_channel(t: &mut dyn Terms, y: Term, x: Term, axes: usize) -> Option<Term> {
    let normalised = Shape(t.shape(x).0[t.ty(x).rank() - axes..].to_vec());
    let shape = t.shape(y).clone();
    let leading = shape.rank().saturating_sub(axes);
    if shape.rank() > t.ty(x).rank() || !shape.0[..leading].iter().all(|d| d.is(1)) {
        return None;
    }
    let own = Shape(shape.0[leading..].to_vec());
    let fits = own.0.iter().rev().zip(normalised.0.iter().rev()).all(|(d, n)| d.is(1) || d == n);
    fits.then(|| t.reshape(y, own))?
}

fn ones(t: &mut dyn Terms, x: Term) -> Term {
    let elem = t.ty(x).elem;
    t.add_constant(Tensor::build(elem, &[1], |_| Scalar::Float(1.0)))
}

/// The factors of a product that normalises: `rsqrt(mean(d²) + epsilon) * d`, and what else is multiplied.
fn normalised(t: &dyn Terms, y: Term, accepts: &dyn Fn(&Deviation) -> bool) -> Option<(Deviation, Option<Term>)> {
    for p in products(t, y) {
        if p.scale != 1.0 || !(2..=3).contains(&p.factors.len()) {
            continue;
        }
        for (i, &factor) in p.factors.iter().enumerate() {
            let Some(deviation) = deviation(t, factor).filter(|d| accepts(d)) else { continue };
            let mut rest = p.factors.clone();
            rest.remove(i);
            if let Some(at) = rest.iter().position(|&f| t.same(f, deviation.of)) {
                rest.remove(at);
                return Some((deviation, rest.pop()));
            }
        }
    }
    None
}

/// `d * rsqrt(mean(d²) + ε) [* scale] = layer_norm(x, scale or 1)` where `d = x - mean(x)`,
/// the means are over trailing axes and `scale` broadcasts to these
fn layer_norm(t: &mut dyn Terms, root: &Root) -> Option<Term> {
    let (d, scale) = normalised(t, root.term, &|d| centred(t, d.of, d.axes).is_some())?;
    let x = centred(t, d.of, d.axes)?;
    let scale = match scale {
        Some(scale) => per_channel(t, scale, x, d.axes)?,
        None => ones(t, x),
    };
    t.add(LayerNorm { axes: d.axes, epsilon: d.epsilon.into() }.into(), &[x, scale])
}

/// `x * s + (bias - mean(x) * s) = layer_norm(x, scale, bias)` where
/// `s = scale * rsqrt(mean((x - mean(x))²) + ε)`
fn layer_norm_affine(t: &mut dyn Terms, root: &Root) -> Option<Term> {
    for (scaled, shift) in t.either::<Add>(root.term) {
        for (bias, moved) in t.binary::<Sub>(shift) {
            for (x, s) in t.either::<Mul>(scaled) {
                let is_mean = |m: Term| trailing_mean(t, m).is_some_and(|(y, _)| t.same(x, y));
                if !t.either::<Mul>(moved).into_iter().any(|(m, s2)| t.same(s, s2) && is_mean(m)) {
                    continue;
                }
                for (factor, scale) in t.either::<Mul>(s) {
                    let Some(d) = deviation(t, factor) else { continue };
                    if centred(t, d.of, d.axes).is_some_and(|y| t.same(x, y)) {
                        let scale = per_channel(t, scale, x, d.axes)?;
                        let bias = per_channel(t, bias, x, d.axes)?;
                        return t.add(LayerNorm { axes: d.axes, epsilon: d.epsilon.into() }.into(), &[x, scale, bias]);
                    }
                }
            }
        }
    }
    None
}

/// `layer_norm(x, 1) * scale = layer_norm(x, scale)` if `scale` broadcasts to the normalised axes
fn layer_norm_scale(t: &mut dyn Terms, root: &Root) -> Option<Term> {
    for (y, scale) in t.either::<Mul>(root.term) {
        for (norm, args) in t.all::<LayerNorm>(y) {
            if args.len() == 2 && t.is(args[1], 1) {
                let scale = per_channel(t, scale, args[0], norm.axes)?;
                return t.add(norm.into(), &[args[0], scale]);
            }
        }
    }
    None
}

/// `layer_norm(x, scale) + bias = layer_norm(x, scale, bias)` if `bias` broadcasts to the normalised axes
fn layer_norm_bias(t: &mut dyn Terms, root: &Root) -> Option<Term> {
    for (y, bias) in t.either::<Add>(root.term) {
        for (norm, args) in t.all::<LayerNorm>(y) {
            if args.len() == 2 {
                let bias = per_channel(t, bias, args[0], norm.axes)?;
                return t.add(norm.into(), &[args[0], args[1], bias]);
            }
        }
    }
    None
}

/// `x * rsqrt(mean(x²) + ε) [* scale] = rms_norm(x, scale or 1)` where the mean is over trailing
/// axes and `scale` broadcasts to these
fn rms_norm(t: &mut dyn Terms, root: &Root) -> Option<Term> {
    let (d, scale) = normalised(t, root.term, &|_| true)?;
    let scale = match scale {
        Some(scale) => per_channel(t, scale, d.of, d.axes)?,
        None => ones(t, d.of),
    };
    t.add(RmsNorm { axes: d.axes, epsilon: d.epsilon.into() }.into(), &[d.of, scale])
}

/// `rms_norm(x, 1) * scale = rms_norm(x, scale)` if `scale` broadcasts to the normalised axes
fn rms_norm_scale(t: &mut dyn Terms, root: &Root) -> Option<Term> {
    for (y, scale) in t.either::<Mul>(root.term) {
        for (norm, args) in t.all::<RmsNorm>(y) {
            if t.is(args[1], 1) {
                let scale = per_channel(t, scale, args[0], norm.axes)?;
                return t.add(norm.into(), &[args[0], scale]);
            }
        }
    }
    None
}
