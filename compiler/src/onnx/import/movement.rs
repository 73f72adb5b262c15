//! Operators that move elements: reshaping, slicing, joining, padding, gathering, scattering.

use super::call::{distinct_axes, resolve_axis};
use super::{Call, Fail, Importer, Res, Val, demand, unsupported};
use tfc_ir::dim::Dim;
use tfc_ir::ops::pad::PadMode;
use tfc_ir::ops::scatter_elements::ScatterReduction;
use tfc_ir::ops::{Gather, GatherElements, GatherNd, Pad, ScatterElements, ScatterNd, Slice};
use tfc_ir::tensor::{Scalar, Tensor};
use tfc_ir::types::Shape;

type One = Res<Vec<Val>>;

/// Bounds at least this large mean "to the end" in what exporters write.
const END: i64 = i32::MAX as i64;

/// The shape that a `Reshape` operand stands for: 0 copies a size of `from`, -1 takes what is left.
pub(super) fn resolve_shape(cx: &mut Importer, from: &Shape, wanted: &[Dim], allow_zero: bool) -> Res<Shape> {
    let mut out = wanted.to_vec();
    let mut free = None;
    for (i, d) in out.iter_mut().enumerate() {
        match d.as_const() {
            Some(0) if !allow_zero => {
                demand!(i < from.rank(), "the new shape copies axis {i}, but the operand has {} axes", from.rank());
                *d = from[i].clone();
            }
            Some(-1) => {
                demand!(free.is_none(), "the new shape has -1 twice: {}", Shape(wanted.to_vec()));
                free = Some(i);
            }
            Some(n) => demand!(n >= 0, "the new shape has the size {n}"),
            None => {}
        }
    }
    if let Some(i) = free {
        let rest: Dim = out.iter().enumerate().filter(|(j, _)| *j != i).map(|(_, d)| d.clone()).product();
        let all = from.elements();
        demand!(!rest.is(0) || all.is(0), "-1 in {} cannot be determined", Shape(wanted.to_vec()));
        out[i] = match all.div_exact(&rest) {
            Some(q) => q,
            None if rest.is(0) => Dim::from(0),
            None => {
                let q = all.floor_div(&rest).simplify(cx.symbols());
                let whole = q.clone() * rest;
                cx.require_equal(&all, &whole, "the number of elements is not a multiple of the other sizes")?;
                q
            }
        };
    }
    Ok(Shape(out))
}

pub(super) fn reshape(cx: &mut Importer, n: &Call) -> One {
    let x = n.input(0)?;
    let wanted = match n.opt(1) {
        Some(v) => {
            demand!(cx.rank(v) == 1, "the new shape must be a list, but the operand is {}", cx.ty(v));
            cx.dims(v, "the new shape")?
        }
        None => match n.ints("shape")? {
            Some(l) => l.into_iter().map(Dim::from).collect(),
            None => return Err(Fail::Invalid("the new shape is missing".into())),
        },
    };
    let from = cx.shape(x).clone();
    let shape = resolve_shape(cx, &from, &wanted, n.flag("allowzero", false)?)?;
    Ok(vec![cx.reshape(x, shape)?])
}

pub(super) fn transpose(cx: &mut Importer, n: &Call) -> One {
    let x = n.input(0)?;
    let rank = cx.rank(x);
    let perm = match n.ints("perm")? {
        Some(p) => p.iter().map(|&a| resolve_axis(a, rank)).collect::<Res<Vec<usize>>>()?,
        None => (0..rank).rev().collect(),
    };
    demand!(perm.len() == rank, "perm has {} entries, but the operand is {}", perm.len(), cx.ty(x));
    Ok(vec![cx.transpose(x, perm)?])
}

pub(super) fn squeeze(cx: &mut Importer, n: &Call) -> One {
    let x = n.input(0)?;
    let shape = cx.shape(x).clone();
    let axes = match n.axes(cx, 1, shape.rank())? {
        Some(a) => a,
        // A size that is only known at run time is not taken to be 1.
        None => (0..shape.rank()).filter(|&a| shape[a].is(1)).collect(),
    };
    for &a in &axes {
        cx.require_equal(&shape[a], &Dim::from(1), &format!("axis {a} of {shape} is to be squeezed"))?;
    }
    Ok(vec![cx.squeeze(x, &axes)?])
}

