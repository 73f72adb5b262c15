//! `quantized_matmul`: product with a quantized matrix.

use super::quantize::{check_parameters, parameter_position};
use super::support::{cast, constant};
use super::{Dequantize, EvalError, InferCx, InferError, Matmul, Mul, Operator, Pad, Reduce, Reshape, Sub, Transpose};
use crate::dim::{Bindings, Dim};
use crate::graph::{Graph, Loc, Value};
use crate::ops::pad::PadMode;
use crate::ops::reduce::ReduceKind;
use crate::quant::{self, Granularity, Scheme};
use crate::tensor::Tensor;
use crate::types::{Elem, Shape, Type};

operator! {
    /// `y[…, m, n] = Σ_k x[…, m, k] w[k, n]` in f32, `w` quantized, `x` quantized too or f32. Operands are `x`;
    /// if it is quantized, `x_scale` and, unless symmetric, `x_zero`; then `w`, `w_scale` and, unless
    /// symmetric, `w_zero`.
    ///
    /// Along k the weights are in groups that share a scale: all of k, or blocks, of which the last may be
    /// shorter. With both operands quantized, for every row m and column n,
    ///
    /// ```text
    /// t = 0
    /// for every group g, in order:
    ///     acc = Σ_{k in g} (x[m, k] - x_zero[m]) * (w[k, n] - w_zero[g, n])    exact, an i32
    ///     t   = fma(f32(acc), w_scale[g, n], t)                              one rounding each
    /// y[m, n] = t * x_scale[m]
    /// ```
    ///
    /// where `f32(acc)` rounds to the nearest. Kernels may form a sum in any order, with the zero points
    /// taken out (`Σ x w - x_zero Σ w - w_zero Σ x + K x_zero w_zero`, modulo 2³²): it fits an i32 by C5. With `x` in
    /// f32, `y = Σ x[m, k] * (w_scale[g, n] * (w[k, n] - w_zero[g, n]))`, the weight rounded to f32.
    ///
    /// C1. `x` has rank 2 or more. It is f32 and not quantized, or, by the scheme of `activations`, `i8` with `f32` scales that
    /// are for the whole tensor or for every row: one block along the last axis.
    /// C2. `w` has rank 2 and is `i8`, `u8`, `i4` or `u4` by the scheme of `weights`, whose scales are `f32` and for every index of
    /// axis 1, or for blocks along axis 0.
    /// C3. Scales and zero points have the types and shapes that the schemes demand, as for `quantize`.
    /// C4. The inner sizes are equal, known, and at least 1.
    /// C5. The sum over a group fits an i32, whatever is stored: its length times the largest magnitudes of both
    /// differences, which are 128 (`i8`, symmetric), 8 (`i4`, symmetric), or 255 and 15 (with a zero point, or unsigned), is below
    /// 2³¹. So only 8-bit weights with zero points have a limit that matters: groups of at most 33,025 behind
    /// asymmetric activations, and 65,793 behind symmetric ones.
    pub struct QuantizedMatmul("quantized_matmul", 3..=6) {
        /// How `x` is stored; `none` if it is f32.
        activations: Option<Scheme>,
        /// How `w` is stored.
        weights: Scheme,
    }
}

/// The operands by name.
#[derive(Clone, Copy, Debug)]
pub struct Operands<'a, T> {
    /// Left operand.
    pub x: &'a T,
    /// Its scales, if it is quantized.
    pub x_scale: Option<&'a T>,
    /// Its zero points, if it is quantized and not symmetric.
    pub x_zero: Option<&'a T>,
    /// Right operand.
    pub w: &'a T,
    /// Its scales.
    pub w_scale: &'a T,
    /// Its zero points, unless symmetric.
    pub w_zero: Option<&'a T>,
}

