//! `conv`: convolution.

use super::reduce::ReduceKind;
use super::spatial::{Windows, pad};
use super::support::{check_elems, constant, divides, float, unravel};
use super::{Add, EvalError, InferCx, InferError, Matmul, Mul, Operator, Reduce, Reshape, Transpose, Window};
use crate::dim::{Bindings, Dim};
use crate::graph::{Graph, Loc, Value};
use crate::tensor::{Scalar, Tensor};
use crate::types::{Shape, Type};

operator! {
    /// Convolution over the axes behind batch and channels: `x[n, c, …]` with `w[m, c/groups, …]` and
    /// optionally `bias[m]`. Lowers to `pad`, `window` and `matmul`, or for one channel per group to
    /// `mul` and `reduce`.
    ///
    /// C1. Operands are floats of one type; `x` and `w` have equal ranks of at least 3; `bias` has shape `[m]`.
    /// C2. Channels of `x` are `groups` times those of `w`; `groups` divides the channels of the result.
    /// C3. Lists have one entry per spatial axis; strides and dilations are positive, pads not negative.
    /// C4. The spatial sizes of `w` are positive numbers.
    /// C5. At least one window fits into `x` with its pads, unless that is empty.
    pub struct Conv("conv", 2..=3) {
        /// Step per spatial axis.
        strides: Vec<i64>,
        /// Zeros added before every spatial axis.
        pads_before: Vec<i64>,
        /// Zeros added behind every spatial axis.
        pads_after: Vec<i64>,
        /// Distance of taps per spatial axis.
        dilations: Vec<i64>,
        /// Number of groups that channels are split into.
        groups: i64,
    }
}

impl Conv {
    fn windows<'a>(&'a self, kernel: &'a [i64]) -> Windows<'a> {
        Windows { kernel, strides: &self.strides, dilations: &self.dilations, before: &self.pads_before, after: &self.pads_after }
    }

    fn decompose(&self, graph: &mut Graph, inputs: &[Value], loc: &Loc) -> Result<Value, InferError> {
        let types: Vec<Type> = inputs.iter().map(|&v| graph.ty(v).clone()).collect();
        let result = self.infer(&mut InferCx::new(&graph.symbols), &types)?.remove(0).shape;
        let (x, w) = (&types[0], &types[1]);
        let kernel = kernel(&w.shape)?;
        let zero = constant(graph, x.elem, 0.0);
        let dims = |list: &[i64]| list.iter().map(|&n| Dim::from(n)).collect::<Vec<_>>();
        let padded = pad(graph, inputs[0], &dims(&self.pads_before), &dims(&self.pads_after), zero, loc)?;
        let depthwise = self.groups > 1 && w.shape[1].is(1);
        let bias = inputs.get(2).copied();
        let y = if depthwise {
            self.multiply(graph, [padded, inputs[1]], bias, &kernel, &result, loc)?
        } else {
            self.matmul(graph, [padded, inputs[1]], bias, &kernel, &result, loc)?
        };
        graph.add(Reshape { shape: result }, &[y], loc)
    }

    /// One channel per group: windows `[n, c, 1, positions…, taps…]` times `[c, m/c, 1…, taps…]`,
    /// summed over the taps, plus the bias: `[n, c, m/c, positions…, 1…]`.
    fn multiply(
        &self,
        graph: &mut Graph,
        [x, w]: [Value; 2],
        bias: Option<Value>,
        kernel: &[i64],
        result: &Shape,
        loc: &Loc,
    ) -> Result<Value, InferError> {
        let axes = kernel.len();
        let channels = Dim::from(self.groups);
        let multiplier = result[1].floor_div(&channels);
        let taps: Vec<Dim> = kernel.iter().map(|&k| Dim::from(k)).collect();
        let windows = self.add_windows(graph, x, kernel, loc)?;
        let shape = [&[result[0].clone(), channels.clone(), Dim::from(1)], &result.0[2..], &taps].concat();
        let windows = graph.add(Reshape { shape: Shape(shape) }, &[windows], loc)?;
        let per_channel = [channels, multiplier];
        let shape = [&per_channel, vec![Dim::from(1); axes].as_slice(), &taps].concat();
        let w = graph.add(Reshape { shape: Shape(shape) }, &[w], loc)?;
        let products = graph.add(Mul {}, &[windows, w], loc)?;
        let sums = graph.add(Reduce { kind: ReduceKind::Sum, axes: (3 + axes..3 + 2 * axes).collect(), keep: true }, &[products], loc)?;
        add_bias(graph, sums, bias, &per_channel, 2 * axes, loc)
    }

