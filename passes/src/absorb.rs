//! Maps by channel, absorbed by what computes a value.
//!
//! A map `x' = (x - z) / s` of a value costs nothing where the constants behind it can take it: the scale and the bias of a norm,
//! the columns of a weight, a bias. [`Path::find`] looks for them against the direction of data, from operators to those operands
//! that take the map in place of the result ([`Operator::ways`](tfc_ir::ops::Operator::ways)), and says which channels must share
//! their numbers. [`Path::build`] then makes the mapped value for numbers that do.

use crate::rules::is_normal;
use crate::terms::{Form, Term, Terms};
use std::ops::Range;
use std::sync::Arc;
use tfc_ir::dim::Dim;
use tfc_ir::ops::{Add, Div, LayerNorm, Mapped, Mul, Op, RmsNorm, Slice, Sub, Way};
use tfc_ir::tensor::{Scalar, Tensor};
use tfc_ir::types::{Elem, Shape};

/// A map `x' = (x - shift) / scale` with numbers for every channel.
#[derive(Clone, PartialEq, Debug)]
pub struct ChannelMap {
    /// The scales, normal numbers above 0.
    pub scale: Vec<f32>,
    /// The shifts, all 0 without.
    pub shift: Option<Vec<f32>>,
}

impl ChannelMap {
    /// Whether numbers stay normal by the map and by its inverse.
    pub fn is_usable(&self) -> bool {
        let scale = |s: &f32| *s > 0.0 && is_normal(f64::from(*s), Elem::F32) && is_normal(1.0 / f64::from(*s), Elem::F32);
        self.scale.iter().all(scale) && self.shift.iter().flatten().all(|z| z.is_finite())
    }

    /// Whether two channels have the same numbers; [`Channels::NONE`] has neutral ones.
    fn shares(&self, a: u32, b: u32) -> bool {
        let of = |c: u32| match c {
            Channels::NONE => (1.0, 0.0),
            c => (self.scale[c as usize], self.shift.as_ref().map_or(0.0, |z| z[c as usize])),
        };
        of(a) == of(b)
    }
}

/// Which channel every element of a value belongs to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Channels {
    /// Sizes that broadcast to those of the value.
    sizes: Vec<usize>,
    /// The channels in row-major order; [`Channels::NONE`] where an element stays as it is.
    of: Vec<u32>,
}

/// What the channels along one axis are for every index of the others.
type Line = Vec<u32>;

impl Channels {
    /// Elements that belong to no channel.
    const NONE: u32 = u32::MAX;

    /// Channels `0..count` along one axis of a value of the given rank.
    pub fn along(axis: usize, rank: usize, count: usize) -> Channels {
        let mut sizes = vec![1; rank];
        sizes[axis] = count;
        Channels { sizes, of: (0..count as u32).collect() }
    }

    /// Those of a value that is repeated along an axis: of what is different there, `ties` get pairs.
    fn tied(&self, axis: usize, ties: &mut Vec<(u32, u32)>) -> Channels {
        self.replaced(axis, |line| {
            ties.extend(line[1..].iter().filter(|&&c| c != line[0]).map(|&c| (line[0], c)));
            vec![line[0]]
        })
    }

    /// Every line along an axis replaced.
    fn replaced(&self, axis: usize, mut by: impl FnMut(&Line) -> Line) -> Channels {
        let (outer, inner) = (self.sizes[..axis].iter().product::<usize>(), self.sizes[axis + 1..].iter().product::<usize>());
        let n = self.sizes[axis];
        let line = |o: usize, i: usize| -> Line { (0..n).map(|k| self.of[(o * n + k) * inner + i]).collect() };
        let lines: Vec<Line> = (0..outer * inner).map(|at| by(&line(at / inner, at % inner))).collect();
        let mut sizes = self.sizes.clone();
        sizes[axis] = lines.first().map_or(0, Vec::len);
        let of = (0..sizes.iter().product()).map(|at| lines[at / inner / sizes[axis] * inner + at % inner][at / inner % sizes[axis]]);
        Channels { of: of.collect(), sizes }
    }

