//! Matrix products, convolution, pooling, resizing.

use super::{Call, Fail, Importer, Res, Val, demand, unsupported};
use tfc_ir::dim::Dim;
use tfc_ir::ops::reduce::ReduceKind;
use tfc_ir::ops::{Abs, Conv, Pad, Pool, Pow, Slice, pad::PadMode};
use tfc_ir::types::Shape;

type One = Res<Vec<Val>>;

/// Matrix product as NumPy has it: a vector on the left is a row, on the right a column.
pub(super) fn product(cx: &mut Importer, a: Val, b: Val) -> Res<Val> {
    let (ra, rb) = (cx.rank(a), cx.rank(b));
    demand!(ra >= 1 && rb >= 1, "operands of a matrix product have axes, but they are {} and {}", cx.ty(a), cx.ty(b));
    let left = if ra == 1 { cx.unsqueeze(a, &[0])? } else { a };
    let right = if rb == 1 { cx.unsqueeze(b, &[1])? } else { b };
    let y = cx.matmul(left, right)?;
    let n = cx.rank(y);
    match (ra, rb) {
        (1, 1) => cx.squeeze(y, &[n - 2, n - 1]),
        (1, _) => cx.squeeze(y, &[n - 2]),
        (_, 1) => cx.squeeze(y, &[n - 1]),
        _ => Ok(y),
    }
}

pub(super) fn matmul(cx: &mut Importer, n: &Call) -> One {
    n.at_most(2)?;
    Ok(vec![product(cx, n.input(0)?, n.input(1)?)?])
}

/// `alpha * op(a) * op(b) + beta * c`.
pub(super) fn gemm(cx: &mut Importer, n: &Call) -> One {
    let (mut a, mut b) = (n.input(0)?, n.input(1)?);
    demand!(cx.rank(a) == 2 && cx.rank(b) == 2, "Gemm takes matrices, but the operands are {} and {}", cx.ty(a), cx.ty(b));
    if n.flag("transA", false)? {
        a = cx.swap_last(a)?;
    }
    if n.flag("transB", false)? {
        b = cx.swap_last(b)?;
    }
    let y = cx.matmul(a, b)?;
    let y = cx.affine(y, n.float("alpha", 1.0)?, 0.0)?;
    let beta = n.float("beta", 1.0)?;
    let Some(c) = n.opt(2).filter(|_| beta != 0.0) else { return Ok(vec![y]) };
    let c = cx.affine(c, beta, 0.0)?;
    let out = cx.add(y, c)?;
    demand!(cx.rank(out) == 2, "the third operand {} does not broadcast to {}", cx.ty(c), cx.ty(y));
    Ok(vec![out])
}

/// The geometry of windows: sizes, steps, distances of taps, and pads before and behind.
struct Windows {
    kernel: Vec<i64>,
    strides: Vec<i64>,
    dilations: Vec<i64>,
    before: Vec<i64>,
    after: Vec<i64>,
}

/// Reads the attributes that convolution and pooling share. `ceil` is for automatic pads of pooling.
fn windows(cx: &Importer, n: &Call, x: Val, kernel: Vec<i64>) -> Res<Windows> {
    let axes = kernel.len();
    demand!(cx.rank(x) == axes + 2, "windows of {axes} axes need an operand of {} axes, but it is {}", axes + 2, cx.ty(x));
    let (strides, dilations) = (n.spatial("strides", axes, 1)?, n.spatial("dilations", axes, 1)?);
    for (what, list) in [("kernel size", &kernel), ("stride", &strides), ("dilation", &dilations)] {
        demand!(list.iter().all(|&v| (1..=1 << 30).contains(&v)), "a {what} is not between 1 and 2^30: {list:?}");
    }
    let pads = match n.ints("pads")?.filter(|l| !l.is_empty()) {
        Some(p) => p,
        None => vec![0; 2 * axes],
    };
    demand!(pads.len() == 2 * axes, "{} pads are given for {axes} spatial axes", pads.len());
    let (mut before, mut after) = (pads[..axes].to_vec(), pads[axes..].to_vec());
    let auto = n.text("auto_pad", "NOTSET")?;
    match auto.as_str() {
        "NOTSET" | "" => {}
        "VALID" => {
            before.fill(0);
            after.fill(0);
        }
        "SAME_UPPER" | "SAME_LOWER" => {
            for i in 0..axes {
                let reach = (kernel[i] - 1) * dilations[i] + 1;
                // As many windows as steps fit: ceil(size / stride).
                let total = match (strides[i], cx.shape(x)[i + 2].as_const()) {
                    (1, _) => reach - 1,
                    (s, Some(size)) => (((size + s - 1) / s - 1) * s + reach - size).max(0),
                    (_, None) => {
                        unsupported!("{auto} with steps needs known sizes, but the operand is {}; fix them with --shape", cx.ty(x))
                    }
                };
                let (less, more) = (total / 2, total - total / 2);
                (before[i], after[i]) = if auto == "SAME_UPPER" { (less, more) } else { (more, less) };
            }
        }
        other => return Err(Fail::Invalid(format!("auto_pad is `{other}`"))),
    }
    Ok(Windows { kernel, strides, dilations, before, after })
}

