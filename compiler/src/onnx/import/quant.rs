//! Quantized models: conversions to and from integers, and products of integers.

use super::{Call, Fail, Importer, Res, Val, demand, unsupported};
use crate::onnx::model::{elem_name, elem_of};
use tfc_ir::dim::Dim;
use tfc_ir::ops::reduce::ReduceKind;
use tfc_ir::ops::{Conv, Round};
use tfc_ir::types::{Elem, Shape};

type One = Res<Vec<Val>>;

/// A scale or zero point so that it broadcasts to `x`: one number, one per index of an axis, or one
/// per block of an axis.
fn spread(cx: &mut Importer, n: &Call, v: Val, x: Val) -> Res<Val> {
    let rank = cx.rank(x);
    if cx.rank(v) == 0 || (cx.rank(v) == 1 && cx.shape(v)[0].is(1)) {
        return cx.reshape(v, Shape::default());
    }
    let axis = n.axis("axis", 1, rank)?;
    if cx.rank(v) == 1 {
        let mut shape = vec![Dim::from(1); rank];
        shape[axis] = cx.shape(v)[0].clone();
        return cx.reshape(v, Shape(shape));
    }
    let block = n.int("block_size", 0)?;
    demand!(block >= 1 && cx.rank(v) == rank, "a scale {} for {} needs a block_size", cx.ty(v), cx.ty(x));
    let size = cx.shape(x)[axis].clone();
    let mut wide = cx.shape(v).clone();
    let blocks = wide[axis].clone();
    wide.0.insert(axis + 1, Dim::from(block));
    let mut flat = cx.shape(v).clone();
    flat.0[axis] = blocks * Dim::from(block);
    let y = cx.unsqueeze(v, &[axis + 1])?;
    let y = cx.expand(y, wide)?;
    let y = cx.reshape(y, flat)?;
    cx.narrow(y, axis, Dim::from(0), size)
}

/// `clamp(round_half_even(x) + zero_point)` in the range of an integer type.
fn saturate(cx: &mut Importer, x: Val, zero_point: Option<Val>, to: Elem) -> Res<Val> {
    let Some((low, high)) = to.int_range() else { unsupported!("quantization to {to} is not supported") };
    let mut y = cx.emit(Round {}, &[x])?;
    if let Some(z) = zero_point {
        let elem = cx.elem(y);
        let z = cx.cast(z, elem)?;
        y = cx.add(y, z)?;
    }
    let (low, high) = (cx.like(y, low as f64), cx.like(y, high as f64));
    let y = cx.max(y, low)?;
    let y = cx.min(y, high)?;
    cx.cast(y, to)
}

pub(super) fn quantize_linear(cx: &mut Importer, n: &Call) -> One {
    let x = n.input(0)?;
    let to = match (n.opt(2), n.int("output_dtype", 0)?) {
        (Some(z), _) => cx.elem(z),
        (None, 0) => Elem::U8,
        (None, code) => match i32::try_from(code).ok().and_then(elem_of) {
            Some(e) => e,
            None => unsupported!("quantization to {} is not supported", elem_name(i32::try_from(code).unwrap_or(0))),
        },
    };
    let scale = spread(cx, n, n.input(1)?, x)?;
    let elem = cx.elem(scale);
    let wide = cx.cast(x, elem)?;
    let y = cx.div(wide, scale)?;
    let zero_point = n.opt(2).map(|z| spread(cx, n, z, x)).transpose()?;
    Ok(vec![saturate(cx, y, zero_point, to)?])
}