    /// The same elements under other sizes.
    fn reshaped(&self, sizes: Vec<usize>) -> Channels {
        debug_assert_eq!(sizes.iter().product::<usize>(), self.of.len());
        Channels { sizes, of: self.of.clone() }
    }

    /// With as few leading axes as may be, `rank` or more.
    fn trimmed(&self, rank: usize) -> Channels {
        let extra = self.sizes.len().saturating_sub(rank);
        let ones = self.sizes.iter().take(extra).take_while(|&&n| n == 1).count();
        self.reshaped(self.sizes[ones..].to_vec())
    }

    /// Those of an operand that repeats along the axes that it lacks or that have size 1; `None` if they differ there.
    fn aligned(&self, shape: &Shape) -> Option<Channels> {
        let own = self.trimmed(shape.rank());
        let fits = own.sizes.len() <= shape.rank()
            && own.sizes.iter().rev().zip(shape.0.iter().rev()).all(|(&n, d)| n == 1 || d.as_const() == Some(n as i64));
        fits.then_some(own)
    }

    /// With the axes permuted: axis `i` becomes axis `perm[i]`.
    fn transposed(&self, perm: &[usize]) -> Channels {
        let inverse = |axis: usize| perm.iter().position(|&p| p == axis).expect("a permutation");
        let order: Vec<usize> = (0..perm.len()).map(inverse).collect();
        let strides: Vec<usize> = (0..perm.len()).map(|i| self.sizes[i + 1..].iter().product()).collect();
        let sizes: Vec<usize> = order.iter().map(|&i| self.sizes[i]).collect();
        let place = |mut at: usize| {
            let mut from = 0;
            for (&n, &i) in sizes.iter().zip(&order).rev() {
                from += at % n * strides[i];
                at /= n;
            }
            self.of[from]
        };
        Channels { of: (0..self.of.len()).map(place).collect(), sizes }
    }

    /// Those of the operand of a reshape from `from` to `to`: axes that only take part together are in groups, in each of which
    /// all elements belong to one channel, or all sizes are known.
    fn before_reshape(&self, from: &Shape, to: &Shape) -> Option<Channels> {
        let mut all = self.clone();
        // Axes are replaced from the last group on, so that those before keep their numbers.
        for (old, new) in groups(from, to)?.into_iter().rev() {
            let group: Vec<usize> = if all.sizes[new.clone()].iter().all(|&n| n == 1) {
                vec![1; old.len()]
            } else {
                let known = |shape: &Shape, axes: Range<usize>| -> Option<Vec<usize>> { Shape(shape.0[axes].to_vec()).as_fixed() };
                for (axis, n) in new.clone().zip(known(to, new.clone())?) {
                    if all.sizes[axis] != n {
                        all = all.replaced(axis, |line| vec![line[0]; n]);
                    }
                }
                known(from, old.clone())?
            };
            let sizes = [&all.sizes[..new.start], &group, &all.sizes[new.end..]].concat();
            all = all.reshaped(sizes);
            for axis in new.start..new.start + group.len() {
                let constant = all.is_constant_along(axis);
                if constant {
                    all = all.replaced(axis, |line| vec![line[0]]);
                }
            }
        }
        Some(all)
    }

    /// Whether all elements along an axis belong to one channel, for every index of the others.
    fn is_constant_along(&self, axis: usize) -> bool {
        let mut constant = true;
        self.replaced(axis, |line| {
            constant &= line.iter().all(|c| *c == line[0]);
            line.clone()
        });
        constant
    }

    /// The channel of every element, `None` where it stays as it is.
    fn iter(&self) -> impl Iterator<Item = Option<usize>> + '_ {
        self.of.iter().map(|&c| (c != Channels::NONE).then_some(c as usize))
    }
}

