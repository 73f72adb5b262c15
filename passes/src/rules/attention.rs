//! Attention: `softmax(q kᵀ * scale + bias) v`, wherever exporters put the scale, the mask and reshapes.

use super::Numerics::{Exact, Rounding};
use super::Use::Explore;
use super::{Root, Rule};
use crate::terms::{Term, Terms};
use tfc_ir::dim::Dim;
use tfc_ir::ops::{Add, Attention, Cast, Div, Expand, IsNan, Le, Lt, Matmul, Mul, Neg, Not, Op, Reshape, Select, Softmax, Sub, Transpose};
use tfc_ir::tensor::Scalar;
use tfc_ir::types::{Elem, Shape};

#[rustfmt::skip]
pub(super) const RULES: &[Rule] = &[
    Rule::new("attention",               Rounding, Explore, &["matmul"],    attention),
    Rule::new("attention-transposed",    Rounding, Explore, &["matmul"],    attention_transposed),
    Rule::new("attention-causal",        Rounding, Explore, &["attention"], attention_causal),
    Rule::new("attention-grouped-heads", Exact,    Explore, &["attention"], attention_grouped_heads),
    Rule::new("attention-scaled-query",  Rounding, Explore, &["attention"], attention_scaled_operands),
];

/// How many applications may lie between a softmax and the product of queries and keys: masks,
/// position biases, scales and reshapes, with room to spare.
const MAX_DEPTH: usize = 12;

/// How many conversions, reshapes and replacements of NaN may lie between a softmax and its product with values.
const MAX_WRAPPERS: usize = 5;

/// `softmax(scores) v = attention(q, k, v, bias)` where the scores are made of `q kᵀ` by factors,
/// summands, masks, reshapes of the axes before the last two, and conversions to a wider float: see [`scores`]
fn attention(t: &mut dyn Terms, root: &Root) -> Option<Term> {
    attend(t, root.arg(0), root.arg(1))
}

/// `vᵀ softmax(scores)ᵀ = attention(q, k, v, bias)ᵀ`, with transposed last axes throughout
fn attention_transposed(t: &mut dyn Terms, root: &Root) -> Option<Term> {
    let p = transposed(t, root.arg(1))?;
    probabilities(t, p, MAX_WRAPPERS)?;
    let v = swap_last(t, root.arg(0))?;
    let y = attend(t, p, v)?;
    swap_last(t, y)
}

/// `p v` as attention.
fn attend(t: &mut dyn Terms, p: Term, v: Term) -> Option<Term> {
    let probabilities = probabilities(t, p, MAX_WRAPPERS)?;
    let s = scores(t, probabilities.scores, 1.0, MAX_DEPTH)?;
    let narrow = t.ty(v).elem;
    let elem = t.ty(probabilities.scores).elem;
    let frame = t.shape(p).clone();
    let target = heads(&[s.frame.clone(), t.shape(probabilities.scores).clone(), frame.clone()])?;
    let columns = t.shape(v).0.last()?.clone();
    let q = reframe(t, s.q, &s.frame, &target)?;
    let k = swap_last(t, s.k_transposed)?;
    let k = reframe(t, k, &s.frame, &target)?;
    let v = reframe(t, v, &frame, &target)?;
    let (q, k, v) = (full(t, q, &target, true)?, full(t, k, &target, false)?, full(t, v, &target, false)?);
    let (k, v) = same_heads(t, k, v, &target)?;
    let mask_value = if s.hides() { Some(s.mask_value()?.into()) } else { None };
    // Whether NaN may have to become 0.
    let mut replaced = false;
    let mut bias = None;
    for step in &s.steps {
        bias = Some(match *step {
            Step::Add { term, ref frame } => {
                replaced |= probabilities.nan_to_zero && !is_finite(t, term, MAX_DEPTH);
                let term = reframe(t, term, frame, &target)?;
                let term = converted(t, term, elem)?;
                match bias {
                    Some(sum) => t.add(Add {}.into(), &[sum, term])?,
                    None => term,
                }
            }
            Step::Hide { condition, hidden_where, fill, ref frame, .. } => {
                replaced |= probabilities.nan_to_zero && !fill.is_finite();
                let condition = reframe(t, condition, frame, &target)?;
                let fill = t.scalar_like(probabilities.scores, fill);
                let shown = bias.unwrap_or_else(|| t.scalar_like(probabilities.scores, 0.0));
                t.add(Select {}.into(), &if hidden_where { [condition, fill, shown] } else { [condition, shown, fill] })?
            }
        });
    }
    let mut args = vec![converted(t, q, elem)?, converted(t, k, elem)?, converted(t, v, elem)?];
    args.extend(bias);
    let mut y = t.add(Attention { scale: s.scale.into(), causal: false, mask_value }.into(), &args)?;
    if replaced {
        // A row that sees no key: all of its probabilities are NaN, and so is its result.
        let nan = t.add(IsNan {}.into(), &[y])?;
        let zero = t.scalar_like(y, 0.0);
        y = t.add(Select {}.into(), &[nan, zero, y])?;
    }
    let y = converted(t, y, narrow)?;
    let mut shape = frame;
    shape.0.pop();
    shape.0.push(columns);
    t.reshape(y, shape)
}