pub(super) fn unsqueeze(cx: &mut Importer, n: &Call) -> One {
    let x = n.input(0)?;
    let list = match (n.ints("axes")?, n.opt(1)) {
        (Some(l), _) => l,
        (None, Some(v)) => cx.ints(v, "the axes")?,
        (None, None) => return Err(Fail::Invalid("the axes are missing".into())),
    };
    demand!(list.len() <= 64, "{} axes are inserted", list.len());
    let axes = distinct_axes(&list, cx.rank(x) + list.len())?;
    Ok(vec![cx.unsqueeze(x, &axes)?])
}

pub(super) fn expand(cx: &mut Importer, n: &Call) -> One {
    let (x, wanted) = (n.input(0)?, n.input(1)?);
    let wanted = Shape(cx.dims(wanted, "the new shape")?);
    let from = cx.shape(x).clone();
    let shape = cx.broadcast(&[&from, &wanted])?;
    Ok(vec![cx.expand(x, shape)?])
}

/// Repeats a tensor along its axes: `[a, b]` becomes `[1, a, 1, b]`, `[r, a, s, b]`, `[r*a, s*b]`.
pub(super) fn repeat(cx: &mut Importer, x: Val, times: &[Dim]) -> Res<Val> {
    let shape = cx.shape(x).clone();
    let (mut split, mut wide, mut out) = (vec![], vec![], vec![]);
    for (d, r) in shape.0.iter().zip(times) {
        if !r.is(1) {
            split.push(Dim::from(1));
            wide.push(r.clone());
        }
        split.push(d.clone());
        wide.push(d.clone());
        out.push(d.clone() * r.clone());
    }
    let y = cx.reshape(x, Shape(split))?;
    let y = cx.expand(y, Shape(wide))?;
    cx.reshape(y, Shape(out))
}

pub(super) fn tile(cx: &mut Importer, n: &Call) -> One {
    let x = n.input(0)?;
    let times = cx.dims(n.input(1)?, "the repeats")?;
    demand!(times.len() == cx.rank(x), "{} repeats are given for {}", times.len(), cx.ty(x));
    Ok(vec![repeat(cx, x, &times)?])
}

pub(super) fn concat(cx: &mut Importer, n: &Call) -> One {
    let parts = n.all()?;
    let axis = n.axis("axis", if n.version < 4 { 1 } else { 0 }, cx.rank(parts[0]))?;
    Ok(vec![cx.concat(&parts, axis)?])
}

pub(super) fn split(cx: &mut Importer, n: &Call) -> Res<Vec<Val>> {
    let x = n.input(0)?;
    let axis = n.axis("axis", 0, cx.rank(x))?;
    let size = cx.shape(x)[axis].clone();
    let given = match (n.ints("split")?, n.opt(1)) {
        (Some(l), _) => Some(l.into_iter().map(Dim::from).collect()),
        (None, Some(v)) => Some(cx.dims(v, "the sizes of the parts")?),
        (None, None) => None,
    };
    let lens = match given {
        Some(l) => {
            let total = l.iter().cloned().sum();
            cx.require_equal(&size, &total, "the parts do not make up the axis")?;
            l
        }
        None => {
            let parts = n.int("num_outputs", n.node.outputs.len() as i64)?;
            demand!((1..=1 << 16).contains(&parts), "a tensor cannot be split into {parts} parts");
            let uneven = n.version >= 18;
            let len = if uneven { size.ceil_div(parts) } else { size.floor_div(&Dim::from(parts)) }.simplify(cx.symbols());
            let last = size.clone() - len.clone() * Dim::from(parts - 1);
            if !uneven {
                cx.require_equal(&last, &len, &format!("the axis does not divide into {parts} parts"))?;
            }
            let mut lens = vec![len; parts as usize];
            lens[parts as usize - 1] = last;
            lens
        }
    };
    let mut at = Dim::from(0);
    let mut out = Vec::with_capacity(lens.len());
    for len in lens {
        out.push(cx.narrow(x, axis, at.clone(), len.clone())?);
        at = at + len;
    }
    Ok(out)
}

