//! `rms_norm`: root-mean-square normalisation.

use crate::attr::Float;
use crate::dim::Bindings;
use crate::tensor::Tensor;
use crate::types::Type;
use super::{EvalError, InferCx, InferError, Operator};

operator! {
    /// `x / sqrt(mean(x²) + epsilon) * scale` over the last `axes` axes (Zhang and Sennrich 2019).
    ///
    /// C1. Operands are `x` and `scale`, floats of one type.
    /// C2. `scale` broadcasts to the last `axes` axes of `x`.
    pub struct RmsNorm("rms_norm", 2..=2) {
        /// How many trailing axes are normalised together, at least 1.
        axes: usize,
        /// Added to the mean square.
        epsilon: Float,
    }
}

impl Operator for RmsNorm {
    fn infer(&self, _: &mut InferCx, _: &[Type]) -> Result<Vec<Type>, InferError> {
        Err(InferError::new("rms_norm: inference is to be written"))
    }

    fn eval(&self, _: &Bindings, _: &[Tensor]) -> Result<Vec<Tensor>, EvalError> {
        Err(EvalError::new("rms_norm: evaluation is to be written"))
    }
}
