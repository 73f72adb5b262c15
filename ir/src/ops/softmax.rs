//! `softmax`: normalised exponentials.

use super::reduce::{ReduceKind, reduce_kept};
use super::support::{cast, check_axis, check_elems, float, lines, wide};
use super::{Div, EvalError, Exp, InferCx, InferError, Log, Operator, Sub};
use crate::dim::Bindings;
use crate::graph::{Graph, Loc, Value};
use crate::tensor::{Scalar, Tensor};
use crate::types::Type;

operator! {
    /// `exp(x - max) / sum(exp(x - max))` along an axis; with `log` its logarithm `x - max - log(sum(exp(x - max)))`.
    ///
    /// C1. The operand is a float.
    /// C2. The axis is below the rank.
    pub struct Softmax("softmax", 1..=1) {
        /// The axis.
        axis: usize,
        /// Whether the logarithm is wanted.
        log: bool,
    }
}

impl Softmax {
    fn decompose(&self, graph: &mut Graph, x: Value, loc: &Loc) -> Result<Value, InferError> {
        let elem = graph.ty(x).elem;
        let x = cast(graph, x, wide(elem), loc)?;
        let max = reduce_kept(graph, ReduceKind::Max, &[self.axis], x, loc)?;
        let shifted = graph.add(Sub {}, &[x, max], loc)?;
        let exp = graph.add(Exp {}, &[shifted], loc)?;
        let sum = reduce_kept(graph, ReduceKind::Sum, &[self.axis], exp, loc)?;
        let y = if self.log {
            let log = graph.add(Log {}, &[sum], loc)?;
            graph.add(Sub {}, &[shifted, log], loc)?
        } else {
            graph.add(Div {}, &[exp, sum], loc)?
        };
        cast(graph, y, elem, loc)
    }
}

impl Operator for Softmax {
    fn infer(&self, _: &mut InferCx, inputs: &[Type]) -> Result<Vec<Type>, InferError> {
        check_elems(self, inputs, float)?;
        check_axis(self, self.axis, &inputs[0])?;
        Ok(inputs.to_vec())
    }

    fn eval(&self, _: &Bindings, inputs: &[Tensor]) -> Result<Vec<Tensor>, EvalError> {
        let x = &inputs[0];
        let mut values = x.to_f64s();
        for line in lines(x.sizes(), self.axis) {
            let mut row: Vec<f64> = line.clone().map(|at| values[at]).collect();
            softmax_row(&mut row, self.log);
            for (at, y) in line.zip(row) {
                values[at] = y;
            }
        }
        Ok(vec![Tensor::build(x.elem(), x.sizes(), |i| Scalar::Float(values[i]))])
    }

    fn lower(&self, graph: &mut Graph, inputs: &[Value], loc: &Loc) -> Option<Result<Vec<Value>, InferError>> {
        Some(self.decompose(graph, inputs[0], loc).map(|v| vec![v]))
    }
}

/// The softmax of one row, or its logarithm, in place.
pub(super) fn softmax_row(row: &mut [f64], log: bool) {
    let max = row.iter().fold(f64::NEG_INFINITY, |m, &x| if m.is_nan() || x.is_nan() { f64::NAN } else { m.max(x) });
    row.iter_mut().for_each(|x| *x -= max);
    let sum: f64 = row.iter().map(|&x| libm::exp(x)).sum();
    row.iter_mut().for_each(|x| *x = if log { *x - libm::log(sum) } else { libm::exp(*x) / sum });
}

#[cfg(test)]
mod tests {
    use super::super::testing::{assert_close, assert_lowers, assert_lowers_at, assert_refused, eval, f32s, sizes, tensor, ty};
    use super::*;
    use crate::types::Elem;
    use proptest::prelude::*;

    #[test]
    fn small_rows() {
        let x = f32s(&[2, 2], &[0.0, 3f32.ln(), 100.0, 100.0]);
        let y = f32s(&[2, 2], &[0.25, 0.75, 0.5, 0.5]);
        assert_close(&eval(Softmax { axis: 1, log: false }, std::slice::from_ref(&x)), &y);
        let log = f32s(&[2, 2], &[0.25f32.ln(), 0.75f32.ln(), 0.5f32.ln(), 0.5f32.ln()]);
        assert_close(&eval(Softmax { axis: 1, log: true }, &[x]), &log);
    }

    #[test]
    fn hidden_elements_get_nothing_and_a_hidden_row_is_nan() {
        let x = f32s(&[2, 2], &[f32::NEG_INFINITY, 1.0, f32::NEG_INFINITY, f32::NEG_INFINITY]);
        let y = eval(Softmax { axis: 1, log: false }, &[x]).to_f64s();
        assert_eq!(y[..2], [0.0, 1.0]);
        assert!(y[2].is_nan() && y[3].is_nan());
    }

    #[test]
    fn constraints() {
        assert_refused(Softmax { axis: 0, log: false }, &[ty(Elem::I32, "2")], "softmax C1");
        assert_refused(Softmax { axis: 1, log: false }, &[ty(Elem::F32, "n")], "softmax C2");
    }

    proptest! {
        #[test]
        fn lowers(sizes in sizes(1..4), axis in 0usize..3, log: bool, seed: u64) {
            for elem in [Elem::F32, Elem::F16, Elem::F64] {
                assert_lowers(Softmax { axis: axis % sizes.len(), log }, &[tensor(elem, &sizes, seed)]);
            }
        }
    }

    #[test]
    fn lowers_with_symbols() {
        let x = tensor(Elem::F32, &[2, 3], 7);
        assert_lowers_at(Softmax { axis: 1, log: false }, &[ty(Elem::F32, "n s")], &[("n", 2), ("s", 3)], &[x]);
    }
}
