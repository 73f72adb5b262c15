//! Normalisations.

use super::{Call, Importer, Res, Val, demand, unsupported};
use tfc_ir::dim::Dim;
use tfc_ir::ops::reduce::ReduceKind;
use tfc_ir::ops::{GroupNorm, LayerNorm, Reciprocal, RmsNorm};
use tfc_ir::tensor::{Scalar, Tensor};
use tfc_ir::types::Shape;

type One = Res<Vec<Val>>;

/// `[c]` as `[c, 1, …]`, so that it broadcasts over the axes behind channels of a tensor of `rank` axes.
fn per_channel(cx: &mut Importer, v: Val, rank: usize) -> Res<Val> {
    demand!(cx.rank(v) == 1, "there must be one number per channel, but the operand is {}", cx.ty(v));
    let mut shape = cx.shape(v).clone();
    shape.0.extend(vec![Dim::from(1); rank.saturating_sub(2)]);
    cx.reshape(v, shape)
}

/// Normalises the last `axes` axes of `x` with a scale and a bias that broadcast to `x`. The norms of the IR
/// take those that broadcast to the normalised axes; others, which vary along the axes before, apply afterwards.
fn scaled(
    cx: &mut Importer,
    x: Val,
    (scale, bias): (Val, Option<Val>),
    axes: usize,
    norm: impl FnOnce(&mut Importer, Val, Option<Val>) -> Res<Val>,
) -> Res<Val> {
    let mut inner = |v: Val, what: &str| -> Res<Option<Val>> {
        let (shape, to) = (cx.shape(v).clone(), cx.shape(x).clone());
        demand!(shape.rank() <= to.rank(), "the {what} {} has more axes than the operand {}", cx.ty(v), cx.ty(x));
        for (a, d) in shape.0.iter().enumerate().filter(|(_, d)| !d.is(1)) {
            let size = &to[a + to.rank() - shape.rank()];
            cx.require_equal(d, size, &format!("the {what} of shape {shape} does not broadcast to {to}"))?;
        }
        let outer: Vec<usize> = (0..shape.rank().saturating_sub(axes)).collect();
        if outer.iter().any(|&a| !shape[a].is(1)) {
            return Ok(None);
        }
        cx.squeeze(v, &outer).map(Some)
    };
    let inner_scale = inner(scale, "scale")?;
    let inner_bias = bias.map(|b| inner(b, "bias")).transpose()?;
    match (inner_scale, inner_bias) {
        (Some(s), None) => norm(cx, s, None),
        (Some(s), Some(Some(b))) => norm(cx, s, Some(b)),
        (inner_scale, _) => {
            let one = cx.like(x, 1.0);
            let mut y = norm(cx, inner_scale.unwrap_or(one), None)?;
            if inner_scale.is_none() {
                y = cx.mul(y, scale)?;
            }
            bias.map_or(Ok(y), |b| cx.add(y, b))
        }
    }
}

fn layer_norm(cx: &mut Importer, x: Val, scale: Val, bias: Option<Val>, axes: usize, epsilon: f64) -> Res<Val> {
    scaled(cx, x, (scale, bias), axes, |cx, scale, bias| {
        let operands: Vec<Val> = [x, scale].into_iter().chain(bias).collect();
        cx.emit(LayerNorm { axes, epsilon: epsilon.into() }, &operands)
    })
}

fn rms_norm(cx: &mut Importer, x: Val, scale: Val, axes: usize, epsilon: f64) -> Res<Val> {
    scaled(cx, x, (scale, None), axes, |cx, scale, _| cx.emit(RmsNorm { axes, epsilon: epsilon.into() }, &[x, scale]))
}

/// Layer normalisation of the last `axes` axes, the mean and the inverse deviation where wanted.
pub(super) fn layer(cx: &mut Importer, n: &Call, x: Val, scale: Val, bias: Option<Val>, axes: usize) -> Res<Vec<Val>> {
    let epsilon = n.float("epsilon", 1e-5)?;
    let mut results = vec![layer_norm(cx, x, scale, bias, axes, epsilon)?];
    if n.wants(1) || n.wants(2) {
        let rank = cx.rank(x);
        let trailing: Vec<usize> = (rank - axes..rank).collect();
        let mean = cx.reduce(x, ReduceKind::Mean, &trailing, true)?;
        let d = cx.sub(x, mean)?;
        let d = cx.mul(d, d)?;
        let variance = cx.reduce(d, ReduceKind::Mean, &trailing, true)?;
        let variance = cx.affine(variance, 1.0, epsilon)?;
        let deviation = cx.sqrt(variance)?;
        results.push(mean);
        results.push(cx.emit(Reciprocal {}, &[deviation])?);
    }
    Ok(results)
}

pub(super) fn layer_normalization(cx: &mut Importer, n: &Call) -> One {
    let x = n.input(0)?;
    let rank = cx.rank(x);
    let axis = n.axis("axis", -1, rank)?;
    layer(cx, n, x, n.input(1)?, n.opt(2), rank - axis)
}

pub(super) fn rms_normalization(cx: &mut Importer, n: &Call) -> One {
    let (x, scale) = (n.input(0)?, n.input(1)?);
    let rank = cx.rank(x);
    let axis = n.axis("axis", -1, rank)?;
    if n.wants(1) {
        unsupported!("the inverse deviation is not supported as a result");
    }
    Ok(vec![rms_norm(cx, x, scale, rank - axis, n.float("epsilon", 1e-5)?)?])
}

