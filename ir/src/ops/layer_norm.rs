//! `layer_norm`: layer normalisation.

use crate::attr::Float;
use crate::dim::Bindings;
use crate::tensor::Tensor;
use crate::types::Type;
use super::{EvalError, InferCx, InferError, Operator};

operator! {
    /// `(x - mean) / sqrt(variance + epsilon) * scale + bias` over the last `axes` axes (Ba et al. 2016).
    ///
    /// C1. Operands are `x`, `scale` and optionally `bias`, floats of one type.
    /// C2. `scale` and `bias` broadcast to the last `axes` axes of `x`.
    pub struct LayerNorm("layer_norm", 2..=3) {
        /// How many trailing axes are normalised together, at least 1.
        axes: usize,
        /// Added to the variance.
        epsilon: Float,
    }
}

impl Operator for LayerNorm {
    fn infer(&self, _: &mut InferCx, _: &[Type]) -> Result<Vec<Type>, InferError> {
        Err(InferError::new("layer_norm: inference is to be written"))
    }

    fn eval(&self, _: &Bindings, _: &[Tensor]) -> Result<Vec<Tensor>, EvalError> {
        Err(EvalError::new("layer_norm: evaluation is to be written"))
    }
}