impl QuantizedMatmul {
    /// Sorts operands (or what belongs to them); `None` if there are not as many as the schemes want.
    pub fn operands<'a, T>(&self, inputs: &'a [T]) -> Option<Operands<'a, T>> {
        let mut rest = inputs.iter();
        let x = rest.next()?;
        let (mut x_scale, mut x_zero) = (None, None);
        if let Some(scheme) = &self.activations {
            x_scale = Some(rest.next()?);
            if !scheme.symmetric {
                x_zero = Some(rest.next()?);
            }
        }
        let (w, w_scale) = (rest.next()?, rest.next()?);
        let w_zero = if self.weights.symmetric { None } else { Some(rest.next()?) };
        rest.next().is_none().then_some(Operands { x, x_scale, x_zero, w, w_scale, w_zero })
    }

    /// How many neighbours along k share a scale, of `k` in all.
    pub fn group(&self, k: usize) -> usize {
        match self.weights.granularity {
            Granularity::Blocks { size, .. } => (size as usize).min(k),
            _ => k,
        }
    }

    /// A length of groups whose sums fit an i32 by C5, for operands that are stored so: the longest one that is a power of 2.
    pub fn longest_group(activations: &Scheme, weights: &Scheme) -> u32 {
        let longest = i128::from(i32::MAX) / (reach(activations) * reach(weights));
        1 << longest.ilog2()
    }

    fn check_left(&self, cx: &mut InferCx, x: &Type, parameters: &[Type]) -> Result<(), InferError> {
        require!(x.rank() >= 2, "quantized_matmul C1: x has rank 2 or more, not {} as {x}", x.rank());
        let Some(scheme) = &self.activations else {
            require!(x.elem == Elem::F32 && x.quant.is_none(), "quantized_matmul C1: without a scheme x is f32, not {x}");
            return Ok(());
        };
        let k = x.shape[x.rank() - 1].as_const();
        let whole_rows = match scheme.granularity {
            Granularity::Tensor => true,
            Granularity::Blocks { axis, size } => axis as usize + 1 == x.rank() && k.is_some_and(|k| k <= size.into()),
            Granularity::Axis { .. } => false,
        };
        require!(whole_rows, "quantized_matmul C1: {scheme} has no scale for the whole tensor or for every row of {x}");
        require!(
            scheme.storage == Elem::I8 && scheme.scale == Elem::F32,
            "quantized_matmul C1: activations are i8 with scales in f32, not {scheme}"
        );
        require!(is_stored_as(x, scheme), "quantized_matmul C1: {x} is not quantized as {scheme}");
        check_parameters(cx, x, scheme, parameters, "quantized_matmul x")
    }

    fn check_right(&self, cx: &mut InferCx, w: &Type, parameters: &[Type]) -> Result<(), InferError> {
        let scheme = &self.weights;
        require!(w.rank() == 2, "quantized_matmul C2: w has rank 2, not {} as {w}", w.rank());
        let grouped = matches!(scheme.granularity, Granularity::Axis { axis: 1 } | Granularity::Blocks { axis: 0, .. });
        require!(grouped, "quantized_matmul C2: {scheme} has no scales for axis 1 or for blocks along axis 0 of {w}");
        require!(
            matches!(scheme.storage, Elem::I8 | Elem::U8 | Elem::I4 | Elem::U4) && scheme.scale == Elem::F32,
            "quantized_matmul C2: weights are i8, u8, i4 or u4 with scales in f32, not {scheme}"
        );
        require!(is_stored_as(w, scheme), "quantized_matmul C2: {w} is not quantized as {scheme}");
        check_parameters(cx, w, scheme, parameters, "quantized_matmul w")
    }

    fn decomposition(&self, g: &mut Graph, inputs: &[Value], loc: &Loc) -> Result<Value, InferError> {
        let o = self.operands(inputs).expect("inference counts them");
        let (x, w) = (g.ty(*o.x).shape.clone(), g.ty(*o.w).shape.clone());
        let Some(&x_scale) = o.x_scale else {
            let w = [Some(o.w), Some(o.w_scale), o.w_zero].into_iter().flatten().copied().collect::<Vec<_>>();
            let w = g.add(Dequantize { scheme: self.weights, elem: Elem::F32 }, &w, loc)?;
            return g.add(Matmul {}, &[*o.x, w], loc);
        };
        let k = w[0].as_const().expect("C4");
        let group = self.group(k as usize) as i64;
        let groups = (k as u64).div_ceil(group as u64) as i64;
        let left = difference(g, *o.x, o.x_zero.copied(), &x, loc)?;
        // The scales of columns as [groups, n], and the zero points too.
        let columns = Shape(vec![groups.into(), w[1].clone()]);
        let scale = reshape(g, *o.w_scale, columns.clone(), loc)?;
        let sums = if groups == 1 {
            let zero = o.w_zero.map(|&z| reshape(g, z, columns.clone(), loc)).transpose()?;
            let right = difference(g, *o.w, zero, &w, loc)?;
            g.add(Matmul {}, &[left, right], loc)?
        } else {
            // [k, n] -> [groups, group, n]; what is behind k meets zeros on the left.
            let mut right = g.add(super::Cast { to: Elem::I32 }, &[*o.w], loc)?;
            right = pad(g, right, 0, groups * group - k, loc)?;
            right = reshape(g, right, Shape(vec![groups.into(), group.into(), w[1].clone()]), loc)?;
            if let Some(&zero) = o.w_zero {
                let zero = reshape(g, zero, Shape(vec![groups.into(), 1.into(), w[1].clone()]), loc)?;
                let zero = cast(g, zero, Elem::I32, loc)?;
                right = g.add(Sub {}, &[right, zero], loc)?;
            }
            // […, m, k] -> […, m, groups, group] -> […, groups, m, group].
            let rank = x.rank();
            let left = pad(g, left, rank - 1, groups * group - k, loc)?;
            let mut split = x.0[..rank - 1].to_vec();
            split.extend([groups.into(), group.into()]);
            let left = reshape(g, left, Shape(split), loc)?;
            let mut perm: Vec<usize> = (0..=rank).collect();
            perm.swap(rank - 2, rank - 1);
            let left = g.add(Transpose { perm }, &[left], loc)?;
            g.add(Matmul {}, &[left, right], loc)?
        };
        let sums = cast(g, sums, Elem::F32, loc)?;
        let y = if groups == 1 {
            g.add(Mul {}, &[sums, scale], loc)?
        } else {
            let scale = reshape(g, scale, Shape(vec![groups.into(), 1.into(), w[1].clone()]), loc)?;
            let scaled = g.add(Mul {}, &[sums, scale], loc)?;
            let axis = x.rank() - 2;
            let total = g.add(Reduce { kind: ReduceKind::Sum, axes: vec![axis], keep: true }, &[scaled], loc)?;
            let mut shape = x.clone();
            shape.0[axis + 1] = w[1].clone();
            reshape(g, total, shape, loc)?
        };
        g.add(Mul {}, &[y, x_scale], loc)
    }
}

