//! Operators that make tensors out of shapes and numbers: `Shape`, `Size`, `Constant`, `Range` and others.

use super::call::resolve_axis;
use super::{Call, Fail, Importer, Res, Val, demand, unsupported};
use crate::onnx::model::{Attribute, elem_name, elem_of};
use tfc_ir::dim::Dim;
use tfc_ir::tensor::{Scalar, Tensor};
use tfc_ir::types::{Elem, Shape};

type One = Res<Vec<Val>>;

/// A bound of a slice as ONNX clamps it: counted from the end where negative, then within `0..=rank`.
fn clamp_axis(axis: i64, rank: usize) -> usize {
    let rank = rank as i64;
    (if axis < 0 { axis.saturating_add(rank) } else { axis }).clamp(0, rank) as usize
}

pub(super) fn shape(cx: &mut Importer, n: &Call) -> One {
    let x = n.input(0)?;
    let rank = cx.rank(x);
    let (start, end) = (clamp_axis(n.int("start", 0)?, rank), clamp_axis(n.int("end", i64::MAX)?, rank));
    let sizes: Vec<Dim> = cx.shape(x).0.get(start..end).unwrap_or_default().to_vec();
    Ok(vec![cx.dim_tensor(&[sizes.len()], sizes)?])
}

pub(super) fn size(cx: &mut Importer, n: &Call) -> One {
    let count = cx.shape(n.input(0)?).elements();
    Ok(vec![cx.dim_tensor(&[], vec![count])?])
}

pub(super) fn constant(cx: &mut Importer, n: &Call) -> One {
    demand!(n.attributes.len() == 1, "a Constant has one attribute, its value, but {} are given", n.attributes.len());
    let (name, value) = n.attributes.iter().next().expect("one");
    let t = match (name.as_str(), value) {
        ("value", Attribute::Tensor(t)) => t.clone(),
        ("value_int", Attribute::Int(i)) => Tensor::of(&[], vec![*i]),
        ("value_ints", Attribute::Ints(l)) => Tensor::of(&[l.len()], l.clone()),
        ("value_float", Attribute::Float(x)) => Tensor::of(&[], vec![*x]),
        ("value_floats", Attribute::Floats(l)) => Tensor::of(&[l.len()], l.clone()),
        ("value_string" | "value_strings" | "sparse_value", a) => unsupported!("constants that are {} are not supported", a.kind()),
        (name, a) => return Err(Fail::Invalid(format!("the attribute `{name}` is {}, which is no value of a Constant", a.kind()))),
    };
    Ok(vec![cx.constant(t)])
}

pub(super) fn constant_of_shape(cx: &mut Importer, n: &Call) -> One {
    let dims = cx.dims(n.input(0)?, "the shape")?;
    let value = n.tensor("value")?.unwrap_or_else(|| Tensor::of(&[1], vec![0f32]));
    demand!(value.len() == 1, "the value must have one element, but it is {}", value.ty());
    let value = Tensor::scalar(value.elem(), value.get(0));
    let value = cx.constant(value);
    Ok(vec![cx.expand(value, Shape(dims))?])
}

/// A number as `n / 2^k`: `n` and `k`. Numbers and `k` are so small that sizes times `2^k` fit 64 bits.
fn dyadic(cx: &Importer, v: Val, what: &str) -> Res<(Dim, u32)> {
    const MAX_HALVINGS: u32 = 30;
    let Some(x) = cx.const_scalar(v).filter(|x| x.fract() != 0.0) else { return Ok((cx.whole(v, what)?, 0)) };
    let exact = (1..=MAX_HALVINGS).find(|&k| (x * f64::from(1u32 << k)).fract() == 0.0);
    match exact.filter(|_| x.abs() < f64::from(i32::MAX)) {
        Some(k) => Ok((Dim::from((x * f64::from(1u32 << k)) as i64), k)),
        None => unsupported!("{what} {x} of Range is too fine to count with sizes that are not known; fix them with --dim"),
    }
}

/// `start + i * delta` for as many `i` as stay before the limit.
pub(super) fn range(cx: &mut Importer, n: &Call) -> One {
    let (start, limit, delta) = (n.input(0)?, n.input(1)?, n.input(2)?);
    let elem = cx.elem(start);
    for v in [start, limit, delta] {
        demand!(cx.ty(v).shape.elements().is(1), "operands of Range are scalars, but one is {}", cx.ty(v));
    }
    let count = match (cx.const_scalar(start), cx.const_scalar(limit), cx.const_scalar(delta)) {
        (Some(s), Some(l), Some(d)) if elem.is_float() => {
            demand!(d != 0.0, "the step of Range is 0");
            // In f64, as ONNX Runtime computes it. The conversion saturates.
            let count = ((l - s) / d).ceil().max(0.0) as i64;
            demand!(count < 1 << 40, "Range from {s} to {l} by {d} has {count} elements");
            Dim::from(count)
        }
        _ => {
            // All three by one power of two are whole numbers.
            let (s, l, d) = (dyadic(cx, start, "the start")?, dyadic(cx, limit, "the limit")?, dyadic(cx, delta, "the step")?);
            let halvings = s.1.max(l.1).max(d.1);
            let whole = |(n, k): (Dim, u32)| n * Dim::from(1i64 << (halvings - k));
            let (s, l) = (whole(s), whole(l));
            let Some(step) = whole(d).as_const() else {
                unsupported!("the step of Range must be known at compile time");
            };
            demand!(step != 0, "the step of Range is 0");
            let span = if step > 0 { l - s } else { s - l };
            span.ceil_div(step.saturating_abs()).maximum(&Dim::from(0)).simplify(cx.symbols())
        }
    };
    let places = cx.iota(elem, Shape(vec![count]), 0)?;
    let (start, delta) = (cx.reshape(start, Shape::default())?, cx.reshape(delta, Shape::default())?);
    let scaled = if cx.const_scalar(delta) == Some(1.0) { places } else { cx.mul(places, delta)? };
    Ok(vec![if cx.const_scalar(start) == Some(0.0) { scaled } else { cx.add(scaled, start)? }])
}

