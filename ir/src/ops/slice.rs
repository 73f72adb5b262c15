//! `slice`: part of a tensor.

use crate::dim::Bindings;
use crate::dim::Dim;
use crate::tensor::Tensor;
use crate::types::Shape;
use crate::types::Type;
use super::{EvalError, InferCx, InferError, Operator};

operator! {
    /// `len` elements per axis, from `start` in steps of `step`, which may be negative.
    ///
    /// C1. Every list has one entry per axis.
    /// C2. Where sizes are known, all indices are within the operand.
    pub struct Slice("slice", 1..=1) {
        /// First index per axis.
        starts: Vec<Dim>,
        /// Step per axis, not 0.
        steps: Vec<i64>,
        /// Number of elements per axis.
        lens: Shape,
    }
}

impl Operator for Slice {
    fn infer(&self, _: &mut InferCx, _: &[Type]) -> Result<Vec<Type>, InferError> {
        Err(InferError::new("slice: inference is to be written"))
    }

    fn eval(&self, _: &Bindings, _: &[Tensor]) -> Result<Vec<Tensor>, EvalError> {
        Err(EvalError::new("slice: evaluation is to be written"))
    }
}
