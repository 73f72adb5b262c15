//! `rotary`: rotary position embedding.

use crate::dim::Bindings;
use crate::tensor::Tensor;
use crate::types::Type;
use super::{EvalError, InferCx, InferError, Operator};

operator! {
    /// Rotates pairs of channels by position (Su et al. 2021): for halves `a, b` of the last axis the result is `a cos - b sin, b cos + a sin`; pairs are `(i, i + d/2)`, or with `interleaved` `(2i, 2i + 1)`. Lowers to slices, products and `concat`.
    ///
    /// C1. Operands are `x[…, d]` with even `d`, `cos` and `sin`, floats of one type.
    /// C2. `cos` and `sin` broadcast to `x` with `d/2` as the last size.
    pub struct Rotary("rotary", 3..=3) {
        /// Whether pairs are neighbours.
        interleaved: bool,
    }
}

impl Operator for Rotary {
    fn infer(&self, _: &mut InferCx, _: &[Type]) -> Result<Vec<Type>, InferError> {
        Err(InferError::new("rotary: inference is to be written"))
    }

    fn eval(&self, _: &Bindings, _: &[Tensor]) -> Result<Vec<Tensor>, EvalError> {
        Err(EvalError::new("rotary: evaluation is to be written"))
    }
}