/// `x` with elements of another type.
fn converted(t: &mut dyn Terms, x: Term, to: Elem) -> Option<Term> {
    if t.ty(x).elem == to { Some(x) } else { t.add(Cast { to }.into(), &[x]) }
}

/// A softmax over the last axis.
struct Probabilities {
    /// What it is taken of.
    scores: Term,
    /// Whether NaNs in it become 0 afterwards.
    nan_to_zero: bool,
}

/// The softmax behind reshapes that keep the last two axes, behind the replacement of NaN by 0, and
/// behind the conversion to a narrower float.
fn probabilities(t: &dyn Terms, p: Term, depth: usize) -> Option<Probabilities> {
    let depth = depth.checked_sub(1)?;
    let last = t.ty(p).rank().checked_sub(1)?;
    if let Some((_, scores)) = t.unary::<Softmax>(p).into_iter().find(|(s, _)| s.axis == last && !s.log) {
        return Some(Probabilities { scores, nan_to_zero: false });
    }
    for (_, args) in t.all::<Select>(p) {
        let guards = t.unary::<IsNan>(args[0]).iter().any(|&(_, x)| t.same(x, args[2]));
        if guards && t.is(args[1], 0) {
            return Some(Probabilities { nan_to_zero: true, ..probabilities(t, args[2], depth)? });
        }
    }
    let reshapes = t.unary::<Reshape>(p).into_iter().filter(|&(_, x)| keeps_matrices(t.shape(x), t.shape(p))).map(|(_, x)| x);
    let narrowed = t.unary::<Cast>(p).into_iter().filter(|&(_, x)| is_wider(t.ty(x).elem, t.ty(p).elem)).map(|(_, x)| x);
    reshapes.chain(narrowed).find_map(|x| probabilities(t, x, depth))
}

/// Whether `wide` is a float type that holds every value of the float type `narrow`.
fn is_wider(wide: Elem, narrow: Elem) -> bool {
    wide.is_float() && narrow.is_float() && wide.bits() > narrow.bits()
}

/// Whether two shapes agree in the last two axes.
fn keeps_matrices(a: &Shape, b: &Shape) -> bool {
    a.rank() >= 2 && b.rank() >= 2 && a.0[a.rank() - 2..] == b.0[b.rank() - 2..]
}

/// `scale * q kᵀ`, and what is done to it.
struct Scores {
    q: Term,
    k_transposed: Term,
    scale: f64,
    /// The shape of `q kᵀ`.
    frame: Shape,
    /// From the innermost on.
    steps: Vec<Step>,
}