/// The axes of a reshape in groups with equal products, as small as may be; `None` if sizes that are not known prevent it.
fn groups(from: &Shape, to: &Shape) -> Option<Vec<(Range<usize>, Range<usize>)>> {
    let (mut groups, mut i, mut j) = (vec![], 0, 0);
    while i < from.rank() || j < to.rank() {
        let mut ends = None;
        'search: for a in i..=from.rank() {
            for b in j..=to.rank() {
                // An axis of size 1 may be alone, on either side.
                let candidate = (a > i && b > j) || (a - i) + (b - j) == 1;
                let product = |dims: &[Dim]| dims.iter().cloned().product::<Dim>();
                if candidate && product(&from.0[i..a]) == product(&to.0[j..b]) {
                    ends = Some((a, b));
                    break 'search;
                }
            }
        }
        let (a, b) = ends?;
        groups.push((i..a, j..b));
        (i, j) = (a, b);
    }
    Some(groups)
}

/// How a term is mapped: `(x - z) / s` or what [`Mapped`] says, where `s` of every element is the scale of its channel, or a root of
/// it, and `z` its shift.
#[derive(Clone, PartialEq, Debug)]
struct Pull {
    channels: Channels,
    /// How many times the square root of the scale is taken.
    roots: u32,
    mapped: Mapped,
}

impl Pull {
    /// The scales of all elements, and what is subtracted before.
    fn numbers(&self, map: &ChannelMap, elem: Elem) -> (Tensor, Option<Tensor>) {
        let of = |values: &[f32], neutral: f64| -> Vec<f64> {
            self.channels.iter().map(|c| c.map_or(neutral, |c| f64::from(values[c]))).collect()
        };
        let tensor = |values: Vec<f64>| Tensor::build(elem, &self.channels.sizes, |i| Scalar::Float(values[i]));
        let root = |s: f64| (0..self.roots).fold(s, |s, _| s.sqrt());
        let scale = tensor(of(&map.scale, 1.0).into_iter().map(root).collect());
        let sign = match self.mapped {
            Mapped::Scaled => return (scale, None),
            Mapped::Affine => 1.0,
            Mapped::Mirrored => -1.0,
        };
        let shift = map.shift.as_deref().map(|z| tensor(of(z, 0.0).into_iter().map(|z| sign * z).collect()));
        (scale, shift)
    }
}

/// How a mapped term is computed.
#[derive(Clone, PartialEq, Debug)]
enum How {
    /// The term is known: so is the mapped one.
    Known,
    /// An operand is absent that counts as zeros of a type of elements.
    Zeros(Elem),
    /// By the same operator, of mapped operands.
    Again { op: Arc<Op>, args: Vec<Term>, mapped: Vec<(usize, Path)> },
}

/// A way to compute a mapped term from constants that take the map and else from what computes the term.
#[derive(Clone, PartialEq, Debug)]
pub struct Path {
    term: Term,
    pull: Pull,
    how: How,
}

/// What takes a map.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Family {
    /// Scale and bias of a layer norm.
    LayerNorm,
    /// Scale of an RMS norm.
    RmsNorm,
    /// The values of an attention.
    Value,
    /// One factor of a product by element.
    Gated,
    /// What is before a rectifier, or before the square of one.
    Relu,
    /// All summands of a sum, none of which is known.
    Sum,
    /// A product with a constant matrix, or what else is constant.
    Product,
}

/// The most terms that a search looks at: chains of residual sums lead through a whole model.
const MAX_STEPS: usize = 256;

struct Search<'t> {
    t: &'t dyn Terms,
    steps: usize,
}

/// Channels that must share their numbers.
type Ties = Vec<(u32, u32)>;

impl Path {
    /// Looks for a way to compute `(x - z) / s`, or `x / s` without a `shift`, where `channels` says what of the numbers each element
    /// gets. With it come pairs of channels that must have the same numbers.
    pub fn find(t: &dyn Terms, x: Term, channels: Channels, shift: bool) -> Option<(Path, Ties)> {
        let mapped = if shift { Mapped::Affine } else { Mapped::Scaled };
        Search { t, steps: 0 }.path(x, Pull { channels, roots: 0, mapped })
    }