/// A bound counted from the start; negative ones count from the end of `size`. A bound that is negative
/// for some sizes and positive for others is meant to be a position, one that is negative or 0 a place counted from the
/// end: both are checked at run time.
fn from_start(cx: &mut Importer, bound: &Dim, size: &Dim, what: &str) -> Res<Dim> {
    let range = bound.range(cx.symbols());
    if range.min >= 0 {
        Ok(bound.clone())
    } else if range.max <= 0 {
        cx.require_equal(bound, &bound.minimum(&Dim::from(-1)), &format!("{what} counts from the end, but may be 0"))?;
        Ok(bound.clone() + size.clone())
    } else {
        cx.require_equal(bound, &bound.maximum(&Dim::from(0)), &format!("{what} is negative"))?;
        Ok(bound.clone())
    }
}

/// First index and number of elements of a slice from `start` to `end` by `step`, as NumPy has it.
fn slice_range(cx: &mut Importer, size: &Dim, start: &Dim, end: &Dim, step: i64) -> Res<(Dim, Dim)> {
    let zero = Dim::from(0);
    let clamp = |cx: &Importer, d: Dim, low: &Dim, high: &Dim| d.maximum(low).minimum(high).simplify(cx.symbols());
    let (first, len) = if step > 0 {
        let mut bound = |d: &Dim, what| -> Res<Dim> {
            match d.as_const() {
                Some(n) if n >= END => Ok(size.clone()),
                Some(n) if n <= -END => Ok(zero.clone()),
                _ => {
                    let d = from_start(cx, d, size, what)?;
                    Ok(clamp(cx, d, &zero, size))
                }
            }
        };
        let (a, b) = (bound(start, "the start")?, bound(end, "the end")?);
        let len = (b - a.clone()).ceil_div(step);
        (a, len)
    } else {
        let (low, high) = (Dim::from(-1), size.clone() - Dim::from(1));
        let mut bound = |d: &Dim, what| -> Res<Dim> {
            match d.as_const() {
                Some(n) if n >= END => Ok(high.clone()),
                Some(n) if n <= -END => Ok(low.clone()),
                _ => {
                    let d = from_start(cx, d, size, what)?;
                    Ok(clamp(cx, d, &low, &high))
                }
            }
        };
        let (a, b) = (bound(start, "the start")?, bound(end, "the end")?);
        let len = (a.clone() - b).ceil_div(step.saturating_neg());
        (a, len)
    };
    let len = len.maximum(&zero).simplify(cx.symbols());
    Ok((if len.is(0) { zero } else { first }, len))
}

pub(super) fn slice(cx: &mut Importer, n: &Call) -> One {
    let x = n.input(0)?;
    let shape = cx.shape(x).clone();
    let rank = shape.rank();
    let (starts, ends, axes, steps) = if n.version < 10 {
        let list = |name: &str| n.ints(name)?.ok_or_else(|| Fail::Invalid(format!("the attribute `{name}` is missing")));
        let dims = |l: Vec<i64>| l.into_iter().map(Dim::from).collect::<Vec<_>>();
        (dims(list("starts")?), dims(list("ends")?), n.ints("axes")?, None)
    } else {
        let axes = n.opt(3).map(|v| cx.ints(v, "the axes")).transpose()?;
        let steps = n.opt(4).map(|v| cx.ints(v, "the steps")).transpose()?;
        (cx.dims(n.input(1)?, "the starts")?, cx.dims(n.input(2)?, "the ends")?, axes, steps)
    };
    let count = starts.len();
    let axes = axes.unwrap_or_else(|| (0..count as i64).collect());
    let steps = steps.unwrap_or_else(|| vec![1; count]);
    demand!(
        ends.len() == count && axes.len() == count && steps.len() == count,
        "{count} starts, {} ends, {} axes and {} steps are given",
        ends.len(),
        axes.len(),
        steps.len()
    );
    distinct_axes(&axes, rank)?;
    let (mut from, mut by, mut lens) = (vec![Dim::from(0); rank], vec![1; rank], shape.clone());
    for i in 0..count {
        let a = resolve_axis(axes[i], rank)?;
        demand!(steps[i] != 0, "the step of axis {a} is 0");
        let (first, len) = slice_range(cx, &shape[a], &starts[i], &ends[i], steps[i])?;
        (from[a], lens.0[a]) = (first, len);
        by[a] = if lens[a].as_const().is_some_and(|n| n <= 1) { 1 } else { steps[i] };
    }
    if lens == shape && by.iter().all(|&s| s == 1) {
        return Ok(vec![x]);
    }
    Ok(vec![cx.emit(Slice { starts: from, steps: by, lens }, &[x])?])
}

