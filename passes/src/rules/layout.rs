//! Rules about where elements are: reshapes, transposes, slices, expansions, concatenations.

use super::Numerics::Exact;
use super::Use::{Always, Explore};
use super::{Root, Roots, Rule};
use crate::terms::{Term, Terms};
use tfc_ir::dim::Dim;
use tfc_ir::ops::{Concat, Expand, Mul, Reduce, Reshape, Slice, Transpose};
use tfc_ir::types::Shape;

#[rustfmt::skip]
pub(super) const RULES: &[Rule] = &[
    Rule::new("reshape-of-reshape",         Exact, Always,  &["reshape"],   reshape_of_reshape),
    Rule::new("reshape-to-same",            Exact, Always,  &["reshape"],   reshape_to_same),
    Rule::new("transpose-of-transpose",     Exact, Always,  &["transpose"], transpose_of_transpose),
    Rule::new("transpose-by-identity",      Exact, Always,  &["transpose"], transpose_by_identity),
    Rule::new("transpose-of-unit-axes",     Exact, Always,  &["transpose"], transpose_of_unit_axes),
    Rule::new("expand-to-same",             Exact, Always,  &["expand"],    expand_to_same),
    Rule::new("expand-of-expand",           Exact, Always,  &["expand"],    expand_of_expand),
    Rule { name: "expand-in-elementwise", numerics: Exact, usage: Always, roots: Roots::Elementwise, apply: expand_in_broadcast },
    Rule::new("expand-in-matmul",           Exact, Always,  &["matmul"],    expand_in_broadcast),
    Rule::new("slice-of-all",               Exact, Always,  &["slice"],     slice_of_all),
    Rule::new("slice-of-slice",             Exact, Always,  &["slice"],     slice_of_slice),
    Rule::new("slice-of-concat",            Exact, Always,  &["slice"],     slice_of_concat),
    Rule::new("concat-of-one",              Exact, Always,  &["concat"],    concat_of_one),
    Rule::new("concat-of-concat",           Exact, Always,  &["concat"],    concat_of_concat),
    Rule::new("reduce-keeping-axes",        Exact, Explore, &["reshape"],   reduce_keeping_axes),
    Rule::new("scale-before-view",          Exact, Explore, &["reshape", "transpose"], scale_before_view),
];

/// `reshape(reshape(x)) = reshape(x)`
fn reshape_of_reshape(t: &mut dyn Terms, root: &Root) -> Option<Term> {
    let (_, x) = t.unary::<Reshape>(root.arg(0)).into_iter().next()?;
    t.reshape(x, root.op::<Reshape>().shape.clone())
}

/// `reshape(x) = x` if the shape is that of `x`.
fn reshape_to_same(t: &mut dyn Terms, root: &Root) -> Option<Term> {
    (root.op::<Reshape>().shape == *t.shape(root.arg(0))).then(|| root.arg(0))
}

/// `transpose(p, transpose(q, x)) = transpose(q∘p, x)`
fn transpose_of_transpose(t: &mut dyn Terms, root: &Root) -> Option<Term> {
    let (inner, x) = t.unary::<Transpose>(root.arg(0)).into_iter().next()?;
    let perm: Vec<usize> = root.op::<Transpose>().perm.iter().map(|&p| inner.perm[p]).collect();
    if perm.iter().enumerate().all(|(i, &p)| i == p) { Some(x) } else { t.add(Transpose { perm }.into(), &[x]) }
}

/// `transpose(x) = x` if no axis moves.
fn transpose_by_identity(_: &mut dyn Terms, root: &Root) -> Option<Term> {
    root.op::<Transpose>().perm.iter().enumerate().all(|(i, &p)| i == p).then(|| root.arg(0))
}

/// `transpose(x) = reshape(x)` if axes longer than 1 keep their order.
fn transpose_of_unit_axes(t: &mut dyn Terms, root: &Root) -> Option<Term> {
    let shape = t.shape(root.arg(0));
    let long = root.op::<Transpose>().perm.iter().filter(|&&p| !shape[p].is(1));
    if !long.is_sorted() {
        return None;
    }
    let shape = t.shape(root.term).clone();
    t.reshape(root.arg(0), shape)
}

/// `expand(x) = x` if the shape is that of `x`.
fn expand_to_same(t: &mut dyn Terms, root: &Root) -> Option<Term> {
    (root.op::<Expand>().shape == *t.shape(root.arg(0))).then(|| root.arg(0))
}

/// `expand(expand(x)) = expand(x)`
fn expand_of_expand(t: &mut dyn Terms, root: &Root) -> Option<Term> {
    let (_, x) = t.unary::<Expand>(root.arg(0)).into_iter().next()?;
    t.broadcast(x, &root.op::<Expand>().shape)
}

