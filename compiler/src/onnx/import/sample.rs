//! Sampling of images at places that the model computes: `GridSample` and `RoiAlign`.

use super::{Call, Fail, Importer, Res, Val, demand, unsupported};
use tfc_ir::dim::Dim;
use tfc_ir::ops::reduce::ReduceKind;
use tfc_ir::ops::{Abs, And, Floor, Gather, GatherNd, RemTrunc, Round};
use tfc_ir::types::{Elem, Shape};

type One = Res<Vec<Val>>;

/// What lies outside of the image.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Outside {
    Zeros,
    Border,
    Reflection,
}

/// A neighbour along one axis of every place.
#[derive(Clone, Copy)]
struct Tap {
    /// Its index within the axis, an `i64`.
    at: Val,
    weight: Val,
    /// Whether it lies in the image; without this all do.
    inside: Option<Val>,
}

/// Constants of one axis: its size and the borders at which places are reflected.
struct Extent {
    size: Val,
    last: Val,
    low: f64,
    high: Val,
}

/// `x` between 0 and `high`.
pub(super) fn clamp(cx: &mut Importer, x: Val, high: Val) -> Res<Val> {
    let zero = cx.like(x, 0.0);
    let x = cx.max(x, zero)?;
    cx.min(x, high)
}

/// Mirrors places at the borders until they lie between them.
fn reflect(cx: &mut Importer, x: Val, e: &Extent) -> Res<Val> {
    let span = cx.affine(e.high, 1.0, -e.low)?;
    let twice = cx.affine(span, 2.0, 0.0)?;
    let t = cx.affine(x, 1.0, -e.low)?;
    let t = cx.emit(Abs {}, &[t])?;
    let t = cx.emit(RemTrunc {}, &[t, twice])?;
    let back = cx.sub(twice, t)?;
    let near = cx.le(t, span)?;
    let t = cx.select(near, t, back)?;
    cx.affine(t, 1.0, e.low)
}

/// The tap at a whole-numbered place.
fn tap(cx: &mut Importer, place: Val, weight: Val, e: &Extent, outside: Outside) -> Res<Tap> {
    let (mut place, mut inside) = (place, None);
    match outside {
        Outside::Reflection => place = reflect(cx, place, e)?,
        Outside::Zeros => {
            let zero = cx.like(place, 0.0);
            let (a, b) = (cx.le(zero, place)?, cx.le(place, e.last)?);
            inside = Some(cx.emit(And {}, &[a, b])?);
        }
        Outside::Border => {}
    }
    let place = clamp(cx, place, e.last)?;
    Ok(Tap { at: cx.cast(place, Elem::I64)?, weight, inside })
}

/// Keys' cubic convolution with the parameter `a` at distance `x`, which is within `[0, 1]` if it is near, else within `[1, 2]`.
pub(super) fn cubic(cx: &mut Importer, x: Val, a: f64, near: bool) -> Res<Val> {
    let [c3, c2, c1, c0] = if near { [a + 2.0, -(a + 3.0), 0.0, 1.0] } else { [a, -5.0 * a, 8.0 * a, -4.0 * a] };
    let mut y = cx.affine(x, c3, c2)?;
    for c in [c1, c0] {
        let z = cx.mul(y, x)?;
        y = cx.affine(z, 1.0, c)?;
    }
    Ok(y)
}

fn taps(cx: &mut Importer, x: Val, mode: &str, e: &Extent, outside: Outside) -> Res<Vec<Tap>> {
    let one = cx.like(x, 1.0);
    let mut x = if mode == "nearest" { cx.emit(Round {}, &[x])? } else { x };
    match outside {
        // Cubic places are not clamped, only the neighbours that they are made of.
        Outside::Border if !mode.ends_with("cubic") => x = clamp(cx, x, e.last)?,
        Outside::Reflection => x = reflect(cx, x, e)?,
        Outside::Border | Outside::Zeros => {}
    }
    let first = if mode == "nearest" { x } else { cx.emit(Floor {}, &[x])? };
    let ratio = cx.sub(x, first)?;
    let weights: Vec<(f64, Val)> = match mode {
        "nearest" => vec![(0.0, one)],
        "linear" | "bilinear" => vec![(0.0, cx.sub(one, ratio)?), (1.0, ratio)],
        "cubic" | "bicubic" => {
            const A: f64 = -0.75;
            let rest = cx.sub(one, ratio)?;
            let (far_left, far_right) = (cx.affine(ratio, 1.0, 1.0)?, cx.affine(rest, 1.0, 1.0)?);
            vec![
                (-1.0, cubic(cx, far_left, A, false)?),
                (0.0, cubic(cx, ratio, A, true)?),
                (1.0, cubic(cx, rest, A, true)?),
                (2.0, cubic(cx, far_right, A, false)?),
            ]
        }
        other => return Err(Fail::Invalid(format!("the mode is `{other}`"))),
    };
    let mut out = vec![];
    for (shift, weight) in weights {
        let place = cx.affine(first, 1.0, shift)?;
        out.push(tap(cx, place, weight, e, outside)?);
    }
    Ok(out)
}