    /// The mapped term, for numbers that the channels of each tie share.
    pub fn build(&self, t: &mut dyn Terms, map: &ChannelMap) -> Option<Term> {
        match &self.how {
            How::Known => {
                let (scale, shift) = self.pull.numbers(map, t.ty(self.term).elem);
                let mut x = self.term;
                if let Some(shift) = shift {
                    let shift = t.add_constant(shift);
                    x = t.add(Sub {}.into(), &[x, shift])?;
                }
                let scale = t.add_constant(scale);
                t.add(Div {}.into(), &[x, scale])
            }
            How::Zeros(elem) => {
                let (scale, shift) = self.pull.numbers(map, Elem::F64);
                let shift = shift?;
                let minus = |i: usize| Scalar::Float(-shift.get(i).to_f64() / scale.get(i).to_f64());
                let zeros = Tensor::build(*elem, shift.sizes(), minus);
                Some(t.add_constant(zeros))
            }
            How::Again { op, args, mapped } => {
                let mut operands = args.clone();
                // Zeros that are only scaled stay absent.
                let absent = |path: &Path| matches!(path.how, How::Zeros(_)) && map.shift.is_none();
                for (i, path) in mapped.iter().filter(|(_, path)| !absent(path)) {
                    let shared = t.plan(path.term).filter(|plan| plan.axis.is_none() && matches!(**op, Op::Slice(_))).cloned();
                    let operand = match shared {
                        Some(plan) => plan.build(t)?,
                        None => path.build(t, map)?,
                    };
                    // An operand that was absent comes last.
                    operands.resize(operands.len().max(i + 1), operand);
                    operands[*i] = operand;
                }
                let found = t.add((**op).clone(), &operands)?;
                if t.ty(found) != t.ty(self.term) {
                    return None;
                }
                t.stands_for(found, self.term);
                Some(found)
            }
        }
    }

    /// Whether a slice of the term, whose sizes are `from`, takes elements only that belong to no channel.
    pub fn leaves(&self, slice: &Slice, from: &Shape) -> bool {
        let Channels { sizes, of } = &self.pull.channels;
        // Per axis, which indices the slice takes; along an axis of size 1 all elements are alike.
        let taken = |axis: usize| -> Option<Vec<bool>> {
            if sizes[axis] == 1 || slice.lens[axis] == from[axis] {
                return Some(vec![true; sizes[axis]]);
            }
            let (start, len) = (slice.starts[axis].as_const()?, slice.lens[axis].as_const()?);
            let mut taken = vec![false; sizes[axis]];
            (0..len).for_each(|k| taken[(start + k * slice.steps[axis]) as usize] = true);
            Some(taken)
        };
        let Some(taken) = (0..sizes.len()).map(taken).collect::<Option<Vec<_>>>() else { return false };
        let is_taken = |mut at: usize| {
            sizes.iter().zip(&taken).rev().all(|(&n, taken)| {
                let index = at % n;
                at /= n;
                taken[index]
            })
        };
        (0..of.len()).all(|at| of[at] == Channels::NONE || !is_taken(at))
    }

    /// The term that is mapped.
    pub fn term(&self) -> Term {
        self.term
    }

    /// What takes the map.
    pub fn family(&self) -> Family {
        let How::Again { op, mapped, .. } = &self.how else { return Family::Product };
        let open: Vec<&Path> = mapped.iter().map(|(_, path)| path).filter(|p| matches!(p.how, How::Again { .. })).collect();
        match (&**op, &open[..]) {
            (Op::LayerNorm(_), _) => Family::LayerNorm,
            (Op::RmsNorm(_), _) => Family::RmsNorm,
            (Op::Attention(_), _) => Family::Value,
            (Op::Relu(_), _) => Family::Relu,
            // Constants take what they can.
            (Op::Mul(_), [_]) => Family::Gated,
            (Op::Add(_) | Op::Sub(_), [_, _]) => Family::Sum,
            (Op::Matmul(_) | Op::Div(_), _) => Family::Product,
            (_, [one, ..]) => one.family(),
            (_, []) => Family::Product,
        }
    }
}

