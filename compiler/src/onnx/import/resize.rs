//! `Resize` and `Upsample`: every axis is interpolated on its own, as a weighted sum of neighbours that are
//! gathered along it. So what is not finite reaches only results that it is a neighbour of.
//!
//! Sizes, places and weights are computed in f32, as ONNX Runtime and OpenVINO do. They are constants
//! where the sizes are fixed, and vectors as long as the axis that the program computes where they are not.
//!
//! The size that a scale gives is `floor(size * scale)`. Constants are multiplied in f32, so that
//! f32(11 / 7) * 7 is 11. A scale that the model computes from free sizes is taken as the exact quotient:
//! `float(height) / 7 * 7` is `height` for every height, also where f32 falls short of it (31 / 7 * 7),
//! since this is the size that the rest of the model needs.

use super::call::resolve_axis;
use super::quotients::Quotients;
use super::sample::{clamp, cubic};
use super::{Call, Fail, Importer, Res, Val, demand, movement, unsupported};
use crate::onnx::model::Attribute;
use tfc_ir::dim::{Dim, Range};
use tfc_ir::ops::reduce::ReduceKind;
use tfc_ir::ops::{Abs, And, Ceil, Floor, Gather, Or};
use tfc_ir::tensor::Tensor;
use tfc_ir::types::{Elem, Shape};

/// The most neighbours that the places along an axis are made of, all together, with antialiasing.
const MAX_TAPS: i64 = 1 << 22;

/// Up to this size the size that a constant scale makes of a free one is checked.
const CHECKED_SIZES: i64 = 1 << 16;

type Taps = Vec<(Val, Val)>;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Mode {
    Nearest,
    Linear,
    Cubic,
}

/// Which place of the operand a place of the result is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Coordinates {
    HalfPixel,
    HalfPixelSymmetric,
    PytorchHalfPixel,
    AlignCorners,
    Asymmetric,
    Crop,
}

/// How a place is rounded to the nearest element.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Nearest {
    PreferFloor,
    PreferCeil,
    Floor,
    Ceil,
    /// Before version 11: down, but up where the axis shrinks.
    Old,
}

/// One axis.
struct Axis {
    axis: usize,
    input: Dim,
    output: Dim,
    /// A scalar of f32.
    scale: Val,
    /// Whether the scale was given, not the size.
    scaled: bool,
    /// Start and end of the cut-out, as parts of the axis.
    roi: (f64, f64),
}

struct Rules {
    mode: Mode,
    coordinates: Coordinates,
    nearest: Nearest,
    cubic_a: f64,
    exclude_outside: bool,
    antialias: bool,
    extrapolation: f64,
}

impl Rules {
    fn read(n: &Call) -> Res<Rules> {
        let mode = match n.text("mode", "nearest")?.as_str() {
            "nearest" => Mode::Nearest,
            "linear" | "bilinear" => Mode::Linear,
            "cubic" => Mode::Cubic,
            other => return Err(Fail::Invalid(format!("the mode is `{other}`, but must be nearest, linear or cubic"))),
        };
        let old = n.version < 11;
        let coordinates = match n.text("coordinate_transformation_mode", if old { "asymmetric" } else { "half_pixel" })?.as_str() {
            "half_pixel" => Coordinates::HalfPixel,
            "half_pixel_symmetric" => Coordinates::HalfPixelSymmetric,
            "pytorch_half_pixel" => Coordinates::PytorchHalfPixel,
            "align_corners" => Coordinates::AlignCorners,
            "asymmetric" => Coordinates::Asymmetric,
            "tf_crop_and_resize" => Coordinates::Crop,
            other => unsupported!("the coordinate_transformation_mode `{other}` is not supported"),
        };
        let nearest = match n.text("nearest_mode", if old { "old" } else { "round_prefer_floor" })?.as_str() {
            "round_prefer_floor" => Nearest::PreferFloor,
            "round_prefer_ceil" => Nearest::PreferCeil,
            "floor" => Nearest::Floor,
            "ceil" => Nearest::Ceil,
            "old" if old => Nearest::Old,
            other => return Err(Fail::Invalid(format!("nearest_mode is `{other}`"))),
        };
        Ok(Rules {
            mode,
            coordinates,
            nearest,
            cubic_a: n.float("cubic_coeff_a", -0.75)?,
            exclude_outside: n.flag("exclude_outside", false)?,
            antialias: n.flag("antialias", false)?,
            extrapolation: n.float("extrapolation_value", 0.0)?,
        })
    }