/// The image as rows `[batch, places, channels]` is read at flat indices, tap by tap.
pub(super) fn grid_sample(cx: &mut Importer, n: &Call) -> One {
    let (x, grid) = (n.input(0)?, n.input(1)?);
    let rank = cx.rank(x);
    demand!(rank >= 3 && cx.rank(grid) == rank, "the operands must have equally many axes, but are {} and {}", cx.ty(x), cx.ty(grid));
    let axes = rank - 2;
    demand!(cx.shape(grid)[rank - 1].is(axes as i64), "the grid {} must have {axes} coordinates for {}", cx.ty(grid), cx.ty(x));
    let mode = n.text("mode", "linear")?;
    let outside = match n.text("padding_mode", "zeros")?.as_str() {
        "zeros" => Outside::Zeros,
        "border" => Outside::Border,
        "reflection" => Outside::Reflection,
        other => return Err(Fail::Invalid(format!("padding_mode is `{other}`"))),
    };
    let align = n.flag("align_corners", false)?;
    let sizes = cx.shape(x).clone();
    let mut all: Vec<Vec<Tap>> = vec![];
    for i in 0..axes {
        // Coordinates come in the reverse order of the axes.
        let g = cx.narrow(grid, rank - 1, Dim::from(axes - 1 - i), Dim::from(1))?;
        let g = cx.squeeze(g, &[rank - 1])?;
        let size = cx.dim_tensor(&[], vec![sizes[i + 2].clone()])?;
        let elem = cx.elem(g);
        let size = cx.cast(size, elem)?;
        let last = cx.affine(size, 1.0, -1.0)?;
        let e = match align {
            true => Extent { size, last, low: 0.0, high: last },
            false => Extent { size, last, low: -0.5, high: cx.affine(size, 1.0, -0.5)? },
        };
        let g = cx.affine(g, 1.0, 1.0)?;
        let place = if align {
            let half = cx.affine(g, 0.5, 0.0)?;
            cx.mul(half, e.last)?
        } else {
            let scaled = cx.mul(g, e.size)?;
            let scaled = cx.affine(scaled, 1.0, -1.0)?;
            cx.affine(scaled, 0.5, 0.0)?
        };
        all.push(taps(cx, place, &mode, &e, outside)?);
    }
    let places: Dim = sizes.0[2..].iter().cloned().product();
    let rows = cx.reshape(x, Shape(vec![sizes[0].clone(), sizes[1].clone(), places]))?;
    let rows = cx.transpose(rows, vec![0, 2, 1])?;
    let count: usize = all.iter().map(Vec::len).product();
    let out_shape = cx.shape(grid).0[..rank - 1].to_vec();
    let mut sum: Option<Val> = None;
    for combination in 0..count {
        let (mut rest, mut index, mut weight, mut inside) = (combination, None::<Val>, None::<Val>, None::<Val>);
        for (i, t) in all.iter().enumerate() {
            let tap = t[rest % t.len()];
            rest /= t.len();
            index = Some(match index {
                None => tap.at,
                Some(so_far) => {
                    let size = cx.dim_tensor(&[], vec![sizes[i + 2].clone()])?;
                    let scaled = cx.mul(so_far, size)?;
                    cx.add(scaled, tap.at)?
                }
            });
            weight = Some(match weight {
                None => tap.weight,
                Some(so_far) => cx.mul(so_far, tap.weight)?,
            });
            inside = match (inside, tap.inside) {
                (Some(a), Some(b)) => Some(cx.emit(And {}, &[a, b])?),
                (a, b) => a.or(b),
            };
        }
        let (index, weight) = (index.expect("an axis"), weight.expect("an axis"));
        // With batch axes taken together, an index is a tuple of one number.
        let index = cx.expand(index, Shape(out_shape.clone()))?;
        let index = cx.unsqueeze(index, &[rank - 1])?;
        let mut value = cx.emit(GatherNd { batch: 1 }, &[rows, index])?;
        // What the clamped index reads there takes no part, whatever it is.
        if let Some(inside) = inside {
            let inside = cx.unsqueeze(inside, &[rank - 1])?;
            let zero = cx.like(value, 0.0);
            value = cx.select(inside, value, zero)?;
        }
        let elem = cx.elem(value);
        let weight = cx.cast(weight, elem)?;
        let weight = if cx.rank(weight) == 0 { weight } else { cx.unsqueeze(weight, &[rank - 1])? };
        let part = if cx.const_scalar(weight) == Some(1.0) { value } else { cx.mul(value, weight)? };
        sum = Some(match sum {
            None => part,
            Some(s) => cx.add(s, part)?,
        });
    }
    // Channels come second.
    let mut perm = vec![0, rank - 1];
    perm.extend(1..rank - 1);
    Ok(vec![cx.transpose(sum.expect("a tap"), perm)?])
}

