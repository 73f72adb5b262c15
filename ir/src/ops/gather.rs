//! `gather`: selection along an axis.

use crate::dim::Bindings;
use crate::tensor::Tensor;
use crate::types::Type;
use super::{EvalError, InferCx, InferError, Operator};

operator! {
    /// `y[a…, i…, b…] = x[a…, indices[i…], b…]`; negative indices count from the end.
    ///
    /// C1. Operands are `x` and `indices` (`i32` or `i64`).
    /// C2. The axis is below the rank of `x`.
    /// R1. At run time an index outside of `[-size, size)` is an error.
    pub struct Gather("gather", 2..=2) {
        /// The axis of `x` that is indexed.
        axis: usize,
    }
}

impl Operator for Gather {
    fn infer(&self, _: &mut InferCx, _: &[Type]) -> Result<Vec<Type>, InferError> {
        Err(InferError::new("gather: inference is to be written"))
    }

    fn eval(&self, _: &Bindings, _: &[Tensor]) -> Result<Vec<Tensor>, EvalError> {
        Err(EvalError::new("gather: evaluation is to be written"))
    }
}