/// What is done to scores; `frame` is the shape that they have there.
enum Step {
    /// `scores + term`.
    Add { term: Term, frame: Shape },
    /// `fill` in the place of the scores where `condition` is `hidden_where`.
    /// The fill is below 0; whether it [`absorbs_scores`].
    Hide { condition: Term, hidden_where: bool, fill: f64, absorbs: bool, frame: Shape },
}

impl Scores {
    fn hides(&self) -> bool {
        self.steps.iter().any(|step| matches!(step, Step::Hide { .. }))
    }

    /// The greatest bias that hides a key, where the bias is made of the steps, so that it hides the keys that
    /// the steps hide and no other. None if sums of other steps may be as low as what hides.
    fn mask_value(&self) -> Option<f64> {
        let sums = self.steps.iter().any(|step| matches!(step, Step::Add { .. }));
        let mut greatest = f64::NEG_INFINITY;
        for step in &self.steps {
            let Step::Hide { fill, absorbs, .. } = *step else { continue };
            if sums && !absorbs {
                return None;
            }
            greatest = greatest.max(fill);
        }
        // Summands that come behind it move a number a little.
        Some(if sums && greatest.is_finite() { greatest / 2.0 } else { greatest })
    }
}

/// Reads `s` times `scale` as scores. Looked through are factors that are numbers or constant along
/// the last two axes, summands, `select`s of a negative number, reshapes that keep
/// the last two axes, the exchange of these, and conversions to a wider float.
fn scores(t: &mut dyn Terms, s: Term, scale: f64, depth: usize) -> Option<Scores> {
    let depth = depth.checked_sub(1)?;
    if let Some((q, k_transposed)) = t.binary::<Matmul>(s).into_iter().next() {
        return Some(Scores { q, k_transposed, scale, frame: t.shape(s).clone(), steps: vec![] });
    }
    for form in t.forms(s) {
        let found = match (&*form.op, &form.args[..]) {
            (Op::Mul(_), &[a, b]) => scaled_scores(t, s, a, b, scale, depth).or_else(|| scaled_scores(t, s, b, a, scale, depth)),
            (Op::Div(Div {}), &[a, b]) => match t.number(b) {
                Some(c) if t.ty(a) == t.ty(s) => scores(t, a, scale / c, depth),
                _ => None,
            },
            (Op::Add(_), &[a, b]) => summed_scores(t, s, a, b, scale, depth).or_else(|| summed_scores(t, s, b, a, scale, depth)),
            (Op::Sub(Sub {}), &[a, b]) if t.ty(a) == t.ty(s) => scores(t, a, scale, depth).and_then(|inner| {
                let minus = t.add(Neg {}.into(), &[b])?;
                summand(t, s, inner, minus, scale)
            }),
            (Op::Select(_), &[c, a, b]) => masked_scores(t, s, [c, a, b], scale, depth),
            (Op::Reshape(_), &[a]) if keeps_matrices(t.shape(a), t.shape(s)) => scores(t, a, scale, depth),
            (Op::Cast(_), &[a]) if is_wider(t.ty(s).elem, t.ty(a).elem) => scores(t, a, scale, depth),
            (Op::Transpose(p), &[a]) if swaps_last(&p.perm) => scores(t, a, scale, depth).and_then(|inner| transposed_scores(t, inner)),
            _ => None,
        };
        if found.is_some() {
            return found;
        }
    }
    None
}

/// The scores of keys for queries, from those of queries for keys.
fn transposed_scores(t: &mut dyn Terms, s: Scores) -> Option<Scores> {
    if !s.steps.is_empty() {
        return None;
    }
    let mut frame = s.frame;
    let rank = frame.rank();
    frame.0.swap(rank - 2, rank - 1);
    Some(Scores { q: swap_last(t, s.k_transposed)?, k_transposed: swap_last(t, s.q)?, scale: s.scale, frame, steps: vec![] })
}