/// Places along one axis of every region, `[regions, bins * samples]`, clamped, with their validity,
/// lower and upper neighbour and the weight of the upper one.
struct Samples {
    low: Val,
    high: Val,
    ratio: Val,
    valid: Val,
}

/// How regions are sampled: samples per bin, factor of their coordinates, and whether these are pixel corners.
struct Sampling {
    per_bin: i64,
    scale: f64,
    half_pixel: bool,
}

/// `column` is where the regions hold the start of the axis; two behind it is the end.
fn samples(cx: &mut Importer, rois: Val, column: i64, bins: i64, size: &Dim, s: &Sampling) -> Res<Samples> {
    let Sampling { per_bin, scale, half_pixel } = *s;
    let edge = |cx: &mut Importer, i: i64| {
        let v = cx.narrow(rois, 1, Dim::from(i), Dim::from(1))?;
        cx.affine(v, scale, if half_pixel { -0.5 } else { 0.0 })
    };
    let (start, end) = (edge(cx, column)?, edge(cx, column + 2)?);
    let mut len = cx.sub(end, start)?;
    if !half_pixel {
        let one = cx.like(len, 1.0);
        len = cx.max(len, one)?;
    }
    let elem = cx.elem(rois);
    let steps = cx.iota(elem, Shape::fixed(&[1, bins * per_bin]), 1)?;
    let count = (bins * per_bin) as f64;
    let steps = cx.affine(steps, 1.0 / count, 0.5 / count)?;
    let offset = cx.mul(len, steps)?;
    let place = cx.add(start, offset)?;
    let size = cx.dim_tensor(&[], vec![size.clone()])?;
    let size = cx.cast(size, elem)?;
    let last = cx.affine(size, 1.0, -1.0)?;
    let minus = cx.like(place, -1.0);
    let (a, b) = (cx.le(minus, place)?, cx.le(place, size)?);
    let valid = cx.emit(And {}, &[a, b])?;
    let place = clamp(cx, place, last)?;
    let low = cx.emit(Floor {}, &[place])?;
    let ratio = cx.sub(place, low)?;
    let high = cx.affine(low, 1.0, 1.0)?;
    let high = cx.min(high, last)?;
    Ok(Samples { low: cx.cast(low, Elem::I64)?, high: cx.cast(high, Elem::I64)?, ratio, valid })
}

