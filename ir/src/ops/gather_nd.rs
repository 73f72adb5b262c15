//! `gather_nd`: selection by index tuples.

use crate::dim::Bindings;
use crate::tensor::Tensor;
use crate::types::Type;
use super::{EvalError, InferCx, InferError, Operator};

operator! {
    /// The last axis of `indices` holds tuples that index the axes of `x` behind the first `batch`.
    ///
    /// C1. Operands are `x` and `indices` (`i32` or `i64`) with a known last size, at most the rank of `x` minus `batch`.
    /// C2. The first `batch` sizes are equal.
    /// R1. At run time an index outside of `[-size, size)` is an error.
    pub struct GatherNd("gather_nd", 2..=2) {
        /// How many leading axes belong together.
        batch: usize,
    }
}

impl Operator for GatherNd {
    fn infer(&self, _: &mut InferCx, _: &[Type]) -> Result<Vec<Type>, InferError> {
        Err(InferError::new("gather_nd: inference is to be written"))
    }

    fn eval(&self, _: &Bindings, _: &[Tensor]) -> Result<Vec<Tensor>, EvalError> {
        Err(EvalError::new("gather_nd: evaluation is to be written"))
    }
}
