//! `Resize` and `Upsample`: every axis is interpolated on its own, nearest neighbours by `gather`, all
//! else as a product with the matrix of weights.

use super::call::resolve_axis;
use super::{Call, Fail, Importer, Res, Val, demand, movement, unsupported};
use tfc_ir::dim::Dim;
use tfc_ir::ops::Gather;
use tfc_ir::tensor::{Scalar, Tensor};

/// How far a weight matrix may grow, in elements.
const MAX_WEIGHTS: i64 = 1 << 26;

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

/// One axis: sizes and scale are known.
struct Axis {
    input: i64,
    output: i64,
    scale: f64,
    /// Start and end of the cut-out, as parts of the axis.
    roi: (f64, f64),
}

struct Rules {
    mode: Mode,
    coordinates: Coordinates,
    nearest: String,
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
        Ok(Rules {
            mode,
            coordinates,
            nearest: n.text("nearest_mode", if old { "floor" } else { "round_prefer_floor" })?,
            cubic_a: n.float("cubic_coeff_a", -0.75)?,
            exclude_outside: n.flag("exclude_outside", false)?,
            antialias: n.flag("antialias", false)?,
            extrapolation: n.float("extrapolation_value", 0.0)?,
        })
    }

    fn place(&self, x: i64, a: &Axis) -> f64 {
        let (x, input) = (x as f64, a.input as f64);
        let output = a.scale * input;
        match self.coordinates {
            Coordinates::HalfPixel => (x + 0.5) / a.scale - 0.5,
            Coordinates::HalfPixelSymmetric => {
                let adjustment = a.output as f64 / output;
                input / 2.0 * (1.0 - adjustment) + (x + 0.5) / a.scale - 0.5
            }
            Coordinates::PytorchHalfPixel if a.output == 1 => 0.0,
            Coordinates::PytorchHalfPixel => (x + 0.5) / a.scale - 0.5,
            Coordinates::AlignCorners if a.output == 1 => 0.0,
            Coordinates::AlignCorners => x * (input - 1.0) / (output - 1.0),
            Coordinates::Asymmetric => x / a.scale,
            Coordinates::Crop => {
                let (from, to) = a.roi;
                let within =
                    if a.output == 1 { (to - from) * (input - 1.0) / 2.0 } else { x * (to - from) * (input - 1.0) / (output - 1.0) };
                within + from * (input - 1.0)
            }
        }
    }

    fn nearest(&self, place: f64) -> Res<i64> {
        Ok(match self.nearest.as_str() {
            "round_prefer_floor" => (place - 0.5).ceil(),
            "round_prefer_ceil" => (place + 0.5).floor(),
            "floor" => place.floor(),
            "ceil" => place.ceil(),
            other => return Err(Fail::Invalid(format!("nearest_mode is `{other}`"))),
        } as i64)
    }

    fn cubic(&self, x: f64) -> f64 {
        let (a, x) = (self.cubic_a, x.abs());
        if x <= 1.0 {
            ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0
        } else if x < 2.0 {
            ((a * x - 5.0 * a) * x + 8.0 * a) * x - 4.0 * a
        } else {
            0.0
        }
    }

    /// The taps of one place: index in the operand (perhaps outside of it) and weight.
    fn taps(&self, place: f64, scale: f64) -> Vec<(i64, f64)> {
        let first = place.floor();
        let ratio = place - first;
        // With antialiasing the kernel is as wide as a pixel of the result.
        let shrink = if self.antialias { scale.min(1.0) } else { 1.0 };
        let (radius, kernel): (f64, &dyn Fn(f64) -> f64) = match self.mode {
            Mode::Cubic => (2.0, &|x| self.cubic(x)),
            _ => (1.0, &|x: f64| (1.0 - x.abs()).max(0.0)),
        };
        let start = (-radius / shrink).floor() as i64 + 1;
        let mut taps: Vec<(i64, f64)> = (start..=1 - start).map(|i| (first as i64 + i, kernel((i as f64 - ratio) * shrink))).collect();
        if self.antialias {
            let sum: f64 = taps.iter().map(|t| t.1).sum();
            taps.iter_mut().for_each(|t| t.1 /= sum);
        }
        taps
    }

    /// The weights `[input, output]` of an axis, and the places of the result that lie outside of the
    /// operand and get the extrapolation value.
    fn weights(&self, a: &Axis) -> Res<(Vec<f64>, Vec<bool>)> {
        let mut w = vec![0.0; (a.input * a.output) as usize];
        let mut outside = vec![false; a.output as usize];
        for x in 0..a.output {
            let place = self.place(x, a);
            if self.coordinates == Coordinates::Crop && (place < 0.0 || place > (a.input - 1) as f64) {
                outside[x as usize] = true;
                continue;
            }
            let mut taps = match self.mode {
                Mode::Nearest => vec![(self.nearest(place)?, 1.0)],
                _ => self.taps(place, a.scale),
            };
            if self.exclude_outside {
                taps.retain(|(i, _)| (0..a.input).contains(i));
                let sum: f64 = taps.iter().map(|t| t.1).sum();
                taps.iter_mut().for_each(|t| t.1 /= sum);
            }
            for (i, weight) in taps {
                w[(i.clamp(0, a.input - 1) * a.output + x) as usize] += weight;
            }
        }
        Ok((w, outside))
    }
}

