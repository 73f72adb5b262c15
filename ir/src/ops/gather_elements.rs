//! `gather_elements`: selection of single elements.

use crate::dim::Bindings;
use crate::tensor::Tensor;
use crate::types::Type;
use super::{EvalError, InferCx, InferError, Operator};

operator! {
    /// `y[…, i, …] = x[…, indices[…, i, …], …]` along an axis.
    ///
    /// C1. Operands are `x` and `indices` (`i32` or `i64`) of equal rank; every other size of `indices` is at most that of `x`.
    /// C2. The axis is below the rank.
    /// R1. At run time an index outside of `[-size, size)` is an error.
    pub struct GatherElements("gather_elements", 2..=2) {
        /// The axis that is indexed.
        axis: usize,
    }
}

impl Operator for GatherElements {
    fn infer(&self, _: &mut InferCx, _: &[Type]) -> Result<Vec<Type>, InferError> {
        Err(InferError::new("gather_elements: inference is to be written"))
    }

    fn eval(&self, _: &Bindings, _: &[Tensor]) -> Result<Vec<Tensor>, EvalError> {
        Err(EvalError::new("gather_elements: evaluation is to be written"))
    }
}