fn element_type(n: &Call, default: Elem) -> Res<Elem> {
    let Some(code) = n.opt_int("dtype")? else { return Ok(default) };
    let code = i32::try_from(code).unwrap_or(0);
    match elem_of(code) {
        Some(e) => Ok(e),
        None => unsupported!("{} elements are not supported", elem_name(code)),
    }
}

/// `[rows, 1]` and `[1, columns]` positions of the last two axes of `x`.
pub(super) fn matrix_places(cx: &mut Importer, x: Val) -> Res<(Val, Val)> {
    let rank = cx.rank(x);
    demand!(rank >= 2, "a matrix is needed, but the operand is {}", cx.ty(x));
    let (rows, columns) = (cx.shape(x)[rank - 2].clone(), cx.shape(x)[rank - 1].clone());
    let rows = cx.iota(Elem::I64, Shape(vec![rows, Dim::from(1)]), 0)?;
    let columns = cx.iota(Elem::I64, Shape(vec![Dim::from(1), columns]), 1)?;
    Ok((rows, columns))
}

pub(super) fn eye_like(cx: &mut Importer, n: &Call) -> One {
    let x = n.input(0)?;
    demand!(cx.rank(x) == 2, "EyeLike takes a matrix, but the operand is {}", cx.ty(x));
    let to = element_type(n, cx.elem(x))?;
    let (rows, columns) = matrix_places(cx, x)?;
    let rows = cx.affine(rows, 1.0, n.int("k", 0)? as f64)?;
    let hit = cx.eq(rows, columns)?;
    Ok(vec![cx.cast(hit, to)?])
}

pub(super) fn one_hot(cx: &mut Importer, n: &Call) -> One {
    let (indices, depth, values) = (n.input(0)?, n.input(1)?, n.input(2)?);
    let depth = cx.whole(depth, "the depth")?;
    let rank = cx.rank(indices) + 1;
    let axis = n.axis("axis", -1, rank)?;
    demand!(cx.shape(values).0 == [Dim::from(2)], "the values of OneHot are two, but the operand is {}", cx.ty(values));
    let at = cx.cast(indices, Elem::I64)?;
    let zero = cx.like(at, 0.0);
    let negative = cx.lt(at, zero)?;
    let size = cx.dim_tensor(&[], vec![depth.clone()])?;
    let from_end = cx.add(at, size)?;
    let at = cx.select(negative, from_end, at)?;
    let at = cx.unsqueeze(at, &[axis])?;
    let mut counted = vec![Dim::from(1); rank];
    counted[axis] = depth;
    let places = cx.iota(Elem::I64, Shape(counted), axis)?;
    let hit = cx.eq(places, at)?;
    let value = |cx: &mut Importer, i: i64| {
        let v = cx.narrow(values, 0, Dim::from(i), Dim::from(1))?;
        cx.reshape(v, Shape::default())
    };
    let (off, on) = (value(cx, 0)?, value(cx, 1)?);
    Ok(vec![cx.select(hit, on, off)?])
}

/// The places of the elements of a constant that are not 0.
pub(super) fn non_zero(cx: &mut Importer, n: &Call) -> One {
    let x = n.input(0)?;
    let Some(t) = cx.as_const(x).cloned() else {
        unsupported!("data-dependent shape: the number of nonzero elements depends on what the model computes");
    };
    let sizes = t.sizes().to_vec();
    let hits: Vec<usize> = (0..t.len()).filter(|&i| t.get(i) != Scalar::Int(0) && t.get(i) != Scalar::Float(0.0)).collect();
    let mut out = Vec::with_capacity(sizes.len() * hits.len());
    for axis in 0..sizes.len() {
        let stride: usize = sizes[axis + 1..].iter().product();
        out.extend(hits.iter().map(|&i| (i / stride % sizes[axis]) as i64));
    }
    Ok(vec![cx.constant(Tensor::of(&[sizes.len(), hits.len()], out))])
}

pub(super) fn trilu(cx: &mut Importer, n: &Call) -> One {
    let x = n.input(0)?;
    let (mut rows, columns) = matrix_places(cx, x)?;
    if let Some(k) = n.opt(1) {
        let k = cx.reshape(k, Shape::default())?;
        rows = cx.add(rows, k)?;
    }
    let kept = if n.flag("upper", true)? { cx.le(rows, columns)? } else { cx.le(columns, rows)? };
    let zero = cx.like(x, 0.0);
    Ok(vec![cx.select(kept, x, zero)?])
}

/// A matrix: the axes before `axis` taken together, and those from it on.
pub(super) fn flatten(cx: &mut Importer, n: &Call) -> One {
    let x = n.input(0)?;
    let rank = cx.rank(x);
    let axis = n.int("axis", 1)?;
    let axis = if axis == rank as i64 { rank } else { resolve_axis(axis, rank)? };
    let dims = &cx.shape(x).0;
    let (outer, inner): (Dim, Dim) = (dims[..axis].iter().cloned().product(), dims[axis..].iter().cloned().product());
    Ok(vec![cx.reshape(x, Shape(vec![outer, inner]))?])
}