    /// `w[m, k]` times patches `[n, k, positions]`, where `k` counts channels and taps, plus the bias: `[n, m, positions]`;
    /// with groups `[g, m/g, k]` times `[n, g, k, positions]`.
    fn matmul(
        &self,
        graph: &mut Graph,
        [x, w]: [Value; 2],
        bias: Option<Value>,
        kernel: &[i64],
        result: &Shape,
        loc: &Loc,
    ) -> Result<Value, InferError> {
        let axes = kernel.len();
        let groups = Dim::from(self.groups);
        let mut patches = x;
        // Windows of one tap at every position are the operand itself.
        if kernel.iter().chain(&self.strides).any(|&n| n != 1) {
            let windows = self.add_windows(graph, x, kernel, loc)?;
            let positions = 2..2 + axes;
            let taps = 2 + axes..2 + 2 * axes;
            patches = graph.add(Transpose { perm: [0, 1].into_iter().chain(taps).chain(positions).collect() }, &[windows], loc)?;
        }
        let w_shape = &graph.ty(w).shape;
        let k: Dim = w_shape.0[1..].iter().cloned().product();
        let (m, per_group) = (w_shape[0].clone(), w_shape[0].floor_div(&groups));
        let positions: Dim = result.0[2..].iter().cloned().product();
        let per_channel = if self.groups == 1 { vec![m] } else { vec![groups.clone(), per_group] };
        let w_shape = [per_channel.clone(), vec![k.clone()]].concat();
        let patches_shape =
            if self.groups == 1 { vec![result[0].clone(), k, positions] } else { vec![result[0].clone(), groups, k, positions] };
        let w = graph.add(Reshape { shape: Shape(w_shape) }, &[w], loc)?;
        let patches = graph.add(Reshape { shape: Shape(patches_shape) }, &[patches], loc)?;
        let products = graph.add(Matmul {}, &[w, patches], loc)?;
        add_bias(graph, products, bias, &per_channel, 1, loc)
    }

    fn add_windows(&self, graph: &mut Graph, x: Value, kernel: &[i64], loc: &Loc) -> Result<Value, InferError> {
        let (strides, dilations) = (self.strides.clone(), self.dilations.clone());
        graph.add(Window { kernel: kernel.to_vec(), strides, dilations }, &[x], loc)
    }
}

/// Adds the bias, if there is one, to `y` whose axes are the batch, those of `per_channel`, and `behind` more.
fn add_bias(graph: &mut Graph, y: Value, bias: Option<Value>, per_channel: &[Dim], behind: usize, loc: &Loc) -> Result<Value, InferError> {
    let Some(bias) = bias else { return Ok(y) };
    let shape = [per_channel, &vec![Dim::from(1); behind]].concat();
    let bias = graph.add(Reshape { shape: Shape(shape) }, &[bias], loc)?;
    graph.add(Add {}, &[y, bias], loc)
}

/// The spatial sizes of the weights.
fn kernel(w: &Shape) -> Result<Vec<i64>, InferError> {
    let size = |d: &Dim| d.as_const().filter(|&n| n > 0);
    let sizes: Option<Vec<i64>> = w.0[2..].iter().map(size).collect();
    sizes.ok_or_else(|| InferError::new(format!("conv C4: the spatial sizes of w are positive numbers, not those of {w}")))
}

impl Operator for Conv {
    fn infer(&self, cx: &mut InferCx, inputs: &[Type]) -> Result<Vec<Type>, InferError> {
        let elem = check_elems(self, inputs, float)?;
        let (x, w) = (&inputs[0].shape, &inputs[1].shape);
        require!(
            x.rank() >= 3 && x.rank() == w.rank(),
            "conv C1: x and w have equal ranks of at least 3, not {} and {} as {x} and {w}",
            x.rank(),
            w.rank()
        );
        if let Some(bias) = inputs.get(2) {
            require!(bias.rank() == 1, "conv C1: bias has shape [{}], not {}", w[0], bias.shape);
            cx.equal(&bias.shape[0], &w[0], "conv C1: size of bias and channels of the result")?;
        }
        require!(self.groups > 0, "conv C2: groups is positive, not {}", self.groups);
        let groups = Dim::from(self.groups);
        let channels = w[1].clone() * groups.clone();
        cx.equal(&x[1], &channels, &format!("conv C2: channels of x {x} and {groups} times those of w {w}"))?;
        divides(cx, &groups, &w[0], "conv C2: groups and channels of the result")?;
        let kernel = kernel(w)?;
        let windows = self.windows(&kernel);
        windows.check(kernel.len(), "conv C3")?;
        let mut shape = vec![x[0].clone(), w[0].clone()];
        for (axis, size) in x.0[2..].iter().enumerate() {
            shape.push(windows.positions(cx, axis, size, "conv C5")?);
        }
        Ok(vec![Type::new(elem, Shape(shape))])
    }