/// Scores `a * factor`.
fn scaled_scores(t: &mut dyn Terms, s: Term, a: Term, factor: Term, scale: f64, depth: usize) -> Option<Scores> {
    if t.ty(a) != t.ty(s) {
        return None;
    }
    if let Some(c) = t.number(factor) {
        return scores(t, a, scale * c, depth);
    }
    // One factor per head, as with learnt temperatures: it goes to the queries.
    let shape = t.shape(factor).clone();
    if !shape.0.iter().rev().take(2).all(|d| d.is(1)) {
        return None;
    }
    let inner = scores(t, a, scale, depth)?;
    if inner.frame != *t.shape(s) || !inner.steps.is_empty() {
        return None;
    }
    let q = t.add(Mul {}.into(), &[inner.q, factor])?;
    Some(Scores { q, ..inner })
}

/// Scores `a + b` where `b` broadcasts to `a`.
fn summed_scores(t: &mut dyn Terms, s: Term, a: Term, b: Term, scale: f64, depth: usize) -> Option<Scores> {
    if t.ty(a) != t.ty(s) {
        return None;
    }
    let inner = scores(t, a, scale, depth)?;
    summand(t, s, inner, b, scale)
}

/// `inner + term * scale`
fn summand(t: &mut dyn Terms, s: Term, mut inner: Scores, term: Term, scale: f64) -> Option<Scores> {
    let term = if scale == 1.0 {
        term
    } else {
        let c = t.scalar_like(term, scale);
        t.add(Mul {}.into(), &[term, c])?
    };
    inner.steps.push(Step::Add { term, frame: t.shape(s).clone() });
    Some(inner)
}

/// Scores `select(c, a, fill)` or `select(c, fill, a)`.
fn masked_scores(t: &mut dyn Terms, s: Term, [c, a, b]: [Term; 3], scale: f64, depth: usize) -> Option<Scores> {
    for (visible, fill, hidden_where) in [(a, b, false), (b, a, true)] {
        let Some(fill) = t.number(fill).filter(|fill| fill * scale < 0.0) else { continue };
        if t.ty(visible) != t.ty(s) {
            continue;
        }
        let Some(mut inner) = scores(t, visible, scale, depth) else { continue };
        let elem = t.ty(s).elem;
        let fill = if fill.is_finite() { (fill * scale).max(lowest(elem)) } else { f64::NEG_INFINITY };
        inner.steps.push(Step::Hide { condition: c, hidden_where, fill, absorbs: absorbs_scores(fill, elem), frame: t.shape(s).clone() });
        return Some(inner);
    }
    None
}

/// Whether `fill + x` is `fill` after rounding for every score `x` of usual size (up to 16 in magnitude), and far
/// below every sum of position biases: -1e9, the lowest f16 and everything below qualify; -1e4 does not.
fn absorbs_scores(fill: f64, elem: Elem) -> bool {
    match elem {
        Elem::F16 => fill <= -65000.0,
        _ => fill <= -1e9,
    }
}

/// The lowest number of a float type.
fn lowest(elem: Elem) -> f64 {
    match elem {
        Elem::F16 => -65504.0,
        Elem::Bf16 => -3.3895313892515355e38,
        Elem::F64 => f64::MIN,
        _ => f64::from(f32::MIN),
    }
}

/// Whether no element is infinite or NaN whatever the inputs are.
fn is_finite(t: &dyn Terms, y: Term, depth: usize) -> bool {
    if let Some(c) = t.constant(y) {
        return c.iter().all(|x| x.to_f64().is_finite());
    }
    if let Some(c) = t.number(y) {
        return c.is_finite();
    }
    let Some(depth) = depth.checked_sub(1) else { return false };
    t.forms(y).iter().any(|f| match &*f.op {
        Op::Select(_) => is_finite(t, f.args[1], depth) && is_finite(t, f.args[2], depth),
        Op::Cast(Cast { .. }) => !t.ty(f.args[0]).elem.is_float(),
        Op::Reshape(_) | Op::Transpose(_) | Op::Expand(_) | Op::Slice(_) | Op::Gather(_) => is_finite(t, f.args[0], depth),
        _ => false,
    })
}