    /// Whether every element is copied `times` times when the axis becomes as many times longer.
    fn copies(&self, times: i64) -> bool {
        use Coordinates::{Asymmetric, HalfPixel, HalfPixelSymmetric, PytorchHalfPixel};
        let rounds = match self.coordinates {
            HalfPixel | HalfPixelSymmetric | PytorchHalfPixel => [Nearest::PreferFloor, Nearest::PreferCeil],
            Asymmetric => [Nearest::Floor, Nearest::Old],
            _ => return false,
        };
        self.mode == Mode::Nearest && rounds.contains(&self.nearest) && (2..=1 << 16).contains(&times)
    }

    /// The place in the operand of every place of the result, as f32.
    fn places(&self, cx: &mut Importer, a: &Axis) -> Res<Val> {
        let x = cx.iota(Elem::F32, Shape(vec![a.output.clone()]), 0)?;
        let input = size(cx, &a.input)?;
        let last = cx.affine(input, 1.0, -1.0)?;
        let scaled_centers = |cx: &mut Importer| {
            let y = cx.affine(x, 1.0, 0.5)?;
            cx.div(y, a.scale)
        };
        let centers = |cx: &mut Importer| {
            let y = scaled_centers(cx)?;
            cx.affine(y, 1.0, -0.5)
        };
        match self.coordinates {
            Coordinates::HalfPixel => centers(cx),
            Coordinates::HalfPixelSymmetric => {
                let (output, exact) = (size(cx, &a.output)?, cx.mul(a.scale, input)?);
                let ratio = cx.div(output, exact)?;
                let rest = cx.affine(ratio, -1.0, 1.0)?;
                let half = cx.affine(input, 0.5, 0.0)?;
                let (offset, centers) = (cx.mul(half, rest)?, scaled_centers(cx)?);
                let y = cx.add(offset, centers)?;
                cx.affine(y, 1.0, -0.5)
            }
            Coordinates::PytorchHalfPixel => {
                let centers = centers(cx)?;
                unless_single(cx, a, centers, |cx| Ok(cx.scalar(Elem::F32, 0.0)))
            }
            Coordinates::AlignCorners => {
                let (end, scaled) = (a.end(cx)?, cx.mul(x, last)?);
                let y = cx.div(scaled, end)?;
                unless_single(cx, a, y, |cx| Ok(cx.scalar(Elem::F32, 0.0)))
            }
            Coordinates::Asymmetric => cx.div(x, a.scale),
            Coordinates::Crop => {
                let (from, to) = a.roi;
                let (end, start) = (a.end(cx)?, cx.affine(last, from, 0.0)?);
                let scaled = cx.affine(x, to - from, 0.0)?;
                let scaled = cx.mul(scaled, last)?;
                let within = cx.div(scaled, end)?;
                let y = cx.add(start, within)?;
                unless_single(cx, a, y, |cx| cx.affine(last, 0.5 * (from + to), 0.0))
            }
        }
    }

    fn nearest(&self, cx: &mut Importer, places: Val, scale: Val) -> Res<Val> {
        let mut round = |up: bool, shift: f64| {
            let y = cx.affine(places, 1.0, shift)?;
            if up { cx.emit(Ceil {}, &[y]) } else { cx.emit(Floor {}, &[y]) }
        };
        match self.nearest {
            Nearest::PreferFloor => round(true, -0.5),
            // `floor(x + 0.5)` would round the sum.
            Nearest::PreferCeil => {
                let low = round(false, 0.0)?;
                let (rest, half) = (cx.sub(places, low)?, cx.scalar(Elem::F32, 0.5));
                let (high, is_high) = (cx.affine(low, 1.0, 1.0)?, cx.le(half, rest)?);
                cx.select(is_high, high, low)
            }
            Nearest::Floor => round(false, 0.0),
            Nearest::Ceil => round(true, 0.0),
            Nearest::Old => {
                let (up, down) = (round(true, 0.0)?, round(false, 0.0)?);
                let one = cx.scalar(Elem::F32, 1.0);
                let shrinks = cx.lt(scale, one)?;
                cx.select(shrinks, up, down)
            }
        }
    }

