//! `expand`: repetition along axes.

use crate::dim::Bindings;
use crate::tensor::Tensor;
use crate::types::Shape;
use crate::types::Type;
use super::{EvalError, InferCx, InferError, Operator};

operator! {
    /// Broadcasts the operand to a shape.
    ///
    /// C1. The operand broadcasts to `shape`, and `shape` is the result: no size 1 meets a larger one of the operand.
    pub struct Expand("expand", 1..=1) {
        /// The shape of the result.
        shape: Shape,
    }
}

impl Operator for Expand {
    fn infer(&self, _: &mut InferCx, _: &[Type]) -> Result<Vec<Type>, InferError> {
        Err(InferError::new("expand: inference is to be written"))
    }

    fn eval(&self, _: &Bindings, _: &[Tensor]) -> Result<Vec<Tensor>, EvalError> {
        Err(EvalError::new("expand: evaluation is to be written"))
    }
}