/// Whether the elements are quantized by the scheme, or plain elements of its storage type.
fn is_stored_as(t: &Type, scheme: &Scheme) -> bool {
    t.elem == scheme.storage && t.quant.is_none_or(|q| q == *scheme)
}

/// The stored integers less the zero points, in i32.
fn difference(g: &mut Graph, q: Value, zero: Option<Value>, shape: &Shape, loc: &Loc) -> Result<Value, InferError> {
    // The cast also leaves the scheme behind.
    let q = g.add(super::Cast { to: Elem::I32 }, &[q], loc)?;
    let Some(zero) = zero else { return Ok(q) };
    debug_assert!(g.ty(zero).rank() <= shape.rank(), "zero points broadcast");
    let zero = cast(g, zero, Elem::I32, loc)?;
    g.add(Sub {}, &[q, zero], loc)
}

fn reshape(g: &mut Graph, v: Value, shape: Shape, loc: &Loc) -> Result<Value, InferError> {
    if g.ty(v).shape == shape { Ok(v) } else { g.add(Reshape { shape }, &[v], loc) }
}

/// `n` zeros behind an axis of an i32 tensor.
fn pad(g: &mut Graph, v: Value, axis: usize, n: i64, loc: &Loc) -> Result<Value, InferError> {
    if n == 0 {
        return Ok(v);
    }
    let before = vec![Dim::from(0); g.ty(v).rank()];
    let mut after = before.clone();
    after[axis] = n.into();
    let zero = constant(g, Elem::I32, 0.0);
    g.add(Pad { mode: PadMode::Constant, before, after }, &[v, zero], loc)
}