    fn eval(&self, _: &Bindings, inputs: &[Tensor]) -> Result<Vec<Tensor>, EvalError> {
        let types: Vec<Type> = inputs.iter().map(Tensor::ty).collect();
        let result = self.infer(&mut InferCx::new(&Default::default()), &types).map_err(|e| EvalError::new(e.to_string()))?.remove(0);
        let sizes = result.shape.as_fixed().expect("sizes of tensors are known");
        let (x, w) = (&inputs[0], &inputs[1]);
        let (x_sizes, w_sizes) = (&x.sizes()[2..], &w.sizes()[2..]);
        let (batch, m, channels, positions) = (sizes[0], sizes[1], w.sizes()[1], &sizes[2..]);
        let kernel: Vec<i64> = w_sizes.iter().map(|&n| n as i64).collect();
        let windows = self.windows(&kernel);
        let (area, taps, count): (usize, usize, usize) = (x_sizes.iter().product(), w_sizes.iter().product(), positions.iter().product());
        let (x, w, bias) = (x.to_f64s(), w.to_f64s(), inputs.get(2).map(Tensor::to_f64s));
        let groups = self.groups as usize;
        let mut y = vec![0.0; batch * m * count];
        for p in 0..count {
            let met = windows.taps(&unravel(p, positions), x_sizes);
            for n in 0..batch {
                for out in 0..m {
                    let group = out / (m / groups);
                    let mut sum = bias.as_ref().map_or(0.0, |b| b[out]);
                    for c in 0..channels {
                        let x = &x[((n * groups + group) * channels + c) * area..];
                        let w = &w[(out * channels + c) * taps..];
                        sum += met.iter().map(|&(at, tap)| x[at] * w[tap]).sum::<f64>();
                    }
                    y[(n * m + out) * count + p] = sum;
                }
            }
        }
        Ok(vec![Tensor::build(result.elem, &sizes, |i| Scalar::Float(y[i]))])
    }