    /// Two neighbours, which are one where the place is the last element or lies outside.
    fn linear_taps(&self, cx: &mut Importer, places: Val, last: Val) -> Res<Taps> {
        let places = clamp(cx, places, last)?;
        let low = cx.emit(Floor {}, &[places])?;
        let high = cx.affine(low, 1.0, 1.0)?;
        let high = cx.min(high, last)?;
        let ratio = cx.sub(places, low)?;
        let (is_one, half) = (cx.eq(low, high)?, cx.scalar(Elem::F32, 0.5));
        let ratio = cx.select(is_one, half, ratio)?;
        let rest = cx.affine(ratio, -1.0, 1.0)?;
        Ok(vec![(low, rest), (high, ratio)])
    }

    fn cubic_taps(&self, cx: &mut Importer, places: Val, last: Val) -> Res<Taps> {
        let first = cx.emit(Floor {}, &[places])?;
        let ratio = cx.sub(places, first)?;
        let mut taps = vec![];
        for i in -1..=2 {
            let distance = if i <= 0 { cx.affine(ratio, 1.0, f64::from(-i))? } else { cx.affine(ratio, -1.0, f64::from(i))? };
            taps.push((cx.affine(first, 1.0, i.into())?, cubic(cx, distance, self.cubic_a, (0..=1).contains(&i))?));
        }
        if self.exclude_outside {
            let mut sum = None;
            for (at, weight) in &mut taps {
                *weight = self.inside_only(cx, *at, *weight, last)?;
                sum = Some(match sum {
                    None => *weight,
                    Some(s) => cx.add(s, *weight)?,
                });
            }
            for (_, weight) in &mut taps {
                *weight = cx.div(*weight, sum.expect("four taps"))?;
            }
        }
        taps.into_iter().map(|(at, weight)| Ok((clamp(cx, at, last)?, weight))).collect()
    }

    /// The weight, or 0 for a neighbour outside of the operand.
    fn inside_only(&self, cx: &mut Importer, at: Val, weight: Val, last: Val) -> Res<Val> {
        let zero = cx.like(at, 0.0);
        let (a, b) = (cx.le(zero, at)?, cx.le(at, last)?);
        let inside = cx.emit(And {}, &[a, b])?;
        cx.select(inside, weight, zero)
    }

    /// With antialiasing the kernel is as wide as a pixel of the result: neighbours and weights as matrices
    /// `[places, neighbours]`.
    fn window(&self, cx: &mut Importer, places: Val, last: Val, a: &Axis) -> Res<(Val, Val)> {
        let Some(scale) = cx.const_scalar(a.scale) else {
            unsupported!("antialiasing by a scale that is known at run time only is not supported; fix the sizes with --shape or --dim");
        };
        let shrink = scale.min(1.0);
        let radius = (if self.mode == Mode::Cubic { 2.0 } else { 1.0 }) / shrink;
        // The conversion saturates.
        let taps = (2.0 * radius.ceil()) as i64;
        if taps.saturating_mul(a.output.range(cx.symbols()).min.max(1)) > MAX_TAPS {
            unsupported!("antialiasing of axis {} to {} places by {scale} takes more than {MAX_TAPS} neighbours", a.axis, a.output);
        }
        let start = 1 - taps / 2;
        let places = cx.unsqueeze(places, &[1])?;
        let first = cx.emit(Floor {}, &[places])?;
        let steps = cx.iota(Elem::F32, Shape::fixed(&[1, taps]), 1)?;
        let steps = cx.affine(steps, 1.0, start as f64)?;
        let at = cx.add(first, steps)?;
        let distance = cx.sub(at, places)?;
        let distance = cx.affine(distance, shrink, 0.0)?;
        let distance = cx.emit(Abs {}, &[distance])?;
        let zero = cx.like(distance, 0.0);
        let mut weight = match self.mode {
            Mode::Cubic => {
                let (near, far) = (cubic(cx, distance, self.cubic_a, true)?, cubic(cx, distance, self.cubic_a, false)?);
                let (one, two) = (cx.like(distance, 1.0), cx.like(distance, 2.0));
                let (is_near, is_far) = (cx.le(distance, one)?, cx.lt(distance, two)?);
                let far = cx.select(is_far, far, zero)?;
                cx.select(is_near, near, far)?
            }
            _ => {
                let rest = cx.affine(distance, -1.0, 1.0)?;
                cx.max(rest, zero)?
            }
        };
        if self.exclude_outside {
            weight = self.inside_only(cx, at, weight, last)?;
        }
        let sum = cx.reduce(weight, ReduceKind::Sum, &[1], true)?;
        Ok((clamp(cx, at, last)?, cx.div(weight, sum)?))
    }
}