pub(super) fn roi_align(cx: &mut Importer, n: &Call) -> One {
    let (x, rois, batch) = (n.input(0)?, n.input(1)?, n.input(2)?);
    let [images, channels, h, w] =
        cx.shape(x).0.clone().try_into().map_err(|_| Fail::Invalid(format!("the image must have 4 axes, but is {}", cx.ty(x))))?;
    demand!(cx.rank(rois) == 2 && cx.shape(rois)[1].is(4), "regions have 4 numbers, but the operand is {}", cx.ty(rois));
    demand!(cx.rank(batch) == 1, "there is one image index per region, but the operand is {}", cx.ty(batch));
    let (bins_h, bins_w) = (n.int("output_height", 1)?, n.int("output_width", 1)?);
    let per_bin = n.int("sampling_ratio", 0)?;
    demand!((1..1 << 12).contains(&bins_h) && (1..1 << 12).contains(&bins_w), "the result has the size {bins_h} x {bins_w}");
    demand!(per_bin < 1 << 8, "sampling_ratio is {per_bin}");
    if per_bin <= 0 {
        unsupported!("RoiAlign with as many samples as a region is large is not supported; give sampling_ratio");
    }
    let half_pixel =
        match n.text("coordinate_transformation_mode", if n.version < 16 { "output_half_pixel" } else { "half_pixel" })?.as_str() {
            "half_pixel" => true,
            "output_half_pixel" => false,
            other => return Err(Fail::Invalid(format!("coordinate_transformation_mode is `{other}`"))),
        };
    let s = Sampling { per_bin, scale: n.float("spatial_scale", 1.0)?, half_pixel };
    let ys = samples(cx, rois, 1, bins_h, &h, &s)?;
    let xs = samples(cx, rois, 0, bins_w, &w, &s)?;
    // Rows of channels, addressed by batch, row and column: `[regions, rows, columns]` indices.
    let rows = cx.transpose(x, vec![0, 2, 3, 1])?;
    let total = cx.shape(x)[0].clone() * h.clone() * w.clone();
    let rows = cx.reshape(rows, Shape(vec![total, channels.clone()]))?;
    let (height, width) = (cx.dim_tensor(&[], vec![h])?, cx.dim_tensor(&[], vec![w])?);
    let batch = cx.cast(batch, Elem::I64)?;
    // An image that is not there is read behind the last one, which is a status at run time.
    let images = cx.dim_tensor(&[], vec![images])?;
    let (none, below) = (cx.like(batch, 0.0), cx.lt(batch, images)?);
    let above = cx.le(none, batch)?;
    let exists = cx.emit(And {}, &[above, below])?;
    let batch = cx.select(exists, batch, images)?;
    let base = cx.mul(batch, height)?;
    let base = cx.unsqueeze(base, &[1, 2])?;
    let column = |cx: &mut Importer, v: Val| cx.unsqueeze(v, &[1]);
    let row = |cx: &mut Importer, v: Val| cx.unsqueeze(v, &[2]);
    let valid = {
        let (a, b) = (row(cx, ys.valid)?, column(cx, xs.valid)?);
        let both = cx.emit(And {}, &[a, b])?;
        cx.unsqueeze(both, &[3])?
    };
    let opposite = |cx: &mut Importer, v: Val| {
        let one = cx.like(v, 1.0);
        cx.sub(one, v)
    };
    let (up, left) = (opposite(cx, ys.ratio)?, opposite(cx, xs.ratio)?);
    let mut parts = vec![];
    for (y, wy) in [(ys.low, up), (ys.high, ys.ratio)] {
        for (x, wx) in [(xs.low, left), (xs.high, xs.ratio)] {
            let (y, x) = (row(cx, y)?, column(cx, x)?);
            let at = cx.add(base, y)?;
            let at = cx.mul(at, width)?;
            let at = cx.add(at, x)?;
            let value = cx.emit(Gather { axis: 0 }, &[rows, at])?;
            let (wy, wx) = (row(cx, wy)?, column(cx, wx)?);
            let weight = cx.mul(wy, wx)?;
            let weight = cx.unsqueeze(weight, &[3])?;
            let part = cx.mul(value, weight)?;
            let zero = cx.like(part, 0.0);
            parts.push(cx.select(valid, part, zero)?);
        }
    }
    let average = match n.text("mode", "avg")?.as_str() {
        "avg" => true,
        "max" => false,
        other => return Err(Fail::Invalid(format!("the mode is `{other}`, but must be avg or max"))),
    };
    // The maximum is one of the weighted neighbours, as ONNX defines it.
    let mut y = parts[0];
    for &p in &parts[1..] {
        y = if average { cx.add(y, p)? } else { cx.max(y, p)? };
    }
    let regions = cx.shape(rois)[0].clone();
    let split = [regions, bins_h.into(), per_bin.into(), bins_w.into(), per_bin.into(), channels];
    let y = cx.reshape(y, Shape(split.to_vec()))?;
    let y = cx.reduce(y, if average { ReduceKind::Mean } else { ReduceKind::Max }, &[2, 4], false)?;
    Ok(vec![cx.transpose(y, vec![0, 3, 1, 2])?])
}
