//! Constants that move: consecutive ones merge, and factors behind or before a product with a
//! constant weight go into the weight. What they are computed from is folded afterwards.

use super::Numerics::{Exact, Rounding};
use super::Use::Explore;
use super::{Root, Rule};
use crate::terms::{Case, Term, Terms};
use tfc_ir::ops::{Add, Conv, Matmul, Mul, Op};
use tfc_ir::types::{Elem, Shape};

#[rustfmt::skip]
pub(super) const RULES: &[Rule] = &[
    Rule::new("div-by-constant",      Rounding, Explore, &["div"], div_by_constant),
    Rule::new("merge-summands",       Rounding, Explore, &["add"], merge_summands),
    Rule::new("merge-factors",        Rounding, Explore, &["mul"], merge_factors),
    Rule::new("scale-of-sum",         Rounding, Explore, &["mul"], scale_of_sum),
    Rule::new("scale-behind-matmul",  Rounding, Explore, &["mul"], scale_behind_matmul),
    Rule::new("scale-before-matmul",  Rounding, Explore, &["matmul"], scale_before_matmul),
    Rule::new("scale-behind-conv",    Rounding, Explore, &["mul"], scale_behind_conv),
    Rule::new("bias-behind-conv",     Rounding, Explore, &["add"], bias_behind_conv),
    Rule::new("sub-of-constant",      Exact,    Explore, &["sub"], sub_of_constant),
];

/// Whether a term's value is known, or follows from known ones.
fn is_constant(t: &dyn Terms, y: Term) -> bool {
    fn within(t: &dyn Terms, y: Term, depth: usize) -> bool {
        t.constant(y).is_some()
            || (depth > 0 && t.forms(y).iter().any(|f| !f.args.is_empty() && f.args.iter().all(|&a| within(t, a, depth - 1))))
    }
    within(t, y, 3)
}

/// Whether a number keeps its precision in the element type: it neither overflows nor comes close to 0.
fn is_normal(x: f64, elem: Elem) -> bool {
    let (smallest, largest) = match elem {
        Elem::F16 => (1e-4, 6e4),
        Elem::F64 => (f64::MIN_POSITIVE, f64::MAX),
        _ => (f64::from(f32::MIN_POSITIVE), f64::from(f32::MAX)),
    };
    (smallest..=largest).contains(&x.abs())
}

/// `x / c = x * (1/c)` for a scalar constant `c` with a normal reciprocal
fn div_by_constant(t: &mut dyn Terms, root: &Root) -> Option<Term> {
    let c = t.number(root.arg(1))?;
    if t.ty(root.arg(0)) != t.ty(root.term) || !is_normal(1.0 / c, t.ty(root.term).elem) {
        return None;
    }
    let factor = t.scalar_like(root.arg(0), 1.0 / c);
    t.add(Mul {}.into(), &[root.arg(0), factor])
}

/// `x - c = x + -c` for a float scalar constant `c`
fn sub_of_constant(t: &mut dyn Terms, root: &Root) -> Option<Term> {
    let c = t.number(root.arg(1))?;
    if t.ty(root.arg(0)) != t.ty(root.term) {
        return None;
    }
    let minus = t.scalar_like(root.arg(0), -c);
    t.add(Add {}.into(), &[root.arg(0), minus])
}

/// `(x + c) + d = x + (c + d)` for constants `c`, `d`
fn merge_summands(t: &mut dyn Terms, root: &Root) -> Option<Term> {
    merge::<Add>(t, root, Add {})
}

/// `(x * c) * d = x * (c * d)` for constants `c`, `d` whose product is normal, if they are numbers
fn merge_factors(t: &mut dyn Terms, root: &Root) -> Option<Term> {
    merge::<Mul>(t, root, Mul {})
}

fn merge<O: Case + Into<Op>>(t: &mut dyn Terms, root: &Root, op: O) -> Option<Term> {
    let elem = t.ty(root.term).elem;
    if !elem.is_float() {
        return None;
    }
    let is_product = matches!(op.clone().into(), Op::Mul(_));
    for (y, d) in t.either::<O>(root.term) {
        if !is_constant(t, d) || is_constant(t, y) {
            continue;
        }
        for (x, c) in t.either::<O>(y) {
            if !is_constant(t, c) || is_constant(t, x) {
                continue;
            }
            if let (true, Some(c), Some(d)) = (is_product, t.number(c), t.number(d))
                && !is_normal(c * d, elem)
            {
                continue;
            }
            let both = t.add(op.clone().into(), &[c, d])?;
            if t.ty(both).shape.elements() != t.ty(c).shape.elements().maximum(&t.ty(d).shape.elements()) {
                continue;
            }
            return t.add(op.into(), &[x, both]);
        }
    }
    None
}

