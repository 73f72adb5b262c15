//! `cum_sum`: running sum.

use crate::dim::Bindings;
use crate::tensor::Tensor;
use crate::types::Type;
use super::{EvalError, InferCx, InferError, Operator};

operator! {
    /// Sums along an axis up to every position.
    ///
    /// C1. The operand is a number.
    /// C2. The axis is below the rank.
    pub struct CumSum("cum_sum", 1..=1) {
        /// The axis.
        axis: usize,
        /// Whether an element is left out of its own sum.
        exclusive: bool,
        /// Whether to sum from the end.
        reverse: bool,
    }
}

impl Operator for CumSum {
    fn infer(&self, _: &mut InferCx, _: &[Type]) -> Result<Vec<Type>, InferError> {
        Err(InferError::new("cum_sum: inference is to be written"))
    }

    fn eval(&self, _: &Bindings, _: &[Tensor]) -> Result<Vec<Tensor>, EvalError> {
        Err(EvalError::new("cum_sum: evaluation is to be written"))
    }
}