impl Search<'_> {
    fn path(&mut self, x: Term, pull: Pull) -> Option<(Path, Ties)> {
        let x = self.t.find(x);
        if !self.t.ty(x).elem.is_float() || self.t.ty(x).quant.is_some() {
            return None;
        }
        if self.t.is_known(x) {
            return Some((Path { term: x, pull, how: How::Known }, vec![]));
        }
        self.steps += 1;
        if self.steps > MAX_STEPS {
            return None;
        }
        self.t.forms(x).iter().find_map(|form| self.form(x, form, &pull))
    }

    fn form(&mut self, x: Term, form: &Form, pull: &Pull) -> Option<(Path, Ties)> {
        let shifted = pull.mapped != Mapped::Scaled;
        if let (Op::Mul(_), [a, b]) = (&*form.op, &form.args[..])
            && self.t.same(*a, *b)
        {
            // (r / √s)² = r² / s
            let root = Pull { roots: pull.roots + 1, ..pull.clone() };
            let (path, ties) = if shifted { None } else { self.path(*a, root) }?;
            let how = How::Again { op: form.op.clone(), args: form.args.clone(), mapped: vec![(0, path.clone()), (1, path)] };
            return Some((Path { term: x, pull: pull.clone(), how }, ties));
        }
        // Constants take what they can, the shift above all.
        let unknown = |&&(i, _): &&(usize, Mapped)| form.args.get(i).is_some_and(|&a| !self.t.is_known(a));
        let takes_shift = |&&(_, mapped): &&(usize, Mapped)| mapped != Mapped::Scaled;
        let mut ways: Vec<Way> = form.op.ways().to_vec();
        ways.retain(|way| !shifted || way.iter().any(|m| takes_shift(&m)));
        ways.sort_by_key(|way| (way.iter().filter(unknown).filter(takes_shift).count(), way.iter().filter(unknown).count()));
        if !shifted {
            ways.dedup_by(|a, b| a.iter().map(|m| m.0).eq(b.iter().map(|m| m.0)));
        }
        ways.into_iter().find_map(|way| self.way(x, form, way, pull))
    }

    fn way(&mut self, x: Term, form: &Form, way: Way, pull: &Pull) -> Option<(Path, Ties)> {
        let (mut mapped, mut ties) = (vec![], vec![]);
        for &(i, own) in way {
            let own = match (own, pull.mapped) {
                (Mapped::Scaled, _) | (_, Mapped::Scaled) => Mapped::Scaled,
                (Mapped::Affine, outer) => outer,
                (Mapped::Mirrored, Mapped::Affine) => Mapped::Mirrored,
                (Mapped::Mirrored, Mapped::Mirrored) => Mapped::Affine,
            };
            let operand = form.args.get(i).copied();
            let is_zero = operand.is_none_or(|a| self.t.is(a, 0));
            if own == Mapped::Scaled && is_zero {
                continue;
            }
            let (path, more) = self.geometry(x, form, i, &pull.channels, own).into_iter().find_map(|(channels, mut ties)| {
                let pull = Pull { channels, roots: pull.roots, mapped: own };
                let Some(operand) = operand else {
                    return Some((Path { term: x, pull, how: How::Zeros(self.t.ty(x).elem) }, ties));
                };
                let (path, more) = self.path(operand, pull)?;
                ties.extend(more);
                Some((path, ties))
            })?;
            ties.extend(more);
            mapped.push((i, path));
        }
        let how = How::Again { op: form.op.clone(), args: form.args.clone(), mapped };
        Some((Path { term: x, pull: pull.clone(), how }, ties))
    }

    /// The channels of operand `i`, and which must share their numbers for it; several where there is a choice.
    fn geometry(&self, x: Term, form: &Form, i: usize, channels: &Channels, mapped: Mapped) -> Vec<(Channels, Ties)> {
        let shape = |a: Term| self.t.shape(a);
        let operand = form.args.get(i).copied();
        // What is known may become larger, as far as it still broadcasts to the result.
        let by_element = |channels: &Channels| match operand {
            Some(a) if !self.t.is_known(a) => channels.aligned(shape(a)),
            Some(a) => Some(channels.trimmed(shape(a).rank())),
            None => Some(channels.trimmed(1)),
        };
        let mut ties = vec![];
        let found = match &*form.op {
            op if op.traits().elementwise => by_element(channels),
            Op::Transpose(op) => Some(channels.transposed(&op.perm)),
            Op::Reshape(op) => channels.before_reshape(shape(form.args[0]), &op.shape),
            Op::Expand(op) => {
                let from = shape(form.args[0]);
                let missing = op.shape.rank() - from.rank();
                let mut own = channels.clone();
                for axis in 0..op.shape.rank() {
                    if axis < missing || from[axis - missing].is(1) {
                        own = own.tied(axis, &mut ties);
                    }
                }
                Some(own.trimmed(from.rank()))
            }
            Op::Slice(op) => {
                let choices = slice_operand(op, shape(form.args[0]), channels);
                return choices.into_iter().map(|c| (c, vec![])).collect();
            }
            Op::Window(op) => {
                let (n, rank) = (op.kernel.len(), channels.sizes.len());
                let mut own = channels.clone();
                (rank - n..rank).for_each(|axis| own = own.tied(axis, &mut ties));
                let positions = own.sizes[rank - 2 * n..].iter().all(|&size| size == 1);
                positions.then(|| own.reshaped(own.sizes[..rank - n].to_vec()))
            }
            Op::Pad(op) => {
                let grows = |axis: usize| !(op.before[axis].is(0) && op.after[axis].is(0));
                let fits = i == 0 && (0..channels.sizes.len()).all(|axis| channels.sizes[axis] == 1 || !grows(axis));
                fits.then(|| channels.clone())
            }
            Op::Matmul(_) => {
                // The rows are those of the left operand, the columns those of the right one.
                let rank = channels.sizes.len();
                let other = if i == 0 { rank - 1 } else { rank - 2 };
                if channels.sizes[other] == 1 { channels.aligned(shape(form.args[i])) } else { None }
            }
            Op::Attention(_) => self.values(form, channels, mapped, &mut ties),
            Op::LayerNorm(LayerNorm { axes, .. }) | Op::RmsNorm(RmsNorm { axes, .. }) => {
                let leading = shape(x).rank() - axes;
                let uniform = channels.sizes[..leading].iter().all(|&n| n == 1);
                if uniform { by_element(&channels.reshaped(channels.sizes[leading..].to_vec())) } else { None }
            }
            _ => None,
        };
        found.map(|c| (c, ties)).into_iter().collect()
    }

    /// The channels of the values of an attention. Heads that share values share numbers; a shift needs keys.
    fn values(&self, form: &Form, channels: &Channels, mapped: Mapped, ties: &mut Ties) -> Option<Channels> {
        let &[batch, heads, queries, _] = &channels.sizes[..] else { return None };
        let v = self.t.shape(form.args[2]);
        let has_keys = v[2].range(self.t.symbols()).min >= 1;
        if batch != 1 || queries != 1 || (mapped != Mapped::Scaled && !has_keys) {
            return None;
        }
        if heads == 1 {
            return channels.aligned(v);
        }
        let shared = usize::try_from(v[1].as_const()?).ok().filter(|&g| g > 0 && heads.is_multiple_of(g))?;
        let width = channels.sizes[3];
        channels.reshaped(vec![1, shared, heads / shared, width]).tied(2, ties).aligned(v)
    }
}

