//! Constants that move: consecutive ones merge, and factors behind or before a product with a
//! constant weight go into the weight. What they are computed from is folded afterwards.

use super::Numerics::{Exact, Rounding};
use super::Use::Explore;
use super::{Root, Rule};
use crate::terms::{Case, Term, Terms};
use tfc_ir::dim::Dim;
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
    Rule::new("products-of-one-operand",  Rounding, Explore, &["add"],  products_of_one_operand),
    Rule::new("sub-of-constant",      Exact,    Explore, &["sub"], sub_of_constant),
];

/// Whether a number keeps its precision in the element type: it neither overflows nor comes close to 0.
pub(crate) fn is_normal(x: f64, elem: Elem) -> bool {
    let (smallest, largest) = match elem {
        Elem::F16 => (1e-4, 6e4),
        Elem::F64 => (f64::MIN_POSITIVE, f64::MAX),
        _ => (f64::from(f32::MIN_POSITIVE), f64::from(f32::MAX)),
    };
    (smallest..=largest).contains(&x.abs())
}

/// `x / c = x * (1/c)` for a scalar constant `c` with a normal reciprocal; a single number is divided, since that takes
/// no time and scales of quantization are such ones: what is rounded behind them shows their last bit
fn div_by_constant(t: &mut dyn Terms, root: &Root) -> Option<Term> {
    let c = t.number(root.arg(1))?;
    if t.shape(root.term).elements().is(1) || t.ty(root.arg(0)) != t.ty(root.term) || !is_normal(1.0 / c, t.ty(root.term).elem) {
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

/// What constants merge with goes inwards only: `x` is no such sum or product itself, or its constant does not merge with `c`. So
/// a chain gets one form more for each of its steps, not one for each way to take it apart.
fn merge<O: Case + Into<Op>>(t: &mut dyn Terms, root: &Root, op: O) -> Option<Term> {
    if !t.ty(root.term).elem.is_float() {
        return None;
    }
    let op: Op = op.into();
    for (y, d) in with_constant::<O>(t, root.term) {
        for (x, c) in with_constant::<O>(t, y) {
            if may_merge(t, &op, c, d) && !with_constant::<O>(t, x).into_iter().any(|(_, b)| may_merge(t, &op, b, c)) {
                let both = t.add(op.clone(), &[c, d])?;
                return t.add(op, &[x, both]);
            }
        }
    }
    None
}

/// Operands of all forms that apply the commutative operator `O` to a value that is not known and, behind it, to one that is.
fn with_constant<O: Case>(t: &dyn Terms, y: Term) -> Vec<(Term, Term)> {
    t.either::<O>(y).into_iter().filter(|&(x, c)| t.is_known(c) && !t.is_known(x)).collect()
}

/// Whether two constants may become one: it has no more elements than either, and if they are numbers, their product is normal.
fn may_merge(t: &dyn Terms, op: &Op, c: Term, d: Term) -> bool {
    if let (Op::Mul(_), Some(x), Some(y)) = (op, t.number(c), t.number(d))
        && !is_normal(x * y, t.ty(c).elem)
    {
        return false;
    }
    let (long, short) = if t.shape(c).rank() >= t.shape(d).rank() { (c, d) } else { (d, c) };
    let (long, short) = (&t.shape(long).0, &t.shape(short).0);
    let (before, behind) = long.split_at(long.len() - short.len());
    let repeats = |by: &[Dim], own: &[Dim]| own.iter().zip(by).all(|(own, by)| own == by || by.is(1));
    repeats(short, behind) || before.iter().all(|d| d.is(1)) && repeats(behind, short)
}

/// Whether a constant may move through sums: as a number it does not make terms overflow, nor 0 NaN.
fn may_move(t: &dyn Terms, c: Term) -> bool {
    t.number(c).is_none_or(|x| is_normal(x, t.ty(c).elem))
}

/// `(x + b) * c = x * c + b * c` for constants `b`, `c`, where `x` is no such sum itself
fn scale_of_sum(t: &mut dyn Terms, root: &Root) -> Option<Term> {
    if !t.ty(root.term).elem.is_float() {
        return None;
    }
    for (y, c) in with_constant::<Mul>(t, root.term) {
        if t.shape(c).rank() > 1 || !may_move(t, c) {
            continue;
        }
        for (x, b) in with_constant::<Add>(t, y) {
            if t.ty(x) == t.ty(root.term) && with_constant::<Add>(t, x).is_empty() {
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
        if !t.is_known(c) || t.shape(c).rank() > 1 || !may_move(t, c) {
            continue;
        }
        for (x, w) in t.binary::<Matmul>(y) {
            if t.is_known(w) && t.ty(w).elem.is_float() {
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
    if !t.is_known(w) || !t.ty(w).elem.is_float() {
        return None;
    }
    for (x, c) in t.either::<Mul>(root.arg(0)) {
        if !t.is_known(c) || t.shape(c).rank() > 1 || t.ty(x) != t.ty(root.arg(0)) || !may_move(t, c) {
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

/// `x V + x W = x (V + W)` for constants `V` and `W`, perhaps with a constant added to either product; `x A B` counts as `x (A B)`, as
/// adapters of low rank have it (LoRA, Hu et al. 2022)
fn products_of_one_operand(t: &mut dyn Terms, root: &Root) -> Option<Term> {
    if !t.ty(root.term).elem.is_float() {
        return None;
    }
    let [left, right] = [root.arg(0), root.arg(1)].map(|y| constant_products(t, y));
    for (a, b) in left.iter().flat_map(|a| right.iter().map(move |b| (a, b))) {
        let summands: Vec<Term> = a.summand.into_iter().chain(b.summand).collect();
        if !t.same(a.x, b.x) || summands.len() > 1 {
            continue;
        }
        let (v, w) = (a.matrix(t)?, b.matrix(t)?);
        if t.ty(v) != t.ty(w) {
            continue;
        }
        let both = t.add(Add {}.into(), &[v, w])?;
        let product = t.add(Matmul {}.into(), &[a.x, both])?;
        return summands.first().map_or(Some(product), |&c| t.add(Add {}.into(), &[product, c]));
    }
    None
}

/// A product `x W`, or `x A B`, with constants, and the constant that is added to it.
struct ConstantProduct {
    x: Term,
    factors: Vec<Term>,
    summand: Option<Term>,
}

impl ConstantProduct {
    /// The matrix that `x` is multiplied with.
    fn matrix(&self, t: &mut dyn Terms) -> Option<Term> {
        match self.factors[..] {
            [a, b] => t.add(Matmul {}.into(), &[a, b]),
            _ => Some(self.factors[0]),
        }
    }
}

/// The ways in which a term is a product with constants.
fn constant_products(t: &dyn Terms, y: Term) -> Vec<ConstantProduct> {
    let sums = with_constant::<Add>(t, y).into_iter().map(|(y, c)| (y, Some(c)));
    let mut found = vec![];
    for (y, summand) in std::iter::once((y, None)).chain(sums) {
        for (x, w) in known_products(t, y) {
            let inner = known_products(t, x).into_iter().map(|(x, a)| ConstantProduct { x, factors: vec![a, w], summand });
            found.extend(inner);
            found.push(ConstantProduct { x, factors: vec![w], summand });
        }
    }
    found
}

/// Operands of the forms that multiply what is not known by a constant matrix of rank 2.
fn known_products(t: &dyn Terms, y: Term) -> Vec<(Term, Term)> {
    let is_matrix = |w: Term| t.is_known(w) && t.shape(w).rank() == 2;
    t.binary::<Matmul>(y).into_iter().filter(|&(x, w)| is_matrix(w) && !t.is_known(x)).collect()
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
        if !t.is_known(c) || !may_move(t, c) {
            continue;
        }
        for (conv, args) in t.all::<Conv>(y) {
            if !args[1..].iter().all(|&a| t.is_known(a)) {
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
        if !t.is_known(c) {
            continue;
        }
        for (conv, args) in t.all::<Conv>(y) {
            let channels = Shape(vec![t.shape(args[1])[0].clone()]);
            let rank = t.ty(args[1]).rank();
            let c = per_channel(t, c, rank)?;
            let bias = match args.get(2) {
                Some(&b) if t.is_known(b) => t.add(Add {}.into(), &[b, c])?,
                Some(_) => continue,
                None => t.broadcast(c, &channels)?,
            };
            return t.add(conv.into(), &[args[0], args[1], bias]);
        }
    }
    None
}