/// The largest magnitude of a stored value less a zero point.
fn reach(scheme: &Scheme) -> i128 {
    let (low, high) = scheme.storage.int_range().expect("an integer type");
    if scheme.symmetric { high.max(-low) } else { high - low }
}

impl Operator for QuantizedMatmul {
    fn infer(&self, cx: &mut InferCx, inputs: &[Type]) -> Result<Vec<Type>, InferError> {
        let o = self.operands(inputs).ok_or_else(|| {
            InferError::new(format!("quantized_matmul C3: {} operands do not belong to these schemes", inputs.len()))
        })?;
        let list = |a: Option<&Type>, b: Option<&Type>| a.into_iter().chain(b).cloned().collect::<Vec<_>>();
        self.check_left(cx, o.x, &list(o.x_scale, o.x_zero))?;
        self.check_right(cx, o.w, &list(Some(o.w_scale), o.w_zero))?;
        let (x, w) = (&o.x.shape, &o.w.shape);
        let k = cx.equal(&x[x.rank() - 1], &w[0], &format!("quantized_matmul C4: inner sizes of {x} and {w}"))?;
        let known = w[0].as_const().and_then(|k| usize::try_from(k).ok()).filter(|&k| k > 0);
        let Some(known) = known else {
            return Err(InferError::new(format!("quantized_matmul C4: the inner size {k} is not known, or 0")));
        };
        if let Some(activations) = &self.activations {
            let bound = self.group(known) as i128 * reach(activations) * reach(&self.weights);
            require!(
                bound <= i32::MAX.into(),
                "quantized_matmul C5: a sum over {} products of {activations} and {} may exceed an i32: use smaller groups",
                self.group(known),
                self.weights
            );
        }
        let mut shape = x.clone();
        *shape.0.last_mut().expect("C1") = w[1].clone();
        Ok(vec![Type::new(Elem::F32, shape)])
    }

    fn eval(&self, _: &Bindings, inputs: &[Tensor]) -> Result<Vec<Tensor>, EvalError> {
        let o = self.operands(inputs).expect("inference counts them");
        let (k, n) = (o.w.sizes()[0], o.w.sizes()[1]);
        let m = o.x.len() / k;
        let mut sizes = o.x.sizes().to_vec();
        *sizes.last_mut().expect("C1") = n;
        // What is stored less its zero point.
        let differences = |q: &Tensor, zero: Option<&Tensor>, granularity| -> Vec<i32> {
            let zero = |i| zero.map_or(0, |z| z.get(parameter_position(i, q.sizes(), granularity)).to_i128());
            q.iter().enumerate().map(|(i, q)| (q.to_i128() - zero(i)) as i32).collect()
        };
        let w = differences(o.w, o.w_zero, self.weights.granularity);
        let scales = o.w_scale.values::<f32>();
        let group = self.group(k);
        let mut y = vec![0f32; m * n];
        let Some(activations) = &self.activations else {
            let scale = |i| scales[parameter_position(i, o.w.sizes(), self.weights.granularity)];
            let w: Vec<f64> = w.iter().enumerate().map(|(i, &d)| f64::from(quant::dequantize(d, scale(i), 0))).collect();
            let x = o.x.to_f64s();
            for row in 0..m {
                let mut sums = vec![0f64; n];
                for i in 0..k {
                    let factor = x[row * k + i];
                    sums.iter_mut().zip(&w[i * n..]).for_each(|(sum, w)| *sum += factor * w);
                }
                y[row * n..][..n].iter_mut().zip(sums).for_each(|(y, sum)| *y = sum as f32);
            }
            return Ok(vec![Tensor::of(&sizes, y)]);
        };
        let x = differences(o.x, o.x_zero, activations.granularity);
        let x_scales = o.x_scale.expect("with a scheme").values::<f32>();
        for row in 0..m {
            let t = &mut y[row * n..][..n];
            for (g, first) in (0..k).step_by(group).enumerate() {
                let mut sums = vec![0i32; n];
                for i in first..k.min(first + group) {
                    let factor = x[row * k + i];
                    sums.iter_mut().zip(&w[i * n..]).for_each(|(sum, &w)| *sum += factor * w);
                }
                for ((t, sum), &scale) in t.iter_mut().zip(sums).zip(&scales[g * n..]) {
                    *t = (sum as f32).mul_add(scale, *t);
                }
            }
            let scale = if x_scales.len() == 1 { x_scales[0] } else { x_scales[row] };
            t.iter_mut().for_each(|t| *t *= scale);
        }
        Ok(vec![Tensor::of(&sizes, y)])
    }