/// The channels of the operand of a slice: what is not taken belongs to none, so that other slices may stay what they are; or, where
/// the slice is along axes without channels, all of the operand is mapped.
fn slice_operand(op: &Slice, from: &Shape, channels: &Channels) -> Vec<Channels> {
    let (mut within, mut everywhere) = (Some(channels.clone()), Some(channels.clone()));
    for axis in 0..from.rank() {
        if op.lens[axis] == from[axis] && op.starts[axis].is(0) && op.steps[axis] == 1 {
            continue;
        }
        let sizes = (from[axis].as_const(), op.starts[axis].as_const(), op.lens[axis].as_const());
        within = within.and_then(|c| {
            let (Some(size), Some(start), Some(len)) = sizes else { return None };
            Some(c.replaced(axis, |line| {
                let mut wide = vec![Channels::NONE; size as usize];
                (0..len).for_each(|k| wide[(start + k * op.steps[axis]) as usize] = line[k as usize % line.len()]);
                wide
            }))
        });
        everywhere = everywhere.filter(|c| c.sizes[axis] == 1);
    }
    let mut choices: Vec<Channels> = within.into_iter().chain(everywhere).collect();
    choices.dedup();
    choices
}

/// What a slice of a value that is not mapped costs: more than all constants that the mapped one takes, so that all slices are of one
/// value.
const SLICE_WORTH: f64 = 1e9;