/// What is asked of one axis.
enum Wanted {
    Scale(f64),
    Size(Dim),
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
    let numbers = |cx: &Importer, v: Val, what: &str| match cx.as_const(v) {
        Some(t) => Ok(t.to_f64s()),
        None => Err(Fail::Unsupported(format!("{what} must be known at compile time"))),
    };
    let mut wanted: Vec<Wanted> = match (scales, sizes) {
        (Some(s), None) => numbers(cx, s, "the scales")?.into_iter().map(Wanted::Scale).collect(),
        (None, Some(s)) => cx.dims(s, "the sizes")?.into_iter().map(Wanted::Size).collect(),
        (None, None) => match (n.attributes.get("scales"), n.version < 9) {
            (Some(crate::onnx::model::Attribute::Floats(l)), true) => l.iter().map(|&s| Wanted::Scale(s.into())).collect(),
            _ => return Err(Fail::Invalid("neither scales nor sizes are given".into())),
        },
        (Some(_), Some(_)) => return Err(Fail::Invalid("scales and sizes are given both".into())),
    };
    demand!(wanted.len() == axes.len(), "{} scales or sizes are given for {} axes", wanted.len(), axes.len());
    keep_aspect_ratio(cx, n, x, &axes, &mut wanted)?;
    let roi = match filled(cx, 1) {
        Some(v) if rules.coordinates == Coordinates::Crop => numbers(cx, v, "the region of interest")?,
        _ => [vec![0.0; axes.len()], vec![1.0; axes.len()]].concat(),
    };
    demand!(roi.len() == 2 * axes.len(), "the region of interest has {} numbers for {} axes", roi.len(), axes.len());
    let mut y = x;
    for (i, &axis) in axes.iter().enumerate() {
        y = resize_axis(cx, &rules, y, axis, &wanted[i], (roi[i], roi[i + axes.len()]))?;
    }
    Ok(vec![y])
}

/// With a policy that keeps the ratio of sizes, the given sizes are bounds.
fn keep_aspect_ratio(cx: &Importer, n: &Call, x: Val, axes: &[usize], wanted: &mut [Wanted]) -> Res<()> {
    let policy = n.text("keep_aspect_ratio_policy", "stretch")?;
    if policy == "stretch" || wanted.iter().any(|w| matches!(w, Wanted::Scale(_))) {
        return Ok(());
    }
    let mut ratios = vec![];
    for (&axis, w) in axes.iter().zip(wanted.iter()) {
        match (cx.shape(x)[axis].as_const(), w) {
            (Some(input), Wanted::Size(d)) if input > 0 && d.as_const().is_some() => {
                ratios.push(d.as_const().unwrap_or(0) as f64 / input as f64)
            }
            _ => unsupported!("keeping the ratio of sizes needs known sizes, but the operand is {}", cx.ty(x)),
        }
    }
    let scale = match policy.as_str() {
        "not_larger" => ratios.into_iter().fold(f64::INFINITY, f64::min),
        "not_smaller" => ratios.into_iter().fold(0.0, f64::max),
        other => return Err(Fail::Invalid(format!("keep_aspect_ratio_policy is `{other}`"))),
    };
    for (&axis, w) in axes.iter().zip(wanted.iter_mut()) {
        let input = cx.shape(x)[axis].as_const().unwrap_or(0) as f64;
        *w = Wanted::Size(Dim::from((input * scale + 0.5).floor() as i64));
    }
    Ok(())
}