/// At inference: `x * a + b` with `a = scale / sqrt(variance + epsilon)` and `b = bias - mean * a`.
pub(super) fn batch_normalization(cx: &mut Importer, n: &Call) -> One {
    let x = n.input(0)?;
    let rank = cx.rank(x);
    demand!(rank >= 2, "BatchNormalization needs axes for batch and channels, but the operand is {}", cx.ty(x));
    if n.flag("training_mode", false)? || (n.version < 14 && n.wants(1)) {
        unsupported!("BatchNormalization in training mode is not supported");
    }
    if n.version < 9 && !n.flag("spatial", true)? {
        unsupported!("BatchNormalization with spatial=0 is not supported");
    }
    let (scale, bias, mean, variance) = (n.input(1)?, n.input(2)?, n.input(3)?, n.input(4)?);
    let stats = cx.elem(variance);
    let v = cx.affine(variance, 1.0, n.float("epsilon", 1e-5)?)?;
    let deviation = cx.sqrt(v)?;
    let scale = cx.cast(scale, stats)?;
    let a = cx.div(scale, deviation)?;
    let shift = cx.mul(mean, a)?;
    let bias = cx.cast(bias, stats)?;
    let b = cx.sub(bias, shift)?;
    let (a, b) = (per_channel(cx, a, rank)?, per_channel(cx, b, rank)?);
    let elem = cx.elem(x);
    let (a, b) = (cx.cast(a, elem)?, cx.cast(b, elem)?);
    let y = cx.mul(x, a)?;
    Ok(vec![cx.add(y, b)?])
}

fn channels(cx: &Importer, x: Val) -> Res<i64> {
    demand!(cx.rank(x) >= 2, "axes for batch and channels are needed, but the operand is {}", cx.ty(x));
    match cx.shape(x)[1].as_const() {
        Some(c) => Ok(c),
        None => unsupported!("the number of channels must be known, but the operand is {}; fix it with --dim", cx.ty(x)),
    }
}

/// One group per channel.
pub(super) fn instance_normalization(cx: &mut Importer, n: &Call) -> One {
    let x = n.input(0)?;
    let op = GroupNorm { groups: channels(cx, x)?, epsilon: n.float("epsilon", 1e-5)?.into() };
    Ok(vec![cx.emit(op, &[x, n.input(1)?, n.input(2)?])?])
}

/// Before version 21 scale and bias are per group, then per channel.
pub(super) fn group_normalization(cx: &mut Importer, n: &Call) -> One {
    let x = n.input(0)?;
    let (groups, channels) = (n.int("num_groups", 0)?, channels(cx, x)?);
    demand!(groups >= 1 && channels % groups == 0, "{channels} channels do not divide into {groups} groups");
    let mut operands = vec![x];
    for i in [1, 2] {
        let mut v = n.input(i)?;
        demand!(cx.rank(v) == 1, "scale and bias are lists, but one is {}", cx.ty(v));
        if cx.shape(v)[0].is(groups) && groups != channels {
            v = cx.unsqueeze(v, &[1])?;
            v = cx.expand(v, Shape::fixed(&[groups, channels / groups]))?;
            v = cx.reshape(v, Shape::fixed(&[channels]))?;
        }
        operands.push(v);
    }
    Ok(vec![cx.emit(GroupNorm { groups, epsilon: n.float("epsilon", 1e-5)?.into() }, &operands)?])
}

/// `(x - mean) / (deviation + 1e-9)` over axes, by default all but the channels.
pub(super) fn mean_variance_normalization(cx: &mut Importer, n: &Call) -> One {
    let x = n.input(0)?;
    let axes = super::call::distinct_axes(&n.ints("axes")?.unwrap_or_else(|| vec![0, 2, 3]), cx.rank(x))?;
    let mean = cx.reduce(x, ReduceKind::Mean, &axes, true)?;
    let d = cx.sub(x, mean)?;
    let square = cx.mul(d, d)?;
    let variance = cx.reduce(square, ReduceKind::Mean, &axes, true)?;
    let deviation = cx.sqrt(variance)?;
    let deviation = cx.affine(deviation, 1.0, 1e-9)?;
    Ok(vec![cx.div(d, deviation)?])
}

/// The sum of operands and an optional bias, normalised; the sum is the fourth result.
fn skip(cx: &mut Importer, n: &Call, rms: bool) -> One {
    let (x, other, scale) = (n.input(0)?, n.input(1)?, n.input(2)?);
    let (shift, bias) = if rms { (None, n.opt(3)) } else { (n.opt(3), n.opt(4)) };
    let mut sum = cx.add(x, other)?;
    if let Some(b) = bias {
        sum = cx.add(sum, b)?;
    }
    let epsilon = n.float("epsilon", 1e-12)?;
    let y = if rms { rms_norm(cx, sum, scale, 1, epsilon)? } else { layer_norm(cx, sum, scale, shift, 1, epsilon)? };
    if n.wants(1) || n.wants(2) {
        unsupported!("mean and inverse deviation are not supported as results");
    }
    let nothing = cx.constant(Tensor::scalar(cx.elem(x), Scalar::Float(0.0)));
    Ok(vec![y, nothing, nothing, sum])
}

pub(super) fn skip_layer_normalization(cx: &mut Importer, n: &Call) -> One {
    skip(cx, n, false)
}

pub(super) fn skip_simplified_layer_normalization(cx: &mut Importer, n: &Call) -> One {
    skip(cx, n, true)
}