impl Axis {
    /// The place of the last element when the result is as long as the scale says, which need not be a whole number (as
    /// the reference of ONNX has it; ONNX Runtime and OpenVINO take the size of the result).
    fn end(&self, cx: &mut Importer) -> Res<Val> {
        let len = match self.scaled {
            true => {
                let input = size(cx, &self.input)?;
                cx.mul(self.scale, input)?
            }
            false => size(cx, &self.output)?,
        };
        cx.affine(len, 1.0, -1.0)
    }
}

/// A size as a scalar of f32.
fn size(cx: &mut Importer, d: &Dim) -> Res<Val> {
    let d = cx.dim_tensor(&[], vec![d.clone()])?;
    cx.cast(d, Elem::F32)
}

/// The places, but `single` if the result has one element.
fn unless_single(cx: &mut Importer, a: &Axis, places: Val, single: impl Fn(&mut Importer) -> Res<Val>) -> Res<Val> {
    let range = a.output.range(cx.symbols());
    if range.min > 1 {
        return Ok(places);
    }
    let single = single(cx)?;
    let (output, one) = (size(cx, &a.output)?, cx.scalar(Elem::F32, 1.0));
    let is_single = cx.le(output, one)?;
    cx.select(is_single, single, places)
}

/// A vector along `axis`, or a matrix of places and neighbours, as it broadcasts against `rank` axes.
fn along(cx: &mut Importer, v: Val, axis: usize, rank: usize) -> Res<Val> {
    let mut shape = cx.shape(v).clone();
    shape.0.extend(vec![Dim::from(1); rank - axis - 1]);
    cx.reshape(v, shape)
}

/// What is asked of one axis.
enum Wanted {
    /// A scale, a scalar of f32, with its exact value: numerator and divisor.
    Scale(Val, Option<(Dim, Dim)>),
    Size(Dim),
    /// A size that comes of a scale which several axes share.
    Shared(Dim, f32),
}

impl Wanted {
    /// Whether an axis of a size is known to become shorter.
    fn shrinks(&self, cx: &Importer, size: &Dim) -> bool {
        match self {
            Wanted::Scale(scale, _) => cx.const_scalar(*scale).is_some_and(|s| s < 1.0),
            Wanted::Size(d) | Wanted::Shared(d, _) => (d.clone() - size.clone()).range(cx.symbols()).max < 0,
        }
    }
}

pub(super) fn resize(cx: &mut Importer, n: &Call) -> Res<Vec<Val>> {
    let x = n.input(0)?;
    let rank = cx.rank(x);
    let rules = Rules::read(n)?;
    let axes: Vec<usize> = match n.ints("axes")? {
        Some(l) => l.iter().map(|&a| resolve_axis(a, rank)).collect::<Res<_>>()?,
        None => (0..rank).collect(),
    };
    let filled = |cx: &Importer, i: usize| n.opt(i).filter(|&v| !cx.shape(v).elements().is(0));
    let (scales, sizes) = if n.version < 11 { (filled(cx, 1), None) } else { (filled(cx, 2), filled(cx, 3)) };
    let scales = match (scales, n.attributes.get("scales")) {
        (None, Some(Attribute::Floats(l))) if n.version < 9 => Some(cx.constant(Tensor::of(&[l.len()], l.clone()))),
        (scales, _) => scales,
    };
    let mut wanted: Vec<Wanted> = match (scales, sizes) {
        (Some(s), None) => read_scales(cx, s)?,
        (None, Some(s)) => cx.dims(s, "the sizes")?.into_iter().map(Wanted::Size).collect(),
        (None, None) => return Err(Fail::Invalid("neither scales nor sizes are given".into())),
        (Some(_), Some(_)) => return Err(Fail::Invalid("scales and sizes are given both".into())),
    };
    demand!(wanted.len() == axes.len(), "{} scales or sizes are given for {} axes", wanted.len(), axes.len());
    keep_aspect_ratio(cx, n, x, &axes, &mut wanted)?;
    let roi = match filled(cx, 1) {
        Some(v) if rules.coordinates == Coordinates::Crop => match cx.as_const(v) {
            Some(t) => t.to_f64s(),
            None => unsupported!("the region of interest must be known at compile time"),
        },
        _ => [vec![0.0; axes.len()], vec![1.0; axes.len()]].concat(),
    };
    demand!(roi.len() == 2 * axes.len(), "the region of interest has {} numbers for {} axes", roi.len(), axes.len());
    // Along the last axis neighbours are read one by one, so it comes when the others are at their smallest.
    let mut order: Vec<usize> = (0..axes.len()).collect();
    order.sort_by_key(|&i| match axes[i] + 1 == rank {
        true => 1,
        false if wanted[i].shrinks(cx, &cx.shape(x)[axes[i]]) => 0,
        false => 2,
    });
    let mut y = x;
    for i in order {
        y = resize_axis(cx, &rules, y, axes[i], &wanted[i], (roi[i], roi[i + axes.len()]))?;
    }
    Ok(vec![y])
}