fn fixed_kernel(cx: &Importer, n: &Call, w: Val) -> Res<Vec<i64>> {
    demand!(cx.rank(w) >= 3, "weights of a convolution have 3 axes or more, but they are {}", cx.ty(w));
    let sizes: Option<Vec<i64>> = cx.shape(w).0[2..].iter().map(Dim::as_const).collect();
    let Some(sizes) = sizes else { unsupported!("the sizes of the weights must be known, but they are {}", cx.ty(w)) };
    if let Some(k) = n.ints("kernel_shape")?.filter(|l| !l.is_empty()) {
        demand!(k == sizes, "kernel_shape is {k:?}, but the weights are {}", cx.ty(w));
    }
    Ok(sizes)
}

/// The convolution of `x` by `w` that the node's attributes describe.
pub(super) fn convolution(cx: &Importer, n: &Call, x: Val, w: Val) -> Res<Conv> {
    let kernel = fixed_kernel(cx, n, w)?;
    let g = windows(cx, n, x, kernel)?;
    Ok(Conv { strides: g.strides, pads_before: g.before, pads_after: g.after, dilations: g.dilations, groups: n.int("group", 1)? })
}

pub(super) fn conv(cx: &mut Importer, n: &Call) -> One {
    let (x, w) = (n.input(0)?, n.input(1)?);
    let op = convolution(cx, n, x, w)?;
    let mut operands = vec![x, w];
    operands.extend(n.opt(2));
    Ok(vec![cx.emit(op, &operands)?])
}