/// `(x - zero_point) * scale`, the difference formed in integers.
pub(super) fn dequantize_linear(cx: &mut Importer, n: &Call) -> One {
    let x = n.input(0)?;
    let scale = spread(cx, n, n.input(1)?, x)?;
    let elem = match n.int("output_dtype", 0)? {
        0 => cx.elem(scale),
        code => match i32::try_from(code).ok().and_then(elem_of).filter(|e| e.is_float()) {
            Some(e) => e,
            None => return Err(Fail::Invalid(format!("output_dtype is {code}"))),
        },
    };
    let d = offset(cx, n, x, n.opt(2))?;
    let d = cx.cast(d, elem)?;
    let scale = cx.cast(scale, elem)?;
    Ok(vec![cx.mul(d, scale)?])
}

/// `x - zero_point` in 32 bits.
fn offset(cx: &mut Importer, n: &Call, x: Val, zero_point: Option<Val>) -> Res<Val> {
    let y = cx.cast(x, Elem::I32)?;
    let Some(z) = zero_point else { return Ok(y) };
    if cx.as_const(z).is_some_and(|t| t.iter().all(|v| v.to_f64() == 0.0)) {
        return Ok(y);
    }
    let z = spread(cx, n, z, x)?;
    let z = cx.cast(z, Elem::I32)?;
    cx.sub(y, z)
}

/// Scale and zero point from the smallest and largest element, 0 among them.
pub(super) fn dynamic_quantize_linear(cx: &mut Importer, n: &Call) -> One {
    let x = n.input(0)?;
    let axes: Vec<usize> = (0..cx.rank(x)).collect();
    let (zero, one) = (cx.like(x, 0.0), cx.like(x, 1.0));
    let high = cx.reduce(x, ReduceKind::Max, &axes, false)?;
    let high = cx.max(high, zero)?;
    let low = cx.reduce(x, ReduceKind::Min, &axes, false)?;
    let low = cx.min(low, zero)?;
    let span = cx.sub(high, low)?;
    let steps = cx.like(x, 255.0);
    let scale = cx.div(span, steps)?;
    // Where everything is 0, any scale does.
    let empty = cx.eq(scale, zero)?;
    let scale = cx.select(empty, one, scale)?;
    let minus = cx.neg(low)?;
    let z = cx.div(minus, scale)?;
    let zero_point = saturate(cx, z, None, Elem::U8)?;
    let y = cx.div(x, scale)?;
    Ok(vec![saturate(cx, y, Some(zero_point), Elem::U8)?, scale, zero_point])
}

/// A zero point per row or column of a matrix operand, or one number.
fn matrix_offset(cx: &mut Importer, x: Val, zero_point: Option<Val>, rows: bool) -> Res<Val> {
    let y = cx.cast(x, Elem::I32)?;
    let Some(mut z) = zero_point else { return Ok(y) };
    if cx.rank(z) == 1 {
        z = match cx.shape(z)[0].is(1) {
            true => cx.reshape(z, Shape::default())?,
            false if rows => cx.unsqueeze(z, &[1])?,
            false => z,
        };
    }
    let z = cx.cast(z, Elem::I32)?;
    cx.sub(y, z)
}

pub(super) fn matmul_integer(cx: &mut Importer, n: &Call) -> One {
    let a = matrix_offset(cx, n.input(0)?, n.opt(2), true)?;
    let b = matrix_offset(cx, n.input(1)?, n.opt(3), false)?;
    Ok(vec![super::nn::product(cx, a, b)?])
}

/// A convolution of integers, in f64, where it is exact.
fn conv(cx: &mut Importer, n: &Call, x: Val, w: Val) -> Res<Val> {
    let op: Conv = super::nn::convolution(cx, n, x, w)?;
    let (x, w) = (cx.cast(x, Elem::F64)?, cx.cast(w, Elem::F64)?);
    let y = cx.emit(op, &[x, w])?;
    cx.cast(y, Elem::I32)
}

/// The weights' zero point is one number or one per output channel.
fn weights_offset(cx: &mut Importer, w: Val, zero_point: Option<Val>) -> Res<Val> {
    let y = cx.cast(w, Elem::I32)?;
    let Some(z) = zero_point else { return Ok(y) };
    let z = outermost(cx, z, w)?;
    let z = cx.cast(z, Elem::I32)?;
    cx.sub(y, z)
}