fn read_scales(cx: &mut Importer, scales: Val) -> Res<Vec<Wanted>> {
    demand!(cx.rank(scales) == 1 && cx.elem(scales).is_float(), "the scales must be a vector of floats, but are {}", cx.ty(scales));
    let Some(count) = cx.shape(scales)[0].as_const() else {
        unsupported!("the number of scales must be known at compile time, but they are {}", cx.ty(scales));
    };
    let exact: Vec<Option<(Dim, Dim)>> = match cx.quotients(scales).and_then(Quotients::reduced) {
        Some(q) => q.iter().map(|(n, d)| Some((n.clone(), d.clone()))).collect(),
        None => vec![None; count as usize],
    };
    let scales = cx.cast(scales, Elem::F32)?;
    let mut wanted = vec![];
    for (i, exact) in exact.into_iter().enumerate() {
        let number = exact.as_ref().and_then(|(n, d)| Some(n.as_const()? as f64 / d.as_const()? as f64));
        let scale = match number {
            Some(x) => cx.scalar(Elem::F32, x),
            None => {
                let scale = cx.narrow(scales, 0, Dim::from(i), Dim::from(1))?;
                cx.reshape(scale, Shape::default())?
            }
        };
        wanted.push(Wanted::Scale(scale, exact));
    }
    Ok(wanted)
}

/// With a policy that keeps the ratio of sizes, the given sizes are bounds.
fn keep_aspect_ratio(cx: &Importer, n: &Call, x: Val, axes: &[usize], wanted: &mut [Wanted]) -> Res<()> {
    let policy = n.text("keep_aspect_ratio_policy", "stretch")?;
    if policy == "stretch" || wanted.iter().any(|w| matches!(w, Wanted::Scale(..))) {
        return Ok(());
    }
    let mut sizes = vec![];
    for (&axis, w) in axes.iter().zip(wanted.iter()) {
        match (cx.shape(x)[axis].as_const(), w) {
            (Some(input), Wanted::Size(d)) if input > 0 && d.as_const().is_some() => {
                sizes.push((input as f32, d.as_const().unwrap_or(0) as f32))
            }
            _ => unsupported!(
                "keeping the ratio of sizes needs known sizes, but the operand is {}; fix them with --shape or --dim",
                cx.ty(x)
            ),
        }
    }
    let ratios = sizes.iter().map(|(input, size)| size / input);
    let scale = match policy.as_str() {
        "not_larger" => ratios.fold(f32::INFINITY, f32::min),
        "not_smaller" => ratios.fold(0.0, f32::max),
        other => return Err(Fail::Invalid(format!("keep_aspect_ratio_policy is `{other}`"))),
    };
    for ((input, _), w) in sizes.iter().zip(wanted.iter_mut()) {
        *w = Wanted::Shared(Dim::from((input * scale).round() as i64), scale);
    }
    Ok(())
}

