//! `transpose`: permutation of axes.

use crate::dim::Bindings;
use crate::tensor::Tensor;
use crate::types::Type;
use super::{EvalError, InferCx, InferError, Operator};

operator! {
    /// Axis `i` of the result is axis `perm[i]` of the operand.
    ///
    /// C1. `perm` is a permutation of the axes.
    pub struct Transpose("transpose", 1..=1) {
        /// Which axis comes where.
        perm: Vec<usize>,
    }
}

impl Operator for Transpose {
    fn infer(&self, _: &mut InferCx, _: &[Type]) -> Result<Vec<Type>, InferError> {
        Err(InferError::new("transpose: inference is to be written"))
    }

    fn eval(&self, _: &Bindings, _: &[Tensor]) -> Result<Vec<Tensor>, EvalError> {
        Err(EvalError::new("transpose: evaluation is to be written"))
    }
}