/// Batch and heads of the attention: the two axes before the matrices in the first frame that has two,
/// else those of the first frame, merged or with ones.
fn heads(frames: &[Shape]) -> Option<[Dim; 2]> {
    let frame = frames.iter().find(|f| f.rank() == 4).or(frames.first())?;
    let leading = &frame.0[..frame.rank() - 2];
    Some(match leading {
        [] => [1.into(), 1.into()],
        [b] => [b.clone(), 1.into()],
        [rest @ .., h] => [rest.iter().cloned().product(), h.clone()],
    })
}

/// Groups of axes of `from` and `to` that have the same number of elements, in order; in each, one side
/// has one axis.
fn regroup(from: &[Dim], to: &[Dim]) -> Option<Vec<(usize, usize)>> {
    let (mut i, mut j) = (0, 0);
    let mut groups = vec![];
    while i < from.len() || j < to.len() {
        let candidates = [(1, 1), (1, 2), (2, 1), (3, 1), (1, 3), (0, 1), (1, 0)];
        let product = |dims: &[Dim]| dims.iter().cloned().product::<Dim>();
        let fits =
            |&&(a, b): &&(usize, usize)| i + a <= from.len() && j + b <= to.len() && product(&from[i..i + a]) == product(&to[j..j + b]);
        let &(a, b) = candidates.iter().find(fits)?;
        groups.push((a, b));
        (i, j) = (i + a, j + b);
    }
    Some(groups)
}

/// Carries `x`, which broadcasts to scores (or matrices) of shape `frame` in the axes before the last
/// two, over to the axes `target` there. Axes along which `x` repeats stay of size 1 where possible.
fn reframe(t: &mut dyn Terms, x: Term, frame: &Shape, target: &[Dim; 2]) -> Option<Term> {
    let from = &frame.0[..frame.rank() - 2];
    let shape = t.shape(x).clone();
    if from == target && shape.rank() == 4 {
        return Some(x);
    }
    if shape.rank() > frame.rank() {
        return None;
    }
    let mut padded = vec![Dim::from(1); frame.rank() - shape.rank()];
    padded.extend(shape.0.iter().cloned());
    let (own, matrix) = padded.split_at(from.len());
    let mut leading = vec![];
    let mut expanded = own.to_vec();
    let (mut i, mut j) = (0, 0);
    for (a, b) in regroup(from, target)? {
        let here = &own[i..i + a];
        if here.iter().all(|d| d.is(1)) {
            leading.extend(vec![Dim::from(1); b]);
        } else {
            expanded[i..i + a].clone_from_slice(&from[i..i + a]);
            leading.extend(target[j..j + b].iter().cloned());
        }
        (i, j) = (i + a, j + b);
    }
    let with_matrix = |dims: &[Dim]| Shape(dims.iter().chain(matrix).cloned().collect());
    let x = if expanded == own { x } else { t.add(Expand { shape: with_matrix(&expanded) }.into(), &[x])? };
    t.reshape(x, with_matrix(&leading))
}

/// `x` with the batch of the target, and with its heads if `heads`.
fn full(t: &mut dyn Terms, x: Term, target: &[Dim; 2], heads: bool) -> Option<Term> {
    let mut shape = t.shape(x).clone();
    shape.0[0] = target[0].clone();
    if heads {
        shape.0[1] = target[1].clone();
    }
    t.broadcast(x, &shape)
}

/// Keys and values with the same number of heads.
fn same_heads(t: &mut dyn Terms, k: Term, v: Term, target: &[Dim; 2]) -> Option<(Term, Term)> {
    if t.shape(k)[1] == t.shape(v)[1] { Some((k, v)) } else { Some((full(t, k, target, true)?, full(t, v, target, true)?)) }
}

/// Whether a permutation swaps the last two axes and nothing else.
fn swaps_last(perm: &[usize]) -> bool {
    let n = perm.len();
    n >= 2 && perm[n - 2..] == [n - 1, n - 2] && perm[..n - 2].iter().enumerate().all(|(i, &p)| i == p)
}