/// A transposed convolution is a convolution of the operand, spread out with zeros, by the weights
/// turned around.
pub(super) fn conv_transpose(cx: &mut Importer, n: &Call) -> One {
    let (x, w) = (n.input(0)?, n.input(1)?);
    let kernel = fixed_kernel(cx, n, w)?;
    let axes = kernel.len();
    demand!(cx.rank(x) == axes + 2, "the weights are {}, but the operand is {}", cx.ty(w), cx.ty(x));
    let (strides, dilations) = (n.spatial("strides", axes, 1)?, n.spatial("dilations", axes, 1)?);
    let mut extra = n.spatial("output_padding", axes, 0)?;
    let pads = n.ints("pads")?.filter(|l| !l.is_empty()).unwrap_or_else(|| vec![0; 2 * axes]);
    let small = |l: &[i64]| l.iter().all(|v| (0..1 << 30).contains(v));
    demand!(small(&kernel), "the weights {} have too many taps", cx.ty(w));
    demand!(pads.len() == 2 * axes && small(&pads) && small(&extra), "pads {pads:?} or output_padding {extra:?} are wrong for {axes} axes");
    demand!(
        strides.iter().chain(&dilations).all(|v| (1..1 << 30).contains(v)),
        "strides {strides:?} or dilations {dilations:?} are not positive"
    );
    let (mut begin, mut end) = (pads[..axes].to_vec(), pads[axes..].to_vec());
    let auto = n.text("auto_pad", "NOTSET")?;
    let wanted = n.ints("output_shape")?.map(|l| l[l.len().saturating_sub(axes)..].to_vec());
    for i in 0..axes {
        let reach = (kernel[i] - 1) * dilations[i] + 1 + extra[i];
        let total = match (&wanted, auto.as_str()) {
            (Some(out), _) => match (cx.shape(x)[i + 2].as_const(), out.get(i)) {
                (Some(size), Some(out)) => {
                    demand!(small(&[size, *out]), "output_shape is {out} for the size {size}");
                    (size - 1) * strides[i] + reach - out
                }
                _ => unsupported!("output_shape needs known sizes, but the operand is {}", cx.ty(x)),
            },
            (None, "SAME_UPPER" | "SAME_LOWER") => reach - strides[i],
            (None, "VALID") => 0,
            (None, "NOTSET" | "") => continue,
            (None, other) => return Err(Fail::Invalid(format!("auto_pad is `{other}`"))),
        };
        // A result larger than the taps reach is filled up behind.
        extra[i] += (-total).max(0);
        let total = total.max(0);
        (begin[i], end[i]) = if auto == "SAME_UPPER" { (total / 2, total - total / 2) } else { (total - total / 2, total / 2) };
    }
    let spread = spread(cx, x, &strides)?;
    // The weights are [in, out/groups, …]; a convolution has [out, in/groups, …] with the taps reversed.
    let groups = n.int("group", 1)?;
    demand!(groups >= 1, "group is {groups}");
    let (input, output) = (cx.shape(w)[0].clone(), cx.shape(w)[1].clone());
    let per_group = input.floor_div(&Dim::from(groups));
    let taps = cx.shape(w).0[2..].to_vec();
    let shaped = |a: Vec<Dim>| a.into_iter().chain(taps.iter().cloned()).collect::<Shape>();
    let v = cx.reshape(w, shaped(vec![Dim::from(groups), per_group.clone(), output.clone()]))?;
    let mut perm = vec![0, 2, 1];
    perm.extend(3..axes + 3);
    let v = cx.transpose(v, perm)?;
    let v = cx.reshape(v, shaped(vec![Dim::from(groups) * output, per_group]))?;
    let lens = cx.shape(v).clone();
    let mut starts = vec![Dim::from(0); 2];
    starts.extend(kernel.iter().map(|k| Dim::from(k - 1)));
    let mut steps = vec![1; 2];
    steps.extend(vec![-1; axes]);
    let v = cx.emit(Slice { starts, steps, lens }, &[v])?;
    // Pads of the convolution; where they are negative, elements are taken away.
    let (mut before, mut after) = (vec![0; axes], vec![0; axes]);
    let mut cut = cx.shape(spread).clone();
    let mut from = vec![Dim::from(0); axes + 2];
    for i in 0..axes {
        let reach = (kernel[i] - 1) * dilations[i];
        let (a, b) = (reach - begin[i], reach - end[i] + extra[i]);
        (before[i], after[i]) = (a.max(0), b.max(0));
        from[i + 2] = Dim::from((-a).max(0));
        cut.0[i + 2] = cut[i + 2].clone() - Dim::from((-a).max(0) + (-b).max(0));
    }
    let x =
        if *cx.shape(spread) == cut { spread } else { cx.emit(Slice { starts: from, steps: vec![1; axes + 2], lens: cut }, &[spread])? };
    let op = Conv { strides: vec![1; axes], pads_before: before, pads_after: after, dilations, groups };
    let mut operands = vec![x, v];
    operands.extend(n.opt(2));
    Ok(vec![cx.emit(op, &operands)?])
}

/// Puts `stride - 1` zeros between neighbours along the spatial axes.
fn spread(cx: &mut Importer, x: Val, strides: &[i64]) -> Res<Val> {
    let mut y = x;
    for (i, &s) in strides.iter().enumerate().filter(|(_, s)| **s > 1) {
        let axis = i + 2;
        let rank = cx.rank(y);
        let size = cx.shape(y)[axis].clone();
        let v = cx.unsqueeze(y, &[axis + 1])?;
        let mut after = vec![Dim::from(0); rank + 1];
        after[axis + 1] = Dim::from(s - 1);
        let zero = cx.like(v, 0.0);
        let v = cx.emit(Pad { mode: PadMode::Constant, before: vec![Dim::from(0); rank + 1], after }, &[v, zero])?;
        let mut merged = cx.shape(y).clone();
        merged.0[axis] = size.clone() * Dim::from(s);
        let v = cx.reshape(v, merged)?;
        y = cx.narrow(v, axis, Dim::from(0), (size - Dim::from(1)) * Dim::from(s) + Dim::from(1))?;
    }
    Ok(y)
}

fn kernel_shape(n: &Call) -> Res<Vec<i64>> {
    match n.ints("kernel_shape")? {
        Some(k) if !k.is_empty() => Ok(k),
        _ => Err(Fail::Invalid("the attribute `kernel_shape` is missing".into())),
    }
}

