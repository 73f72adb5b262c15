//! Rotary position embedding, as exporters write it out.

use super::Numerics::Rounding;
use super::Use::Explore;
use super::{Root, Rule};
use crate::terms::{Term, Terms};
use tfc_ir::dim::Dim;
use tfc_ir::ops::{Add, Concat, Expand, Mul, Neg, Op, Reshape, Rotary, Slice, Sub};
use tfc_ir::types::Shape;

#[rustfmt::skip]
pub(super) const RULES: &[Rule] = &[
    Rule::new("rotary-by-rotated-halves", Rounding, Explore, &["add"],     rotary_by_rotated_halves),
    Rule::new("rotary-by-rotated-pairs",  Rounding, Explore, &["add"],     rotary_by_rotated_pairs),
    Rule::new("rotary-by-halves",         Rounding, Explore, &["concat"],  rotary_by_halves),
];

/// How many applications are looked through for two equal halves: as many as exporters put between
/// the concatenation of frequencies and their use.
const MAX_DEPTH: usize = 10;

/// What a slice of the last axis takes, with everything of the other axes.
struct LastSlice {
    x: Term,
    start: Dim,
    step: i64,
    len: Dim,
}

fn last_slice(t: &dyn Terms, y: Term) -> Option<LastSlice> {
    t.all::<Slice>(y).into_iter().find_map(|(s, args)| {
        let x = args[0];
        let last = t.ty(x).rank().checked_sub(1)?;
        let whole = |i: usize| s.starts[i].is(0) && s.steps[i] == 1 && s.lens[i] == t.shape(x)[i];
        (0..last).all(whole).then(|| LastSlice { x, start: s.starts[last].clone(), step: s.steps[last], len: s.lens[last].clone() })
    })
}

/// Half of the size of the last axis.
fn half_size(t: &dyn Terms, x: Term) -> Option<Dim> {
    t.shape(x).0.last()?.div_exact(&Dim::from(2))
}

/// Whether `y` takes `len` elements of the last axis of `x` from `start` in steps of `step`, with
/// everything of the other axes. Where `x` is a slice itself, both may be slices of one thing.
fn takes(t: &dyn Terms, y: Term, x: Term, start: &Dim, step: i64, len: &Dim) -> bool {
    if last_slice(t, y).is_some_and(|s| t.same(s.x, x) && s.step == step && s.len == *len && s.start == *start) {
        return true;
    }
    let Some(last) = t.ty(x).rank().checked_sub(1) else { return false };
    let within = |outer: &Slice, inner: &Slice| {
        (0..=last).all(|i| {
            let (from, by, lens) = if i == last { (start.clone(), step, len) } else { (Dim::from(0), 1, &outer.lens[i]) };
            let first = outer.starts[i].clone() + Dim::from(outer.steps[i]) * from;
            inner.starts[i] == first && outer.steps[i].checked_mul(by) == Some(inner.steps[i]) && inner.lens[i] == *lens
        })
    };
    let outers = t.all::<Slice>(x);
    t.all::<Slice>(y).iter().any(|(inner, y)| outers.iter().any(|(outer, x)| t.same(x[0], y[0]) && within(outer, inner)))
}

/// Whether `y` is the first (0) or second (1) half of the last axis of `x`.
fn is_half(t: &dyn Terms, y: Term, x: Term, which: i64) -> bool {
    half_size(t, x).is_some_and(|half| takes(t, y, x, &(half.clone() * Dim::from(which)), 1, &half))
}

/// Whether `y` is every second element along the last axis of `x`, from the first (0) or second (1) on.
fn is_every_second(t: &dyn Terms, y: Term, x: Term, which: i64) -> bool {
    half_size(t, x).is_some_and(|half| takes(t, y, x, &which.into(), 2, &half))
}

fn negated(t: &dyn Terms, y: Term) -> Option<Term> {
    let neg = t.unary::<Neg>(y).into_iter().next().map(|(_, x)| x);
    neg.or_else(|| t.either::<Mul>(y).into_iter().find(|&(_, c)| t.is(c, -1)).map(|(x, _)| x))
}

/// Whether `y = concat(-b, a)` for the halves `a, b` of the last axis of `x`.
fn is_rotated_halves(t: &dyn Terms, y: Term, x: Term) -> bool {
    let rank = t.ty(x).rank();
    t.all::<Concat>(y).iter().any(|(c, parts)| {
        let [b, a] = parts[..] else { return false };
        c.axis + 1 == rank && is_half(t, a, x, 0) && negated(t, b).is_some_and(|b| is_half(t, b, x, 1))
    })
}