fn resize_axis(cx: &mut Importer, rules: &Rules, x: Val, axis: usize, wanted: &Wanted, roi: (f64, f64)) -> Res<Val> {
    let size = cx.shape(x)[axis].clone();
    let crop = rules.coordinates == Coordinates::Crop;
    // Nothing to do, or a whole number of copies: both also for sizes that are only known at run time.
    let times = match wanted {
        Wanted::Scale(s) if s.fract() == 0.0 => Some(*s as i64),
        Wanted::Size(d) => d.div_exact(&size).and_then(|q| q.as_const()),
        Wanted::Scale(_) => None,
    };
    if !crop && times == Some(1) {
        return Ok(x);
    }
    let input = size.as_const();
    if let Some(s) = times
        && (2..=1 << 16).contains(&s)
        && rules.mode == Mode::Nearest
        && matches!(rules.coordinates, Coordinates::Asymmetric | Coordinates::HalfPixel | Coordinates::PytorchHalfPixel)
        && input != Some(1)
    {
        // The place of `i + s` is one behind that of `i`, so the first `s` decide.
        let sample = Axis { input: 4, output: 4 * s, scale: s as f64, roi };
        let copies = (0..s).map(|i| rules.nearest(rules.place(i, &sample))).collect::<Res<Vec<i64>>>()?;
        if copies.iter().all(|&i| i == 0) {
            let after = cx.unsqueeze(x, &[axis + 1])?;
            let mut all = vec![Dim::from(1); cx.rank(after)];
            all[axis + 1] = Dim::from(s);
            let y = movement::repeat(cx, after, &all)?;
            let mut shape = cx.shape(x).clone();
            shape.0[axis] = size * Dim::from(s);
            return cx.reshape(y, shape);
        }
    }
    let Some(input) = input else {
        unsupported!("axis {axis} of {} has no known size; fix it with --shape or --dim", cx.ty(x));
    };
    let (output, scale) = match wanted {
        Wanted::Scale(s) => {
            demand!(*s > 0.0 && s.is_finite(), "a scale is {s}");
            ((input as f64 * s).floor() as i64, *s)
        }
        Wanted::Size(d) => match d.as_const() {
            Some(o) => (o, o as f64 / input as f64),
            None => unsupported!("the size {d} of axis {axis} must be known at compile time"),
        },
    };
    demand!(input >= 1 && output >= 0, "axis {axis} of {} cannot be resized to {output}", cx.ty(x));
    demand!(input.saturating_mul(output) <= MAX_WEIGHTS, "resizing {input} to {output} elements is too large");
    let a = Axis { input, output, scale, roi };
    if rules.mode == Mode::Nearest && !crop {
        let places = (0..output).map(|i| Ok(rules.nearest(rules.place(i, &a))?.clamp(0, input - 1))).collect::<Res<Vec<i64>>>()?;
        let indices = cx.constant(Tensor::of(&[places.len()], places));
        return cx.emit(Gather { axis }, &[x, indices]);
    }
    let elem = cx.elem(x);
    if !elem.is_float() {
        unsupported!("interpolation of {elem} is not supported");
    }
    let (weights, outside) = rules.weights(&a)?;
    let weights = Tensor::build(elem, &[input as usize, output as usize], |i| Scalar::Float(weights[i]));
    let weights = cx.constant(weights);
    // The axis comes last for the product.
    let rank = cx.rank(x);
    let mut perm: Vec<usize> = (0..rank).filter(|&p| p != axis).collect();
    perm.push(axis);
    let mut back: Vec<usize> = (0..rank - 1).collect();
    back.insert(axis, rank - 1);
    let y = cx.transpose(x, perm)?;
    let mut y = super::nn::product(cx, y, weights)?;
    if outside.contains(&true) {
        let mask = Tensor::build(tfc_ir::types::Elem::Bool, &[outside.len()], |i| Scalar::Int(outside[i].into()));
        let mask = cx.constant(mask);
        let value = cx.like(y, rules.extrapolation);
        y = cx.select(mask, value, y)?;
    }
    cx.transpose(y, back)
}
