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