    fn lower(&self, graph: &mut Graph, inputs: &[Value], loc: &Loc) -> Option<Result<Vec<Value>, InferError>> {
        Some(self.decomposition(graph, inputs, loc).map(|v| vec![v]))
    }
}

#[cfg(test)]
mod tests {
    use super::super::QuantizeRows;
    use super::super::quantize::parameter_shape;
    use super::super::testing::*;
    use super::*;
    use crate::tensor::Scalar;
    use proptest::prelude::*;

    fn scheme(storage: Elem, granularity: Granularity, symmetric: bool) -> Scheme {
        let (min, max) = storage.int_range().unwrap();
        Scheme { storage, min: min as i16, max: max as i16, granularity, symmetric, scale: Elem::F32 }
    }

    fn channel(storage: Elem) -> Scheme {
        scheme(storage, Granularity::Axis { axis: 1 }, true)
    }

    fn per_row(rank: usize, k: u32, symmetric: bool) -> Scheme {
        QuantizeRows { symmetric }.scheme(rank, k)
    }

    fn parameters(scheme: &Scheme, of: &Tensor, seed: u64) -> Vec<Tensor> {
        let sizes = parameter_shape(&of.ty().shape, scheme.granularity).unwrap().as_fixed().unwrap();
        let n = sizes.iter().product::<usize>();
        let mut list = vec![f32s(&sizes, &(0..n).map(|i| 0.25 + ((i as u64 ^ seed) % 7) as f32 / 16.0).collect::<Vec<_>>())];
        list.extend((!scheme.symmetric).then(|| tensor(scheme.storage, &sizes, !seed)));
        list
    }

    #[test]
    fn a_small_product() {
        let op = QuantizedMatmul { activations: Some(per_row(2, 3, false)), weights: channel(Elem::I4) };
        let x = Tensor::of(&[2, 3], vec![1i8, 2, 3, -128, 127, 0]);
        let w = Tensor::build(Elem::I4, &[3, 2], |i| Scalar::Int([1, -8, 2, 7, 3, 0][i]));
        let inputs = [x, f32s(&[2, 1], &[0.5, 2.0]), Tensor::of(&[2, 1], vec![1i8, -1]), w, f32s(&[2], &[1.0, 10.0])];
        // (0, 1, 2) and (-127, 128, 1) by (1, 2, 3) and (-8, 7, 0).
        assert_eq!(eval(op, &inputs), f32s(&[2, 2], &[4.0, 35.0, 264.0, 20.0 * (127.0 * 8.0 + 128.0 * 7.0)]));
    }