/// `floor(size * scale)` as f32 computes it, for every size in its range up to [`CHECKED_SIZES`]. `None` if no
/// whole numbers say it.
fn scaled_size(size: &Dim, scale: f32, range: Range) -> Option<Dim> {
    let product = |n: i64| (n as f32 * scale).floor() as i64;
    if let Some(n) = size.as_const() {
        return Some(Dim::from(product(n)));
    }
    let (numerator, divisor) = simplest_fraction(scale)?;
    let exact = |n: i64| (i128::from(n) * i128::from(numerator)).div_euclid(i128::from(divisor)) == i128::from(product(n));
    let checked = range.min.max(0)..=range.max.min(CHECKED_SIZES);
    checked.into_iter().all(exact).then(|| (size.clone() * Dim::from(numerator)).floor_div(&Dim::from(divisor)))
}

/// The fraction with the smallest divisor among the continued fraction's that is nearest to a positive float.
fn simplest_fraction(x: f32) -> Option<(i64, i64)> {
    let (mut before, mut now, mut rest) = ((0i64, 1i64), (1i64, 0i64), f64::from(x));
    loop {
        let whole = rest.floor();
        if whole >= (1 << 24) as f64 {
            return None;
        }
        let next = |a: i64, b: i64| (whole as i64).checked_mul(b)?.checked_add(a).filter(|n| *n < 1 << 31);
        (before, now) = (now, (next(before.0, now.0)?, next(before.1, now.1)?));
        if (now.0 as f64 / now.1 as f64) as f32 == x {
            return Some(now);
        }
        rest = 1.0 / (rest - whole);
    }
}

fn resize_axis(cx: &mut Importer, rules: &Rules, x: Val, axis: usize, wanted: &Wanted, roi: (f64, f64)) -> Res<Val> {
    let input = cx.shape(x)[axis].clone();
    let given = match wanted {
        Wanted::Scale(scale, _) => cx.const_scalar(*scale).map(|s| s as f32),
        _ => None,
    };
    if let Some(s) = given {
        demand!(s > 0.0 && s.is_finite(), "the scale of axis {axis} is {s}, but must be a positive number");
    }
    // Nothing to do, or a whole number of copies: both also for sizes that are only known at run time.
    let times = match (wanted, given) {
        (_, Some(s)) if s.fract() == 0.0 => Some(s as i64),
        (Wanted::Size(d), _) => d.div_exact(&input).and_then(|q| q.as_const()),
        _ => None,
    };
    if rules.coordinates != Coordinates::Crop && times == Some(1) {
        return Ok(x);
    }
    if let Some(s) = times.filter(|&s| rules.copies(s)) {
        let after = cx.unsqueeze(x, &[axis + 1])?;
        let mut all = vec![Dim::from(1); cx.rank(after)];
        all[axis + 1] = Dim::from(s);
        let y = movement::repeat(cx, after, &all)?;
        let mut shape = cx.shape(x).clone();
        shape.0[axis] = input * Dim::from(s);
        return cx.reshape(y, shape);
    }
    let output = match (wanted, given) {
        (Wanted::Size(d) | Wanted::Shared(d, _), _) => d.clone(),
        (_, Some(s)) => match scaled_size(&input, s, input.range(cx.symbols())) {
            Some(d) => d,
            None => unsupported!(
                "axis {axis} of {} is resized by {s}, and no whole numbers say what f32 makes of all its sizes; fix the size with --shape or --dim, or bound it",
                cx.ty(x)
            ),
        },
        (Wanted::Scale(scale, Some((numerator, divisor))), None) => {
            // A divisor that is a size excludes the size 0.
            if divisor.range(cx.symbols()).min <= 0 {
                let symbols = cx.symbols_from(1, &[*scale]);
                cx.narrow_ranges(symbols);
                demand!(divisor.range(cx.symbols()).min > 0, "the scale of axis {axis} divides by {divisor}, which may be 0");
            }
            (input.clone() * numerator.clone()).floor_div(divisor).simplify(cx.symbols())
        }
        (Wanted::Scale(_, None), None) => unsupported!(
            "the scale of axis {axis} must be known at compile time or be computed from sizes; fix what it depends on with --shape or --dim"
        ),
    };
    let least = output.range(cx.symbols()).max;
    demand!(least >= 0, "axis {axis} of {} cannot be resized to {output}", cx.ty(x));
    demand!(!input.is(0) || output.is(0), "axis {axis} of {} has no elements and cannot be resized to {output}", cx.ty(x));
    let scale = match wanted {
        Wanted::Scale(scale, _) => *scale,
        Wanted::Shared(_, s) => cx.scalar(Elem::F32, f64::from(*s)),
        Wanted::Size(_) => {
            let (from, to) = (size(cx, &input)?, size(cx, &output)?);
            cx.div(to, from)?
        }
    };
    let a = Axis { axis, input, output, scale, scaled: matches!(wanted, Wanted::Scale(..)), roi };
    interpolate(cx, rules, x, &a)
}

