//! Reductions, cumulative sums, positions of extremes, softmax.

use super::call::resolve_axis;
use super::{Call, Importer, Res, Val, demand, unsupported};
use tfc_ir::dim::Dim;
use tfc_ir::ops::reduce::ReduceKind;
use tfc_ir::ops::{Abs, ArgReduce, CumSum, Softmax};
use tfc_ir::types::{Elem, Shape};

type One = Res<Vec<Val>>;

/// The axes of a reduction; `None` means that nothing is reduced.
fn axes(cx: &Importer, n: &Call, x: Val) -> Res<Option<Vec<usize>>> {
    let rank = cx.rank(x);
    let axes = n.axes(cx, 1, rank)?.filter(|a| !a.is_empty());
    Ok(match axes {
        Some(a) => Some(a),
        None if n.flag("noop_with_empty_axes", false)? => None,
        None => Some((0..rank).collect()),
    })
}

/// `after(reduce(before(x)))`; the element functions apply even where nothing is reduced.
fn reduction(
    cx: &mut Importer,
    n: &Call,
    kind: ReduceKind,
    before: fn(&mut Importer, Val) -> Res<Val>,
    after: fn(&mut Importer, Val) -> Res<Val>,
) -> One {
    let x = n.input(0)?;
    let keep = n.flag("keepdims", true)?;
    let y = before(cx, x)?;
    let y = match axes(cx, n, x)? {
        Some(a) => cx.reduce(y, kind, &a, keep)?,
        None => y,
    };
    Ok(vec![after(cx, y)?])
}

fn same(_: &mut Importer, v: Val) -> Res<Val> {
    Ok(v)
}

fn square(cx: &mut Importer, v: Val) -> Res<Val> {
    cx.mul(v, v)
}

fn log_any(cx: &mut Importer, v: Val) -> Res<Val> {
    float_fn(cx, v, |cx, v| cx.log(v))
}

fn sqrt_any(cx: &mut Importer, v: Val) -> Res<Val> {
    float_fn(cx, v, |cx, v| cx.sqrt(v))
}

/// Applies a float function to a tensor of any type; integers go through f64.
fn float_fn(cx: &mut Importer, v: Val, f: fn(&mut Importer, Val) -> Res<Val>) -> Res<Val> {
    let elem = cx.elem(v);
    if elem.is_float() {
        return f(cx, v);
    }
    let wide = cx.cast(v, Elem::F64)?;
    let y = f(cx, wide)?;
    cx.cast(y, elem)
}

pub(super) fn sum(cx: &mut Importer, n: &Call) -> One {
    reduction(cx, n, ReduceKind::Sum, same, same)
}

/// Means of integers are truncated.
pub(super) fn mean(cx: &mut Importer, n: &Call) -> One {
    let x = n.input(0)?;
    if cx.elem(x).is_float() {
        return reduction(cx, n, ReduceKind::Mean, same, same);
    }
    let Some(a) = axes(cx, n, x)? else { return Ok(vec![x]) };
    let s = cx.reduce(x, ReduceKind::Sum, &a, n.flag("keepdims", true)?)?;
    let count = cx.count(x, &a)?;
    Ok(vec![cx.div(s, count)?])
}

pub(super) fn max(cx: &mut Importer, n: &Call) -> One {
    reduction(cx, n, ReduceKind::Max, same, same)
}

pub(super) fn min(cx: &mut Importer, n: &Call) -> One {
    reduction(cx, n, ReduceKind::Min, same, same)
}

pub(super) fn prod(cx: &mut Importer, n: &Call) -> One {
    reduction(cx, n, ReduceKind::Prod, same, same)
}

pub(super) fn l1(cx: &mut Importer, n: &Call) -> One {
    reduction(cx, n, ReduceKind::Sum, |cx, v| cx.emit(Abs {}, &[v]), same)
}

pub(super) fn l2(cx: &mut Importer, n: &Call) -> One {
    reduction(cx, n, ReduceKind::Sum, square, sqrt_any)
}

pub(super) fn sum_square(cx: &mut Importer, n: &Call) -> One {
    reduction(cx, n, ReduceKind::Sum, square, same)
}

pub(super) fn log_sum(cx: &mut Importer, n: &Call) -> One {
    reduction(cx, n, ReduceKind::Sum, same, log_any)
}

/// `max + log(sum(exp(x - max)))`. Where the maximum is infinite, 0 takes its place, so that `-inf`
/// everywhere gives `-inf`.
pub(super) fn log_sum_exp(cx: &mut Importer, n: &Call) -> One {
    let x = n.input(0)?;
    let Some(a) = axes(cx, n, x)? else { return Ok(vec![x]) };
    if a.is_empty() {
        return Ok(vec![x]);
    }
    let elem = cx.elem(x);
    let wide = if elem.is_float() { x } else { cx.cast(x, Elem::F64)? };
    let top = cx.reduce(wide, ReduceKind::Max, &a, true)?;
    let size = cx.emit(Abs {}, &[top])?;
    let (infinity, zero) = (cx.like(wide, f64::INFINITY), cx.like(wide, 0.0));
    let finite = cx.lt(size, infinity)?;
    let shift = cx.select(finite, top, zero)?;
    let d = cx.sub(wide, shift)?;
    let e = cx.exp(d)?;
    let s = cx.reduce(e, ReduceKind::Sum, &a, true)?;
    let l = cx.log(s)?;
    let y = cx.add(l, shift)?;
    let y = if n.flag("keepdims", true)? { y } else { cx.squeeze(y, &a)? };
    Ok(vec![cx.cast(y, elem)?])
}

