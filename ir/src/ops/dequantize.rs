//! `dequantize`: real values of quantized elements.

use crate::dim::Bindings;
use crate::tensor::Tensor;
use crate::types::Elem;
use crate::types::Type;
use super::{EvalError, InferCx, InferError, Operator};

operator! {
    /// `scale * (x - zero_point)` as `quant::dequantize` defines it.
    ///
    /// C1. Operands are a quantized `x`, `scale` and, unless symmetric, `zero_point`, with the shapes that the granularity demands.
    pub struct Dequantize("dequantize", 2..=3) {
        /// Element type of the result, a float.
        elem: Elem,
    }
}

impl Operator for Dequantize {
    fn infer(&self, _: &mut InferCx, _: &[Type]) -> Result<Vec<Type>, InferError> {
        Err(InferError::new("dequantize: inference is to be written"))
    }

    fn eval(&self, _: &Bindings, _: &[Tensor]) -> Result<Vec<Tensor>, EvalError> {
        Err(EvalError::new("dequantize: evaluation is to be written"))
    }
}
