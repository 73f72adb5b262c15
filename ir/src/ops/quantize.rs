//! `quantize`: quantization to integers.

use crate::dim::Bindings;
use crate::quant::Scheme;
use crate::tensor::Tensor;
use crate::types::Type;
use super::{EvalError, InferCx, InferError, Operator};

operator! {
    /// `clamp(round_half_even(x / scale) + zero_point)` as `quant::quantize` defines it.
    ///
    /// C1. Operands are `x` (a float), `scale` (the type that the scheme names) and, unless symmetric, `zero_point` (the storage type).
    /// C2. `scale` and `zero_point` have the shape that the granularity demands.
    pub struct Quantize("quantize", 2..=3) {
        /// Stored type and range, and what shares a scale.
        scheme: Scheme,
    }
}

impl Operator for Quantize {
    fn infer(&self, _: &mut InferCx, _: &[Type]) -> Result<Vec<Type>, InferError> {
        Err(InferError::new("quantize: inference is to be written"))
    }

    fn eval(&self, _: &Bindings, _: &[Tensor]) -> Result<Vec<Tensor>, EvalError> {
        Err(EvalError::new("quantize: evaluation is to be written"))
    }
}