    #[test]
    fn groups_are_added_in_order_with_one_rounding() {
        let blocks = scheme(Elem::I8, Granularity::Blocks { axis: 0, size: 2 }, true);
        let op = QuantizedMatmul { activations: Some(per_row(2, 5, true)), weights: blocks };
        let x = Tensor::of(&[1, 5], vec![1i8, 2, 3, 4, 5]);
        let w = Tensor::of(&[5, 1], vec![1i8, 1, 1, 1, 1]);
        let s = [0.1f32, 0.7, 1e-3];
        let y = eval(op, &[x, f32s(&[1, 1], &[0.3]), w, f32s(&[3, 1], &s)]);
        let t = 5f32.mul_add(s[2], 7f32.mul_add(s[1], 3.0 * s[0]));
        assert_eq!(y, f32s(&[1, 1], &[t * 0.3]));
    }

    #[test]
    fn extreme_values_do_not_wrap() {
        for (storage, symmetric, k) in [(Elem::I8, true, 65536), (Elem::I4, false, 65536), (Elem::U8, false, 33025)] {
            let weights = scheme(storage, Granularity::Axis { axis: 1 }, symmetric);
            let op = QuantizedMatmul { activations: Some(per_row(2, k as u32, false)), weights };
            let (low, high) = storage.int_range().unwrap();
            let mut inputs = vec![
                Tensor::of(&[2, k], [vec![127i8; k], vec![-128i8; k]].concat()),
                f32s(&[2, 1], &[1.0; 2]),
                Tensor::of(&[2, 1], vec![-128i8, 127]),
                Tensor::build(storage, &[k, 1], |_| Scalar::Int(low)),
                f32s(&[1], &[1.0]),
            ];
            let mut difference = low;
            if !symmetric {
                inputs.push(Tensor::build(storage, &[1], |_| Scalar::Int(high)));
                difference -= high;
            }
            let sum = (k as i128 * 255 * difference) as f32;
            assert_eq!(eval(op.clone(), &inputs), f32s(&[2, 1], &[sum, -sum]));
            assert_lowers(op, &inputs);
        }
    }

    #[test]
    fn constraints() {
        let op = |activations, weights| QuantizedMatmul { activations, weights };
        let (f, i8s) = (|s| ty(Elem::F32, s), |s| ty(Elem::I8, s));
        let weights = channel(Elem::I8);
        let refused = |op: QuantizedMatmul, types: &[Type], c: &str| assert_refused(op, types, &format!("quantized_matmul {c}"));
        refused(op(None, weights), &[f("8"), i8s("8 4"), f("4")], "C1");
        refused(op(None, weights), &[i8s("2 8"), i8s("8 4"), f("4")], "C1");
        let x = [i8s("2 8"), f("2 1"), i8s("8 4"), f("4")];
        refused(op(Some(per_row(2, 7, true)), weights), &x, "C1");
        refused(op(Some(per_row(1, 8, true)), weights), &x, "C1");
        refused(op(Some(Scheme { storage: Elem::I4, ..per_row(2, 8, true) }), weights), &x, "C1");
        refused(op(Some(scheme(Elem::I8, Granularity::Axis { axis: 0 }, true)), weights), &x, "C1");
        refused(op(None, weights), &[f("2 8"), i8s("2 8 4"), f("4")], "C2");
        refused(op(None, weights), &[f("2 8"), ty(Elem::U8, "8 4"), f("4")], "C2");
        refused(op(None, scheme(Elem::I8, Granularity::Axis { axis: 0 }, true)), &[f("2 8"), i8s("8 4"), f("8")], "C2");
        refused(op(None, Scheme { scale: Elem::F16, ..weights }), &[f("2 8"), i8s("8 4"), ty(Elem::F16, "4")], "C2");
        refused(op(None, weights), &[f("2 8"), i8s("8 4"), f("4"), i8s("4")], "C3");
        refused(op(None, weights), &[f("2 8"), i8s("8 4"), f("3")], "w C2");
        refused(op(None, weights), &[f("2 9"), i8s("8 4"), f("4")], "C4");
        refused(op(None, weights), &[f("2 n"), i8s("n 4"), f("4")], "C4");
        let long = |k: i64, symmetric| {
            let fixed = |sizes: &[i64]| Type::fixed(Elem::I8, sizes);
            let types = [fixed(&[2, k]), f("2 1"), fixed(&[2, 1]), fixed(&[k, 4]), f("4"), fixed(&[4])];
            let weights = scheme(Elem::I8, Granularity::Axis { axis: 1 }, symmetric);
            let n = if symmetric { 5 } else { 6 };
            QuantizedMatmul { activations: Some(per_row(2, k as u32, false)), weights }.infer(&mut InferCx::new(&Default::default()), &types[..n])
        };
        assert!(long(33025, false).is_ok() && long(65536, true).is_ok());
        assert!(long(33026, false).unwrap_err().to_string().starts_with("quantized_matmul C5"));
        let longest = |symmetric| QuantizedMatmul::longest_group(&per_row(2, 1, symmetric), &scheme(Elem::U8, Granularity::Tensor, symmetric));
        assert_eq!([true, false].map(longest), [1 << 16, 1 << 15]);
    }

