//! `scatter_nd`: assignment by index tuples.

use crate::dim::Bindings;
use crate::tensor::Tensor;
use crate::types::Type;
use super::scatter_elements::ScatterReduction;
use super::{EvalError, InferCx, InferError, Operator};

operator! {
    /// `x` with slices replaced: the last axis of `indices` holds tuples that index the leading axes of `x`; `updates` holds the slices, in row-major order.
    ///
    /// C1. Operands are `x`, `indices` (`i32` or `i64`) with a known last size, at most the rank of `x`, and `updates` of the type of `x`.
    /// C2. `updates` has the shape of `indices` without its last axis, then that of the slices.
    /// R1. At run time an index outside of `[-size, size)` is an error.
    pub struct ScatterNd("scatter_nd", 3..=3) {
        /// How an update meets what is there.
        reduction: ScatterReduction,
    }
}

impl Operator for ScatterNd {
    fn infer(&self, _: &mut InferCx, _: &[Type]) -> Result<Vec<Type>, InferError> {
        Err(InferError::new("scatter_nd: inference is to be written"))
    }

    fn eval(&self, _: &Bindings, _: &[Tensor]) -> Result<Vec<Tensor>, EvalError> {
        Err(EvalError::new("scatter_nd: evaluation is to be written"))
    }
}