pub(super) fn pad(cx: &mut Importer, n: &Call) -> One {
    let x = n.input(0)?;
    let shape = cx.shape(x).clone();
    let rank = shape.rank();
    let list = match n.version < 11 {
        true => n.ints("pads")?.unwrap_or_default().into_iter().map(Dim::from).collect(),
        false => cx.dims(n.input(1)?, "the pads")?,
    };
    let axes = match n.opt(3) {
        Some(v) => {
            let axes = cx.ints(v, "the axes")?;
            distinct_axes(&axes, rank)?;
            axes.iter().map(|&a| resolve_axis(a, rank)).collect::<Res<Vec<usize>>>()?
        }
        None => (0..rank).collect(),
    };
    demand!(list.len() == 2 * axes.len(), "{} pads are given for {} axes", list.len(), axes.len());
    let (mut before, mut after) = (vec![Dim::from(0); rank], vec![Dim::from(0); rank]);
    let (mut starts, mut lens) = (vec![Dim::from(0); rank], shape.clone());
    for (i, &a) in axes.iter().enumerate() {
        for (d, first) in [(&list[i], true), (&list[i + axes.len()], false)] {
            let range = d.range(cx.symbols());
            if range.min >= 0 {
                *(if first { &mut before[a] } else { &mut after[a] }) = d.clone();
            } else if range.max <= 0 {
                // A negative pad takes elements away.
                lens.0[a] = lens[a].clone() + d.clone();
                if first {
                    starts[a] = -d.clone();
                }
            } else {
                cx.require_equal(d, &d.maximum(&Dim::from(0)), "a pad is negative")?;
                *(if first { &mut before[a] } else { &mut after[a] }) = d.clone();
            }
        }
    }
    let x = if lens == shape { x } else { cx.emit(Slice { starts, steps: vec![1; rank], lens }, &[x])? };
    if before.iter().chain(&after).all(|d| d.is(0)) {
        return Ok(vec![x]);
    }
    let mode = match n.text("mode", "constant")?.as_str() {
        "constant" => PadMode::Constant,
        "reflect" => PadMode::Reflect,
        "edge" => PadMode::Edge,
        "wrap" => PadMode::Wrap,
        other => return Err(Fail::Invalid(format!("the mode is `{other}`, but must be constant, reflect, edge or wrap"))),
    };
    let mut operands = vec![x];
    if mode == PadMode::Constant {
        let value = match n.opt(2) {
            Some(v) => {
                demand!(cx.shape(v).elements().is(1), "the value of a pad must be a scalar, but it is {}", cx.ty(v));
                cx.reshape(v, Shape::default())?
            }
            None => cx.like(x, n.float("value", 0.0)?),
        };
        operands.push(value);
    }
    Ok(vec![cx.emit(Pad { mode, before, after }, &operands)?])
}

pub(super) fn gather(cx: &mut Importer, n: &Call) -> One {
    let (x, indices) = (n.input(0)?, n.input(1)?);
    let axis = n.axis("axis", 0, cx.rank(x))?;
    Ok(vec![cx.emit(Gather { axis }, &[x, indices])?])
}

pub(super) fn gather_elements(cx: &mut Importer, n: &Call) -> One {
    let (x, indices) = (n.input(0)?, n.input(1)?);
    let axis = n.axis("axis", 0, cx.rank(x))?;
    Ok(vec![cx.emit(GatherElements { axis }, &[x, indices])?])
}

pub(super) fn gather_nd(cx: &mut Importer, n: &Call) -> One {
    let batch = n.int("batch_dims", 0)?;
    let Ok(batch) = usize::try_from(batch) else {
        return Err(Fail::Invalid(format!("batch_dims is {batch}")));
    };
    Ok(vec![cx.emit(GatherNd { batch }, &[n.input(0)?, n.input(1)?])?])
}