/// What `x` is with the last two axes swapped, if it is written so.
fn transposed(t: &dyn Terms, x: Term) -> Option<Term> {
    t.unary::<Transpose>(x).into_iter().find(|(p, _)| swaps_last(&p.perm)).map(|(_, y)| y)
}

/// `x` with the last two axes swapped.
fn swap_last(t: &mut dyn Terms, x: Term) -> Option<Term> {
    if let Some(y) = transposed(t, x) {
        return Some(y);
    }
    let rank = t.ty(x).rank();
    let mut perm: Vec<usize> = (0..rank).collect();
    perm.swap(rank - 2, rank - 1);
    t.add(Transpose { perm }.into(), &[x])
}

/// What a term repeats per group of heads: `x[b, g, m, d]` for `reshape(expand(x[b, g, 1, m, d], [b, g, r, m, d]))`.
fn repeated_heads(t: &mut dyn Terms, y: Term) -> Option<Term> {
    let [b, h, m, d] = &t.shape(y).0.clone()[..] else { return None };
    for (_, expanded) in t.unary::<Reshape>(y) {
        let wide = t.shape(expanded).clone();
        let [b2, g, r, m2, d2] = &wide.0[..] else { continue };
        if (b, m, d) != (b2, m2, d2) || g.clone() * r.clone() != *h {
            continue;
        }
        for (_, x) in t.unary::<Expand>(expanded) {
            let narrow = t.shape(x).clone();
            let rank5 = narrow.rank() == 5 && narrow[2].is(1) && [0, 1, 3, 4].iter().all(|&i| narrow[i] == wide[i]);
            if rank5 {
                return t.reshape(x, Shape(vec![b.clone(), g.clone(), m.clone(), d.clone()]));
            }
        }
    }
    None
}

/// `attention(q, repeat(k), repeat(v)) = attention(q, k, v)` where every key head is repeated for a group
/// of query heads
fn attention_grouped_heads(t: &mut dyn Terms, root: &Root) -> Option<Term> {
    let k = repeated_heads(t, root.arg(1))?;
    let v = repeated_heads(t, root.arg(2))?;
    if t.shape(k)[1] != t.shape(v)[1] {
        return None;
    }
    let mut args = root.form.args.clone();
    (args[1], args[2]) = (k, v);
    t.add((*root.form.op).clone(), &args)
}

/// `attention(q * c, k, v) = attention(q, k, v)` with `c` in the scale, also for `k * c`
fn attention_scaled_operands(t: &mut dyn Terms, root: &Root) -> Option<Term> {
    let attention = root.op::<Attention>();
    for i in [0, 1] {
        for (x, c) in t.either::<Mul>(root.arg(i)) {
            if let Some(c) = t.number(c)
                && t.ty(x) == t.ty(root.arg(i))
            {
                let mut args = root.form.args.clone();
                args[i] = x;
                let scale = (attention.scale.get() * c).into();
                return t.add(Attention { scale, ..*attention }.into(), &args);
            }
        }
    }
    None
}

/// `attention(q, k, v, bias) = causal attention(q, k, v)` for a bias that hides all later keys, by a number so low
/// that they weigh nothing, and no other key; every query sees at least one
fn attention_causal(t: &mut dyn Terms, root: &Root) -> Option<Term> {
    let attention = root.op::<Attention>();
    let &[q, k, v, bias] = &root.form.args[..] else { return None };
    let (n, m) = (t.shape(q)[2].clone(), t.shape(k)[2].clone());
    let ahead = m - n;
    if attention.causal || ahead.range(t.symbols()).min < 0 || !hides_later_keys(t, bias, &ahead) {
        return None;
    }
    t.add(Attention { causal: true, mask_value: None, ..*attention }.into(), &[q, k, v])
}