fn arg(cx: &mut Importer, n: &Call, largest: bool) -> One {
    let x = n.input(0)?;
    let axis = n.axis("axis", 0, cx.rank(x))?;
    let op = ArgReduce { largest, axis, keep: n.flag("keepdims", true)?, last: n.flag("select_last_index", false)? };
    Ok(vec![cx.emit(op, &[x])?])
}

pub(super) fn arg_max(cx: &mut Importer, n: &Call) -> One {
    arg(cx, n, true)
}

pub(super) fn arg_min(cx: &mut Importer, n: &Call) -> One {
    arg(cx, n, false)
}

pub(super) fn cum_sum(cx: &mut Importer, n: &Call) -> One {
    let x = n.input(0)?;
    let axis = cx.int(n.input(1)?, "the axis")?;
    let op = CumSum { axis: resolve_axis(axis, cx.rank(x))?, exclusive: n.flag("exclusive", false)?, reverse: n.flag("reverse", false)? };
    Ok(vec![cx.emit(op, &[x])?])
}

/// Applies a function along the axis that the node names. Before version 13 the axes from `axis` on
/// are taken together, and the default is 1.
fn along_axis(cx: &mut Importer, n: &Call, f: impl Fn(&mut Importer, Val, usize) -> Res<Val>) -> One {
    let x = n.input(0)?;
    let rank = cx.rank(x);
    if n.version >= 13 {
        let axis = n.axis("axis", -1, rank)?;
        return Ok(vec![f(cx, x, axis)?]);
    }
    let axis = n.int("axis", 1)?;
    let axis = if axis == rank as i64 { rank } else { resolve_axis(axis, rank)? };
    if axis + 1 == rank {
        return Ok(vec![f(cx, x, axis)?]);
    }
    let shape = cx.shape(x).clone();
    let (outer, inner): (Dim, Dim) = (shape.0[..axis].iter().cloned().product(), shape.0[axis..].iter().cloned().product());
    let flat = cx.reshape(x, Shape(vec![outer, inner]))?;
    let y = f(cx, flat, 1)?;
    Ok(vec![cx.reshape(y, shape)?])
}

pub(super) fn softmax(cx: &mut Importer, n: &Call) -> One {
    along_axis(cx, n, |cx, x, axis| cx.emit(Softmax { axis, log: false }, &[x]))
}

pub(super) fn log_softmax(cx: &mut Importer, n: &Call) -> One {
    along_axis(cx, n, |cx, x, axis| cx.emit(Softmax { axis, log: true }, &[x]))
}

/// 1 at the first maximum along the axis, 0 elsewhere.
pub(super) fn hardmax(cx: &mut Importer, n: &Call) -> One {
    along_axis(cx, n, |cx, x, axis| {
        let at = cx.emit(ArgReduce { largest: true, axis, keep: true, last: false }, &[x])?;
        let mut counted = vec![Dim::from(1); cx.rank(x)];
        counted[axis] = cx.shape(x)[axis].clone();
        let places = cx.iota(Elem::I64, Shape(counted), axis)?;
        let hit = cx.eq(places, at)?;
        let elem = cx.elem(x);
        cx.cast(hit, elem)
    })
}

/// `x / norm(x)` along an axis; 0 where the norm is 0.
pub(super) fn lp_normalization(cx: &mut Importer, n: &Call) -> One {
    let x = n.input(0)?;
    let axis = n.axis("axis", -1, cx.rank(x))?;
    let norm = match n.int("p", 2)? {
        1 => {
            let y = cx.emit(Abs {}, &[x])?;
            cx.reduce(y, ReduceKind::Sum, &[axis], true)?
        }
        2 => {
            let y = cx.mul(x, x)?;
            let y = cx.reduce(y, ReduceKind::Sum, &[axis], true)?;
            cx.sqrt(y)?
        }
        p => unsupported!("the norm of order {p} is not supported; 1 and 2 are"),
    };
    let (zero, one) = (cx.like(x, 0.0), cx.like(x, 1.0));
    let empty = cx.eq(norm, zero)?;
    let norm = cx.select(empty, one, norm)?;
    Ok(vec![cx.div(x, norm)?])
}

/// `sum(|x|^p)^(1/p)` over the spatial axes.
pub(super) fn global_lp_pool(cx: &mut Importer, n: &Call) -> One {
    let x = n.input(0)?;
    let axes = spatial_axes(cx, x)?;
    let norm = super::nn::lp_sum(cx, x, n.int("p", 2)?, |cx, v| cx.reduce(v, ReduceKind::Sum, &axes, true))?;
    Ok(vec![norm])
}

fn spatial_axes(cx: &Importer, x: Val) -> Res<Vec<usize>> {
    demand!(cx.rank(x) >= 2, "pooling needs axes for batch and channels, but the operand is {}", cx.ty(x));
    Ok((2..cx.rank(x)).collect())
}

pub(super) fn global_average_pool(cx: &mut Importer, n: &Call) -> One {
    let x = n.input(0)?;
    let axes = spatial_axes(cx, x)?;
    Ok(vec![cx.reduce(x, ReduceKind::Mean, &axes, true)?])
}

pub(super) fn global_max_pool(cx: &mut Importer, n: &Call) -> One {
    let x = n.input(0)?;
    let axes = spatial_axes(cx, x)?;
    Ok(vec![cx.reduce(x, ReduceKind::Max, &axes, true)?])
}