/// A map that a value is to get, and what that is worth.
#[derive(Clone, PartialEq, Debug)]
pub struct Plan {
    /// How the mapped value is computed.
    pub path: Path,
    /// The numbers.
    pub map: ChannelMap,
    /// The axis of the value along which its channels are. `None` of a value of which slices are mapped: it is for all maps of its
    /// slices, as far as they agree.
    pub axis: Option<usize>,
    /// What is lost if it is not mapped: the part of the cost of each product in f32 that takes it; of a value of which slices are mapped,
    /// the cost for each slice, more than constants do.
    pub worth: f64,
}

impl Plan {
    /// The mapped value.
    pub fn build(&self, t: &mut dyn Terms) -> Option<Term> {
        self.path.build(t, &self.map)
    }

    /// What it plans for values of which it maps slices.
    pub fn sliced(&self) -> Vec<Plan> {
        let (mut found, mut paths) = (vec![], vec![&self.path]);
        while let Some(path) = paths.pop() {
            let How::Again { op, mapped, .. } = &path.how else { continue };
            paths.extend(mapped.iter().map(|(_, path)| path));
            if matches!(**op, Op::Slice(_)) {
                let operands = mapped.iter().map(|(_, path)| path.clone());
                found.extend(operands.map(|path| Plan { path, map: self.map.clone(), axis: None, worth: SLICE_WORTH }));
            }
        }
        found
    }

    /// One plan for several of the same value; `None` if they want different things of some element, or nothing absorbs them together.
    pub fn joined(t: &dyn Terms, parts: &[Plan]) -> Option<Plan> {
        let first = &parts[0].path.pull;
        let mut channels = Channels { sizes: first.channels.sizes.clone(), of: vec![Channels::NONE; first.channels.of.len()] };
        let mut map = ChannelMap { scale: vec![], shift: None };
        let mut shifts = vec![];
        for Plan { path, map: own, .. } in parts {
            let pull = &path.pull;
            if pull.channels.sizes != channels.sizes || pull.roots > 0 || pull.mapped == Mapped::Mirrored {
                return None;
            }
            let before = map.scale.len() as u32;
            map.scale.extend(&own.scale);
            let shift = own.shift.as_ref().filter(|_| pull.mapped == Mapped::Affine);
            shifts.extend(shift.cloned().unwrap_or_else(|| vec![0.0; own.scale.len()]));
            for (to, from) in channels.of.iter_mut().zip(&pull.channels.of).filter(|(_, from)| **from != Channels::NONE) {
                let numbers = |c: u32| (map.scale[c as usize], shifts[c as usize]);
                if *to != Channels::NONE && numbers(*to) != numbers(before + from) {
                    return None;
                }
                *to = before + from;
            }
        }
        map.shift = shifts.iter().any(|&z| z != 0.0).then_some(shifts);
        let (path, ties) = Path::find(t, parts[0].path.term, channels, map.shift.is_some())?;
        let plan = Plan { path, map, axis: None, worth: SLICE_WORTH };
        ties.iter().all(|&(a, b)| plan.map.shares(a, b)).then_some(plan)
    }