/// `f(…, expand(x), …) = f(…, x, …)` for `f` that broadcasts, if the other operands give the shape.
fn expand_in_broadcast(t: &mut dyn Terms, root: &Root) -> Option<Term> {
    for (i, &arg) in root.form.args.iter().enumerate() {
        for (_, x) in t.unary::<Expand>(arg) {
            let mut args = root.form.args.clone();
            args[i] = x;
            if let Some(y) = t.add((*root.form.op).clone(), &args)
                && t.ty(y) == t.ty(root.term)
            {
                return Some(y);
            }
        }
    }
    None
}

/// `slice(x) = x` if it takes all of every axis.
fn slice_of_all(t: &mut dyn Terms, root: &Root) -> Option<Term> {
    let s = root.op::<Slice>();
    let forward = s.starts.iter().zip(&s.steps).zip(&s.lens.0).all(|((start, &step), len)| start.is(0) && (step == 1 || len.is(1)));
    (forward && s.lens == *t.shape(root.arg(0))).then(|| root.arg(0))
}

/// `slice(slice(x))` is one slice: starts add up, steps multiply.
fn slice_of_slice(t: &mut dyn Terms, root: &Root) -> Option<Term> {
    let (inner, x) = t.all::<Slice>(root.arg(0)).into_iter().next().map(|(s, args)| (s, args[0]))?;
    let outer = root.op::<Slice>();
    let scaled = |i: usize| outer.starts[i].clone() * Dim::from(inner.steps[i]);
    let starts = (0..inner.starts.len()).map(|i| inner.starts[i].clone() + scaled(i)).collect();
    let steps = inner.steps.iter().zip(&outer.steps).map(|(a, b)| a.checked_mul(*b)).collect::<Option<_>>()?;
    t.add(Slice { starts, steps, lens: outer.lens.clone() }.into(), &[x])
}

/// `slice(concat(…, x, …)) = slice(x)` if it takes nothing of the others.
fn slice_of_concat(t: &mut dyn Terms, root: &Root) -> Option<Term> {
    let s = root.op::<Slice>();
    for (Concat { axis }, parts) in t.all::<Concat>(root.arg(0)) {
        if s.steps[axis] != 1 {
            continue;
        }
        let mut offset = Dim::from(0);
        for part in parts {
            let size = t.shape(part)[axis].clone();
            let start = s.starts[axis].clone() - offset.clone();
            let behind = size.clone() - start.clone() - s.lens[axis].clone();
            if start.range(t.symbols()).min >= 0 && behind.range(t.symbols()).min >= 0 {
                let mut inner = s.clone();
                inner.starts[axis] = start;
                return t.add(inner.into(), &[part]);
            }
            offset = offset + size;
        }
    }
    None
}

/// `concat(x) = x`
fn concat_of_one(_: &mut dyn Terms, root: &Root) -> Option<Term> {
    (root.form.args.len() == 1).then(|| root.arg(0))
}

/// `concat(…, concat(x, y), …) = concat(…, x, y, …)` along the same axis.
fn concat_of_concat(t: &mut dyn Terms, root: &Root) -> Option<Term> {
    let outer = root.op::<Concat>();
    let mut args = vec![];
    for &arg in &root.form.args {
        match t.all::<Concat>(arg).into_iter().find(|(inner, parts)| inner == outer && !parts.contains(&arg)) {
            Some((_, parts)) => args.extend(parts),
            None => args.push(arg),
        }
    }
    (args.len() > root.form.args.len()).then(|| t.add(outer.clone().into(), &args))?
}

/// `reshape(reduce(x)) = reduce(x, keep)` if the shape is that of kept axes.
fn reduce_keeping_axes(t: &mut dyn Terms, root: &Root) -> Option<Term> {
    let (reduce, x) = t.unary::<Reduce>(root.arg(0)).into_iter().find(|(r, _)| !r.keep)?;
    let kept = |(i, d): (usize, &Dim)| if reduce.axes.contains(&i) { Dim::from(1) } else { d.clone() };
    let shape: Shape = t.shape(x).0.iter().enumerate().map(kept).collect();
    (shape == root.op::<Reshape>().shape).then(|| t.add(Reduce { keep: true, ..reduce }.into(), &[x]))?
}

/// `view(x * c) = view(x) * c` for a scalar constant `c`
fn scale_before_view(t: &mut dyn Terms, root: &Root) -> Option<Term> {
    for (x, c) in t.either::<Mul>(root.arg(0)) {
        if t.shape(c).elements().is(1) && t.constant(c).is_some() && t.ty(x) == t.ty(root.arg(0)) {
            let view = t.add((*root.form.op).clone(), &[x])?;
            let c = t.reshape(c, Shape::default())?;
            return t.add(Mul {}.into(), &[view, c]);
        }
    }
    None
}