/// Whether `y` has the pairs `-b, a` where the last axis of `x` has the pairs `a, b`.
fn is_rotated_pairs(t: &dyn Terms, y: Term, x: Term) -> bool {
    let rank = t.ty(x).rank();
    let column = |y: Term| t.unary::<Reshape>(y).into_iter().find(|(r, z)| is_column(&r.shape, t.shape(*z))).map(|(_, z)| z);
    t.unary::<Reshape>(y).into_iter().any(|(_, pairs)| {
        t.all::<Concat>(pairs).iter().any(|(c, parts)| {
            let [b, a] = parts[..] else { return false };
            let second = column(a).is_some_and(|a| is_every_second(t, a, x, 0));
            let minus = column(b).and_then(|b| negated(t, b)).or_else(|| negated(t, b).and_then(column));
            c.axis == rank && second && minus.is_some_and(|b| is_every_second(t, b, x, 1))
        })
    })
}

/// Whether `shape` is `of` with an axis of size 1 behind.
fn is_column(shape: &Shape, of: &Shape) -> bool {
    shape.0.split_last().is_some_and(|(last, rest)| last.is(1) && rest == of.0)
}

/// How the two halves of something repeat each other along the last axis.
#[derive(Clone, Copy, PartialEq)]
enum Repetition {
    /// `f, f`
    Halves,
    /// `f₀, f₀, f₁, f₁, …`
    Pairs,
}

/// The `f` that `y` repeats along its last axis, if it provably repeats one.
fn repeated(t: &mut dyn Terms, y: Term, how: Repetition, depth: usize) -> Option<Term> {
    let depth = depth.checked_sub(1)?;
    let last = t.ty(y).rank().checked_sub(1)?;
    let half = half_size(t, y)?;
    if constant_repeats(t, y, how) {
        return slice_last(t, y, how, half);
    }
    for form in t.forms(y) {
        let inner = match &*form.op {
            Op::Concat(c) if how == Repetition::Halves && c.axis == last => match form.args[..] {
                [a, b] if t.same(a, b) => return Some(a),
                _ => None,
            },
            Op::Concat(c) if c.axis != last => {
                let parts: Option<Vec<Term>> = form.args.iter().map(|&a| repeated(t, a, how, depth)).collect();
                parts.and_then(|parts| t.add(c.clone().into(), &parts))
            }
            Op::Reshape(r) => reshaped(t, r, form.args[0], how, depth),
            Op::Expand(e) if t.ty(form.args[0]).rank() > 0 && t.shape(form.args[0]).0.last() == t.shape(y).0.last() => {
                let mut shape = e.shape.clone();
                shape.0[last] = half.clone();
                repeated(t, form.args[0], how, depth).and_then(|x| t.add(Expand { shape }.into(), &[x]))
            }
            Op::Transpose(p) if p.perm[last] == last => repeated(t, form.args[0], how, depth).and_then(|x| t.add(p.clone().into(), &[x])),
            Op::Slice(s) if s.starts[last].is(0) && s.steps[last] == 1 && s.lens[last] == t.shape(form.args[0])[last] => {
                let mut s = s.clone();
                s.lens.0[last] = half.clone();
                repeated(t, form.args[0], how, depth).and_then(|x| t.add(s.into(), &[x]))
            }
            Op::Gather(g) if g.axis + 1 < t.ty(form.args[0]).rank() => {
                repeated(t, form.args[0], how, depth).and_then(|x| t.add(g.clone().into(), &[x, form.args[1]]))
            }
            op if op.traits().elementwise => {
                let repeats = |t: &mut dyn Terms, a: Term| {
                    // An operand that has one element along the last axis serves both halves.
                    let one = t.shape(a).0.last().is_none_or(|d| d.is(1));
                    if one { Some(a) } else { repeated(t, a, how, depth) }
                };
                let args: Option<Vec<Term>> = form.args.iter().map(|&a| repeats(t, a)).collect();
                args.and_then(|args| t.add(op.clone(), &args))
            }
            _ => None,
        };
        if inner.is_some() {
            return inner;
        }
    }
    None
}

/// [`repeated`] for a reshape of `x`: one that keeps the last axis, or that flattens `f` beside itself.
fn reshaped(t: &mut dyn Terms, r: &Reshape, x: Term, how: Repetition, depth: usize) -> Option<Term> {
    let (last, rest) = r.shape.0.split_last()?;
    let half = last.div_exact(&Dim::from(2))?;
    let target = Shape(rest.iter().cloned().chain([half.clone()]).collect());
    let inner = t.shape(x).clone();
    if inner.0.last() == Some(last) {
        let f = repeated(t, x, how, depth)?;
        return t.reshape(f, target);
    }
    // Axes of size 1 behind the repetition change nothing.
    let ones = inner.0.iter().rev().take_while(|d| d.is(1)).count();
    let (Some(twice), Some(own)) = (inner.rank().checked_sub(ones + 1), inner.rank().checked_sub(ones + 2)) else { return None };
    if how == Repetition::Halves || !inner[twice].is(2) || inner[own] != half {
        return None;
    }
    let once = |t: &dyn Terms, c: Term| t.shape(c).0.iter().rev().take(ones + 1).filter(|d| d.is(1)).count() == ones + 1;
    let column = t.unary::<Expand>(x).into_iter().map(|(_, c)| c).find(|&c| once(t, c) && t.shape(c).elements() == target.elements());
    let doubled = |(c, parts): (Concat, Vec<Term>)| match parts[..] {
        [a, b] if c.axis == twice && t.same(a, b) => Some(a),
        _ => None,
    };
    let column = column.or_else(|| t.all::<Concat>(x).into_iter().find_map(doubled))?;
    t.reshape(column, target)
}