    fn lower(&self, graph: &mut Graph, inputs: &[Value], loc: &Loc) -> Option<Result<Vec<Value>, InferError>> {
        Some(self.decompose(graph, inputs, loc).map(|v| vec![v]))
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{assert_lowers, assert_lowers_at, assert_refused, eval, f32s, tensor, ty};
    use super::*;
    use crate::types::Elem;
    use proptest::prelude::*;

    fn conv(axes: usize, groups: i64) -> Conv {
        let ones = vec![1; axes];
        Conv { strides: ones.clone(), pads_before: vec![0; axes], pads_after: vec![0; axes], dilations: ones, groups }
    }

    #[test]
    fn small_signals() {
        let x = f32s(&[1, 1, 4], &[1.0, 2.0, 3.0, 4.0]);
        let w = f32s(&[1, 1, 2], &[1.0, 10.0]);
        let at = |op: Conv| eval(op, &[x.clone(), w.clone()]).to_f64s();
        assert_eq!(at(conv(1, 1)), [21.0, 32.0, 43.0]);
        assert_eq!(at(Conv { strides: vec![2], ..conv(1, 1) }), [21.0, 43.0]);
        assert_eq!(at(Conv { dilations: vec![3], ..conv(1, 1) }), [41.0]);
        assert_eq!(at(Conv { pads_before: vec![1], pads_after: vec![2], ..conv(1, 1) }), [10.0, 21.0, 32.0, 43.0, 4.0, 0.0]);
        let bias = f32s(&[1], &[0.5]);
        assert_eq!(eval(conv(1, 1), &[x, w, bias]).to_f64s(), [21.5, 32.5, 43.5]);
    }

    #[test]
    fn groups_see_their_channels_only() {
        let x = f32s(&[1, 2, 2], &[1.0, 2.0, 30.0, 40.0]);
        let w = f32s(&[4, 1, 1], &[1.0, 2.0, 3.0, 4.0]);
        assert_eq!(eval(conv(1, 2), &[x, w]).to_f64s(), [1.0, 2.0, 2.0, 4.0, 90.0, 120.0, 120.0, 160.0]);
    }

    #[test]
    fn constraints() {
        let f = |s| ty(Elem::F32, s);
        assert_refused(conv(1, 1), &[ty(Elem::I32, "n 2 8"), ty(Elem::I32, "4 2 3")], "conv C1");
        assert_refused(conv(1, 1), &[f("n 2 8"), f("4 2 3 3")], "conv C1");
        assert_refused(conv(1, 1), &[f("n 2 8"), f("4 2 3"), f("3")], "conv C1");
        assert_refused(conv(1, 1), &[f("n 3 8"), f("4 2 3")], "conv C2");
        assert_refused(conv(1, 3), &[f("n 6 8"), f("4 2 3")], "conv C2");
        assert_refused(conv(1, 0), &[f("n 2 8"), f("4 2 3")], "conv C2");
        assert_refused(conv(2, 1), &[f("n 2 8"), f("4 2 3")], "conv C3");
        assert_refused(Conv { strides: vec![0], ..conv(1, 1) }, &[f("n 2 8"), f("4 2 3")], "conv C3");
        assert_refused(Conv { pads_after: vec![-1], ..conv(1, 1) }, &[f("n 2 8"), f("4 2 3")], "conv C3");
        assert_refused(conv(1, 1), &[f("n 2 8"), f("4 2 k")], "conv C4");
        assert_refused(conv(1, 1), &[f("n 2 2"), f("4 2 3")], "conv C5");
    }

    /// Attributes and operands that they accept.
    fn cases() -> impl Strategy<Value = (Conv, Vec<Tensor>)> {
        let spatial = |axes| {
            let list = |range| prop::collection::vec(range, axes);
            (list(0i64..6), list(1i64..4), list(1i64..4), list(1i64..3), list(0i64..3), list(0i64..3))
        };
        let channels = ([0usize..3, 1..4, 0..3, 0..3], any::<bool>(), any::<u64>());
        let all = ((1usize..3).prop_flat_map(spatial), channels).prop_map(|(spatial, ([batch, groups, channels, per_group], with_bias, seed))| {
            let (size, kernel, strides, dilations, pads_before, pads_after) = spatial;
            let m = groups * per_group;
            let shape = |outer: [usize; 2], inner: &[i64]| outer.into_iter().chain(inner.iter().map(|&n| n as usize)).collect::<Vec<_>>();
            let x = tensor(Elem::F32, &shape([batch, groups * channels], &size), seed);
            let w = tensor(Elem::F32, &shape([m, channels], &kernel), seed ^ 1);
            let bias = with_bias.then(|| tensor(Elem::F32, &[m], seed ^ 2));
            let op = Conv { strides, pads_before, pads_after, dilations, groups: groups as i64 };
            (op, [x, w].into_iter().chain(bias).collect::<Vec<_>>())
        });
        all.prop_filter("no window fits", |(op, operands)| {
            let types: Vec<Type> = operands.iter().map(Tensor::ty).collect();
            op.infer(&mut InferCx::new(&Default::default()), &types).is_ok()
        })
    }

    proptest! {
        #[test]
        fn lowers((op, operands) in cases()) {
            assert_lowers(op, &operands);
        }
    }

    #[test]
    fn lowers_with_symbols() {
        let types = [ty(Elem::F32, "n 4 h w"), ty(Elem::F32, "6 2 3 2"), ty(Elem::F32, "6")];
        let operands = [tensor(Elem::F32, &[2, 4, 5, 7], 1), tensor(Elem::F32, &[6, 2, 3, 2], 2), tensor(Elem::F32, &[6], 3)];
        let op = Conv { strides: vec![2, 1], pads_before: vec![1, 0], pads_after: vec![1, 1], dilations: vec![1, 2], groups: 2 };
        assert_lowers_at(op, &types, &[("n", 2), ("h", 5), ("w", 7)], &operands);
        let types = [ty(Elem::F32, "n c s"), ty(Elem::F32, "m c 1")];
        let operands = [tensor(Elem::F32, &[2, 3, 5], 4), tensor(Elem::F32, &[4, 3, 1], 5)];
        assert_lowers_at(conv(1, 1), &types, &[("n", 2), ("c", 3), ("s", 5), ("m", 4)], &operands);
    }
}
