//! `layer_norm`: layer normalisation.

use super::reduce::{ReduceKind, reduce_kept};
use super::support::{Broadcast, broadcasts_to, cast, check_elems, constant, float, wide};
use super::{Add, EvalError, InferCx, InferError, Mapped, Mul, Operator, Rsqrt, Sub, Way};
use crate::attr::Float;
use crate::dim::Bindings;
use crate::graph::{Graph, Loc, Value};
use crate::tensor::{Scalar, Tensor};
use crate::types::{Shape, Type};

operator! {
    /// `(x - mean) / sqrt(variance + epsilon) * scale + bias` over the last `axes` axes (Ba et al. 2016).
    ///
    /// C1. Operands are `x`, `scale` and optionally `bias`, floats of one type.
    /// C2. `scale` and `bias` broadcast to the last `axes` axes of `x`.
    /// C3. `axes` is at least 1 and at most the rank of `x`.
    pub struct LayerNorm("layer_norm", 2..=3) {
        /// How many trailing axes are normalised together, at least 1.
        axes: usize,
        /// Added to the variance.
        epsilon: Float,
    }
}

impl LayerNorm {
    fn decompose(&self, graph: &mut Graph, inputs: &[Value], loc: &Loc) -> Result<Value, InferError> {
        let Type { elem, shape, .. } = graph.ty(inputs[0]).clone();
        let operands = inputs.iter().map(|&v| cast(graph, v, wide(elem), loc)).collect::<Result<Vec<_>, _>>()?;
        let axes: Vec<usize> = (shape.rank() - self.axes..shape.rank()).collect();
        let standard = standardize(graph, operands[0], &axes, self.epsilon, loc)?;
        let mut y = graph.add(Mul {}, &[standard, operands[1]], loc)?;
        if let Some(&bias) = operands.get(2) {
            y = graph.add(Add {}, &[y, bias], loc)?;
        }
        cast(graph, y, elem, loc)
    }
}

impl Operator for LayerNorm {
    fn infer(&self, cx: &mut InferCx, inputs: &[Type]) -> Result<Vec<Type>, InferError> {
        let x = &inputs[0];
        check_elems(self, inputs, float)?;
        check_trailing_axes("layer_norm", self.axes, x)?;
        let normalised = Shape(x.shape.0[x.rank() - self.axes..].to_vec());
        broadcasts_to(cx, &inputs[1].shape, &normalised, "layer_norm C2: scale")?;
        if let Some(bias) = inputs.get(2) {
            broadcasts_to(cx, &bias.shape, &normalised, "layer_norm C2: bias")?;
        }
        Ok(vec![x.clone()])
    }

    fn eval(&self, _: &Bindings, inputs: &[Tensor]) -> Result<Vec<Tensor>, EvalError> {
        let x = &inputs[0];
        let (outer, normalised) = x.sizes().split_at(x.rank() - self.axes);
        let mut values = x.to_f64s();
        standardize_rows(&mut values, outer.iter().product(), self.epsilon);
        let (scale, bias) = (inputs[1].to_f64s(), inputs.get(2).map(Tensor::to_f64s));
        let at_scale = Broadcast::new(inputs[1].sizes(), normalised);
        let at_bias = inputs.get(2).map(|b| Broadcast::new(b.sizes(), normalised));
        let y = Tensor::build(x.elem(), x.sizes(), |i| {
            let scaled = values[i] * scale[at_scale.offset(i)];
            Scalar::Float(match (&bias, &at_bias) {
                (Some(bias), Some(at)) => scaled + bias[at.offset(i)],
                _ => scaled,
            })
        });
        Ok(vec![y])
    }

    fn lower(&self, graph: &mut Graph, inputs: &[Value], loc: &Loc) -> Option<Result<Vec<Value>, InferError>> {
        Some(self.decompose(graph, inputs, loc).map(|v| vec![v]))
    }

    fn ways(&self) -> &'static [Way] {
        &[&[(1, Mapped::Scaled), (2, Mapped::Affine)]]
    }
}

/// Constraint C3 of normalisations over trailing axes.
pub(super) fn check_trailing_axes(mnemonic: &str, axes: usize, x: &Type) -> Result<(), InferError> {
    require!((1..=x.rank()).contains(&axes), "{mnemonic} C3: axes is 1 to {}, the rank of {x}, not {axes}", x.rank());
    Ok(())
}