fn pool(cx: &mut Importer, n: &Call, average: bool) -> One {
    let x = n.input(0)?;
    if n.wants(1) {
        unsupported!("the places of the maxima are not supported as a result");
    }
    let g = windows(cx, n, x, kernel_shape(n)?)?;
    let op = Pool {
        average,
        kernel: g.kernel,
        strides: g.strides,
        pads_before: g.before,
        pads_after: g.after,
        dilations: g.dilations,
        count_pads: average && n.flag("count_include_pad", false)?,
        ceil: n.flag("ceil_mode", false)?,
    };
    Ok(vec![cx.emit(op, &[x])?])
}

pub(super) fn average_pool(cx: &mut Importer, n: &Call) -> One {
    pool(cx, n, true)
}

pub(super) fn max_pool(cx: &mut Importer, n: &Call) -> One {
    pool(cx, n, false)
}

/// `sum(|x|^p)^(1/p)`, where `sum` is given.
pub(super) fn lp_sum(cx: &mut Importer, x: Val, p: i64, sum: impl Fn(&mut Importer, Val) -> Res<Val>) -> Res<Val> {
    demand!(p >= 1, "p is {p}");
    let size = cx.emit(Abs {}, &[x])?;
    if p == 1 {
        return sum(cx, size);
    }
    let (power, root) = (cx.like(x, p as f64), cx.like(x, 1.0 / p as f64));
    let y = if p == 2 { cx.mul(x, x)? } else { cx.emit(Pow {}, &[size, power])? };
    let y = sum(cx, y)?;
    if p == 2 { cx.sqrt(y) } else { cx.emit(Pow {}, &[y, root]) }
}

/// The sum over a window is the average, pads counted, times the size of the window.
pub(super) fn lp_pool(cx: &mut Importer, n: &Call) -> One {
    let x = n.input(0)?;
    if n.flag("ceil_mode", false)? {
        unsupported!("ceil_mode of LpPool is not supported");
    }
    let g = windows(cx, n, x, kernel_shape(n)?)?;
    let taps: f64 = g.kernel.iter().map(|&k| k as f64).product();
    let op = Pool {
        average: true,
        kernel: g.kernel,
        strides: g.strides,
        pads_before: g.before,
        pads_after: g.after,
        dilations: g.dilations,
        count_pads: true,
        ceil: false,
    };
    let y = lp_sum(cx, x, n.int("p", 2)?, |cx, v| {
        let mean = cx.emit(op.clone(), &[v])?;
        cx.affine(mean, taps, 0.0)
    })?;
    Ok(vec![y])
}

/// `x / (bias + alpha / size * sum of squares of neighbouring channels)^beta`.
pub(super) fn lrn(cx: &mut Importer, n: &Call) -> One {
    let x = n.input(0)?;
    let size = n.int("size", 0)?;
    demand!((1..1 << 20).contains(&size), "size is {size}");
    demand!(cx.rank(x) >= 3, "LRN takes 3 axes or more, but the operand is {}", cx.ty(x));
    let (alpha, beta, bias) = (n.float("alpha", 1e-4)?, n.float("beta", 0.75)?, n.float("bias", 1.0)?);
    // Channels become the last axis, and windows of `size` channels are summed.
    let rank = cx.rank(x);
    let y = cx.mul(x, x)?;
    let mut perm: Vec<usize> = (0..rank).filter(|&a| a != 1).collect();
    perm.push(1);
    let y = cx.transpose(y, perm.clone())?;
    let (mut before, mut after) = (vec![Dim::from(0); rank], vec![Dim::from(0); rank]);
    before[rank - 1] = Dim::from((size - 1) / 2);
    after[rank - 1] = Dim::from(size - 1 - (size - 1) / 2);
    let zero = cx.like(x, 0.0);
    let y = cx.emit(Pad { mode: PadMode::Constant, before, after }, &[y, zero])?;
    let y = cx.emit(tfc_ir::ops::Window { kernel: vec![size], strides: vec![1], dilations: vec![1] }, &[y])?;
    let y = cx.reduce(y, ReduceKind::Sum, &[rank], false)?;
    let mut back = vec![0; rank];
    perm.iter().enumerate().for_each(|(i, &p)| back[p] = i);
    let y = cx.transpose(y, back)?;
    let y = cx.affine(y, alpha / size as f64, bias)?;
    let power = cx.like(x, beta);
    let y = cx.emit(Pow {}, &[y, power])?;
    Ok(vec![cx.div(x, y)?])
}