fn reduction(n: &Call) -> Res<ScatterReduction> {
    Ok(match n.text("reduction", "none")?.as_str() {
        "none" => ScatterReduction::Replace,
        "add" => ScatterReduction::Add,
        "mul" => ScatterReduction::Mul,
        "max" => ScatterReduction::Max,
        "min" => ScatterReduction::Min,
        other => return Err(Fail::Invalid(format!("the reduction is `{other}`, but must be none, add, mul, max or min"))),
    })
}

pub(super) fn scatter_elements(cx: &mut Importer, n: &Call) -> One {
    let x = n.input(0)?;
    let op = ScatterElements { axis: n.axis("axis", 0, cx.rank(x))?, reduction: reduction(n)? };
    Ok(vec![cx.emit(op, &[x, n.input(1)?, n.input(2)?])?])
}

pub(super) fn scatter_nd(cx: &mut Importer, n: &Call) -> One {
    let op = ScatterNd { reduction: reduction(n)? };
    Ok(vec![cx.emit(op, &[n.input(0)?, n.input(1)?, n.input(2)?])?])
}

fn image(cx: &Importer, n: &Call) -> Res<(Val, [Dim; 4], Dim)> {
    let x = n.input(0)?;
    let b = n.int("blocksize", 0)?;
    demand!(b >= 1, "blocksize is {b}");
    let [batch, c, h, w] = cx.shape(x).0.as_slice() else {
        return Err(Fail::Invalid(format!("the operand must have 4 axes, but is {}", cx.ty(x))));
    };
    Ok((x, [batch.clone(), c.clone(), h.clone(), w.clone()], Dim::from(b)))
}

pub(super) fn depth_to_space(cx: &mut Importer, n: &Call) -> One {
    let (x, [batch, c, h, w], b) = image(cx, n)?;
    let c = c.floor_div(&(b.clone() * b.clone()));
    let (split, perm) = match n.text("mode", "DCR")?.as_str() {
        "DCR" => (vec![batch.clone(), b.clone(), b.clone(), c.clone(), h.clone(), w.clone()], vec![0, 3, 4, 1, 5, 2]),
        "CRD" => (vec![batch.clone(), c.clone(), b.clone(), b.clone(), h.clone(), w.clone()], vec![0, 1, 4, 2, 5, 3]),
        other => return Err(Fail::Invalid(format!("the mode is `{other}`, but must be DCR or CRD"))),
    };
    let y = cx.reshape(x, Shape(split))?;
    let y = cx.transpose(y, perm)?;
    Ok(vec![cx.reshape(y, Shape(vec![batch, c, h * b.clone(), w * b]))?])
}

pub(super) fn space_to_depth(cx: &mut Importer, n: &Call) -> One {
    let (x, [batch, c, h, w], b) = image(cx, n)?;
    let (h, w) = (h.floor_div(&b), w.floor_div(&b));
    let y = cx.reshape(x, Shape(vec![batch.clone(), c.clone(), h.clone(), b.clone(), w.clone(), b.clone()]))?;
    let perm = match n.text("mode", "DCR")?.as_str() {
        "DCR" => vec![0, 3, 5, 1, 2, 4],
        "CRD" => vec![0, 1, 3, 5, 2, 4],
        other => return Err(Fail::Invalid(format!("the mode is `{other}`, but must be DCR or CRD"))),
    };
    let y = cx.transpose(y, perm)?;
    Ok(vec![cx.reshape(y, Shape(vec![batch, c * b.clone() * b, h, w]))?])
}

/// Truth values along the axis select what is kept; they must be constants.
pub(super) fn compress(cx: &mut Importer, n: &Call) -> One {
    let (mut x, condition) = (n.input(0)?, n.input(1)?);
    let Some(c) = cx.as_const(condition) else {
        unsupported!("data-dependent shape: the number of selected elements depends on what the model computes");
    };
    let kept: Vec<i64> = (0..c.len()).filter(|&i| c.get(i) != Scalar::Int(0)).map(|i| i as i64).collect();
    let axis = match n.opt_int("axis")? {
        Some(a) => resolve_axis(a, cx.rank(x))?,
        None => {
            let all = cx.shape(x).elements();
            x = cx.reshape(x, Shape(vec![all]))?;
            0
        }
    };
    let indices = cx.constant(Tensor::of(&[kept.len()], kept));
    Ok(vec![cx.emit(Gather { axis }, &[x, indices])?])
}
