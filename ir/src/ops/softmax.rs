//! `softmax`: normalised exponentials.

use crate::dim::Bindings;
use crate::tensor::Tensor;
use crate::types::Type;
use super::{EvalError, InferCx, InferError, Operator};

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

impl Operator for Softmax {
    fn infer(&self, _: &mut InferCx, _: &[Type]) -> Result<Vec<Type>, InferError> {
        Err(InferError::new("softmax: inference is to be written"))
    }

    fn eval(&self, _: &Bindings, _: &[Tensor]) -> Result<Vec<Tensor>, EvalError> {
        Err(EvalError::new("softmax: evaluation is to be written"))
    }
}