/// One number, or a list along the first axis of `w`.
fn outermost(cx: &mut Importer, v: Val, w: Val) -> Res<Val> {
    if cx.rank(v) == 0 || cx.shape(v)[0].is(1) {
        return cx.reshape(v, Shape::default());
    }
    demand!(cx.rank(w) >= 1, "the weights must have axes, but they are {}", cx.ty(w));
    let mut shape = vec![Dim::from(1); cx.rank(w)];
    shape[0] = cx.shape(v)[0].clone();
    cx.reshape(v, Shape(shape))
}

pub(super) fn conv_integer(cx: &mut Importer, n: &Call) -> One {
    let (x, w) = (n.input(0)?, n.input(1)?);
    let w = weights_offset(cx, w, n.opt(3))?;
    let x = matrix_offset(cx, x, n.opt(2), false)?;
    Ok(vec![conv(cx, n, x, w)?])
}

/// `x * (scale_a * scale_b / scale_y)`, rounded and saturated.
fn requantize(cx: &mut Importer, x: Val, scales: [Val; 3], zero_point: Val) -> Res<Val> {
    let factor = cx.mul(scales[0], scales[1])?;
    let factor = cx.div(factor, scales[2])?;
    let elem = cx.elem(factor);
    let y = cx.cast(x, elem)?;
    let y = cx.mul(y, factor)?;
    let to = cx.elem(zero_point);
    saturate(cx, y, Some(zero_point), to)
}

fn one_number(cx: &mut Importer, v: Val) -> Res<Val> {
    demand!(cx.shape(v).elements().is(1), "one scale or zero point is expected, but the operand is {}", cx.ty(v));
    cx.reshape(v, Shape::default())
}

pub(super) fn qlinear_matmul(cx: &mut Importer, n: &Call) -> One {
    let a = matrix_offset(cx, n.input(0)?, n.opt(2), true)?;
    let b = matrix_offset(cx, n.input(3)?, n.opt(5), false)?;
    let mut scale_a = n.input(1)?;
    if cx.rank(scale_a) == 1 {
        scale_a = if cx.shape(scale_a)[0].is(1) { cx.reshape(scale_a, Shape::default())? } else { cx.unsqueeze(scale_a, &[1])? };
    }
    let scale_b = n.input(4)?;
    let (scale_y, zero_point) = (one_number(cx, n.input(6)?)?, one_number(cx, n.input(7)?)?);
    let y = super::nn::product(cx, a, b)?;
    Ok(vec![requantize(cx, y, [scale_a, scale_b, scale_y], zero_point)?])
}

pub(super) fn qlinear_conv(cx: &mut Importer, n: &Call) -> One {
    let (x, w) = (n.input(0)?, n.input(3)?);
    let rank = cx.rank(x);
    let w0 = weights_offset(cx, w, n.opt(5))?;
    let x = matrix_offset(cx, x, n.opt(2), false)?;
    let mut y = conv(cx, n, x, w0)?;
    let channels = |cx: &mut Importer, v: Val| -> Res<Val> {
        if cx.rank(v) == 0 || cx.shape(v)[0].is(1) {
            return cx.reshape(v, Shape::default());
        }
        let mut shape = vec![Dim::from(1); rank];
        shape[1] = cx.shape(v)[0].clone();
        cx.reshape(v, Shape(shape))
    };
    if let Some(b) = n.opt(8) {
        let b = channels(cx, b)?;
        y = cx.add(y, b)?;
    }
    let scale_w = channels(cx, n.input(4)?)?;
    let scale_x = one_number(cx, n.input(1)?)?;
    let (scale_y, zero_point) = (one_number(cx, n.input(6)?)?, one_number(cx, n.input(7)?)?);
    Ok(vec![requantize(cx, y, [scale_x, scale_w, scale_y], zero_point)?])
}