/// Appends `(x - mean) / sqrt(variance + epsilon)` over `axes`.
pub(super) fn standardize(graph: &mut Graph, x: Value, axes: &[usize], epsilon: Float, loc: &Loc) -> Result<Value, InferError> {
    let mean = reduce_kept(graph, ReduceKind::Mean, axes, x, loc)?;
    let centred = graph.add(Sub {}, &[x, mean], loc)?;
    let factor = inverse_deviation(graph, centred, axes, epsilon, loc)?;
    graph.add(Mul {}, &[centred, factor], loc)
}

/// Appends `1 / sqrt(mean(x²) + epsilon)` over `axes`.
pub(super) fn inverse_deviation(graph: &mut Graph, x: Value, axes: &[usize], epsilon: Float, loc: &Loc) -> Result<Value, InferError> {
    let square = graph.add(Mul {}, &[x, x], loc)?;
    let variance = reduce_kept(graph, ReduceKind::Mean, axes, square, loc)?;
    let epsilon = constant(graph, graph.ty(x).elem, epsilon.get());
    let sum = graph.add(Add {}, &[variance, epsilon], loc)?;
    graph.add(Rsqrt {}, &[sum], loc)
}

/// Replaces each of `rows` equally long rows by `(x - mean) / sqrt(variance + epsilon)`.
pub(super) fn standardize_rows(values: &mut [f64], rows: usize, epsilon: Float) {
    let len = values.len().checked_div(rows).unwrap_or(0);
    for row in values.chunks_exact_mut(len.max(1)) {
        let mean = row.iter().sum::<f64>() / len as f64;
        row.iter_mut().for_each(|x| *x -= mean);
        let variance = row.iter().map(|x| x * x).sum::<f64>() / len as f64;
        row.iter_mut().for_each(|x| *x /= (variance + epsilon.get()).sqrt());
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{assert_close, assert_lowers, assert_lowers_at, assert_refused, eval, f32s, sizes, tensor, ty};
    use super::*;
    use crate::types::Elem;
    use proptest::prelude::*;

    fn norm(axes: usize) -> LayerNorm {
        LayerNorm { axes, epsilon: Float::from(0.25) }
    }

    #[test]
    fn a_small_row() {
        // Mean 2, variance 2, deviation with epsilon 1.5.
        let x = f32s(&[1, 2], &[2.0 - 2f32.sqrt(), 2.0 + 2f32.sqrt()]);
        let y = eval(norm(1), &[x, f32s(&[2], &[3.0, 6.0]), f32s(&[1], &[1.0])]);
        assert_close(&y, &f32s(&[1, 2], &[1.0 - 2.0 * 2f32.sqrt(), 1.0 + 4.0 * 2f32.sqrt()]));
    }

    #[test]
    fn constraints() {
        let f = |s| ty(Elem::F32, s);
        assert_refused(norm(1), &[f("n 4"), ty(Elem::F16, "4")], "layer_norm C1");
        assert_refused(norm(1), &[f("n 4"), f("3")], "layer_norm C2: scale");
        assert_refused(norm(1), &[f("n 4"), f("4"), f("n 4")], "layer_norm C2: bias");
        assert_refused(norm(0), &[f("n 4"), f("4")], "layer_norm C3");
        assert_refused(norm(3), &[f("n 4"), f("4")], "layer_norm C3");
    }

    proptest! {
        #[test]
        fn lowers(sizes in sizes(1..4), axes in 0usize..3, with_bias: bool, shared_scale: bool, seed: u64) {
            let axes = axes % sizes.len() + 1;
            let normalised = &sizes[sizes.len() - axes..];
            for elem in [Elem::F32, Elem::F16] {
                let mut operands = vec![tensor(elem, &sizes, seed), tensor(elem, if shared_scale { &[] } else { normalised }, seed ^ 1)];
                if with_bias {
                    operands.push(tensor(elem, normalised, seed ^ 2));
                }
                assert_lowers(norm(axes), &operands);
            }
        }
    }

    #[test]
    fn lowers_with_symbols() {
        let types = [ty(Elem::F32, "n s d"), ty(Elem::F32, "d"), ty(Elem::F32, "d")];
        let operands = [tensor(Elem::F32, &[2, 3, 4], 1), tensor(Elem::F32, &[4], 2), tensor(Elem::F32, &[4], 3)];
        assert_lowers_at(norm(1), &types, &[("n", 2), ("s", 3), ("d", 4)], &operands);
    }
}
