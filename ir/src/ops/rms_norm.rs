//! `rms_norm`: root-mean-square normalisation.

use super::layer_norm::{check_trailing_axes, inverse_deviation};
use super::support::{Broadcast, broadcasts_to, cast, check_elems, float, wide};
use super::{EvalError, InferCx, InferError, Mapped, Mul, Operator, Way};
use crate::attr::Float;
use crate::dim::Bindings;
use crate::graph::{Graph, Loc, Value};
use crate::tensor::{Scalar, Tensor};
use crate::types::{Shape, Type};

operator! {
    /// `x / sqrt(mean(x²) + epsilon) * scale` over the last `axes` axes (Zhang and Sennrich 2019).
    ///
    /// C1. Operands are `x` and `scale`, floats of one type.
    /// C2. `scale` broadcasts to the last `axes` axes of `x`.
    /// C3. `axes` is at least 1 and at most the rank of `x`.
    pub struct RmsNorm("rms_norm", 2..=2) {
        /// How many trailing axes are normalised together, at least 1.
        axes: usize,
        /// Added to the mean square.
        epsilon: Float,
    }
}

impl RmsNorm {
    fn decompose(&self, graph: &mut Graph, inputs: &[Value], loc: &Loc) -> Result<Value, InferError> {
        let Type { elem, shape, .. } = graph.ty(inputs[0]).clone();
        let axes: Vec<usize> = (shape.rank() - self.axes..shape.rank()).collect();
        let x = cast(graph, inputs[0], wide(elem), loc)?;
        let scale = cast(graph, inputs[1], wide(elem), loc)?;
        let factor = inverse_deviation(graph, x, &axes, self.epsilon, loc)?;
        let normalised = graph.add(Mul {}, &[x, factor], loc)?;
        let y = graph.add(Mul {}, &[normalised, scale], loc)?;
        cast(graph, y, elem, loc)
    }
}

impl Operator for RmsNorm {
    fn infer(&self, cx: &mut InferCx, inputs: &[Type]) -> Result<Vec<Type>, InferError> {
        let x = &inputs[0];
        check_elems(self, inputs, float)?;
        check_trailing_axes("rms_norm", self.axes, x)?;
        let normalised = Shape(x.shape.0[x.rank() - self.axes..].to_vec());
        broadcasts_to(cx, &inputs[1].shape, &normalised, "rms_norm C2: scale")?;
        Ok(vec![x.clone()])
    }

    fn eval(&self, _: &Bindings, inputs: &[Tensor]) -> Result<Vec<Tensor>, EvalError> {
        let x = &inputs[0];
        let normalised = &x.sizes()[x.rank() - self.axes..];
        let len: usize = normalised.iter().product();
        let mut values = x.to_f64s();
        for row in values.chunks_exact_mut(len.max(1)) {
            let mean = row.iter().map(|x| x * x).sum::<f64>() / len as f64;
            row.iter_mut().for_each(|x| *x /= (mean + self.epsilon.get()).sqrt());
        }
        let (scale, at_scale) = (inputs[1].to_f64s(), Broadcast::new(inputs[1].sizes(), normalised));
        Ok(vec![Tensor::build(x.elem(), x.sizes(), |i| Scalar::Float(values[i] * scale[at_scale.offset(i)]))])
    }

    fn lower(&self, graph: &mut Graph, inputs: &[Value], loc: &Loc) -> Option<Result<Vec<Value>, InferError>> {
        Some(self.decompose(graph, inputs, loc).map(|v| vec![v]))
    }

    fn ways(&self) -> &'static [Way] {
        &[&[(1, Mapped::Scaled)]]
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{assert_close, assert_lowers, assert_refused, eval, f32s, sizes, tensor, ty};
    use super::*;
    use crate::types::Elem;
    use proptest::prelude::*;

    fn norm(axes: usize) -> RmsNorm {
        RmsNorm { axes, epsilon: Float::from(0.25) }
    }

    #[test]
    fn a_small_row() {
        // Mean square 2, deviation with epsilon 1.5.
        let x = f32s(&[1, 2], &[-(2f32.sqrt()), 2f32.sqrt()]);
        let y = eval(norm(1), &[x, f32s(&[2], &[3.0, 6.0])]);
        assert_close(&y, &f32s(&[1, 2], &[-2.0 * 2f32.sqrt(), 4.0 * 2f32.sqrt()]));
    }

    #[test]
    fn constraints() {
        let f = |s| ty(Elem::F32, s);
        assert_refused(norm(1), &[f("n 4"), ty(Elem::F16, "4")], "rms_norm C1");
        assert_refused(norm(1), &[f("n 4"), f("3")], "rms_norm C2");
        assert_refused(norm(3), &[f("n 4"), f("4")], "rms_norm C3");
    }

    proptest! {
        #[test]
        fn lowers(sizes in sizes(1..4), axes in 0usize..3, seed: u64) {
            let axes = axes % sizes.len() + 1;
            for elem in [Elem::F32, Elem::Bf16] {
                let scale = tensor(elem, &sizes[sizes.len() - axes..], !seed);
                assert_lowers(norm(axes), &[tensor(elem, &sizes, seed), scale]);
            }
        }
    }
}
