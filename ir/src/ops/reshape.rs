//! `reshape`: another shape for the same elements.

use crate::dim::Bindings;
use crate::tensor::Tensor;
use crate::types::Shape;
use crate::types::Type;
use super::{EvalError, InferCx, InferError, Operator};

operator! {
    /// Gives the elements another shape, their row-major order unchanged.
    ///
    /// C1. The numbers of elements are equal.
    pub struct Reshape("reshape", 1..=1) {
        /// The new shape.
        shape: Shape,
    }
}

impl Operator for Reshape {
    fn infer(&self, _: &mut InferCx, _: &[Type]) -> Result<Vec<Type>, InferError> {
        Err(InferError::new("reshape: inference is to be written"))
    }

    fn eval(&self, _: &Bindings, _: &[Tensor]) -> Result<Vec<Tensor>, EvalError> {
        Err(EvalError::new("reshape: evaluation is to be written"))
    }
}