/// Whether a bias is 0 where query `i` may see key `j`, `j <= i + ahead`, and very negative elsewhere.
fn hides_later_keys(t: &dyn Terms, bias: Term, ahead: &Dim) -> bool {
    let elem = t.ty(bias).elem;
    if let Some(c) = t.constant(bias) {
        let (&[.., n, m], Some(ahead)) = (c.sizes(), ahead.as_const()) else { return false };
        return c.iter().enumerate().all(|(at, x)| {
            let (i, j) = (at / m % n, at % m);
            if j as i64 <= i as i64 + ahead { x.to_f64() == 0.0 } else { absorbs_scores(x.to_f64(), elem) }
        });
    }
    let hidden = |y: Term| t.number(y).is_some_and(|c| absorbs_scores(c, elem));
    t.all::<Select>(bias).iter().any(|(_, args)| {
        (t.is(args[1], 0) && hidden(args[2]) && is_visible(t, args[0], ahead, true))
            || (hidden(args[1]) && t.is(args[2], 0) && is_visible(t, args[0], ahead, false))
    })
}

/// Whether a condition holds exactly for the keys up to `i + ahead` of query `i`, or for the others.
fn is_visible(t: &dyn Terms, c: Term, ahead: &Dim, visible: bool) -> bool {
    // `a + slack <= b`, where positions along the last axis are keys and along the one before it queries.
    let compare = |a: Term, b: Term, slack: i64| {
        let (Some(a), Some(b)) = (position(t, a, 6), position(t, b, 6)) else { return false };
        let lead = b.offset - a.offset - Dim::from(slack);
        match (a.from_end, b.from_end) {
            (1, 2) => visible && lead == *ahead,
            // Query + slack <= key: the first hidden key is one behind the last visible one.
            (2, 1) => !visible && Dim::from(-1) - lead == *ahead,
            _ => false,
        }
    };
    t.binary::<Le>(c).into_iter().any(|(a, b)| compare(a, b, 0))
        || t.binary::<Lt>(c).into_iter().any(|(a, b)| compare(a, b, 1))
        || t.unary::<Not>(c).into_iter().any(|(_, x)| is_visible(t, x, ahead, !visible))
}

/// A term whose elements are their index along one axis, plus an offset.
struct Position {
    /// The axis, 1 for the last.
    from_end: usize,
    offset: Dim,
}

fn position(t: &dyn Terms, y: Term, depth: usize) -> Option<Position> {
    let depth = depth.checked_sub(1)?;
    let rank = t.ty(y).rank();
    t.forms(y).iter().find_map(|f| match (&*f.op, &f.args[..]) {
        (Op::Iota(iota), _) => Some(Position { from_end: rank - iota.axis, offset: 0.into() }),
        (Op::Add(_), &[a, b]) => [(a, b), (b, a)].into_iter().find_map(|(x, c)| {
            let c = integer(t, c)?;
            position(t, x, depth).map(|p| Position { offset: p.offset + c, ..p })
        }),
        (Op::Cast(c), &[x]) if c.to.is_int() && t.ty(x).elem.is_int() => position(t, x, depth),
        (Op::Reshape(r), &[x]) => {
            // A reshape that moves ones around the counted axis.
            let p = position(t, x, depth)?;
            let long = |s: &Shape| -> Vec<usize> { (0..s.rank()).filter(|&i| !s[i].is(1)).map(|i| s.rank() - i).collect() };
            let (before, after) = (long(t.shape(x)), long(&r.shape));
            (before == [p.from_end] && after.len() == 1).then(|| Position { from_end: after[0], ..p })
        }
        _ => None,
    })
}

/// The integer that all elements of a term equal.
fn integer(t: &dyn Terms, y: Term) -> Option<Dim> {
    if let Some(Scalar::Int(n)) = t.splat(y) {
        return i64::try_from(n).ok().map(Dim::from);
    }
    t.forms(y).iter().find_map(|f| match &*f.op {
        Op::Dims(d) => d.values.first().filter(|first| d.values.iter().all(|v| v == *first)).cloned(),
        _ => None,
    })
}