/// `(x + b) * c = x * c + b * c` for constants `b`, `c`
fn scale_of_sum(t: &mut dyn Terms, root: &Root) -> Option<Term> {
    if !t.ty(root.term).elem.is_float() {
        return None;
    }
    for (y, c) in t.either::<Mul>(root.term) {
        if !is_constant(t, c) || t.shape(c).rank() > 1 {
            continue;
        }
        for (x, b) in t.either::<Add>(y) {
            if is_constant(t, b) && !is_constant(t, x) && t.ty(x) == t.ty(root.term) {
                let (left, right) = (t.add(Mul {}.into(), &[x, c])?, t.add(Mul {}.into(), &[b, c])?);
                return t.add(Add {}.into(), &[left, right]);
            }
        }
    }
    None
}

/// `(x w) * c = x (w * c)` for constants `w` and `c`, which is a scalar or has one number per column
fn scale_behind_matmul(t: &mut dyn Terms, root: &Root) -> Option<Term> {
    for (y, c) in t.either::<Mul>(root.term) {
        if !is_constant(t, c) || t.shape(c).rank() > 1 {
            continue;
        }
        for (x, w) in t.binary::<Matmul>(y) {
            if is_constant(t, w) && t.ty(w).elem.is_float() {
                let scaled = t.add(Mul {}.into(), &[w, c])?;
                return (t.ty(scaled) == t.ty(w)).then(|| t.add(Matmul {}.into(), &[x, scaled]))?;
            }
        }
    }
    None
}

/// `(x * c) w = x (c * w)` for constants `w` and `c`, which is a scalar or has one number per row of `w`
fn scale_before_matmul(t: &mut dyn Terms, root: &Root) -> Option<Term> {
    let w = root.arg(1);
    if !is_constant(t, w) || !t.ty(w).elem.is_float() {
        return None;
    }
    for (x, c) in t.either::<Mul>(root.arg(0)) {
        if !is_constant(t, c) || t.shape(c).rank() > 1 || t.ty(x) != t.ty(root.arg(0)) {
            continue;
        }
        let mut rows = t.shape(c).clone();
        rows.0.push(1.into());
        let factor = if t.shape(c).rank() == 0 { c } else { t.reshape(c, rows)? };
        let scaled = t.add(Mul {}.into(), &[factor, w])?;
        if t.ty(scaled) == t.ty(w) {
            return t.add(Matmul {}.into(), &[x, scaled]);
        }
    }
    None
}

/// The numbers per channel that `c` holds, in shape `[channels]` (or `[1]`), if it multiplies or adds to
/// the result of a convolution of that rank: all axes but the second have size 1.
fn per_channel(t: &mut dyn Terms, c: Term, rank: usize) -> Option<Term> {
    let shape = t.shape(c).clone();
    let channel = shape.rank().checked_sub(rank - 1);
    let others_are_one = shape.0.iter().enumerate().all(|(i, d)| d.is(1) || Some(i) == channel);
    if shape.rank() > rank || !others_are_one {
        return None;
    }
    let size = shape.elements();
    t.reshape(c, Shape(vec![size]))
}

/// `conv(x, w, b) * c = conv(x, w * c, b * c)` for constants `w`, `b` and `c`, one number per channel
fn scale_behind_conv(t: &mut dyn Terms, root: &Root) -> Option<Term> {
    for (y, c) in t.either::<Mul>(root.term) {
        if !is_constant(t, c) {
            continue;
        }
        for (conv, args) in t.all::<Conv>(y) {
            if !args[1..].iter().all(|&a| is_constant(t, a)) {
                continue;
            }
            let w = args[1];
            let rank = t.ty(w).rank();
            let c = per_channel(t, c, rank)?;
            let mut column = vec![1.into(); rank];
            column[0] = t.shape(c)[0].clone();
            let factor = t.reshape(c, Shape(column))?;
            let mut scaled = vec![args[0], t.add(Mul {}.into(), &[w, factor])?];
            for &b in &args[2..] {
                scaled.push(t.add(Mul {}.into(), &[b, c])?);
            }
            return (t.ty(scaled[1]) == t.ty(w)).then(|| t.add(conv.into(), &scaled))?;
        }
    }
    None
}

/// `conv(x, w [, b]) + c = conv(x, w, [b +] c)` for constants `b` and `c`, one number per channel
fn bias_behind_conv(t: &mut dyn Terms, root: &Root) -> Option<Term> {
    for (y, c) in t.either::<Add>(root.term) {
        if !is_constant(t, c) {
            continue;
        }
        for (conv, args) in t.all::<Conv>(y) {
            let channels = Shape(vec![t.shape(args[1])[0].clone()]);
            let rank = t.ty(args[1]).rank();
            let c = per_channel(t, c, rank)?;
            let bias = match args.get(2) {
                Some(&b) if is_constant(t, b) => t.add(Add {}.into(), &[b, c])?,
                Some(_) => continue,
                None => t.broadcast(c, &channels)?,
            };
            return t.add(conv.into(), &[args[0], args[1], bias]);
        }
    }
    None
}