fn constant_repeats(t: &dyn Terms, y: Term, how: Repetition) -> bool {
    let Some(c) = t.constant(y) else { return false };
    let Some(&n) = c.sizes().last() else { return false };
    let at = |i: usize| match how {
        Repetition::Halves => i + n / 2,
        Repetition::Pairs => i + 1,
    };
    let first = |i: usize| match how {
        Repetition::Halves => i % n < n / 2,
        Repetition::Pairs => i.is_multiple_of(2),
    };
    n > 0 && n.is_multiple_of(2) && (0..c.len()).filter(|&i| first(i)).all(|i| c.get(i) == c.get(at(i)))
}

/// The first of two halves, or of every pair.
fn slice_last(t: &mut dyn Terms, y: Term, how: Repetition, half: Dim) -> Option<Term> {
    let mut lens = t.shape(y).clone();
    let rank = lens.rank();
    lens.0[rank - 1] = half;
    let mut steps = vec![1; rank];
    steps[rank - 1] = if how == Repetition::Pairs { 2 } else { 1 };
    t.add(Slice { starts: vec![0.into(); rank], steps, lens }.into(), &[y])
}

/// `x * cos + rotated(x) * sin` for tables that repeat themselves.
fn rotary(t: &mut dyn Terms, root: &Root, rotated: fn(&dyn Terms, Term, Term) -> bool, how: Repetition) -> Option<Term> {
    for (a, b) in t.either::<Add>(root.term) {
        for (x, cos) in t.either::<Mul>(a) {
            if t.ty(x) != t.ty(root.term) {
                continue;
            }
            for (r, sin) in t.either::<Mul>(b) {
                if t.ty(r) == t.ty(x) && rotated(t, r, x) {
                    let cos = repeated(t, cos, how, MAX_DEPTH)?;
                    let sin = repeated(t, sin, how, MAX_DEPTH)?;
                    return t.add(Rotary { interleaved: how == Repetition::Pairs }.into(), &[x, cos, sin]);
                }
            }
        }
    }
    None
}

/// `x * cos + concat(-b, a) * sin = rotary(x, cos', sin')` for the halves `a, b` of the last axis of
/// `x`, where `cos` and `sin` are `cos'` and `sin'` twice along that axis
fn rotary_by_rotated_halves(t: &mut dyn Terms, root: &Root) -> Option<Term> {
    rotary(t, root, is_rotated_halves, Repetition::Halves)
}

/// `x * cos + pairs(-b, a) * sin = rotary(x, cos', sin')` for the pairs `a, b` along the last axis of
/// `x`, where `cos` and `sin` have every element of `cos'` and `sin'` twice
fn rotary_by_rotated_pairs(t: &mut dyn Terms, root: &Root) -> Option<Term> {
    rotary(t, root, is_rotated_pairs, Repetition::Pairs)
}

/// `concat(a * cos - b * sin, b * cos + a * sin) = rotary(x, cos, sin)` for the halves `a, b` of the
/// last axis of `x`
fn rotary_by_halves(t: &mut dyn Terms, root: &Root) -> Option<Term> {
    let [left, right] = root.form.args[..] else { return None };
    if root.op::<Concat>().axis + 1 != t.ty(root.term).rank() {
        return None;
    }
    for (a_cos, b_sin) in t.binary::<Sub>(left) {
        for (a, cos) in t.either::<Mul>(a_cos) {
            let Some(x) = last_slice(t, a).map(|s| s.x).filter(|&x| is_half(t, a, x, 0)) else { continue };
            for (b, sin) in t.either::<Mul>(b_sin) {
                let is_product = |y: Term, p: Term, q: Term| t.either::<Mul>(y).iter().any(|&(u, v)| t.same(u, p) && t.same(v, q));
                let sums = t.either::<Add>(right);
                if is_half(t, b, x, 1) && sums.iter().any(|&(u, v)| is_product(u, b, cos) && is_product(v, a, sin)) {
                    return t.add(Rotary { interleaved: false }.into(), &[x, cos, sin]);
                }
            }
        }
    }
    None
}
