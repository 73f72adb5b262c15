//! `dims`: dimensions as data.

use crate::dim::Bindings;
use crate::dim::Dim;
use crate::tensor::Tensor;
use crate::types::Type;
use super::{EvalError, InferCx, InferError, Operator};

operator! {
    /// The values of dimension expressions, an `i64` tensor: how sizes that are not folded away reach arithmetic.
    ///
    /// C1. As many values as the shape has elements.
    pub struct Dims("dims", 0..=0) {
        /// The elements in row-major order.
        values: Vec<Dim>,
        /// Shape of the result.
        shape: Vec<usize>,
    }
}

impl Operator for Dims {
    fn infer(&self, _: &mut InferCx, _: &[Type]) -> Result<Vec<Type>, InferError> {
        Err(InferError::new("dims: inference is to be written"))
    }

    fn eval(&self, _: &Bindings, _: &[Tensor]) -> Result<Vec<Tensor>, EvalError> {
        Err(EvalError::new("dims: evaluation is to be written"))
    }
}
