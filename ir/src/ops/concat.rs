//! `concat`: tensors one after the other.

use crate::dim::Bindings;
use crate::tensor::Tensor;
use crate::types::Type;
use super::{EvalError, InferCx, InferError, Operator};

operator! {
    /// Joins tensors along an axis.
    ///
    /// C1. Operands have one type and equal shapes but for `axis`.
    pub struct Concat("concat", 1..=usize::MAX) {
        /// The axis.
        axis: usize,
    }
}

impl Operator for Concat {
    fn infer(&self, _: &mut InferCx, _: &[Type]) -> Result<Vec<Type>, InferError> {
        Err(InferError::new("concat: inference is to be written"))
    }

    fn eval(&self, _: &Bindings, _: &[Tensor]) -> Result<Vec<Tensor>, EvalError> {
        Err(EvalError::new("concat: evaluation is to be written"))
    }
}
