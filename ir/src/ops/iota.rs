//! `iota`: positions along an axis.

use crate::dim::Bindings;
use crate::tensor::Tensor;
use crate::types::Elem;
use crate::types::Shape;
use crate::types::Type;
use super::{EvalError, InferCx, InferError, Operator};

operator! {
    /// A tensor of the given shape whose elements are their index along an axis.
    ///
    /// C1. The axis is below the rank.
    pub struct Iota("iota", 0..=0) {
        /// Element type of the result, a number.
        elem: Elem,
        /// Shape of the result.
        shape: Shape,
        /// The axis that is counted.
        axis: usize,
    }
}

impl Operator for Iota {
    fn infer(&self, _: &mut InferCx, _: &[Type]) -> Result<Vec<Type>, InferError> {
        Err(InferError::new("iota: inference is to be written"))
    }

    fn eval(&self, _: &Bindings, _: &[Tensor]) -> Result<Vec<Tensor>, EvalError> {
        Err(EvalError::new("iota: evaluation is to be written"))
    }
}
