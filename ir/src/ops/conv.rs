//! `conv`: convolution.

use crate::dim::Bindings;
use crate::tensor::Tensor;
use crate::types::Type;
use super::{EvalError, InferCx, InferError, Operator};

operator! {
    /// Convolution over the axes behind batch and channels: `x[n, c, …]` with `w[m, c/groups, …]` and optionally `bias[m]`. Lowers to `pad`, `window` and `matmul`, or for one channel per group to `mul` and `reduce`.
    ///
    /// C1. Operands are floats of one type; `x` and `w` have equal ranks of at least 3.
    /// C2. Channels of `x` are `groups` times those of `w`; `groups` divides the channels of the result.
    /// C3. Lists have one entry per spatial axis; strides and dilations are positive, pads not negative.
    pub struct Conv("conv", 2..=3) {
        /// Step per spatial axis.
        strides: Vec<i64>,
        /// Zeros added before every spatial axis.
        pads_before: Vec<i64>,
        /// Zeros added behind every spatial axis.
        pads_after: Vec<i64>,
        /// Distance of taps per spatial axis.
        dilations: Vec<i64>,
        /// Number of groups that channels are split into.
        groups: i64,
    }
}

impl Operator for Conv {
    fn infer(&self, _: &mut InferCx, _: &[Type]) -> Result<Vec<Type>, InferError> {
        Err(InferError::new("conv: inference is to be written"))
    }

    fn eval(&self, _: &Bindings, _: &[Tensor]) -> Result<Vec<Tensor>, EvalError> {
        Err(EvalError::new("conv: evaluation is to be written"))
    }
}