    #[test]
    fn inner_sizes_are_checked_at_run_time() {
        let op = QuantizedMatmul { activations: None, weights: channel(Elem::I4) };
        let (y, checks) = infer(op, &[ty(Elem::F32, "b m n"), ty(Elem::I4, "8 3"), ty(Elem::F32, "3")]);
        assert_eq!((y.as_str(), &checks[..]), ("f32[b, m, 3]", &["n = 8".to_string()][..]));
    }

    proptest! {
        #[test]
        fn lowers(
            batch in sizes(0..2), m in 0usize..4, k in 1usize..9, n in 0usize..4, group in 0u32..5,
            x in 0usize..4, w in 0usize..4, symmetric: bool, seed: u64,
        ) {
            let storage = [Elem::I8, Elem::U8, Elem::I4, Elem::U4][w];
            let granularity = if group == 0 { Granularity::Axis { axis: 1 } } else { Granularity::Blocks { axis: 0, size: group } };
            let weights = scheme(storage, granularity, symmetric);
            let sizes = [&batch[..], &[m, k]].concat();
            let activations = match x {
                0 => None,
                1 => Some(scheme(Elem::I8, Granularity::Tensor, symmetric)),
                _ => Some(per_row(sizes.len(), k as u32, x == 2)),
            };
            let elem = activations.map_or(Elem::F32, |s| s.storage);
            let x = tensor(elem, &sizes, seed);
            let w = tensor(storage, &[k, n], !seed);
            let mut inputs = vec![x];
            if let Some(s) = &activations {
                inputs.extend(parameters(s, &inputs[0], seed));
            }
            let of_w = parameters(&weights, &w, seed);
            inputs.push(w);
            inputs.extend(of_w);
            assert_lowers(QuantizedMatmul { activations, weights }, &inputs);
        }
    }

    #[test]
    fn lowers_with_symbols() {
        let weights = scheme(Elem::I4, Granularity::Blocks { axis: 0, size: 2 }, true);
        let op = QuantizedMatmul { activations: Some(per_row(3, 5, false)), weights };
        let types =
            [ty(Elem::I8, "b m 5"), ty(Elem::F32, "b m 1"), ty(Elem::I8, "b m 1"), ty(Elem::I4, "5 3"), ty(Elem::F32, "3 3")];
        let data: Vec<Tensor> = [(Elem::I8, vec![2, 3, 5]), (Elem::F32, vec![2, 3, 1]), (Elem::I8, vec![2, 3, 1]), (Elem::I4, vec![5, 3]), (Elem::F32, vec![3, 3])]
            .iter()
            .enumerate()
            .map(|(i, (e, s))| tensor(*e, s, i as u64))
            .collect();
        assert_lowers_at(op, &types, &[("b", 2), ("m", 3)], &data);
    }
}