    /// The value from the mapped one: `x' * s + z`.
    pub fn undone(&self, t: &mut dyn Terms, mapped: Term) -> Option<Term> {
        let pull = Pull { channels: self.path.pull.channels.trimmed(1), ..self.path.pull.clone() };
        let (scale, shift) = pull.numbers(&self.map, t.ty(mapped).elem);
        let scale = t.add_constant(scale);
        let mut x = t.add(Mul {}.into(), &[mapped, scale])?;
        if let Some(shift) = shift {
            let shift = t.add_constant(shift);
            x = t.add(Add {}.into(), &[x, shift])?;
        }
        Some(x)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eqsat::Program;
    use tfc_ir::text;

    fn shape(dims: &[&str]) -> Shape {
        dims.iter().map(|d| d.parse::<i64>().map_or_else(|_| Dim::symbol(d), Dim::from)).collect()
    }

    #[test]
    fn reshapes_regroup_the_axes_of_channels_only() {
        let along = |sizes: &[usize]| Channels { sizes: sizes.to_vec(), of: (0..sizes.iter().product::<usize>() as u32).collect() };
        let before = |from: &[&str], to: &[&str], sizes: &[usize]| along(sizes).before_reshape(&shape(from), &shape(to)).map(|c| c.sizes);
        assert_eq!(before(&["b", "n", "4", "8"], &["b", "n", "32"], &[1, 1, 32]), Some(vec![1, 1, 4, 8]));
        assert_eq!(before(&["b", "n", "32"], &["b", "n", "4", "8"], &[1, 1, 4, 8]), Some(vec![1, 1, 32]));
        assert_eq!(before(&["b", "1", "n", "32"], &["b", "n", "32"], &[1, 1, 32]), Some(vec![1, 1, 1, 32]));
        // One number for all of a head: its elements share it, and heads are apart.
        let per_head = along(&[1, 1, 4, 1]).before_reshape(&shape(&["b", "n", "32"]), &shape(&["b", "n", "4", "8"])).unwrap();
        assert_eq!((per_head.sizes, &per_head.of[6..10]), (vec![1, 1, 32], &[0, 0, 1, 1][..]));
        // Channels and positions become one axis of unknown size.
        assert_eq!(before(&["n", "32"], &["32", "n"], &[32, 1]), None);
    }

    /// A norm without bias gets one only if it is shifted.
    #[test]
    fn zeros_are_added_for_shifts_only() {
        let source = "tfc.ir 1 symbol n 1..9 input %x: f32[n, 4] const %g: f32[4] = splat 2.0
            %y = layer_norm %x, %g {axes = 1, epsilon = 0.001} : f32[n, 4] output y = %y";
        let graph = text::parse(source, None).unwrap();
        let mut program = Program::new(&graph);
        let y = program.term(graph.outputs()[0].value);
        let mut terms = program.terms();
        let (path, ties) = Path::find(&terms, y, Channels::along(1, 2, 4), true).unwrap();
        assert_eq!((path.family(), ties), (Family::LayerNorm, vec![]));
        for (shift, operands) in [(None, 2), (Some(vec![1.0; 4]), 3)] {
            let mapped = path.build(&mut terms, &ChannelMap { scale: vec![2.0; 4], shift }).unwrap();
            assert_eq!(terms.forms(mapped)[0].args.len(), operands);
        }
    }
}