fn interpolate(cx: &mut Importer, rules: &Rules, x: Val, a: &Axis) -> Res<Val> {
    let (rank, elem) = (cx.rank(x), cx.elem(x));
    if rules.mode != Mode::Nearest && !elem.is_float() {
        unsupported!("interpolation of {elem} is not supported");
    }
    let input = size(cx, &a.input)?;
    let last = cx.affine(input, 1.0, -1.0)?;
    let places = rules.places(cx, a)?;
    let gather = |cx: &mut Importer, at: Val| {
        let index = cx.cast(at, Elem::I64)?;
        cx.emit(Gather { axis: a.axis }, &[x, index])
    };
    let mut y = if rules.mode == Mode::Nearest {
        let at = rules.nearest(cx, places, a.scale)?;
        let at = clamp(cx, at, last)?;
        gather(cx, at)?
    } else if rules.antialias {
        let (at, weight) = rules.window(cx, places, last, a)?;
        let part = gather(cx, at)?;
        let weight = cx.cast(weight, elem)?;
        let weight = along(cx, weight, a.axis, rank)?;
        // Neighbours without weight take no part, whatever they are.
        let zero = cx.like(weight, 0.0);
        let (product, is_zero) = (cx.mul(part, weight)?, cx.eq(weight, zero)?);
        let product = cx.select(is_zero, zero, product)?;
        cx.reduce(product, ReduceKind::Sum, &[a.axis + 1], false)?
    } else {
        let taps = if rules.mode == Mode::Linear { rules.linear_taps(cx, places, last)? } else { rules.cubic_taps(cx, places, last)? };
        let mut sum = None;
        for (at, weight) in taps {
            let part = gather(cx, at)?;
            let weight = cx.cast(weight, elem)?;
            let weight = along(cx, weight, a.axis, rank)?;
            let product = cx.mul(part, weight)?;
            sum = Some(match sum {
                None => product,
                Some(s) => cx.add(s, product)?,
            });
        }
        sum.expect("two or four taps")
    };
    if rules.coordinates == Coordinates::Crop {
        let zero = cx.like(places, 0.0);
        let (before, behind) = (cx.lt(places, zero)?, cx.lt(last, places)?);
        let outside = cx.emit(Or {}, &[before, behind])?;
        let outside = along(cx, outside, a.axis, rank)?;
        let value = cx.like(y, rules.extrapolation);
        y = cx.select(outside, value, y)?;
    }
    Ok(y)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scales_make_the_sizes_that_f32_makes() {
        let fixed = |n: i64, s: f32| scaled_size(&Dim::from(n), s, Range { min: n, max: n }).unwrap().as_const();
        assert_eq!(fixed(7, 11.0 / 7.0), Some(11));
        assert_eq!(fixed(7, 31.0 / 7.0), Some(30), "f32 falls short of the whole number");
        let h = Dim::symbol("h");
        let free = |s: f32, max: i64| scaled_size(&h, s, Range { min: 1, max });
        assert_eq!(free(0.5, i64::MAX), Some(h.floor_div(&Dim::from(2))));
        assert_eq!(free(1.0 / 3.0, i64::MAX), Some(h.floor_div(&Dim::from(3))));
        assert_eq!(free(1.1, i64::MAX), Some((h.clone() * Dim::from(11)).floor_div(&Dim::from(10))));
        assert_eq!(free(1.3, i64::MAX), None, "of 90, f32 makes 116");
        assert_eq!(free(1.3, 89), Some((h.clone() * Dim::from(13)).floor_div(&Dim::from(10))));
        assert_eq!(free(1e-30, i64::MAX), None);
    }
}
