//! `group_norm`: group normalisation.

use crate::attr::Float;
use crate::dim::Bindings;
use crate::tensor::Tensor;
use crate::types::Type;
use super::{EvalError, InferCx, InferError, Operator};

operator! {
    /// Normalises groups of channels: axis 1 is split into `groups`, mean and variance are taken over a group and all axes behind, then scale and bias apply per channel (Wu and He 2018). One group per channel is instance normalisation.
    ///
    /// C1. Operands are `x` of rank 2 or more, `scale` and `bias` of shape `[channels]`, floats of one type.
    /// C2. `groups` divides the number of channels.
    pub struct GroupNorm("group_norm", 3..=3) {
        /// Number of groups.
        groups: i64,
        /// Added to the variance.
        epsilon: Float,
    }
}

impl Operator for GroupNorm {
    fn infer(&self, _: &mut InferCx, _: &[Type]) -> Result<Vec<Type>, InferError> {
        Err(InferError::new("group_norm: inference is to be written"))
    }

    fn eval(&self, _: &Bindings, _: &[Tensor]) -> Result<Vec<Tensor>, EvalError> {
        Err(EvalError::new("group_norm: evaluation is to be written"))
    }
}
